"""Predictions of a split: each clip once, without its padding."""

from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers.utils import ModelOutput

from ave_clip.training.evaluation import measure_settings
from ave_clip.training.features import collate_clips
from ave_clip.training.prediction import SplitPredictions, predict_clips, save_predictions


class Echo(torch.nn.Module):
    """Returns the audio features as logits."""

    config = SimpleNamespace(id2label={0: "Bell", 1: "Bark", 2: "background"})

    def forward(self, audio_features, segment_mask):
        return ModelOutput(logits=audio_features, event_logits=None)


def make_clips():
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "row": torch.tensor(row),
            "labels": torch.randint(3, (length,), generator=generator),
            "audio_features": torch.randn(length, 3, generator=generator),
        }
        for row, length in ((4, 2), (9, 5), (1, 3))
    ]


def predict(clips, batch_size=2, **options):
    accelerator = Accelerator(cpu=True)
    loader = accelerator.prepare(DataLoader(clips, batch_size, collate_fn=collate_clips))
    return predict_clips(accelerator, Echo(), loader, **options)


def test_every_clip_comes_back_once_without_padding():
    clips = make_clips()
    found = predict(clips)
    assert found.rows == [1, 4, 9]
    for clip, predicted, true in zip([clips[2], *clips[:2]], found.probabilities, found.labels, strict=True):
        np.testing.assert_allclose(predicted, clip["audio_features"].softmax(dim=-1).numpy(), rtol=1e-6)
        assert true.tolist() == clip["labels"].tolist()


def test_a_batch_can_be_changed_before_the_model_sees_it():
    def blank(inputs):
        return {**inputs, "audio_features": torch.zeros_like(inputs["audio_features"])}

    found = predict(make_clips(), prepare=blank)
    assert all((clip == np.float32(1 / 3)).all() for clip in found.probabilities)


def test_decoders_are_measured_side_by_side():
    labels = [np.array([0, 0, 0, 2, 0, 0, 0])]
    probabilities = [np.eye(3)[labels[0]] * 0.8 + 0.1]
    predictions = SplitPredictions([0], probabilities, labels)
    results = measure_settings(predictions, ("merge", "none"), [3])
    assert results["none"]["segment_accuracy"] == 1.0
    assert results["merge"]["segment_accuracy"] == 6 / 7
    assert measure_settings(predictions, ("merge",), [1])["merge"]["segment_accuracy"] == 1.0


def test_saved_predictions_equal_the_original_ones_with_padding(tmp_path):
    predictions = predict(make_clips())
    save_predictions(tmp_path / "predictions.safetensors", {"test": predictions})
    saved = load_file(tmp_path / "predictions.safetensors")
    assert saved["test_probabilities"].shape == (3, 5, 3)
    assert saved["test_rows"].tolist() == [1, 4, 9]
    assert saved["test_labels"][1].tolist() == [*predictions.labels[1], -100, -100, -100]
    for clip, kept in zip(predictions.probabilities, saved["test_probabilities"]):
        np.testing.assert_array_equal(kept[: len(clip)].numpy(), clip)
        assert not kept[len(clip) :].any()
