"""Measures predictions of a split against events that may overlap, for localizers with one or several labels.

T segments, C event classes (without background).
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..core.categories import IGNORED_LABEL, MULTI_LABEL
from ..core.events import Event, decode_events, decode_labels, find_overlapping_events
from ..core.proposals import Proposals, place_events, propose_events, rank_proposals
from ..data.targets import TimedEvent, events_of_labels, one_hot_labels
from .multi_label_metrics import MultiLabelMeasures, segment_map
from .prediction import SplitPredictions


def needs_multi_label(predictions: SplitPredictions) -> bool:
    """Whether the predictions or labels have several labels per segment, so that they are measured here."""
    return predictions.problem_type == MULTI_LABEL or any(labels.ndim == 2 for labels in predictions.labels)


def with_several_labels(predictions: SplitPredictions) -> SplitPredictions:
    """Returns predictions whose labels are 0 or 1 per event class, also where segments have one label."""
    if not predictions.labels:
        return predictions
    return replace(predictions, labels=split_scores(predictions)[1])


def split_scores(predictions: SplitPredictions) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns probabilities of the event classes and labels `(T, C)` of each clip.

    One label per segment becomes 0 or 1 per class. Where a label is unknown, the probability is 0, so that nothing is
    decoded or proposed there.
    """
    scores, labels = [], []
    for found, true in zip(predictions.probabilities, predictions.labels):
        found = found if predictions.problem_type == MULTI_LABEL else found[:, :-1]
        true = true if true.ndim == 2 else one_hot_labels(true, found.shape[1])
        if found.shape != true.shape:
            raise ValueError(
                f"The localizer has {found.shape[1]} event classes, the labels have {true.shape[1]}. Both must have "
                "the same classes in the same order."
            )
        labels.append(true)
        scores.append(np.where(true == IGNORED_LABEL, 0, found))
    return scores, labels


def true_events(
    predictions: SplitPredictions, labels: Sequence[np.ndarray], segment_seconds: float = 1.0
) -> list[list[TimedEvent]]:
    """Returns the true events of each clip in seconds: the annotated times, or runs of labels where there are none.

    Args:
        predictions (`SplitPredictions`): With `truth`, if the data set has it.
        labels (`Sequence[np.ndarray]`): 0, 1 or -100, array of shape `(T, C)` per clip.
        segment_seconds (`float`): Length of a segment.
    """
    events = []
    for row, true in zip(predictions.rows, labels):
        annotated = predictions.truth.get(row, {}).get("events")
        if annotated is None or (true == IGNORED_LABEL).all():
            events.append(events_of_labels(true, segment_seconds))
        else:
            events.append([(int(e["label"]), float(e["start"]), float(e["end"])) for e in annotated])
    return events


def validation_segment_map(predictions: SplitPredictions) -> float:
    """Returns the segment mAP by which the best epoch of a localizer with several labels is chosen."""
    return segment_map(*split_scores(predictions))


def measure_multi_label(
    predictions: SplitPredictions,
    settings: Sequence[tuple[str, str, int]],
    names: Sequence[str] | None = None,
    segment_seconds: float = 1.0,
    threshold: float = 0.5,
    num_resamples: int = 1000,
) -> dict[str, dict[str, Any]]:
    """Computes the measures of several events at once for each setting of the decoder.

    A localizer with one label per segment is measured, too: the decoded class of a segment is its only active one, and
    the probabilities of the event classes are the scores.

    Args:
        predictions (`SplitPredictions`): The predictions of the clips.
        settings (`Sequence[tuple[str, str, int]]`): Name of the result, decoder and minimum length of events.
        names (`Sequence[str]`, *optional*): Names of the event classes. Default: their indices.
        segment_seconds (`float`): Length of a segment.
        threshold (`float`): Probability from which a class is active, for a localizer with several labels.
        num_resamples (`int`): Bootstrap resamples of the videos; 0 leaves the intervals out.

    Returns:
        `dict[str, dict[str, Any]]`: results of [`MultiLabelMeasures`] by name.

    Raises:
        ValueError: if the labels have other classes than the localizer.
    """
    scores, labels = split_scores(predictions)
    names = list(map(str, range(labels[0].shape[1]))) if names is None else names
    events = true_events(predictions, labels, segment_seconds)
    durations = [predictions.truth.get(row, {}).get("duration") for row in predictions.rows]
    measures = MultiLabelMeasures(labels, events, names, num_resamples)
    candidates = [
        [(event.label, event.start, event.end, event.score) for event in found]
        for found in propose_split(predictions, scores, labels, segment_seconds, durations)
    ]
    ranked = measures.ranked(scores, candidates)  # the same for all decoders
    results = {}
    for name, decoder, shortest in settings:
        active = decode_split(predictions, labels, decoder, shortest, threshold)
        times = itertools.repeat(segment_seconds), durations
        decoded = [find_overlapping_events(*clip) for clip in zip(active, scores, *times)]
        if predictions.proposals is not None:
            decoded = [place_events(*clip) for clip in zip(decoded, predictions.proposals, *times)]
        timed = [[(event.label, event.start, event.end) for event in found] for found in decoded]
        results[name] = measures.join(ranked, measures.decoded(active, timed))
    return results


def propose_split(
    predictions: SplitPredictions,
    scores: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    segment_seconds: float,
    durations: Sequence[float | None],
) -> list[list[Event]]:
    """Returns the ranked candidates of each clip: of its boundary head, or runs of segments without one."""
    times = itertools.repeat(segment_seconds), durations
    if predictions.proposals is None:
        return [propose_events(*clip) for clip in zip(scores, *times)]
    known = [_with_known_labels(*clip) for clip in zip(predictions.proposals, labels)]
    return [rank_proposals(*clip) for clip in zip(known, *times)]


def _with_known_labels(proposals: Proposals, labels: np.ndarray) -> Proposals:
    """Leaves out the proposals whose middle is in a segment where the label `(T, C)` of their class is unknown."""
    middles = ((proposals.starts + proposals.ends) / 2).astype(int).clip(0, len(labels) - 1)
    known = labels[middles, proposals.labels] != IGNORED_LABEL
    return replace(proposals, scores=proposals.scores * known)


def decode_split(
    predictions: SplitPredictions, labels: Sequence[np.ndarray], decoder: str, shortest: int, threshold: float
) -> list[np.ndarray]:
    """Returns whether each class is active, bool of shape `(T, C)` per clip; nothing is where the label is unknown."""
    decoded = []
    for probabilities, true in zip(predictions.probabilities, labels):
        if predictions.problem_type == MULTI_LABEL:
            active = decode_events(probabilities, decoder, shortest, threshold)
        else:
            active = one_hot_labels(decode_labels(probabilities, decoder, shortest), true.shape[1]) == 1
        decoded.append(active & (true != IGNORED_LABEL))
    return decoded
