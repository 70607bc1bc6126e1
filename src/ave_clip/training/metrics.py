"""Measures of predicted segment labels: segment accuracy, background, events and videos.

All functions take one array of labels per video, of any lengths, and never average over batches, so the results do not
depend on the batch size. Segments whose true label is -100 are ignored. `background` is the class id that means "no
event"; every other id is an event class.

Definitions:

- *Segment accuracy*: correct segments divided by all segments of all videos (the measure of previous work).
- *Background recall / precision*: the fraction of the true (predicted) background segments that are predicted (truly)
  background.
- *Segment F1*: an event segment is a hit if its label is correct; precision over the predicted event segments, recall
  over the true ones, of all videos.
- *Event F1*: an event is a run of one label. A predicted and a true event of the same label can match if their
  intersection divided by their union (tIoU) reaches the threshold; matches are one to one and as many as possible;
  hits, predicted and true events are summed over all videos.
- *Event mAP*: see `average_precision`; needs the probabilities, since events are ranked by score.
- *Video accuracy*: the fraction of the videos with an event whose most frequent predicted event label is the most
  frequent true one. Ties go to the label that occurs first; a video predicted as background throughout is wrong.

Differences from other methods:

- OV-AVEL and AVVP compute segment and event F1 per class within each video (background is a class in OV-AVEL), average
  over the classes in the truth or the prediction, then over videos. Each video has the same weight, and a background
  video that is predicted as such counts 1. Ours sums over all videos and leaves background out. The matched events are
  the same at tIoU 0.5; below that, theirs allows several events to match one. `video_f1` computes OV-AVEL's scores.
- DG-SCT averages the accuracies of batches, so a last batch of two videos has the same weight as one of eight.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..core.events import group_segments
from ..core.losses import IGNORED_LABEL
from .average_precision import EVENT_MAPS, AveragePrecision, mean_over_classes, reaches, temporal_overlap
from .bootstrap import bootstrap_draws, percentile_interval

VIDEO_F1_TIOU = 0.5
# Class ids of the segments of one video.
Labels = Sequence[int] | np.ndarray
# The counts per video; each pooled measure is a ratio of sums of these.
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


def segment_accuracy(predictions: Iterable[Labels], labels: Iterable[Labels]) -> float:
    """Returns correct segments divided by all segments of all videos.

    Args:
        predictions (`Iterable[Labels]`): Predicted class ids of each video's segments.
        labels (`Iterable[Labels]`): True class ids, of the same lengths; segments with -100 are ignored.

    Returns:
        `float`: the fraction in [0, 1]; `nan` if there is no segment.

    Raises:
        ValueError: if the numbers of videos or of segments differ.
    """
    pairs = _check_pairs(predictions, labels)
    right = sum(int(((predicted == true) & (true != IGNORED_LABEL)).sum()) for predicted, true in pairs)
    return float(_ratio(right, sum(int((true != IGNORED_LABEL).sum()) for _, true in pairs)))


def confusion_matrix(predictions: Iterable[Labels], labels: Iterable[Labels], num_labels: int) -> np.ndarray:
    """Counts segments by true class (row) and predicted class (column).

    Args:
        predictions (`Iterable[Labels]`): Predicted class ids of each video's segments.
        labels (`Iterable[Labels]`): True class ids, of the same lengths; segments with -100 are ignored.
        num_labels (`int`): Number of classes, background included.

    Returns:
        `np.ndarray` of shape `(num_labels, num_labels)`, int64.

    Raises:
        ValueError: if an id is outside `[0, num_labels)`, or the lengths differ.
    """
    matrix = np.zeros((num_labels, num_labels), dtype=np.int64)
    for predicted, true in _check_pairs(predictions, labels, num_labels):
        kept = true != IGNORED_LABEL
        np.add.at(matrix, (true[kept], predicted[kept]), 1)
    return matrix


def event_spans(labels: Labels, background: int) -> list[tuple[int, int, int]]:
    """Returns the events of one video as `(label, first, end)` in segments, `end` exclusive.

    An ignored segment (-100) belongs to no event and separates the runs before and after it.

    >>> event_spans([9, 3, 3, 9, 3, 5], background=9)
    [(3, 1, 3), (3, 4, 5), (5, 5, 6)]
    """
    runs = group_segments([int(label) for label in labels], background)
    return [run for run in runs if run[0] != IGNORED_LABEL]


def count_event_matches(
    predicted: Sequence[tuple[int, float, float]], true: Sequence[tuple[int, float, float]], tiou: float = 0.5
) -> int:
    """Returns the largest number of predicted and true events that can be matched one to one.

    Args:
        predicted (`Sequence[tuple[int, float, float]]`): Events as `(label, start, end)`.
        true (`Sequence[tuple[int, float, float]]`): Events as `(label, start, end)`, in the same unit.
        tiou (`float`): Smallest intersection over union, in (0, 1], at which two events of the same label match.

    Returns:
        `int`: the size of the maximum matching.
    """
    return count_matches(
        [[j for j, other in enumerate(true) if _can_match(event, other, tiou)] for event in predicted]
    )


def count_matches(partners: Sequence[Sequence[int]]) -> int:
    """Returns the size of a maximum one-to-one matching.

    Args:
        partners (`Sequence[Sequence[int]]`): For each predicted event the indices of the true ones that it can match.
    """
    matched: dict[int, int] = {}  # true event -> predicted event

    # Maximum bipartite matching by augmenting paths: an event takes a partner that is free, or whose own event can
    # take another one. A greedy choice would find too few where one event overlaps two others.
    def find_partner(event: int, seen: set[int]) -> bool:
        for candidate in partners[event]:
            if candidate not in seen:
                seen.add(candidate)
                if candidate not in matched or find_partner(matched[candidate], seen):
                    matched[candidate] = event
                    return True
        return False

    return sum(find_partner(event, set()) for event in range(len(partners)))


def count_per_video(
    predictions: Iterable[Labels], labels: Iterable[Labels], background: int, tiou: float = 0.5
) -> np.ndarray:
    """Returns the counts of each video from which the pooled measures are computed.

    Args:
        predictions (`Iterable[Labels]`): Predicted class ids of each video's segments.
        labels (`Iterable[Labels]`): True class ids, of the same lengths; segments with -100 are ignored.
        background (`int`): Class id of background.
        tiou (`float`): Smallest intersection over union at which two events match.

    Returns:
        `np.ndarray` of shape `(num_videos, len(COUNT_NAMES))`, int64, columns in the order of `COUNT_NAMES`.

    Raises:
        ValueError: if the lengths differ.
    """
    rows = [_count_video(*pair, background, tiou) for pair in _check_pairs(predictions, labels)]
    return np.asarray(rows, dtype=np.int64).reshape(-1, len(COUNT_NAMES))


def pooled_measures(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Computes the measures of segments, background, events and videos from summed counts.

    Args:
        counts (`np.ndarray` of shape `(..., len(COUNT_NAMES))`): Sums over videos.

    Returns:
        `dict[str, np.ndarray]`: arrays of the leading shape by name; `nan` if a measure is undefined (0 / 0).
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
    """Percentile bootstrap over videos: confidence intervals of the pooled measures for another sample of videos.

    Args:
        counts (`np.ndarray` of shape `(num_videos, len(COUNT_NAMES))`): Result of `count_per_video`.
        num_resamples (`int`): Number of resamples of all videos, with replacement.
        confidence (`float`): Fraction of the resamples in the interval.
        seed (`int`): Seed of the resampling.

    Returns:
        `dict[str, tuple[float, float]]`: lower and upper end by measure.
    """
    measures = pooled_measures(bootstrap_draws(len(counts), num_resamples, seed) @ counts)  # (num_resamples,) each
    return {name: percentile_interval(values, confidence) for name, values in measures.items()}


def video_accuracy(predictions: Iterable[Labels], labels: Iterable[Labels], background: int) -> float:
    """Fraction of the videos with an event whose most frequent event label is correct; `nan` without such videos."""
    counts = count_per_video(predictions, labels, background)
    return float(pooled_measures(counts.sum(axis=0))["video_accuracy"])


def baselines(labels: Iterable[Labels], background: int) -> dict[str, float]:
    """Segment accuracy of two baselines that localize nothing.

    Returns:
        `dict[str, float]`: `all_background` (predicts background only) and `never_background` (knows the class of each
        video and predicts it in all segments).
    """
    counts = [((true != IGNORED_LABEL).sum(), (true == background).sum()) for true in map(np.asarray, labels)]
    segments, empty = np.asarray(counts, dtype=np.int64).reshape(-1, 2).sum(axis=0)
    return {
        "all_background": float(_ratio(empty, segments)),
        "never_background": float(_ratio(segments - empty, segments)),
    }


def localization_metrics(
    predictions: Sequence[Labels],
    labels: Sequence[Labels],
    num_labels: int,
    background: int | None = None,
    tiou: float = 0.5,
    num_resamples: int = 1000,
    seed: int = 0,
    probabilities: Sequence[np.ndarray] | None = None,
) -> dict[str, object]:
    """Computes all measures of this module on one set of videos.

    Args:
        predictions (`Sequence[Labels]`): Predicted class ids of each video's segments.
        labels (`Sequence[Labels]`): True class ids, of the same lengths; segments with -100 are ignored.
        num_labels (`int`): Number of classes, background included.
        background (`int`, *optional*): Class id of background. Default: the last class.
        tiou (`float`): Smallest intersection over union at which two events match.
        num_resamples (`int`): Bootstrap resamples of the videos; 0 leaves the intervals out.
        seed (`int`): Seed of the bootstrap.
        probabilities (`Sequence[np.ndarray]`, *optional*): Array of shape `(num_segments, num_labels)` per video.
            Needed for event mAP: the score of an event is the mean probability of its label.

    Returns:
        `dict[str, object]`: the pooled measures as `float`, `num_videos`, `num_segments`,
        `class_accuracy` (fraction of each true class's segments that are correct, a list by class id),
        `confusion_matrix` (nested lists, rows are true classes), `baselines` and, with resamples,
        `intervals` (95 %, by measure). With probabilities also `event_map` (mean over tIoU 0.5 to 0.9),
        `event_map_wide` (0.1 to 0.9), `event_map_by_tiou` and `class_average_precision` (over tIoU 0.5 to 0.9, a list
        by class id).

    Raises:
        ValueError: if ids are outside the classes, the lengths differ, or there is no video.
    """
    background = num_labels - 1 if background is None else background
    predictions, labels = list(predictions), list(labels)
    matrix = confusion_matrix(predictions, labels, num_labels)
    counts = count_per_video(predictions, labels, background, tiou)
    if not len(counts):
        raise ValueError("There are no videos to measure: pass the predictions and labels of at least one.")
    metrics: dict[str, object] = {
        **{name: float(value) for name, value in pooled_measures(counts.sum(axis=0)).items()},
        "num_videos": len(counts),
        "num_segments": int(matrix.sum()),
        "class_accuracy": _ratio(matrix.diagonal(), matrix.sum(axis=1)).tolist(),
        "confusion_matrix": matrix.tolist(),
        "baselines": baselines(labels, background),
    }
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
    predictions: Sequence[Labels],
    labels: Sequence[Labels],
    probabilities: Sequence[np.ndarray],
    background: int,
) -> list[list[tuple[int, int, int, float]]]:
    """Returns the predicted events of each video with their score, the mean probability of the label.

    Args:
        predictions (`Sequence[Labels]`): Predicted class ids of each video's segments.
        labels (`Sequence[Labels]`): True class ids; a segment of -100 belongs to no event.
        probabilities (`Sequence[np.ndarray]`): Array of shape `(num_segments, num_labels)` per video.
        background (`int`): Class id of background.

    Returns:
        `list[list[tuple[int, int, int, float]]]`: `(label, first, end, score)` in segments per event, by video.

    Raises:
        ValueError: if the numbers of videos or of segments differ.
    """
    pairs = _check_pairs(predictions, labels)
    if len(probabilities) != len(pairs):
        raise ValueError(
            f"Got probabilities of {len(probabilities)} videos but labels of {len(pairs)}: pass one of each per video."
        )
    scored = []
    for index, ((predicted, true), video) in enumerate(zip(pairs, map(np.asarray, probabilities))):
        if video.ndim != 2 or len(video) != len(true):
            raise ValueError(
                f"Video {index} has probabilities of shape {video.shape}, wanted ({len(true)}, num_labels): one row "
                "per segment."
            )
        events = event_spans(np.where(true != IGNORED_LABEL, predicted, IGNORED_LABEL), background)
        scored.append([(label, first, end, float(video[first:end, label].mean())) for label, first, end in events])
    return scored


def summarize_runs(runs: Sequence[Mapping[str, object]]) -> dict[str, dict[str, float]]:
    """Mean and sample standard deviation of each scalar measure over runs, for example with several seeds.

    Args:
        runs (`Sequence[Mapping[str, object]]`): Results of `localization_metrics`, any number.

    Returns:
        `dict[str, dict[str, float]]`: `mean` and `deviation` by measure; with a single run the deviation is `nan`.

    Raises:
        ValueError: if there is no run, or the runs were measured on different numbers of videos or segments.
    """
    if not runs:
        raise ValueError("There are no runs to summarize: pass the measures of at least one.")
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
    audio_embeds: np.ndarray,
    image_embeds: np.ndarray,
    class_ids: np.ndarray,
    ranks: Sequence[int] = (1, 5),
    is_cosine: bool = True,
) -> dict[str, float]:
    """Retrieval of images by audio and of audio by images.

    Args:
        audio_embeds (`np.ndarray` of shape `(num_segments, hidden_size)`): Audio embeddings, one per video.
        image_embeds (`np.ndarray` of shape `(num_segments, hidden_size)`): Image embeddings of the same segments.
        class_ids (`np.ndarray` of shape `(num_segments,)`): Event class of each segment.
        ranks (`Sequence[int]`): The k of each R@k.
        is_cosine (`bool`): Compare by cosine, not by product.

    Returns:
        `dict[str, float]`: `audio_to_image_r1`, ... and `image_to_audio_r1`, ... (fraction of queries whose
        partner is among the k most similar, with ties counted against it), and `audio_to_image_class_r1`,
        `image_to_audio_class_r1` (fraction of queries whose most similar item has the correct class).
    """
    audio, image = audio_embeds, image_embeds
    if is_cosine:
        audio, image = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (audio, image))
    similarity = audio @ image.T
    metrics = {}
    for name, scores in (("audio_to_image", similarity), ("image_to_audio", similarity.T)):
        partner = scores.diagonal()[:, None]
        rank = (scores >= partner).sum(axis=1)  # 1 is best
        metrics |= {f"{name}_r{k}": float((rank <= k).mean()) for k in ranks}
        metrics[f"{name}_class_r1"] = float((class_ids[scores.argmax(axis=1)] == class_ids).mean())
    return metrics


def _check_pairs(
    predictions: Iterable[Labels], labels: Iterable[Labels], num_labels: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    all_predicted, all_true = [np.asarray(video) for video in predictions], [np.asarray(video) for video in labels]
    if len(all_predicted) != len(all_true):
        raise ValueError(
            f"Got predictions of {len(all_predicted)} videos but labels of {len(all_true)}: pass one of each per "
            "video."
        )
    pairs = list(zip(all_predicted, all_true))
    for index, (predicted, true) in enumerate(pairs):
        if predicted.shape != true.shape or true.ndim != 1:
            raise ValueError(
                f"Video {index} has predictions of shape {predicted.shape} and labels of shape {true.shape}: "
                "both must be (num_segments,). Remove the padding, or mark it with -100 in the labels."
            )
        if num_labels is not None:
            _check_range(index, predicted, true, num_labels)
    return pairs


def _check_range(index: int, predicted: np.ndarray, true: np.ndarray, num_labels: int) -> None:
    kept = true != IGNORED_LABEL
    ids = np.concatenate([predicted[kept], true[kept]])
    if ids.size and (ids.min() < 0 or ids.max() >= num_labels):
        raise ValueError(
            f"Video {index} has class ids from {ids.min()} to {ids.max()}, but with num_labels={num_labels} they must "
            f"be in [0, {num_labels - 1}]. Check that labels and model have the same classes."
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
    # The most frequent label, on ties the one that occurs first; `None` without events.
    classes, first, counts = np.unique(labels[labels != background], return_index=True, return_counts=True)
    return int(classes[np.lexsort((first, -counts))[0]]) if len(classes) else None


def _ratio(part: np.ndarray | int, whole: np.ndarray | int) -> np.ndarray:
    parts, wholes = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    return np.divide(parts, wholes, out=np.full(wholes.shape, np.nan), where=wholes > 0)


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


def video_f1(decoded: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> dict[str, float]:
    """Computes the F1 scores of OV-AVEBench (Zhou et al. 2025): of each video, then the mean over the videos.

    The F1 of a video is the mean over the classes in the truth or the prediction, of which background is one. Events
    are runs of a class, also of background, and match at a tIoU of 0.5.

    Args:
        decoded (`Sequence[np.ndarray]`): Predicted class of each segment `(T,)`, one array per video.
        labels (`Sequence[np.ndarray]`): True classes; segments with -100 are left out.

    Returns:
        `dict[str, float]`: `video_segment_f1` and `video_event_f1`; `nan` without a labelled segment.
    """
    scores = []
    for predicted, true in zip(decoded, labels, strict=True):
        known = true != IGNORED_LABEL
        predicted, true = np.asarray(predicted)[known], true[known]
        if len(true):
            scores.append((_segment_f1(predicted, true), _event_f1(predicted, true)))
    segment, event = np.mean(scores, axis=0) if scores else (np.nan, np.nan)
    return {"video_segment_f1": float(segment), "video_event_f1": float(event)}


def _segment_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    classes = np.union1d(predicted, true)
    pairs = ((predicted == label, true == label) for label in classes)
    return float(np.mean([2 * (found & wanted).sum() / (found.sum() + wanted.sum()) for found, wanted in pairs]))


def _event_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    runs: list[dict[int, list[tuple[int, int]]]] = []
    for video in (predicted, true):
        spans: dict[int, list[tuple[int, int]]] = {}
        for label, first, end in group_segments(video.tolist(), background=-1):  # background is a class here
            spans.setdefault(label, []).append((first, end))
        runs.append(spans)
    scores = []
    for label in {**runs[0], **runs[1]}:
        found, wanted = (part.get(label, []) for part in runs)
        partners = [
            [place for place, other in enumerate(wanted) if reaches(temporal_overlap(span, other), VIDEO_F1_TIOU)]
            for span in found
        ]
        scores.append(2 * count_matches(partners) / (len(found) + len(wanted)))
    return float(np.mean(scores))
