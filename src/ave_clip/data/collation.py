"""From decoded rows, or rows of features, to a padded batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .annotations import IGNORED_LABEL

# Everything with one entry a segment; all of it is padded along the first axis.
SEGMENT_INPUTS = ("pixel_values", "frame_mask", "input_values", "image_features", "audio_features")


def collate_rows(
    rows: Sequence[Mapping[str, Any]], video_level: bool = False, num_segments: int | None = None
) -> dict[str, torch.Tensor]:
    """Batch rows of [`decode_videos`] or [`load_ave_features`], of equal length or not; columns of text are left out.

    Every second of a row's `labels` counts as part of the clip: where a file ends early, its missing seconds are
    without frames and silent, and the model still has to label them. Seconds beyond `labels` are labelled -100.

    Args:
        rows (`Sequence[Mapping]`): Rows with the model's inputs, `labels` and `row`.
        video_level (`bool`): Take `video_label`, the class of the whole video, as labels.
        num_segments (`int`, *optional*): Cut or fill every clip to this length; by default to the batch's longest.

    Returns:
        `dict[str, torch.Tensor]`: The inputs `(batch_size, num_segments, ...)`, `segment_mask`
        `(batch_size, num_segments)`, `labels` `(batch_size, num_segments)`, or `(batch_size,)` with `video_level`, and
        `rows` `(batch_size,)`, the numbers of the rows.

    Raises:
        ValueError: if rows hold no input of the model.
    """
    names = [name for name in SEGMENT_INPUTS if name in rows[0]]
    if not names:
        raise ValueError(
            f"Got rows with {sorted(rows[0])}, but none of the model's inputs {list(SEGMENT_INPUTS)}. Decode them "
            "first: decode_videos(dataset, processor)."
        )
    masks = [_segment_mask(row, names[0]) for row in rows]
    length = num_segments or max(len(mask) for mask in masks)
    batch = {name: torch.stack([_fit(torch.as_tensor(row[name]), length) for row in rows]) for name in names}
    batch["segment_mask"] = torch.stack([_fit(mask, length) for mask in masks])
    if video_level:
        batch["labels"] = torch.tensor([int(row["video_label"]) for row in rows])
    else:
        labels = (torch.as_tensor(row["labels"], dtype=torch.long) for row in rows)
        batch["labels"] = torch.stack([_fit(values, length, IGNORED_LABEL) for values in labels])
    batch["rows"] = torch.tensor([int(row["row"]) for row in rows])
    return batch


def _segment_mask(row: Mapping[str, Any], name: str) -> torch.Tensor:
    """Which segments a clip has: those of its file, and every labelled one."""
    num_labels = len(row["labels"])
    present = torch.as_tensor(row.get("segment_mask", torch.ones(len(row[name]), dtype=torch.bool))).bool()
    length = max(len(present), num_labels)
    return _fit(present, length) | (torch.arange(length) < num_labels)


def _fit(values: torch.Tensor, length: int, padding: int = 0) -> torch.Tensor:
    """Cut or fill a tensor along its first axis; no copy where it fits."""
    values = values[:length]
    if len(values) == length:
        return values
    missing = values.new_full((length - len(values), *values.shape[1:]), padding)
    return torch.cat([values, missing])
