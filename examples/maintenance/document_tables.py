"""Updates the tables of the documentation from the committed results, after a training or a benchmark.

It reads `model_cards/results/ave-clip-tiny*.json` and `examples/benchmarks/results/*.json`, and writes the blocks
between `<!-- NAME: begin -->` and `<!-- NAME: end -->` in docs/models.md and docs/benchmarks.md; the rest of these
files is not changed.

    python examples/maintenance/document_tables.py
"""

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ave_clip.files import atomic_file
from ave_clip.programs import program

ROOT = Path(__file__).parents[2]
MEASURES = {
    "segment_accuracy": "segment accuracy",
    "background_recall": "background recall",
    "background_precision": "background precision",
    "event_f1": "event F1 (tIoU 0.5)",
    "event_map": "event mAP (tIoU 0.5 to 0.9)",
}
CONTROLS = {"stage3": "video and audio", "no_audio": "audio blanked", "no_video": "video blanked"}
REFERENCES = {"all_background": "background everywhere", "never_background": "the right class, never background"}
# Value of a benchmark's `--model` in the committed results.
PSEUDO_WEIGHTS = "audioclip-pseudo"
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
    parser.add_argument("--models_page", type=Path, default=ROOT / "docs" / "models.md")
    parser.add_argument("--benchmarks_page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--results_dir", type=Path, default=ROOT / "model_cards" / "results")
    parser.add_argument("--benchmarks_dir", type=Path, default=ROOT / "examples" / "benchmarks" / "results")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    fill(args.models_page, {"ave-clip-tiny": tiny_tables(args.results_dir)})
    fill(args.benchmarks_page, {path.stem: speed_tables(path) for path in sorted(args.benchmarks_dir.glob("*.json"))})


def fill(page: Path, blocks: Mapping[str, str]) -> None:
    """Writes each block that is not empty between its markers."""
    text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        if block:
            text = replace_block(text, name, block)
    with atomic_file(page) as partial:
        partial.write_text(text, encoding="utf-8")


def replace_block(text: str, name: str, block: str) -> str:
    """Returns the text with `block` between the markers of that name.

    Raises:
        ValueError: if the text does not contain these markers exactly once.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, *rest = text.split(begin)
    blocks = [part for part in rest if end in part]
    if len(rest) != 1 or len(blocks) != 1:
        raise ValueError(f"Found {len(blocks)} blocks between {begin} and {end}, wanted one. Put both into the file.")
    return f"{before}{begin}\n{block}\n{end}{rest[0].partition(end)[2]}"


def tiny_tables(results_dir: Path) -> str:
    """Returns the measures of ave-clip-tiny on new clips, and with one modality blanked."""
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
    references = measured["stage3"]["baselines"]
    rows = [["trained with", "segment accuracy"]]
    rows += [[CONTROLS[name], _percent(metrics["segment_accuracy"])] for name, metrics in measured.items()]
    rows += [[title, _percent(references[name])] for name, title in REFERENCES.items()]
    return f"The same network trained with one modality blanked, on the validation clips:\n\n{_table(rows)}"


def speed_tables(path: Path) -> str:
    """Returns the rows of one benchmark, one table per kind, with the command and the machine."""
    content = _read(path)
    tables = [_speed_table(list(rows)) for _, rows in itertools.groupby(content["rows"], key=tuple)]
    machine = content["machine"]
    where = f"{machine['processor']}, {machine['threads']} threads, torch {content['versions']['torch']}"
    sentence = f"`python {content['command']}` on {where}."
    if PSEUDO_WEIGHTS in content["command"]:
        sentence += f" Pseudo-random weights: `python examples/benchmarks/make_weights.py {PSEUDO_WEIGHTS}`."
    return "\n\n".join([*tables, sentence])


def _speed_table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = sorted(rows[0], key=lambda name: list(SPEED_COLUMNS).index(name) if name in SPEED_COLUMNS else 99)
    titles = [SPEED_COLUMNS.get(name, name.replace("_", " ")) for name in columns]
    return _table([titles, *([_cell(row[name]) for name in columns] for row in rows)])


def _main(decoders: Mapping[str, Any]) -> Mapping[str, Any]:
    return decoders["merge"] if "merge" in decoders else next(iter(decoders.values()))


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(rows: Sequence[Sequence[str]]) -> str:
    titles, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [titles, ["---"] * len(titles), *others])


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    with program():
        main()
