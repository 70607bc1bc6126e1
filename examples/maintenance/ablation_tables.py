"""The tables of `run_ablations.py`: definition of the paper's rows, measures from predictions, and the card.

A table is a YAML file (`configs/table2.yaml` to `table7.yaml`). Its rows contain the fields of `AVEClipConfig` that
they change, the minimum event length of post-processing, and the paper's accuracy; its findings are pairs of rows of
which the paper states that one is better. Measured tables are plain dictionaries, saved as JSON; the card is made from
them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file

from ave_clip import AVEClipConfig
from ave_clip.core.events import decode_labels
from ave_clip.training.metrics import (
    COUNT_NAMES,
    baselines,
    bootstrap_intervals,
    count_per_video,
    pooled_measures,
    segment_accuracy,
)

CONFIGS = Path(__file__).parents[1] / "configs"
TABLE_NUMBERS = (2, 3, 4, 5, 6, 7)
FEATURES = ("data", "frozen", "h5")
SHOWN_MEASURES = ("segment_accuracy", "background_recall", "background_precision", "event_f1")
UNMEASURED = "not run"
SEGMENTS, RIGHT = COUNT_NAMES.index("segments"), COUNT_NAMES.index("right")

# For each clip of a test split: probabilities (num_segments, num_labels), labels (num_segments,) and row number.
Predictions = tuple[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[int]]


@dataclass(frozen=True)
class Counts:
    """The counts from which the measures of one row are computed.

    Args:
        rows (`np.ndarray` of shape `(num_videos,)`): Row numbers of the videos.
        values (`np.ndarray` of shape `(num_seeds, num_videos, len(COUNT_NAMES))`): Counts of each video.
    """

    rows: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Row:
    """A row (or, in a table with columns, a cell) of a table of the paper.

    Args:
        id (`str`): Name in the table's file and in the results.
        paper (`float`): The paper's accuracy in %.
        name (`str`): Name in the paper. Default: `row` and `column`.
        row (`str`), column (`str`): Position in a table with several columns.
        localizer (`dict`): Fields of `AVEClipConfig` that differ from the run's settings.
        min_event_segments (`int`): W of the post-processing; 1 is none.
        features (`str`): `"data"`, `"frozen"` (encoders before stage 1) or `"h5"` (files of previous work).
        not_run (`str`): Reason why this row is never run.
        note (`str`): Shown below the table.
    """

    id: str
    paper: float
    name: str = ""
    row: str = ""
    column: str = ""
    localizer: dict[str, Any] = field(default_factory=dict)
    min_event_segments: int = 3
    features: str = "data"
    not_run: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        unknown = set(self.localizer) - {known.name for known in fields(AVEClipConfig)}
        if unknown:
            raise ValueError(f"Row {self.id!r} sets {sorted(unknown)}, which AVEClipConfig does not have.")
        if self.features not in FEATURES:
            raise ValueError(f"Row {self.id!r} asks for features {self.features!r}; there are {list(FEATURES)}.")
        if not self.name and not (self.row and self.column):
            raise ValueError(f"Row {self.id!r} needs a `name`, or a `row` and a `column`.")

    @property
    def title(self) -> str:
        """Name of the row for display."""
        return self.name or f"{self.row}, {self.column}"


@dataclass(frozen=True)
class Finding:
    """A statement of the paper about two rows.

    Args:
        text (`str`): The statement.
        better (`str`), worse (`str`): Ids of the rows.
    """

    text: str
    better: str
    worse: str


@dataclass(frozen=True)
class Table:
    """A table of the paper; `reference` is the id of the row that the others are compared with."""

    number: int
    title: str
    reference: str
    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        ids = [row.id for row in self.rows]
        if len(set(ids)) < len(ids):
            raise ValueError(f"Table {self.number} has an id twice: {ids}.")
        named = {self.reference, *(name for one in self.findings for name in (one.better, one.worse))}
        if named - set(ids):
            raise ValueError(f"Table {self.number} names the rows {sorted(named - set(ids))}; it has {ids}.")


def load_table(number: int, folder: Path = CONFIGS) -> Table:
    """Loads a table's file.

    Args:
        number (`int`): Number of the table in the paper.
        folder (`Path`): Folder of `tableN.yaml`.

    Raises:
        ValueError: if the file has keys that a row, finding or table does not have, or keys are missing.
    """
    path = Path(folder) / f"table{number}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        rows = tuple(Row(**row) for row in content.pop("rows"))
        findings = tuple(Finding(**finding) for finding in content.pop("findings"))
        return Table(content.pop("table"), rows=rows, findings=findings, **content)
    except (TypeError, KeyError) as error:  # an unknown or missing keyword of a dataclass
        raise ValueError(f"{path} is no table: {error}.") from error


# ── from predictions to numbers ──


def read_predictions(path: str | os.PathLike, split: str = "test") -> Predictions:
    """Loads the predictions of a split from `predictions.safetensors` of `train_localizer.py`.

    Args:
        path (`str` or `os.PathLike`): The file.
        split (`str`): "validation" or "test".

    Raises:
        ValueError: if the file has no such split.
    """
    tensors = load_file(path)
    if f"{split}_rows" not in tensors:
        raise ValueError(f"{path} has no {split} predictions: the tables are measured on the {split} split of --data.")
    padded = tensors[f"{split}_probabilities"]
    lengths = (padded.sum(axis=-1) > 0).sum(axis=-1)  # shorter clips are padded with zeros
    probabilities = [clip[:length] for clip, length in zip(padded, lengths)]
    labels = [clip[:length] for clip, length in zip(tensors[f"{split}_labels"], lengths)]
    return probabilities, labels, tensors[f"{split}_rows"].tolist()


def count_seeds(runs: Sequence[Predictions], min_event_segments: int) -> Counts:
    """Decodes the predictions of each seed and returns their counts.

    Args:
        runs (`Sequence[Predictions]`): Predictions of each seed, with the same clips in the same order.
        min_event_segments (`int`): W of the post-processing.

    Raises:
        ValueError: if the seeds were not measured on the same clips.
    """
    rows, counts = runs[0][2], []
    for probabilities, labels, seed_rows in runs:
        if list(seed_rows) != list(rows):
            raise ValueError(
                f"The seeds of one row were measured on different clips ({len(rows)} and {len(seed_rows)}). Delete "
                "OUTPUT_DIR/runs and train again on the same data."
            )
        decoded = [decode_labels(clip, "merge", min_event_segments) for clip in probabilities]
        counts.append(count_per_video(decoded, labels, background=probabilities[0].shape[1] - 1))
    return Counts(np.asarray(rows), np.stack(counts))


def measure(counts: Counts) -> dict[str, Any]:
    """Computes the measures of one row over its seeds.

    Args:
        counts (`Counts`): Counts of the row.

    Returns:
        `dict[str, Any]`: `per_seed` (accuracy of each), `mean` and `deviation` of each shown measure by name, and
        `interval` (95 %, bootstrap over videos) of the mean accuracy.
    """
    values = pooled_measures(counts.values.sum(axis=1))
    several = len(counts.values) > 1
    return {
        "per_seed": values["segment_accuracy"].tolist(),
        "mean": {name: float(np.mean(values[name])) for name in SHOWN_MEASURES},
        "deviation": {name: float(np.std(values[name], ddof=1)) if several else None for name in SHOWN_MEASURES},
        "interval": list(bootstrap_intervals(counts.values.sum(axis=0))["segment_accuracy"]),
    }


def difference(better: Counts, worse: Counts) -> dict[str, Any]:
    """Compares the accuracy of two rows, seed by seed, on the videos that both have.

    Args:
        better (`Counts`), worse (`Counts`): Counts of the rows.

    Returns:
        `dict[str, Any]`: `mean` of the difference over seeds, `interval` (95 %, bootstrap over videos, the same ones
        for both rows), `per_seed`, and `num_videos`.

    Raises:
        ValueError: if they have no video in common.
    """
    shared, *places = np.intersect1d(better.rows, worse.rows, return_indices=True)
    if not len(shared):
        raise ValueError("Two rows of a table have no test video in common, so they cannot be compared.")
    first, second = (one.values[:, place] for one, place in zip((better, worse), places))
    paired = first.sum(axis=0)
    paired[:, RIGHT] -= second.sum(axis=0)[:, RIGHT]  # so that the "accuracy" of these counts is the difference
    per_seed = (first[:, :, RIGHT] - second[:, :, RIGHT]).sum(axis=1) / first[:, :, SEGMENTS].sum(axis=1)
    return {
        "mean": float(per_seed.mean()),
        "interval": list(bootstrap_intervals(paired)["segment_accuracy"]),
        "per_seed": per_seed.tolist(),
        "num_videos": len(shared),
    }


def judge(compared: Mapping[str, Any]) -> str:
    """Returns the verdict on a difference: `"holds"`, `"reversed"`, or `"not told apart"`.

    A difference only counts if its interval excludes zero and its sign is the same for all seeds.
    """
    low, high = compared["interval"]
    if low > 0 and min(compared["per_seed"]) > 0:
        return "holds"
    if high < 0 and max(compared["per_seed"]) < 0:
        return "reversed"
    return "not told apart"


def describe_test(labels: Sequence[np.ndarray], num_labels: int, windows: Sequence[int]) -> dict[str, Any]:
    """Describes the test clips without any network.

    Args:
        labels (`Sequence[np.ndarray]`): True labels of each clip.
        num_labels (`int`): Number of classes, background included.
        windows (`Sequence[int]`): The values of W in the table.

    Returns:
        `dict[str, Any]`: `num_videos`, `baselines`, and `ceilings`, the accuracy of perfect labels after
        post-processing, by W.
    """
    shares = np.append(np.eye(num_labels), np.full((1, num_labels), 1 / num_labels), axis=0)  # last: an ignored one
    perfect = [shares[np.where(clip < 0, num_labels, clip)] for clip in labels]
    ceilings = {
        str(window): segment_accuracy([decode_labels(clip, "merge", window) for clip in perfect], labels)
        for window in sorted(set(windows))
    }
    return {
        "num_videos": len(labels),
        "baselines": baselines(labels, num_labels - 1),
        "ceilings": ceilings,
    }


def measure_table(table: Table, predictions: Mapping[str, Sequence[Predictions] | str]) -> dict[str, Any]:
    """Measures all rows of a table, compares them with its reference row and decides on its findings.

    Args:
        table (`Table`): The table.
        predictions (`Mapping[str, Sequence[Predictions] | str]`): Predictions of each seed by row id; or the
            reason why there are none.

    Returns:
        `dict[str, Any]`: content of `tableN.json`.
    """
    measured = {row.id: predictions[row.id] for row in table.rows if not isinstance(predictions[row.id], str)}
    shortest = {row.id: row.min_event_segments for row in table.rows}
    counts = {name: count_seeds(runs, shortest[name]) for name, runs in measured.items()}
    before = {name: count_seeds(runs, 1) for name, runs in measured.items()}
    described = {}
    if measured:
        probabilities, labels, _ = measured.get(table.reference, next(iter(measured.values())))[0]
        described = describe_test(labels, probabilities[0].shape[1], list(shortest.values()))
    rows = []
    for row in table.rows:
        content = {"id": row.id, "name": row.title, "row": row.row, "column": row.column, "paper": row.paper}
        content |= {"min_event_segments": row.min_event_segments, "localizer": row.localizer, "note": row.note}
        if row.id in measured:
            content |= {"measured": measure(counts[row.id]), "before_post_processing": measure(before[row.id])}
            if row.id != table.reference and table.reference in measured:
                content["difference"] = difference(counts[row.id], counts[table.reference])
        else:
            content["reason"] = predictions[row.id]
        rows.append(content)
    findings = [_judge_finding(table, one, counts, before) for one in table.findings]
    return {
        "table": table.number,
        "title": table.title,
        "reference": table.reference,
        "test_clips": described,
        "rows": rows,
        "findings": findings,
    }


def _judge_finding(
    table: Table, finding: Finding, counts: Mapping[str, Counts], before: Mapping[str, Counts]
) -> dict[str, Any]:
    paper = {row.id: row.paper for row in table.rows}
    content = {"text": finding.text, "better": finding.better, "worse": finding.worse}
    content["paper"] = round(paper[finding.better] - paper[finding.worse], 1)
    if finding.better not in counts or finding.worse not in counts:
        return {**content, "verdict": UNMEASURED}
    compared = difference(counts[finding.better], counts[finding.worse])
    content |= {"verdict": judge(compared), "difference": compared}
    networks = difference(before[finding.better], before[finding.worse])
    if any(networks["per_seed"]):  # else both rows decode the same networks
        content["before_post_processing"] = {"verdict": judge(networks), **networks}
    return content


# ── the card ──


def render_table(content: Mapping[str, Any]) -> str:
    """Formats a measured table in Markdown: in the paper's layout with both results, then all measures of each row."""
    lines = [f"## Table {content['table']}: {content['title']}", ""]
    if any(row["column"] for row in content["rows"]):
        lines += [*_grid(content["rows"]), ""]
    lines += _measures(content)
    notes = [f"- {row['name']}: {row['note']}." for row in content["rows"] if row["note"]]
    return "\n".join([*lines, *([""] if notes else []), *notes, "", *_finding_lines(content["findings"])])


def render_card(tables: Sequence[Mapping[str, Any]], remarks: str = "") -> str:
    """Formats all measured tables and a summary of their findings.

    Args:
        tables (`Sequence[Mapping[str, Any]]`): Contents of `tableN.json`, in order.
        remarks (`str`): Interpretation by the author, in Markdown.

    Returns:
        `str`: Markdown.
    """
    parts = ["# Ablations: the paper's Tables 2 to 7", _introduction(tables), summarize(tables)]
    parts += [f"## Remarks\n\n{remarks.strip()}"] if remarks else []
    parts += [render_table(table).strip() for table in tables]
    return "\n\n".join([*parts, _environment(tables)]) + "\n"


def _introduction(tables: Sequence[Mapping[str, Any]]) -> str:
    data = sorted({text for table in tables for text in table["data"].values()})
    counts = sorted({table["seeds"] for table in tables})
    seeds = f"{' or '.join(map(str, counts))} seed{'' if counts == [1] else 's'}"
    lines = [
        "Made by `examples/run_ablations.py` from the JSON files that it wrote, `tableN.json`.",
        "*paper* is the accuracy on AVE's test split that the paper prints, in %. *ours* is measured on other data:",
        "",
        *(f"- {text}." for text in data),
        "",
        *[line for text in sorted({table["about_settings"] for table in tables}) if text for line in (text, "")],
        "So compare the differences between rows, not their heights. Each row is trained with the same settings over "
        f"{seeds}; the epoch is chosen on validation clips, and the test clips are used once. *±* is the "
        "deviation over the seeds; intervals, also in brackets, are 95 % bootstrap intervals over the test videos. A "
        "finding *holds* (or is *reversed*) only where the interval of the difference leaves zero out and all seeds "
        "agree in its sign; in twenty such verdicts, one can be chance. Unless a row says otherwise, *ours* is after "
        "the paper's post-processing with W = 3; the last columns tell what the networks say without it.",
    ]
    return "\n".join([*lines, *_ceiling_lines(tables)])


def _ceiling_lines(tables: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    described = [table["test_clips"] for table in tables if table["test_clips"]]
    if not described:
        return
    ceilings = {window: share for one in described for window, share in one["ceilings"].items()}
    points = described[0]["baselines"]
    yield ""
    yield (
        f"On these {described[0]['num_videos']} test videos, background everywhere scores "
        f"{100 * points['all_background']:.1f} %, the right class everywhere without any background "
        f"{100 * points['never_background']:.1f} %. Perfect labels after post-processing score "
        + ", ".join(f"{100 * ceilings[window]:.1f} % (W = {window})" for window in sorted(ceilings, key=int))
        + ": so much short events and gaps cost, whatever the network."
    )


def _environment(tables: Sequence[Mapping[str, Any]]) -> str:
    commands = list(dict.fromkeys(f"python {table['command']}" for table in tables))
    settings = list(dict.fromkeys(str(yaml.safe_dump(table["settings"])) for table in tables))
    versions = list(dict.fromkeys(_versions(table) for table in tables))
    networks = []
    if any("preset" not in table["settings"] for table in tables):
        networks = [
            "Results without `preset` are of the default network of their time: the paper's with a residual "
            "connection around each fusion, now `preset: paper` with `fusion_residual: true` and "
            "`refiner_window_sizes: [10]`.",
            "",
        ]
    return "\n".join(
        ["## Commands, settings, environment", "", "```bash", *commands, "```", ""]
        + ["What all rows share (arguments of `train_localizer.py`):", ""]
        + ["```yaml", *"".join(settings).splitlines(), "```", "", *networks, *versions]
    )


def _versions(table: Mapping[str, Any]) -> str:
    facts = {**table["versions"], **table["machine"]}
    return ", ".join(f"{name} {value}" for name, value in facts.items()) + "."


def summarize(tables: Sequence[Mapping[str, Any]]) -> str:
    """Lists which of the paper's findings hold, which are reversed, and which are undecided."""
    findings = [(table["table"], finding) for table in tables for finding in table["findings"]]
    titles = {
        "holds": "Holds here, too",
        "reversed": "Is the other way round here",
        "not told apart": "Cannot be told here, since the interval contains zero or a seed disagrees",
        UNMEASURED: "Was not run here",
    }
    parts = [f"## What holds and what does not\n\nOf {len(findings)} findings of the paper:"]
    for verdict, title in titles.items():
        chosen = [f"- {_sentence(number, finding)}" for number, finding in findings if finding["verdict"] == verdict]
        if chosen:
            parts.append("\n".join([f"**{title}** ({len(chosen)}):", "", *chosen]))
    return "\n\n".join(parts)


def _sentence(number: int, finding: Mapping[str, Any]) -> str:
    text = f"{finding['text']} (Table {number}; the paper: {finding['paper']:+.1f}"
    if "difference" not in finding:
        return f"{text})"
    return f"{text}; here {_over_seeds(finding['difference'])}{_networks(finding, '; without post-processing ')})"


def _grid(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(row["row"] for row in rows))
    columns = max(([row["column"] for row in rows if row["row"] == name] for name in names), key=len)
    cells = {(row["row"], row["column"]): f"{row['paper']:.1f} / {_accuracy(row)}" for row in rows}
    yield _line(["paper / ours", *columns])
    yield _line(["---"] * (len(columns) + 1))
    for name in names:
        yield _line([name, *(cells.get((name, column), "-") for column in columns)])


def _measures(content: Mapping[str, Any]) -> Iterator[str]:
    yield _line(
        ["row", "paper", "ours", "interval", "to the reference", "without post-processing"]
        + ["background recall", "background precision", "event F1"]
    )
    yield _line(["---"] * 9)
    for row in content["rows"]:
        if "measured" not in row:
            yield _line([row["name"], f"{row['paper']:.1f}", f"{UNMEASURED}: {row['reason']}", *[""] * 6])
            continue
        low, high = row["measured"]["interval"]
        others = [_percent(row["measured"], name) for name in SHOWN_MEASURES[1:]]
        yield _line(
            [row["name"], f"{row['paper']:.1f}", _accuracy(row), f"{100 * low:.1f} to {100 * high:.1f}"]
            + [_to_reference(row), _percent(row["before_post_processing"], "segment_accuracy"), *others]
        )


def _finding_lines(findings: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield _line(["the paper's finding", "paper", "ours", "verdict", "without post-processing"])
    yield _line(["---"] * 5)
    for finding in findings:
        ours = _over_seeds(finding["difference"]) if "difference" in finding else ""
        yield _line([finding["text"], f"{finding['paper']:+.1f}", ours, finding["verdict"], _networks(finding)])


def _to_reference(row: Mapping[str, Any]) -> str:
    if "difference" not in row:
        return "reference"
    return _with_interval(row["difference"])


def _networks(finding: Mapping[str, Any], lead: str = "") -> str:
    if "before_post_processing" not in finding:
        return ""
    before = finding["before_post_processing"]
    return f"{lead}{_over_seeds(before)}: {before['verdict']}"


def _with_interval(compared: Mapping[str, Any]) -> str:
    low, high = compared["interval"]
    return f"{_points(compared['mean'])} ({_points(low)} to {_points(high)})"


def _over_seeds(compared: Mapping[str, Any]) -> str:
    """Formats the difference, with each seed whose own difference has another sign than the mean."""
    others = [
        f"{_points(value)} for seed {number} of {len(compared['per_seed'])}"
        for number, value in enumerate(compared["per_seed"], start=1)
        if value * compared["mean"] <= 0 and compared["mean"]
    ]
    return f"{_with_interval(compared)}" + (f", but {', '.join(others)}" if others else "")


def _accuracy(row: Mapping[str, Any]) -> str:
    return _percent(row["measured"], "segment_accuracy") if "measured" in row else UNMEASURED


def _percent(measured: Mapping[str, Any], name: str) -> str:
    mean, deviation = measured["mean"][name], measured["deviation"][name]
    if mean is None:  # 0 / 0, as the recall of background without background
        return "-"
    return f"{100 * mean:.1f}" + ("" if deviation is None else f" ± {100 * deviation:.1f}")


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
