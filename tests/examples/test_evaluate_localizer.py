"""The evaluation script: the same measures from videos, features and h5, one model or many, one process or two."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ave_clip import AudioCLIPModel, AVEClipForLocalization, AVEClipProcessor
from ave_clip.core.categories import labels_with_background
from ave_clip.core.events import decode_labels
from ave_clip.data import generate_synthetic_ave, load_ave
from ave_clip.training.checkpoints import towers_fingerprint
from ave_clip.training.clips import ClipReader
from ave_clip.training.features import FeatureStoreError, FeatureWriter, collate_clips
from ave_clip.training.metrics import localization_metrics
from tests.helpers.models import tiny_audioclip_config, tiny_localizer, tiny_processor

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate_localizer.py"
NUM_TEST = 5
SEEDS = ("seed0", "seed1")


@pytest.fixture(scope="module")
def script():
    import evaluate_localizer

    return evaluate_localizer


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Clips in `clips`, two localizers on the same towers in `seed0` and `seed1`, features of the test split."""
    folder = tmp_path_factory.mktemp("evaluation")
    generate_synthetic_ave(folder / "clips", num_videos=8, seed=5, num_workers=0, splits=(0.125, 0.25, 0.625))
    id2label = labels_with_background(load_ave(folder / "clips", split="test").features["category"].names)
    for seed, name in enumerate(SEEDS):
        save_localizer(folder / name, seed, id2label)
    write_features(folder / "features" / "test", folder)
    return folder


def save_localizer(folder, seed, id2label, **overrides):
    localizer = tiny_localizer(seed, id2label=id2label, min_event_segments=2, **overrides)
    if seed:  # as after training on the same frozen towers
        towers = tiny_localizer(0, id2label=id2label)
        localizer.vision_model.load_state_dict(towers.vision_model.state_dict())
        localizer.audio_model.load_state_dict(towers.audio_model.state_dict())
    with torch.no_grad():  # spread the predictions over classes and background
        localizer.category_head.classifier.weight.mul_(30)
    localizer.save_pretrained(folder)
    processor = tiny_processor()
    AVEClipProcessor(processor.feature_extractor, processor.video_processor, id2label=id2label).save_pretrained(folder)


def read_clips(work, split="test"):
    processor = AVEClipProcessor.from_pretrained(work / "seed0")
    reader = ClipReader(load_ave(work / "clips", split=split), processor)
    return [reader[index] for index in range(len(reader))]


def write_features(folder, work):
    localizer = AVEClipForLocalization.from_pretrained(work / "seed0")
    id2label = {str(index): label for index, label in localizer.config.id2label.items()}
    settings = {
        "encoder_fingerprint": towers_fingerprint(localizer),
        "visual_feature_type": "dense",
        "id2label": id2label,
    }
    rows = []
    for clip in read_clips(work):
        batch = collate_clips([clip])
        with torch.no_grad():
            features = localizer.encode(batch["pixel_values"], batch["input_values"], batch["frame_mask"])
        names = ("image_features", "audio_features")
        rows.append({"row": clip["row"], "labels": clip["labels"], **{n: f[0] for n, f in zip(names, features)}})
    writer = FeatureWriter(folder, settings, {int(row["row"]): "clip" for row in rows}, rows_per_shard=2)
    for number, start in enumerate(range(0, len(rows), 2)):
        writer.write(number, rows[start : start + 2])
    writer.finish("test")


@pytest.fixture(autouse=True)
def work_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def arguments(work, *more, model=("seed0",), source="features"):
    options = {"features": ("--features_dir", work / "features"), "videos": ("--data_dir", work / "clips")}
    models = [work / name for name in model]
    return [str(value) for value in ("--cpu", "--model", *models, *options[source], *more)]


def predict(work, name="seed0"):
    """Probabilities and labels of each test clip, by a plain forward pass."""
    localizer = AVEClipForLocalization.from_pretrained(work / name)
    probabilities, labels = [], []
    for clip in sorted(read_clips(work), key=lambda clip: int(clip["row"])):
        batch = collate_clips([clip])
        with torch.no_grad():
            logits = localizer(batch["pixel_values"], batch["input_values"], frame_mask=batch["frame_mask"]).logits
        probabilities.append(logits[0].softmax(dim=-1).numpy())
        labels.append(clip["labels"].numpy())
    return probabilities, labels


def test_videos_and_features_give_what_a_plain_forward_pass_gives(script, work):
    probabilities, labels = predict(work)
    results = {source: script.main(arguments(work, source=source)) for source in ("videos", "features")}
    for decoder in ("merge", "single_event", "viterbi", "none"):
        predictions = [decode_labels(clip, decoder, 2) for clip in probabilities]
        expected = localization_metrics(predictions, labels, probabilities[0].shape[1], probabilities=probabilities)
        assert expected["num_videos"] == NUM_TEST
        for measured in results.values():
            assert measured[decoder]["confusion_matrix"] == expected["confusion_matrix"]
            for name in ("segment_accuracy", "event_f1", "background_recall", "event_map", "video_accuracy"):
                assert measured[decoder][name] == pytest.approx(expected[name], nan_ok=True)
            assert measured[decoder]["intervals"]["event_f1"] == pytest.approx(expected["intervals"]["event_f1"])
    assert "gate" in results["videos"]


def test_the_results_go_to_the_file_that_is_asked_for_with_all_that_reads_them(script, work, tmp_path):
    before = sorted((work / "seed0").iterdir())
    script.main(arguments(work, "--decoders", "none"))
    assert list(tmp_path.iterdir()) == []
    results = script.main(arguments(work, "--decoders", "none", "merge", "--output", "evaluation-test.json"))
    written = json.loads((tmp_path / "evaluation-test.json").read_text())
    assert sorted((work / "seed0").iterdir()) == before
    assert written["decoders"]["none"]["segment_accuracy"] == results["none"]["segment_accuracy"]
    assert list(written["decoders"]) == ["none", "merge"]
    labels = np.concatenate(load_ave(work / "clips", split="test")["labels"])
    background = len(written["decoders"]["none"]["confusion_matrix"]) - 1
    points = written["baselines"]
    assert points["all_background"] == pytest.approx((labels == background).mean())
    assert points["never_background"] == pytest.approx((labels != background).mean())
    assert f"{points['all_background']:.2%} (all background)" in points["statement"]
    assert (written["unreadable"], written["unreadable_rows"], written["split"]) == (0, {}, "test")
    assert written["arguments"]["seed"] == 0


def test_several_models_are_measured_each_and_together(script, work, tmp_path, capsys):
    options = ("--num_resamples", "50", "--table", "markdown")
    results = script.main(arguments(work, *options, model=SEEDS))
    each = [script.main(arguments(work, *options, "--output", "one.json", model=[seed])) for seed in SEEDS]
    printed = capsys.readouterr().out
    for setting, summary in results.items():
        values = [measured[setting]["segment_accuracy"] for measured in each]
        assert summary["segment_accuracy"]["mean"] == pytest.approx(np.mean(values))
        assert summary["segment_accuracy"]["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert each[0]["none"]["segment_accuracy"] != each[1]["none"]["segment_accuracy"]
    mean, deviation = (100 * results["none"]["segment_accuracy"][name] for name in ("mean", "deviation"))
    assert f"| mean ± deviation | none | {mean:.2f} ± {deviation:.2f} |" in printed
    assert f"| seed1 | none | {100 * each[1]['none']['segment_accuracy']:.2f} |" in printed
    main = json.loads((tmp_path / "one.json").read_text())
    assert main["decoders"].keys() == each[1].keys()


def test_models_of_one_name_go_by_their_whole_paths(script, work, tmp_path, capsys):
    for seed in SEEDS:
        shutil.copytree(work / seed, tmp_path / seed / "localizer")
    models = [tmp_path / seed / "localizer" for seed in SEEDS]
    script.main(arguments(work, "--decoders", "none", "--num_resamples", "0", "--model", *models))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:3]] == [str(model) for model in models]


def test_the_file_of_several_models_contains_each_and_the_summary(script, work, tmp_path):
    output = tmp_path / "results" / "seeds.json"
    results = script.main(arguments(work, "--decoders", "none", "--output", output, model=SEEDS))
    written = json.loads(output.read_text())
    assert list(written["models"]) == [str(work / seed) for seed in SEEDS]
    assert written["summary"]["count"] == 2
    assert written["summary"]["metrics"]["none"]["event_map"] == results["none"]["event_map"]
    assert written["models"][str(work / "seed1")]["none"]["num_videos"] == NUM_TEST


def test_shortest_events_are_compared_where_a_decoder_uses_them(script, work, capsys):
    results = script.main(arguments(work, "--min_event_segments", "1", "2", "4"))
    bounded = [f"{decoder}-{shortest}" for decoder in ("merge", "viterbi") for shortest in (1, 2, 4)]
    assert set(results) == {*bounded, "single_event", "none", "gate"}
    own = script.main(arguments(work))
    np.testing.assert_equal(results["merge-2"], own["merge"])
    np.testing.assert_equal(results["merge-1"]["confusion_matrix"], own["none"]["confusion_matrix"])
    assert results["viterbi-4"]["confusion_matrix"] != results["viterbi-1"]["confusion_matrix"]
    assert "viterbi-4" in capsys.readouterr().out


def test_a_clip_that_cannot_be_read_is_listed_and_counts_nowhere(script, work, tmp_path, caplog):
    data = tmp_path / "clips"
    shutil.copytree(work / "clips", data)
    broken = load_ave(data, split="test")[1]
    Path(broken["video"]["path"]).write_text("no video")
    results = script.main(
        arguments(
            work,
            "--data_dir",
            data,
            "--decoders",
            "none",
            "--batch_size",
            "1",
            "--output",
            "evaluation-test.json",
            source="videos",
        )
    )
    written = json.loads((tmp_path / "evaluation-test.json").read_text())
    assert written["unreadable"] == 1
    assert broken["video_id"] in written["unreadable_rows"][str(broken["row"])]
    assert results["none"]["num_videos"] == NUM_TEST - 1
    assert f"1 of {NUM_TEST} clips could not be read" in caplog.text


def test_two_processes_with_uneven_shares_measure_what_one_does(script, work, tmp_path):
    alone = script.main(arguments(work, "--output", tmp_path / "one.json", "--batch_size", "2"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    command += arguments(work, "--output", tmp_path / "two.json", "--batch_size", "2")
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    written = json.loads((tmp_path / "two.json").read_text())
    assert written["num_processes"] == 2
    assert written["decoders"] == json.loads((tmp_path / "one.json").read_text())["decoders"]
    assert alone["none"]["num_videos"] == NUM_TEST
    assert run.stdout.count("localising nothing scores") == 1


@pytest.fixture
def h5_dir(tmp_path):
    """Random features of three categories in the layout of other publications."""
    folder, rng = tmp_path / "h5", np.random.default_rng(0)
    folder.mkdir()
    rows = [f"{name}&video{i:06d}&good&{i % 4}&{i % 4 + 5}" for i, name in enumerate(("Bell", "Bark", "Clap") * 3)]
    (folder / "Annotations.txt").write_text("\n".join(rows))
    (folder / "categories.txt").write_text("Bell\nBark\nClap")
    for name, members in (("train", rows[:3]), ("val", rows[3:5]), ("test", rows[5:])):
        (folder / f"{name}Set.txt").write_text("\n".join(members))
    for name, shape in (("audio_feature.h5", (9, 10, 6)), ("visual_feature.h5", (9, 10, 2, 2, 8))):
        with h5py.File(folder / name, "w") as file:
            file["avadataset"] = rng.normal(size=shape)
    return folder


def test_h5_features_are_measured_without_a_processor(script, h5_dir, tmp_path):
    localizer = tiny_localizer(use_encoders=False, image_feature_size=8, audio_feature_size=6)
    localizer.save_pretrained(tmp_path / "model")
    options = ["--cpu", "--model", str(tmp_path / "model"), "--h5_dir", str(h5_dir), "--decoders", "none"]
    results = script.main(options)
    with h5py.File(h5_dir / "visual_feature.h5") as pictures, h5py.File(h5_dir / "audio_feature.h5") as sounds:
        image, audio = (torch.tensor(np.float32(file["avadataset"][5:])) for file in (pictures, sounds))
    with torch.no_grad():
        expected = localizer(image_features=image, audio_features=audio).logits.argmax(dim=-1).numpy()
    labels = np.full((4, 10), 3)
    for place, row in enumerate(range(5, 9)):
        labels[place, row % 4 : row % 4 + 5] = row % 3
    assert results["none"]["num_videos"] == 4
    assert results["none"]["segment_accuracy"] == pytest.approx((expected == labels).mean())


def test_categories_that_differ_are_named(script, work, h5_dir):
    with pytest.raises(ValueError, match=r"The data set has the 3 categories .*Bell.* the model"):
        script.main(["--cpu", "--model", str(work / "seed0"), "--h5_dir", str(h5_dir)])


def test_a_split_that_is_not_there_is_named(script, work, h5_dir, tmp_path):
    localizer = tiny_localizer(use_encoders=False, image_feature_size=8, audio_feature_size=6)
    localizer.save_pretrained(tmp_path / "model")
    (h5_dir / "valSet.txt").unlink()
    with pytest.raises(ValueError, match=r"has no validation split, only \['train', 'test'\]"):
        script.main(["--cpu", "--model", str(tmp_path / "model"), "--h5_dir", str(h5_dir), "--split", "validation"])
    with pytest.raises(FeatureStoreError, match="contains no manifest"):
        script.main(arguments(work, "--split", "validation"))


def test_features_of_other_towers_are_refused(script, work, tmp_path):
    localizer = AVEClipForLocalization.from_pretrained(work / "seed0")
    with torch.no_grad():
        localizer.audio_model.fc.bias += 1
    localizer.save_pretrained(tmp_path / "model")
    with pytest.raises(FeatureStoreError, match="made by another encoder"):
        script.main(arguments(work, "--model", tmp_path / "model"))


def test_features_of_another_kind_are_refused(script, work, tmp_path):
    id2label = AVEClipForLocalization.from_pretrained(work / "seed0").config.id2label
    save_localizer(tmp_path / "model", 0, id2label, visual_feature_type="pooled")
    with pytest.raises(FeatureStoreError, match="visual_feature_type 'dense' there, 'pooled' now"):
        script.main(arguments(work, "--model", tmp_path / "model"))


def test_a_model_without_a_processor_reads_no_videos(script, work, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_bytes((work / "seed0" / name).read_bytes())
    with pytest.raises(ValueError, match="has no processor, which reads the videos"):
        script.main(arguments(work, "--model", model, source="videos"))
    assert script.main(arguments(work, "--model", model, "--decoders", "none"))["none"]["num_videos"] == NUM_TEST


def test_another_model_than_a_localizer_is_refused(script, work, tmp_path):
    AudioCLIPModel(tiny_audioclip_config()).save_pretrained(tmp_path / "audioclip")
    with pytest.raises(ValueError, match="a checkpoint of 'audioclip', but a localizer"):
        script.main(arguments(work, "--model", tmp_path / "audioclip"))


def test_the_gate_needs_event_logits(script, work, tmp_path):
    id2label = AVEClipForLocalization.from_pretrained(work / "seed0").config.id2label
    save_localizer(tmp_path / "model", 0, id2label, use_event_attention=False)
    assert "gate" not in script.main(arguments(work, "--model", tmp_path / "model"))
    with pytest.raises(ValueError, match=r'"gate" needs the event logits .*use_event_attention=False'):
        script.main(arguments(work, "--model", tmp_path / "model", "--decoders", "none", "gate"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--max_clips", "0"], "--max_clips must be at least 1, got 0"),
        (["--min_event_segments", "3", "0"], "numbers of segments from 1, got [3, 0]"),
        (["--model", "a", "a"], "contains a localizer twice"),
        (["--data_dir", "clips"], "not allowed with argument"),
    ],
)
def test_wrong_arguments_are_named(script, work, more, message, capsys):
    with pytest.raises(SystemExit):
        script.main(arguments(work, *more))
    assert message in capsys.readouterr().err


def test_the_script_explains_itself(script, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    assert script.__doc__.splitlines()[0] in capsys.readouterr().out


@pytest.mark.parametrize("model", [None, "seed0"])
def test_what_the_default_model_knows_is_said_if_no_other_is_named(script, work, tmp_path, caplog, model):
    more = [] if model is None else ["--model", str(work / model)]
    with pytest.raises((ValueError, OSError)):
        script.main(["--features_dir", str(tmp_path / "missing"), "--cpu", *more])
    assert ("the built-in ave-clip-tiny knows" in caplog.text) == (model is None)
