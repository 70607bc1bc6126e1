"""Collates decoded rows, or rows of features, into a padded batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .categories import IGNORED_LABEL

# Inputs with one entry per segment, which are padded along the first axis.
SEGMENT_INPUTS = ("pixel_values", "frame_mask", "input_values", "image_features", "audio_features")


def collate_rows(
    rows: Sequence[Mapping[str, Any]], video_level: bool = False, num_segments: int | None = None
) -> dict[str, torch.Tensor]:
    """Returns a batch of rows of [`decode_videos`] or [`load_ave_features`], padded; columns of text are left out.

    Every second of a row's `labels` is part of the clip. If a file ends early, the missing seconds have no frames and
    no audio, and the model still labels them. Seconds after the last label have the label -100.

    Args:
        rows (`Sequence[Mapping]`): Rows with the model's inputs, `labels` and `row`.
        video_level (`bool`): Use `video_label`, the class of the whole video, as labels.
        num_segments (`int`, *optional*): Truncate or pad every clip to this number of segments; by default, pad to the
            longest clip of the batch.

    Returns:
        `dict[str, torch.Tensor]`: The inputs `(batch_size, num_segments, ...)`, `segment_mask`
        `(batch_size, num_segments)`, `labels` `(batch_size, num_segments)`, or `(batch_size,)` with `video_level`, and
        `rows` `(batch_size,)`, the numbers of the rows if they have one. With several labels per segment, `labels`
        have a last axis of classes. For windows of long videos, `first` `(batch_size,)`, the first segment of each.
        Rows with exact times of events give `event_spans` `(batch_size, num_events, 2)` and `event_classes`
        `(batch_size, num_events)`, -100 at padding.

    Raises:
        ValueError: if rows contain no input of the model, or no `video_label` with `video_level`.
    """
    names = [name for name in SEGMENT_INPUTS if name in rows[0]]
    if not names:
        raise ValueError(
            f"Got rows with {sorted(rows[0])}, but none of the model's inputs {list(SEGMENT_INPUTS)}. Decode them "
            "first: decode_videos(dataset, processor)."
        )
    masks = [_segment_mask(row, names[0]) for row in rows]
    length = num_segments or max(len(mask) for mask in masks)
    batch = {name: torch.stack([fit_length(torch.as_tensor(row[name]), length) for row in rows]) for name in names}
    batch["segment_mask"] = torch.stack([fit_length(mask, length) for mask in masks])
    if video_level and "video_label" not in rows[0]:
        raise ValueError(
            f"Got rows with {sorted(rows[0])}, but `video_level=True` needs `video_label`. transformers' Trainer "
            "keeps it with TrainingArguments(remove_unused_columns=False)."
        )
    if video_level:
        batch["labels"] = torch.stack([torch.as_tensor(row["video_label"], dtype=torch.long) for row in rows])
    else:
        labels = (torch.as_tensor(row["labels"], dtype=torch.long) for row in rows)
        batch["labels"] = torch.stack([fit_length(values, length, IGNORED_LABEL) for values in labels])
    if all("row" in row for row in rows):  # transformers' Trainer drops the columns that the model does not take
        batch["rows"] = torch.tensor([int(row["row"]) for row in rows])
    if any("first" in row for row in rows):
        batch["first"] = torch.tensor([int(row.get("first", 0)) for row in rows])
    if all("event_spans" in row for row in rows):
        number = max(len(row["event_spans"]) for row in rows)
        batch["event_spans"] = torch.stack([fit_length(row["event_spans"], number) for row in rows])
        batch["event_classes"] = torch.stack([fit_length(row["event_classes"], number, IGNORED_LABEL) for row in rows])
    return batch


def _segment_mask(row: Mapping[str, Any], name: str) -> torch.Tensor:
    """Returns which segments belong to a clip: those of its file, and every labelled one."""
    num_labels = len(row["labels"])
    present = torch.as_tensor(row.get("segment_mask", torch.ones(len(row[name]), dtype=torch.bool))).bool()
    length = max(len(present), num_labels)
    return fit_length(present, length) | (torch.arange(length) < num_labels)


def fit_length(values: torch.Tensor, length: int, padding: int = 0) -> torch.Tensor:
    """Truncates or pads a tensor along its first axis, without a copy if it has the right length."""
    values = values[:length]
    if len(values) == length:
        return values
    missing = values.new_full((length - len(values), *values.shape[1:]), padding)
    return torch.cat([values, missing])
