"""Measures of several events at once against plain loops, on random videos with ties, duplicates and empty ones."""

import numpy as np
import pytest

from ave_clip.data.targets import events_of_labels, one_hot_labels
from ave_clip.training.average_precision import TIOUS, AveragePrecision
from ave_clip.training.bootstrap import bootstrap_draws
from ave_clip.training.multi_label_metrics import (
    MultiLabelMeasures,
    count_events,
    count_segments,
    f1_measures,
    overlaps_by,
    segment_average_precision,
    segment_map,
    within_collar,
)

NAMES = ("bark", "speech", "siren", "drum")


def random_events(rng, number, scored, on_grid):
    """Events that overlap, also of one class; on a grid with equal scores, overlaps and duplicates."""
    events = []
    for _ in range(number):
        start = rng.integers(20) / 2 if on_grid else rng.uniform(0, 10)
        length = rng.integers(1, 9) / 2 if on_grid else rng.uniform(0.2, 5)
        score = rng.integers(1, 4) / 4 if on_grid else rng.uniform()
        events.append((int(rng.integers(3)), start, start + length, *([score] if scored else [])))
        if on_grid and rng.random() < 0.2:
            events.append(events[-1])
    return events


def protocol(predicted, true, label, tiou):
    """One class of UnAV-100's protocol in plain loops, with the areas of an explicit curve."""
    ranking = [(e[3], video, e[1], e[2]) for video, events in enumerate(predicted) for e in events if e[0] == label]
    ranking = [ranking[i] for i in np.argsort([-entry[0] for entry in ranking], kind="stable")]
    truth = [(video, e[1], e[2]) for video, events in enumerate(true) for e in events if e[0] == label]
    if not truth:
        return np.nan
    locked, hits = set(), []
    for _, video, start, end in ranking:
        best = None
        for index, (other_video, other_start, other_end) in enumerate(truth):
            if other_video != video or index in locked:
                continue
            shared = max(0.0, min(end, other_end) - max(start, other_start))
            overlap = shared / ((end - start) + (other_end - other_start) - shared)
            if overlap >= tiou - 1e-9 and (best is None or overlap > best[0] + 1e-12):
                best = (overlap, index)
        hits.append(best is not None)
        if best is not None:
            locked.add(best[1])
    recall = [0.0, *[sum(hits[: n + 1]) / len(truth) for n in range(len(hits))], 1.0]
    precision = [0.0, *[sum(hits[: n + 1]) / (n + 1) for n in range(len(hits))], 0.0]
    return sum(
        (recall[n] - recall[n - 1]) * max(precision[n:]) for n in range(1, len(recall)) if recall[n] != recall[n - 1]
    )


@pytest.mark.parametrize("on_grid", [False, True])
def test_event_map_is_that_of_the_published_protocol(on_grid):
    rng, hits = np.random.default_rng(int(on_grid)), 0
    for _ in range(25):
        predicted = [random_events(rng, rng.integers(9), True, on_grid) for _ in range(5)]
        true = [random_events(rng, rng.integers(6), False, on_grid) for _ in range(5)]
        predicted[rng.integers(5)], true[rng.integers(5)] = [], []
        found = AveragePrecision(predicted, true, range(4))  # class 3 never occurs
        expected = np.array([[protocol(predicted, true, label, tiou) for tiou in TIOUS] for label in range(4)])
        np.testing.assert_allclose(found.by_class()[0], expected, rtol=0, atol=1e-9)
        assert found.means()["event_map_wide"][0] == pytest.approx(np.nanmean(expected), abs=1e-9)
        assert np.isnan(expected[3]).all()
        hits += np.nanmax(expected) > 0
    assert hits > 10


def random_segments(rng, num_videos=5):
    """Probabilities with ties, labels with unknown entries, one video without events, a class without truth."""
    lengths = rng.integers(1, 12, num_videos)
    probabilities = [np.round(rng.uniform(size=(length, 4)), 1) for length in lengths]
    labels = [np.where(rng.random((length, 4)) < 0.1, -100, rng.random((length, 4)) < 0.4) for length in lengths]
    labels = [video.astype(int) for video in labels]
    labels[0][labels[0] == 1] = 0
    for video in labels:
        video[video[:, 3] == 1, 3] = 0
    return probabilities, labels


def plain_segment_ap(scores, true):
    total, area, before = sum(true), 0.0, 0.0
    for level in sorted(set(scores), reverse=True):
        reached = [t for s, t in zip(scores, true) if s >= level]
        area += (sum(reached) / total - before) * sum(reached) / len(reached)
        before = sum(reached) / total
    return area


def test_segment_map_agrees_with_plain_loops():
    rng = np.random.default_rng(2)
    for _ in range(20):
        probabilities, labels = random_segments(rng)
        found = segment_average_precision(probabilities, labels)[0]
        scores, true = np.concatenate(probabilities), np.concatenate(labels)
        expected = []
        for label in range(4):
            known = true[:, label] >= 0
            chosen = true[known, label].tolist()
            expected.append(plain_segment_ap(scores[known, label].tolist(), chosen) if any(chosen) else np.nan)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
        assert np.isnan(found[3])
        assert segment_map(probabilities, labels) == pytest.approx(np.nanmean(expected), abs=1e-12)


def test_a_resample_gives_what_its_copied_videos_give():
    rng = np.random.default_rng(3)
    probabilities, labels = random_segments(rng, 8)
    draws = bootstrap_draws(8, 10, seed=1)
    resampled = segment_average_precision(probabilities, labels, draws)
    for draw, found in zip(draws, resampled):
        copies = np.repeat(np.arange(8), draw.astype(int))
        copied = segment_average_precision([probabilities[i] for i in copies], [labels[i] for i in copies])
        np.testing.assert_allclose(found, copied[0], atol=1e-12)


def test_f1_of_segments_and_events_agrees_with_plain_counts():
    rng = np.random.default_rng(4)
    probabilities, labels = random_segments(rng)
    active = [video >= 0.5 for video in probabilities]
    hits, predicted, true = np.zeros(4), np.zeros(4), np.zeros(4)
    for found, known in zip(active, labels):
        for segment, label in np.ndindex(known.shape):
            if known[segment, label] >= 0:
                hits[label] += found[segment, label] and known[segment, label]
                predicted[label] += found[segment, label]
                true[label] += known[segment, label]
    measured = f1_measures(count_segments(active, labels).sum(axis=0))
    by_class = 2 * hits / (predicted + true)
    assert measured["f1"] == pytest.approx(2 * hits.sum() / (predicted.sum() + true.sum()))
    assert measured["f1_macro"] == pytest.approx(by_class[:3].mean())  # class 3 has no true segment
    assert measured["precision"] == pytest.approx(hits.sum() / predicted.sum())
    np.testing.assert_allclose(measured["f1_by_class"], by_class)


def test_overlapping_events_of_one_class_are_matched_one_to_one_and_as_many_as_possible():
    true = [[(0, 0.0, 4.0), (0, 2.0, 6.0), (1, 0.0, 1.0)]]
    # The first prediction could take either true event; the second fits only the first one.
    predicted = [[(0, 1.0, 5.0, 0.9), (0, 0.0, 3.0, 0.8), (1, 4.0, 5.0, 0.7)]]
    counts = count_events(predicted, true, 2, overlaps_by(0.5))
    assert counts.tolist() == [[[2, 2, 2], [0, 1, 1]]]
    measured = f1_measures(counts.sum(axis=0))
    assert measured["f1"] == pytest.approx(4 / 6) and measured["f1_macro"] == 0.5
    # A class with predictions only counts in the micro average.
    assert f1_measures(np.array([[1, 1, 1], [0, 2, 0]]))["f1_macro"] == 1.0
    assert f1_measures(np.array([[1, 1, 1], [0, 2, 0]]))["f1"] == 0.5


def test_the_collar_is_200_ms_or_a_fifth_of_the_true_length_at_the_end():
    assert within_collar((0.2, 10.0), (0.0, 10.0)) and not within_collar((0.21, 10.0), (0.0, 10.0))
    assert within_collar((0.0, 12.0), (0.0, 10.0)) and not within_collar((0.0, 12.01), (0.0, 10.0))
    assert within_collar((0.0, 0.7), (0.0, 0.5)) and not within_collar((0.0, 0.71), (0.0, 0.5))


def test_all_measures_of_a_perfect_and_an_empty_prediction():
    labels = [np.array([[1, 0], [1, 1], [0, 1], [0, 0]]), np.zeros((3, 2), dtype=int)]
    events = [[(0, 0.0, 2.0), (1, 1.0, 3.0)], []]
    measures = MultiLabelMeasures(labels, events, NAMES[:2], num_resamples=50)
    scored = [[(*event, 1.0) for event in video] for video in events]
    perfect = measures.join(measures.ranked(labels, scored), measures.decoded(labels, events))
    for name in ("segment_map", "segment_map_micro", "segment_f1", "event_f1_macro", "collar_f1", "event_map_wide"):
        assert perfect[name] == 1.0
    assert perfect["event_map_at_0.7"] == perfect["event_map_by_tiou"]["0.7"] == 1.0
    assert perfect["event_f1_by_tiou"]["0.9"] == 1.0
    assert perfect["intervals"]["segment_map"] == (1.0, 1.0)
    assert perfect["classes"][1]["label"] == "speech" and perfect["classes"][1]["num_segments"] == 2
    assert (perfect["num_videos"], perfect["num_segments"]) == (2, 7)
    half = [np.array([[1, 0], [1, 1], [0, 1], [1, 0]]), np.zeros((3, 2), dtype=int)]
    assert perfect["background_recall"] == 1.0
    assert measures.decoded(half, events)["background_recall"] == 3 / 4
    assert perfect["baselines"] == {"equal_scores": 2 / 7, "all_classes": 8 / 18}

    nothing = [np.zeros_like(video) for video in labels]
    empty = measures.join(measures.ranked(nothing, [[], []]), measures.decoded(nothing, [[], []]))
    assert empty["segment_f1"] == empty["event_f1"] == empty["event_map"] == 0.0
    assert empty["segment_map"] == empty["baselines"]["equal_scores"]
    assert np.isnan(empty["event_precision"])


def test_intervals_are_those_of_resampled_videos():
    rng = np.random.default_rng(5)
    probabilities, labels = random_segments(rng, 6)
    active = [video >= 0.5 for video in probabilities]
    events = [events_of_labels(video) for video in labels]
    found = [[(*event, 0.5) for event in events_of_labels(video.astype(int))] for video in active]
    measures = MultiLabelMeasures(labels, events, NAMES, num_resamples=40, seed=7)
    measured = measures.decoded(active, found)
    values = []
    for draw in bootstrap_draws(6, 40, seed=7):
        copies = np.repeat(np.arange(6), draw.astype(int))
        chosen = MultiLabelMeasures([labels[i] for i in copies], [events[i] for i in copies], NAMES, num_resamples=0)
        values.append(chosen.decoded([active[i] for i in copies], [found[i] for i in copies])["event_f1_macro"])
    shift = measured["event_f1_macro"] - np.nanmean(values)
    expected = np.clip(np.nanquantile(values, (0.025, 0.975)) + shift, 0, 1)
    assert measured["intervals"]["event_f1_macro"] == pytest.approx(expected)


def test_an_interval_of_rare_classes_contains_the_measured_value():
    rng = np.random.default_rng(6)
    classes = rng.integers(30, size=60)
    true = [[(int(label), 0.0, 4.0)] for label in classes]
    candidates = [[(int(label), 0.0, 4.0, score) for label, score in enumerate(rng.uniform(size=30))] for _ in true]
    labels = [np.zeros((1, 30), dtype=int) for _ in true]
    measures = MultiLabelMeasures(labels, true, list(map(str, range(30))), num_resamples=200)
    measured = measures.ranked([video * 0.5 for video in labels], candidates)
    resampled = AveragePrecision(candidates, true, range(30)).means(bootstrap_draws(60, 200))["event_map_wide"]
    assert np.quantile(resampled, 0.025) > measured["event_map_wide"]  # what the shift is for
    low, high = measured["intervals"]["event_map_wide"]
    assert 0 < low < measured["event_map_wide"] < high < 1
    assert np.isnan(measured["segment_map"]) and np.isnan(measured["intervals"]["segment_map"]).all()


def test_labels_become_events_and_one_label_becomes_several():
    labels = np.array([[1, 0], [-100, 1], [1, 1], [1, 0]])
    assert events_of_labels(labels, 0.5) == [(0, 0.0, 0.5), (0, 1.0, 2.0), (1, 0.5, 1.5)]
    assert one_hot_labels(np.array([1, 2, -100]), 2).tolist() == [[0, 1], [0, 0], [-100, -100]]


def test_bad_input_is_named():
    labels = [np.zeros((2, 2), dtype=int)]
    with pytest.raises(ValueError, match="no videos"):
        MultiLabelMeasures([], [], NAMES)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), wanted \(num_segments, 4\)"):
        MultiLabelMeasures(labels, [[]], NAMES)
    with pytest.raises(ValueError, match="labels of 1 videos but events of 2"):
        MultiLabelMeasures(labels, [[], []], NAMES[:2])
    with pytest.raises(ValueError, match=r"labels \[5\], but there are 2 classes"):
        MultiLabelMeasures(labels, [[(5, 0, 1)]], NAMES[:2])
    with pytest.raises(ValueError, match="Video 0 has probabilities of shape"):
        segment_map([np.zeros((3, 2))], labels)
    with pytest.raises(ValueError, match="not finite"):
        segment_map([np.full((2, 2), np.nan)], labels)
