"""Localizes a corpus of videos, on any number of processes or as a Ray Data job, into parquet files.

The corpus is cut into parts of equal size; each part is one file, `part-00000.parquet` and so on, with one row per
video: `video`, `error` (null if it worked), `segments` and `events` (lists of start, end, label, score). Parts are
written atomically, so a run that was stopped resumes with the parts that are missing. `corpus.json` in the same folder
records which videos and settings the parts belong to.

Processes claim parts one after the other, by a lock on a hidden file in the folder. So slow parts do not hold up the
others, and several runs, on any number of machines with a shared folder, divide the work among them. A killed process
loses its locks, and a later run computes its parts.
"""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from transformers import pipeline

from .core.builtin_checkpoints import builtin_checkpoints, find_checkpoint, portable_name
from .core.decode_threads import AUTO
from .core.pipeline_base import VideoPipeline
from .core.tasks import LOCALIZATION_TASK
from .corpus_videos import localize_videos, plan_reading
from .data.decoding import open_video
from .files import Claim, atomic_file
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
        model (`str`): Localizer: folder, Hub id or built-in name.
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

    def build_localizer(self, device: torch.device | str) -> VideoPipeline:
        """Returns the pipeline with these settings."""
        options = {
            "decoder": self.decoder,
            "min_event_segments": self.min_event_segments,
            "num_frames_per_segment": self.num_frames_per_segment,
        }
        dtype = getattr(torch, self.dtype)
        # pyrefly: ignore[no-matching-overload]  (transformers declares those of its own tasks)
        return pipeline(LOCALIZATION_TASK, model=find_checkpoint(self.model), device=device, dtype=dtype, **options)


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
        num_workers (`int`, *optional*), decode_threads (`int` or `str`): Reading processes, and decoding threads of
            each video; by default [`plan_reading`] chooses. Results do not depend on them.
    """

    corpus: Corpus
    folder: Path
    settings: CorpusSettings = CorpusSettings()
    retry_failed: bool = False
    num_workers: int | None = None
    decode_threads: int | str = AUTO

    def begin(self) -> None:
        """Creates the folder and records the run in it.

        Raises:
            ValueError: if the folder belongs to a run with other videos or settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        work = {"videos": len(self.corpus), "corpus": self.corpus.identity, **asdict(self.settings)}
        work["model"] = portable_name(self.settings.model)
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

    def missing_parts(self) -> list["Part"]:
        """The parts that are not written yet or, with `retry_failed`, have a failed video."""
        size = self.settings.videos_per_part
        parts = []
        for start in range(0, len(self.corpus), size):
            path = self.folder / f"part-{start // size:05d}.parquet"
            part = Part(path, range(start, min(start + size, len(self.corpus))), _version_of(path))
            is_done = part.version is not None
            if is_done and self.retry_failed:
                errors = pq.read_table(path, columns=["error"])["error"]
                is_done = errors.null_count == len(errors)
            if not is_done:
                parts.append(part)
        return parts

    def with_accelerate(self, accelerator: Accelerator) -> None:
        """Computes the missing parts with all processes, and with those of other runs on the same folder.

        A process takes the parts of its share one after the other, then those of the others from the end. It claims
        each part, so that no other process computes it, too. Returns when all processes of `accelerator` are done;
        processes of other runs may still compute parts then.
        """
        if accelerator.is_main_process:
            self.begin()
        accelerator.wait_for_everyone()
        parts = self.missing_parts()
        # A part that is written while another process still lists the missing ones would shift that process's share.
        accelerator.wait_for_everyone()
        shares = [parts[index :: accelerator.num_processes] for index in range(accelerator.num_processes)]
        own = shares.pop(accelerator.process_index)
        others = [part for share in shares for part in reversed(share)]
        if parts:
            localizer = self.settings.build_localizer(accelerator.device)
            self._compute(localizer, own, others)
        accelerator.wait_for_everyone()

    def _compute(
        self, localizer: VideoPipeline, own: Sequence["Part"], others: Sequence["Part"] = (), num_processes: int = 1
    ) -> int:
        """Computes the parts that no other process computes; returns the number of failed videos."""
        num_videos = sum(len(part.numbers) for part in (*own, *others))
        plan = plan_reading(localizer, num_videos, self.num_workers, self.decode_threads, num_processes)
        started, seconds, failed = time.perf_counter(), 0.0, 0
        with contextlib.ExitStack() as claims:
            taken: dict[int, TakenPart] = {}
            numbers = _take_parts(own, others, taken, claims)
            rows = localize_videos(localizer, self.corpus, numbers, plan)
            for number, row in claims.enter_context(contextlib.closing(rows)):
                current = taken.pop(number)
                current.rows[number] = row
                seconds += row["segments"][-1]["end"] if row["segments"] else 0.0
                if current.is_complete:
                    current.write()
                    failed += current.num_failed
                    speed = seconds / (time.perf_counter() - started)
                    facts = current.part.path.name, len(current.rows), current.num_failed, speed
                    logger.info("%s: %d videos, %d failed; %.1f times real time", *facts)
        return failed

    def with_ray(self, num_actors: int = 1, gpus_per_actor: float = 0.0) -> None:
        """Computes the missing parts as a Ray Data job.

        Args:
            num_actors (`int`): Number of models that work in parallel.
            gpus_per_actor (`float`): Number of GPUs of each, such as 0.5 for two models on one GPU; 0 uses the CPU.

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
        items = [{"number": number} for number in range(len(parts))]
        num_actors = min(num_actors, len(items))
        # Ray would otherwise queue several parts at an actor, while another one has nothing to do.
        pool = ray.data.ActorPoolStrategy(size=num_actors, max_tasks_in_flight_per_actor=1)
        actors: dict[str, Any] = {"compute": pool}
        actors |= {"num_gpus": gpus_per_actor} if gpus_per_actor else {"num_cpus": 1}
        # The package need not be installed in the same folder on all machines.
        settings = replace(self.settings, model=portable_name(self.settings.model))
        run = replace(self, folder=self.folder.resolve(), settings=settings)
        arguments = (run, parts, "cuda" if gpus_per_actor else "cpu", os.getcwd(), num_actors)
        # One block per part: Ray would otherwise give all parts of a block to one actor.
        work = ray.data.from_items(items, override_num_blocks=len(items))
        # pyrefly: ignore[bad-argument-type]  (Ray also takes a class, of which each actor makes an object)
        work.map(_PartActor, fn_constructor_args=arguments, **actors).materialize()


class _PartActor:
    """A Ray actor: loads the model once and computes one part per call."""

    def __init__(self, run: CorpusRun, parts: list["Part"], device: str, working_folder: str, num_actors: int) -> None:
        import ray

        os.chdir(working_folder)  # relative paths of videos are relative to the folder of the driver
        self.run, self.parts = run, parts
        # Here a built-in name never means a folder of that name: `portable_name` wrote that as `./name`.
        model = builtin_checkpoints().get(run.settings.model, run.settings.model)
        self.localizer = replace(run.settings, model=model).build_localizer(device)
        num_machines = sum(bool(node["Alive"]) for node in ray.nodes())
        self.num_processes = -(-num_actors // num_machines)  # which share the CPUs of this machine, rounded up

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = self.parts[row["number"]]
        return {**row, "failed": self.run._compute(self.localizer, [part], num_processes=self.num_processes)}


@dataclass(frozen=True)
class Part:
    """A part of the corpus, which one process computes.

    Attributes:
        path (`Path`): Its file.
        numbers (`range`): Numbers of its videos.
        version (`tuple`, *optional*): Identifies the content of the file when the part was listed, if it existed.
    """

    path: Path
    numbers: range
    version: tuple[int, int] | None = None


def _version_of(path: Path) -> tuple[int, int] | None:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    return facts.st_ino, facts.st_mtime_ns


class TakenPart:
    """A part that this process has claimed, and its rows so far."""

    def __init__(self, part: Part, claim: Claim) -> None:
        self.part, self.claim = part, claim
        self.rows: dict[int, dict[str, Any]] = {}

    @property
    def is_complete(self) -> bool:
        return len(self.rows) == len(self.part.numbers)

    @property
    def num_failed(self) -> int:
        return sum(row["error"] is not None for row in self.rows.values())

    def write(self) -> None:
        """Writes the file, then releases the claim."""
        rows = [self.rows[number] for number in self.part.numbers]
        with atomic_file(self.part.path) as partial:
            pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial)
        self.claim.release()


def _take_parts(
    own: Sequence[Part], others: Sequence[Part], taken: dict[int, TakenPart], claims: contextlib.ExitStack
) -> Iterator[int]:
    """Claims one part after the other, yields the numbers of its videos, and adds the part to `taken` for each."""
    for part in (*own, *others):
        claim = Claim(part.path)
        claims.callback(claim.release)
        # Without locks, each process keeps to its own share.
        may_compute = claim.is_mine or (not claim.is_known and part in own)
        # Another process may have computed it since the missing parts were listed.
        if not may_compute or _version_of(part.path) != part.version:
            claim.release()
            continue
        taken_part = TakenPart(part, claim)
        for number in part.numbers:
            taken[number] = taken_part
            yield number


def read_results(folder: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields the rows of all parts, with one part in memory at a time."""
    for path in sorted(folder.glob("part-*.parquet")):
        yield from pq.read_table(path, columns=columns).to_pylist()
