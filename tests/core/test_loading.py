"""Damaged checkpoints are refused with one clear error; sizes that no machine holds before memory is taken."""

import io
import json
import os
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from ave_clip.core.configuration_audioclip import AudioCLIPAudioConfig, AudioCLIPConfig, AudioCLIPVisionConfig
from ave_clip.core.modeling_audioclip import AudioCLIPModel
from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from ave_clip.core.modeling_clip_resnet import AudioCLIPVisionModel
from ave_clip.core.processing_ave_clip import AVEClipProcessor
from tests.helpers.models import tiny_audioclip_config, tiny_localizer, tiny_processor

FEATURES = {"use_encoders": False, "image_feature_size": 24, "audio_feature_size": 24}


class Intruder:
    def __reduce__(self):
        return print, ("code in a pickle ran",)


@pytest.fixture
def folder(tmp_path):
    tiny_localizer(**FEATURES).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def keep(folder, wanted):
    file = folder / "model.safetensors"
    tensors = {name: tensor for index, (name, tensor) in enumerate(load_file(file).items()) if wanted(index, name)}
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("options", [{}, {"ignore_mismatched_sizes": True, "id2label": {0: "Horn", 1: "background"}}])
@pytest.mark.parametrize("load", [AVEClipForLocalization, AutoModel])
def test_half_of_the_weights_is_refused(folder, load, options):
    keep(folder, lambda index, name: index % 2)
    with pytest.raises(OSError, match=r"\d+ of the \d+ weights that AVEClipForLocalization needs are missing"):
        load.from_pretrained(folder, **options)


def test_a_single_missing_weight_is_named(folder):
    keep(folder, lambda index, name: name != "category_head.classifier.bias")
    with pytest.raises(OSError, match=r"1 of the \d+ weights .* among them category_head\.classifier\.bias\."):
        AVEClipForLocalization.from_pretrained(folder)


def test_audioclip_needs_the_weights_of_the_towers_it_names(tmp_path):
    AudioCLIPModel(tiny_audioclip_config()).save_pretrained(tmp_path)
    assert set(AudioCLIPModel.from_pretrained(tmp_path, towers=("audio", "vision")).config.towers) == {
        "audio",
        "vision",
    }
    assert isinstance(AudioCLIPVisionModel.from_pretrained(tmp_path), AudioCLIPVisionModel)
    keep(tmp_path, lambda index, name: not name.startswith("audio_model.layer1"))
    with pytest.raises(OSError, match="weights that AudioCLIPModel needs are missing"):
        AudioCLIPModel.from_pretrained(tmp_path)


def test_layers_that_only_the_arguments_ask_for_are_new(folder):
    model = AVEClipForLocalization.from_pretrained(folder, normalize_features=True)
    assert torch.equal(model.image_norm.spread, torch.ones(24))
    assert isinstance(AVEClipForLocalization.from_pretrained(folder, output_loading_info=True), tuple)


@pytest.mark.parametrize("size", [0, 4, 100, 5000])
def test_cut_off_safetensors_are_refused(folder, size):
    os.truncate(folder / "model.safetensors", size)
    with pytest.raises(OSError, match=r"cannot be read .*damaged or incomplete") as caught:
        AVEClipForLocalization.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def pickled(folder, data):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(data)


def test_pickles_hold_tensors_alone(folder, capsys):
    buffer = io.BytesIO()
    torch.save(load_file(folder / "model.safetensors"), buffer)
    whole = buffer.getvalue()
    for name, data in {"cut": whole[: len(whole) // 2], "empty": b"", "text": b"<html>", "code": None}.items():
        damaged = folder.parent / name
        shutil.copytree(folder, damaged)
        pickled(damaged, pickle.dumps(Intruder()) if data is None else data)
        with pytest.raises(OSError, match=r"cannot be read .*damaged or incomplete") as caught:
            AVEClipForLocalization.from_pretrained(damaged)
        assert "\n" not in str(caught.value) and "weights_only" not in str(caught.value)
    assert "ran" not in capsys.readouterr().out
    pickled(folder, whole)
    assert isinstance(AVEClipForLocalization.from_pretrained(folder), AVEClipForLocalization)


@pytest.mark.parametrize(
    ("config_class", "values"),
    [
        (AudioCLIPAudioConfig, {"n_fft": 2**30}),
        (AudioCLIPAudioConfig, {"n_fft": 2**17}),
        (AudioCLIPAudioConfig, {"sampling_rate": 2**30}),
        (AudioCLIPAudioConfig, {"groups": 2**20}),
        (AudioCLIPVisionConfig, {"image_size": 2**20}),
        (AudioCLIPVisionConfig, {"width": 2**18}),
        (AudioCLIPVisionConfig, {"depths": (10**6, 1, 1, 1)}),
        (AudioCLIPConfig, {"projection_dim": 2**40}),
        (AudioCLIPConfig, {"text_config": {"vocab_size": 2**40}}),
        (AudioCLIPConfig, {"text_config": {"num_hidden_layers": 10**6}}),
    ],
)
def test_sizes_too_large_for_any_machine_are_refused(config_class, values):
    with pytest.raises(ValueError, match=r"too large|weights|at most|more than"):
        config_class(**values)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (
            "video_processor",
            {"num_frames_per_segment": 10**9},
            "`num_frames_per_segment` must be 1 to 1000",
        ),
        (
            "video_processor",
            {"num_frames_per_segment": 1000, "crop_size": {"height": 2048, "width": 2048}},
            "more than",
        ),
        ("video_processor", {"size": {"shortest_edge": 10**9}}, "`size` must be 1 to 4096 pixels"),
        ("video_processor", {"size": {"height": 64, "width": 10**6}}, "got width=1000000"),
        ("video_processor", {"crop_size": {"height": 10**6, "width": 64}}, "`crop_size` must be 1 to 4096 pixels"),
        ("video_processor", {"segment_seconds": 1e9}, "`segment_seconds` must be 0.01 to 3600"),
        ("video_processor", {"segment_seconds": 1e-9}, "`segment_seconds` must be 0.01 to 3600"),
        ("video_processor", {"segment_seconds": -1.0}, "`segment_seconds` must be a number above 0"),
        ("feature_extractor", {"sampling_rate": 10**12}, "sampling_rate must be a whole number from 1 to"),
        ("feature_extractor", {"sampling_rate": 0}, "sampling_rate must be a whole number from 1 to"),
        (
            None,
            {"feature_extractor": {"sampling_rate": 10**7}, "video_processor": {"segment_seconds": 3600}},
            "samples",
        ),
    ],
)
def test_absurd_numbers_of_a_processor_are_refused_at_loading(part, values, message, tmp_path):
    tiny_processor().save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    content = json.loads(file.read_text())
    for name, changed in ({part: values} if part else values).items():
        content[name].update(changed)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        AVEClipProcessor.from_pretrained(tmp_path)


def test_a_configuration_of_version_0_1_loads_without_its_unused_field(folder):
    file = folder / "config.json"
    content = json.loads(file.read_text())
    assert "initializer_range" not in content
    file.write_text(json.dumps({**content, "initializer_range": 0.02}))
    assert "initializer_range" not in AVEClipForLocalization.from_pretrained(folder).config.to_dict()
