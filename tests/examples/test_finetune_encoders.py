"""Stage 1 with encoders other than AudioCLIP: PE-AV, of transformers' real class, and those that cannot be trained."""

import importlib.util
import json

import cross_modality
import extract_features
import finetune_audioclip as stage1
import pytest
import torch
from safetensors.torch import load_file

from ave_clip import AVEClipConfig
from ave_clip.core.modeling_audio_visual_encoder import AudioVisualEncoderModel
from ave_clip.core.processing_audio_visual_encoder import AudioVisualEncoderProcessor
from ave_clip.data import generate_synthetic_ave
from ave_clip.training.checkpoints import load_shared_encoder
from ave_clip.training.run_state import RunStateError
from tests.helpers.encoders import SAVERS
from tests.helpers.failures import full_disk_at_the_second_state
from tests.helpers.models import tiny_audioclip_config

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="PE-AV needs timm")


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Four clips, of which one is for validation and one for the test, and a PE-AV."""
    folder = tmp_path_factory.mktemp("stage1")
    generate_synthetic_ave(folder / "clips", num_videos=4, seed=5, num_workers=0, splits=(0.5, 0.25, 0.25))
    SAVERS["pe-av"](folder / "pe-av")
    return folder


def arguments(work, output, *more):
    values = ["--cpu", "--model", work / "pe-av", "--data", work / "clips", "--cache_dir", work / "cache"]
    values += ["--output_dir", output, "--num_epochs", "2", "--batch_size", "3", "--learning_rate", "3e-3"]
    values += ["--max_steps", "2", "--warmup_share", "0", "--num_frames_per_segment", "1", "--report_to", "none"]
    values += ["--max_shift", "0.5", "--sound_gain_db", "3", "--background_negatives", *more]
    return [str(value) for value in values]


@pytest.fixture(scope="module")
def trained(work):
    stage1.main(arguments(work, work / "trained"))
    return work / "trained"


@needs_timm
def test_the_chosen_parts_of_pe_av_change_and_the_others_stay(work, trained):
    history = json.loads((trained / "results.json").read_text())["history"]
    assert history[1]["loss"] < history[0]["loss"]
    before = AudioVisualEncoderModel.from_towers(str(work / "pe-av")).state_dict()
    changed = {
        name for name, tensor in load_file(trained / "model.safetensors").items() if (tensor != before[name]).any()
    }
    inside = "vision_model."
    assert {f"{inside}audio_video_logit_scale", f"{inside}audio_video_logit_bias"} <= changed
    assert any(name.startswith(f"{inside}video_model.video_encoder") for name in changed)
    assert any(name.startswith(f"{inside}audio_model.audio_encoder.layers") for name in changed)
    assert not any("text_" in name or "dac_encoder" in name for name in changed)
    card = (trained / "README.md").read_text()
    assert "`pe_audio_video`" in card and "R@5" in card and "`learning_rate`" in card


@needs_timm
def test_the_folder_serves_stage_2_and_the_search_in_the_other_modality(work, trained, tmp_path):
    grid = [
        "--cpu",
        "--model",
        trained,
        "--data",
        work / "clips",
        "--num_frames_per_segment",
        "1",
        "--num_workers",
        "0",
    ]
    stage2 = [*grid, "--output_dir", tmp_path, "--visual_feature_type", "pooled", "--dtype", "float32"]
    summary = extract_features.main(list(map(str, [*stage2, "--splits", "train"])))
    assert summary["train"]["clips"] == 2
    from_videos = cross_modality.main(list(map(str, [*grid, "--split", "train", "--queries", "second"])))
    from_features = ["--cpu", "--features_dir", str(tmp_path), "--split", "train", "--queries", "second"]
    assert cross_modality.main(from_features) == from_videos
    processor = AudioVisualEncoderProcessor.from_pretrained(trained)
    assert processor.tokenizer_of("seen")(["dog"])["input_ids"]


@needs_timm
def test_a_stopped_run_resumes_to_the_same_weights(work, trained, tmp_path):
    with full_disk_at_the_second_state(), pytest.raises(RunStateError, match="No space left"):
        stage1.main(arguments(work, tmp_path))
    stage1.main(arguments(work, tmp_path, "--resume"))
    expected = load_file(trained / "model.safetensors")
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@needs_timm
@pytest.mark.parametrize("part", ["both", "heads"])
def test_every_parameter_that_is_trained_gets_a_gradient(work, part):
    model = load_shared_encoder(work / "pe-av")
    stage1.freeze(stage1.parse_args(arguments(work, "unused", "--train", part)), model)
    output = model(pixel_values=torch.rand(2, 3, 32, 32), input_values=torch.rand(2, 1, 8000))
    ids = torch.arange(2)
    embeds = (output.audio_embeds, output.image_embeds)
    stage1.loss_of(model)(*embeds, *stage1.scales_of(model), ids, ids).backward()
    without = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not without
    assert any(value.requires_grad for value in model.parameters())


def save_encoder(folder, *towers):
    sources = [SAVERS[name](folder / name) for name in towers]
    for part in (AudioVisualEncoderModel, AudioVisualEncoderProcessor):
        part.from_towers(*sources).save_pretrained(folder / "joined")
    return str(folder / "joined")


def test_encoders_without_a_common_space_are_refused_by_their_towers(tmp_path):
    joined = save_encoder(tmp_path, "clip", "clap")
    for source, message in (
        (joined, "contains 'clip' for images and 'clap' for audio: there is no embedding space"),
        ("ave-clip-mini", "is of the type 'ave_clip_mini': there is no embedding space"),
        (str(tmp_path / "clip"), "is of the type 'clip': there is no embedding space"),
    ):
        with pytest.raises(ValueError, match=message):
            load_shared_encoder(source)
    with pytest.raises(ValueError, match="contains 'clip' for images and 'clap' for audio"):
        cross_modality.main(["--cpu", "--model", joined, "--data", "unread"])


def test_a_localizer_is_refused(tmp_path):
    AVEClipConfig(encoder_config=tiny_audioclip_config().to_dict()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a localizer, which contains a frozen encoder"):
        load_shared_encoder(tmp_path)
