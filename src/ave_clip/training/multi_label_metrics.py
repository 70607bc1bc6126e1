"""Measures of several events at once: of segments with any number of labels, and of events that may overlap.

Events are compared in seconds with the annotated times. Labels and predictions of segments are 0 or 1 per class; -100
marks what is unknown and is not counted. Background is not a class.

Definitions, over all videos:

- *Segment AP* of a class: its segments are sorted by probability; the sum over the different probabilities of the gain
  in recall times the precision there (not interpolated, equal probabilities together; as scikit-learn's
  `average_precision_score`). *Segment mAP* is the mean over the classes with true segments; the micro average treats
  all pairs of segment and class as one class.
- *Segment F1*: pairs of segment and class. The micro average sums hits, predicted and true ones over the classes; the
  macro average is the mean of the F1 of the classes with true segments. (`sed_eval`'s segment-based F1, Mesaros et al.
  2016, calls a segment active that an event touches; here events cover half of it.)
- *Event F1*: matches of events of one class by intersection over union (tIoU), one to one and as many as possible.
  Micro and macro as above.
- *Background recall*: the fraction of the segments without any event in which no class is predicted.
- *Collar F1*: as the event-based F1 of `sed_eval` (`EventBasedMetrics`) with the settings of DCASE: an event is a hit
  if its start is within 0.2 s of the true one, and its end within 0.2 s or 20 % of the true length, whichever is more.
  The matching is the largest possible, which `sed_eval` calls "optimal".
- *Event mAP*: the protocol of UnAV-100, see `average_precision`: the mean over tIoU 0.1 to 0.9 is `event_map_wide`.

PSDS (Bilen et al. 2020) is not computed: it needs events at many operating points; use the package `psds_eval` with
the events that `AVEClipProcessor.post_process_localization` returns at each threshold.

V videos, T segments, C classes, R resamples.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..core.categories import IGNORED_LABEL
from ..data.targets import TimedEvent
from .average_precision import BLOCK, EVENT_MAPS, TIOUS, AveragePrecision, mean_over_classes, reaches, temporal_overlap
from .bootstrap import bootstrap_draws, centered_interval
from .metrics import count_matches

ScoredEvent = tuple[int, float, float, float]
COLLAR_SECONDS, COLLAR_FRACTION = 0.2, 0.2
SHOWN_TIOUS = (0.5, 0.6, 0.7, 0.8, 0.9)  # those of UnAV-100's table, beside the mean over 0.1 to 0.9


def segment_average_precision(
    probabilities: Sequence[np.ndarray], labels: Sequence[np.ndarray], draws: np.ndarray | None = None
) -> np.ndarray:
    """Computes the average precision over segments of each class.

    Args:
        probabilities (`Sequence[np.ndarray]`): Array of shape `(T, C)` per video.
        labels (`Sequence[np.ndarray]`): 0, 1 or -100, array of shape `(T, C)` per video.
        draws (`np.ndarray` of shape `(R, V)`, *optional*): How often each video counts. Default: once.

    Returns:
        `np.ndarray` of shape `(R, C)`, with R = 1 without draws; `nan` for a class without true segments.
    """
    scores, true, videos = _stack(probabilities, labels)
    if draws is None:  # all segments as those of one video: the same result with less work
        draws, videos = np.ones((1, 1)), np.zeros_like(videos)
    columns = [_ranked_precision(scores[:, label], true[:, label], videos, draws) for label in range(scores.shape[1])]
    return np.stack(columns, axis=1)


def segment_map(probabilities: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> float:
    """Returns the mean over the classes with true segments of `segment_average_precision`; `nan` without any."""
    return float(mean_over_classes(segment_average_precision(probabilities, labels))[0])


def micro_segment_ap(probabilities: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> float:
    """Returns the average precision of all pairs of segment and class in one ranking."""
    scores, true, _ = _stack(probabilities, labels)
    videos = np.zeros(scores.size, dtype=int)
    return float(_ranked_precision(scores.ravel(), true.ravel(), videos, np.ones((1, 1)))[0])


def count_segments(active: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> np.ndarray:
    """Counts segments per video and class.

    Args:
        active (`Sequence[np.ndarray]`): Whether each class is predicted, array of shape `(T, C)` per video.
        labels (`Sequence[np.ndarray]`): 0, 1 or -100, array of shape `(T, C)` per video.

    Returns:
        `np.ndarray` of shape `(V, C, 3)`: hits, predicted and true segments.
    """
    counts = []
    for found, true in zip(active, labels, strict=True):
        is_found, is_true = found.astype(bool) & (true != IGNORED_LABEL), true == 1
        counts.append(np.stack([(is_found & is_true).sum(0), is_found.sum(0), is_true.sum(0)], axis=1))
    return np.array(counts)


def count_events(
    predicted: Sequence[Sequence[Sequence[float]]],
    true: Sequence[Sequence[TimedEvent]],
    num_classes: int,
    can_match: Callable[[Sequence[float], Sequence[float]], bool],
) -> np.ndarray:
    """Counts events per video and class, matched one to one and as many as possible.

    Args:
        predicted (`Sequence[Sequence[Sequence[float]]]`): By video, each event as `(label, start, end)`, with or
            without a score.
        true (`Sequence[Sequence[TimedEvent]]`): By video, each event as `(label, start, end)`.
        num_classes (`int`): Number of classes.
        can_match (`Callable`): Takes the `(start, end)` of a predicted and of a true event of one class.

    Returns:
        `np.ndarray` of shape `(V, C, 3)`: matched, predicted and true events.
    """
    counts = np.zeros((len(true), num_classes, 3), dtype=np.int64)
    for video, (found, known) in enumerate(zip(predicted, true, strict=True)):
        by_class: dict[int, tuple[list, list]] = {}
        for place, events in enumerate((found, known)):
            for event in events:
                by_class.setdefault(int(event[0]), ([], []))[place].append(event[1:3])
        for label, (spans, others) in by_class.items():
            partners = [[j for j, other in enumerate(others) if can_match(span, other)] for span in spans]
            counts[video, label] = count_matches(partners), len(spans), len(others)
    return counts


def background_recall(active: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> float:
    """Returns in how many of the segments without any event no class is predicted; `nan` without such a segment.

    Segments with an unknown label are left out. Arguments as in `count_segments`.
    """
    quiet = total = 0
    for found, true in zip(active, labels, strict=True):
        is_empty = (true == 0).all(axis=1)
        total += int(is_empty.sum())
        quiet += int((is_empty & ~found.any(axis=1)).sum())
    return quiet / total if total else float("nan")


def overlaps_by(tiou: float) -> Callable[[Sequence[float], Sequence[float]], bool]:
    """Returns the rule of `count_events` that two events match if their overlap reaches `tiou`."""
    return lambda span, other: reaches(temporal_overlap(span, other), tiou)


def within_collar(span: Sequence[float], other: Sequence[float]) -> bool:
    """The rule of `count_events` of the collar F1; `other` is the true event."""
    allowed = max(COLLAR_SECONDS, COLLAR_FRACTION * (other[1] - other[0]))
    # Times are multiples of a segment's length: rounding must not decide.
    return abs(span[0] - other[0]) <= COLLAR_SECONDS + 1e-9 and abs(span[1] - other[1]) <= allowed + 1e-9


def f1_measures(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Computes precision, recall and F1 (micro), the F1 of each class, and their mean (macro).

    Args:
        counts (`np.ndarray` of shape `(..., C, 3)`): Hits, predicted and true ones per class, summed over videos.

    Returns:
        `dict[str, np.ndarray]`: `precision`, `recall`, `f1` and `f1_macro` of the leading shape, and `f1_by_class`
        `(..., C)`; `nan` where undefined (0 / 0). A class without true ones is left out of the macro average.
    """
    hits, predicted, true = (counts[..., column].astype(np.float64) for column in range(3))
    by_class = _divide(2 * hits, predicted + true)
    return {
        "precision": _divide(hits.sum(-1), predicted.sum(-1)),
        "recall": _divide(hits.sum(-1), true.sum(-1)),
        "f1": _divide(2 * hits.sum(-1), predicted.sum(-1) + true.sum(-1)),
        "f1_macro": mean_over_classes(np.where(true > 0, by_class, np.nan), axis=-1),
        "f1_by_class": by_class,
    }


class MultiLabelMeasures:
    """The measures of this module on one set of videos.

    Args:
        labels (`Sequence[np.ndarray]`): 0, 1 or -100, array of shape `(T, C)` per video.
        events (`Sequence[Sequence[TimedEvent]]`): The true events of each video as `(label, start, end)` in seconds.
        names (`Sequence[str]`): Names of the classes.
        num_resamples (`int`): Bootstrap resamples of the videos; 0 leaves the intervals out.
        seed (`int`): Seed of the bootstrap.

    Raises:
        ValueError: if there is no video, or the labels and events do not fit together.
    """

    def __init__(
        self,
        labels: Sequence[np.ndarray],
        events: Sequence[Sequence[TimedEvent]],
        names: Sequence[str],
        num_resamples: int = 1000,
        seed: int = 0,
    ):
        self.labels, self.events, self.names = [np.asarray(video) for video in labels], list(events), list(names)
        if not self.labels:
            raise ValueError("There are no videos to measure: pass the predictions and labels of at least one.")
        if len(self.events) != len(self.labels):
            raise ValueError(f"Got labels of {len(self.labels)} videos but events of {len(self.events)}.")
        for index, video in enumerate(self.labels):
            if video.ndim != 2 or video.shape[1] != len(self.names):
                raise ValueError(
                    f"Video {index} has labels of shape {video.shape}, wanted (num_segments, {len(self.names)}): 0 or "
                    "1 for each class."
                )
        unknown = {event[0] for video in self.events for event in video} - set(range(len(self.names)))
        if unknown:
            raise ValueError(f"Events have the labels {sorted(unknown)}, but there are {len(self.names)} classes.")
        self._draws = bootstrap_draws(len(self.labels), num_resamples, seed) if num_resamples else None

    def ranked(
        self, probabilities: Sequence[np.ndarray], candidates: Sequence[Sequence[ScoredEvent]]
    ) -> dict[str, Any]:
        """Computes what depends on scores and not on a decoder: segment mAP and event mAP.

        Args:
            probabilities (`Sequence[np.ndarray]`): Array of shape `(T, C)` per video.
            candidates (`Sequence[Sequence[ScoredEvent]]`): By video, each event as `(label, start, end, score)`.

        Returns:
            `dict[str, Any]`: `segment_map`, `segment_map_micro`, `event_map` (mean over tIoU 0.5 to 0.9),
            `event_map_wide` (0.1 to 0.9), `event_map_at_0.5` to `event_map_at_0.9`, `event_map_by_tiou`, `intervals`
            (with resamples) and `classes`, a list of `segment_ap`, `event_ap` (tIoU 0.1 to 0.9) and `event_ap_at_0.5`.
        """
        segment_ap = segment_average_precision(probabilities, self.labels)
        events = AveragePrecision(candidates, self.events, range(len(self.names)))
        by_class = events.by_class()  # (1, C, K)
        by_tiou = dict(zip(TIOUS, mean_over_classes(by_class)[0].tolist()))
        measures: dict[str, Any] = {
            "segment_map": float(mean_over_classes(segment_ap)[0]),
            "segment_map_micro": micro_segment_ap(probabilities, self.labels),
            **{name: float(values[0]) for name, values in events.means().items()},
            **{f"event_map_at_{tiou}": by_tiou[tiou] for tiou in SHOWN_TIOUS},
            "event_map_by_tiou": {str(tiou): value for tiou, value in by_tiou.items()},
            "classes": [
                {
                    "segment_ap": float(of_segments),
                    "event_ap": float(of_events.mean()),
                    "event_ap_at_0.5": float(of_events[TIOUS.index(0.5)]),
                }
                for of_segments, of_events in zip(segment_ap[0], by_class[0])
            ],
        }
        if self._draws is not None:
            resampled = mean_over_classes(events.by_class(self._draws))  # (R, K)
            values = {name: resampled[:, part].mean(axis=1) for name, part in EVENT_MAPS.items()}
            values |= {f"event_map_at_{tiou}": resampled[:, TIOUS.index(tiou)] for tiou in SHOWN_TIOUS}
            in_segments = segment_average_precision(probabilities, self.labels, self._draws)
            values["segment_map"] = mean_over_classes(in_segments)
            measures["intervals"] = {name: centered_interval(found, measures[name]) for name, found in values.items()}
        return measures

    def decoded(self, active: Sequence[np.ndarray], events: Sequence[Sequence[Sequence[float]]]) -> dict[str, Any]:
        """Computes what depends on decoded labels and events: F1 of segments and events.

        Args:
            active (`Sequence[np.ndarray]`): Whether each class is predicted, array of shape `(T, C)` per video.
            events (`Sequence[Sequence[Sequence[float]]]`): By video, each event as `(label, start, end)`, with or
                without a score.

        Returns:
            `dict[str, Any]`: precision, recall, `f1` and `f1_macro` of segments (`segment_f1`, ...), of events at tIoU
            0.5 (`event_f1`, ...) and with a collar (`collar_f1`, ...); `event_f1_by_tiou` and
            `event_f1_macro_by_tiou`; `intervals` (with resamples); `classes`, a list of `segment_f1`, `event_f1`,
            `collar_f1`, `num_segments` and `num_events` (true ones); `background_recall`; `num_videos`, and
            `num_segments` (with a known label).
        """
        at = {tiou: count_events(events, self.events, len(self.names), overlaps_by(tiou)) for tiou in TIOUS}
        counts = {
            "segment": count_segments(active, self.labels),
            "event": at[0.5],
            "collar": count_events(events, self.events, len(self.names), within_collar),
        }
        measures: dict[str, Any] = {}
        intervals: dict[str, Any] = {}
        classes: list[dict[str, Any]] = [{} for _ in self.names]
        for kind, each in counts.items():
            found = f1_measures(each.sum(axis=0))
            for row, value, true in zip(classes, found.pop("f1_by_class"), each.sum(axis=0)[:, 2]):
                row |= {f"{kind}_f1": float(value)} | ({} if kind == "collar" else {f"num_{kind}s": int(true)})
            measures |= {f"{kind}_{name}": float(value) for name, value in found.items()}
            if self._draws is not None:
                drawn = f1_measures(np.einsum("rv,vck->rck", self._draws, each.astype(np.float64), optimize=True))
                intervals |= {f"{kind}_{name}": centered_interval(drawn[name], float(found[name])) for name in found}
        by_tiou = {str(tiou): f1_measures(each.sum(axis=0)) for tiou, each in at.items()}
        measures |= {
            "event_f1_by_tiou": {tiou: float(found["f1"]) for tiou, found in by_tiou.items()},
            "event_f1_macro_by_tiou": {tiou: float(found["f1_macro"]) for tiou, found in by_tiou.items()},
            "background_recall": background_recall(active, self.labels),
            "num_videos": len(self.labels),
            "num_segments": int(sum((video != IGNORED_LABEL).any(axis=1).sum() for video in self.labels)),
            "classes": classes,
        }
        return measures | ({"intervals": intervals} if self._draws is not None else {})

    def join(self, ranked: dict[str, Any], decoded: dict[str, Any]) -> dict[str, Any]:
        """Joins the results of both methods; each entry of `classes` gets its `label`."""
        joined = {**decoded, **ranked, "baselines": self.baselines()}
        if self._draws is not None:
            joined["intervals"] = {**decoded["intervals"], **ranked["intervals"]}
        joined["classes"] = [
            {"label": name, **of_decoder, **of_scores}
            for name, of_decoder, of_scores in zip(self.names, decoded["classes"], ranked["classes"])
        ]
        return joined

    def baselines(self) -> dict[str, float]:
        """Returns the segment mAP of equal scores, and the segment F1 of all classes everywhere."""
        everywhere = f1_measures(count_segments([np.ones_like(video) for video in self.labels], self.labels).sum(0))
        equal = segment_map([np.zeros(video.shape) for video in self.labels], self.labels)
        return {"equal_scores": equal, "all_classes": float(everywhere["f1"])}


def _stack(
    probabilities: Sequence[np.ndarray], labels: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns scores and labels `(N, C)` of all segments, and their videos `(N,)`."""
    for index, (scores, true) in enumerate(zip(probabilities, labels, strict=True)):
        if scores.shape != true.shape or true.ndim != 2:
            raise ValueError(
                f"Video {index} has probabilities of shape {scores.shape} and labels of shape {true.shape}: both must "
                "be (num_segments, num_classes), without background."
            )
        if not np.isfinite(scores).all():
            raise ValueError(f"Video {index} has probabilities that are not finite, so they cannot be ranked.")
    videos = np.repeat(np.arange(len(labels)), [len(video) for video in labels])
    return np.concatenate(list(probabilities)), np.concatenate(list(labels)), videos


def _ranked_precision(scores: np.ndarray, true: np.ndarray, videos: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Returns the average precision `(R,)` of segments `(N,)` of which each video's count as often as in `draws`."""
    known = true != IGNORED_LABEL
    scores, true, videos = scores[known], true[known] == 1, videos[known]
    levels = -np.unique(-scores[true])  # the K different scores of true segments, highest first
    if not len(levels):
        return np.full(len(draws), np.nan)
    place = np.searchsorted(-levels, -scores)  # the first level that a segment reaches
    shape, num_videos = (draws.shape[1], len(levels)), draws.shape[1]
    is_seen = place < len(levels)  # the others are ranked below all true segments
    index = videos * len(levels) + place
    seen = np.bincount(index[is_seen], minlength=num_videos * len(levels)).reshape(shape)
    gains = np.bincount(index[true], minlength=num_videos * len(levels)).reshape(shape)
    result = np.empty(len(draws))
    step = max(1, BLOCK // len(levels))
    for first in range(0, len(draws), step):
        part = slice(first, first + step)
        gained = draws[part] @ gains.astype(np.float64)  # (R, K)
        hits, ranked = np.cumsum(gained, axis=1), np.cumsum(draws[part] @ seen.astype(np.float64), axis=1)
        result[part] = _divide((gained * _divide(hits, ranked, empty=0.0)).sum(axis=1), hits[:, -1])
    return result


def _divide(part: np.ndarray, whole: np.ndarray, empty: float = np.nan) -> np.ndarray:
    """Returns part / whole, and `empty` where `whole` is 0."""
    parts, wholes = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(parts, wholes, out=np.full(wholes.shape, empty), where=wholes > 0)
