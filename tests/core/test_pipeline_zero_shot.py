"""Zero-shot localization: what decides label and background, caching, label order, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPImageProcessor, CLIPTokenizer, pipeline

import ave_clip  # noqa: F401
from ave_clip.core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ave_clip.core.modeling_audioclip import AudioCLIPModel
from ave_clip.core.processing_audioclip import AudioCLIPProcessor
from tests.helpers.media import write_recording
from tests.helpers.models import TINY_AUDIO, TINY_VISION, tiny_audioclip_config

TASK = "zero-shot-audio-visual-event-localization"
LABELS = ["bell", "dog", "car"]


def letters_tokenizer() -> CLIPTokenizer:
    """A tokenizer of single letters, as small as the tiny text tower's vocabulary."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", *[f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz"]]
    vocabulary = {token: index for index, token in enumerate(letters)}
    vocabulary |= {"<|startoftext|>": 97, "<|endoftext|>": 98}
    return CLIPTokenizer(vocab=vocabulary, merges=[])


def save_tiny_audioclip(folder: Path) -> None:
    """Write a tiny AudioCLIP with its processor."""
    size = TINY_VISION["image_size"]
    torch.manual_seed(0)
    AudioCLIPModel(tiny_audioclip_config()).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    extractor = AudioCLIPFeatureExtractor(sampling_rate=TINY_AUDIO["sampling_rate"])
    AudioCLIPProcessor(images, extractor, letters_tokenizer()).save_pretrained(folder)


@pytest.fixture(scope="module")
def localizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audioclip")
    save_tiny_audioclip(folder)
    return pipeline(TASK, model=str(folder), device="cpu", num_frames_per_segment=2)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    return str(write_recording(tmp_path_factory.mktemp("videos") / "clip.mp4", 12.0))


def probabilities(localizer, video: str, **options) -> dict[str, np.ndarray]:
    result = localizer(video, top_k=10, **options)
    rows = [{entry["label"]: entry["score"] for entry in segment["top_k"]} for segment in result["segments"]]
    return {label: np.array([row[label] for row in rows]) for label in rows[0]}


def test_probabilities_are_what_the_model_says(localizer, video):
    """Written out with the model's own forward, second by second."""
    got = probabilities(localizer, video, candidate_labels=LABELS, agreement_threshold=0.1)
    inputs = localizer.segmenter(videos=video, num_frames_per_segment=2, return_tensors="pt")
    text = localizer.processor(text=LABELS, return_tensors="pt")
    model = localizer.model
    with torch.no_grad():
        for second in range(12):
            image = model.vision_model(inputs["pixel_values"][0, second]).image_embeds.mean(dim=0)
            audio = model.audio_model(inputs["input_values"][:, second]).audio_embeds[0]
            labels = model.get_text_features(**text).pooler_output
            image, audio, labels = (x / x.norm(dim=-1, keepdim=True) for x in (image, audio, labels))
            scales = [
                float(scale.exp().clamp(1, 100))
                for scale in (model.logit_scale, model.logit_scale_at, model.logit_scale_ai)
            ]
            by_image, by_audio = (scales[0] * labels @ image).softmax(0), (scales[1] * labels @ audio).softmax(0)
            combined = (by_image * by_audio).sqrt()
            agreement = torch.sigmoid(scales[2] * (image @ audio - 0.1))
            expected = combined / combined.sum() * agreement
            for index, label in enumerate(LABELS):
                assert got[label][second] == pytest.approx(float(expected[index]), abs=1e-5)
            assert got["background"][second] == pytest.approx(1 - float(agreement), abs=1e-5)


def test_the_order_of_the_labels_changes_nothing(localizer, video):
    forward = probabilities(localizer, video, candidate_labels=LABELS)
    backward = probabilities(localizer, video, candidate_labels=LABELS[::-1])
    for label, values in forward.items():
        np.testing.assert_allclose(backward[label], values, atol=1e-5)


def test_where_video_and_audio_disagree_there_is_background(localizer, video):
    never = localizer(video, candidate_labels=LABELS, agreement_threshold=1.5)
    always = localizer(video, candidate_labels=LABELS, agreement_threshold=-1.5)
    assert never["events"] == []
    assert {segment["label"] for segment in always["segments"]} <= set(LABELS)
    assert always["events"][0]["start"] == 0 and always["events"][-1]["end"] == 12


def test_labels_are_embedded_once_over_calls(localizer, video, monkeypatch):
    calls, embed = [], localizer.model.get_text_features

    def counted(**inputs):
        calls.append(len(inputs["input_ids"]))
        return embed(**inputs)

    monkeypatch.setattr(localizer.model, "get_text_features", counted)
    for _ in range(2):
        localizer([video, video], candidate_labels=["cat", "cow"])
    localizer(video, candidate_labels="cat, cow")
    assert calls == [3]  # the two and "other"
    localizer(video, candidate_labels=["cat", "cow"], hypothesis_template="sound of {}")
    assert calls == [3, 3]


def test_batches_and_lists_agree_with_single_calls(localizer, video):
    expected = localizer(video, candidate_labels=LABELS)
    for result in localizer([video, video], candidate_labels=LABELS, batch_size=3):
        assert [s["label"] for s in result["segments"]] == [s["label"] for s in expected["segments"]]
        scores = [segment["score"] for segment in result["segments"]]
        assert scores == pytest.approx([segment["score"] for segment in expected["segments"]], abs=1e-5)


def test_a_silent_film_has_no_event(localizer, tmp_path):
    silent = write_recording(tmp_path / "silent.mp4", 2.0, sound=None)
    result = localizer(str(silent), candidate_labels=LABELS, agreement_threshold=-1.5)
    assert result["events"] == [] and len(result["segments"]) == 2


def test_the_default_model_is_the_mini_model_and_scores_labels_itself(video):
    localizer = pipeline(TASK)
    assert localizer.model.config.model_type == "ave_clip_mini"
    expected = pipeline("audio-visual-event-localization")(video, candidate_labels=LABELS, overlap=0.2)
    assert localizer(video, candidate_labels=LABELS, overlap=0.2) == expected
    assert localizer(video, candidate_labels=LABELS, overlap=0.2, decoder="viterbi") == expected
    assert {"heard", "seen", "both"} <= expected["segments"][0].keys()
    given = pipeline(TASK, candidate_labels=LABELS, decoder="none")
    assert [*given([video])] == [localizer(video, candidate_labels=LABELS, decoder="none")]
    with pytest.raises(ValueError, match="Pass `candidate_labels`"):
        localizer(video)
    silent = localizer({"frames": np.zeros((20, 64, 64, 3), np.uint8), "frame_rate": 10}, candidate_labels=LABELS)
    assert [segment["heard"] for segment in silent["segments"]] == [None, None]
    with pytest.raises(ValueError, match="`agreement_threshold` is an option for an AudioCLIP"):
        localizer(video, candidate_labels=LABELS, agreement_threshold=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Pass `candidate_labels`"),
        ({"candidate_labels": []}, "one or more texts"),
        ({"candidate_labels": "bell,,dog"}, "one or more texts"),
        ({"candidate_labels": ["bell", "bell "]}, "twice"),
        ({"candidate_labels": ["bell", "background"]}, "added automatically"),
        ({"candidate_labels": ["bell"], "hypothesis_template": "a sound"}, "must contain one"),
        ({"candidate_labels": ["bell"], "overlap": 0.5}, "Unknown options"),
    ],
)
def test_labels_and_templates_that_cannot_work_are_named(localizer, video, options, message):
    with pytest.raises(ValueError, match=message):
        localizer(video, **options)
