"""Compares decoders on the predictions of a split and formats the results as tables.

Splits with several labels per segment, and localizers that predict several, are measured by `multi_label_evaluation`.

B batch, T segments, C classes (with one label per segment, background last).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.categories import SINGLE_LABEL
from ..core.events import DECODERS, decode_labels, decoders_of
from ..outputs.text_table import align_columns
from .metrics import localization_metrics, video_f1
from .multi_label_evaluation import measure_multi_label, needs_multi_label
from .multi_label_metrics import SHOWN_TIOUS
from .prediction import SplitPredictions

GATE_DECODER = "gate"  # needs event logits, which post-processing does not have, so it is no entry of DECODERS
EVALUATION_DECODERS = (*decoders_of(SINGLE_LABEL), GATE_DECODER)
NO_GATE = (
    'The decoder "gate" needs the event logits of EGTA, but this localizer has use_event_attention=False. '
    f"Leave it out: {list(decoders_of(SINGLE_LABEL))} work with every localizer."
)
COLUMNS = {
    "segment_accuracy": "accuracy",
    "background_recall": "bg recall",
    "background_precision": "bg precision",
    "segment_f1": "segment F1",
    "event_f1": "event F1",
    "event_map": "event mAP",
    "video_accuracy": "video acc.",
}
# With seen and unseen classes: the columns of OV-AVEBench, and those of events over all videos.
VIDEO_F1_COLUMNS = {
    "segment_accuracy": "accuracy",
    "video_segment_f1": "segment F1 per video",
    "video_event_f1": "event F1 per video",
    "background_recall": "bg recall",
    "event_f1": "event F1",
    "event_map": "event mAP",
}
# Of several events at once; the first is UnAV-100's "average mAP", the next ones its other columns.
MULTI_LABEL_COLUMNS = {
    "event_map_wide": "mAP 0.1:0.9",
    **{f"event_map_at_{tiou}": f"@{tiou}" for tiou in SHOWN_TIOUS},
    "segment_map": "segment mAP",
    "segment_f1": "segment F1",
    "event_f1": "event F1",
    "event_f1_macro": "macro event F1",
    "background_recall": "bg recall",
}
CLASS_COLUMNS = {
    "num_events": "events",
    "event_ap": "AP 0.1:0.9",
    "event_ap_at_0.5": "AP @0.5",
    "event_f1": "event F1",
    "num_segments": "segments",
    "segment_ap": "segment AP",
    "segment_f1": "segment F1",
}


def decode_gate(probabilities: np.ndarray, event_probabilities: np.ndarray) -> np.ndarray:
    """The decoder of CMRAN, CPSP and others: one class for the whole video, in the segments whose event gate is open.

    The gate is open above 0.5. Those networks have a head for the class of the video. Here it is the event class with
    the highest mean probability over the segments, and the gate is EGTA's weight.

    Args:
        probabilities (`np.ndarray` of shape `(T, C)`): Background last.
        event_probabilities (`np.ndarray` of shape `(T,)`): The gate of each segment.

    Returns:
        `np.ndarray` of shape `(T,)`: The class id of each segment.
    """
    background = probabilities.shape[1] - 1
    return np.where(event_probabilities > 0.5, probabilities[:, :background].mean(axis=0).argmax(), background)


def choose_decoders(names: Sequence[str] | None, has_gate: bool, problem_type: str = SINGLE_LABEL) -> tuple[str, ...]:
    """Returns the requested decoders without repetitions. Default: every decoder the localizer supports.

    Args:
        names (`Sequence[str]`, *optional*): Names of `EVALUATION_DECODERS`, or of decoders of several labels.
        has_gate (`bool`): Whether the localizer has event logits.
        problem_type (`str`): "single_label" or "multi_label".

    Raises:
        ValueError: if a decoder is not made for the localizer's kind of labels, or "gate" is requested for a localizer
            without event logits.
    """
    supported = EVALUATION_DECODERS if problem_type == SINGLE_LABEL else decoders_of(problem_type)
    if names is None:
        return supported if has_gate else decoders_of(problem_type)
    wrong = [name for name in names if name not in supported]
    if wrong:
        raise ValueError(
            f"The decoder {wrong[0]!r} is not made for a localizer with problem_type={problem_type!r}. Use some of "
            f"{list(supported)}."
        )
    if GATE_DECODER in names and not has_gate:
        raise ValueError(NO_GATE)
    return tuple(dict.fromkeys(names))


def measure_settings(
    predictions: SplitPredictions,
    decoders: Sequence[str],
    min_event_segments: Sequence[int],
    num_resamples: int = 1000,
    names: Sequence[str] | None = None,
    segment_seconds: float = 1.0,
    threshold: float = 0.5,
    with_video_f1: bool = False,
) -> dict[str, dict[str, Any]]:
    """Computes all measures for each decoder and, if the decoder depends on it, each minimum length of events.

    If the localizer or the labels have several labels per segment, these are the measures of `multi_label_metrics`.

    Args:
        predictions (`SplitPredictions`): The predictions of the clips.
        decoders (`Sequence[str]`): Names of `EVALUATION_DECODERS`.
        min_event_segments (`Sequence[int]`): Minimum lengths of events, for the decoders that use them.
        num_resamples (`int`): Bootstrap resamples of the videos; 0 leaves the intervals out.
        names (`Sequence[str]`, *optional*): Names of the event classes, for tables of classes.
        segment_seconds (`float`): Length of a segment, for events in seconds.
        threshold (`float`): Probability from which a class is active, for a localizer with several labels.
        with_video_f1 (`bool`): Add the F1 scores of OV-AVEBench (`video_f1`), which need one label per segment.

    Returns:
        `dict[str, dict[str, Any]]`: results of `localization_metrics` by decoder; with several minimum lengths the
        keys are "merge-2" and so on.

    Raises:
        ValueError: if "gate" is among the decoders of a localizer without event logits, or is the only one for several
            labels per segment, where it is left out.
    """
    settings = []
    for decoder in decoders:
        is_bounded = decoder in DECODERS and DECODERS[decoder].uses_min_event_segments
        for shortest in min_event_segments if is_bounded else min_event_segments[:1]:
            name = f"{decoder}-{shortest}" if is_bounded and len(min_event_segments) > 1 else decoder
            settings.append((name, decoder, shortest))
    if needs_multi_label(predictions):
        settings = [setting for setting in settings if setting[1] != GATE_DECODER]
        if not settings:
            raise ValueError(f"The decoder {GATE_DECODER!r} finds one class per video; name others to measure events.")
        return measure_multi_label(predictions, settings, names, segment_seconds, threshold, num_resamples)
    results = {}
    for name, decoder, shortest in settings:
        if decoder == GATE_DECODER:
            if predictions.event_probabilities is None:
                raise ValueError(NO_GATE)
            decoded = [decode_gate(*clip) for clip in zip(predictions.probabilities, predictions.event_probabilities)]
        else:
            decoded = [decode_labels(clip, decoder, shortest) for clip in predictions.probabilities]
        results[name] = localization_metrics(
            decoded,
            predictions.labels,
            num_labels=predictions.probabilities[0].shape[1],
            num_resamples=num_resamples,
            probabilities=predictions.probabilities,
        )
        if with_video_f1:
            results[name] |= video_f1(decoded, predictions.labels)
    return results


def state_baselines(points: Mapping[str, float]) -> str:
    """Formulates the baselines as a sentence."""
    if "equal_scores" in points:
        return (
            f"For comparison, equal scores everywhere reach {points['equal_scores']:.2%} segment mAP, and all classes "
            f"in all segments {points['all_classes']:.2%} segment F1."
        )
    return (
        f"For comparison, localising nothing scores {points['never_background']:.2%} segment accuracy (never "
        f"background, with the right class) or {points['all_background']:.2%} (all background)."
    )


def columns_of(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Returns which measures the table shows, with their titles; the first one is shown with its interval."""
    if "segment_map" in metrics:
        return MULTI_LABEL_COLUMNS
    return VIDEO_F1_COLUMNS if "video_event_f1" in metrics else COLUMNS


def result_rows(name: str, results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Returns the table rows of one model, one per decoder: measures in percent, the first one with its interval.

    Args:
        name (`str`): Name of the model.
        results (`Mapping[str, Mapping[str, Any]]`): Results of `measure_settings`.
    """
    rows = []
    for setting, metrics in results.items():
        columns = list(columns_of(metrics))
        cells = [_percent(metrics[measure]) for measure in columns]
        interval = " to ".join(map(_percent, metrics.get("intervals", {}).get(columns[0], ())))
        rows.append([name, setting, cells[0], interval, *cells[1:]])
    return rows


def summary_rows(summaries: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """Returns table rows with mean and standard deviation over several models, one per decoder.

    Args:
        summaries (`Mapping[str, Mapping[str, Mapping[str, float]]]`): Results of `summarize_runs` by decoder.
    """
    rows = []
    for setting, summary in summaries.items():
        values = [(summary[measure]["mean"], summary[measure]["deviation"]) for measure in columns_of(summary)]
        cells = ["" if np.isnan(mean) else f"{_percent(mean)} ± {_percent(deviation)}" for mean, deviation in values]
        rows.append(["mean ± deviation", setting, cells[0], "", *cells[1:]])
    return rows


def render_table(rows: Sequence[Sequence[str]], style: str = "text", columns: Mapping[str, str] | None = None) -> str:
    """Formats rows of `result_rows` and `summary_rows` as a table with titles.

    Args:
        rows (`Sequence[Sequence[str]]`): Rows of cells.
        style (`str`): `"text"` (aligned columns) or `"markdown"`.
        columns (`Mapping[str, str]`, *optional*): Result of `columns_of`. Default: those of one label per segment.
    """
    first, *others = (columns or COLUMNS).values()
    titles = ["model", "decoder", f"{first} %", "95 % interval", *others]
    return _format([titles, *map(list, rows)], 2, style)


def render_classes(metrics: Mapping[str, Any], style: str = "text", names: Sequence[str] = ()) -> str:
    """Formats the measures of each class as a table.

    Args:
        metrics (`Mapping[str, Any]`): The result of one decoder.
        style (`str`): As in `render_table`.
        names (`Sequence[str]`): Names of the event classes; the results of several labels contain them.
    """
    if "classes" in metrics:
        table = [["class", *CLASS_COLUMNS.values()]]
        for row in metrics["classes"]:
            cells = [str(row[name]) if name.startswith("num_") else _percent(row[name]) for name in CLASS_COLUMNS]
            table.append([row["label"], *cells])
    else:
        table = [["class", "accuracy", "AP 0.5:0.9"]]
        for name, *values in zip(names, metrics["class_accuracy"], metrics["class_average_precision"]):
            table.append([name, *map(_percent, values)])
    return _format(table, 1, style)


def _format(table: list[list[str]], num_text_columns: int, style: str) -> str:
    if style == "markdown":
        table = [[cell.replace("|", "\\|") for cell in row] for row in table]
        rule = ["---"] * num_text_columns + ["---:"] * (len(table[0]) - num_text_columns)
        return "\n".join(f"| {' | '.join(row)} |" for row in [table[0], rule, *table[1:]])
    return align_columns(table, num_text_columns=num_text_columns)


def _percent(fraction: float) -> str:
    return "" if np.isnan(fraction) else f"{100 * fraction:.2f}"
