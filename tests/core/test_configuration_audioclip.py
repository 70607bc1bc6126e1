"""Configurations of AudioCLIP and of its towers."""

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, CLIPTextConfig

from ave_clip.core.configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig, AudioCLIPVisionConfig


def test_defaults_are_those_of_the_release():
    config = AudioCLIPConfig()
    assert config.projection_dim == config.text_config.projection_dim == 1024
    assert config.text_config.vocab_size == 49408 and config.text_config.eos_token_id == 49407
    assert (config.vision_config.hidden_size, config.vision_config.grid_size) == (2048, 7)
    assert (config.audio_config.hidden_size, config.audio_config.num_frequency_bins) == (2048, 1025)
    assert config.audio_config.stage_inner_widths == (128, 256, 512, 1024)
    assert config.audio_config.num_image_rows == 341
    assert config.towers == ("text", "vision", "audio")


def test_towers_may_be_given_as_dicts_or_objects_and_follow_projection_dim():
    config = AudioCLIPConfig(
        text_config=CLIPTextConfig(hidden_size=32, num_attention_heads=4),
        vision_config={"width": 16, "image_size": 96},
        audio_config=AudioCLIPAudioConfig(n_fft=512, win_length=512),
        projection_dim=48,
    )
    assert config.text_config.hidden_size == 32
    assert config.vision_config.hidden_size == 512 and config.vision_config.grid_size == 3
    assert config.audio_config.num_image_rows == 85
    towers = (config.text_config, config.vision_config, config.audio_config)
    assert [tower.projection_dim for tower in towers] == [48, 48, 48]


def test_projection_dim_defaults_to_that_of_the_image_tower():
    assert AudioCLIPConfig(vision_config={"projection_dim": 20}).audio_config.projection_dim == 20


def test_saving_and_loading_keeps_every_field(tmp_path):
    config = AudioCLIPConfig(
        vision_config={"depths": [1, 2, 1, 1], "width": 8, "num_attention_heads": 4},
        audio_config={"depths": (2, 1, 1, 1), "normalized": False},
        projection_dim=12,
        towers=["vision", "audio"],
    )
    config.save_pretrained(tmp_path)
    loaded = AudioCLIPConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.vision_config.depths == (1, 2, 1, 1) and loaded.towers == ("vision", "audio")
    assert type(AutoConfig.from_pretrained(tmp_path)) is AudioCLIPConfig
    vision = AudioCLIPVisionConfig.from_pretrained(tmp_path)
    assert vision.width == 8 and vision.projection_dim == 12


@pytest.mark.parametrize(
    ("config_class", "values", "message"),
    [
        (AudioCLIPVisionConfig, {"image_size": 100}, "image_size must be a multiple of 32.*got 100"),
        (AudioCLIPVisionConfig, {"width": 15}, "width must be even.*got 15"),
        (AudioCLIPVisionConfig, {"num_attention_heads": 7}, "num_attention_heads=7 must divide.*2048"),
        (AudioCLIPVisionConfig, {"depths": (1, 2)}, r"depths must be 4 counts.*got \(1, 2\)"),
        (AudioCLIPVisionConfig, {"depths": (1, 0, 1, 1)}, "at least 1"),
        (AudioCLIPVisionConfig, {"num_channels": 0}, "num_channels must be above 0, got 0"),
        (AudioCLIPAudioConfig, {"win_length": 3000}, "win_length=3000 must not exceed n_fft=2048"),
        (AudioCLIPAudioConfig, {"hop_length": 0}, "hop_length must be above 0, got 0"),
        (AudioCLIPAudioConfig, {"n_fft": 3, "win_length": 3}, "n_fft=3 gives 2 frequency bins"),
        (AudioCLIPAudioConfig, {"batch_norm_eps": 0.0}, "batch_norm_eps must be above 0"),
        (AudioCLIPConfig, {"projection_dim": -1}, "projection_dim must be above 0, got -1"),
        (AudioCLIPConfig, {"towers": ("audio", "smell")}, "towers must contain some of.*smell"),
        (AudioCLIPConfig, {"towers": ()}, "towers must contain some of"),
        (AudioCLIPConfig, {"towers": ("audio", "audio")}, "each once"),
    ],
)
def test_values_that_cannot_work_are_refused(config_class, values, message):
    with pytest.raises(ValueError, match=message):
        config_class(**values)


def test_values_of_another_type_are_refused():
    with pytest.raises(StrictDataclassError, match="n_fft"):
        AudioCLIPAudioConfig(n_fft="2048")
