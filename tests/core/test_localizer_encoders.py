"""Localizers on composite encoders, and the configuration of earlier checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from transformers import pipeline

from ave_clip.core.builtin_checkpoints import builtin_checkpoints
from ave_clip.core.configuration_ave_clip import AVEClipConfig
from ave_clip.core.encoders import importlib
from ave_clip.core.modeling_audio_visual_encoder import AudioVisualEncoderModel
from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from ave_clip.core.processing_audio_visual_encoder import AudioVisualEncoderProcessor
from ave_clip.core.processing_ave_clip import AVEClipProcessor
from tests.helpers.encoders import SAVERS
from tests.helpers.media import write_recording
from tests.helpers.models import tiny_audioclip_config, tiny_config, tiny_localizer

HAS_TIMM = importlib.util.find_spec("timm") is not None
PAIRS = [("clip", "clap"), ("siglip2", "pe-a-frame"), ("vit", "ast")] + ([("pe-av", None)] if HAS_TIMM else [])


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """A function that gives the encoder and the processor of a pair."""
    made = {}

    def get(pair):
        if pair not in made:
            folder = tmp_path_factory.mktemp("towers")
            sources = [None if name is None else SAVERS[name](folder / name) for name in pair]
            made[pair] = (
                AudioVisualEncoderModel.from_towers(*sources),
                AudioVisualEncoderProcessor.from_towers(*sources),
            )
        return made[pair]

    return get


def localizer_on(encoder: AudioVisualEncoderModel, **overrides) -> AVEClipForLocalization:
    model = tiny_localizer(encoder_config=encoder.config.to_dict(), audioclip_config=None, **overrides)
    state = {name: value for name, value in encoder.state_dict().items() if name in model.encoder.state_dict()}
    model.encoder.load_state_dict(state)
    return model


@pytest.mark.parametrize("kind", ["dense", "pooled"])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_localizer_runs_on_any_composite_and_loads_by_its_name_alone(pair, kind, encoders, tmp_path):
    encoder, processor = encoders(pair)
    model = localizer_on(encoder, visual_feature_type=kind)
    assert not any("text_model" in name for name in model.state_dict()) or pair[0] == "pe-av"
    video = str(write_recording(tmp_path / "clip.mp4", 4.0))
    own = AVEClipProcessor(
        processor.feature_extractor,
        processor.video_processor,
        model.config.id2label,
        audio_window_seconds=processor.audio_window_seconds,
        audio_options=processor.audio_options,
    )
    inputs = own(videos=video, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs)
        pixels, audio = inputs["pixel_values"][0, :, 0], inputs["input_values"][0]
        image, sound = model.encode(inputs["pixel_values"], inputs["input_values"], inputs["frame_mask"])
        torch.testing.assert_close(sound[0], encoder(input_values=audio).audio_embeds)
        features = encoder.get_image_features(pixels)
        torch.testing.assert_close(image[0], features[1] if kind == "pooled" else features[0])
    model.save_pretrained(tmp_path / "model")
    own.save_pretrained(tmp_path / "model")
    loaded = AVEClipForLocalization.from_pretrained(tmp_path / "model").eval()
    assert loaded.config.encoder_config.audio_id == encoder.config.audio_id
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, expected.logits)
    half = AVEClipForLocalization.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    localizer = pipeline("audio-visual-event-localization", model=str(tmp_path / "model"), device="cpu")
    assert type(localizer.processor.feature_extractor) is type(processor.feature_extractor)
    result = localizer(video, decoder="none")
    labels = [model.config.id2label[index] for index in expected.logits[0].argmax(dim=-1).tolist()]
    assert [segment["label"] for segment in result["segments"]] == labels


def test_a_frozen_composite_gets_no_gradient(encoders):
    model = localizer_on(encoders(("clip", "clap"))[0])
    model.freeze_encoders()
    model.train()
    assert not model.encoder.training
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert model.category_head.classifier.weight.requires_grad


def test_the_name_of_earlier_versions_still_loads(tmp_path):
    config = tiny_config()
    content = config.to_dict()
    assert "audioclip_config" not in content
    content["audioclip_config"] = content.pop("encoder_config")
    (tmp_path / "config.json").write_text(json.dumps({**content, "model_type": "ave_clip"}, default=str))
    assert AVEClipConfig.from_dict(content).to_dict() == config.to_dict()
    assert AVEClipConfig(audioclip_config=tiny_audioclip_config()).encoder_config.vision_config.width == 8
    assert config.audioclip_config is config.encoder_config
    tiny = json.loads((Path(builtin_checkpoints()["ave-clip-tiny"]) / "config.json").read_text(encoding="utf-8"))
    assert "audioclip_config" in tiny  # the embedded model is such a checkpoint


def test_what_is_missing_from_a_composite_is_named(encoders):
    encoder = encoders(("clip", "clap"))[0]
    with pytest.raises(ValueError, match="'layer4' is a map of AudioCLIP"):
        localizer_on(encoder, visual_feature_type="layer4")
    with pytest.raises(AttributeError, match="has no AudioCLIP"):
        _ = localizer_on(encoder).config.audioclip_config
    with pytest.raises(ValueError, match="own tower gives 12"):
        localizer_on(encoder, audio_feature_size=13)
