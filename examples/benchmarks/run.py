"""Runs the benchmarks, merges their results, and reports slowdowns.

Each benchmark runs in a separate process. `--check` compares every ratio with the committed results and fails if one
dropped by more than 15 %; a benchmark that seems slower is first measured again, and the better ratio counts. Ratios
come from interleaved runs, so they are valid on a busy machine, but they depend on the kind of machine: results of
another CPU model are shown beside the measured ones, and not judged.

    python examples/benchmarks/run.py --quick                        (under 5 minutes)
    python examples/benchmarks/run.py --output examples/benchmarks/results/reference.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ave_clip.programs import program
from ave_clip.training.arguments import describe_run, processor_name, write_json

FOLDER = Path(__file__).resolve().parent
COMMITTED = FOLDER / "results" / "reference.json"
# Each benchmark with its options for `--quick`.
PARTS = {"encoders": (), "fusion": (), "localizer": (), "pipeline": ("--parts", "localize", "start", "mini")}
WITH_ENCODERS = ("encoders", "pipeline")
TOLERATED_DROP = 0.15


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Run few rounds and compare with the committed results.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", help="Folder of a converted AudioCLIP. Default: random weights.")
    parser.add_argument("--threads", type=int, help="Threads of torch. Default: as in the committed results.")
    parser.add_argument("--check", help=f"Results to compare with; {COMMITTED.name} of results/ with --quick.")
    parser.add_argument("--output", help="JSON file for the merged results.")
    args = parser.parse_args(argv)
    if args.quick and args.check is None and COMMITTED.is_file():
        args.check = str(COMMITTED)
    return args


def run_part(name: str, args: argparse.Namespace) -> list[dict]:
    """Runs one benchmark in a separate process and returns its rows."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        command = [sys.executable, str(FOLDER / f"{name}.py"), "--output", str(output)]
        command += ["--quick", *PARTS[name]] if args.quick else []
        command += ["--threads", str(args.threads)] if args.threads else []
        command += ["--model", args.model] if args.model and name in WITH_ENCODERS else []
        subprocess.run(command, check=True)
        return json.loads(output.read_text(encoding="utf-8"))["rows"]


def dropped(rows: Sequence[Mapping], committed: Mapping[str, float]) -> list[str]:
    """Returns a sentence per row whose ratio is below the committed one by more than the tolerated fraction."""
    return [
        f"{row['row']}: {row['ratio']:g} times the reference, committed {committed[row['row']]:g}"
        for row in rows
        if row["row"] in committed and row["ratio"] < (1 - TOLERATED_DROP) * committed[row["row"]]
    ]


def better(rows: Sequence[dict], again: Sequence[dict]) -> list[dict]:
    """Returns the measurement with the higher ratio of each row."""
    return [max(pair, key=lambda row: row["ratio"]) for pair in zip(rows, again)]


def committed_ratios(path: str | None) -> tuple[dict[str, float], dict]:
    """Returns the ratios by row, and the machine that they were measured on: `processor` and `threads`."""
    if path is None:
        return {}, {}
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return {row["row"]: row["ratio"] for row in content["rows"]}, content["machine"]


def show(rows: Sequence[Mapping], committed: Mapping[str, float], machine: Mapping) -> None:
    """Prints the ratios beside the committed ones."""
    print(f"{'measured':>9} {'committed':>9}  (committed: {machine['processor']}; here: {processor_name()})")
    for row in rows:
        print(f"{row['ratio']:>9g} {committed.get(row['row'], float('nan')):>9g}  {row['row']}")


def main(argv: Sequence[str] | None = None) -> dict:
    args = parse_args(argv)
    committed, machine = committed_ratios(args.check)
    args.threads = args.threads or machine.get("threads")
    judged = committed if machine.get("processor") == processor_name() else {}
    results = []
    for name in args.parts:
        rows = run_part(name, args)
        if dropped(rows, judged):
            rows = better(rows, run_part(name, args))
        results += rows
    content = {"rows": results, **describe_run(args, argv)}
    content["machine"]["threads"] = args.threads or content["machine"]["threads"]
    if args.output:
        write_json(Path(args.output), content)
    if committed:
        show(results, committed, machine)
    if committed and not judged:
        print(f"{args.check} was measured on another CPU model, so nothing is judged.")
    slower = dropped(results, judged)
    if slower:
        raise SystemExit(f"Slower by more than {TOLERATED_DROP:.0%} than {args.check}:\n" + "\n".join(slower))
    return content


if __name__ == "__main__":
    with program():
        main()
