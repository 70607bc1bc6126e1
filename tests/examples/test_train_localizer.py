"""Stage 3 learns from features, h5 files and videos; a resumed or distributed run gives the same results."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

from ave_clip import AudioCLIPFeatureExtractor, AudioCLIPModel, AVEClipForLocalization, AVEClipProcessor
from ave_clip.core.categories import labels_with_background
from ave_clip.data import generate_synthetic_ave, load_ave
from ave_clip.training.checkpoints import CheckpointError, load_audioclip
from ave_clip.training.features import FeatureStore, FeatureStoreError
from ave_clip.training.run_state import RunStateError
from ave_clip.training.splits import SplitError
from tests.helpers.ave_files import PeakMemory
from tests.helpers.failures import full_disk_at_the_second_state

AUDIOCLIP = {
    "model_type": "audioclip",
    "projection_dim": 16,
    "text_config": {
        "vocab_size": 20,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "vision_config": {"image_size": 32, "width": 4, "depths": [1, 1, 1, 1], "num_attention_heads": 4},
    "audio_config": {
        "sampling_rate": 8000,
        "n_fft": 64,
        "hop_length": 100,
        "win_length": 64,
        "width": 4,
        "depths": [1, 1, 1, 1],
        "groups": 1,
        "width_per_group": 16,
    },
}
EXAMPLES = Path(__file__).parents[2] / "examples"
LOCALIZER = ["hidden_size=8", "agva_hidden_size=8", "agva_attention_size=4", "min_event_segments=1", "input_dropout=0"]
H5_CLASSES = [f"kind {number}" for number in range(3)]


@pytest.fixture(scope="module")
def script():
    import train_localizer

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
    import extract_features

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
    with pytest.raises(RunStateError, match="contains a run already"):
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
    caplog.set_level("INFO")
    results = script.main([*command, "--num_epochs", "1", "--localizer", *LOCALIZER])
    assert results["test"]["none"]["num_videos"] == 1
    assert "--data AVE_Dataset" in caplog.text
    assert "occur in none of the 3 training clips: " in caplog.text
    assert f"Next: python examples/train_localizer.py --model {work / 'localizer'} --features_dir" in caplog.text
    assert f"Wrote {tmp_path / 'out'}. Next: ave-clip localize VIDEO --model {tmp_path / 'out'}" in caplog.text


@pytest.mark.parametrize("blanked", ["audio", "video"])
def test_a_blanked_modality_changes_nothing(script, blanked):
    batch = {"rows": torch.zeros(1), "image_features": torch.rand(1, 2, 3), "audio_features": torch.rand(1, 2, 3)}
    inputs = script.model_inputs(batch, blanked)
    other = {"audio": "image_features", "video": "audio_features"}[blanked]
    assert set(inputs) == {"image_features", "audio_features"}
    assert sum(float(value.abs().sum()) for value in inputs.values()) == float(batch[other].sum())


def test_results_say_which_rows_could_not_be_read_and_cards_hold_no_nan(script, work, tmp_path):
    shutil.copytree(work / "features", tmp_path / "features")
    path = tmp_path / "features" / "test" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"failed": {"99": "no video"}}))
    source = ["--features_dir", str(tmp_path / "features"), "--num_epochs", "1"]
    script.main(arguments(work, tmp_path / "out", *source))
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["unreadable"] == {"validation": {}, "test": {"99": "no video"}}
    assert None in results["test"]["none"]["class_accuracy"]  # a class without a test clip
    assert "nan" not in (tmp_path / "out" / "README.md").read_text()


def test_a_model_is_not_overwritten_by_its_own_training_or_without_the_option(script, work, tmp_path):
    with pytest.raises(ValueError, match="is the folder of --model"):
        script.main(arguments(work, work / "encoder", "--model", str(work / "encoder")))
    shutil.copytree(work / "encoder", tmp_path / "encoder")
    with pytest.raises(RunStateError, match="contains a model already"):
        script.main(arguments(work, tmp_path / "encoder"))
    assert (tmp_path / "encoder" / "model.safetensors").read_bytes() == (
        work / "encoder" / "model.safetensors"
    ).read_bytes()


def test_a_localizer_without_towers_has_none_to_learn_with(script, work, tmp_path):
    with pytest.raises(CheckpointError, match="use_encoders=False"):
        script.main([*arguments(work, tmp_path), "use_encoders=false"])


def test_features_of_another_encoder_are_refused(script, work, tmp_path):
    shutil.copytree(work / "encoder", tmp_path / "encoder")
    model = AudioCLIPModel.from_pretrained(work / "encoder")
    with torch.no_grad():
        model.audio_model.fc.bias += 1
    model.save_pretrained(tmp_path / "encoder")
    with pytest.raises(FeatureStoreError, match="made by another encoder"):
        script.main(arguments(work, tmp_path / "out", "--model", tmp_path / "encoder"))


def write_h5(folder, num_rows=24, with_annotations=True, width=6):
    """Features of another kind: ReLU-like maps of large norm and faint sound, in the layout of the h5 files."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    start, end = draw.integers(0, 2, num_rows), draw.integers(3, 5, num_rows)
    kinds = np.sort(np.arange(num_rows) % len(H5_CLASSES))
    labels = np.full((num_rows, 5), len(H5_CLASSES))
    for row in range(num_rows):
        labels[row, start[row] : end[row]] = kinds[row]
    codes = np.eye(len(H5_CLASSES) + 1)[labels]
    seen = np.pad(codes, ((0, 0), (0, 0), (0, width - 4)))
    maps = 50 * np.maximum(draw.normal(size=(num_rows, 5, 2, 2, width)) + 2 * seen[:, :, None, None], 0)
    sounds = 0.01 * (draw.normal(size=(num_rows, 5, 4)) + 2 * codes)
    for name, array in {"visual_feature": maps, "audio_feature": sounds, "labels": codes}.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["avadataset"] = array
    for name, rows in {"train": slice(0, None, 2), "val": slice(1, None, 4), "test": slice(3, None, 4)}.items():
        with h5py.File(folder / f"{name}_order.h5", "w") as file:
            file["order"] = np.arange(num_rows)[rows]
    if with_annotations:
        lines = [f"{H5_CLASSES[kinds[row]]}&v{row}&good&{start[row]}&{end[row]}" for row in range(num_rows)]
        (folder / "Annotations.txt").write_text("\n".join(lines) + "\n")
        (folder / "categories.txt").write_text("\n".join(H5_CLASSES) + "\n")
    return folder


@pytest.mark.parametrize("supervision", ["full", "weak"])
@pytest.mark.parametrize("with_annotations", [True, False])
def test_h5_features_of_another_kind_train_by_configuration_alone(script, tmp_path, supervision, with_annotations):
    folder = write_h5(tmp_path / "h5", with_annotations=with_annotations)
    command = arguments(folder, tmp_path / "out", "--num_epochs", "12", source="h5")
    results = script.main([*command, f"supervision={supervision}"])
    found = history(tmp_path / "out")
    assert found[-1]["loss"] < {"full": 0.75, "weak": 0.6}[supervision] * found[0]["loss"]
    config = AVEClipForLocalization.from_pretrained(tmp_path / "out").config
    assert (config.use_encoders, config.image_feature_size, config.audio_feature_size) == (False, 6, 4)
    assert config.supervision == supervision
    assert config.num_labels == 4
    assert results["test"]["none"]["num_videos"] == 6
    assert results["test"]["none"]["video_accuracy"] > 0.6  # of 3 kinds


def test_the_options_of_the_optimizer_change_the_run_and_averages_are_what_is_saved(script, tmp_path):
    folder = write_h5(tmp_path / "h5")
    options = {
        "adam": (),
        "adamw": ("--optimizer", "adamw", "--weight_decay", "0.5"),
        "ema": ("--ema", "0.5"),
        "subset": ("--max_train_clips", "6"),
        "blank": ("--blank_modality", "audio"),
    }
    for name, more in options.items():
        script.main(arguments(folder, tmp_path / name, "--batch_size", "6", *more, source="h5"))
    losses = {name: [record["loss"] for record in history(tmp_path / name)] for name in options}
    assert losses["ema"] == losses["adam"]
    assert not torch.equal(
        weights(tmp_path / "ema")["audio_lstm.lstm.weight_ih_l0"],
        weights(tmp_path / "adam")["audio_lstm.lstm.weight_ih_l0"],
    )
    assert len({tuple(curve) for curve in losses.values()}) == 4
    steps = [len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) for name in ("adam", "subset")]
    assert steps == [3 * 2 + 3, 3 * 1 + 3]


def test_training_stops_early_without_improvement(script, tmp_path):
    folder = write_h5(tmp_path / "h5")
    more = ("--patience", "2", "--learning_rate", "0", "--num_epochs", "10")
    script.main(arguments(folder, tmp_path / "out", *more, source="h5"))
    assert [record["epoch"] for record in history(tmp_path / "out")] == [0, 1, 2]


def test_a_loss_that_is_no_number_stops_the_run_with_step_and_rows_and_keeps_what_was_good(script, tmp_path):
    folder = write_h5(tmp_path / "h5")

    def train(output, *more):
        more = ("--save_steps", "1", "--report_to", "none", *more)
        return script.main(arguments(folder, output, *more, source="h5"))

    with h5py.File(folder / "audio_feature.h5", "r+") as file:
        good = file["avadataset"][10]
        file["avadataset"][10] = np.nan
    message = r"The loss is nan at step \d \(epoch 0, batch \d\), rows \[.*\b10\b.*continue with --resume"
    with pytest.raises(RuntimeError, match=message):
        train(tmp_path / "out")
    with h5py.File(folder / "audio_feature.h5", "r+") as file:
        file["avadataset"][10] = good
    train(tmp_path / "out", "--resume")
    train(tmp_path / "clean")
    assert_same_weights(tmp_path / "out", tmp_path / "clean")


def test_a_run_that_stopped_at_a_full_disk_resumes_to_the_same_weights(script, tmp_path):
    folder = write_h5(tmp_path / "h5")
    message = "No space left.*state-000000 is kept: free space and pass"
    with full_disk_at_the_second_state(), pytest.raises(RunStateError, match=message):
        script.main(arguments(folder, tmp_path / "out", source="h5"))
    AVEClipForLocalization.from_pretrained(tmp_path / "out")
    script.main(arguments(folder, tmp_path / "out", "--resume", source="h5"))
    script.main(arguments(folder, tmp_path / "whole", source="h5"))
    assert_same_weights(tmp_path / "out", tmp_path / "whole")


def test_a_corrupted_shard_and_a_split_without_labels_are_named(script, work, tmp_path):
    shutil.copytree(work / "features", tmp_path / "features")
    shard = tmp_path / "features" / "train" / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-9] ^= 255
    shard.write_bytes(bytes(content))
    with pytest.raises(FeatureStoreError, match=r"shard-00000\.safetensors"):
        script.main(arguments(work, tmp_path / "out", "--features_dir", tmp_path / "features"))
    folder = write_h5(tmp_path / "h5")
    with h5py.File(folder / "val_order.h5", "w") as file:
        file["order"] = np.array([], dtype=np.int64)
    with pytest.raises(SplitError, match="no validation split"):
        script.main(arguments(folder, tmp_path / "out", source="h5"))


def test_a_corrupted_state_is_named(script, tmp_path):
    folder = write_h5(tmp_path / "h5")
    script.main(arguments(folder, tmp_path / "out", source="h5"))
    state = tmp_path / "out" / "state" / "finished.json"
    state.write_text("{")
    with pytest.raises(RunStateError, match=r"finished\.json is missing or damaged"):
        script.main(arguments(folder, tmp_path / "out", "--resume", source="h5"))


def test_several_runs_in_one_process_do_not_influence_each_other(script, tmp_path):
    folder = write_h5(tmp_path / "h5")
    script.main(arguments(folder, tmp_path / "first", source="h5"))
    script.main(arguments(folder, tmp_path / "between", "--seed", "3", "--ema", "0.5", source="h5"))
    script.main(arguments(folder, tmp_path / "second", source="h5"))
    assert_same_weights(tmp_path / "first", tmp_path / "second")


def test_the_finished_localizer_is_pushed_and_a_hub_that_refuses_stops_before_training(script, tmp_path, monkeypatch):
    folder, pushed = write_h5(tmp_path / "h5"), []
    monkeypatch.setattr(script, "create_repository", lambda name, private: pushed.append((name, private)))
    monkeypatch.setattr(
        script, "push_folder", lambda path, name, private: pushed.append((sorted(os.listdir(path)), name))
    )
    more = ("--push_to_hub", "someone/localizer", "--private")
    script.main(arguments(folder, tmp_path / "out", *more, source="h5"))
    assert pushed[0] == ("someone/localizer", True)
    assert {"README.md", "results.json", "config.json", "model.safetensors"} <= set(pushed[1][0])
    assert "someone/localizer" in (tmp_path / "out" / "README.md").read_text()

    def refuse(name, private):
        raise OSError("no access")

    monkeypatch.setattr(script, "create_repository", refuse)
    with pytest.raises(OSError, match="no access"):
        script.main(arguments(folder, tmp_path / "other", *more, source="h5"))
    assert not (tmp_path / "other" / "config.json").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads resident memory from /proc")
def test_memory_does_not_grow_with_the_number_of_clips(script, tmp_path):
    sizes = {"small": 60, "large": 900}
    for name, number in sizes.items():
        write_h5(tmp_path / name, number, width=512)
    more = ("--num_epochs", "1", "--batch_size", "15", "--report_to", "none")
    script.main(arguments(tmp_path / "small", tmp_path / "warm", *more, source="h5"))
    megabytes = {}
    for name in sizes:
        with PeakMemory() as memory:
            script.main(arguments(tmp_path / name, tmp_path / "out" / name, *more, source="h5"))
        megabytes[name] = memory.megabytes
    assert (tmp_path / "large" / "visual_feature.h5").stat().st_size > 70e6
    assert megabytes["large"] < megabytes["small"] + 30
