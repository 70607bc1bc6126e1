"""Weights of classes from the labels of the training split."""

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset

from ave_clip import AVEClipConfig
from ave_clip.core.label_space import LabelSpace
from ave_clip.training.class_weights import class_weights, count_active, set_class_weights
from ave_clip.training.features import FeatureStore, FeatureWriter
from ave_clip.training.localizer_data import classes_without_examples, warn_of_unlearnable
from ave_clip.training.splits import LabelledClips


@pytest.fixture
def clips(tmp_path):
    """A store of three rows of 2, 4 and 3 segments; the first class is active in all of them, the third never."""
    writer = FeatureWriter(
        tmp_path, {"id2label": {0: "a", 1: "b", 2: "c"}, "problem_type": "multi_label"}, {0: "", 1: "", 2: ""}
    )
    rows = []
    for row, length in enumerate((2, 4, 3)):
        labels = torch.tensor([[1, 0, 0]] * length)
        labels[0] = torch.tensor([1, 1, -100])
        features = {"image_features": torch.zeros(length, 2), "audio_features": torch.zeros(length, 2)}
        rows.append({"row": torch.tensor(row), "labels": labels, **features})
    writer.write(0, rows)
    writer.finish("train")
    return LabelledClips(FeatureStore(tmp_path), background=2)


def test_active_segments_are_counted_without_padding_and_unknown_labels(clips):
    assert count_active(clips, 3) == [9, 3, 0]
    assert count_active(Subset(clips, [2, 0]), 3) == [5, 2, 0]


def test_the_weights_keep_the_mean_over_active_segments():
    counts = np.array([9, 300, 4000])
    for weighting in ("balanced", "effective_number"):
        weights = np.array(class_weights(counts, weighting))
        assert (weights * counts).sum() == pytest.approx(counts.sum(), rel=1e-4)
        assert weights[0] > weights[1] > weights[2]
    balanced = np.array(class_weights(counts, "balanced"))
    np.testing.assert_allclose(balanced * counts, counts.sum() / 3, rtol=1e-3)
    effective = np.array(class_weights(counts, "effective_number"))
    expected = (1 - 0.999 ** counts[0]) / (1 - 0.999 ** counts[2])  # the inverse of the ratio of effective numbers
    assert effective[2] / effective[0] == pytest.approx(expected, rel=1e-3)


def test_the_configuration_gets_the_weights_or_says_why_not(clips):
    names = {"id2label": dict(enumerate("abc")), "problem_type": "multi_label"}
    config = AVEClipConfig(**names)
    set_class_weights(config, clips, "balanced")
    assert config.class_weights == (pytest.approx(2 / 3, abs=1e-6), 2.0, 1.0)
    with pytest.raises(ValueError, match="Pass one"):
        set_class_weights(config, clips, "balanced")
    for other in (AVEClipConfig(), AVEClipConfig(**names, label_embedding_size=4)):
        with pytest.raises(ValueError, match="needs several labels per segment and fixed classes"):
            set_class_weights(other, clips, "balanced")


class Rows(list):
    labels_of = list.__getitem__


def test_classes_without_an_example_are_found_from_the_labels_alone(caplog):
    one = LabelSpace(("Bell", "Bark", "Clap", "background"), "single_label")
    first, second = Rows([[0, 3, -100]]), Rows([[3, 3], [1, 1]])
    assert classes_without_examples(first, one) == ["Bark", "Clap"]
    assert classes_without_examples(ConcatDataset([first, Subset(second, [1])]), one) == ["Clap"]
    assert classes_without_examples(Rows([[0, 0], [-100, -100]]), one) == []  # withheld: it may be any class
    several = LabelSpace(("Bell", "Bark"), "multi_label")
    assert classes_without_examples(Rows([[[1, 0], [0, -100]]]), several) == ["Bark"]
    warn_of_unlearnable(second, one)
    assert "2 of 3 classes occur in none of the 2 training clips: Bell, Clap." in caplog.text
