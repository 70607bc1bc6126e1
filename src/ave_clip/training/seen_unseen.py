"""Measures of seen and unseen classes, as OV-AVEBench (Zhou et al. 2025, "Towards Open-Vocabulary Audio-Visual Event
Localization") reports them: all videos, those of classes that were trained, and those of other classes. In each of
these groups the localizer chooses among all classes.

The benchmark's measures are segment accuracy and the F1 scores per video of `metrics.video_f1`; its predictions are
the most probable class of each segment, the decoder "none". Its authors' code averages F1 over batches of 32 videos,
of which the last is smaller; here each video has the same weight. Their training script chooses the epoch on the test
split; stage 3 chooses it on the seen classes of the validation split.

T segments, C classes.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..core.categories import MULTI_LABEL
from ..core.losses import IGNORED_LABEL
from .evaluation import measure_settings
from .multi_label_evaluation import needs_multi_label
from .prediction import SplitPredictions

GROUPS = ("seen", "unseen")


def measure_seen_unseen(
    predictions: SplitPredictions,
    decoders: Sequence[str],
    min_event_segments: Sequence[int],
    num_resamples: int = 1000,
    *,
    names: Sequence[str],
    unseen: Sequence[str],
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Computes the measures of all videos, and of seen and unseen classes if there are both.

    Args:
        predictions (`SplitPredictions`), decoders (`Sequence[str]`), min_event_segments (`Sequence[int]`),
            num_resamples (`int`), names (`Sequence[str]`), options: As in [`measure_settings`].
        unseen (`Sequence[str]`): Names of the event classes that were not trained.

    Returns:
        `dict[str, dict[str, Any]]`: as [`measure_settings`], with the additional results "merge, seen", "merge,
        unseen" and so on, and the F1 scores of OV-AVEBench in all of them.
    """
    options["with_video_f1"] = bool(unseen)
    results = measure_settings(predictions, decoders, min_event_segments, num_resamples, names, **options)
    if not unseen:
        return results
    groups = {
        group: measure_settings(part, decoders, min_event_segments, num_resamples, part_names, **options)
        for group, (part, part_names) in split_groups(predictions, names, unseen).items()
    }
    joined: dict[str, dict[str, Any]] = {}
    for setting, measures in results.items():
        joined |= {setting: measures, **{f"{setting}, {group}": found[setting] for group, found in groups.items()}}
    return joined


def split_groups(
    predictions: SplitPredictions, names: Sequence[str], unseen: Sequence[str]
) -> dict[str, tuple[SplitPredictions, list[str]]]:
    """Divides predictions into those of seen and of unseen classes, with the names of their classes.

    With one label per segment these are videos: unseen if they have an event of an unseen class, or if the data set
    says so (`seen` in the truth). A video without events of which the data set does not tell is in no group. With
    several labels per segment these are classes, over all videos.

    Args:
        predictions (`SplitPredictions`): The predictions.
        names (`Sequence[str]`): Names of the event classes.
        unseen (`Sequence[str]`): Those that were not trained.

    Returns:
        `dict[str, tuple[SplitPredictions, list[str]]]`: `"seen"` and `"unseen"`, without groups that are empty.
    """
    held_out = [index for index, name in enumerate(names) if name in unseen]
    if needs_multi_label(predictions):
        columns = {"seen": [index for index in range(len(names)) if index not in held_out], "unseen": held_out}
        return {
            group: (_select_classes(predictions, chosen), [names[index] for index in chosen])
            for group, chosen in columns.items()
            if chosen
        }
    places: dict[str, list[int]] = {group: [] for group in GROUPS}
    for place, (row, labels) in enumerate(zip(predictions.rows, predictions.labels)):
        is_seen = predictions.truth.get(row, {}).get("seen")
        events = labels[(labels != IGNORED_LABEL) & (labels != len(names))]
        if is_seen is None and len(events):
            is_seen = not np.isin(events, held_out).any()
        if is_seen is not None:
            places["seen" if is_seen else "unseen"].append(place)
    return {group: (_select_videos(predictions, chosen), list(names)) for group, chosen in places.items() if chosen}


def _select_videos(predictions: SplitPredictions, places: Sequence[int]) -> SplitPredictions:
    gates = predictions.event_probabilities
    return replace(
        predictions,
        rows=[predictions.rows[place] for place in places],
        probabilities=[predictions.probabilities[place] for place in places],
        labels=[predictions.labels[place] for place in places],
        event_probabilities=None if gates is None else [gates[place] for place in places],
    )


def _select_classes(predictions: SplitPredictions, columns: Sequence[int]) -> SplitPredictions:
    """Returns predictions, labels and events of some classes; a localizer with one label keeps its background."""
    truth: dict[int, dict[str, Any]] = {}
    for row, fact in predictions.truth.items():
        events = fact.get("events")
        if events is not None:
            kept_events = (event for event in events if event["label"] in columns)
            events = [{**event, "label": columns.index(event["label"])} for event in kept_events]
        truth[row] = {**fact, "events": events}
    kept = list(columns) if predictions.problem_type == MULTI_LABEL else [*columns, -1]
    return replace(
        predictions,
        probabilities=[clip[:, kept] for clip in predictions.probabilities],
        labels=[clip[:, list(columns)] for clip in predictions.labels],
        truth=truth,
    )
