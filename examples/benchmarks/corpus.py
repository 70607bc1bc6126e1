"""Measures how localizing a corpus scales with processes, and the time for a million hours of video.

`localize_corpus.py` runs on 640x360 videos of different lengths with a full-size model, with one thread of torch per
process, on one and on several processes in turns. To exclude loading, each is run on one short video per process and
on all videos; the difference is measured. `ratio` is the speed divided by that of one process;
`core_hours_per_million_hours` is the time for a million hours of video at that speed. Weights are random unless
`--model` names a converted AudioCLIP.

    python examples/benchmarks/corpus.py --output corpus.json
    python examples/benchmarks/corpus.py --processes 1 4 --dtypes bfloat16
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import CLIP_SECONDS, FullSize
from recordings import repeat_recording
from timing import finish, parse, parser_for
from transformers.utils import logging

from ave_clip.programs import program

LOCALIZE_CORPUS = Path(__file__).resolve().parents[1] / "localize_corpus.py"
DTYPES = ("float32", "bfloat16")
LENGTHS = (10, 10, 60, 20)  # seconds; in this order, fixed shares of two processes would differ much
MILLION_HOURS = 10**6


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = parser_for(__doc__)
    parser.add_argument("--model", help="Folder of a converted AudioCLIP. Default: random weights.")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1, 2], help="Numbers of processes to measure; the first is 1."
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--num_frames_per_segment", type=int, default=4)
    parser.add_argument(
        "--videos", type=int, help=f"Number of measured videos, of {LENGTHS} seconds in turns. Default: 8."
    )
    parser.set_defaults(rounds=3)
    args = parse(parser, argv)
    args.videos = args.videos or (4 if args.quick else 8)
    if args.processes[0] != 1:
        parser.error(f"--processes must begin with 1, the baseline of the others, got {args.processes}")
    return args


def lengths(args: argparse.Namespace) -> list[int]:
    """Seconds of each measured video."""
    return [LENGTHS[number % len(LENGTHS)] for number in range(args.videos)]


def make_videos(clip: Path, folder: Path, seconds: Sequence[int]) -> Path:
    """Makes a folder of videos with these lengths, which repeat one clip."""
    folder.mkdir()
    for number, length in enumerate(seconds):
        repeat_recording(clip, folder / f"{number:05d}.mp4", length // CLIP_SECONDS)
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


def measure(args: argparse.Namespace, few: Mapping[int, Path], many: Path, model: Path, dtype: str) -> list[dict]:
    """Returns one row per number of processes, from folders with one video per process and with all videos."""
    speeds = {count: [] for count in args.processes}
    for _ in range(args.rounds):  # in turns, so that a busy machine slows all of them
        for count, videos in few.items():
            short, long = (
                seconds_for(folder, model, count, dtype, args.num_frames_per_segment) for folder in (videos, many)
            )
            speeds[count].append((sum(lengths(args)) - count * CLIP_SECONDS) / (long - short))
    rows = []
    for count, own in speeds.items():
        speed = statistics.median(own)
        rows.append(
            {
                "row": f"corpus, {dtype}, {args.num_frames_per_segment} frames per segment, processes: {count}",
                "ratio": round(statistics.median(fast / alone for fast, alone in zip(own, speeds[1])), 3),
                "times_real_time": round(speed, 2),
                "core_hours_per_million_hours": round(count / speed * MILLION_HOURS),
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
        few = {
            count: make_videos(full.clip(), full.folder / f"few-{count}", [CLIP_SECONDS] * count)
            for count in args.processes
        }
        many = make_videos(full.clip(), full.folder / "many", lengths(args))
        rows = [row for dtype in args.dtypes for row in measure(args, few, many, model, dtype)]
    return finish(rows, args, argv)


if __name__ == "__main__":
    with program():
        main()
