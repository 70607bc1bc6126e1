"""Conversion of class probabilities per segment to labels, and of labels to events (paper sec. 3.7); numpy only.

A decoder of one label per segment takes `probabilities` of shape `(num_segments, num_labels)`, background last, and
returns one label per segment. A decoder of several labels takes `probabilities` of event classes only and returns
which of them are active in each segment. To add one, write the function and decorate it with `register_decoder`: the
pipelines, the command line, the evaluation, the Space and the documentation read their choices from `DECODERS`.
"""

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .categories import MULTI_LABEL, SINGLE_LABEL

DEFAULT_DECODER = "merge"
# How a model without training for its labels knows an event: the names of these scores in results.
HEARD, SEEN, BOTH = "heard", "seen", "both"
SENSES = (HEARD, SEEN, BOTH)
_TINY = 1e-12  # probabilities of zero would have infinite logarithms


@dataclass(frozen=True)
class Decoder:
    """An entry of `DECODERS`.

    Args:
        summary (`str`): One sentence for help texts and tables.
        uses_min_event_segments (`bool`): Whether its result depends on `min_event_segments`.
        decode (`Callable`, *optional*): For one label per segment: takes probabilities `(num_segments, num_labels)`
            and `min_event_segments`, returns labels `(num_segments,)`.
        decode_each (`Callable`, *optional*): For several labels per segment: takes probabilities `(num_segments,
            num_labels)`, `min_event_segments` and a threshold, returns booleans of the same shape.
        needs_whole_video (`bool`): Whether its result may change until the last segment, so that it cannot be used
            live.
    """

    summary: str
    uses_min_event_segments: bool
    decode: Callable[[np.ndarray, int], np.ndarray] | None = None
    decode_each: Callable[[np.ndarray, int, float], np.ndarray] | None = None
    needs_whole_video: bool = False

    def supports(self, problem_type: str) -> bool:
        """Whether it decodes models of this problem type."""
        return (self.decode_each if problem_type == MULTI_LABEL else self.decode) is not None


DECODERS: dict[str, Decoder] = {}


def register_decoder(
    name: str,
    summary: str,
    *,
    uses_min_event_segments: bool,
    problem_type: str = SINGLE_LABEL,
    needs_whole_video: bool = False,
) -> Callable[[Callable], Callable]:
    """Adds the decorated function to `DECODERS`.

    Two functions with the same name decode the two problem types. They share the entry and the summary of the first.
    """

    def register(decode: Callable) -> Callable:
        new = Decoder(summary, uses_min_event_segments, needs_whole_video=needs_whole_video)
        entry = DECODERS.get(name, new)
        is_multi_label = problem_type == MULTI_LABEL
        DECODERS[name] = replace(entry, decode_each=decode) if is_multi_label else replace(entry, decode=decode)
        return decode

    return register


def decoders_of(problem_type: str) -> tuple[str, ...]:
    """Returns the names of the decoders for a problem type."""
    return tuple(name for name, decoder in DECODERS.items() if decoder.supports(problem_type))


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
    """Merges runs of one label into `(label, first, end)`, with exclusive `end` and without background.

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


def class_runs(active: np.ndarray) -> np.ndarray:
    """Returns the runs of segments in which each class is active as `(label, first, end)`, with exclusive `end`.

    >>> class_runs(np.array([[1, 0], [1, 1], [0, 1]], dtype=bool)).tolist()
    [[0, 0, 2], [1, 1, 3]]

    Args:
        active (`np.ndarray` of shape `(num_segments, num_labels)`, bool): Whether each class is active.

    Returns:
        `np.ndarray` of shape `(num_runs, 3)`: Ordered by label, then by first segment.
    """
    padded = np.zeros((active.shape[1], len(active) + 2), dtype=np.int8)  # inactive before and after the video
    padded[:, 1:-1] = active.T
    changes = np.diff(padded, axis=1)
    labels, firsts = np.nonzero(changes == 1)
    ends = np.nonzero(changes == -1)[1]
    return np.stack([labels, firsts, ends], axis=1)


def merge_short_runs(labels: Sequence[int], probabilities: np.ndarray, min_event_segments: int = 3) -> np.ndarray:
    """Post-processing of sec. 3.7: a run shorter than `min_event_segments` takes the label of its longer neighbor.

    The shortest run is merged first (tie: the lower mean probability of its label, then the earlier run). Of two
    neighbors of the same length, the run takes the label that is more probable over it, then the previous one. Ends
    when no run is short or one run is left.

    Args:
        labels (`Sequence[int]`): One label per segment.
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): Used for ties.
        min_event_segments (`int`): W of the paper; 1 disables merging.

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
            continue  # outdated: this run or a neighbor has been merged in the meantime
        merged = runs.entry(runs.merge(entry[-1]))
        if merged[0] < min_event_segments:
            heapq.heappush(queue, merged)
    return runs.labels()


class _RunList:
    """Runs of equal labels, indexed by their first segment. Merging a run into a neighbor takes constant time."""

    def __init__(self, runs: list[tuple[int, int, int]], cumulative: np.ndarray) -> None:
        self.label = {start: label for label, start, _ in runs}
        self.ends = {start: end for _, start, end in runs}
        self.starts = {end: start for _, start, end in runs}  # first segment of a run by its end
        self.cumulative = cumulative

    def mean(self, label: int, start: int, end: int) -> float:
        # Rounded, so that equal means compare equal although they are differences of cumulative sums.
        return round((self.cumulative[end, label] - self.cumulative[start, label]) / (end - start), 9)

    def entry(self, start: int) -> tuple[int, float, int]:
        """Returns the key that orders the runs: length, mean probability of the label, first segment."""
        end = self.ends[start]
        return end - start, self.mean(self.label[start], start, end), start

    def is_current(self, entry: tuple[int, float, int]) -> bool:
        return entry[-1] in self.ends and self.entry(entry[-1]) == entry

    def merge(self, start: int) -> int:
        """Gives a run the label of its longer neighbor, joins equal runs, and returns the start of the result."""
        end = self.ends[start]
        neighbors = []
        if start in self.starts:
            neighbors.append((self.starts[start], 1))
        if end in self.ends:
            neighbors.append((end, 0))
        winner, _ = max(
            neighbors,
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


@register_decoder(
    "merge", "Runs of one label that are too short join a neighbor (the paper's rule).", uses_min_event_segments=True
)
def decode_merge(probabilities: np.ndarray, min_event_segments: int = 3) -> np.ndarray:
    """Takes the most probable label per segment, then applies [`merge_short_runs`]."""
    return merge_short_runs(probabilities.argmax(axis=1), probabilities, min_event_segments)


@register_decoder(
    "single_event", "The most probable single event, or none.", uses_min_event_segments=False, needs_whole_video=True
)
def decode_single_event(probabilities: np.ndarray, min_event_segments: int = 1) -> np.ndarray:
    """Finds the most probable labels with at most one event: one class on one span, background elsewhere.

    The search is exact: it considers every class, every span of at least one segment, and no event. It takes
    O(num_segments * num_labels) time.

    Args:
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): Background last.
        min_event_segments (`int`): Not used.

    Returns:
        `np.ndarray` of shape `(num_segments,)`: The labels.
    """
    scores = np.log(np.maximum(probabilities, _TINY))
    background = scores.shape[1] - 1
    gains = scores[:, :-1] - scores[:, -1:]  # by how much an event segment raises the score of "all background"
    cumulative = np.concatenate([np.zeros((1, background)), np.cumsum(gains, axis=0)])
    lowest = np.minimum.accumulate(cumulative[:-1], axis=0)
    totals = cumulative[1:] - lowest  # best span of each class that ends at each segment (Kadane)
    labels = np.full(len(scores), background)
    last, label = np.unravel_index(np.argmax(totals), totals.shape) if totals.size else (0, 0)
    if totals.size and totals[last, label] > 0:
        first = int(np.argmin(cumulative[: last + 1, label]))
        labels[first : last + 1] = label
    return labels


@register_decoder(
    "viterbi", "The most probable sequence of events that all last long enough.", uses_min_event_segments=True
)
def decode_viterbi(probabilities: np.ndarray, min_event_segments: int = 3) -> np.ndarray:
    """Finds the most probable labels whose events all have at least `min_event_segments`, for untrimmed video.

    Background runs may have any length and events may follow each other directly. In a video shorter than
    `min_event_segments` an event must fill the video. The semi-Markov search is exact and takes
    O(num_segments * num_labels) time.

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
    steps: list[tuple[int, int]] = [(0, background)]  # (start of the last run, its label)
    # Best score before an event of each class, minus the class's cumulative score.
    opened = np.full(background, -np.inf)
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


@register_decoder("none", "The most probable label per segment.", uses_min_event_segments=False)
def decode_none(probabilities: np.ndarray, min_event_segments: int = 1) -> np.ndarray:
    """Takes the most probable label per segment, independently of its neighbors."""
    return probabilities.argmax(axis=1)


@register_decoder(
    "viterbi",
    "The most probable sequence of events that all last long enough.",
    uses_min_event_segments=True,
    problem_type=MULTI_LABEL,
)
def decode_viterbi_each(probabilities: np.ndarray, min_event_segments: int, threshold: float) -> np.ndarray:
    """Applies [`decode_viterbi`] to every class on its own, with the class against its absence.

    Args:
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): Probabilities of the event classes, each in
            [0, 1].
        min_event_segments (`int`): Shortest event in segments.
        threshold (`float`): Probability at which a class is as likely active as not.

    Returns:
        `np.ndarray` of shape `(num_segments, num_labels)`, bool: Where each class is active.
    """
    odds = (1 - threshold) / threshold  # moves the threshold to 0.5
    active = probabilities * odds / (probabilities * odds + 1 - probabilities)
    # Each class is decoded as a video with two labels: the class (0) and its absence as background (1).
    pairs = (np.stack([column, 1 - column], axis=1) for column in active.T)
    return np.stack([decode_viterbi(pair, min_event_segments) == 0 for pair in pairs], axis=1)


@register_decoder(
    "hysteresis",
    "Events start where a class reaches the threshold and end where it falls below half of it.",
    uses_min_event_segments=True,
    problem_type=MULTI_LABEL,
)
def decode_hysteresis(probabilities: np.ndarray, min_event_segments: int, threshold: float) -> np.ndarray:
    """Extends every run of segments at the threshold to its neighbors with at least half of the threshold.

    Runs that are then shorter than `min_event_segments` are left out; in a shorter video, a run must fill the video.
    Arguments and result are those of [`decode_viterbi_each`].
    """
    shortest = min(min_event_segments, len(probabilities))
    active = np.zeros(probabilities.shape, dtype=bool)
    for label, start, end in class_runs(probabilities >= threshold / 2).tolist():
        if end - start >= shortest and probabilities[start:end, label].max() >= threshold:
            active[start:end, label] = True
    return active


@register_decoder(
    "none", "The most probable label per segment.", uses_min_event_segments=False, problem_type=MULTI_LABEL
)
def decode_threshold(probabilities: np.ndarray, min_event_segments: int, threshold: float) -> np.ndarray:
    """Takes every class at the threshold in each segment, independently of its neighbors."""
    return probabilities >= threshold


def decode_labels(
    probabilities: np.ndarray, decoder: str = DEFAULT_DECODER, min_event_segments: int = 3
) -> np.ndarray:
    """Returns one label per segment from the decoder of the given name.

    Args:
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): Background last.
        decoder (`str`): A name of `DECODERS`.
        min_event_segments (`int`): Shortest run (`"merge"`) or event (`"viterbi"`); not used by the others.

    Raises:
        ValueError: If the decoder is unknown or made for several labels per segment, the minimum is less than one
            segment, or the probabilities have a wrong shape or are not finite.
    """
    probabilities = _checked(probabilities, decoder, min_event_segments, SINGLE_LABEL)
    decode = DECODERS[decoder].decode
    return decode(probabilities, min_event_segments) if decode is not None else probabilities


def decode_events(
    probabilities: np.ndarray, decoder: str = "viterbi", min_event_segments: int = 1, threshold: float = 0.5
) -> np.ndarray:
    """Returns which classes are active in each segment, from the decoder of the given name.

    Args:
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): Probabilities of the event classes, each in
            [0, 1].
        decoder (`str`): A name of `DECODERS`.
        min_event_segments (`int`): Shortest event; not used by `"none"`.
        threshold (`float`): Probability from which a class is active, between 0 and 1.

    Returns:
        `np.ndarray` of shape `(num_segments, num_labels)`, bool.

    Raises:
        ValueError: As in [`decode_labels`], or if the threshold is not between 0 and 1.
    """
    probabilities = _checked(probabilities, decoder, min_event_segments, MULTI_LABEL)
    check_threshold("threshold", threshold)
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise ValueError("Probabilities of several labels must be in [0, 1]. Apply a sigmoid to the logits first.")
    decode = DECODERS[decoder].decode_each
    return decode(probabilities, min_event_segments, threshold) if decode is not None else probabilities


def check_threshold(name: str, threshold: Any) -> None:
    """Raises `ValueError` unless the argument `name` is a probability above 0 and below 1, of Python or numpy."""
    if isinstance(threshold, bool) or not isinstance(threshold, int | float | np.floating) or not 0 < threshold < 1:
        raise ValueError(f"`{name}` must be a probability above 0 and below 1, got {threshold!r}.")


def _checked(probabilities: np.ndarray, decoder: str, min_event_segments: int, problem_type: str) -> np.ndarray:
    """Checks what all decoders take, and returns the probabilities as float64."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if decoder not in DECODERS:
        raise ValueError(f"`decoder` must be one of {list(decoders_of(problem_type))}, got {decoder!r}.")
    if not DECODERS[decoder].supports(problem_type):
        meaning = "several labels" if problem_type == MULTI_LABEL else "one label"
        raise ValueError(
            f"The decoder {decoder!r} cannot decode {meaning} per segment. Use one of "
            f"{list(decoders_of(problem_type))}."
        )
    if not isinstance(min_event_segments, int | np.integer) or min_event_segments < 1:
        raise ValueError(f"`min_event_segments` must be a whole number of segments >= 1, got {min_event_segments!r}.")
    lowest = 1 if problem_type == MULTI_LABEL else 2
    if probabilities.ndim != 2 or probabilities.shape[1] < lowest:
        shape = probabilities.shape
        raise ValueError(f"Probabilities must have the shape (segments, labels >= {lowest}), got {shape}.")
    if not np.isfinite(probabilities).all():
        raise ValueError("The probabilities contain NaN or infinite values, so no event can be decoded from them.")
    return probabilities


def find_events(
    labels: Sequence[int], probabilities: np.ndarray, segment_seconds: float = 1.0, duration: float | None = None
) -> list[Event]:
    """Returns the events of a labelled video in time order.

    Args:
        labels (`Sequence[int]`): One label per segment.
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): Background last.
        segment_seconds (`float`): Length of a segment.
        duration (`float`, *optional*): Length of the video in seconds; no event ends later.
    """
    runs = group_segments(labels, background=probabilities.shape[1] - 1)
    return [_scored_event(run, probabilities, segment_seconds, duration) for run in runs]


def find_overlapping_events(
    active: np.ndarray, probabilities: np.ndarray, segment_seconds: float = 1.0, duration: float | None = None
) -> list[Event]:
    """Returns the events of a video with several labels per segment, ordered by start, end and label.

    Args:
        active (`np.ndarray` of shape `(num_segments, num_labels)`, bool): Result of [`decode_events`].
        probabilities (`np.ndarray` of shape `(num_segments, num_labels)`): Probabilities of the event classes.
        segment_seconds (`float`), duration (`float`, *optional*): As in [`find_events`].
    """
    events = [_scored_event(run, probabilities, segment_seconds, duration) for run in class_runs(active).tolist()]
    return sorted(events, key=lambda event: (event.start, event.end, event.label))


def _scored_event(
    run: Sequence[int], probabilities: np.ndarray, segment_seconds: float, duration: float | None
) -> Event:
    """Returns the event of a run `(label, first, end)`, with the mean probability of its label as score."""
    label, first, end = run
    score = float(probabilities[first:end, label].mean())
    return Event(label, *span_in_seconds(first, end, segment_seconds, duration), score)


def span_in_seconds(first: float, end: float, segment_seconds: float, duration: float | None) -> tuple[float, float]:
    """Returns start and end in seconds of the segments from `first` to `end` (exclusive).

    The last segment of a video may be incomplete, so no span ends after `duration`, if that is known.
    """
    start = first * segment_seconds
    limit = np.inf if duration is None else duration
    return start, float(min(end * segment_seconds, max(limit, start)))


__all__ = [
    "BOTH",
    "DECODERS",
    "DEFAULT_DECODER",
    "HEARD",
    "SEEN",
    "SENSES",
    "Decoder",
    "Event",
    "check_threshold",
    "class_runs",
    "decode_events",
    "decode_labels",
    "decoders_of",
    "find_events",
    "find_overlapping_events",
    "span_in_seconds",
]
