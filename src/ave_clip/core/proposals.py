"""Candidate events with scores: from class probabilities per segment, or from a boundary head.

A decoder returns the events that it is sure of. Average precision instead ranks as many candidates as possible, so
that precision can be read at every recall. N candidates, T segments, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from .events import Event, class_runs, span_in_seconds

# Every 0.05: also a class that never reaches 0.5 gets candidates, and a confident one gets tight boundaries.
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
MAX_EVENTS_PER_MINUTE = 100  # UnAV-100's evaluation keeps 100 per video, and its videos last up to a minute
REACH = 1.0  # a segment is active from half of it on, so a run of segments ends within one segment of its event
SIGMA, MIN_SCORE = 0.4, 0.001  # of UnAV-100's evaluation (UnAV, configs/avel_unav100.yaml)


def propose_events(
    probabilities: np.ndarray,
    segment_seconds: float = 1.0,
    duration: float | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
    sigma: float = SIGMA,
    max_events: int | None = None,
) -> list[Event]:
    """Returns many candidate events per class, best first, for example to compute average precision.

    For each class and threshold, every run of segments at the threshold is a candidate. Its score is the mean
    probability inside, minus the mean over a quarter of its length before and after it (at least one segment): the
    outer-inner contrast of AutoLoc (Shou et al. 2018), which prefers the candidate that ends where the event does.
    Then soft-NMS lowers the scores of candidates that overlap better ones of their class.

    Args:
        probabilities (`np.ndarray` of shape `(T, C)`): Probabilities of the event classes, without background, each in
            [0, 1].
        segment_seconds (`float`): Length of a segment.
        duration (`float`, *optional*): Length of the video in seconds; no event ends later.
        thresholds (`Sequence[float]`): Thresholds of the runs.
        sigma (`float`): Width of soft-NMS; see [`soft_nms`].
        max_events (`int`, *optional*): Largest number of candidates. Default: 100 per started minute.

    Returns:
        `list[Event]`: with the scores of soft-NMS, highest first; of equal scores the earlier, then the lower class.

    Raises:
        ValueError: If the probabilities have a wrong shape or are not in [0, 1].
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2:
        raise ValueError(f"Probabilities must have the shape (segments, classes), got {probabilities.shape}.")
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise ValueError("Probabilities must be in [0, 1], without NaN. Apply a sigmoid or softmax to the logits.")
    num_segments = len(probabilities)
    labels, starts, ends = _runs_at_thresholds(probabilities, thresholds)
    scores = _contrast(probabilities, labels, starts, ends)
    candidates = Proposals(labels, starts.astype(np.float64), ends.astype(np.float64), scores, num_segments)
    return rank_proposals(candidates, segment_seconds, duration, sigma, max_events)


@dataclass(frozen=True)
class Proposals:
    """Candidate events of one video, in any order.

    Args:
        labels (`np.ndarray` of shape `(N,)`): Class indices.
        starts (`np.ndarray` of shape `(N,)`), ends (`np.ndarray` of shape `(N,)`): Times in segments, not rounded.
        scores (`np.ndarray` of shape `(N,)`): Scores from 0 to 1.
        num_segments (`int`): Number of segments of the video.
    """

    labels: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    scores: np.ndarray
    num_segments: int


def dense_proposals(logits: torch.Tensor, spans: torch.Tensor, num_segments: int) -> Proposals:
    """Returns what the boundary head proposes for one video, clipped at its ends.

    Args:
        logits (`torch.Tensor` of shape `(P, C)`): `proposal_logits`.
        spans (`torch.Tensor` of shape `(P, C, 2)`): `proposal_spans`, in segments.
        num_segments (`int`): Number of segments of the video.
    """
    scores = logits.detach().double().sigmoid().cpu().numpy()
    starts, ends = spans.detach().double().clamp(0, num_segments).cpu().numpy().transpose(2, 0, 1)
    points, labels = np.nonzero((scores >= MIN_SCORE) & (ends > starts))
    starts, ends, scores = (values[points, labels] for values in (starts, ends, scores))
    return Proposals(labels, starts, ends, scores, num_segments)


def rank_proposals(
    proposals: Proposals,
    segment_seconds: float = 1.0,
    duration: float | None = None,
    sigma: float = SIGMA,
    max_events: int | None = None,
) -> list[Event]:
    """Returns the best candidates after soft-NMS; arguments and result as in [`propose_events`]."""
    if max_events is None:
        max_events = MAX_EVENTS_PER_MINUTE * max(1, int(np.ceil(proposals.num_segments * segment_seconds / 60)))
    labels, starts, ends, scores = proposals.labels, proposals.starts, proposals.ends, proposals.scores
    # Soft-NMS only lowers scores, so the best `max_events` of its result are among few more candidates.
    kept = _best(scores, labels, starts, 20 * max_events)
    labels, starts, ends, scores = labels[kept], starts[kept], ends[kept], scores[kept]
    scores = soft_nms(labels, starts, ends, scores, sigma)
    events = []
    for index in _best(scores, labels, starts, max_events):
        span = span_in_seconds(float(starts[index]), float(ends[index]), segment_seconds, duration)
        events.append(Event(int(labels[index]), *span, float(scores[index])))
    return events


def place_events(
    events: Sequence[Event], proposals: Proposals, segment_seconds: float = 1.0, duration: float | None = None
) -> list[Event]:
    """Moves the ends of decoded events to where a boundary head proposes them.

    The decoder decides which events there are, from segments that are averaged over all windows of a long video: no
    event is found twice, or ends at a seam. Each of its ends becomes the mean of the same ends, at most `REACH`
    segments away, of the proposals of its class, weighted with their scores. Without any, it stays.

    Args:
        events (`Sequence[Event]`): Decoded events.
        proposals ([`Proposals`]): What the head proposes for the video.
        segment_seconds (`float`), duration (`float`, *optional*): As in [`propose_events`].

    Returns:
        `list[Event]`: ordered by start, end and label.
    """
    placed = []
    for event in events:
        weights = proposals.scores * (proposals.labels == event.label)
        first = _nearby_mean(proposals.starts, weights, event.start / segment_seconds)
        last = _nearby_mean(proposals.ends, weights, event.end / segment_seconds)
        start, end = span_in_seconds(first, last, segment_seconds, duration)
        placed.append(replace(event, start=start, end=end) if end > start else event)
    return sorted(placed, key=lambda event: (event.start, event.end, event.label))


def _nearby_mean(times: np.ndarray, weights: np.ndarray, time: float) -> float:
    weights = weights * (np.abs(times - time) <= REACH)
    return float((weights * times).sum() / weights.sum()) if weights.any() else time


def soft_nms(
    labels: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    scores: np.ndarray,
    sigma: float = SIGMA,
    min_score: float = MIN_SCORE,
) -> np.ndarray:
    """Lowers the scores of events that overlap better ones of their class: Gaussian soft-NMS (Bodla et al. 2017).

    The best event keeps its score, the others are multiplied by exp(-overlap² / sigma), with the intersection over
    union as overlap; then the same with the best of the rest, and so on.

    Args:
        labels (`np.ndarray` of shape `(N,)`): Class indices.
        starts (`np.ndarray` of shape `(N,)`), ends (`np.ndarray` of shape `(N,)`): Times in one unit.
        scores (`np.ndarray` of shape `(N,)`): Scores.
        sigma (`float`): Larger values lower the scores less.
        min_score (`float`): Events below it are dropped.

    Returns:
        `np.ndarray` of shape `(N,)`: the new scores, 0 for dropped events.
    """
    result = np.zeros(len(scores))
    order = np.lexsort((ends, starts, labels))
    order = order[scores[order] >= min_score]
    group = _overlap_groups(labels[order], starts[order], ends[order])
    start, end, score = starts[order], ends[order], np.asarray(scores, dtype=np.float64)[order]
    # Only events of one group overlap, so all groups are processed at once: a round finds the best event of each.
    while len(order):
        first = np.flatnonzero(np.diff(group, prepend=-1))  # first event of each group
        place = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(group))))
        best_score = np.maximum.reduceat(score, first)
        candidates = np.flatnonzero(score == best_score[place])
        best = candidates[np.diff(place[candidates], prepend=-1) > 0]  # the first of equal ones; one per group
        result[order[best]] = score[best]
        shared = np.minimum(end, end[best][place]) - np.maximum(start, start[best][place])
        union = np.maximum(end, end[best][place]) - np.minimum(start, start[best][place])
        overlap = np.divide(shared.clip(0), union, out=np.zeros(len(score)), where=union > 0)
        score = score * np.exp(-(overlap**2) / sigma)
        is_left = score >= min_score
        is_left[best] = False
        order, group, start, end, score = (values[is_left] for values in (order, group, start, end, score))
    return result


def _overlap_groups(labels: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Numbers groups of events, sorted by class and start, such that no event overlaps one of another group."""
    if not len(labels):
        return np.zeros(0, dtype=int)
    # Classes one after the other on one time axis, so that events of two classes never overlap.
    offset = labels * (ends.max() - starts.min() + 1.0)
    latest = np.maximum.accumulate(ends + offset)
    is_new = np.append(True, (starts + offset)[1:] >= latest[:-1])
    return np.cumsum(is_new) - 1


def _runs_at_thresholds(
    probabilities: np.ndarray, thresholds: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns class, first segment and exclusive end of each different run of segments at any threshold."""
    num_segments = len(probabilities)
    found = [np.zeros(0, dtype=np.int64)]
    for threshold in thresholds:
        label, start, end = class_runs(probabilities >= threshold).T
        found.append((label * (num_segments + 1) + start) * (num_segments + 1) + end)  # one number per run
    runs = np.unique(np.concatenate(found))
    rest, end = np.divmod(runs, num_segments + 1)
    label, start = np.divmod(rest, num_segments + 1)
    return label, start, end


def _contrast(probabilities: np.ndarray, labels: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns the mean probability inside each candidate minus the mean over its margins, at least 0."""
    num_segments, num_classes = probabilities.shape
    sums = np.concatenate([np.zeros((1, num_classes)), np.cumsum(probabilities, axis=0)])
    margins = np.maximum(1, np.ceil((ends - starts) / 4).astype(int))
    before, after = np.maximum(starts - margins, 0), np.minimum(ends + margins, num_segments)
    inside = sums[ends, labels] - sums[starts, labels]
    outside = sums[after, labels] - sums[before, labels] - inside
    length, margin = ends - starts, (after - before) - (ends - starts)
    mean_outside = np.divide(outside, margin, out=np.zeros(len(labels)), where=margin > 0)
    return np.maximum(inside / np.maximum(length, 1) - mean_outside, 0.0)


def _best(scores: np.ndarray, labels: np.ndarray, starts: np.ndarray, number: int) -> np.ndarray:
    """Returns the indices of the best candidates with a score above 0, best first."""
    order = np.lexsort((labels, starts, -scores))
    return order[scores[order] > 0][:number]


__all__ = ["Proposals", "dense_proposals", "place_events", "propose_events", "rank_proposals", "soft_nms"]
