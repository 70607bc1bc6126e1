"""Mean average precision of scored events over temporal overlap, as ActivityNet defines it and UnAV-100 uses it.

For each class, the predicted events of all videos stand in one list by falling score (ties: as given). Going down the
list, an event is a hit when a true event of its class in its video that no earlier one has taken overlaps it by at
least the threshold (tIoU); it takes the one that overlaps most. Precision at each recall is the highest that this or
any larger recall has, and its area over recall is the average precision. The mean goes over the classes that have
true events.

One difference: an overlap within 1e-9 of the threshold reaches it, so that 3 of 5 segments count at 0.6 whatever the
rounding.

V videos, C classes, K thresholds, R resamples, N predicted events of a class.
"""

from collections.abc import Sequence

import numpy as np

TIOUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# The means over thresholds: 0.5 to 0.9 and, as UnAV-100's "average mAP", 0.1 to 0.9.
EVENT_MAPS = {"event_map": slice(4, 9), "event_map_wide": slice(0, 9)}
_TOLERANCE = 1e-9


def temporal_overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two spans `(start, end)`; 0 where they do not meet."""
    intersection = min(first[1], second[1]) - max(first[0], second[0])
    return max(0.0, intersection) / (max(first[1], second[1]) - min(first[0], second[0])) if intersection > 0 else 0.0


def reaches(overlap: float, tiou: float) -> bool:
    """Whether an overlap counts at a threshold."""
    return overlap > 0 and overlap >= tiou - _TOLERANCE


class AveragePrecision:
    """The ranked hits of every class, from which average precision follows for all videos or for resamples of them.

    Args:
        predicted (`Sequence[Sequence[tuple[int, float, float, float]]]`): Of each video `(label, start, end, score)`.
        true (`Sequence[Sequence[tuple[int, float, float]]]`): Of each video `(label, start, end)`, in the same unit.
        classes (`Sequence[int]`): Class ids to measure.
        tious (`Sequence[float]`): Thresholds of overlap.

    Raises:
        ValueError: where the numbers of videos differ, or a score is not finite.
    """

    def __init__(
        self,
        predicted: Sequence[Sequence[tuple[int, float, float, float]]],
        true: Sequence[Sequence[tuple[int, float, float]]],
        classes: Sequence[int],
        tious: Sequence[float] = TIOUS,
    ):
        if len(predicted) != len(true):
            raise ValueError(f"Got predicted events of {len(predicted)} videos, true ones of {len(true)}.")
        self.classes, self.tious, self.num_videos = list(classes), tuple(tious), len(true)
        self._true = np.zeros((len(true), len(self.classes)))  # (V, C) number of true events
        self._videos: list[np.ndarray] = []  # of each class (N,): where its predicted events are, best first
        self._hits: list[np.ndarray] = []  # of each class (K, N)
        for place, label in enumerate(self.classes):
            spans = [[event[1:] for event in video if event[0] == label] for video in true]
            self._true[:, place] = [len(video) for video in spans]
            ranked = _rank(predicted, label)
            self._videos.append(np.array([video for video, _ in ranked], dtype=int))
            self._hits.append(np.array([_match(ranked, spans, tiou) for tiou in self.tious], dtype=bool))

    def by_class(self, draws: np.ndarray | None = None) -> np.ndarray:
        """Average precision of each class at each threshold.

        Args:
            draws (`np.ndarray` of shape `(R, V)`, *optional*): How often each video counts; once by default.

        Returns:
            `np.ndarray` of shape `(R, C, K)`, R being 1 without draws; `nan` for a class without true events.
        """
        draws = np.ones((1, self.num_videos)) if draws is None else draws
        totals = draws @ self._true  # (R, C)
        precision = np.full((*totals.shape, len(self.tious)), np.nan)
        for place, (videos, hits) in enumerate(zip(self._videos, self._hits)):
            weights = draws[:, videos]  # (R, N)
            for threshold, is_hit in enumerate(hits):
                precision[:, place, threshold] = _area(weights, is_hit, totals[:, place])
        return precision

    def means(self, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Mean average precision over the classes with true events and the thresholds of `EVENT_MAPS`.

        Args:
            draws (`np.ndarray` of shape `(R, V)`, *optional*): As in `by_class`.

        Returns:
            `dict[str, np.ndarray]`: by name, of shape `(R,)`; `nan` without any true event.
        """
        by_tiou = mean_over_classes(self.by_class(draws))  # (R, K)
        return {name: by_tiou[:, thresholds].mean(axis=1) for name, thresholds in EVENT_MAPS.items()}


def mean_over_classes(precision: np.ndarray) -> np.ndarray:
    """Mean over the classes that are not `nan`, `(R, C, K)` to `(R, K)`; `nan` where all are."""
    is_there = ~np.isnan(precision)
    count = is_there.sum(axis=1)
    total = np.where(is_there, precision, 0.0).sum(axis=1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _rank(
    predicted: Sequence[Sequence[tuple[int, float, float, float]]], label: int
) -> list[tuple[int, tuple[float, float]]]:
    """Video and span of each predicted event of a class, best first."""
    events = [
        (score, video, (start, end))
        for video, members in enumerate(predicted)
        for found, start, end, score in members
        if found == label
    ]
    for score, video, span in events:
        if not np.isfinite(score):
            raise ValueError(
                f"Video {video} has an event {span} of class {label} with score {score}: wanted a number."
            )
    return [(video, span) for _, video, span in sorted(events, key=lambda event: -event[0])]


def _match(
    ranked: Sequence[tuple[int, tuple[float, float]]], spans: Sequence[Sequence[tuple[float, float]]], tiou: float
) -> list[bool]:
    """Which ranked events are hits at one threshold."""
    taken: set[tuple[int, int]] = set()
    hits = []
    for video, span in ranked:
        overlaps = [temporal_overlap(span, other) for other in spans[video]]
        free = [
            place for place, overlap in enumerate(overlaps) if reaches(overlap, tiou) and (video, place) not in taken
        ]
        hits.append(bool(free))
        if free:
            taken.add((video, max(free, key=overlaps.__getitem__)))
    return hits


def _area(weights: np.ndarray, is_hit: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Area under the interpolated precision, `(R,)`, of ranked events with weights `(R, N)` and hits `(N,)`."""
    hits, seen = np.cumsum(weights * is_hit, axis=1), np.cumsum(weights, axis=1)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    gained = np.diff(hits, prepend=0.0, axis=1)  # true events found at each rank
    area = (gained * envelope).sum(axis=1)
    return np.divide(area, totals, out=np.full(len(totals), np.nan), where=totals > 0)
