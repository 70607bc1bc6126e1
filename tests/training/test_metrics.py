"""The measures, against values worked out by hand and against brute force."""

import itertools
import json

import numpy as np
import pytest

from ave_clip.training.metrics import (
    bootstrap_intervals,
    confusion_matrix,
    count_event_matches,
    count_per_video,
    event_spans,
    localization_metrics,
    pooled_measures,
    reference_points,
    segment_accuracy,
    video_accuracy,
)

BACKGROUND = 3


def measure(predictions, labels):
    counts = count_per_video(predictions, labels, BACKGROUND)
    return {name: float(value) for name, value in pooled_measures(counts.sum(axis=0)).items()}


def random_videos(rng, number, length=8):
    return [rng.integers(0, 4, length).repeat(rng.integers(1, 4))[:length] for _ in range(number)]


def test_segment_accuracy_pools_segments_and_not_videos():
    assert segment_accuracy([[0, 0], [1, 1, 1, 1, 1, 1]], [[0, 0], [2, 2, 2, 2, 2, 2]]) == 2 / 8


def test_segment_accuracy_does_not_depend_on_batches_as_a_mean_over_batches_would():
    rng = np.random.default_rng(0)
    predictions, labels = random_videos(rng, 10), random_videos(rng, 10)
    correct = sum((p == t).sum() for p, t in zip(predictions, labels))
    assert segment_accuracy(predictions, labels) == correct / 80


def test_segments_labelled_minus_100_count_nowhere():
    predictions, labels = [[0, 0, 3, 1]], [[0, 0, 3, 2]]
    padded = localization_metrics([[0, 0, 3, 1, 1, 2]], [[0, 0, 3, 2, -100, -100]], 4)
    np.testing.assert_equal(padded, localization_metrics(predictions, labels, 4))
    assert segment_accuracy([[-100, 0]], [[-100, 0]]) == 1.0


def test_an_ignored_segment_parts_two_events():
    assert event_spans([1, 1, -100, 1], BACKGROUND) == [(1, 0, 2), (1, 3, 4)]


def test_event_spans_end_exclusive_and_skip_background():
    assert event_spans([3, 1, 1, 2, 3, 2], BACKGROUND) == [(1, 1, 3), (2, 3, 4), (2, 5, 6)]
    assert event_spans([3, 3], BACKGROUND) == []
    assert event_spans([], BACKGROUND) == []


def test_background_recall_and_precision_by_hand():
    measures = measure([[3, 3, 3, 0]], [[3, 0, 0, 3]])
    assert measures["background_recall"] == 1 / 2
    assert measures["background_precision"] == 1 / 3


def test_segment_f1_by_hand():
    # true events: 3 segments; predicted: 3 segments; hits: 1 (a wrong class is both a miss and a false alarm)
    assert measure([[0, 1, 3, 2]], [[0, 2, 2, 3]])["segment_f1"] == pytest.approx(2 * 1 / (3 + 3))


def test_events_match_at_half_overlap_exactly():
    assert count_event_matches([(0, 0, 2)], [(0, 0, 4)]) == 1
    assert count_event_matches([(0, 0, 2)], [(0, 0, 4.1)]) == 0
    assert count_event_matches([(0, 0, 2)], [(1, 0, 2)]) == 0
    assert count_event_matches([(0, 0, 2)], [(0, 2, 4)], tiou=0.01) == 0


def test_an_event_cut_in_halves_matches_once():
    assert measure([[0, 0, 3, 0, 0]], [[0, 0, 0, 0, 0]])["event_f1"] == 0.0  # 2/5 each
    assert measure([[0, 0, 1, 1]], [[0, 0, 0, 0]])["event_f1"] == pytest.approx(2 * 1 / (2 + 1))


def test_event_matching_is_the_largest_one_to_one_matching():
    rng = np.random.default_rng(1)
    for _ in range(200):
        predicted, true = random_events(rng), random_events(rng)
        assert count_event_matches(predicted, true, tiou=0.3) == largest_matching(predicted, true, 0.3)


def random_events(rng):
    ends = [sorted(rng.choice(12, 2, replace=False).tolist()) for _ in range(rng.integers(5))]
    return [(int(rng.integers(2)), *pair) for pair in ends]


def largest_matching(predicted, true, tiou):
    if len(predicted) > len(true):
        predicted, true = true, predicted

    def matches(a, b):
        intersection = min(a[2], b[2]) - max(a[1], b[1])
        return a[0] == b[0] and intersection > 0 and intersection / (a[2] - a[1] + b[2] - b[1] - intersection) >= tiou

    orders = itertools.permutations(true, len(predicted))
    return max((sum(map(matches, predicted, order)) for order in orders), default=0)


def test_confusion_matrix_has_true_classes_in_rows():
    matrix = confusion_matrix([[0, 1, 3]], [[0, 2, 3]], 4)
    expected = np.zeros((4, 4), dtype=int)
    expected[0, 0] = expected[2, 1] = expected[3, 3] = 1
    np.testing.assert_array_equal(matrix, expected)


def test_video_accuracy_takes_the_most_frequent_event_and_skips_empty_videos():
    labels = [[3, 0, 0, 3], [1, 1, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2]]
    predictions = [[0, 0, 1, 3], [3, 3, 3, 3], [0, 0, 0, 0], [3, 3, 3, 2]]
    assert video_accuracy(predictions, labels, BACKGROUND) == 2 / 3


def test_video_accuracy_breaks_ties_by_the_first_label_seen():
    assert video_accuracy([[2, 1]], [[2, 2]], BACKGROUND) == 1.0
    assert video_accuracy([[1, 2]], [[2, 2]], BACKGROUND) == 0.0


def test_reference_points_of_the_real_ave_test_split():
    labels = [[0] * 3305 + [28] * 715]
    points = reference_points(labels, 28)
    assert round(100 * points["never_background"], 2) == 82.21
    assert round(100 * points["all_background"], 2) == 17.79


def test_perfect_predictions_reach_one_everywhere():
    labels = [[3, 0, 0, 3], [1, 1, 1, 1], [3, 2, 2, 2]]
    metrics = localization_metrics(labels, labels, 4)
    for name in ("segment_accuracy", "background_recall", "background_precision", "segment_f1", "event_f1"):
        assert metrics[name] == 1.0
        assert metrics["intervals"][name] == (1.0, 1.0)
    assert metrics["class_accuracy"] == [1.0] * 4
    assert metrics["video_accuracy"] == 1.0
    assert (metrics["num_videos"], metrics["num_segments"]) == (3, 12)


def test_undefined_measures_are_nan():
    metrics = localization_metrics([[0, 0]], [[0, 0]], 4)
    assert np.isnan(metrics["background_recall"])
    assert np.isnan(metrics["class_accuracy"][1])
    assert metrics["segment_accuracy"] == 1.0


def test_intervals_hold_the_measure_and_shrink_with_more_videos():
    rng = np.random.default_rng(2)
    labels = random_videos(rng, 400)
    predictions = [np.where(rng.uniform(size=8) < 0.7, video, 3) for video in labels]
    widths = []
    for number in (40, 400):
        counts = count_per_video(predictions[:number], labels[:number], BACKGROUND)
        low, high = bootstrap_intervals(counts)["segment_accuracy"]
        assert low < segment_accuracy(predictions[:number], labels[:number]) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_intervals_repeat_by_seed():
    counts = count_per_video([[0, 3], [1, 1], [3, 3]], [[0, 0], [1, 1], [3, 2]], BACKGROUND)
    assert bootstrap_intervals(counts, seed=4) == bootstrap_intervals(counts, seed=4)
    assert bootstrap_intervals(counts, seed=4) != bootstrap_intervals(counts, num_resamples=50, seed=5)


def test_metrics_are_plain_numbers_for_json():
    metrics = localization_metrics([[0, 1, 3]], [[0, 2, 3]], 4)
    assert json.loads(json.dumps(metrics["confusion_matrix"])) == metrics["confusion_matrix"]
    assert type(metrics["segment_accuracy"]) is float


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([[0]], [[0], [1]], "predictions of 1 videos but labels of 2"),
        ([[0, 1]], [[0]], r"shape \(2,\) and labels of shape \(1,\)"),
        ([[4]], [[0]], r"must lie in \[0, 3\]"),
        ([[0]], [[-1]], "class ids from -1"),
        ([], [], "no videos"),
    ],
)
def test_bad_input_is_named(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        localization_metrics(predictions, labels, 4)
