"""A localizer of own classes on the encoder of `ave-clip-mini`, by the documented configurations."""

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import pipeline
from typer.testing import CliRunner

from ave_clip import AVEClipForLocalization, AVEClipMiniForLocalization, AVEClipProcessor
from ave_clip.cli import app
from ave_clip.data import generate_synthetic_ave
from ave_clip.training.features import FeatureStoreError

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = EXAMPLES / "configs" / "mini"


@pytest.fixture(scope="module")
def train():
    """`train_localizer.main` with the configuration."""
    sys.path.insert(0, str(EXAMPLES))
    import train_localizer

    def run(work, output, *more, model="ave-clip-mini"):
        arguments = ["--config", str(CONFIGS / "stage3.yaml"), "--cpu", "--model", model]
        arguments += ["--features_dir", str(work / "features"), "--output_dir", str(work / output)]
        return train_localizer.main([*arguments, "--batch_size", "1", "--num_epochs", "1", "--max_steps", "2", *more])

    return run


@pytest.fixture(scope="module")
def work(tmp_path_factory, train):
    """Synthetic clips, their features, and a localizer that was trained for two steps."""
    import extract_features

    folder = tmp_path_factory.mktemp("mini")
    generate_synthetic_ave(folder / "clips", num_videos=4, seed=5, num_workers=0, splits=(0.5, 0.25, 0.25))
    arguments = ["--config", CONFIGS / "stage2.yaml", "--cpu", "--model", "ave-clip-mini", "--num_workers", "0"]
    arguments += ["--data_dir", folder / "clips", "--output_dir", folder / "features"]
    extract_features.main([str(argument) for argument in arguments])
    train(folder, "localizer")
    return folder


def test_the_localizer_loads_by_its_name_alone_and_contains_the_encoder(work):
    localizer = AVEClipForLocalization.from_pretrained(work / "localizer").eval()
    assert not localizer.encoder.vision_model.audio_model.training
    processor = AVEClipProcessor.from_pretrained(work / "localizer")
    assert (processor.feature_extractor.sampling_rate, processor.window_seconds) == (16000, 1.0)
    video = sorted((work / "clips" / "AVE").iterdir())[0]
    inputs = processor(videos=str(video), return_tensors="pt")
    mini = AVEClipMiniForLocalization.from_pretrained("ave-clip-mini").eval()
    with torch.no_grad():
        found, expected = (
            model.encode(inputs["pixel_values"], inputs["input_values"], inputs["frame_mask"])
            for model in (localizer, mini)
        )
    assert found[0].shape[2:] == (49, 1280) and found[1].shape[2:] == (1024,)
    for features, others in zip(found, expected, strict=True):
        torch.testing.assert_close(features, others)


def test_what_only_labels_need_is_not_in_the_localizer(work):
    weights = AVEClipForLocalization.from_pretrained(work / "localizer").state_dict()
    unused = ("event_head", "label_classifier", "image_model.classifier", "audio_model.classifier")
    assert not [name for name in weights for part in unused if f"vision_model.{part}" in name]


def test_features_of_mini_are_refused_by_another_encoder(work, train):
    with pytest.raises(FeatureStoreError, match=r"made by another encoder \(ave-clip-mini"):
        train(work, "other", "--localizer", "hidden_size=8", model="ave-clip-tiny")


def test_the_pipeline_and_the_command_line_run_it(work):
    video = str(sorted((work / "clips" / "AVE").iterdir())[0])
    localizer = pipeline("audio-visual-event-localization", model=str(work / "localizer"), device="cpu")
    result = localizer(video, return_heatmaps=True)
    expected = result["segments"]
    assert len(expected) == 10 and result["heatmaps"].shape == (10, 7, 7)
    assert localizer.model.config.encoder_config.vision_id == "ave-clip-mini"
    result = CliRunner().invoke(app, ["localize", video, "--model", str(work / "localizer"), "--format", "json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[0]["segments"] == expected


def test_the_card_names_the_encoder_and_its_licence(work):
    card = (work / "localizer" / "README.md").read_text(encoding="utf-8")
    assert "uses 1 frame\n  per segment and mono audio at 16000 Hz" in card
    assert "images and audio: ave-clip-mini (`ave_clip_mini`)" in card
    assert "have the licences of its\ntowers" in card and "AudioCLIP, whose authors" not in card
    assert "license: other" in card and "None" not in card
