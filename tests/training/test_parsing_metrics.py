"""AVVP's measures against plain loops over segments and runs."""

import numpy as np
import pytest

from ave_clip.training.parsing_metrics import parsing_metrics


def plain_f1(triples):
    """Mean F1 of the classes that occur, from (TP, FP, FN) per class; 1 without any."""
    scores = [2 * tp / (2 * tp + fp + fn) for tp, fp, fn in triples if tp + fp + fn]
    return sum(scores) / len(scores) if scores else 1.0


def plain_segments(found, known):
    pairs = [list(zip(found[:, c], known[:, c])) for c in range(known.shape[1])]
    return [tuple(sum(pair == wanted for pair in p) for wanted in ((1, 1), (1, 0), (0, 1))) for p in pairs]


def plain_runs(column):
    runs = []
    for segment, active in enumerate([*column, 0]):
        if active and (segment == 0 or not column[segment - 1]):
            runs.append(set())
        if active:
            runs[-1].add(segment)
    return runs


def plain_events(found, known):
    triples = []
    for label in range(known.shape[1]):
        predicted, true = plain_runs(found[:, label].tolist()), plain_runs(known[:, label].tolist())
        fits = [[len(a & b) >= 0.5 * len(a | b) for b in true] for a in predicted]
        hits = sum(map(any, fits))
        missed = sum(not any(row[j] for row in fits) for j in range(len(true)))
        triples.append((hits, len(predicted) - hits, missed))
    return triples


def test_every_measure_agrees_with_plain_loops():
    rng = np.random.default_rng(0)
    predicted, true = (
        [{kind: (rng.random((10, 4)) < rate).astype(int) for kind in ("heard", "seen")} for rate in (0.3, 0.6, 0.1, 0)]
        for _ in range(2)
    )
    measured = parsing_metrics(predicted, true, num_resamples=20)
    for level, count in (("segment", plain_segments), ("event", plain_events)):
        sums = dict.fromkeys(("audio", "visual", "audio_visual", "event_at_av"), 0.0)
        for found, known in zip(predicted, true):
            heard, seen = count(found["heard"], known["heard"]), count(found["seen"], known["seen"])
            both = count(found["heard"] * found["seen"], known["heard"] * known["seen"])
            added = [tuple(map(sum, zip(a, v))) for a, v in zip(heard, seen)]
            for name, triples in zip(sums, (heard, seen, both, added)):
                sums[name] += plain_f1(triples) / 4
        for name, value in sums.items():
            assert measured[f"{level}_{name}"] == pytest.approx(value, abs=1e-9)
        types = [sums[name] for name in ("audio", "visual", "audio_visual")]
        assert measured[f"{level}_type_at_av"] == pytest.approx(sum(types) / 3, abs=1e-9)
    low, high = measured["intervals"]["segment_type_at_av"]
    assert low <= measured["segment_type_at_av"] <= high and measured["num_videos"] == 4


def test_a_model_that_reports_both_is_measured_by_it():
    zeros, ones = np.zeros((4, 2)), np.ones((4, 2))
    truth = [{"heard": ones, "seen": ones}]
    assert parsing_metrics([{"heard": ones, "seen": ones}], truth)["segment_audio_visual"] == 1.0
    assert parsing_metrics([{"heard": ones, "seen": ones, "both": zeros}], truth)["event_audio_visual"] == 0.0


def test_bad_input_is_named():
    video = {"heard": np.zeros((4, 2)), "seen": np.zeros((4, 2))}
    with pytest.raises(ValueError, match="predictions of 0 videos and labels of 1"):
        parsing_metrics([], [video])
    with pytest.raises(ValueError, match="Video 0 has no 'seen' events"):
        parsing_metrics([{"heard": np.zeros((4, 2))}], [video])
    with pytest.raises(ValueError, match=r"\(heard\) of shape \(3, 2\) and labels of shape \(4, 2\)"):
        parsing_metrics([{"heard": np.zeros((3, 2)), "seen": np.zeros((3, 2))}], [video])
