"""Localizers with one and with several labels, measured on the same videos with overlapping events."""

import numpy as np
import pytest

from ave_clip.training.evaluation import (
    choose_decoders,
    columns_of,
    measure_settings,
    render_classes,
    render_table,
    result_rows,
    state_baselines,
    summary_rows,
)
from ave_clip.training.metrics import summarize_runs
from ave_clip.training.multi_label_evaluation import split_scores, true_events, validation_segment_map
from ave_clip.training.prediction import SplitPredictions

NAMES = ("bark", "speech")
# Two overlapping events and one that no other overlaps; the third video is not annotated.
TRUTH = {
    3: {"events": [{"label": 0, "start": 0.4, "end": 3.0}, {"label": 1, "start": 1.0, "end": 5.6}], "duration": 5.6},
    8: {"events": [{"label": 1, "start": 2.0, "end": 4.0}], "duration": 4.0},
    9: {"events": None, "duration": 2.0},
}
LABELS = [
    np.array([[1, 0], [1, 1], [1, 1], [0, 1], [0, 1], [0, 1]]),
    np.array([[0, 0], [0, 0], [0, 1], [0, 1]]),
    np.full((2, 2), -100),
]


def several(labels=LABELS, **changes):
    probabilities = [np.where(video == 0, 0.1, 0.9).astype(np.float32) for video in labels]
    return SplitPredictions([3, 8, 9], probabilities, labels, truth=TRUTH, problem_type="multi_label", **changes)


def one_label():
    """What a localizer with one label per segment says: the speech wherever there is any, else the bark."""
    classes = [np.array([0, 1, 1, 1, 1, 1]), np.array([2, 2, 1, 1]), np.array([0, 0])]
    probabilities = [np.full((len(video), 3), 0.1) + 0.7 * np.eye(3)[video] for video in classes]
    return SplitPredictions([3, 8, 9], probabilities, LABELS, truth=TRUTH)


def test_a_localizer_with_several_labels_finds_overlapping_events():
    measured = measure_settings(several(), ["none", "viterbi"], [2], 20, NAMES)
    assert list(measured) == ["none", "viterbi"]
    found = measured["none"]
    assert found["segment_map"] == found["segment_f1"] == found["event_f1"] == found["event_f1_macro"] == 1.0
    # The annotated times count, not those of segments: the bark begins at 0.4 s and is found at 0 s (2.6 of 3 s).
    assert found["event_map_at_0.8"] == 1.0 and found["event_map_at_0.9"] == 0.5
    assert found["collar_f1_macro"] == 0.5
    assert (found["num_videos"], found["num_segments"]) == (3, 10)
    assert [row["label"] for row in found["classes"]] == list(NAMES)
    assert [row["num_events"] for row in found["classes"]] == [1, 2]
    assert found["intervals"]["segment_f1"] == (1.0, 1.0)


def test_a_localizer_with_one_label_is_measured_on_the_same_events():
    found = measure_settings(one_label(), ["none", "gate"], [1], 0, NAMES)
    assert list(found) == ["none"]
    found = found["none"]
    assert found["num_segments"] == 10
    # It finds all speech and one of three segments with barking: 8 hits of 8 predicted and 10 true ones.
    assert found["segment_f1"] == pytest.approx(2 * 8 / (8 + 10))
    assert found["event_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["classes"][0]["event_f1"] == 0.0 and found["classes"][1]["event_f1"] == 1.0
    assert found["event_map_wide"] < measure_settings(several(), ["none"], [1], 0)["none"]["event_map_wide"]
    with pytest.raises(ValueError, match="'gate' finds one class per video"):
        measure_settings(one_label(), ["gate"], [1], 0)


def test_a_localizer_with_several_labels_is_measured_on_one_label_per_segment():
    labels = [np.array([0, 0, 2]), np.array([1, -100])]
    probabilities = [np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.2]]), np.array([[0.1, 0.8], [0.9, 0.9]])]
    predictions = SplitPredictions([0, 1], probabilities, labels, problem_type="multi_label")
    scores, each = split_scores(predictions)
    assert each[0].tolist() == [[1, 0], [1, 0], [0, 0]] and each[1].tolist() == [[0, 1], [-100, -100]]
    assert scores[1][1].tolist() == [0, 0]
    assert true_events(predictions, each, 0.5) == [[(0, 0.0, 1.0)], [(1, 0.0, 0.5)]]
    found = measure_settings(predictions, ["none"], [1], 0, segment_seconds=0.5)["none"]
    assert found["segment_f1"] == found["event_f1"] == found["segment_map"] == 1.0


def test_nothing_is_found_where_the_label_is_unknown():
    labels = [video.copy() for video in LABELS]
    labels[0][0] = -100
    predictions = several(labels)
    predictions.truth = {}
    found = measure_settings(predictions, ["none"], [1], 0)["none"]
    assert found["event_f1_by_tiou"]["0.9"] == found["event_map_at_0.9"] == 1.0
    assert found["num_segments"] == 9


def test_the_threshold_decides_what_is_active():
    low = measure_settings(several(), ["none"], [1], 0, threshold=0.05)["none"]
    assert low["segment_recall"] == 1.0 and low["segment_precision"] == 0.5
    assert low["segment_map"] == 1.0  # it needs no threshold
    assert validation_segment_map(several()) == 1.0


def test_other_classes_are_an_error():
    predictions = several()
    predictions.probabilities = [np.pad(clip, ((0, 0), (0, 1))) for clip in predictions.probabilities]
    with pytest.raises(ValueError, match="The localizer has 3 event classes, the labels have 2"):
        measure_settings(predictions, ["none"], [1])


def test_decoders_are_those_of_the_kind_of_labels():
    assert choose_decoders(None, True, "multi_label") == ("viterbi", "none", "hysteresis")
    assert choose_decoders(["hysteresis"], False, "multi_label") == ("hysteresis",)
    with pytest.raises(ValueError, match=r"'merge' is not made for .*'multi_label'. Use some of .*hysteresis"):
        choose_decoders(["merge"], False, "multi_label")
    with pytest.raises(ValueError, match=r"'hysteresis' is not made for .*'single_label'"):
        choose_decoders(["hysteresis"], False)


def test_tables_show_the_columns_of_unav100_and_of_each_class():
    results = measure_settings(several(), ["none"], [1], 20, NAMES)
    columns = columns_of(results["none"])
    runs = {"none": summarize_runs([results["none"], results["none"]])}
    lines = render_table(result_rows("a", results) + summary_rows(runs), columns=columns).splitlines()
    assert lines[0].split()[:5] == ["model", "decoder", "mAP", "0.1:0.9", "%"]
    assert "@0.5" in lines[0] and "macro event F1" in lines[0]
    assert lines[1].startswith("a") and " to " in lines[1] and "±" in lines[2]
    classes = render_classes(results["none"], "markdown").splitlines()
    assert classes[0].startswith("| class | events | AP 0.1:0.9 |") and classes[2].startswith("| bark | 1 |")
    single = render_classes({"class_accuracy": [0.5, 1.0], "class_average_precision": [0.25, np.nan]}, names=["bark"])
    assert single.splitlines()[1].split() == ["bark", "50.00", "25.00"]
    statement = state_baselines(results["none"]["baselines"])
    assert "50.00% segment mAP" in statement
