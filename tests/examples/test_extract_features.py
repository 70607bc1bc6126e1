"""Stage 2: each clip's features once, whatever happens to the run or to its clips."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, PartialState
from safetensors.torch import load_file

from ave_clip import AudioCLIPFeatureExtractor, AudioCLIPModel
from ave_clip.core.categories import labels_with_background
from ave_clip.data import generate_synthetic_ave, load_ave
from ave_clip.training.checkpoints import build_localizer, build_processor, encoder_config, load_encoder
from ave_clip.training.clips import ClipReader
from ave_clip.training.features import FeatureStore, FeatureStoreError, collate_clips
from tests.helpers.models import tiny_audioclip_config

SCRIPT = Path(__file__).parents[2] / "examples" / "extract_features.py"
NUM_ROWS = {"train": 6, "validation": 2, "test": 2}


@pytest.fixture(scope="module")
def script():
    import extract_features

    return extract_features


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Ten clips in `clips` and a small AudioCLIP in `model`."""
    folder = tmp_path_factory.mktemp("stage2")
    generate_synthetic_ave(folder / "clips", num_videos=10, seed=5, num_workers=0, splits=(0.6, 0.2, 0.2))
    save_model(folder / "model")
    return folder


@pytest.fixture(scope="module")
def features(script, work):
    """Features of all clips, made without interruption."""
    script.main(arguments(work, work / "features"))
    return work / "features"


def save_model(folder, seed=0):
    torch.manual_seed(seed)
    AudioCLIPModel(tiny_audioclip_config()).save_pretrained(folder)
    AudioCLIPFeatureExtractor(sampling_rate=8000).save_pretrained(folder)


def arguments(work, output, *more):
    values = ["--cpu", "--model", work / "model", "--data_dir", work / "clips", "--output_dir", output]
    values += ["--num_frames_per_segment", "4", "--dtype", "float32", "--rows_per_shard", "2", "--num_workers", "0"]
    return [str(value) for value in (*values, *more)]


def copy_clips(work, folder):
    """The data set once more, its videos as hard links, so that some can be replaced."""
    (folder / "AVE").mkdir(parents=True)
    for path in (work / "clips").glob("*.txt"):
        shutil.copyfile(path, folder / path.name)
    for path in (work / "clips" / "AVE").iterdir():
        (folder / "AVE" / path.name).hardlink_to(path)
    return folder


def break_clip(data, split, index):
    """Replace a clip's file by something unreadable; its row and its path."""
    example = load_ave(data, split=split)[index]
    path = Path(example["video"]["path"])
    path.unlink()
    path.write_text("no video")
    return example["row"], path


def shards(folder):
    return sorted(folder.glob("*/shard-*.safetensors"))


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in shards(folder)}


def stamps(folder):
    return {path.relative_to(folder): (path.stat().st_mtime_ns, path.stat().st_ino) for path in shards(folder)}


def expected_features(work, split, index, visual_feature_type):
    """What the towers say about a clip that went through the processor as anybody's would."""
    encoder = load_encoder(work / "model")
    names = labels_with_background(load_ave(work / "clips", split=split).features["category"].names)
    localizer = build_localizer(encoder, names, {"visual_feature_type": visual_feature_type}).eval()
    processor = build_processor(encoder_config(encoder), AudioCLIPFeatureExtractor(sampling_rate=8000), 4)
    clip = collate_clips([ClipReader(load_ave(work / "clips", split=split), processor)[index]])
    with torch.no_grad():
        image, audio = localizer.encode(clip["pixel_values"], clip["input_values"], clip["frame_mask"])
    return clip, image[0], audio[0]


@pytest.mark.parametrize(("kind", "shape"), [("dense", (10, 4, 24)), ("layer4", (10, 4, 256)), ("pooled", (10, 24))])
def test_features_are_what_the_towers_say_about_each_clip(script, work, tmp_path, kind, shape):
    script.main(arguments(work, tmp_path, "--visual_feature_type", kind, "--splits", "test"))
    store = FeatureStore(tmp_path / "test")
    assert len(store) == 2
    for index in range(2):
        row, (clip, image, audio) = store[index], expected_features(work, "test", index, kind)
        assert row["image_features"].shape == shape
        torch.testing.assert_close(row["image_features"], image, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(row["audio_features"], audio, rtol=1e-4, atol=1e-5)
        assert row["labels"].tolist() == clip["labels"][0].tolist()
        assert int(row["row"]) == int(clip["rows"][0])


def test_features_in_float16_are_those_in_float32_rounded(script, work, features, tmp_path):
    script.main(arguments(work, tmp_path, "--dtype", "float16", "--splits", "test"))
    half, full = FeatureStore(tmp_path / "test")[1], FeatureStore(features / "test")[1]
    for name in ("image_features", "audio_features"):
        assert half[name].dtype == torch.float16
        torch.testing.assert_close(half[name], full[name].half(), rtol=0, atol=0)


def test_neither_batches_nor_workers_change_the_features(script, work, features, tmp_path):
    more = ("--splits", "train", "--num_workers", "2")
    script.main(arguments(work, tmp_path / "workers", *more))
    for name, content in contents(tmp_path / "workers").items():
        assert content == (features / name).read_bytes()
    script.main(arguments(work, tmp_path / "batch", *more, "--batch_size", "3"))
    for name in contents(tmp_path / "batch"):
        batched, single = load_file(tmp_path / "batch" / name), load_file(features / name)
        for key, tensor in single.items():
            torch.testing.assert_close(batched[key], tensor, rtol=1e-4, atol=1e-5)


def test_the_manifest_says_how_the_features_came_about(features, work):
    manifest = FeatureStore(features / "train").manifest
    assert manifest["model"]["name"] == str(work / "model")
    assert manifest["model"]["config"]["vision_config"]["image_size"] == 64
    assert (manifest["num_frames_per_segment"], manifest["segment_seconds"], manifest["dtype"]) == (4, 1.0, "float32")
    assert manifest["pictures"]["crop_size"] == {"height": 64, "width": 64}
    assert manifest["sound"] == {"sampling_rate": 8000, "amplitude": "int16"}
    (tools,) = manifest["made_with"]
    assert tools["decoder"]["name"] == "PyAV"
    assert tools["decoder"]["resize"] == "bicubic, antialiased"
    assert re.fullmatch(r"\d+\.\d+\.\d+", tools["decoder"]["ffmpeg"]["libavcodec"])
    assert manifest["num_labelled_rows"] == 6


def test_a_built_in_model_asks_no_hub(script, work, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", lambda *args, **kwargs: pytest.fail("asked"))
    arguments = ["--model", "ave-clip-tiny", "--data_dir", str(work / "clips"), "--output_dir", str(tmp_path / "out")]
    args = script.parse_args([*arguments, "--cpu"])
    _, _, model, _ = script.build_encoder(args, load_ave(work / "clips"))
    assert model["name"] == "ave-clip-tiny" and model["revision"] is None


def test_the_manifest_names_the_revision_of_a_model_from_the_hub(script, work, tmp_path):
    snapshot = tmp_path / "models--someone--audioclip" / "snapshots" / ("5f1d" * 10)
    shutil.copytree(work / "model", snapshot)
    script.main(arguments(work, tmp_path / "out", "--model", snapshot, "--splits", "test"))
    assert FeatureStore(tmp_path / "out" / "test").manifest["model"]["revision"] == "5f1d" * 10


def test_results_say_how_fast_it_was_and_how_long_the_encoder_waited(script, features):
    results = json.loads((features / "results.json").read_text())
    assert (results["complete"], results["num_failed"], results["clips_encoded"]) == (True, 0, 10)
    assert abs(10 / results["clips_per_second"] - results["seconds"]) <= 0.05 + 1e-9  # seconds have one decimal
    assert 0 < results["waited_share"] < 1
    assert results["splits"]["train"] == {"clips": 6, "failed": {}, "missing": [], "shards": 3, "made": 3}


def test_progress_goes_to_the_log_and_without_a_terminal_not_to_a_bar(script, work, tmp_path, capfd, caplog):
    caplog.set_level("INFO")
    script.main(arguments(work, tmp_path, "--splits", "test"))
    assert re.search(r"2 of 2 clips, [\d.]+ clips/s, 0:00:00 left, waited \d+% for decoding", caplog.text)
    assert "clip/s]" not in capfd.readouterr().err


def test_time_left_and_the_share_of_waiting_follow_from_the_clips_done(script, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(script.time, "perf_counter", lambda: now[0])
    progress = script.Progress(total=10, is_shown=False)

    def slow_clips():
        now[0] += 3
        yield {"row": 1}

    assert progress.wait(slow_clips()) == {"row": 1}
    now[0] += 1
    progress.advance(2)
    assert str(progress) == "2 of 10 clips, 0.50 clips/s, 0:00:16 left, waited 75% for decoding"


def test_a_run_that_was_killed_goes_on_where_it_stopped(script, work, features, tmp_path):
    command = [sys.executable, str(SCRIPT), *arguments(work, tmp_path, "--num_workers", "1")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for(lambda: len(shards(tmp_path)) >= 2, process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    before, kept = stamps(tmp_path), contents(tmp_path)
    assert 2 <= len(before) < 5
    with pytest.raises(FeatureStoreError, match="did not finish"):
        FeatureStore(tmp_path / "validation")
    summary = script.main(arguments(work, tmp_path, "--resume"))
    assert sum(facts["made"] for facts in summary.values()) == 5 - len(before)
    assert before.items() <= stamps(tmp_path).items()
    assert kept.items() <= contents(tmp_path).items()
    assert contents(tmp_path) == contents(features)
    assert {split: sorted(FeatureStore(tmp_path / split).rows) for split in NUM_ROWS} == {
        split: sorted(load_ave(work / "clips", split=split)["row"]) for split in NUM_ROWS
    }
    assert not list(tmp_path.glob("*/.*"))


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.002)


def test_two_processes_make_each_row_once_and_tell_of_failures_by_their_exit_code(work, features, tmp_path):
    data = copy_clips(work, tmp_path / "clips")
    row, _ = break_clip(data, "test", 0)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, SCRIPT, *arguments(work, tmp_path / "out", "--data_dir", data)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert f"test: row {row} could not be read" in done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["num_processes"], results["clips_encoded"], results["complete"]) == (2, 10, False)
    assert list(results["splits"]["test"]["failed"]) == [str(row)]
    for split, num_rows in NUM_ROWS.items():
        store, single = FeatureStore(tmp_path / "out" / split), FeatureStore(features / split)
        assert len(set(store.rows)) == len(store.rows) == num_rows - (split == "test")
        for clip in map(store.__getitem__, range(len(store))):
            other = single[single.rows.index(int(clip["row"]))]
            for name in ("image_features", "audio_features"):
                torch.testing.assert_close(clip[name], other[name], rtol=1e-4, atol=1e-5)


def test_an_encoder_without_texts_is_told_in_one_sentence(script, work, caplog):
    caplog.set_level("INFO")
    PartialState()
    assert script.embed_labels(str(work / "model"), load_encoder(str(work / "model")), ["Bark"]) is None
    (message,) = (record.getMessage() for record in caplog.records if record.name == "extract_features")
    assert message.removeprefix("[RANK 0] ") == (
        f"{work / 'model'} has no text tower or no tokenizer, so train_localizer.py cannot use --open_vocabulary with "
        "these features; everything else works."
    )


def test_a_repaired_clip_costs_its_own_shard_and_a_broken_one_is_listed(script, work, features, tmp_path, caplog):
    data, out = copy_clips(work, tmp_path / "clips"), tmp_path / "out"
    row, path = break_clip(data, "train", 2)
    options = ("--data_dir", data, "--splits", "train")
    summary = script.main(arguments(work, out, *options))
    assert list(summary["train"]["failed"]) == [row]
    assert summary["train"]["clips"] == 5
    assert path.name in summary["train"]["failed"][row]
    assert "Exit code 1 because 1 clip failed; all other features are complete." in caplog.text
    assert row not in FeatureStore(out / "train").rows
    before = stamps(out)

    path.unlink()
    path.hardlink_to(work / "clips" / "AVE" / path.name)
    assert script.main(arguments(work, out, *options))["train"]["made"] == 0
    summary = script.main(arguments(work, out, *options, "--retry_failed"))
    assert summary["train"] == {"clips": 6, "failed": {}, "missing": [], "shards": 3, "made": 1}
    assert [name for name, stamp in stamps(out).items() if before[name] != stamp] == [
        Path("train/shard-00001.safetensors")
    ]
    for name, content in contents(out).items():
        for key, tensor in load_file(features / name).items():
            torch.testing.assert_close(load_file(out / name)[key], tensor, rtol=0, atol=0)
        assert content == (features / name).read_bytes()


def test_a_missing_video_stops_the_run_at_once_unless_it_may_be_skipped(script, work, tmp_path, caplog):
    data, out = copy_clips(work, tmp_path / "clips"), tmp_path / "out"
    row, path = break_clip(data, "train", 1)
    path.unlink()
    options = ("--data_dir", data, "--splits", "train")
    with pytest.raises(ValueError, match="cannot be read"):
        script.main(arguments(work, out, *options))
    assert not shards(out)
    summary = script.main(arguments(work, out, *options, "--on_missing", "skip"))
    assert (summary["train"]["missing"], summary["train"]["clips"]) == ([row], 5)
    assert f"train: rows [{row}] have no video" in caplog.text
    assert json.loads((out / "results.json").read_text())["complete"] is False


def test_a_damaged_shard_is_made_again(script, work, features, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(features, out)
    first, second = sorted((out / "train").glob("shard-*"))[:2]
    first.write_bytes(first.read_bytes()[:-5])
    content = second.read_bytes()
    second.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    assert script.main(arguments(work, out, "--splits", "train"))["train"]["made"] == 1
    assert script.main(arguments(work, out, "--splits", "train", "--verify"))["train"]["made"] == 1
    assert contents(out) == contents(features)


def test_settings_are_not_mixed_in_one_folder(script, work, features):
    with pytest.raises(FeatureStoreError, match="num_frames_per_segment 4 there, 1 now"):
        script.main(arguments(work, features, "--num_frames_per_segment", "1"))


def test_encoders_are_not_mixed_in_one_folder(script, work, features, tmp_path):
    save_model(tmp_path / "model", seed=1)
    with pytest.raises(FeatureStoreError, match="by another encoder: encoder_fingerprint"):
        script.main(arguments(work, features, "--model", tmp_path / "model"))


def test_a_model_that_moved_is_the_same_encoder(script, work, features, tmp_path):
    shutil.copytree(work / "model", tmp_path / "moved")
    summary = script.main(arguments(work, features, "--model", tmp_path / "moved", "--splits", "test"))
    assert summary["test"]["made"] == 0


def test_data_sets_are_not_mixed_in_one_folder(script, work, features, tmp_path):
    generate_synthetic_ave(tmp_path / "clips", num_videos=10, seed=6, num_workers=0, splits=(0.6, 0.2, 0.2))
    with pytest.raises(FeatureStoreError, match="made from other clips or labels"):
        script.main(arguments(work, features, "--data_dir", tmp_path / "clips"))


def test_corrected_annotations_are_noticed_and_cost_their_own_shard(script, work, features, tmp_path):
    shutil.copytree(features, tmp_path / "out")
    data = copy_clips(work, tmp_path / "clips")
    line = (data / "trainSet.txt").read_text().splitlines()[0]
    start, end = line.rsplit("&", 2)[1:]
    corrected = f"{line.rsplit('&', 2)[0]}&{'3&4' if (start, end) != ('3', '4') else '5&6'}"
    for name in ("trainSet.txt", "Annotations.txt"):
        path = data / name
        path.write_text(path.read_text().replace(line, corrected))
    options = ("--data_dir", data, "--splits", "train")
    with pytest.raises(FeatureStoreError, match="1 of 3 shards were made from other clips or labels"):
        script.main(arguments(work, tmp_path / "out", *options))
    assert script.main(arguments(work, tmp_path / "out", *options, "--update"))["train"]["made"] == 1
    labels = load_ave(data, split="train")[0]["labels"]
    assert FeatureStore(tmp_path / "out" / "train")[0]["labels"].tolist() == labels


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_a_value_that_its_dtype_cannot_hold_stops_the_run(script, value):
    features = torch.zeros(2, 10, 4)
    features[1, 3, 2] = value
    message = r"Row 8 has features up to (100000|nan), but float16 has finite values up to 65504.*--dtype float32"
    with pytest.raises(FeatureStoreError, match=message):
        script.keep(features, "float16", [5, 8])
    if value == 1e5:
        torch.testing.assert_close(script.keep(features, "float32", [5, 8]), features, rtol=0, atol=0)


def test_lower_precision_of_the_encoder_is_another_setting(script, work, features):
    args = script.parse_args(arguments(work, features))
    data = load_ave(work / "clips")
    localizer, processor, *_ = script.build_encoder(args, data)
    settings = script.describe_settings(args, localizer, processor, "bf16")
    writer, _ = script.open_splits(args, data, settings, processor)["train"]
    with pytest.raises(FeatureStoreError, match="mixed_precision 'no' there, 'bf16' now"):
        writer.plan()


@pytest.mark.parametrize("option", ["--batch_size", "--rows_per_shard", "--max_clips"])
def test_a_size_below_one_is_refused(script, option, capsys):
    with pytest.raises(SystemExit):
        script.parse_args(["--model", "m", "--data_dir", "d", "--output_dir", "o", option, "0"])
    assert f"{option} must be at least 1, got 0" in capsys.readouterr().err


def test_a_split_that_the_data_set_does_not_have_is_named(script, work, tmp_path):
    data = copy_clips(work, tmp_path / "clips")
    (data / "valSet.txt").unlink()
    out = tmp_path / "out"
    message = r"has the splits \['test', 'train'\], but not \['validation'\] of --splits"
    with pytest.raises(ValueError, match=message):
        script.main(arguments(work, out, "--data_dir", data, "--splits", "validation", "test"))
    assert set(script.main(arguments(work, out, "--data_dir", data, "--max_clips", "1"))) == {"train", "test"}
    assert len(FeatureStore(out / "train")) == 1


def test_frames_travel_as_bytes(script, work):
    args = script.parse_args(arguments(work, work / "unused"))
    data = load_ave(work / "clips")
    localizer, processor, *_ = script.build_encoder(args, data)
    settings = script.describe_settings(args, localizer, processor, "no")
    splits = script.open_splits(args, data, settings, processor)
    (clip, *_) = script.build_dataloader(args, splits, [("test", 0)], False)
    assert clip["pixel_values"].dtype == torch.uint8
    assert clip["pixel_values"].shape == (10, 4, 3, 64, 64)
    (encoded,) = script.encode_clips(args, Accelerator(cpu=True), localizer, processor, splits["test"][1], [clip])
    assert encoded["image_features"].dtype == torch.float32
