"""Stage 2, stage 3 and the evaluation with an open vocabulary: labels that were held out of training."""

import json
import shutil

import pytest
import torch

from ave_clip import AudioVisualEncoderModel, AudioVisualEncoderProcessor, AVEClipForLocalization
from ave_clip.core.categories import labels_with_background
from ave_clip.data import generate_synthetic_ave
from ave_clip.training.checkpoints import towers_fingerprint
from ave_clip.training.features import FeatureStoreError, FeatureWriter
from ave_clip.training.open_vocabulary import LABEL_FILE, load_label_embeddings, save_label_embeddings
from tests.helpers.encoders import SAVERS
from tests.helpers.models import tiny_localizer, tiny_processor

NAMES, WIDTH = [f"kind {index}" for index in range(6)], 24
LOCALIZER = ["hidden_size=16", "agva_hidden_size=8", "agva_attention_size=4", "min_event_segments=1"]


def write_split(folder, settings, number, classes, directions, generator):
    """Clips of six segments with one event of three; the last clip has no event, and its class is not trained."""
    rows = []
    for row in range(number):
        label = classes[row % len(classes)] if row < number - 1 else None
        labels = torch.full((6,), len(NAMES))
        noisy = torch.randn(2, 6, WIDTH, generator=generator) * 0.1
        if label is not None:
            labels[1:4] = label
            noisy[:, 1:4] += directions[label]
        features = {"image_features": noisy[0], "audio_features": noisy[1]}
        events = [] if label is None else [{"label": label, "start": 1.0, "end": 4.0}]
        known = {"events": events, "duration": 6.0, "seen": label is not None and label < 4}
        rows.append({"row": torch.tensor(row), "labels": labels, **known, **features})
    writer = FeatureWriter(folder, settings, dict.fromkeys(range(number), "clip"))
    writer.write(0, rows)
    writer.finish(folder.name)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Features of six classes, of which the data set calls the last two unseen; each class has a direction."""
    folder = tmp_path_factory.mktemp("open")
    localizer = tiny_localizer(visual_feature_type="pooled", id2label=labels_with_background(NAMES))
    localizer.save_pretrained(folder / "model")
    tiny_processor(id2label=labels_with_background(NAMES)).save_pretrained(folder / "model")
    settings = {
        "encoder_fingerprint": towers_fingerprint(localizer),
        "visual_feature_type": "pooled",
        "image_feature_size": WIDTH,
        "audio_feature_size": WIDTH,
        "num_frames_per_segment": 2,
        "segment_seconds": 1.0,
        "id2label": labels_with_background(NAMES),
        "unseen_labels": NAMES[4:],
    }
    generator, directions = torch.Generator().manual_seed(0), torch.eye(WIDTH)[: len(NAMES)]
    for split, number, classes in (("train", 40, range(4)), ("validation", 13, range(6)), ("test", 25, range(6))):
        write_split(folder / "features" / split, settings, number, classes, directions, generator)
    save_label_embeddings(folder / "features", NAMES, directions, settings["encoder_fingerprint"])
    return folder


def train(work, output, *more):
    import train_localizer

    command = ["--cpu", "--model", work / "model", "--features_dir", work / "features", "--output_dir", work / output]
    command += ["--num_epochs", "8", "--batch_size", "8", "--learning_rate", "1e-2", "--open_vocabulary", *more]
    return train_localizer.main([*map(str, command), "--localizer", *LOCALIZER])


@pytest.fixture(scope="module")
def trained(work):
    return train(work, "trained")


def test_unseen_classes_are_left_out_of_training_and_found_in_the_test(work, trained):
    decoders = trained["test"]
    assert [decoders[name]["num_videos"] for name in ("none", "none, seen", "none, unseen")] == [25, 16, 9]
    assert decoders["none, unseen"]["segment_accuracy"] > 0.85
    assert decoders["none, unseen"]["video_event_f1"] > 0.8
    localizer = AVEClipForLocalization.from_pretrained(work / "trained")
    assert localizer.config.trained_labels == tuple(NAMES[:4])
    assert localizer.config.id2label == labels_with_background(NAMES)
    history = json.loads((work / "trained" / "results.json").read_text())["history"]
    assert max(record["validation_accuracy"] for record in history) > 0.85
    assert "none, unseen" in (work / "trained" / "README.md").read_text()


def evaluate(work, *more):
    import evaluate_localizer

    command = [
        "--cpu",
        "--features_dir",
        work / "features",
        "--model",
        work / "trained",
        "--num_resamples",
        "0",
        *more,
    ]
    return evaluate_localizer.main([str(argument) for argument in command])


def test_the_evaluation_repeats_the_measures_of_seen_and_unseen_classes(work, trained, capsys):
    found = evaluate(work, "--decoders", "none", "merge")
    for name in ("none", "none, seen", "none, unseen", "merge, unseen"):
        for measure in ("segment_accuracy", "video_segment_f1", "video_event_f1"):
            assert found[name][measure] == pytest.approx(trained["test"][name][measure], abs=1e-6)
    printed = capsys.readouterr().out
    assert "none, unseen" in printed and "event F1 per video" in printed
    assert list(evaluate(work, "--decoders", "none", "--unseen_labels")) == ["none"]
    with pytest.raises(ValueError, match=r"names 'kind 9', but the classes of the data set are \['kind 0'"):
        evaluate(work, "--unseen_labels", "kind 9")


def test_trainings_that_cannot_be_are_refused(work, tmp_path, capsys):
    with pytest.raises(ValueError, match="--unseen_labels names 'kind 9'"):
        train(work, "refused", "--unseen_labels", "kind 9")
    shutil.copytree(work / "features", tmp_path / "features")
    path = tmp_path / "features" / LABEL_FILE
    with pytest.raises(FeatureStoreError, match="was made by another encoder"):
        load_label_embeddings(path.parent, NAMES, "0" * 16)
    path.unlink()
    with pytest.raises(FeatureStoreError, match="its encoder has no text tower"):
        train(work, "refused", "--features_dir", str(tmp_path / "features"))
    with pytest.raises(SystemExit):
        train(work, "refused", "--data", "clips.csv")


def test_stage_2_stores_the_embeddings_of_the_class_names(tmp_path):
    import extract_features

    generate_synthetic_ave(tmp_path / "clips", num_videos=3, seed=5, num_workers=0, splits=(0.4, 0.3, 0.3))
    towers = [SAVERS[name](tmp_path / name) for name in ("clip", "clap")]
    AudioVisualEncoderModel.from_towers(*towers).save_pretrained(tmp_path / "encoder")
    AudioVisualEncoderProcessor.from_towers(*towers).save_pretrained(tmp_path / "encoder")
    command = ["--cpu", "--model", tmp_path / "encoder", "--data", tmp_path / "clips", "--num_workers", "0"]
    command += ["--output_dir", tmp_path / "features", "--num_frames_per_segment", "1", "--max_clips", "1"]
    extract_features.main([*map(str, command), "--visual_feature_type", "pooled"])
    manifest = json.loads((tmp_path / "features" / "train" / "manifest.json").read_text())
    names = list(manifest["id2label"].values())[:-1]
    found = load_label_embeddings(tmp_path / "features", names, manifest["encoder_fingerprint"])
    assert found.shape == (len(names), 24) and found.unique(dim=0).shape == found.shape
