"""Candidate events: runs at many thresholds with the best boundaries first, and soft-NMS against plain loops."""

import numpy as np
import pytest

from ave_clip.core.label_space import LabelSpace
from ave_clip.core.proposals import propose_events, soft_nms


def plain_soft_nms(labels, starts, ends, scores, sigma, min_score):
    left, result = dict(enumerate(scores)), [0.0] * len(scores)
    while left:
        best = max(sorted(left, key=lambda n: (labels[n], starts[n], ends[n])), key=left.__getitem__)
        score = left.pop(best)
        if score < min_score:
            continue
        result[best] = score
        for n in left:
            if labels[n] == labels[best]:
                shared = max(0.0, min(ends[n], ends[best]) - max(starts[n], starts[best]))
                union = (ends[n] - starts[n]) + (ends[best] - starts[best]) - shared
                left[n] *= np.exp(-((shared / union) ** 2) / sigma)
    return result


def test_soft_nms_agrees_with_plain_loops():
    rng = np.random.default_rng(0)
    for number in (1, 2, 15, 40):
        labels = rng.integers(3, size=number)
        starts = rng.integers(12, size=number).astype(float)
        ends = starts + rng.integers(1, 6, size=number)
        scores = rng.uniform(size=number)
        found = soft_nms(labels, starts, ends, scores, sigma=0.3, min_score=0.05)
        np.testing.assert_allclose(found, plain_soft_nms(labels, starts, ends, scores, 0.3, 0.05), atol=1e-12)
    assert not len(soft_nms(np.zeros(0, int), np.zeros(0), np.zeros(0), np.zeros(0)))


def test_overlapping_events_of_two_classes_come_first_with_their_boundaries_in_seconds():
    probabilities = np.full((10, 3), 0.1)
    probabilities[2:6, 0] = 0.9
    probabilities[4:10, 2] = 0.8
    probabilities[[1, 6], 0] = 0.2  # not sure about the borders
    best = propose_events(probabilities, segment_seconds=0.5, duration=4.8)
    first, second = (next(event for event in best if event.label == label) for label in (2, 0))
    assert (second.label, second.start, second.end) == (0, 1.0, 3.0)
    assert (first.label, first.start, first.end) == (2, 2.0, 4.8)
    assert first.score == pytest.approx(0.7)  # 0.1 before it, the video ends after it
    assert second.score == pytest.approx(0.9 - 0.2)


def test_a_class_that_stays_below_one_half_has_candidates_and_an_absent_one_has_none():
    probabilities = np.zeros((6, 2))
    probabilities[1:3, 0] = 0.2
    events = propose_events(probabilities)
    assert [(event.label, event.start, event.end) for event in events] == [(0, 1.0, 3.0)]
    assert propose_events(np.zeros((0, 2))) == [] == propose_events(np.zeros((5, 0)))


def test_the_number_of_candidates_is_limited_and_scores_fall():
    rng = np.random.default_rng(1)
    events = propose_events(rng.uniform(size=(130, 20)))
    assert len(events) == 300  # 100 per started minute
    scores = [event.score for event in events]
    assert scores == sorted(scores, reverse=True) and scores[-1] > 0
    assert len(propose_events(rng.uniform(size=(130, 20)), max_events=7)) == 7


def test_an_hour_of_a_hundred_classes_is_searched_completely():
    rng = np.random.default_rng(2)
    probabilities = rng.uniform(0, 0.3, size=(3600, 100))
    probabilities[1200:1230, 40] = 0.99
    best = propose_events(probabilities)[0]
    assert (best.label, best.start, best.end) == (40, 1200.0, 1230.0)


def test_label_spaces_propose_events_of_their_event_classes():
    probabilities = np.array([[0.1, 0.0, 0.9], [0.8, 0.1, 0.1]])
    single = LabelSpace(("bark", "speech", "background")).propose_events(probabilities)
    assert [(event.label, event.start) for event in single][:1] == [(0, 1.0)]
    assert all(event.label < 2 for event in single)
    several = LabelSpace(("bark", "speech", "drum"), "multi_label").propose_events(probabilities)
    assert {event.label for event in several} == {0, 1, 2}


def test_bad_probabilities_are_refused():
    with pytest.raises(ValueError, match=r"shape \(segments, classes\), got \(3,\)"):
        propose_events(np.zeros(3))
    for wrong in (1.5, -0.1, np.nan):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
            propose_events(np.full((2, 2), wrong))
