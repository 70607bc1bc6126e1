"""What evaluation adds to the measures: reading what can be read, decoders side by side, tables.

B batch, T segments, C classes (background last).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import Dataset, Subset

from ..data.annotations import IGNORED_LABEL
from ..events import DECODERS, decode_labels
from .metrics import localization_metrics
from .prediction import predict_clips
from .splits import ReadableBatches

GATE_DECODER = "gate"
EVALUATION_DECODERS = (*DECODERS, GATE_DECODER)
BOUNDED_DECODERS = ("merge", "viterbi")  # those that use the shortest event
COLUMNS = {
    "segment_accuracy": "accuracy",
    "background_recall": "bg recall",
    "background_precision": "bg precision",
    "segment_f1": "segment F1",
    "event_f1": "event F1",
    "event_map": "event mAP",
    "video_accuracy": "video acc.",
}


@dataclass
class SplitPredictions:
    """What a localizer says about the clips of a split, sorted by row number.

    Attributes:
        rows (`list[int]`): Row numbers.
        probabilities (`list[np.ndarray]`): Of each clip `(T, C)`.
        labels (`list[np.ndarray]`): Of each clip `(T,)`.
        event_probabilities (`list[np.ndarray]`, *optional*): Of each clip `(T,)`: EGTA's weight, the sigmoid of the
            event logits; `None` for a localizer without event attention.
        unreadable (`dict[int, str]`): Rows that could not be read, and why.
    """

    rows: list[int]
    probabilities: list[np.ndarray]
    labels: list[np.ndarray]
    event_probabilities: list[np.ndarray] | None = None
    unreadable: dict[int, str] = field(default_factory=dict)


def predict_split(
    accelerator: Accelerator, localizer: torch.nn.Module, clips: Dataset, batch_size: int = 1, num_workers: int = 0
) -> SplitPredictions:
    """Predict every clip once, whatever the number of processes; clips that cannot be read are noted, not fatal.

    Args:
        accelerator (`Accelerator`): Each of its processes takes every n-th clip.
        localizer (`AVEClipForLocalization`): On the accelerator's device.
        clips (`Dataset`): Rows of `ClipReader`, `FeatureStore` or `AVEFeatures`.
        batch_size (`int`): Clips per process.
        num_workers (`int`): Processes that read beside each.

    Raises:
        ValueError: where there is no clip, none can be read, or none has a label.
    """
    if not len(clips):
        raise ValueError("The split is empty: there is no clip to measure. Pass another split or data set.")
    own = Subset(clips, range(accelerator.process_index, len(clips), accelerator.num_processes))
    batches = ReadableBatches(own, batch_size, num_workers)
    gates: list[torch.Tensor | None] = []
    hook = localizer.register_forward_hook(lambda module, inputs, output: gates.append(output.event_logits))
    try:
        probabilities, labels, rows = predict_clips(accelerator, localizer, batches)
    finally:
        hook.remove()
    unreadable = dict(sorted(gather_object(list(batches.unreadable.items()))))
    if not rows:
        first = next(iter(unreadable.values()))
        raise ValueError(f"None of the {len(clips)} clips could be read. The first: {first}")
    if all((clip == IGNORED_LABEL).all() for clip in labels):
        raise ValueError(f"None of the {len(rows)} clips has a label, so nothing can be measured.")
    pairs = zip(batches.rows, gates)
    own_gates = [(row, gate) for members, scores in pairs if scores is not None for row, gate in zip(members, scores)]
    by_row = dict(gather_object([(row, gate.float().sigmoid().cpu().numpy()) for row, gate in own_gates]))
    events = [by_row[row][: len(clip)] for row, clip in zip(rows, labels)] if by_row else None
    return SplitPredictions(rows, probabilities, labels, events, unreadable)


def decode_gate(probabilities: np.ndarray, event_probabilities: np.ndarray) -> np.ndarray:
    """The decoder of CMRAN, CPSP and others: one class for the whole video, where an event gate is above 0.5.

    Their networks have a head for the video's class. Here it is the event class with the highest mean probability over
    the segments; the gate is EGTA's weight.

    Args:
        probabilities (`np.ndarray` of shape `(T, C)`): Background last.
        event_probabilities (`np.ndarray` of shape `(T,)`): The gate of each segment.

    Returns:
        `np.ndarray` of shape `(T,)`: The labels.
    """
    background = probabilities.shape[1] - 1
    return np.where(event_probabilities > 0.5, probabilities[:, :background].mean(axis=0).argmax(), background)


def choose_decoders(names: Sequence[str] | None, has_gate: bool) -> tuple[str, ...]:
    """The decoders asked for, or all that the localizer's outputs allow.

    Args:
        names (`Sequence[str]`, *optional*): Names of `EVALUATION_DECODERS`.
        has_gate (`bool`): Whether there are event probabilities.

    Raises:
        ValueError: where "gate" is asked for and there are none.
    """
    if names is None:
        return EVALUATION_DECODERS if has_gate else DECODERS
    if GATE_DECODER in names and not has_gate:
        raise ValueError(
            'The decoder "gate" needs the event logits of EGTA, but this localizer has use_event_attention=False. '
            f"Leave it out: {list(DECODERS)} work with every localizer."
        )
    return tuple(dict.fromkeys(names))


def measure_settings(
    predictions: SplitPredictions,
    decoders: Sequence[str],
    min_event_segments: Sequence[int],
    num_resamples: int = 1000,
) -> dict[str, dict[str, Any]]:
    """All measures for each decoder and, where it makes a difference, each shortest event.

    Args:
        predictions (`SplitPredictions`): Of the clips.
        decoders (`Sequence[str]`): Names of `EVALUATION_DECODERS`.
        min_event_segments (`Sequence[int]`): Shortest events, for "merge" and "viterbi".
        num_resamples (`int`): Bootstrap resamples of the videos; 0 leaves the intervals out.

    Returns:
        `dict[str, dict[str, Any]]`: results of `localization_metrics` by decoder; with several shortest events by
        "merge-2" and so on.
    """
    results = {}
    for decoder in decoders:
        for shortest in min_event_segments if decoder in BOUNDED_DECODERS else min_event_segments[:1]:
            is_one_of_many = decoder in BOUNDED_DECODERS and len(min_event_segments) > 1
            name = f"{decoder}-{shortest}" if is_one_of_many else decoder
            results[name] = localization_metrics(
                _decode(predictions, decoder, shortest),
                predictions.labels,
                num_labels=predictions.probabilities[0].shape[1],
                num_resamples=num_resamples,
                probabilities=predictions.probabilities,
            )
    return results


def best_test_epoch(history: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """The epoch that is best on the test split itself, as PSP, CMRAN, LAVISH and others report it.

    It is chosen by what it is measured on, so it is too high; it serves to compare with such numbers only.

    Args:
        history (`Sequence[Mapping[str, Any]]`): Records of a training run.

    Returns:
        `dict[str, float]`: `epoch` and `segment_accuracy`; `None` where no record has a `test_accuracy`.
    """
    records = [record for record in history if record.get("test_accuracy") is not None]
    if not records:
        return None
    best = max(records, key=lambda record: record["test_accuracy"])
    return {"epoch": best["epoch"], "segment_accuracy": best["test_accuracy"]}


def state_reference_points(points: Mapping[str, float]) -> str:
    """Say in plain words what localising nothing scores."""
    return (
        f"For comparison, localising nothing scores {points['never_background']:.2%} segment accuracy (never "
        f"background, with the right class) or {points['all_background']:.2%} (all background)."
    )


def result_rows(name: str, results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of a table: one model, one row a decoder; in percent, the interval of the accuracy beside it.

    Args:
        name (`str`): The model.
        results (`Mapping[str, Mapping[str, Any]]`): Results of `measure_settings`.
    """
    rows = []
    for setting, metrics in results.items():
        cells = [_percent(metrics[measure]) for measure in COLUMNS]
        interval = " to ".join(map(_percent, metrics.get("intervals", {}).get("segment_accuracy", ())))
        rows.append([name, setting, cells[0], interval, *cells[1:]])
    return rows


def summary_rows(summaries: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """Rows of a table: mean and deviation over several models, one row a decoder.

    Args:
        summaries (`Mapping[str, Mapping[str, Mapping[str, float]]]`): Results of `summarize_runs` by decoder.
    """
    rows = []
    for setting, summary in summaries.items():
        spread = [(summary[measure]["mean"], summary[measure]["deviation"]) for measure in COLUMNS]
        cells = ["" if np.isnan(mean) else f"{_percent(mean)} ± {_percent(deviation)}" for mean, deviation in spread]
        rows.append(["mean ± deviation", setting, cells[0], "", *cells[1:]])
    return rows


def render_table(rows: Sequence[Sequence[str]], style: str = "text") -> str:
    """Lay out rows of `result_rows` and `summary_rows` under their titles.

    Args:
        rows (`Sequence[Sequence[str]]`): Cells.
        style (`str`): `"text"` (aligned columns) or `"markdown"`.
    """
    accuracy, *others = COLUMNS.values()
    table = [["model", "decoder", f"{accuracy} %", "95 % interval", *others], *rows]
    if style == "markdown":
        table = [[cell.replace("|", "\\|") for cell in row] for row in table]
        rule = ["---", "---", *["---:"] * (len(table[0]) - 2)]
        return "\n".join(f"| {' | '.join(row)} |" for row in [table[0], rule, *table[1:]])
    widths = [max(map(len, column)) for column in zip(*table)]
    lines = [
        [cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in enumerate(zip(row, widths))]
        for row in table
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _decode(predictions: SplitPredictions, decoder: str, min_event_segments: int) -> list[np.ndarray]:
    if decoder == GATE_DECODER:
        return [decode_gate(*clip) for clip in zip(predictions.probabilities, predictions.event_probabilities)]
    return [decode_labels(clip, decoder, min_event_segments) for clip in predictions.probabilities]


def _percent(share: float) -> str:
    return "" if np.isnan(share) else f"{100 * share:.2f}"
