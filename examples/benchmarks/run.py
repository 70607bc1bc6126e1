"""Runs the benchmarks, merges their results, and tells when something became slower.

Each part runs in a process of its own. `--check` compares every ratio with that of the committed results and fails
where one dropped by more than 15 %; a part that seems slower is measured once more first, and its better ratio counts.
Ratios are of interleaved runs, so they hold on a busy machine, but only on machines of one kind.

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

from ave_clip.training.arguments import describe_run, write_json

FOLDER = Path(__file__).resolve().parent
COMMITTED = FOLDER / "results" / "reference.json"
# Each with what it leaves out when it must be quick.
PARTS = {"encoders": (), "fusion": (), "localizer": (), "pipeline": ("--parts", "localize", "start")}
WITH_ENCODERS = ("encoders", "pipeline")
TOLERATED_DROP = 0.15


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Few rounds; then compare with the committed results.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", help="Folder of a converted AudioCLIP; random weights by default.")
    parser.add_argument("--threads", type=int, help="Of torch; those of the committed results by default.")
    parser.add_argument("--check", help=f"Results to compare with; {COMMITTED.name} of results/ with --quick.")
    parser.add_argument("--output", help="JSON file for the merged results.")
    args = parser.parse_args(argv)
    if args.quick and args.check is None and COMMITTED.is_file():
        args.check = str(COMMITTED)
    return args


def run_part(name: str, args: argparse.Namespace) -> list[dict]:
    """Run one benchmark in a process of its own and return its rows."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "results.json"
        command = [sys.executable, str(FOLDER / f"{name}.py"), "--output", str(output)]
        command += ["--quick", *PARTS[name]] if args.quick else []
        command += ["--threads", str(args.threads)] if args.threads else []
        command += ["--model", args.model] if args.model and name in WITH_ENCODERS else []
        subprocess.run(command, check=True)
        return json.loads(output.read_text(encoding="utf-8"))["rows"]


def dropped(rows: Sequence[Mapping], committed: Mapping[str, float]) -> list[str]:
    """One sentence for each row whose ratio is more than the tolerated share below the committed one."""
    return [
        f"{row['row']}: {row['ratio']:g} times the reference, committed {committed[row['row']]:g}"
        for row in rows
        if row["row"] in committed and row["ratio"] < (1 - TOLERATED_DROP) * committed[row["row"]]
    ]


def better(rows: Sequence[dict], again: Sequence[dict]) -> list[dict]:
    """Of each row the measurement with the higher ratio."""
    return [max(pair, key=lambda row: row["ratio"]) for pair in zip(rows, again)]


def committed_ratios(path: str | None) -> tuple[dict[str, float], int | None]:
    """Ratios by row, and the threads they were measured with."""
    if path is None:
        return {}, None
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return {row["row"]: row["ratio"] for row in content["rows"]}, content["machine"]["threads"]


def main(argv: Sequence[str] | None = None) -> dict:
    args = parse_args(argv)
    committed, threads = committed_ratios(args.check)
    args.threads = args.threads or threads
    results = []
    for name in args.parts:
        rows = run_part(name, args)
        if dropped(rows, committed):
            rows = better(rows, run_part(name, args))
        results += rows
    content = {"rows": results, **describe_run(args, argv)}
    content["machine"]["threads"] = args.threads or content["machine"]["threads"]
    if args.output:
        write_json(Path(args.output), content)
    slower = dropped(results, committed)
    if slower:
        raise SystemExit(f"Slower by more than {TOLERATED_DROP:.0%} than {args.check}:\n" + "\n".join(slower))
    return content


if __name__ == "__main__":
    main()
