"""Measures of audio-visual video parsing (AVVP): events that are heard, seen, or both, several at once.

The definitions are those of the LLP benchmark (Tian et al. 2020; `utils/eval_metrics.py` of YapengTian/AVVP-ECCV20):

- For each video and class, F1 = 2 TP / (2 TP + FP + FN). The F1 of a video is the mean over the classes that occur in
  its truth or prediction, and 1 if none does. The result is the mean over the videos.
- Segment level: the segments of a class. Event level: runs of segments; a predicted event is a TP if its intersection
  over union with any true event of the class reaches 0.5, and a true event without such a prediction is a FN. The
  matching is not one to one.
- `audio`, `visual` and `audio_visual` are the F1 of heard, seen, and both. *Type@AV* is their mean. *Event@AV* sums
  the counts of heard and seen events before F1 is computed.

T segments, C classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.events import BOTH, HEARD, SEEN
from ..data.targets import events_of_labels
from .average_precision import reaches, temporal_overlap
from .bootstrap import bootstrap_draws, percentile_interval

KINDS = {HEARD: "audio", SEEN: "visual", BOTH: "audio_visual"}
TIOU = 0.5


def parsing_metrics(
    predicted: Sequence[Mapping[str, np.ndarray]],
    true: Sequence[Mapping[str, np.ndarray]],
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, object]:
    """Computes F1 of audio, visual and audio-visual events, Type@AV and Event@AV of segments and of events.

    Args:
        predicted (`Sequence[Mapping[str, np.ndarray]]`): For each video, arrays of 0 and 1 of shape `(T, C)` under
            `"heard"` and `"seen"`, and `"both"` if the model tells; without it, what is heard and seen.
        true (`Sequence[Mapping[str, np.ndarray]]`): The truth in the same form.
        num_resamples (`int`): Bootstrap resamples of the videos; 0 leaves the intervals out.
        seed (`int`): Seed of the bootstrap.

    Returns:
        `dict[str, object]`: `segment_audio`, `segment_visual`, `segment_audio_visual`, `segment_type_at_av`,
        `segment_event_at_av`, the same with `event_`, `num_videos` and, with resamples, `intervals` (95 %).

    Raises:
        ValueError: if there is no video, or shapes differ.
    """
    if not len(true) or len(predicted) != len(true):
        raise ValueError(f"Got predictions of {len(predicted)} videos and labels of {len(true)}: pass one of each.")
    videos = [_measure_video(index, *pair) for index, pair in enumerate(zip(predicted, true))]
    values = {name: np.array([video[name] for video in videos]) for name in videos[0]}
    metrics: dict[str, object] = {name: float(found.mean()) for name, found in values.items()}
    metrics["num_videos"] = len(videos)
    if num_resamples:
        draws = bootstrap_draws(len(videos), num_resamples, seed)
        means = {name: draws @ found / len(videos) for name, found in values.items()}
        metrics["intervals"] = {name: percentile_interval(found) for name, found in means.items()}
    return metrics


def _measure_video(
    index: int, predicted: Mapping[str, np.ndarray], true: Mapping[str, np.ndarray]
) -> dict[str, float]:
    found, known = _all_kinds(index, predicted), _all_kinds(index, true)
    measures = {}
    for level, count in (("segment", _count_segments), ("event", _count_events)):
        counts = {}
        for kind, name in KINDS.items():
            if found[kind].shape != known[kind].shape:
                raise ValueError(
                    f"Video {index} has predictions ({kind}) of shape {found[kind].shape} and labels of shape "
                    f"{known[kind].shape}: both must be (num_segments, num_classes)."
                )
            counts[kind] = count(found[kind], known[kind])
            measures[f"{level}_{name}"] = _mean_f1(counts[kind])
        measures[f"{level}_type_at_av"] = float(np.mean([measures[f"{level}_{name}"] for name in KINDS.values()]))
        measures[f"{level}_event_at_av"] = _mean_f1(counts[HEARD] + counts[SEEN])
    return measures


def _all_kinds(index: int, video: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    missing = [kind for kind in (HEARD, SEEN) if kind not in video]
    if missing:
        raise ValueError(f"Video {index} has no {missing[0]!r} events, only {list(video)}: pass both kinds.")
    kinds = {kind: np.asarray(video[kind]) == 1 for kind in KINDS if kind in video}
    return {BOTH: kinds[HEARD] & kinds[SEEN], **kinds}


def _count_segments(found: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns TP, FP and FN of each class, `(3, C)`."""
    return np.stack([(found & known).sum(0), (found & ~known).sum(0), (~found & known).sum(0)])


def _count_events(found: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Returns TP, FP and FN of each class, `(3, C)`, as the benchmark counts them."""
    counts = np.zeros((3, known.shape[1]), dtype=np.int64)
    predicted, true = events_of_labels(found), events_of_labels(known)
    for event in predicted:
        counts[0 if _has_match(event, true) else 1, event[0]] += 1
    for event in true:
        counts[2, event[0]] += not _has_match(event, predicted)
    return counts


def _has_match(event: tuple[int, float, float], others: Sequence[tuple[int, float, float]]) -> bool:
    return any(other[0] == event[0] and reaches(temporal_overlap(event[1:], other[1:]), TIOU) for other in others)


def _mean_f1(counts: np.ndarray) -> float:
    hits, false, missed = counts
    occurs = hits + false + missed > 0
    if not occurs.any():
        return 1.0  # nothing is there and nothing was predicted
    return float((2 * hits[occurs] / (2 * hits + false + missed)[occurs]).mean())
