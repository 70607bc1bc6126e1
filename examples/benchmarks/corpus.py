"""Measures how localizing a corpus scales with processes, and the time for a million hours of video.

`localize_corpus.py` runs on copies of one 10-s 640x360 clip with a full-size model, with one thread per process, on
one and on several processes. To exclude loading, each is run on few and on many clips; the difference is measured.
`ratio` is the number of clips per second relative to one process; `core_hours_per_million_hours` is the time for a
million hours of video at that speed. Weights are random unless `--model` names a converted AudioCLIP.

    python examples/benchmarks/corpus.py --output corpus.json
    python examples/benchmarks/corpus.py --processes 1 4 --dtypes bfloat16
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline import CLIP_SECONDS, FullSize
from timing import finish, parse, parser_for
from transformers.utils import logging

from ave_clip.programs import program

LOCALIZE_CORPUS = Path(__file__).resolve().parents[1] / "localize_corpus.py"
DTYPES = ("float32", "bfloat16")
MILLION_HOURS = 10**6


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_for(__doc__)
    parser.add_argument("--model", help="Folder of a converted AudioCLIP. Default: random weights.")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="Numbers of processes to measure; the first is 1."
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--num_frames_per_segment", type=int, default=4)
    parser.add_argument("--clips", type=int, help="Measured clips per process. Default: 12, with --quick 4.")
    args = parse(parser, argv)
    args.clips = args.clips or (4 if args.quick else 12)
    if args.processes[0] != 1:
        parser.error(f"--processes must begin with 1, the baseline of the others, got {args.processes}")
    return args


def copies_of(clip: Path, folder: Path, count: int) -> Path:
    """Makes a folder with `count` copies of a clip."""
    folder.mkdir()
    for number in range(count):
        shutil.copyfile(clip, folder / f"{number:05d}.mp4")
    return folder


def seconds_for(videos: Path, model: Path, processes: int, dtype: str, frames: int) -> float:
    """Returns the run time of `localize_corpus.py` on a folder, with one part per video."""
    output = videos.with_name("events")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes), str(LOCALIZE_CORPUS)]
    command += ["--cpu", "--input", str(videos), "--output_dir", str(output), "--model", str(model), "--dtype", dtype]
    command += ["--videos_per_part", "1", "--num_frames_per_segment", str(frames)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    seconds = time.perf_counter() - started
    shutil.rmtree(output)
    return seconds


def measure(args: argparse.Namespace, full: FullSize, model: Path, dtype: str) -> list[dict]:
    """Returns one row per number of processes."""
    rows = []
    for processes in args.processes:
        durations = []
        for clips in (1, 1 + args.clips):
            videos = copies_of(full.clip(), full.folder / "videos", processes * clips)
            durations.append(seconds_for(videos, model, processes, dtype, args.num_frames_per_segment))
            shutil.rmtree(videos)
        clips_per_second = processes * args.clips / (durations[1] - durations[0])
        first = rows[0]["clips_per_second"] if rows else clips_per_second
        core_seconds = processes / clips_per_second / CLIP_SECONDS  # per second of video
        rows.append(
            {
                "row": f"corpus, {dtype}, {args.num_frames_per_segment} frames a segment, {processes} processes",
                "ratio": round(clips_per_second / first, 3),
                "clips_per_second": round(clips_per_second, 3),
                "core_hours_per_million_hours": round(core_seconds * MILLION_HOURS),
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> dict:
    args = parse_args(argv)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        full = FullSize(args, Path(folder))
        model = full.folder / "model"
        full.localizer().save_pretrained(model)
        full.processor(args.num_frames_per_segment).save_pretrained(model)
        rows = [row for dtype in args.dtypes for row in measure(args, full, model, dtype)]
    return finish(rows, args, argv)


if __name__ == "__main__":
    with program():
        main()
