"""Stage 3 learns from features, peers' h5 and videos alike; killed, resumed or split over processes, it is one run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

from ave_clip import AudioCLIPFeatureExtractor, AudioCLIPModel, AVEClipForLocalization, AVEClipProcessor
from ave_clip.categories import labels_with_background
from ave_clip.data import generate_synthetic_ave, load_ave
from ave_clip.training.checkpoints import load_audioclip
from ave_clip.training.features import FeatureStore, FeatureStoreError
from ave_clip.training.run_state import RunStateError
from tests.test_examples import AUDIOCLIP

EXAMPLES = Path(__file__).parents[1] / "examples"
LOCALIZER = ["hidden_size=8", "agva_hidden_size=8", "agva_attention_size=4", "min_event_segments=1"]
H5_CLASSES = [f"kind {number}" for number in range(3)]


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(EXAMPLES))
    try:
        import train_localizer
    finally:
        sys.path.remove(str(EXAMPLES))
    return train_localizer


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Synthetic clips, an untrained AudioCLIP, and its features of the clips in single precision."""
    folder = tmp_path_factory.mktemp("stage3")
    generate_synthetic_ave(folder / "clips", num_videos=12, seed=5, num_workers=0, splits=(0.6, 0.2, 0.2))
    (folder / "audioclip.json").write_text(json.dumps(AUDIOCLIP))
    set_seed(0)
    load_audioclip(folder / "audioclip.json").save_pretrained(folder / "encoder")
    AudioCLIPFeatureExtractor(sampling_rate=8000).save_pretrained(folder / "encoder")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import extract_features
    finally:
        sys.path.remove(str(EXAMPLES))
    arguments = ["--cpu", "--model", folder / "encoder", "--data_dir", folder / "clips", "--num_workers", "0"]
    arguments += ["--output_dir", folder / "features", "--num_frames_per_segment", "2", "--dtype", "float32"]
    extract_features.main([str(argument) for argument in arguments])
    return folder


def arguments(work, output, *more, source="features"):
    """The command line of a short training."""
    sources = {
        "features": ["--model", work / "encoder", "--features_dir", work / "features"],
        "videos": ["--model", work / "encoder", "--data_dir", work / "clips", "--num_frames_per_segment", "2"],
        "h5": ["--h5_dir", work],
    }
    command = ["--cpu", *sources[source], "--output_dir", output, "--num_epochs", "3", "--batch_size", "4"]
    command += ["--learning_rate", "1e-2", *more, "--localizer", *LOCALIZER]
    return [str(argument) for argument in command]


def history(folder):
    return json.loads((folder / "results.json").read_text())["history"]


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(folder, other):
    expected = weights(other)
    for name, tensor in weights(folder).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def trained(script, work):
    """The results of a training on features, in `work / "localizer"`."""
    return script.main(arguments(work, work / "localizer"))


def test_the_towers_and_the_labels_are_kept(work, trained):
    localizer = AVEClipForLocalization.from_pretrained(work / "localizer")
    encoder = AudioCLIPModel.from_pretrained(work / "encoder")
    for tower in ("vision_model", "audio_model"):
        expected = getattr(encoder, tower).state_dict()
        for name, tensor in getattr(localizer, tower).state_dict().items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    categories = load_ave(work / "clips", split="train").features["category"].names
    assert localizer.config.id2label == labels_with_background(categories)
    assert localizer.config.hidden_size == 8
    processor = AVEClipProcessor.from_pretrained(work / "localizer")
    assert processor.id2label == localizer.config.id2label
    assert processor.video_processor.num_frames_per_segment == 2


def test_results_predictions_card_and_curve_lie_beside_the_localizer(work, trained):
    folder = work / "localizer"
    results = json.loads((folder / "results.json").read_text())
    assert [record["epoch"] for record in results["history"]] == [0, 1, 2]
    accuracy = results["validation"]["none"]["segment_accuracy"]
    assert accuracy == max(record["validation_accuracy"] for record in results["history"])
    predictions = load_file(folder / "predictions.safetensors")
    for split in ("validation", "test"):
        predicted, labels = predictions[f"{split}_probabilities"].argmax(-1), predictions[f"{split}_labels"]
        right = (predicted == labels)[labels != -100].float().mean().item()
        assert right == pytest.approx(trained[split]["none"]["segment_accuracy"])
        assert predictions[f"{split}_rows"].tolist() == sorted(FeatureStore(work / "features" / split).rows)
    assert "localizer" in (folder / "README.md").read_text()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "epoch" in line]
    assert [line["validation_accuracy"] for line in epochs] == [r["validation_accuracy"] for r in results["history"]]
    steps = [line for line in lines if "learning_rate" in line]
    assert [line["step"] for line in steps] == list(range(1, 7))
    assert np.mean([line["loss"] for line in steps[:2]]) == pytest.approx(results["history"][0]["loss"])


@pytest.mark.parametrize("supervision", ["full", "weak"])
def test_raw_clips_give_the_losses_of_their_features(script, work, tmp_path, supervision):
    more = ("--num_epochs", "2", "--report_to", "none")
    for source in ("features", "videos"):
        command = arguments(work, tmp_path / source, *more, source=source)
        script.main([*command, f"supervision={supervision}"])
    losses = [[record["loss"] for record in history(tmp_path / source)] for source in ("features", "videos")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_same_run_again_gives_the_same_weights(script, work, trained, tmp_path):
    script.main(arguments(work, tmp_path))
    assert_same_weights(tmp_path, work / "localizer")


def test_a_run_that_ended_returns_its_results_and_is_not_replaced_unasked(script, work, trained):
    before = (work / "localizer" / "results.json").read_bytes()
    results = script.main(arguments(work, work / "localizer", "--resume"))
    np.testing.assert_equal(results, trained)
    assert (work / "localizer" / "results.json").read_bytes() == before
    with pytest.raises(RunStateError, match="holds a run already"):
        script.main(arguments(work, work / "localizer"))
    with pytest.raises(RunStateError, match=r"learning_rate: 0\.01, now 0\.5"):
        script.main(arguments(work, work / "localizer", "--resume", "--learning_rate", "0.5"))


def run_script(command, *launcher):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [sys.executable, *launcher, str(EXAMPLES / "train_localizer.py"), *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_run_killed_in_an_epoch_goes_on_to_the_same_weights(script, work, tmp_path):
    more = ("--num_epochs", "20", "--save_steps", "1", "--ema", "0.9")
    process = run_script(arguments(work, tmp_path / "killed", *more))
    curve = tmp_path / "killed" / "metrics.jsonl"
    while not curve.exists() or len(curve.read_text().splitlines()) < 8:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "results.json").exists()
    script.main(arguments(work, tmp_path / "killed", *more, "--resume"))
    script.main(arguments(work, tmp_path / "whole", *more))
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert history(tmp_path / "killed") == history(tmp_path / "whole")
    assert curve.read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


def test_two_processes_have_the_losses_and_measures_of_one(script, work, trained, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()))
    process = run_script(arguments(work, tmp_path), *launcher)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    found, expected = history(tmp_path), history(work / "localizer")
    assert [record["loss"] for record in found] == pytest.approx([record["loss"] for record in expected], abs=1e-4)
    for split in ("validation", "test"):
        metrics = json.loads((tmp_path / "results.json").read_text())[split]["none"]
        assert metrics["num_videos"] == trained[split]["none"]["num_videos"]
        assert metrics["segment_accuracy"] == pytest.approx(trained[split]["none"]["segment_accuracy"])


def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_without_data_it_trains_on_synthetic_clips_and_says_what_to_pass_for_ave(
    script, work, trained, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(script, "SYNTHETIC_FOLDER", tmp_path / "synthetic")
    monkeypatch.setattr(script, "NUM_SYNTHETIC", 5)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    command = ["--cpu", "--model", str(work / "localizer"), "--output_dir", str(tmp_path / "out")]
    results = script.main([*command, "--num_epochs", "1", "--localizer", *LOCALIZER])
    assert results["test"]["none"]["num_videos"] == 1
    assert "--data_dir AVE_Dataset" in caplog.text


@pytest.mark.parametrize("blanked", ["audio", "video"])
def test_a_blanked_modality_changes_nothing(script, blanked):
    batch = {"rows": torch.zeros(1), "image_features": torch.rand(1, 2, 3), "audio_features": torch.rand(1, 2, 3)}
    inputs = script.model_inputs(batch, blanked)
    other = {"audio": "image_features", "video": "audio_features"}[blanked]
    assert set(inputs) == {"image_features", "audio_features"}
    assert sum(float(value.abs().sum()) for value in inputs.values()) == float(batch[other].sum())


def test_features_of_another_encoder_are_refused(script, work, tmp_path):
    shutil.copytree(work / "encoder", tmp_path / "encoder")
    model = AudioCLIPModel.from_pretrained(work / "encoder")
    with torch.no_grad():
        model.audio_model.fc.bias += 1
    model.save_pretrained(tmp_path / "encoder")
    with pytest.raises(FeatureStoreError, match="made by another encoder"):
        script.main(arguments(work, tmp_path / "out", "--model", tmp_path / "encoder"))
