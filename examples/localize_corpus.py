"""Localize every video of a folder, a list or a data set, on any number of processes or machines.

What it reads: `--input`, a folder (searched through), a text file with one path or URL a line, or, with `--dataset`, a
data set's name or folder for `datasets.load_dataset` with a video column.
What it writes: `--output_dir/part-00000.parquet` and so on, one row a video: `video`, `error` (null where it worked),
`segments` and `events` (lists of start, end, label, score). A part appears only when it is whole, and a run that was
stopped goes on with the parts that are missing. The exit code is 1 where a video failed; `--retry_failed` makes the
parts with such videos again, say when the network is back.

    accelerate launch examples/localize_corpus.py --input videos --output_dir events
    python examples/localize_corpus.py --input videos --output_dir events --ray --num_actors 8   # on a Ray cluster

    >>> import pandas
    >>> pandas.read_parquet("events").explode("events")                                          # one event a row
"""

import argparse
import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import pipeline

import ave_clip
from ave_clip.data.decoding import open_video
from ave_clip.events import DECODERS
from ave_clip.files import atomic_file
from ave_clip.training.arguments import add_run_arguments, build_accelerator, parse_arguments, write_json

logger = logging.getLogger("localize_corpus")
SUFFIXES = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".ts", ".webm", ".wmv")
SPAN = pa.struct([("start", pa.float64()), ("end", pa.float64()), ("label", pa.string()), ("score", pa.float64())])
SCHEMA = pa.schema(
    [("video", pa.string()), ("error", pa.string()), ("segments", pa.list_(SPAN)), ("events", pa.list_(SPAN))]
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", help="A folder, or a text file with one path or URL a line.")
    source.add_argument("--dataset", help="Name or folder for datasets.load_dataset.")
    parser.add_argument("--dataset_split", default="train")
    parser.add_argument("--video_column", default="video")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--model", default=ave_clip.DEFAULT_CHECKPOINT, help="Localizer: folder or Hub id.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--decoder", choices=DECODERS, default="merge")
    parser.add_argument("--min_event_segments", type=int, help="The model's own by default.")
    parser.add_argument("--num_frames_per_segment", type=int, help="The processor's own by default.")
    parser.add_argument("--videos_per_part", type=int, default=64, help="What is lost at most when a run is stopped.")
    parser.add_argument("--retry_failed", action="store_true", help="Make parts with videos that failed again.")
    parser.add_argument("--ray", action="store_true", help="Run as a Ray Data job (pip install 'ave-clip[ray]').")
    parser.add_argument("--num_actors", type=int, default=1, help="With --ray: models that work side by side.")
    parser.add_argument("--gpus_per_actor", type=float, default=0.0, help="With --ray.")
    add_run_arguments(parser)
    args = parse_arguments(parser, argv)
    if args.videos_per_part < 1 or args.num_actors < 1:
        parser.error("--videos_per_part and --num_actors must be at least 1")
    return args


class Corpus:
    """The videos of a run by number, without holding any of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.rows, self.paths = None, []
        if args.dataset:
            self.rows = load_rows(args.dataset, args.dataset_split, args.video_column)
            self.identity = f"{args.dataset} {args.dataset_split} {args.video_column}"
        else:
            self.paths = list_videos(args.input)
            content = "\n".join(self.paths).encode("utf-8", "surrogateescape")
            self.identity = hashlib.sha256(content).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.paths) if self.rows is None else len(self.rows)

    def open(self, number: int) -> tuple[str, Any]:
        """A video's name, and what the pipeline takes: a path, a URL or a file object."""
        if self.rows is None:
            return os.fsencode(self.paths[number]).decode("utf-8", "replace"), self.paths[number]
        row = self.rows[number]
        return row.get("path") or f"row {number}", open_video(row)


def load_rows(dataset: str, split: str, column: str) -> Any:
    """The video column of a data set, undecoded."""
    from datasets import Video, load_dataset

    rows = load_dataset(dataset, split=split)
    if column not in rows.column_names:
        raise ValueError(f"{dataset} has the columns {rows.column_names}, not {column!r}: pass --video_column.")
    return rows.cast_column(column, Video(decode=False))[column]


def list_videos(source: str) -> list[str]:
    """All videos of a folder, sorted, or the lines of a text file.

    Raises:
        ValueError: where there is neither, or no video in it.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    elif path.is_file() and path.suffix.lower() not in SUFFIXES:
        found = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        raise ValueError(f"--input {source} is neither a folder nor a text file with one video a line.")
    if not found:
        raise ValueError(f"--input {source} holds no video. In folders these are looked for: {', '.join(SUFFIXES)}.")
    return found


def describe_work(args: argparse.Namespace, corpus: Corpus) -> dict[str, Any]:
    """What the parts depend on; a run goes on only with the same."""
    settings = ("model", "dtype", "decoder", "min_event_segments", "num_frames_per_segment", "videos_per_part")
    return {"videos": len(corpus), "corpus": corpus.identity, **{name: getattr(args, name) for name in settings}}


def check_work(folder: Path, work: dict[str, Any]) -> None:
    """Write what this run is, or compare it with the run whose parts lie there.

    Raises:
        ValueError: where the folder belongs to another run.
    """
    path = folder / "corpus.json"
    if not path.exists():
        return write_json(path, work)
    found = json.loads(path.read_text(encoding="utf-8"))
    differences = [
        f"{name} {found.get(name)} there, {work[name]} now" for name in work if found.get(name) != work[name]
    ]
    if differences:
        raise ValueError(
            f"{folder} holds the results of another run ({'; '.join(differences)}). Choose another --output_dir, or "
            "repeat that run's arguments to go on with it."
        )


def missing_parts(folder: Path, num_videos: int, size: int, retry: bool) -> list[tuple[Path, range]]:
    """File and video numbers of each part that does not stand yet, or with `retry` has a video that failed."""
    starts = range(0, num_videos, size)
    parts = [
        (folder / f"part-{start // size:05d}.parquet", range(start, min(start + size, num_videos))) for start in starts
    ]
    return [(path, numbers) for path, numbers in parts if not path.exists() or (retry and has_failures(path))]


def has_failures(path: Path) -> bool:
    """Whether a video of this part failed."""
    errors = pq.read_table(path, columns=["error"])["error"]
    return errors.null_count < len(errors)


def build_localizer(args: argparse.Namespace, device: Any) -> Callable:
    options = {"decoder": args.decoder, "min_event_segments": args.min_event_segments}
    options["num_frames_per_segment"] = args.num_frames_per_segment
    task = "audio-visual-event-localization"
    return pipeline(task, model=args.model, device=device, dtype=getattr(torch, args.dtype), **options)


def localize_part(localizer: Callable, corpus: Corpus, path: Path, numbers: range) -> int:
    """Localize the videos of one part and write it; returns how many failed."""
    rows = [localize_video(localizer, corpus, number) for number in numbers]
    with atomic_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), partial)
    return sum(row["error"] is not None for row in rows)


def localize_video(localizer: Callable, corpus: Corpus, number: int) -> dict[str, Any]:
    name = f"video {number}"
    try:
        name, video = corpus.open(number)
        return {"video": name, "error": None, **localizer(video)}
    except (MemoryError, torch.OutOfMemoryError):  # not the file's fault
        raise
    except Exception as error:  # whatever one file does, the others must still be read
        logger.warning("%s: %s", name, error)
        return {"video": name, "error": str(error) or type(error).__name__, "segments": None, "events": None}


def run_with_accelerate(args: argparse.Namespace, corpus: Corpus, folder: Path) -> bool:
    """Deal the missing parts out over the processes; returns whether this is the one that reports."""
    accelerator = build_accelerator(args.cpu, args.mixed_precision)
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        check_work(folder, describe_work(args, corpus))
    accelerator.wait_for_everyone()
    parts = missing_parts(folder, len(corpus), args.videos_per_part, args.retry_failed)
    accelerator.wait_for_everyone()  # nobody writes before all have looked
    mine = parts[accelerator.process_index :: accelerator.num_processes]
    localizer = build_localizer(args, accelerator.device) if mine else None
    started = time.perf_counter()
    for done, (path, numbers) in enumerate(mine, start=1):
        localize_part(localizer, corpus, path, numbers)
        seconds = time.perf_counter() - started
        left = seconds / done * (len(mine) - done)
        logger.info("part %d of %d, %.0f s left", done, len(mine), left)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return accelerator.is_main_process


class PartLocalizer:
    """A Ray actor: loads the model once and makes one part a call."""

    def __init__(self, args: argparse.Namespace, corpus: Corpus, working_folder: str) -> None:
        os.chdir(working_folder)  # that relative paths are meant from
        self.corpus = corpus
        self.localizer = build_localizer(args, "cuda" if args.gpus_per_actor else "cpu")

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        numbers = range(row["first"], row["end"])
        return {**row, "failed": localize_part(self.localizer, self.corpus, Path(row["path"]), numbers)}


def run_with_ray(args: argparse.Namespace, corpus: Corpus, folder: Path) -> None:
    """Make the missing parts as a Ray Data job; `--output_dir` must be visible to all its machines."""
    try:
        import ray
    except ImportError:
        raise ImportError("--ray needs Ray Data: pip install 'ave-clip[ray]'.") from None
    folder.mkdir(parents=True, exist_ok=True)
    check_work(folder, describe_work(args, corpus))
    parts = missing_parts(folder, len(corpus), args.videos_per_part, args.retry_failed)
    if not parts:
        return
    items = [{"path": str(path.resolve()), "first": part.start, "end": part.stop} for path, part in parts]
    actors = {"compute": ray.data.ActorPoolStrategy(size=min(args.num_actors, len(items)))}
    resources = {"num_gpus": args.gpus_per_actor} if args.gpus_per_actor else {"num_cpus": 1}
    work = ray.data.from_items(items, override_num_blocks=len(items))
    work.map(PartLocalizer, fn_constructor_args=(args, corpus, os.getcwd()), **actors, **resources).materialize()


def read_results(folder: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of all parts, one part in memory at a time."""
    for path in sorted(folder.glob("part-*.parquet")):
        yield from pq.read_table(path, columns=columns).to_pylist()


def main(argv: Sequence[str] | None = None) -> dict[str, int]:
    args = parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    corpus, folder = Corpus(args), Path(args.output_dir)
    is_reporting = True
    if args.ray:
        run_with_ray(args, corpus, folder)
    else:
        is_reporting = run_with_accelerate(args, corpus, folder)
    errors = [row["error"] for row in read_results(folder, ["error"])]
    failed = sum(error is not None for error in errors)
    if is_reporting:
        logger.info("%d videos localized, %d failed: %s", len(errors) - failed, failed, folder)
    return {"videos": len(errors), "failed": failed}


if __name__ == "__main__":
    sys.exit(1 if main()["failed"] else 0)
