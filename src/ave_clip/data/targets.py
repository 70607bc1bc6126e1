"""Labels of segments from annotated events, for one class per segment or several, and counts of what they do not show.

A segment has a class in a "multi_label" data set if the events of this class cover at least half of it. In a
"single_label" data set it has at most one, the class that covers most of it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..core.categories import MULTI_LABEL
from ..core.events import class_runs
from .annotations import LabelledSpan, coverage, covers_enough, label_segments
from .categories import IGNORED_LABEL

# An event of one video: label, start and end in seconds.
TimedEvent = tuple[int, float, float]
# Durations of segments that can be labelled: far shorter ones would need more memory than a computer has.
SEGMENT_SECONDS_RANGE = (0.05, 60.0)
# Shorter segments than this are not worth a hint: the model's towers need some audio.
SHORTEST_HINT_SECONDS = 0.25
# Containers round durations, so annotations of whole videos end a little late. Up to this, their times are kept.
ROUNDING_SECONDS = 0.1


def check_segment_seconds(segment_seconds: float) -> None:
    """Raises `ValueError` unless a duration of segments is in `SEGMENT_SECONDS_RANGE`."""
    shortest, longest = SEGMENT_SECONDS_RANGE
    if not shortest <= segment_seconds <= longest:
        raise ValueError(
            f"Got segment_seconds={segment_seconds}, wanted a number of seconds from {shortest:g} to {longest:g}. "
            "0.25 to 1 are usual."
        )


def multi_label_segments(
    events: Sequence[LabelledSpan], num_segments: int, num_categories: int, segment_seconds: float = 1.0
) -> np.ndarray:
    """Returns which classes each segment has: those whose events together cover at least half of it.

    Args:
        events (`Sequence[LabelledSpan]`): The video's events, in any order; they may overlap.
        num_segments (`int`): Number of segments of the video.
        num_categories (`int`): Number of event classes; background has no column.
        segment_seconds (`float`): Duration of a segment.

    Returns:
        `np.ndarray` of shape `(num_segments, num_categories)`, int8: 0 or 1.

    >>> events = [LabelledSpan(1, 0, 2), LabelledSpan(0, 1, 2.4)]
    >>> multi_label_segments(events, num_segments=3, num_categories=2).tolist()
    [[0, 1], [1, 1], [0, 0]]
    """
    labels = np.zeros((num_segments, num_categories), np.int8)
    ordered = sorted(events, key=lambda event: event.start)
    for label in {event.label for event in ordered}:
        spans = [event for event in ordered if event.label == label]
        for segment, (covered, _) in coverage(spans, num_segments, segment_seconds).items():
            if covers_enough(covered, segment_seconds):
                labels[segment, label] = 1
    return labels


def join_events(events: Sequence[LabelledSpan]) -> tuple[list[LabelledSpan], list[LabelledSpan]]:
    """Joins events of one class that overlap. Events that only touch remain two events.

    Returns:
        `(joined, absorbed)`: all events in the order of their start, and those that are now part of an earlier one.

    >>> join_events([LabelledSpan(0, 0, 3), LabelledSpan(0, 2, 5), LabelledSpan(0, 5, 6)])[0]
    [LabelledSpan(label=0, start=0, end=5), LabelledSpan(label=0, start=5, end=6)]
    """
    joined: list[LabelledSpan] = []
    absorbed: list[LabelledSpan] = []
    latest: dict[int, int] = {}  # position in `joined` of each class's last event
    for event in sorted(events, key=lambda event: event.start):
        position = latest.get(event.label)
        if position is not None and event.start < joined[position].end:
            before = joined[position]
            joined[position] = before._replace(end=max(before.end, event.end))
            absorbed.append(event)
        else:
            latest[event.label] = len(joined)
            joined.append(event)
    return joined, absorbed


@dataclass
class _Reason:
    """How many events one reason concerns, and the first of them."""

    count: int = 0
    seconds: float = 0.0
    first: str = ""

    def add(self, event: str, seconds: float = 0.0) -> None:
        self.first = self.first or event
        self.count += 1
        self.seconds += seconds


@dataclass
class EventCounts:
    """Counts the events of a data set that its labels do not show completely, by reason.

    Args:
        categories (`Sequence[str]`): Category names in index order.
        problem_type (`str`): "single_label" or "multi_label".
        segment_seconds (`float`): Duration of a segment.

    Attributes:
        num_events (`int`): Number of annotated events.
        uncovered, clipped, merged, outvoted: How many events cover no segment, end after their video, are joined with
            another of their class, or lose segments to an event of another class.
    """

    categories: Sequence[str]
    problem_type: str
    segment_seconds: float
    num_events: int = 0
    uncovered: _Reason = field(default_factory=_Reason)
    clipped: _Reason = field(default_factory=_Reason)
    merged: _Reason = field(default_factory=_Reason)
    outvoted: _Reason = field(default_factory=_Reason)

    def __post_init__(self) -> None:
        check_segment_seconds(self.segment_seconds)

    def label(
        self,
        events: Sequence[LabelledSpan],
        duration: float,
        num_segments: int,
        video: str,
        rounding: float = ROUNDING_SECONDS,
    ) -> tuple[list, list[LabelledSpan]]:
        """Labels the segments of one video, and counts its events.

        Args:
            events (`Sequence[LabelledSpan]`): The annotated events.
            duration (`float`): Duration of the video in seconds.
            num_segments (`int`): Number of segments.
            video (`str`): The video, for messages.
            rounding (`float`): Events that end more than this after the video are clipped at its end.

        Returns:
            `(labels, events)`: class ids `(num_segments,)` or 0 and 1 `(num_segments, num_categories)`, as lists; and
            the events, clipped and joined, in the order of their start.
        """
        self.num_events += len(events)
        inside = []
        for event in events:
            if event.end > duration + rounding:
                self.clipped.add(self._describe(event, video), event.end - duration)
                event = event._replace(end=duration)
            inside.append(event)
        joined, absorbed = join_events(inside)
        for event in absorbed:
            self.merged.add(self._describe(event, video))
        classes = multi_label_segments(joined, num_segments, len(self.categories), self.segment_seconds)
        if self.problem_type == MULTI_LABEL:
            self._count_lost(joined, classes, None, video)
            return classes.tolist(), joined
        labels = label_segments(joined, num_segments, len(self.categories), self.segment_seconds)
        self._count_lost(joined, classes, labels, video)
        return labels, joined

    def _count_lost(
        self, events: Sequence[LabelledSpan], classes: np.ndarray, labels: list[int] | None, video: str
    ) -> None:
        """Counts events without a segment, and with one label per segment those that other classes outvote."""
        for event in events:
            first = max(0, int(event.start / self.segment_seconds))
            own = [
                segment
                for segment in range(first, len(classes))
                # A segment that the event merely touches at a rounded time is not one that it covers.
                if event.start < (segment + 1) * self.segment_seconds and segment * self.segment_seconds < event.end
                if classes[segment, event.label]
            ]
            if not own:
                self.uncovered.add(self._describe(event, video))
            lost = [segment for segment in own if labels is not None and labels[segment] != event.label]
            if lost:
                self.outvoted.add(self._describe(event, video), len(lost) * self.segment_seconds)

    def _describe(self, event: LabelledSpan, video: str) -> str:
        return f"{self.categories[event.label]!r} at {event.start:g} to {event.end:g} s in {video}"

    def report(self) -> list[str]:
        """Returns one sentence per reason that occurs, with numbers, the first event, and what to do."""
        lines = []
        if self.uncovered.count:
            shorter = self.segment_seconds / 2
            advice = (
                f"Use shorter segments: segment_seconds={shorter:g} (--segment_seconds {shorter:g})."
                if shorter >= SHORTEST_HINT_SECONDS
                else "They are only in `events`."
            )
            segment = f"segment of {self.segment_seconds:g} s"
            lines.append(
                f"{self._counted(self.uncovered)} do not cover half of any {segment} and are in no label. {advice}"
            )
        if self.clipped.count:
            lines.append(
                f"{self._counted(self.clipped)} end after their video, {self.clipped.seconds:.3g} s in all, and are "
                "clipped at its end. Check their times if that is more than rounding."
            )
        if self.merged.count:
            lines.append(
                f"{self._counted(self.merged)} overlap another event of their class and are joined with it. Annotate "
                "them as one event, or as two that do not overlap."
            )
        if self.outvoted.count:
            lines.append(
                f"{self._counted(self.outvoted)} lose {self.outvoted.seconds:g} s to events of other classes, because "
                'each segment has one label. Use problem_type="multi_label" (--problem_type multi_label) to keep them.'
            )
        return lines

    def _counted(self, reason: _Reason) -> str:
        return f"{reason.count} of {self.num_events} events (the first: {reason.first})"


def main_category(events: Sequence[LabelledSpan]) -> int | None:
    """Returns the class with the most seconds of events, `None` without an event."""
    seconds: defaultdict[int, float] = defaultdict(float)
    for event in events:
        seconds[event.label] += event.end - event.start
    return max(seconds, key=lambda label: (seconds[label], -label)) if seconds else None


def unknown_labels(num_segments: int, num_categories: int, problem_type: str) -> list:
    """Returns the labels of a video whose truth is withheld: -100 everywhere."""
    if problem_type == MULTI_LABEL:
        return [[IGNORED_LABEL] * num_categories for _ in range(num_segments)]
    return [IGNORED_LABEL] * num_segments


def class_flags(labels: Iterable[int], num_categories: int) -> list[int]:
    """Returns 0 or 1 for each event class: the weak label of a video with several events."""
    present = set(labels)
    return [int(label in present) for label in range(num_categories)]


def events_of_labels(labels: np.ndarray, segment_seconds: float = 1.0) -> list[TimedEvent]:
    """Returns the runs of each class as events, for data without annotated times; -100 separates runs.

    >>> events_of_labels(np.array([[1, 0], [1, 1], [0, 1]]))
    [(0, 0.0, 2.0), (1, 1.0, 3.0)]

    Args:
        labels (`np.ndarray` of shape `(T, C)`): 0, 1 or -100 per class.
        segment_seconds (`float`): Length of a segment.
    """
    runs = class_runs(labels == 1).tolist()
    return [(label, float(first * segment_seconds), float(end * segment_seconds)) for label, first, end in runs]


def one_hot_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns one label per segment as labels of several events: `(T,)` with background last to `(T, num_classes)`.

    >>> one_hot_labels(np.array([0, 2, -100]), num_classes=2).tolist()
    [[1, 0], [0, 0], [-100, -100]]
    """
    each = (labels[:, None] == np.arange(num_classes)).astype(np.int64)
    each[labels == IGNORED_LABEL] = IGNORED_LABEL
    return each
