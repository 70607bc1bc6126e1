"""Fill the tables of the READMEs from the committed results: run it after a training of ave-clip-tiny or a benchmark.

What it reads: `model_cards/results/ave-clip-tiny*.json` and `examples/benchmarks/results/*.json`.
What it writes: the blocks between `<!-- NAME: begin -->` and `<!-- NAME: end -->` of README.md and of the benchmarks'
README.md; nothing else changes.

    python examples/readme_tables.py
"""

import argparse
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ave_clip.files import atomic_file

ROOT = Path(__file__).parents[1]
MEASURES = {
    "segment_accuracy": "segment accuracy",
    "background_recall": "background recall",
    "background_precision": "background precision",
    "event_f1": "event F1 (tIoU 0.5)",
    "event_map": "event mAP (tIoU 0.5 to 0.9)",
}
CONTROLS = {"stage3": "sight and sound", "no_audio": "sound blanked", "no_video": "sight blanked"}
REFERENCES = {"all_background": "background everywhere", "never_background": "the right class, never background"}
# Results of `examples/benchmarks/` that the README shows; its own README shows all.
SHOWN_SPEED = ("reference",)
SPEED_COLUMNS = {
    "row": "what",
    "milliseconds": "ms",
    "reference_milliseconds": "reference, ms",
    "ratio": "times as fast",
    "at_least": "wanted",
    "max_difference": "largest difference",
    "min_cosine": "least cosine",
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--benchmarks_readme", type=Path, default=ROOT / "examples" / "benchmarks" / "README.md")
    parser.add_argument("--results_dir", type=Path, default=ROOT / "model_cards" / "results")
    parser.add_argument("--benchmarks_dir", type=Path, default=ROOT / "examples" / "benchmarks" / "results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    speed = {path.stem: speed_tables(path) for path in sorted(args.benchmarks_dir.glob("*.json"))}
    shown = "\n\n".join(speed[name] for name in SHOWN_SPEED if name in speed)
    fill(args.readme, {"ave-clip-tiny": tiny_tables(args.results_dir), "speed": shown})
    fill(args.benchmarks_readme, speed)


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    """Put each block that is not empty between its markers."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        if block:
            text = replace_block(text, name, block)
    with atomic_file(page) as partial:
        partial.write_text(text, encoding="utf-8")


def replace_block(text: str, name: str, block: str) -> str:
    """Put `block` between the markers of that name.

    Raises:
        ValueError: where the text does not have these markers exactly once.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    found = re.findall(f"{re.escape(begin)}.*?{re.escape(end)}", text, flags=re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"Found {len(found)} blocks between {begin} and {end}, wanted one. Put both into the file.")
    return text.replace(found[0], f"{begin}\n{block}\n{end}")


def tiny_tables(results_dir: Path) -> str:
    """What ave-clip-tiny reaches on fresh clips, and with a modality blanked."""
    shipped = _main(_read(results_dir / "ave-clip-tiny-fresh-seed0.json")["decoders"])
    summary = _read(results_dir / "ave-clip-tiny-summary.json")
    rows = [["", "shipped model", f"mean of {summary['count']} seeds", "deviation"]]
    for name, title in MEASURES.items():
        if name in shipped and name in summary["metrics"]:
            over_seeds = summary["metrics"][name]
            values = (shipped[name], over_seeds["mean"], over_seeds["deviation"])
            rows.append([title, *map(_percent, values)])
    return f"{_table(rows)}\n\n{_control_table(_read(results_dir / 'ave-clip-tiny.json')['results'])}"


def _control_table(results: Mapping[str, Any]) -> str:
    measured = {name: _main(results[name]["validation"]) for name in CONTROLS if name in results}
    references = measured["stage3"]["reference_points"]
    rows = [["trained with", "segment accuracy"]]
    rows += [[CONTROLS[name], _percent(metrics["segment_accuracy"])] for name, metrics in measured.items()]
    rows += [[title, _percent(references[name])] for name, title in REFERENCES.items()]
    return f"The same network trained with one modality blanked, on the validation clips:\n\n{_table(rows)}"


def speed_tables(path: Path) -> str:
    """One benchmark's rows, those of the same kind as one table, with the command and what they were measured on."""
    content = _read(path)
    tables = [_speed_table(list(rows)) for _, rows in itertools.groupby(content["rows"], key=tuple)]
    machine = content["machine"]
    where = f"{machine['processor']}, {machine['threads']} threads, torch {content['versions']['torch']}"
    return "\n\n".join([*tables, f"`python {content['command']}` on {where}."])


def _speed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = sorted(rows[0], key=lambda name: list(SPEED_COLUMNS).index(name) if name in SPEED_COLUMNS else 99)
    titles = [SPEED_COLUMNS.get(name, name.replace("_", " ")) for name in columns]
    return _table([titles, *([_cell(row[name]) for name in columns] for row in rows)])


def _main(decoders: Mapping[str, Any]) -> Mapping[str, Any]:
    return decoders["merge"] if "merge" in decoders else next(iter(decoders.values()))


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    titles, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *others])


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
