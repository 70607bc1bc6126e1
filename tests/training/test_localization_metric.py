"""The metric gives what the functions give, however the videos came in."""

import numpy as np
import pytest

from ave_clip.training.localization_metric import LocalizationMetric
from ave_clip.training.metrics import localization_metrics

LABELS = [[3, 0, 0, 3], [1, 1], [3, 2, 2], [0, 0, 0, -100, 3]]
PREDICTIONS = [[3, 0, 0, 0], [1, 2], [3, 2, 2], [0, 3, 0, 1, 3]]


@pytest.fixture
def metric(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return LocalizationMetric(4, cache_dir=str(tmp_path))


def test_batches_of_clips_of_any_length_add_up_to_the_whole_set(metric):
    metric.add_batch(predictions=PREDICTIONS[:3], references=LABELS[:3])
    metric.add(prediction=PREDICTIONS[3], reference=LABELS[3])
    np.testing.assert_equal(metric.compute(), localization_metrics(PREDICTIONS, LABELS, 4))


def test_all_at_once_and_again_gives_the_same(metric):
    expected = localization_metrics(PREDICTIONS, LABELS, 4)
    for _ in range(2):
        np.testing.assert_equal(metric.compute(predictions=PREDICTIONS, references=LABELS), expected)


def test_arrays_come_in_as_lists_do(metric):
    labels, predictions = np.array([[0, 3], [1, 1]]), np.array([[0, 0], [1, 1]])
    metric.add_batch(predictions=predictions, references=labels)
    assert metric.compute()["segment_accuracy"] == 3 / 4


def test_settings_reach_the_measures(tmp_path):
    metric = LocalizationMetric(4, tiou=0.9, num_resamples=0, background=0, cache_dir=str(tmp_path))
    found = metric.compute(predictions=[[0, 1, 1, 0]], references=[[0, 1, 1, 1]])
    assert found["event_f1"] == 0.0
    assert found["background_recall"] == 1.0
    assert "intervals" not in found


def test_bad_input_is_named_as_by_the_functions(metric):
    with pytest.raises(ValueError, match=r"must be in \[0, 3\]"):
        metric.compute(predictions=[[4]], references=[[0]])
