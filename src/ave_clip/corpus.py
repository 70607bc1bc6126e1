"""Localizes a corpus of videos, on any number of processes or as a Ray Data job, into parquet files.

The corpus is cut into parts of equal size; each part is one file, `part-00000.parquet` and so on, with one row per
video: `video`, `error` (null if it worked), `segments` and `events` (lists of start, end, label, score). Parts are
written atomically, so a run that was stopped resumes with the parts that are missing. `corpus.json` in the same folder
records which videos and settings the parts belong to.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from transformers import pipeline

from .core.tasks import LOCALIZATION_TASK
from .data.decoding import open_video
from .files import atomic_file
from .registration import DEFAULT_CHECKPOINT
from .training.arguments import write_json
from .video_files import VIDEO_SUFFIXES, find_video_files

logger = logging.getLogger(__name__)

WORK_FILE = "corpus.json"
SPAN = pa.struct([("start", pa.float64()), ("end", pa.float64()), ("label", pa.string()), ("score", pa.float64())])
SCHEMA = pa.schema(
    [("video", pa.string()), ("error", pa.string()), ("segments", pa.list_(SPAN)), ("events", pa.list_(SPAN))]
)


@dataclass(frozen=True)
class CorpusSettings:
    """The settings that the results depend on; a folder of parts can only be completed with the same ones.

    Attributes:
        model (`str`): Localizer: folder or Hub id.
        dtype (`str`): `"float32"`, `"bfloat16"` or `"float16"`.
        decoder (`str`, *optional*): A name of `DECODERS`. Default: the model's.
        min_event_segments (`int`, *optional*): Length of the shortest event. Default: the model's setting.
        num_frames_per_segment (`int`, *optional*): Default: the processor's setting.
        videos_per_part (`int`): Number of videos in each part: what an interrupted process has to compute again.
    """

    model: str = DEFAULT_CHECKPOINT
    dtype: str = "float32"
    decoder: str | None = None
    min_event_segments: int | None = None
    num_frames_per_segment: int | None = None
    videos_per_part: int = 64

    def build_localizer(self, device: torch.device | str) -> Callable:
        """Returns the pipeline with these settings."""
        options = {
            "decoder": self.decoder,
            "min_event_segments": self.min_event_segments,
            "num_frames_per_segment": self.num_frames_per_segment,
        }
        dtype = getattr(torch, self.dtype)
        # pyrefly: ignore[no-matching-overload]  (transformers declares those of its own tasks)
        return pipeline(LOCALIZATION_TASK, model=self.model, device=device, dtype=dtype, **options)


class Corpus:
    """A numbered sequence of videos; a video is opened only when it is asked for.

    Args:
        videos (`Sequence`): Paths or URLs; or rows with `path` and `bytes`, as `datasets` returns undecoded videos.
        identity (`str`, *optional*): Distinguishes this corpus from others. Default: a hash of the paths.
    """

    def __init__(self, videos: Sequence[Any], identity: str | None = None) -> None:
        self.videos = videos
        if identity is None:
            # Linux file names need not be valid UTF-8: surrogateescape returns the original bytes.
            identity = hashlib.sha256("\n".join(videos).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        self.identity = identity

    @classmethod
    def from_path(cls, source: str) -> "Corpus":
        """All videos of a folder and its subfolders in natural order, or the lines of a text file.

        Raises:
            ValueError: if `source` is neither of them, or contains no video.
        """
        path = Path(source)
        if path.is_dir():
            found, _ = find_video_files(path)
        elif path.is_file() and path.suffix.lower() not in VIDEO_SUFFIXES:
            found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            raise ValueError(f"{source} is neither a folder nor a text file with one video per line.")
        if not found:
            suffixes = ", ".join(VIDEO_SUFFIXES)
            raise ValueError(f"{source} contains no video. Folders are searched for {suffixes}.")
        return cls(found)

    @classmethod
    def from_rows(cls, videos: Iterable[Mapping[str, Any]]) -> "Corpus":
        """Videos of rows of `ave_clip.data`, `path` and `bytes` each; a file that several rows show counts once."""
        rows = list(videos)
        if all(row["bytes"] is None for row in rows):
            return cls(list(dict.fromkeys(row["path"] for row in rows)))
        digest = hashlib.sha256()
        for row in rows:
            digest.update(hashlib.sha256(row["bytes"] or b"").digest() + repr(row["path"]).encode())
        return cls(rows, digest.hexdigest()[:16])

    @classmethod
    def from_dataset(cls, name: str, split: str = "train", column: str = "video") -> "Corpus":
        """The video column of a data set of `datasets.load_dataset`, undecoded.

        Raises:
            ValueError: if the data set has no such column.
        """
        from datasets import Video, load_dataset

        rows = load_dataset(name, split=split)
        if column not in rows.column_names:
            raise ValueError(f"{name} has the columns {rows.column_names}, not {column!r}. Pass --video_column.")
        return cls(rows.cast_column(column, Video(decode=False))[column], f"{name} {split} {column}")

    def __len__(self) -> int:
        return len(self.videos)

    def open(self, number: int) -> tuple[str, Any]:
        """Returns the name of a video and what the pipeline takes: a path, a URL or a file object."""
        video = self.videos[number]
        if isinstance(video, str):
            return os.fsencode(video).decode("utf-8", "replace"), video  # parquet only stores valid UTF-8
        return video.get("path") or f"row {number}", open_video(video)


@dataclass(frozen=True)
class CorpusRun:
    """Localizes the videos of a corpus into a folder.

    Args:
        corpus (`Corpus`): The videos.
        folder (`Path`): Folder of the results. With Ray, all machines must be able to write to it.
        settings (`CorpusSettings`): The model and its options.
        retry_failed (`bool`): Compute parts that contain failed videos again.
    """

    corpus: Corpus
    folder: Path
    settings: CorpusSettings = CorpusSettings()
    retry_failed: bool = False

    def begin(self) -> None:
        """Creates the folder and records the run in it.

        Raises:
            ValueError: if the folder belongs to a run with other videos or settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        work = {"videos": len(self.corpus), "corpus": self.corpus.identity, **asdict(self.settings)}
        path = self.folder / WORK_FILE
        if not path.exists():
            return write_json(path, work)
        found = json.loads(path.read_text(encoding="utf-8"))
        differences = [
            f"{name} {found.get(name)} there, {work[name]} now" for name in work if found.get(name) != work[name]
        ]
        if differences:
            raise ValueError(
                f"{self.folder} contains the results of another run ({'; '.join(differences)}). Choose another "
                "--output_dir, or repeat the arguments of that run to resume it."
            )

    def missing_parts(self) -> list[tuple[Path, range]]:
        """File and video numbers of each part that is not written yet or, with `retry_failed`, has a failed video."""
        size = self.settings.videos_per_part
        parts = []
        for start in range(0, len(self.corpus), size):
            path = self.folder / f"part-{start // size:05d}.parquet"
            is_done = path.exists()
            if is_done and self.retry_failed:
                errors = pq.read_table(path, columns=["error"])["error"]
                is_done = errors.null_count == len(errors)
            if not is_done:
                parts.append((path, range(start, min(start + size, len(self.corpus)))))
        return parts

    def with_accelerate(self, accelerator: Accelerator) -> None:
        """Divides the missing parts among the processes; returns when all are done."""
        if accelerator.is_main_process:
            self.begin()
        accelerator.wait_for_everyone()
        parts = self.missing_parts()
        # A part that is written while another process still lists the missing ones would shift that process's share.
        accelerator.wait_for_everyone()
        own = parts[accelerator.process_index :: accelerator.num_processes]
        if own:
            localizer = self.settings.build_localizer(accelerator.device)
            started = time.perf_counter()
            for done, (path, numbers) in enumerate(own, start=1):
                localize_part(localizer, self.corpus, path, numbers)
                left = (time.perf_counter() - started) / done * (len(own) - done)
                logger.info("part %d of %d, %.0f s left", done, len(own), left)
        accelerator.wait_for_everyone()

    def with_ray(self, num_actors: int = 1, gpus_per_actor: float = 0.0) -> None:
        """Computes the missing parts as a Ray Data job.

        Args:
            num_actors (`int`): Number of models that work in parallel.
            gpus_per_actor (`float`): Number of GPUs of each; 0 uses the CPU.

        Raises:
            ImportError: if Ray is not installed.
        """
        try:
            import ray
        except ImportError:
            raise ImportError("--ray needs Ray Data: pip install 'ave-clip[ray]'.") from None
        self.begin()
        parts = self.missing_parts()
        if not parts:
            return
        items = [{"path": str(path.resolve()), "first": part.start, "end": part.stop} for path, part in parts]
        actors: dict[str, Any] = {"compute": ray.data.ActorPoolStrategy(size=min(num_actors, len(items)))}
        actors |= {"num_gpus": gpus_per_actor} if gpus_per_actor else {"num_cpus": 1}
        arguments = (self.settings, self.corpus, "cuda" if gpus_per_actor else "cpu", os.getcwd())
        # One block per part: Ray would otherwise give all parts of a block to one actor.
        work = ray.data.from_items(items, override_num_blocks=len(items))
        # pyrefly: ignore[bad-argument-type]  (Ray also takes a class, of which each actor makes an object)
        work.map(_PartActor, fn_constructor_args=arguments, **actors).materialize()


class _PartActor:
    """A Ray actor: loads the model once and computes one part per call."""

    def __init__(self, settings: CorpusSettings, corpus: Corpus, device: str, working_folder: str) -> None:
        os.chdir(working_folder)  # relative paths of videos are relative to the folder of the driver
        self.corpus = corpus
        self.localizer = settings.build_localizer(device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        numbers = range(row["first"], row["end"])
        return {**row, "failed": localize_part(self.localizer, self.corpus, Path(row["path"]), numbers)}


def localize_part(localizer: Callable, corpus: Corpus, path: Path, numbers: range) -> int:
    """Localizes the videos of one part and writes its file; returns how many failed."""
    rows = [localize_video(localizer, corpus, number) for number in numbers]
    with atomic_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial)
    return sum(row["error"] is not None for row in rows)


def localize_video(localizer: Callable, corpus: Corpus, number: int) -> dict[str, Any]:
    """Returns the row of one video; a video that fails gets its error and no results."""
    name = f"video {number}"
    try:
        name, video = corpus.open(number)
        return {"video": name, "error": None, **localizer(video)}
    except (MemoryError, torch.OutOfMemoryError):  # a fault of the machine, which the next video would meet as well
        raise
    except Exception as error:  # decoders raise errors of many kinds; the other videos must still be localized
        logger.warning("%s: %s", name, error)
        return {"video": name, "error": str(error) or type(error).__name__, "segments": None, "events": None}


def read_results(folder: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of all parts, with one part in memory at a time."""
    for path in sorted(folder.glob("part-*.parquet")):
        yield from pq.read_table(path, columns=columns).to_pylist()
