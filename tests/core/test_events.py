"""Decoders against brute force, and labels to events and back."""

import itertools

import numpy as np
import pytest

from ave_clip.core import events
from ave_clip.core.events import decode_labels, find_events, group_segments


def random_probabilities(seed: int, num_segments: int, num_labels: int, sharpness: float = 2.0) -> np.ndarray:
    scores = np.random.default_rng(seed).normal(size=(num_segments, num_labels)) * sharpness
    exponentials = np.exp(scores)
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def total(labels, probabilities: np.ndarray) -> float:
    return float(np.log(probabilities[np.arange(len(labels)), list(labels)]).sum())


def runs_of(labels) -> list[list[int]]:
    return [[label, len(list(members))] for label, members in itertools.groupby(labels)]


def merge_by_the_book(labels, probabilities: np.ndarray, shortest: int) -> list[int]:
    """The rule of sec. 3.7 on plain lists, one relabelling at a time, starting over after each."""
    labels = [int(label) for label in labels]
    while True:
        spans, start = [], 0
        for label, length in runs_of(labels):
            spans.append((label, start, start + length))
            start += length
        short = [span for span in spans if span[2] - span[1] < shortest]
        if not short or len(spans) == 1:
            return labels
        target = min(short, key=lambda s: (s[2] - s[1], round(probabilities[s[1] : s[2], s[0]].mean(), 9), s[1]))
        at = spans.index(target)
        around = [spans[i] for i in (at - 1, at + 1) if 0 <= i < len(spans)]
        best = around[0]
        for other in around[1:]:
            mine, theirs = best[2] - best[1], other[2] - other[1]
            over = slice(target[1], target[2])
            if theirs > mine or (
                theirs == mine
                and round(probabilities[over, other[0]].mean(), 9) > round(probabilities[over, best[0]].mean(), 9)
            ):
                best = other
        labels[target[1] : target[2]] = [best[0]] * (target[2] - target[1])


@pytest.mark.parametrize("shortest", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("num_labels", [2, 3, 6])
def test_merge_follows_the_rule_on_random_predictions(shortest, num_labels):
    for seed in range(60):
        probabilities = random_probabilities(seed, 4 + seed % 20, num_labels)
        expected = merge_by_the_book(probabilities.argmax(axis=1), probabilities, shortest)
        assert decode_labels(probabilities, "merge", shortest).tolist() == expected


def test_merge_leaves_no_short_run_unless_one_run_is_left():
    for seed in range(50):
        labels = decode_labels(random_probabilities(seed, 23, 4), "merge", 3)
        lengths = [length for _, length in runs_of(labels)]
        assert len(lengths) == 1 or min(lengths) >= 3


def test_merge_with_a_minimum_of_one_is_argmax():
    probabilities = random_probabilities(0, 15, 5)
    assert decode_labels(probabilities, "merge", 1).tolist() == probabilities.argmax(axis=1).tolist()


def test_merge_edges_take_the_only_neighbour():
    probabilities = np.full((6, 3), 0.1)
    for segment, label in enumerate([0, 2, 2, 2, 2, 1]):
        probabilities[segment, label] = 0.8
    assert decode_labels(probabilities, "merge", 3).tolist() == [2] * 6


@pytest.mark.parametrize("num_segments", [1, 2, 7, 10])
def test_single_event_is_the_best_of_all_spans_and_classes(num_segments):
    for seed in range(40):
        probabilities = random_probabilities(seed, num_segments, 4)
        labellings = [[3] * num_segments]
        for label in range(3):
            for start, end in itertools.combinations(range(num_segments + 1), 2):
                labellings.append([label if start <= t < end else 3 for t in range(num_segments)])
        best = max(labellings, key=lambda labels: total(labels, probabilities))
        assert decode_labels(probabilities, "single_event").tolist() == best


@pytest.mark.parametrize("shortest", [1, 2, 3])
@pytest.mark.parametrize("num_segments", [1, 2, 5, 7])
def test_viterbi_is_the_best_labelling_without_short_events(shortest, num_segments):
    for seed in range(15):
        probabilities = random_probabilities(seed, num_segments, 3)
        allowed = min(shortest, num_segments)
        labellings = [
            labels
            for labels in itertools.product(range(3), repeat=num_segments)
            if all(length >= allowed for label, length in runs_of(labels) if label != 2)
        ]
        best = max(labellings, key=lambda labels: total(labels, probabilities))
        assert decode_labels(probabilities, "viterbi", shortest).tolist() == list(best)


def test_viterbi_of_an_hour_is_consistent_with_its_own_constraint():
    labels = decode_labels(random_probabilities(5, 3600, 29, sharpness=3.0), "viterbi", 4)
    assert len(labels) == 3600
    assert min(length for label, length in runs_of(labels) if label != 28) >= 4


def test_labels_to_events_to_labels_is_the_identity():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        labels = rng.integers(0, 4, size=12)
        probabilities = random_probabilities(seed, 12, 4)
        rebuilt = np.full(12, 3)
        for event in find_events(labels, probabilities, segment_seconds=0.5):
            rebuilt[round(event.start / 0.5) : round(event.end / 0.5)] = event.label
        assert rebuilt.tolist() == labels.tolist()


def test_event_scores_are_mean_probabilities_and_the_duration_clips_the_end():
    probabilities = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    (event,) = find_events([0, 0, 1], probabilities, duration=1.7)
    assert (event.label, event.start, event.end) == (0, 0.0, 1.7)
    assert event.score == pytest.approx(0.7)


def test_an_event_after_the_end_of_the_video_has_no_length():
    """Segments of padding that were decoded, too."""
    probabilities = np.array([[0.1, 0.9], [0.1, 0.9], [0.8, 0.2]])
    (event,) = find_events([1, 1, 0], probabilities, duration=1.7)
    assert (event.start, event.end) == (2.0, 2.0)


@pytest.mark.parametrize("decoder", ["single_event", "viterbi"])
def test_where_an_event_is_no_more_probable_than_background_there_is_none(decoder):
    assert decode_labels(np.full((5, 3), 1 / 3), decoder, 1).tolist() == [2] * 5


def test_runs_of_background_are_left_out():
    assert group_segments([28, 3, 3, 28, 3], background=28) == [(3, 1, 3), (3, 4, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoder": "argmax"}, "must be one of"),
        ({"min_event_segments": 0}, ">= 1, got 0"),
        ({"min_event_segments": 2.5}, "got 2.5"),
    ],
)
def test_bad_options_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        decode_labels(random_probabilities(0, 5, 3), **arguments)


def test_probabilities_that_are_not_numbers_are_refused():
    probabilities = random_probabilities(0, 5, 3)
    probabilities[2, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        decode_labels(probabilities)


def test_merging_an_hour_of_noise_takes_few_steps(monkeypatch):
    """Each merge looks at its own neighbourhood: the work grows as the number of runs, not as its square."""
    looks, mean = [], events._RunList.mean
    monkeypatch.setattr(events._RunList, "mean", lambda self, *args: looks.append(args) or mean(self, *args))
    labels = decode_labels(random_probabilities(7, 3600, 29), "merge", 3)
    assert min(length for _, length in runs_of(labels)) >= 3
    assert len(looks) < 10 * 3600


def test_the_paper_decodes_by_merging_runs_shorter_than_three_segments():
    """Defaults of every decoder: `"merge"` with W = 3 (sec. 3.7)."""
    probabilities = np.full((9, 3), 0.05)
    for segment, label in enumerate([2, 2, 2, 0, 0, 2, 2, 2, 2]):
        probabilities[segment, label] = 0.9
    assert decode_labels(probabilities).tolist() == [2] * 9
    assert decode_labels(probabilities, "viterbi").tolist() != decode_labels(probabilities, "viterbi", 2).tolist()
    assert decode_labels(probabilities, "viterbi").tolist() == decode_labels(probabilities, "viterbi", 3).tolist()
    assert events.decode_viterbi(probabilities).tolist() == decode_labels(probabilities, "viterbi", 3).tolist()
    probabilities[5] = [0.9, 0.05, 0.05]  # three segments long now
    assert decode_labels(probabilities).tolist() == [2, 2, 2, 0, 0, 0, 2, 2, 2]
