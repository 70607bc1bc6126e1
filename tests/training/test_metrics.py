"""The measures, against values worked out by hand and against brute force."""

import itertools
import json

import numpy as np
import pytest

from ave_clip.training.metrics import (
    COUNT_NAMES,
    baselines,
    bootstrap_intervals,
    confusion_matrix,
    count_event_matches,
    count_per_video,
    event_spans,
    localization_metrics,
    pooled_measures,
    scored_events,
    segment_accuracy,
    summarize_runs,
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


def test_baselines_of_the_real_ave_test_split():
    labels = [[0] * 3305 + [28] * 715]
    points = baselines(labels, 28)
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
        ([[4]], [[0]], r"must be in \[0, 3\]"),
        ([[0]], [[-1]], "class ids from -1"),
        ([], [], "no videos"),
    ],
)
def test_bad_input_is_named(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        localization_metrics(predictions, labels, 4)


def test_segment_precision_and_recall_by_hand():
    measures = measure([[0, 1, 3, 2]], [[0, 2, 2, 2]])
    assert (measures["segment_precision"], measures["segment_recall"]) == (2 / 3, 2 / 4)


def test_video_accuracy_has_an_interval():
    labels, predictions = [[0, 0], [1, 1], [3, 3]] * 20, [[0, 0], [2, 2], [3, 3]] * 20
    metrics = localization_metrics(predictions, labels, 4)
    low, high = metrics["intervals"]["video_accuracy"]
    assert metrics["video_accuracy"] == 0.5
    assert 0.3 < low < 0.5 < high < 0.7


def test_an_event_is_scored_by_the_mean_probability_of_its_label():
    probabilities = [np.array([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.8, 0.1, 0.1]])]
    assert scored_events([[2, 0, 0]], [[0, 0, 0]], probabilities, 2) == [[(0, 1, 3, pytest.approx(0.7))]]
    assert scored_events([[0, 0, 0]], [[0, 0, -100]], probabilities, 2) == [[(0, 0, 2, pytest.approx(0.35))]]


def test_probabilities_add_the_measures_of_scored_events():
    labels = [[0, 0, 3, 3], [3, 1, 1, 1]]
    certain = [np.eye(4)[video] for video in labels]
    metrics = localization_metrics(labels, labels, 4, probabilities=certain)
    assert metrics["event_map"] == metrics["event_map_wide"] == 1.0
    assert set(metrics["event_map_by_tiou"].values()) == {1.0}
    np.testing.assert_equal(metrics["class_average_precision"], [1.0, 1.0, np.nan, np.nan])
    assert metrics["intervals"]["event_map"] == (1.0, 1.0)
    assert "event_map" not in localization_metrics(labels, labels, 4)


@pytest.mark.parametrize("probabilities", [[np.zeros((2, 4))], [np.zeros(2)], [np.zeros((3, 4))] * 2])
def test_probabilities_of_another_shape_are_named(probabilities):
    with pytest.raises(ValueError, match="probabilities of"):
        localization_metrics([[0, 0, 3]], [[0, 0, 3]], 4, probabilities=probabilities)


def test_runs_are_summarised_by_mean_and_sample_deviation():
    labels = [[0, 0, 3, 3]]
    runs = [localization_metrics([video], labels, 4) for video in ([0, 0, 3, 3], [0, 0, 0, 0], [1, 1, 3, 3])]
    summary = summarize_runs(runs)
    assert summary["segment_accuracy"]["mean"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert summary["segment_accuracy"]["deviation"] == pytest.approx(np.std([1, 0.5, 0.5], ddof=1))
    assert np.isnan(summarize_runs(runs[:1])["segment_accuracy"]["deviation"])
    assert "num_videos" not in summary


def test_runs_on_other_videos_are_not_averaged():
    runs = [localization_metrics([[0]] * number, [[0]] * number, 4) for number in (1, 2)]
    with pytest.raises(ValueError, match=r"num_videos \[1, 2\]"):
        summarize_runs(runs)
    with pytest.raises(ValueError, match="no runs"):
        summarize_runs([])


# What published code computes, written from it, against ours on random predictions of clips as long as AVE's.


def random_clips(seed, number=50, background=28):
    rng = np.random.default_rng(seed)
    labels = np.full((number, 10), background)
    for row in labels:
        start, end = sorted(rng.choice(11, 2, replace=False))
        row[start:end] = rng.integers(background)
    predictions = np.where(rng.uniform(size=labels.shape) < 0.6, labels, rng.integers(0, background + 1, labels.shape))
    return predictions, labels


def test_avels_accuracy_over_one_hot_labels_is_ours():
    predictions, labels = random_clips(0)
    scores, one_hot = np.eye(29)[predictions], np.eye(29)[labels]
    matches = [p.argmax() == t.argmax() for p, t in zip(scores.reshape(-1, 29), one_hot.reshape(-1, 29))]
    assert segment_accuracy(predictions, labels) == pytest.approx(sum(matches) / len(matches))


def test_a_mean_over_batches_as_dg_sct_takes_is_not_ours():
    predictions, labels = random_clips(1, number=10)
    batches = [slice(0, 8), slice(8, 10)]
    over_batches = np.mean([(predictions[batch] == labels[batch]).mean() for batch in batches])
    assert segment_accuracy(predictions, labels) == pytest.approx((predictions == labels).mean())
    assert abs(over_batches - segment_accuracy(predictions, labels)) > 0.01


def ov_avel_segment_f1(prediction, label, num_labels):
    """OV-AVEL's segment F1 of one video: the mean over the classes that occur, background being one of them."""
    scores = []
    for class_id in range(num_labels):
        predicted, true = prediction == class_id, label == class_id
        if predicted.any() or true.any():
            scores.append(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
    return np.mean(scores)


def test_ov_avels_segment_f1_differs_from_ours_as_the_module_says():
    half_right = np.array([[3, 3, 3, 3], [0, 0, 0, 0]]), np.array([[3, 3, 3, 3], [0, 0, 3, 3]])
    theirs = np.mean([ov_avel_segment_f1(*pair, 4) for pair in zip(*half_right)])
    assert theirs == pytest.approx((1 + (2 / 3 + 0) / 2) / 2)
    assert measure(*half_right)["segment_f1"] == pytest.approx(2 * 2 / (4 + 2))


def ov_avel_event_hits(prediction, label, class_id):
    """OV-AVEL's true positives: predicted runs that overlap any true run by half, not one to one."""
    runs = [event_spans(np.where(video == class_id, 0, 1), 1) for video in (prediction, label)]
    cells = [[set(range(first, end)) for _, first, end in part] for part in runs]
    return sum(any(len(a & b) >= 0.5 * len(a | b) for b in cells[1]) for a in cells[0])


def test_ov_avels_event_hits_are_ours_since_half_an_overlap_is_one_to_one_between_runs():
    rng = np.random.default_rng(4)
    predictions, labels = (np.stack(random_videos(rng, 300)) for _ in range(2))
    theirs = sum(ov_avel_event_hits(*pair, class_id) for pair in zip(predictions, labels) for class_id in range(3))
    matched = count_per_video(predictions, labels, BACKGROUND).sum(axis=0)[COUNT_NAMES.index("matched_events")]
    assert theirs == matched > 50
