"""The zero-shot pipeline with encoders of transformers' real classes, tiny and with random weights."""

import math

import numpy as np
import pytest
import torch
from transformers import pipeline

import ave_clip  # noqa: F401
from ave_clip.core.encoders import encoder_for, importlib
from ave_clip.core.modeling_audio_visual_encoder import AudioVisualEncoderModel
from ave_clip.core.processing_audio_visual_encoder import AudioVisualEncoderProcessor
from ave_clip.core.similarity import Similarity
from ave_clip.core.zero_shot import OTHER_LABEL, combine, score_classes, score_texts
from tests.helpers.encoders import SAVERS
from tests.helpers.media import write_recording

TASK = "zero-shot-audio-visual-event-localization"
LABELS = ["bark", "church bell", "car"]
HAS_TIMM = importlib.util.find_spec("timm") is not None


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    names = [name for name in SAVERS if HAS_TIMM or name != "pe-av"]
    return {name: SAVERS[name](tmp_path_factory.mktemp("towers") / name) for name in names}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> str:
    return str(write_recording(tmp_path_factory.mktemp("videos") / "clip.mp4", 12.0))


@pytest.fixture(scope="module")
def localizers(folders):
    """A function that gives the pipeline of two towers, or of one model."""
    made = {}

    def get(vision: str, audio: str | None = None):
        if (vision, audio) not in made:
            sources = {"vision_model": folders[vision], "audio_model": folders.get(audio)}
            made[vision, audio] = pipeline(TASK, device="cpu", **(sources if audio else {"model": folders[vision]}))
        return made[vision, audio]

    return get


PAIRS = [("clip", "clap"), ("siglip", "clap"), ("siglip2", "clap"), ("clip", "pe-a-frame"), ("vit", "ast")]
PAIRS += [("siglip", "ast"), ("vit", "clap")] + ([("pe-av",)] if HAS_TIMM else [])


def table(result) -> np.ndarray:
    """Probabilities `(segments, labels and background)` in the order of `LABELS`."""
    rows = [{entry["label"]: entry["score"] for entry in segment["top_k"]} for segment in result["segments"]]
    return np.array([[row[label] for label in (*LABELS, "background")] for row in rows])


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_each_segment_says_how_its_label_is_known(pair, localizers, video):
    localizer = localizers(*pair)
    result = localizer(video, candidate_labels=LABELS, top_k=4)
    probabilities = table(result)
    assert probabilities.shape == (12, 4) and np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    for segment in result["segments"]:
        values = [segment[name] for name in ("heard", "seen", "both")]
        if segment["label"] == "background":
            assert values == [None, None, None]
        else:
            assert all(value is None or 0 <= value <= 1 for value in values) and values[:2] != [None, None]
    backward = table(localizer(video, candidate_labels=LABELS[::-1], top_k=4))
    np.testing.assert_allclose(backward, probabilities, atol=1e-5)


def test_two_ids_are_what_the_saved_composite_is(localizers, folders, video, tmp_path):
    sources = folders["clip"], folders["clap"]
    AudioVisualEncoderModel.from_towers(*sources).save_pretrained(tmp_path)
    AudioVisualEncoderProcessor.from_towers(*sources).save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path), device="cpu")
    expected = localizers("clip", "clap")(video, candidate_labels=LABELS, top_k=4)
    np.testing.assert_allclose(table(loaded(video, candidate_labels=LABELS, top_k=4)), table(expected), atol=1e-6)


def test_probabilities_are_what_the_towers_say(localizers, video):
    """Written out with the models' own `forward`: SigLIP's sigmoid, CLAP's softmax with "other"."""
    localizer = localizers("siglip", "clap")
    got = table(localizer(video, candidate_labels=LABELS, top_k=4))
    processor, model = localizer.processor, localizer.model
    inputs = processor(videos=video, return_tensors="pt")
    texts = [*LABELS, OTHER_LABEL]
    seen_tokens = processor.vision_text_tokenizer(
        [f"this is a photo of {text}" for text in texts], padding="max_length", max_length=64, return_tensors="pt"
    )
    heard_tokens = processor.audio_text_tokenizer(
        [f"the sound of {text}" for text in texts], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        seen = model.vision_model(
            input_ids=seen_tokens["input_ids"],
            attention_mask=seen_tokens["attention_mask"],
            pixel_values=inputs["pixel_values"][0, :, 0],
        ).logits_per_image.sigmoid()[:, :3]
        heard = model.audio_model(
            input_ids=heard_tokens["input_ids"],
            attention_mask=heard_tokens["attention_mask"],
            input_features=inputs["input_values"][0],
        ).logits_per_audio.softmax(dim=-1)[:, :3]
    agreement = (seen * heard).sum(dim=-1, keepdim=True)
    shares = (seen * heard).sqrt()
    expected = torch.cat([shares / shares.sum(dim=-1, keepdim=True) * agreement, 1 - agreement], dim=-1)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


@pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")
def test_both_is_what_the_joint_embedding_of_each_segment_says(localizers, video):
    localizer = localizers("pe-av")
    # With so low a threshold, audio and image always agree, so that no segment is background.
    options = {"agreement_threshold": -10.0, "decoder": "none", "num_frames_per_segment": 2}
    segments = localizer(video, candidate_labels=LABELS, **options)["segments"]
    processor, model = localizer.segmenter, localizer.model
    inputs = processor(videos=video, num_frames_per_segment=2, return_tensors="pt")
    tokens = localizer.processor.tokenizer(LABELS, padding=True, return_tensors="pt")
    with torch.no_grad():
        joint = model.audio_video_encoder(
            input_values=inputs["input_values"][0], pixel_values_videos=inputs["pixel_values"][0]
        ).pooler_output
        texts = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        texts = model.text_audio_video_head(texts.last_hidden_state[:, 0])
        logits = model.audio_video_head(joint) @ texts.T * model.text_audio_video_logit_scale
        both = (logits + model.text_audio_video_logit_bias).sigmoid()
    assert [segment["label"] for segment in segments] == [LABELS[row.argmax()] for row in both]
    np.testing.assert_allclose([segment["both"] for segment in segments], both.amax(dim=-1), atol=1e-5)
    np.testing.assert_allclose(
        [segment["score"] for segment in segments], (both / both.sum(dim=-1, keepdim=True)).amax(dim=-1), atol=1e-5
    )


@pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")
def test_missing_frames_do_not_change_a_joint_embedding(localizers):
    encoder = encoder_for(localizers("pe-av").model)
    torch.manual_seed(0)
    frames, windows = torch.randn(3, 4, 3, 32, 32), torch.randn(3, 1, 8000)
    mask = torch.tensor([[True] * 4, [True, True, False, False], [False] * 4])
    with torch.no_grad():
        found = encoder.embed_jointly(frames, mask, windows)
        for index, number in ((0, 4), (1, 2)):
            alone = encoder.embed_jointly(
                frames[index, None, :number], mask[index, None, :number], windows[index, None]
            )
            for sense, values in alone.items():
                torch.testing.assert_close(found[sense][index, None], values, rtol=1e-4, atol=1e-5)
    assert not found["both"][2].any() and not found["seen"][2].any() and found["heard"][2].any()


def test_labels_are_embedded_once_per_tower(localizers, video, monkeypatch):
    localizer = localizers("clip", "clap")
    calls = []
    for name in ("vision_model", "audio_model"):
        tower = getattr(localizer.model, name)

        def counted(embed=tower.get_text_features, name=name, **tokens):
            calls.append((name, len(tokens["input_ids"])))
            return embed(**tokens)

        monkeypatch.setattr(tower, "get_text_features", counted)
    for _ in range(2):
        localizer([video, video], candidate_labels="cow, horse")
    assert sorted(calls) == [("audio_model", 3), ("vision_model", 3)]
    localizer(video, candidate_labels="cow, horse", hypothesis_template="a {} here")
    assert len(calls) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types(dtype, folders, video):
    towers = {"vision_model": folders["clip"], "audio_model": folders["clap"]}
    localizer = pipeline(TASK, device="cpu", dtype=dtype, **towers)
    assert localizer.model.dtype == dtype
    assert np.isfinite(table(localizer(video, candidate_labels=LABELS, top_k=4))).all()


def test_what_a_classifier_has_no_class_for_is_judged_by_the_other_sense(localizers, video):
    localizer = localizers("vit", "clap")  # the image classifier has no car
    segments = localizer(video, candidate_labels=["car"], decoder="none")["segments"]
    assert {segment["seen"] for segment in segments} == {None}
    with pytest.raises(ValueError, match="has a class for the label 'zither'"):
        localizers("vit", "ast")(video, candidate_labels=["zither"])


def test_a_silent_video_has_no_event(localizers, tmp_path):
    silent = write_recording(tmp_path / "silent.mp4", 2.0, sound=None)
    result = localizers("clip", "clap")(str(silent), candidate_labels=LABELS)
    assert result["events"] == []
    assert [(segment["label"], segment["heard"]) for segment in result["segments"]] == [("background", None)] * 2


def test_options_that_do_not_fit_are_named(localizers, folders, video):
    with pytest.raises(ValueError, match=r"agreement_threshold=0\.1 needs an encoder with one space"):
        localizers("clip", "clap")(video, candidate_labels=LABELS, agreement_threshold=0.1)
    with pytest.raises(ValueError, match="both are needed"):
        pipeline(TASK, vision_model=folders["clip"])
    with pytest.raises(ValueError, match='runs "ave-clip-mini" or an encoder'):
        pipeline(TASK, model=folders["clip"])


def test_a_sigmoid_judges_each_label_by_itself_and_a_softmax_all_together():
    embeds, texts = torch.eye(2), torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    sigmoid = score_texts(embeds, texts, Similarity(scale=2.0, bias=-1.0))
    torch.testing.assert_close(sigmoid.exp(), torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).sigmoid())
    logits = torch.tensor([[2.0, 0.0, math.sqrt(2)], [0.0, 2.0, math.sqrt(2)]])
    softmax = score_texts(embeds, texts, Similarity(scale=2.0))
    torch.testing.assert_close(softmax.exp(), logits.softmax(dim=-1)[:, :2])


def test_classes_of_a_label_add_up_or_the_largest_counts():
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    single = score_classes(logits, [(0, 2), (), (1,)], is_multi_label=False)
    assert single[0, 0].exp() == pytest.approx(float(logits.softmax(-1)[0, [0, 2]].sum())) and single[0, 1].isnan()
    several = score_classes(logits, [(0, 2)], is_multi_label=True)
    assert several.exp().item() == pytest.approx(float(torch.tensor(2.0).sigmoid()))


def test_what_one_sense_cannot_tell_is_left_to_the_other():
    heard = torch.tensor([[0.5, 0.2, math.nan]]).log()
    seen = torch.tensor([[0.4, math.nan, 0.1]]).log()
    scores = combine(heard, seen)
    agreement = 0.5 * 0.4 + 0.2 + 0.1
    shares = torch.tensor([math.sqrt(0.2), 0.2, 0.1])
    torch.testing.assert_close(scores.probabilities[0, :3], shares / shares.sum() * agreement)
    assert scores.probabilities[0, 3].item() == pytest.approx(1 - agreement)
    assert scores.both.isnan().tolist() == [[False, True, True]]
    many = combine(torch.zeros(1, 3), torch.zeros(1, 3))  # both sure of everything
    assert many.probabilities[0, 3] == 0
