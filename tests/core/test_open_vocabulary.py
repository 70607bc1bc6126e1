"""The head that compares segments with embeddings of label texts."""

import pytest
import torch
from torch.nn import functional

from ave_clip import AVEClipConfig, AVEClipForLocalization
from ave_clip.core.categories import labels_with_background
from ave_clip.core.label_encoder import LabelEncoder
from ave_clip.core.modeling_audio_visual_encoder import AudioVisualEncoderModel
from ave_clip.core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
from ave_clip.core.pipeline_zero_shot import ZeroShotAudioVisualEventLocalizationPipeline
from ave_clip.core.processing_audio_visual_encoder import AudioVisualEncoderProcessor
from tests.helpers.encoders import SAVERS
from tests.helpers.models import SYNTHETIC_SAMPLE, tiny_localizer, tiny_processor

SIZE, NAMES = 8, ["Bell", "Bark", "Clap"]


def open_localizer(problem_type="single_label", size=SIZE, **overrides):
    names = dict(enumerate(NAMES)) if problem_type == "multi_label" else labels_with_background(NAMES)
    fields = {"use_encoders": False, "image_feature_size": SIZE, "audio_feature_size": SIZE}
    fields |= {"visual_feature_type": "pooled", "id2label": names, "problem_type": problem_type}
    model = tiny_localizer(label_embedding_size=size, **{**fields, **overrides})
    model.set_labels(NAMES, embeddings(3, size))
    return model


def embeddings(number, size=SIZE, seed=1):
    return torch.randn(number, size, generator=torch.Generator().manual_seed(seed))


def features(num_segments=6):
    generator = torch.Generator().manual_seed(2)
    return {f"{name}_features": torch.randn(2, num_segments, SIZE, generator=generator) for name in ("image", "audio")}


@pytest.mark.parametrize("problem_type", ["single_label", "multi_label"])
def test_permuted_labels_permute_the_logits(problem_type):
    model = open_localizer(problem_type)
    with torch.no_grad():
        before = model(**features()).logits
        model.set_labels(["Clap", "Bell", "Bark"])
        after = model(**features()).logits
    order = [2, 0, 1] if problem_type == "multi_label" else [2, 0, 1, 3]
    torch.testing.assert_close(after, before[..., order])
    assert [model.config.id2label[index] for index in range(3)] == ["Clap", "Bell", "Bark"]


def test_an_untrained_head_is_the_encoders_own_comparison_and_equals_a_closed_one():
    for size, joined in ((SIZE, lambda image, audio: image + audio), (2 * SIZE, lambda *both: torch.cat(both, -1))):
        model = open_localizer(size=size)
        inputs = features()
        segments = joined(*(functional.normalize(inputs[f"{name}_features"], dim=-1) for name in ("image", "audio")))
        closed = torch.nn.Linear(size, 3, bias=False)
        closed.weight.data = functional.normalize(embeddings(3, size), dim=-1) / 0.07
        with torch.no_grad():
            expected = closed(functional.normalize(segments, dim=-1))
            torch.testing.assert_close(model(**inputs).logits[..., :3], expected, rtol=1e-4, atol=1e-4)


def test_the_labels_are_saved_and_loaded(tmp_path):
    model = open_localizer()
    model.set_labels(["Train horn", "Bell"], embeddings(2, seed=3))
    model.config.trained_labels = ("Bell",)
    model.save_pretrained(tmp_path)
    loaded = AVEClipForLocalization.from_pretrained(tmp_path)
    assert loaded.config.id2label == labels_with_background(["Train horn", "Bell"])
    assert loaded.config.trained_labels == ("Bell",)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**features()).logits, model(**features()).logits, rtol=0, atol=0)


def test_labels_that_cannot_be_set_are_refused():
    model = open_localizer()
    for labels, values, message in (
        (["Siren"], None, "no embedding of the label 'Siren', only of"),
        (["Siren"], embeddings(1, SIZE + 1), r"must have the shape \(1, 8\), got \(1, 9\)"),
        (["Siren", "siren"], embeddings(2), "contains a class twice"),
        (["background"], embeddings(1), "is added by itself"),
        ([], None, "at least one label"),
        (["Siren"], torch.zeros(1, SIZE), "none of them zero"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_labels(labels, values)
    assert list(model.config.id2label.values())[:3] == NAMES
    with pytest.raises(ValueError, match="scores fixed classes"):
        tiny_localizer().set_labels(["Siren"], embeddings(1))
    with pytest.raises(ValueError, match="have no embeddings yet"):
        AVEClipForLocalization(model.config)(**features())
    several = {"id2label": dict(enumerate(NAMES)), "problem_type": "multi_label"}
    with pytest.raises(ValueError, match="has weights of fixed classes"):
        AVEClipConfig(**several, class_weights=[1, 2, 3], label_embedding_size=4)
    with pytest.raises(ValueError, match="`label_embedding_size` must be at least 1, got 0"):
        AVEClipConfig(label_embedding_size=0)


def draw_clips(number, classes, directions, generator):
    """Clips with one event of three segments; a class is seen and heard as its direction."""
    labels = torch.full((number, 6), -1)
    labels[:, 1:4] = torch.tensor(classes)[torch.randint(len(classes), (number, 1), generator=generator)]
    noisy = [torch.randn(number, 6, SIZE, generator=generator) * 0.2 for _ in range(2)]
    noisy = [part + directions[labels] * (labels >= 0).unsqueeze(-1) for part in noisy]
    return {"image_features": noisy[0], "audio_features": noisy[1]}, labels


def test_a_training_on_seen_classes_finds_an_unseen_one():
    generator = torch.Generator().manual_seed(0)
    names, directions = [f"class {index}" for index in range(6)], torch.eye(SIZE)[:6]
    model = open_localizer().train()
    model.set_labels(names[:4], directions[:4])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        inputs, labels = draw_clips(16, [0, 1, 2, 3], directions, generator)
        model(**inputs, labels=labels.where(labels >= 0, torch.tensor(4))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().set_labels(names, directions)
    inputs, labels = draw_clips(64, [4, 5], directions, generator)
    with torch.no_grad():
        found = model(**inputs).logits.argmax(dim=-1)
    assert (found == labels.where(labels >= 0, torch.tensor(6))).float().mean() > 0.85


def test_labels_are_embedded_by_the_towers_that_take_texts(tmp_path):
    towers = {name: SAVERS[name](tmp_path / name) for name in ("clip", "clap", "ast")}
    both = AudioVisualEncoderModel.from_towers(towers["clip"], towers["clap"])
    encoder = LabelEncoder(both, AudioVisualEncoderProcessor.from_towers(towers["clip"], towers["clap"]))
    found = encoder(["bell", "bark"])
    assert found.shape == (2, 24)
    torch.testing.assert_close(found.unflatten(1, (2, 12)).norm(dim=-1), torch.ones(2, 2))
    one = AudioVisualEncoderModel.from_towers(towers["clip"], towers["ast"])
    processor = AudioVisualEncoderProcessor.from_towers(towers["clip"], towers["ast"])
    torch.testing.assert_close(LabelEncoder(one, processor)(["bell"]), found[:1, :12])
    with pytest.raises(ValueError, match="it has no text tower"):
        LabelEncoder.from_pretrained("ave-clip-tiny")
    with pytest.raises(ValueError, match="All towers of this 'audio_visual_encoder' are classifiers"):
        LabelEncoder.from_pretrained("ave-clip-mini")


def test_pipelines_take_labels_of_an_open_vocabulary(tmp_path):
    model = tiny_localizer(label_embedding_size=24, visual_feature_type="pooled")
    model.set_labels(NAMES, embeddings(3, 24))
    parts = {
        "model": model,
        "processor": tiny_processor(),
        "label_encoder": lambda labels: embeddings(len(labels), 24),
    }
    own = AudioVisualEventLocalizationPipeline(**parts, task="audio-visual-event-localization")
    expected = own(str(SYNTHETIC_SAMPLE), candidate_labels=["Siren", "Bell"], decoder="none")
    assert {part["label"] for part in expected["segments"]} <= {"Siren", "Bell", "background"}
    zero_shot = ZeroShotAudioVisualEventLocalizationPipeline(**parts, task="zero-shot")
    assert zero_shot(str(SYNTHETIC_SAMPLE), candidate_labels="Siren,Bell", decoder="none") == expected
    # A stream after a call with other labels, and the reverse.
    assert list(own.stream(str(SYNTHETIC_SAMPLE), decoder="none"))[-1] == own(str(SYNTHETIC_SAMPLE), decoder="none")
    assert list(own.stream(str(SYNTHETIC_SAMPLE), decoder="none", candidate_labels="Siren,Bell"))[-1] == expected
    own.save_pretrained(tmp_path)  # with its own labels, not those of the last call
    assert list(AVEClipConfig.from_pretrained(tmp_path).id2label.values()) == [*NAMES, "background"]
    for labels in ("Bark", "Siren,Bell"):
        result = zero_shot(str(SYNTHETIC_SAMPLE), candidate_labels=labels, decoder="none")
    own(str(SYNTHETIC_SAMPLE))
    *_, streamed = zero_shot.stream(str(SYNTHETIC_SAMPLE), candidate_labels="Siren,Bell", decoder="none")
    assert streamed == result == expected
    own(str(SYNTHETIC_SAMPLE))
    assert list(model.config.id2label.values()) == [*NAMES, "background"]
    with pytest.raises(ValueError, match="which this 'ave_clip' does not have"):
        AudioVisualEventLocalizationPipeline(tiny_localizer(), processor=tiny_processor(), label_encoder="encoder")
