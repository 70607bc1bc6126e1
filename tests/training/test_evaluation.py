"""Predictions of readable clips, the gate decoder of previous work, and tables."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers.utils import ModelOutput

from ave_clip.training.evaluation import (
    choose_decoders,
    decode_gate,
    measure_settings,
    render_table,
    state_baselines,
    summary_rows,
)
from ave_clip.training.prediction import SplitPredictions, predict_split


class Echo(torch.nn.Module):
    """Returns the audio features as logits, and their first column as event logits."""

    config = SimpleNamespace(id2label={0: "Bell", 1: "Bark", 2: "background"})

    def __init__(self, has_gate=True):
        super().__init__()
        self.has_gate = has_gate

    def forward(self, audio_features, segment_mask):
        return ModelOutput(logits=audio_features, event_logits=audio_features[..., 0] if self.has_gate else None)


def make_clips(*rows, error=()):
    generator = torch.Generator().manual_seed(0)
    clips = []
    for row in rows:
        length = row % 3 + 2
        clip = {
            "labels": torch.randint(3, (length,), generator=generator),
            "audio_features": torch.randn(length, 3, generator=generator),
        }
        clips.append({"row": row, "error": f"bad {row}"} if row in error else {"row": torch.tensor(row), **clip})
    return clips


def predict(clips, batch_size=2, has_gate=True):
    return predict_split(Accelerator(cpu=True), Echo(has_gate), clips, batch_size)


def test_each_clip_keeps_its_own_probabilities_and_gate_without_padding():
    clips = make_clips(7, 3, 5, 4)
    found = predict(clips)
    assert found.rows == [3, 4, 5, 7]
    by_row = {int(clip["row"]): clip for clip in clips}
    for row, probabilities, gate, labels in zip(
        found.rows, found.probabilities, found.event_probabilities, found.labels
    ):
        features = by_row[row]["audio_features"]
        np.testing.assert_allclose(probabilities, features.softmax(dim=-1).numpy(), rtol=1e-6)
        np.testing.assert_allclose(gate, features[:, 0].sigmoid().numpy(), rtol=1e-6)
        assert labels.tolist() == by_row[row]["labels"].tolist()


def test_batches_of_any_size_predict_the_same():
    clips = make_clips(*range(5))
    for single, together in zip(predict(clips, 1).event_probabilities, predict(clips, 5).event_probabilities):
        np.testing.assert_allclose(single, together, rtol=1e-6)


def test_a_model_without_event_logits_has_no_gate():
    assert predict(make_clips(0, 1), has_gate=False).event_probabilities is None


def test_unreadable_clips_are_recorded_even_if_they_fill_a_batch():
    found = predict(make_clips(1, 2, 3, 4, 5, error=(1, 2, 4)))
    assert found.rows == [3, 5]
    assert found.unreadable == {1: "bad 1", 2: "bad 2", 4: "bad 4"}
    assert [len(clip) for clip in found.event_probabilities] == [2, 4]


def test_nothing_to_measure_is_an_error():
    with pytest.raises(ValueError, match="The split is empty"):
        predict([])
    with pytest.raises(ValueError, match=r"None of the 2 clips could be read. The first: bad 4"):
        predict(make_clips(5, 4, error=(4, 5)))
    clips = [{**clip, "labels": torch.full_like(clip["labels"], -100)} for clip in make_clips(0, 1)]
    with pytest.raises(ValueError, match="None of the 2 clips has a label"):
        predict(clips)


def cmran_predictions(is_event_scores, event_scores):
    """As in CMRAN's and CPSP's evaluation, from scores of the gate (N, T) and of the video's class (N, 28)."""
    is_event = torch.tensor(is_event_scores).sigmoid() > 0.5
    predicted = is_event.long() * torch.tensor(event_scores).max(-1).indices[:, None]
    predicted[~is_event] = 28
    return predicted.numpy()


def test_the_gate_decoder_is_that_of_published_code():
    rng = np.random.default_rng(0)
    probabilities, gates = rng.dirichlet(np.ones(29), (40, 10)), rng.normal(size=(40, 10))
    expected = cmran_predictions(gates, probabilities[:, :, :28].mean(axis=1))
    found = [decode_gate(clip, 1 / (1 + np.exp(-gate))) for clip, gate in zip(probabilities, gates)]
    np.testing.assert_array_equal(found, expected)
    labels = rng.integers(0, 29, (40, 10))
    predictions = SplitPredictions(list(range(40)), list(probabilities), list(labels), list(1 / (1 + np.exp(-gates))))
    measured = measure_settings(predictions, ["gate"], [3], num_resamples=0)["gate"]["segment_accuracy"]
    assert measured == pytest.approx((expected == labels).mean())


def test_default_decoders_are_those_that_the_model_supports():
    assert choose_decoders(None, True) == ("merge", "single_event", "viterbi", "none", "gate")
    assert choose_decoders(None, False) == ("merge", "single_event", "viterbi", "none")
    assert choose_decoders(["none", "merge", "none"], False) == ("none", "merge")
    with pytest.raises(ValueError, match="needs the event logits"):
        choose_decoders(["gate"], False)
    without_gate = SplitPredictions([0], [np.ones((2, 3)) / 3], [np.array([0, 1])])
    with pytest.raises(ValueError, match="needs the event logits"):
        measure_settings(without_gate, ["gate"], [3], num_resamples=0)


def test_the_baselines_of_ave_become_a_sentence():
    statement = state_baselines({"never_background": 3305 / 4020, "all_background": 715 / 4020})
    assert "82.21% segment accuracy (never background, with the right class) or 17.79% (all background)" in statement


def test_tables_are_aligned_or_markdown():
    rows = [["a|b", "none", *["1.00"] * 8], ["model", "single_event", *["100.00"] * 8]]
    lines = render_table(rows).splitlines()
    assert {line.index("none" if "none" in line else "single_event") for line in lines[1:]} == {len("model") + 2}
    assert all(line.endswith(("acc.", "1.00", "100.00")) for line in lines)
    assert len({len(line) for line in lines}) == 1
    markdown = render_table(rows, "markdown").splitlines()
    assert markdown[1] == "| --- | --- |" + " ---: |" * 8
    assert markdown[2].startswith(r"| a\|b | none | 1.00 |")


def test_a_measure_that_is_undefined_leaves_its_cell_empty():
    undefined = {"mean": float("nan"), "deviation": float("nan")}
    names = ("segment_accuracy", "background_recall", "background_precision", "segment_f1", "event_f1", "event_map")
    row = summary_rows({"none": dict.fromkeys((*names, "video_accuracy"), undefined)})[0]
    assert row[:3] == ["mean ± deviation", "none", ""]
