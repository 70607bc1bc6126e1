"""Stage 3 and the evaluation of several events at once, from features of three classes that overlap."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ave_clip import AVEClipForLocalization, AVEClipProcessor
from ave_clip.core.categories import labels_with_background
from ave_clip.training.checkpoints import towers_fingerprint
from ave_clip.training.features import FeatureWriter
from ave_clip.training.multi_label_evaluation import validation_segment_map
from ave_clip.training.prediction import SplitPredictions
from tests.helpers.models import tiny_localizer, tiny_processor

NAMES = ("bark", "speech", "siren")
LOCALIZER = ["hidden_size=8", "agva_hidden_size=8", "agva_attention_size=4", "min_event_segments=1"]


def random_row(row, rng):
    """Events of 1.2 to 4 s; segments of 0.5 s have the classes that cover at least half of them."""
    num_segments = int(rng.integers(10, 20))
    events, labels = [], np.zeros((num_segments, len(NAMES)), dtype=int)
    for label in range(len(NAMES)):
        start, length = float(rng.uniform(0, 3)), float(rng.uniform(1.2, 4))
        end = min(start + length, num_segments / 2)
        events.append({"label": label, "start": start, "end": end})
        begins = np.arange(num_segments) / 2
        labels[np.minimum(begins + 0.5, end) - np.maximum(begins, start) >= 0.25, label] = 1
    return {"row": row, "labels": labels, "events": events, "duration": num_segments / 2}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Features in which the classes can be seen and heard, and the model that they are for."""
    folder = tmp_path_factory.mktemp("several")
    localizer = tiny_localizer(id2label=labels_with_background(NAMES))
    localizer.save_pretrained(folder / "model")
    processor = tiny_processor(id2label=labels_with_background(NAMES))
    processor.video_processor.segment_seconds = 0.5
    processor.save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    sizes = localizer.config.resolved_image_feature_size, localizer.config.resolved_audio_feature_size
    bases = [rng.normal(size=(len(NAMES), size)) for size in sizes]
    settings = {
        "encoder_fingerprint": towers_fingerprint(localizer),
        "visual_feature_type": localizer.config.visual_feature_type,
        "image_feature_size": sizes[0],
        "audio_feature_size": sizes[1],
        "num_frames_per_segment": 2,
        "segment_seconds": 0.5,
        "id2label": dict(enumerate(NAMES)),
        "problem_type": "multi_label",
    }
    for split, number in (("train", 24), ("validation", 6), ("test", 6)):
        rows = []
        for row in (random_row(index, rng) for index in range(number)):
            seen, heard = (
                row["labels"] @ base + rng.normal(0, 0.3, (len(row["labels"]), base.shape[1])) for base in bases
            )
            features = {"image_features": seen[:, None].repeat(4, axis=1), "audio_features": heard}
            row |= {name: torch.tensor(values, dtype=torch.float32) for name, values in features.items()}
            rows.append({**row, "row": torch.tensor(row["row"]), "labels": torch.tensor(row["labels"])})
        writer = FeatureWriter(folder / "features" / split, settings, dict.fromkeys(range(number), "clip"))
        writer.write(0, rows)
        writer.finish(split)
    return folder


def train(work, output, *more):
    import train_localizer

    arguments = [
        "--cpu",
        "--model",
        work / "model",
        "--features_dir",
        work / "features",
        "--output_dir",
        work / output,
    ]
    arguments += [
        "--num_epochs",
        "4",
        "--batch_size",
        "8",
        "--learning_rate",
        "1e-2",
        *more,
        "--localizer",
        *LOCALIZER,
    ]
    return train_localizer.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(work):
    train(work, "seed1", "--seed", "1", "--num_epochs", "2", "--class_weighting", "balanced")
    return train(work, "seed0")


def evaluate(work, *more, model=("seed0",)):
    import evaluate_localizer

    models = [work / name for name in model]
    arguments = ["--cpu", "--features_dir", work / "features", "--model", *models, "--num_resamples", "20", *more]
    return evaluate_localizer.main([str(argument) for argument in arguments])


def test_the_best_epoch_has_the_highest_segment_map_of_the_validation_split(work, trained):
    results = json.loads((work / "seed0" / "results.json").read_text())
    scores = [record["validation_segment_map"] for record in results["history"]]
    assert len(scores) == 4 and "validation_accuracy" not in results["history"][0]
    assert results["best_epoch"] == scores.index(max(scores))
    assert results["validation"]["none"]["segment_map"] == pytest.approx(max(scores), abs=1e-6)
    assert max(scores) > results["validation"]["none"]["baselines"]["equal_scores"] + 0.1
    assert set(results["test"]) == {"viterbi", "none", "hysteresis"}
    assert [row["label"] for row in results["test"]["none"]["classes"]] == list(NAMES)


def test_saved_predictions_have_labels_events_and_durations(work, trained):
    saved = load_file(work / "seed0" / "predictions.safetensors")
    assert saved["test_labels"].shape == saved["test_probabilities"].shape
    rows, labels, starts, ends = saved["test_events"].T
    assert len(rows) == 18 and labels[:3].tolist() == [0, 1, 2]
    assert (starts < ends).all() and (ends <= saved["test_durations"][rows.long()]).all()
    clips = zip(saved["test_probabilities"], saved["test_labels"], strict=True)
    pairs = [(p[(l != -100).any(1)].numpy(), l[(l != -100).any(1)].numpy()) for p, l in clips]  # noqa: E741
    predictions = SplitPredictions(saved["test_rows"].tolist(), *zip(*pairs), problem_type="multi_label")
    assert validation_segment_map(predictions) == pytest.approx(trained["test"]["none"]["segment_map"], abs=1e-6)


def test_the_evaluation_of_features_repeats_the_results_of_the_training(work, trained, capsys):
    found = evaluate(work, "--per_class", "--output", work / "evaluation.json")
    for decoder, measures in trained["test"].items():
        for name in ("segment_map", "event_f1", "event_map_wide", "event_map_at_0.7"):
            assert found[decoder][name] == pytest.approx(measures[name], abs=1e-6)
    printed = capsys.readouterr().out
    assert "mAP 0.1:0.9 %" in printed and "equal scores everywhere" in printed
    assert [line.split()[0] for line in printed.splitlines()[-3:]] == list(NAMES)
    written = json.loads((work / "evaluation.json").read_text())
    assert written["decoders"]["viterbi"]["intervals"]["event_map_wide"]


def test_several_seeds_are_summarized(work, trained, capsys):
    found = evaluate(work, "--decoders", "hysteresis", "--event_threshold", "0.4", model=("seed0", "seed1"))
    assert list(found) == ["hysteresis"]
    assert set(found["hysteresis"]["event_f1_macro"]) == {"mean", "deviation"}
    assert "mean ± deviation" in capsys.readouterr().out
    weights = AVEClipForLocalization.from_pretrained(work / "seed1").config.class_weights
    assert len(weights) == 3 and min(weights) < 1 < max(weights)


def test_a_localizer_with_one_label_is_measured_on_the_same_features(work, trained, capsys):
    found = evaluate(work, "--decoders", "none", model=("model", "seed0"))
    assert found["none"]["segment_map"]["deviation"] > 0
    only = evaluate(work, "--decoders", "none", "merge", model=("model",))
    assert only["none"]["segment_map"] < trained["test"]["none"]["segment_map"]
    assert only["merge"]["num_segments"] == trained["test"]["none"]["num_segments"]
    with pytest.raises(ValueError, match="'merge' is not made for a localizer with problem_type='multi_label'"):
        evaluate(work, "--decoders", "merge")


def test_the_card_describes_a_localizer_with_several_labels(work, trained):
    config = AVEClipForLocalization.from_pretrained(work / "seed0").config
    assert config.problem_type == "multi_label" and AVEClipProcessor.from_pretrained(work / "seed0")
    card = (work / "seed0" / "README.md").read_text()
    assert "bark; speech; siren" in card and "several at once" in card
    assert "event mAP (tIoU 0.1 to 0.9)" in card and "segment mAP" in card
    assert "softmax" not in card and "background last" not in card and "None" not in card
