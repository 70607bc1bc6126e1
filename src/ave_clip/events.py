"""From class probabilities per segment to labels, and from labels to events (paper sec. 3.7); numpy only.

Every decoder takes `probabilities` of shape `(num_segments, num_labels)`, background last, and returns one label a
segment. `"merge"` is the paper's post-processing, `"single_event"` and `"viterbi"` find the most probable labelling
of their kind exactly, `"none"` is the plain argmax.
"""

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DECODERS = ("merge", "single_event", "viterbi", "none")
_TINY = 1e-12


@dataclass(frozen=True)
class Event:
    """An audio-visual event.

    Args:
        label (`int`): Class index.
        start (`float`), end (`float`): Seconds.
        score (`float`): Mean probability of the label over the event's segments.
    """

    label: int
    start: float
    end: float
    score: float


def group_segments(labels: Sequence[int], background: int) -> list[tuple[int, int, int]]:
    """Merge runs of one label into `(label, first, end)`, `end` exclusive, leaving background out.

    >>> group_segments([28, 3, 3, 28, 3], background=28)
    [(3, 1, 3), (3, 4, 5)]
    """
    return [run for run in _runs(labels) if run[0] != background]


def _runs(labels: Sequence[int]) -> list[tuple[int, int, int]]:
    runs, start = [], 0
    for label, members in itertools.groupby(labels):
        end = start + sum(1 for _ in members)
        runs.append((int(label), start, end))
        start = end
    return runs


def merge_short_runs(labels: Sequence[int], probabilities: np.ndarray, min_event_segments: int = 3) -> np.ndarray:
    """Post-processing of sec. 3.7: a run shorter than `min_event_segments` takes the label of its longer neighbour.

    The shortest run goes first (tie: the lower mean probability of its label, then the earlier). Of two equally long
    neighbours, the one whose label is more probable over the short run wins, then the previous. Stops when no run is
    short or one run is left.

    Args:
        labels (`Sequence[int]`): One label a segment.
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): For the ties.
        min_event_segments (`int`): W of the paper; 1 changes nothing.

    Returns:
        `np.ndarray` of shape `(num_segments,)`: The new labels.
    """
    cumulative = np.concatenate([np.zeros((1, probabilities.shape[1])), np.cumsum(probabilities, axis=0)])
    runs = _RunList(_runs(labels), cumulative)
    queue = [entry for entry in map(runs.entry, list(runs.ends)) if entry[0] < min_event_segments]
    heapq.heapify(queue)
    while queue and len(runs.ends) > 1:
        entry = heapq.heappop(queue)
        if not runs.is_current(entry):
            continue  # it has been merged since
        merged = runs.entry(runs.merge(entry[-1]))
        if merged[0] < min_event_segments:
            heapq.heappush(queue, merged)
    return runs.labels()


class _RunList:
    """Runs of equal labels, kept by their first segment, that can be merged into a neighbour in constant time."""

    def __init__(self, runs: list[tuple[int, int, int]], cumulative: np.ndarray) -> None:
        self.label = {start: label for label, start, _ in runs}
        self.ends = {start: end for _, start, end in runs}
        self.starts = {end: start for _, start, end in runs}  # a run's first segment, by where it ends
        self.cumulative = cumulative

    def mean(self, label: int, start: int, end: int) -> float:
        # Rounded, so that equal means stay equal although they come from differences of sums.
        return round((self.cumulative[end, label] - self.cumulative[start, label]) / (end - start), 9)

    def entry(self, start: int) -> tuple[int, float, int]:
        """What decides which run goes first: its length, the mean probability of its label, its place."""
        end = self.ends[start]
        return end - start, self.mean(self.label[start], start, end), start

    def is_current(self, entry: tuple[int, float, int]) -> bool:
        return entry[-1] in self.ends and self.entry(entry[-1]) == entry

    def merge(self, start: int) -> int:
        """Give a run its longer neighbour's label, join what is equal now, and return where the result starts."""
        end = self.ends[start]
        neighbours = []
        if start in self.starts:
            neighbours.append((self.starts[start], 1))
        if end in self.ends:
            neighbours.append((end, 0))
        winner, _ = max(
            neighbours,
            key=lambda item: (self.ends[item[0]] - item[0], self.mean(self.label[item[0]], start, end), item[1]),
        )
        self.label[start] = self.label[winner]
        for right in (end, start):
            left = self.starts.get(right)
            if right in self.ends and left is not None and self.label[left] == self.label[right]:
                self._join(left, right)
                start = min(start, left)
        return start

    def _join(self, left: int, right: int) -> None:
        end = self.ends.pop(right)
        del self.label[right], self.starts[right]
        self.ends[left], self.starts[end] = end, left

    def labels(self) -> np.ndarray:
        starts = sorted(self.ends)
        return np.repeat([self.label[start] for start in starts], [self.ends[start] - start for start in starts])


def decode_single_event(probabilities: np.ndarray) -> np.ndarray:
    """The most probable labelling with at most one event: a class on one span, background elsewhere. Exact.

    Every class and span of at least one segment is considered, and no event at all. O(num_segments * num_labels).

    Args:
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): Background last.

    Returns:
        `np.ndarray` of shape `(num_segments,)`: The labels.
    """
    scores = np.log(np.maximum(probabilities, _TINY))
    background = scores.shape[1] - 1
    gains = scores[:, :-1] - scores[:, -1:]  # what an event segment adds to "all background"
    cumulative = np.concatenate([np.zeros((1, background)), np.cumsum(gains, axis=0)])
    lowest = np.minimum.accumulate(cumulative[:-1], axis=0)
    totals = cumulative[1:] - lowest  # best span of each class ending at each segment
    labels = np.full(len(scores), background)
    last, label = np.unravel_index(np.argmax(totals), totals.shape) if totals.size else (0, 0)
    if totals.size and totals[last, label] > 0:
        first = int(np.argmin(cumulative[: last + 1, label]))
        labels[first : last + 1] = label
    return labels


def decode_viterbi(probabilities: np.ndarray, min_event_segments: int = 3) -> np.ndarray:
    """The most probable labelling whose events all last `min_event_segments` or longer. Exact, for untrimmed video.

    Background runs may have any length and events may follow each other directly. In a video shorter than
    `min_event_segments` an event must fill the video. A semi-Markov search, O(num_segments * num_labels).

    Args:
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): Background last.
        min_event_segments (`int`): Shortest event in segments.

    Returns:
        `np.ndarray` of shape `(num_segments,)`: The labels.
    """
    scores = np.log(np.maximum(probabilities, _TINY))
    num_segments, num_labels = scores.shape
    shortest = min(min_event_segments, num_segments)
    background = num_labels - 1
    cumulative = np.concatenate([np.zeros((1, num_labels)), np.cumsum(scores, axis=0)])
    best = np.zeros(num_segments + 1)  # best score of the first t segments
    steps: list[tuple[int, int]] = [(0, background)]  # (where the last run starts, its label)
    opened = np.full(background, -np.inf)  # best score before an event of each class, less that class's sum
    opened_at = np.zeros(background, dtype=int)
    for end in range(1, num_segments + 1):
        total, step = best[end - 1] + scores[end - 1, background], (end - 1, background)
        if end >= shortest:
            start = end - shortest
            candidates = best[start] - cumulative[start, :-1]
            opened_at = np.where(candidates > opened, start, opened_at)
            opened = np.maximum(opened, candidates)
            totals = opened + cumulative[end, :-1]
            label = int(np.argmax(totals)) if background else 0
            if background and totals[label] > total:
                total, step = totals[label], (int(opened_at[label]), label)
        best[end] = total
        steps.append(step)
    return _trace_back(steps)


def _trace_back(steps: list[tuple[int, int]]) -> np.ndarray:
    labels = np.empty(len(steps) - 1, dtype=int)
    end = len(steps) - 1
    while end > 0:
        start, label = steps[end]
        labels[start:end] = label
        end = start
    return labels


def decode_labels(probabilities: np.ndarray, decoder: str = "merge", min_event_segments: int = 3) -> np.ndarray:
    """One label a segment, by the decoder's name.

    Args:
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): Background last.
        decoder (`str`): `"merge"`, `"single_event"`, `"viterbi"` or `"none"`.
        min_event_segments (`int`): Shortest run (`"merge"`) or event (`"viterbi"`); the others do not use it.

    Raises:
        ValueError: An unknown decoder, fewer than one segment as minimum, or probabilities of a wrong shape.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if decoder not in DECODERS:
        raise ValueError(f"`decoder` must be one of {list(DECODERS)}, got {decoder!r}.")
    if not isinstance(min_event_segments, int | np.integer) or min_event_segments < 1:
        raise ValueError(f"`min_event_segments` is a whole number of segments >= 1, got {min_event_segments!r}.")
    if probabilities.ndim != 2 or probabilities.shape[1] < 2:
        raise ValueError(f"Probabilities must have the shape (segments, labels >= 2), got {probabilities.shape}.")
    if not np.isfinite(probabilities).all():
        raise ValueError("The probabilities hold NaN or infinite values, so no event can be decoded from them.")
    if decoder == "single_event":
        return decode_single_event(probabilities)
    if decoder == "viterbi":
        return decode_viterbi(probabilities, min_event_segments)
    labels = probabilities.argmax(axis=1)
    return merge_short_runs(labels, probabilities, min_event_segments) if decoder == "merge" else labels


def find_events(
    labels: Sequence[int], probabilities: np.ndarray, segment_seconds: float = 1.0, duration: float | None = None
) -> list[Event]:
    """The events of a labelled video, in time order.

    Args:
        labels (`Sequence[int]`): One label a segment.
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): Background last.
        segment_seconds (`float`): Length of a segment.
        duration (`float`, *optional*): Seconds of video; the last event does not end later.

    Returns:
        `list[Event]`
    """
    limit = np.inf if duration is None else duration
    return [
        Event(
            label=label,
            start=start * segment_seconds,
            end=float(min(end * segment_seconds, max(limit, start * segment_seconds))),
            score=float(probabilities[start:end, label].mean()),
        )
        for label, start, end in group_segments(labels, background=probabilities.shape[1] - 1)
    ]


__all__ = ["DECODERS", "Event", "decode_labels", "find_events"]
