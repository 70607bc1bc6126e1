"""How well per-second labels match the truth: the one segment accuracy of this project, and its neighbours.

Every function takes the videos apart (a sequence of label arrays, one per video, of any lengths) and never averages
over batches, so the numbers do not depend on how videos were grouped. Segments whose true label is -100 count nowhere.
`background` is the class id that means "no event"; every other id is an event class.

Definitions:

- *Segment accuracy*: right segments divided by all segments, over all videos together (the peers' measure).
- *Background recall / precision*: of the true (predicted) background segments, the share predicted (truly) so.
- *Segment F1*: an event segment is a hit when its label is right; precision over the predicted event segments, recall
  over the true ones, all videos together.
- *Event F1*: an event is a run of one label. A predicted and a true event of the same label can match when the length
  of their intersection divided by that of their union (tIoU) reaches the threshold; matches are one to one and as
  many as possible; hits, predicted and true events are summed over all videos.
- *Event mAP*: see `average_precision`; needs the probabilities, since events are ranked by score.
- *Video accuracy*: of the videos that hold an event, the share whose most frequent predicted event label is the most
  frequent true one. Ties go to the label seen first; a video predicted as nothing but background is wrong.

Where others measure otherwise:

- OV-AVEL and AVVP compute segment and event F1 class by class within one video, background being a class of OV-AVEL's,
  average over the classes that occur in truth or prediction, then over videos. So a video counts the same whatever it
  holds, and an all-background video that is predicted so counts 1. Ours sums over all videos and leaves background
  out. Which events match is the same at tIoU 0.5; below, theirs lets several events match one.
- DG-SCT averages the accuracies of batches, so that a last batch of two videos counts as much as one of eight.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..data.annotations import IGNORED_LABEL
from ..events import group_segments
from .average_precision import EVENT_MAPS, AveragePrecision, mean_over_classes, reaches, temporal_overlap
from .bootstrap import bootstrap_draws, percentile_interval

# What is counted in each video; every pooled measure is a ratio of sums of these.
COUNT_NAMES = (
    "segments",
    "right",
    "true_background",
    "predicted_background",
    "right_background",
    "matched_events",
    "predicted_events",
    "true_events",
    "event_videos",
    "right_event_videos",
)


def segment_accuracy(predictions: Iterable[Sequence[int]], labels: Iterable[Sequence[int]]) -> float:
    """Right segments divided by all segments, over all videos together.

    Args:
        predictions (`Iterable[Sequence[int]]`): Predicted class ids of every video's segments.
        labels (`Iterable[Sequence[int]]`): True class ids, of the same lengths; -100 leaves a segment out.

    Returns:
        `float`: the share in [0, 1]; `nan` where no segment counts.

    Raises:
        ValueError: where the two do not hold the same number of videos or of segments.
    """
    pairs = _check_pairs(predictions, labels)
    right = sum(int(((predicted == true) & (true != IGNORED_LABEL)).sum()) for predicted, true in pairs)
    return _ratio(right, sum(int((true != IGNORED_LABEL).sum()) for _, true in pairs))


def confusion_matrix(
    predictions: Iterable[Sequence[int]], labels: Iterable[Sequence[int]], num_labels: int
) -> np.ndarray:
    """Count segments by true class (row) and predicted class (column).

    Args:
        predictions (`Iterable[Sequence[int]]`): Predicted class ids of every video's segments.
        labels (`Iterable[Sequence[int]]`): True class ids, of the same lengths; -100 leaves a segment out.
        num_labels (`int`): Number of classes, background included.

    Returns:
        `np.ndarray` of shape `(num_labels, num_labels)`, int64.

    Raises:
        ValueError: where an id lies outside `[0, num_labels)`, or the lengths differ.
    """
    matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
    for predicted, true in _check_pairs(predictions, labels, num_labels):
        kept = true != IGNORED_LABEL
        np.add.at(matrix, (true[kept], predicted[kept]), 1)
    return matrix


def event_spans(labels: Sequence[int], background: int) -> list[tuple[int, int, int]]:
    """List the events of one video as `(label, first, end)` in segments, `end` exclusive.

    An ignored segment (-100) belongs to no event and parts the runs beside it.

    >>> event_spans([9, 3, 3, 9, 3, 5], background=9)
    [(3, 1, 3), (3, 4, 5), (5, 5, 6)]
    """
    runs = group_segments([int(label) for label in labels], background)
    return [run for run in runs if run[0] != IGNORED_LABEL]


def count_event_matches(
    predicted: Sequence[tuple[int, float, float]], true: Sequence[tuple[int, float, float]], tiou: float = 0.5
) -> int:
    """Count the most pairs of a predicted and a true event that can be matched one to one.

    Args:
        predicted (`Sequence[tuple[int, float, float]]`): Events as `(label, start, end)`.
        true (`Sequence[tuple[int, float, float]]`): Events as `(label, start, end)`, in the same unit.
        tiou (`float`): Smallest intersection over union, in (0, 1], of a pair of the same label that may match.

    Returns:
        `int`: the size of the maximum matching.
    """
    partners = [[j for j, other in enumerate(true) if _can_match(event, other, tiou)] for event in predicted]
    matched: dict[int, int] = {}  # true event -> predicted event

    def find_partner(event: int, seen: set[int]) -> bool:
        for candidate in partners[event]:
            if candidate not in seen:
                seen.add(candidate)
                if candidate not in matched or find_partner(matched[candidate], seen):
                    matched[candidate] = event
                    return True
        return False

    return sum(find_partner(event, set()) for event in range(len(predicted)))


def count_per_video(
    predictions: Iterable[Sequence[int]], labels: Iterable[Sequence[int]], background: int, tiou: float = 0.5
) -> np.ndarray:
    """Count in each video what the pooled measures are made of.

    Args:
        predictions (`Iterable[Sequence[int]]`): Predicted class ids of every video's segments.
        labels (`Iterable[Sequence[int]]`): True class ids, of the same lengths; -100 leaves a segment out.
        background (`int`): Class id of background.
        tiou (`float`): Smallest intersection over union at which two events match.

    Returns:
        `np.ndarray` of shape `(num_videos, len(COUNT_NAMES))`, int64, columns in the order of `COUNT_NAMES`.

    Raises:
        ValueError: where the lengths differ.
    """
    rows = [_count_video(*pair, background, tiou) for pair in _check_pairs(predictions, labels)]
    return np.asarray(rows, dtype=np.int64).reshape(-1, len(COUNT_NAMES))


def pooled_measures(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Turn summed counts into the measures of segments, background, events and videos.

    Args:
        counts (`np.ndarray` of shape `(..., len(COUNT_NAMES))`): Sums over videos.

    Returns:
        `dict[str, np.ndarray]`: each of the leading shape; `nan` where a measure is undefined (0 / 0).
    """
    count = {name: counts[..., index] for index, name in enumerate(COUNT_NAMES)}
    right_events = count["right"] - count["right_background"]
    predicted_segments = count["segments"] - count["predicted_background"]
    true_segments = count["segments"] - count["true_background"]
    return {
        "segment_accuracy": _ratio(count["right"], count["segments"]),
        "background_recall": _ratio(count["right_background"], count["true_background"]),
        "background_precision": _ratio(count["right_background"], count["predicted_background"]),
        "segment_precision": _ratio(right_events, predicted_segments),
        "segment_recall": _ratio(right_events, true_segments),
        "segment_f1": _ratio(2 * right_events, predicted_segments + true_segments),
        "event_precision": _ratio(count["matched_events"], count["predicted_events"]),
        "event_recall": _ratio(count["matched_events"], count["true_events"]),
        "event_f1": _ratio(2 * count["matched_events"], count["predicted_events"] + count["true_events"]),
        "video_accuracy": _ratio(count["right_event_videos"], count["event_videos"]),
    }


def bootstrap_intervals(
    counts: np.ndarray, num_resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap over videos: how far each pooled measure may move with another draw of videos.

    Args:
        counts (`np.ndarray` of shape `(num_videos, len(COUNT_NAMES))`): From `count_per_video`.
        num_resamples (`int`): Number of resamples of all videos, with replacement.
        confidence (`float`): Share of the resamples that the interval holds.
        seed (`int`): Seed of the resampling.

    Returns:
        `dict[str, tuple[float, float]]`: lower and upper end by measure.
    """
    measures = pooled_measures(bootstrap_draws(len(counts), num_resamples, seed) @ counts)  # (num_resamples,) each
    return {name: percentile_interval(values, confidence) for name, values in measures.items()}


def video_accuracy(predictions: Iterable[Sequence[int]], labels: Iterable[Sequence[int]], background: int) -> float:
    """Share of the videos with an event whose main predicted event label is the true one; `nan` without any."""
    counts = count_per_video(predictions, labels, background)
    return float(pooled_measures(counts.sum(axis=0))["video_accuracy"])


def reference_points(labels: Iterable[Sequence[int]], background: int) -> dict[str, float]:
    """Segment accuracy of two predictors that localise nothing, to read a result against.

    Returns:
        `dict[str, float]`: `all_background` (always predicts background) and `never_background` (knows each video's
        class and predicts it in every segment).
    """
    counts = [((true != IGNORED_LABEL).sum(), (true == background).sum()) for true in map(np.asarray, labels)]
    segments, empty = np.asarray(counts, dtype=np.int64).reshape(-1, 2).sum(axis=0)
    return {"all_background": _ratio(empty, segments), "never_background": _ratio(segments - empty, segments)}


def localization_metrics(
    predictions: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    num_labels: int,
    background: int | None = None,
    tiou: float = 0.5,
    num_resamples: int = 1000,
    seed: int = 0,
    probabilities: Sequence[np.ndarray] | None = None,
) -> dict[str, object]:
    """Compute every measure of this module on one set of videos.

    Args:
        predictions (`Sequence[Sequence[int]]`): Predicted class ids of every video's segments.
        labels (`Sequence[Sequence[int]]`): True class ids, of the same lengths; -100 leaves a segment out.
        num_labels (`int`): Number of classes, background included.
        background (`int`, *optional*): Class id of background; the last class when not given.
        tiou (`float`): Smallest intersection over union at which two events match.
        num_resamples (`int`): Bootstrap resamples of the videos; 0 leaves the intervals out.
        seed (`int`): Seed of the bootstrap.
        probabilities (`Sequence[np.ndarray]`, *optional*): Of each video `(num_segments, num_labels)`; with them the
            measures of scored events are there, an event's score being the mean probability of its label.

    Returns:
        `dict[str, object]`: the pooled measures as `float`, `num_videos`, `num_segments`,
        `class_accuracy` (share of each true class's segments that are right, a list by class id),
        `confusion_matrix` (nested lists, rows are true classes), `reference_points` and, with resamples,
        `intervals` (95 %, by measure). With probabilities also `event_map` (mean over tIoU 0.5 to 0.9),
        `event_map_wide` (0.1 to 0.9), `event_map_by_tiou` and `class_average_precision` (over tIoU 0.5 to 0.9, a list
        by class id).

    Raises:
        ValueError: where ids lie outside the classes, the lengths differ, or there is no video.
    """
    background = num_labels - 1 if background is None else background
    predictions, labels = list(predictions), list(labels)
    matrix = confusion_matrix(predictions, labels, num_labels)
    counts = count_per_video(predictions, labels, background, tiou)
    if not len(counts):
        raise ValueError("Got no videos to measure: pass the predictions and labels of at least one.")
    metrics = {name: float(value) for name, value in pooled_measures(counts.sum(axis=0)).items()}
    metrics["num_videos"], metrics["num_segments"] = len(counts), int(matrix.sum())
    metrics["class_accuracy"] = _ratio(matrix.diagonal(), matrix.sum(axis=1)).tolist()
    metrics["confusion_matrix"] = matrix.tolist()
    metrics["reference_points"] = reference_points(labels, background)
    intervals = bootstrap_intervals(counts, num_resamples, seed=seed) if num_resamples else {}
    if probabilities is not None:
        events = scored_events(predictions, labels, probabilities, background)
        classes = [label for label in range(num_labels) if label != background]
        scored = AveragePrecision(events, [event_spans(video, background) for video in labels], classes)
        metrics |= _measure_scored_events(scored, num_labels)
        if num_resamples:
            draws = bootstrap_draws(len(counts), num_resamples, seed)
            intervals |= {name: percentile_interval(values) for name, values in scored.means(draws).items()}
    if num_resamples:
        metrics["intervals"] = intervals
    return metrics


def scored_events(
    predictions: Sequence[Sequence[int]],
    labels: Sequence[Sequence[int]],
    probabilities: Sequence[np.ndarray],
    background: int,
) -> list[list[tuple[int, int, int, float]]]:
    """List each video's predicted events with their scores: the mean probability of the label over its segments.

    Args:
        predictions (`Sequence[Sequence[int]]`): Predicted class ids of every video's segments.
        labels (`Sequence[Sequence[int]]`): True class ids; a segment of -100 belongs to no event.
        probabilities (`Sequence[np.ndarray]`): Of each video `(num_segments, num_labels)`.
        background (`int`): Class id of background.

    Returns:
        `list[list[tuple[int, int, int, float]]]`: of each video `(label, first, end, score)`, in segments.

    Raises:
        ValueError: where the numbers of videos or of segments differ.
    """
    pairs = _check_pairs(predictions, labels)
    if len(probabilities) != len(pairs):
        raise ValueError(
            f"Got probabilities of {len(probabilities)} videos but labels of {len(pairs)}: pass one each."
        )
    scored = []
    for index, ((predicted, true), video) in enumerate(zip(pairs, map(np.asarray, probabilities))):
        if video.ndim != 2 or len(video) != len(true):
            raise ValueError(
                f"Video {index} has probabilities of shape {video.shape}, wanted ({len(true)}, num_labels): one row "
                "for each of its segments."
            )
        events = event_spans(np.where(true != IGNORED_LABEL, predicted, IGNORED_LABEL), background)
        scored.append([(label, first, end, float(video[first:end, label].mean())) for label, first, end in events])
    return scored


def summarize_runs(runs: Sequence[Mapping[str, object]]) -> dict[str, dict[str, float]]:
    """Mean and sample deviation of every scalar measure over runs, for example of several seeds.

    Args:
        runs (`Sequence[Mapping[str, object]]`): Results of `localization_metrics`, any number.

    Returns:
        `dict[str, dict[str, float]]`: `mean` and `deviation` by measure; the deviation of a single run is `nan`.

    Raises:
        ValueError: where there is no run, or the runs were measured on different numbers of videos or segments.
    """
    if not runs:
        raise ValueError("Got no runs to summarise: pass the measures of at least one.")
    for name in ("num_videos", "num_segments"):
        found = sorted({run.get(name) for run in runs}, key=str)
        if len(found) > 1:
            raise ValueError(f"The runs have {name} {found}: they were not measured on the same videos.")
    names = [name for name, value in runs[0].items() if isinstance(value, float)]
    values = {name: np.array([run[name] for run in runs], dtype=np.float64) for name in names}
    return {
        name: {"mean": float(v.mean()), "deviation": float(v.std(ddof=1)) if len(v) > 1 else np.nan}
        for name, v in values.items()
    }


def retrieval_metrics(
    audio_embeds: np.ndarray, image_embeds: np.ndarray, class_ids: np.ndarray, ranks: Sequence[int] = (1, 5)
) -> dict[str, float]:
    """How often a sound finds its picture among all, and a picture its sound, by cosine similarity.

    Args:
        audio_embeds (`np.ndarray` of shape `(num_segments, hidden_size)`): Sounds, one per video.
        image_embeds (`np.ndarray` of shape `(num_segments, hidden_size)`): Pictures of the same segments.
        class_ids (`np.ndarray` of shape `(num_segments,)`): Event class of each segment.
        ranks (`Sequence[int]`): The k of each R@k.

    Returns:
        `dict[str, float]`: `audio_to_image_r1`, ... and `image_to_audio_r1`, ... (the partner is among the k most
        similar, ties counting against it), and `audio_to_image_class_r1`, `image_to_audio_class_r1` (the most similar
        one is of the right class).
    """
    audio, image = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (audio_embeds, image_embeds))
    similarity = audio @ image.T
    metrics = {}
    for name, scores in (("audio_to_image", similarity), ("image_to_audio", similarity.T)):
        partner = scores.diagonal()[:, None]
        rank = (scores >= partner).sum(axis=1)  # 1 is best
        metrics |= {f"{name}_r{k}": float((rank <= k).mean()) for k in ranks}
        metrics[f"{name}_class_r1"] = float((class_ids[scores.argmax(axis=1)] == class_ids).mean())
    return metrics


def _check_pairs(
    predictions: Iterable[Sequence[int]], labels: Iterable[Sequence[int]], num_labels: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    predictions, labels = [np.asarray(video) for video in predictions], [np.asarray(video) for video in labels]
    if len(predictions) != len(labels):
        raise ValueError(f"Got predictions of {len(predictions)} videos but labels of {len(labels)}: pass one each.")
    for index, (predicted, true) in enumerate(zip(predictions, labels)):
        if predicted.shape != true.shape or true.ndim != 1:
            raise ValueError(
                f"Video {index} has predictions of shape {predicted.shape} and labels of shape {true.shape}: "
                "both must be (num_segments,). Cut the padding off, or mark it with -100 in the labels."
            )
        if num_labels is not None:
            _check_range(index, predicted, true, num_labels)
    return list(zip(predictions, labels))


def _check_range(index: int, predicted: np.ndarray, true: np.ndarray, num_labels: int) -> None:
    kept = true != IGNORED_LABEL
    ids = np.concatenate([predicted[kept], true[kept]])
    if ids.size and (ids.min() < 0 or ids.max() >= num_labels):
        raise ValueError(
            f"Video {index} has class ids from {ids.min()} to {ids.max()}, but with num_labels={num_labels} they must "
            f"lie in [0, {num_labels - 1}]. Check that labels and model count the same classes."
        )


def _can_match(event: tuple[int, float, float], other: tuple[int, float, float], tiou: float) -> bool:
    return event[0] == other[0] and reaches(temporal_overlap(event[1:], other[1:]), tiou)


def _count_video(predicted: np.ndarray, true: np.ndarray, background: int, tiou: float) -> tuple[int, ...]:
    kept = true != IGNORED_LABEL
    predicted = np.where(kept, predicted, IGNORED_LABEL)
    right = kept & (predicted == true)
    predicted_events, true_events = event_spans(predicted, background), event_spans(true, background)
    main_label = _main_label(true[kept], background)
    return (
        kept.sum(),
        right.sum(),
        (true == background).sum(),
        (predicted == background).sum(),
        (right & (true == background)).sum(),
        count_event_matches(predicted_events, true_events, tiou),
        len(predicted_events),
        len(true_events),
        main_label is not None,
        main_label is not None and main_label == _main_label(predicted[kept], background),
    )


def _main_label(labels: np.ndarray, background: int) -> int | None:
    classes, first, counts = np.unique(labels[labels != background], return_index=True, return_counts=True)
    return int(classes[np.lexsort((first, -counts))[0]]) if len(classes) else None


def _ratio(part: np.ndarray | int, whole: np.ndarray | int) -> np.ndarray | float:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    ratio = np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)
    return ratio if ratio.ndim else float(ratio)


def _measure_scored_events(scored: AveragePrecision, num_labels: int) -> dict[str, object]:
    by_class = scored.by_class()  # (1, C, K)
    class_precision = np.full(num_labels, np.nan)
    class_precision[scored.classes] = by_class[0, :, EVENT_MAPS["event_map"]].mean(axis=1)
    by_tiou = mean_over_classes(by_class)[0].tolist()
    return {
        **{name: float(values[0]) for name, values in scored.means().items()},
        "event_map_by_tiou": dict(zip(map(str, scored.tious), by_tiou)),
        "class_average_precision": class_precision.tolist(),
    }
