"""Shared parts of the benchmarks: interleaved timing, rows of results, command-line options."""

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ave_clip.training.arguments import describe_run, write_json

ROUNDS, QUICK_ROUNDS = 11, 3
REFERENCE = "reference"


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds instead of {ROUNDS}.")
    parser.add_argument("--rounds", type=int, help="Number of measured rounds per row.")
    parser.add_argument("--threads", type=int, help="Number of threads of torch. Default: one per core.")
    parser.add_argument("--output", help="JSON file for the results.")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses the arguments, fills in `rounds` and sets the number of threads."""
    args = parser.parse_args(argv)
    args.rounds = (QUICK_ROUNDS if args.quick else ROUNDS) if args.rounds is None else args.rounds
    for name in ("rounds", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Times several implementations of one task in turns, so that a busy machine slows all of them.

    Args:
        calls (`Mapping[str, Callable]`): Functions to time, by name; one is called "reference".
        rounds (`int`): Number of rounds, after one warm-up of each function.

    Returns:
        By name, `milliseconds` (the median) and `ratio` (median over the rounds of the reference's time divided by the
        function's time).
    """
    seconds = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - started)
    results = {}
    for name, own in seconds.items():
        ratios = [reference / time_taken for reference, time_taken in zip(seconds[REFERENCE], own)]
        results[name] = {
            "milliseconds": round(1000 * statistics.median(own), 2),
            "ratio": round(statistics.median(ratios), 3),
        }
    return results


def own_peak_megabytes() -> float:
    """Returns the peak resident memory of this program; `getrusage` on Linux would include its parent process."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    peaks = [int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")]
    unit = 1 if sys.platform == "darwin" else 1024
    return peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def finish(rows: list[dict], args: argparse.Namespace, argv: Sequence[str] | None) -> dict:
    """Prints the rows, returns them with the machine and the versions, and writes both to `--output`."""
    for row in rows:
        print("  ".join(f"{name}={value}" for name, value in row.items()), flush=True)
    content = {"rows": rows, "threads": torch.get_num_threads(), **describe_run(args, argv)}
    if args.output:
        write_json(Path(args.output), content)
    return content
