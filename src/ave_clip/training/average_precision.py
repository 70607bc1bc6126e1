"""Mean average precision of scored events over temporal overlap, as ActivityNet defines it and UnAV-100 uses it.

For each class, the predicted events of all videos are sorted by score, highest first (ties keep their order). In this
order, an event is a hit if it overlaps a true event of its class and video by at least the threshold (tIoU) that no
earlier event has matched; it is matched with the one that overlaps most (of equal ones with the first). Precision at
each recall is the highest precision at this or any larger recall, and its area over recall is the average precision.
The mean is taken over the classes that have true events.

Source: `ANETdetection` in ActionFormer's `libs/utils/metrics.py` (happyharrycn/actionformer_release), after
ActivityNet's `eval_detection.py`, which UnAV's `eval.py` (ttgeng233/UnAV) runs at tIoU 0.1 to 0.9.

One difference: an overlap within 1e-9 of the threshold counts, so that 3 of 5 segments reach 0.6 despite rounding.

V videos, C classes, K thresholds, R resamples, N predicted events of a class.
"""

from collections.abc import Mapping, Sequence

import numpy as np

TIOUS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# Which thresholds are averaged: 0.5 to 0.9 and, as in UnAV-100's "average mAP", 0.1 to 0.9.
EVENT_MAPS = {"event_map": slice(4, 9), "event_map_wide": slice(0, 9)}
_TOLERANCE = 1e-9
BLOCK = 2**22  # numbers per array of resamples, to bound the memory


def temporal_overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two spans `(start, end)`; 0 if they do not overlap."""
    intersection = min(first[1], second[1]) - max(first[0], second[0])
    return max(0.0, intersection) / (max(first[1], second[1]) - min(first[0], second[0])) if intersection > 0 else 0.0


def reaches(overlap: float, tiou: float) -> bool:
    """Whether an overlap reaches a threshold."""
    return overlap > 0 and overlap >= tiou - _TOLERANCE


class AveragePrecision:
    """Ranks and matches the events of each class once, and computes average precision for any resample of the videos.

    Args:
        predicted (`Sequence[Sequence[tuple[int, float, float, float]]]`): By video, each
            event as `(label, start, end, score)`.
        true (`Sequence[Sequence[tuple[int, float, float]]]`): By video, each event as
            `(label, start, end)`, in the same unit.
        classes (`Sequence[int]`): Class ids to measure.
        tious (`Sequence[float]`): Overlap thresholds.

    Raises:
        ValueError: if the numbers of videos differ, or a score is not finite.
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
        places = {label: place for place, label in enumerate(self.classes)}
        self._true = np.zeros((len(true), len(self.classes)))  # (V, C) number of true events
        self._videos: list[np.ndarray] = []  # per class (N,): videos of its predicted events, best first
        self._hits: list[np.ndarray] = []  # per class (K, N)
        spans: list[dict[int, list[tuple[float, float]]]] = [{} for _ in self.classes]  # per class by video
        for video, events in enumerate(true):
            for label, start, end in events:
                if label in places:
                    self._true[video, places[label]] += 1
                    spans[places[label]].setdefault(video, []).append((start, end))
        for ranked, known in zip(_rank(predicted, places), spans):
            self._videos.append(np.array([video for _, video, _ in ranked], dtype=int))
            self._hits.append(_match(ranked, known, self.tious))

    def by_class(self, draws: np.ndarray | None = None) -> np.ndarray:
        """Computes the average precision of each class at each threshold.

        Args:
            draws (`np.ndarray` of shape `(R, V)`, *optional*): How often each video counts. Default: once.

        Returns:
            `np.ndarray` of shape `(R, C, K)`, with R = 1 without draws; `nan` for a class without true events.
        """
        draws = np.ones((1, self.num_videos)) if draws is None else draws
        totals = draws @ self._true  # (R, C)
        precision = np.full((*totals.shape, len(self.tious)), np.nan)
        for place, (videos, hits) in enumerate(zip(self._videos, self._hits)):
            step = max(1, BLOCK // max(1, len(videos)))
            for first in range(0, len(draws), step):
                part = slice(first, first + step)
                weights = draws[part, videos]  # (R, N)
                seen = np.cumsum(weights, axis=1)
                for threshold, is_hit in enumerate(hits):
                    # Precision falls between hits, so its values at hits are enough.
                    area = _area(weights[:, is_hit], seen[:, is_hit], totals[part, place])
                    precision[part, place, threshold] = area
        return precision

    def means(self, draws: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Computes the mean over the classes with true events and over the thresholds of `EVENT_MAPS`.

        Args:
            draws (`np.ndarray` of shape `(R, V)`, *optional*): As in `by_class`.

        Returns:
            `dict[str, np.ndarray]`: arrays of shape `(R,)` by name; `nan` without any true event.
        """
        by_tiou = mean_over_classes(self.by_class(draws))  # (R, K)
        return {name: by_tiou[:, thresholds].mean(axis=1) for name, thresholds in EVENT_MAPS.items()}


def mean_over_classes(values: np.ndarray, axis: int = 1) -> np.ndarray:
    """Returns the mean over the axis of classes without `nan`, such as `(R, C, K)` to `(R, K)`; `nan` if all are."""
    is_there = ~np.isnan(values)
    count = is_there.sum(axis=axis)
    total = np.where(is_there, values, 0.0).sum(axis=axis)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _rank(
    predicted: Sequence[Sequence[tuple[int, float, float, float]]], places: Mapping[int, int]
) -> list[list[tuple[float, int, tuple[float, float]]]]:
    """Returns score, video and span of the predicted events of each class, best first."""
    ranked: list[list[tuple[float, int, tuple[float, float]]]] = [[] for _ in places]
    for video, events in enumerate(predicted):
        for label, start, end, score in events:
            if label not in places:
                continue
            if not np.isfinite(score):
                raise ValueError(
                    f"Video {video} has an event {(start, end)} of class {label} with score {score}: scores must be "
                    "finite."
                )
            ranked[places[label]].append((score, video, (start, end)))
    return [sorted(events, key=lambda event: -event[0]) for events in ranked]


def _match(
    ranked: Sequence[tuple[float, int, tuple[float, float]]],
    spans: Mapping[int, Sequence[tuple[float, float]]],
    tious: Sequence[float],
) -> np.ndarray:
    """Returns whether each ranked event is a hit at each threshold, `(K, N)`; `spans` are the true ones by video."""
    hits = np.zeros((len(tious), len(ranked)), dtype=bool)
    taken: list[set[tuple[int, int]]] = [set() for _ in tious]  # (video, index of its true event)
    for rank, (_, video, span) in enumerate(ranked):
        overlaps = [temporal_overlap(span, other) for other in spans.get(video, ())]
        order = sorted(range(len(overlaps)), key=lambda place: -overlaps[place])  # of equal ones the first
        for threshold, tiou in enumerate(tious):
            for place in order:
                if not reaches(overlaps[place], tiou):
                    break
                if (video, place) not in taken[threshold]:
                    taken[threshold].add((video, place))
                    hits[threshold, rank] = True
                    break
    return hits


def _area(weights: np.ndarray, seen: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Returns the area `(R,)` under the interpolated precision.

    `weights` `(R, H)` are those of the hits, best first, and `seen` the summed weights of all events up to each hit.
    """
    hits = np.cumsum(weights, axis=1)
    precision = np.divide(hits, seen, out=np.zeros_like(hits), where=seen > 0)
    # From the right: each recall gets the highest precision of any larger one.
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    area = (weights * envelope).sum(axis=1)
    return np.divide(area, totals, out=np.full(len(totals), np.nan), where=totals > 0)
