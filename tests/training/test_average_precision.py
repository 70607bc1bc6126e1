"""Average precision against ActivityNet's procedure in plain loops, and against values worked out by hand."""

import numpy as np
import pytest

from ave_clip.training.average_precision import TIOUS, AveragePrecision, temporal_overlap
from ave_clip.training.bootstrap import bootstrap_draws, percentile_interval


def random_videos(rng, number, scored):
    return [[random_event(rng, scored) for _ in range(rng.integers(4))] for _ in range(number)]


def random_event(rng, scored):
    start, end = sorted(rng.choice(11, 2, replace=False).tolist())
    return (int(rng.integers(3)), start, end, *([float(rng.uniform())] if scored else []))


def plain_average_precision(predicted, true, label, tiou):
    """One class at one threshold: rank, match greedily, then sum the area recall step by recall step."""
    ranking = sorted(
        ((event[3], video, event) for video, events in enumerate(predicted) for event in events if event[0] == label),
        key=lambda entry: entry[0],
        reverse=True,
    )
    left = {video: [event for event in events if event[0] == label] for video, events in enumerate(true)}
    total = sum(map(len, left.values()))
    points, hits = [], 0
    for rank, (_, video, event) in enumerate(ranking, start=1):
        best, best_overlap = None, 0.0
        for other in left[video]:
            shared = len(set(range(event[1], event[2])) & set(range(other[1], other[2])))
            overlap = shared / len(set(range(event[1], event[2])) | set(range(other[1], other[2])))
            if overlap > best_overlap:
                best, best_overlap = other, overlap
        if best is not None and round(best_overlap, 6) >= tiou:
            left[video].remove(best)
            hits += 1
        points.append((hits / total, hits / rank))
    area, reached = 0.0, 0.0
    for recall in sorted({recall for recall, _ in points}):
        area += (recall - reached) * max(p for r, p in points if r >= recall)
        reached = recall
    return area


def test_every_class_and_threshold_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(60):
        predicted, true = random_videos(rng, 5, scored=True), random_videos(rng, 5, scored=False)
        precision = AveragePrecision(predicted, true, range(3)).by_class()[0]
        for label in range(3):
            if not any(event[0] == label for video in true for event in video):
                assert np.isnan(precision[label]).all()
                continue
            expected = [plain_average_precision(predicted, true, label, tiou) for tiou in TIOUS]
            np.testing.assert_allclose(precision[label], expected, atol=1e-12)
            compared += max(expected) > 0
    assert compared > 50


def test_a_resample_gives_what_its_copied_videos_give():
    rng = np.random.default_rng(1)
    predicted, true = random_videos(rng, 12, scored=True), random_videos(rng, 12, scored=False)
    draws = bootstrap_draws(12, 20, seed=3)
    resampled = AveragePrecision(predicted, true, range(3)).by_class(draws)
    for draw, precision in zip(draws, resampled):
        copies = np.repeat(np.arange(12), draw.astype(int))
        copied = AveragePrecision([predicted[i] for i in copies], [true[i] for i in copies], range(3))
        np.testing.assert_allclose(precision, copied.by_class()[0], atol=1e-12)


def test_average_precision_by_hand():
    true = [[(0, 0, 4)], [(0, 2, 6)], [(0, 0, 2)]]
    predicted = [[(0, 0, 4, 0.9)], [(0, 8, 9, 0.8)], [(0, 0, 2, 0.7)]]  # hit, miss, hit of three
    precision = AveragePrecision(predicted, true, [0], tious=[0.5]).by_class()
    assert precision.item() == pytest.approx((1 + 2 / 3) / 3)


def test_a_second_prediction_of_one_event_is_a_miss_and_the_best_overlap_is_taken():
    true = [[(0, 0, 4), (0, 4, 8)]]
    twice = AveragePrecision([[(0, 0, 4, 0.9), (0, 0, 4, 0.8)]], true, [0], tious=[0.5]).by_class()
    assert twice.item() == 0.5
    # Both reach 0.1; taking the better one leaves the other for the second prediction.
    best = AveragePrecision([[(0, 3, 8, 0.9), (0, 0, 4, 0.8)]], true, [0], tious=[0.1]).by_class()
    assert best.item() == 1.0


def test_a_ratio_at_the_threshold_counts_whatever_the_rounding():
    for threshold, (part, whole) in zip(TIOUS, [(n, 10) for n in range(1, 10)]):
        measured = AveragePrecision([[(0, 0, part, 1.0)]], [[(0, 0, whole)]], [0], tious=[threshold])
        assert measured.by_class().item() == 1.0
        above = AveragePrecision([[(0, 0, part, 1.0)]], [[(0, 0, whole)]], [0], tious=[threshold + 1e-6])
        assert above.by_class().item() == 0.0


def test_the_means_leave_out_classes_without_truth_and_tell_the_two_ranges_apart():
    true = [[(0, 0, 10), (1, 0, 2)]]
    predicted = [[(0, 0, 4, 0.9), (1, 0, 2, 0.8), (2, 0, 9, 0.7)]]  # overlaps 0.4, 1 and no truth
    means = AveragePrecision(predicted, true, range(3)).means()
    assert means["event_map"].item() == pytest.approx(1 / 2)
    assert means["event_map_wide"].item() == pytest.approx((4 * 1 + 5 * 0.5) / 9)
    assert np.isnan(AveragePrecision([[]], [[]], range(3)).means()["event_map"]).all()


def test_overlap_of_spans_that_only_touch_is_zero():
    assert temporal_overlap((0, 2), (2, 4)) == 0
    assert temporal_overlap((0, 3), (1, 4)) == 0.5


def test_bad_events_are_named():
    with pytest.raises(ValueError, match="of 1 videos, true ones of 2"):
        AveragePrecision([[]], [[], []], [0])
    with pytest.raises(ValueError, match=r"Video 0 has an event .* score nan"):
        AveragePrecision([[(0, 0, 1, float("nan"))]], [[]], [0])


def test_intervals_leave_out_resamples_without_the_measure():
    values = np.array([np.nan, *np.linspace(0, 1, 101)])
    assert percentile_interval(values, 0.9) == pytest.approx((0.05, 0.95))
    assert np.isnan(percentile_interval(np.full(3, np.nan))).all()
