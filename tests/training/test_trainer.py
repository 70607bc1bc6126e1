"""transformers' Trainer: the example of docs/trainer.md, and the arguments that users try."""

import re
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
from transformers import Trainer, TrainingArguments

from ave_clip.core.processing_ave_clip import AVEClipProcessor
from ave_clip.data.collation import collate_rows
from tests.helpers.models import tiny_localizer, tiny_processor

GUIDE = Path(__file__).parents[2] / "docs" / "trainer.md"
FEATURES = {"use_encoders": False, "image_feature_size": 24, "audio_feature_size": 24}


def feature_rows(number: int = 4, num_segments: int = 4) -> list[dict]:
    generator = torch.Generator().manual_seed(number)
    return [
        {
            "row": row,
            "video_id": f"video {row}",
            "labels": [0, 1, 3, 3, 2][:num_segments],
            "video_label": 1,
            "image_features": torch.randn(num_segments, 4, 24, generator=generator),
            "audio_features": torch.randn(num_segments, 24, generator=generator),
        }
        for row in range(number)
    ]


def raw_rows() -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "row": row,
            "labels": [0, 1, 3, 3],
            "pixel_values": torch.randn(4, 2, 3, 64, 64, generator=generator),
            "frame_mask": torch.ones(4, 2, dtype=torch.bool),
            "input_values": 3000 * torch.randn(4, 4000, generator=generator),
        }
        for row in range(2)
    ]


def train(folder, model, rows, collator=collate_rows, processor=None, **arguments) -> float:
    options = {"max_steps": 2, "per_device_train_batch_size": 2, "use_cpu": True, "disable_tqdm": True, **arguments}
    arguments = TrainingArguments(str(folder), report_to="none", save_strategy="no", **options)
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator, processing_class=processor)
    return trainer.train().training_loss


def test_the_guide_trains_evaluates_and_saves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```py\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)[1]
    code = code.replace("report_to=", "use_cpu=True, disable_tqdm=True, report_to=")
    rows = {"train_rows": feature_rows(), "validation_rows": feature_rows(3) + feature_rows(2, 5)}
    names = {"model": tiny_localizer(**FEATURES), "processor": tiny_processor(), **rows}
    exec(compile(code, str(GUIDE), "exec"), names)
    scores = names["trainer"].evaluate()
    assert 0 <= scores["eval_accuracy"] <= 1 and scores["eval_loss"] > 0
    for name, value in names["model"].state_dict().items():
        torch.testing.assert_close(names["localizer"].state_dict()[name], value, rtol=0, atol=0)
    assert AVEClipProcessor.from_pretrained("mine").id2label == tiny_processor().id2label


def test_gradient_checkpointing_changes_no_loss(tmp_path):
    plain = train(tmp_path, tiny_localizer(**FEATURES), feature_rows())
    checkpointed = train(tmp_path, tiny_localizer(**FEATURES), feature_rows(), gradient_checkpointing=True)
    assert checkpointed == pytest.approx(plain, rel=1e-5)


def test_raw_rows_train_frozen_and_unfrozen_towers(tmp_path):
    frozen = tiny_localizer()
    before = {name: value.clone() for name, value in frozen.vision_model.state_dict().items()}
    frozen.freeze_encoders()
    train(tmp_path, frozen, raw_rows(), processor=tiny_processor())
    assert all(torch.equal(before[name], value) for name, value in frozen.vision_model.state_dict().items())
    unfrozen = tiny_localizer()
    train(tmp_path, unfrozen, raw_rows(), processor=tiny_processor(), gradient_checkpointing=True)
    assert not torch.equal(before["conv1.weight"], unfrozen.vision_model.conv1.weight)


def test_batches_group_rows_by_length(tmp_path):
    grouped = {"train_sampling_strategy": "group_by_length"}
    train(tmp_path, tiny_localizer(), raw_rows(), processor=tiny_processor(), **grouped)
    sizes = []
    rows = [
        {
            **row,
            "length": len(row["labels"]),
            **{name: row[name].tolist() for name in ("image_features", "audio_features")},
        }
        for row in feature_rows(16, 3) + feature_rows(16, 5)
    ]

    def collate(batch):
        sizes.append({len(row["labels"]) for row in batch})
        return collate_rows(batch)

    dataset = datasets.Dataset.from_list(rows).with_format("torch")
    options = {**grouped, "remove_unused_columns": False, "max_steps": 16}
    train(tmp_path, tiny_localizer(**FEATURES), dataset, collate, **options)
    # transformers sorts groups of 8 rows and swaps one row, so at most 5 of 16 batches mix lengths.
    assert len(sizes) == 16 and sum(len(lengths) > 1 for lengths in sizes) <= 5


def test_weak_supervision_needs_the_column_that_the_trainer_drops(tmp_path):
    model, collator = tiny_localizer(supervision="weak", **FEATURES), partial(collate_rows, video_level=True)
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        train(tmp_path, model, feature_rows(), collator)
    assert train(tmp_path, model, feature_rows(), collator, remove_unused_columns=False) > 0


def test_several_labels_per_segment_train_and_are_predicted(tmp_path):
    model = tiny_localizer(problem_type="multi_label", id2label={0: "Bark", 1: "Speech"}, **FEATURES).train()
    lengths = (4, 2, 5)
    rows = [
        {**row, "labels": torch.arange(2 * length).reshape(length, 2) % 3 % 2}
        for length in lengths
        for row in feature_rows(1, length)
    ]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=3, use_cpu=True, report_to="none", save_strategy="no"
    )
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate_rows)
    trainer.train()
    found = trainer.predict(rows)
    assert found.predictions.shape == found.label_ids.shape == (3, 5, 2)
    assert (found.label_ids[1, 2:] == -100).all()
    assert (found.label_ids[1, :2] == rows[1]["labels"].numpy()).all()
