"""Shards of a feature store: safetensors files of several short rows, or of one long row that is written in blocks.

A shard of short rows has tensors padded to the longest of them. A long video has a shard of its own, of the same
layout, but its features are written block by block while it is decoded, and read window by window. Memory is therefore
bounded by a block, and not by the length of the video. The checksums of its blocks are a tensor, `block_checksums`.

Shapes: R rows of a shard, T segments, P image locations, D feature width.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..core.categories import MULTI_LABEL
from ..core.losses import IGNORED_LABEL
from ..data.targets import events_of_labels, one_hot_labels

# One entry only: safetensors writes several in an order that changes between runs; equal shards must be equal files.
METADATA_KEY = "ave_clip"
BLOCK_SEGMENTS = 16  # segments of a long row that are decoded, encoded, written and verified at once
LONG_SEGMENTS = 64  # a longer row has a shard of its own
CHECKSUMS = "block_checksums"
FEATURES = ("audio_features", "image_features")
# Names of the format's specification, https://github.com/huggingface/safetensors
_DTYPES = {
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


class FeatureStoreError(ValueError):
    """A feature store is missing, incomplete, damaged, or was made with other settings or another encoder."""


def damaged(path: Path, reason: object) -> FeatureStoreError:
    """Returns the error of a shard that cannot be used."""
    return FeatureStoreError(
        f"{path} is missing or damaged ({reason}). Run the extraction again with --verify: it makes damaged shards "
        "again, and only those."
    )


def read_metadata(path: Path) -> dict[str, Any]:
    """Returns the metadata of a shard, with `clips` and `failed` by row number."""
    try:
        with safe_open(path, "pt") as shard:
            metadata = shard.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from error
    content = json.loads(metadata.get(METADATA_KEY, '{"settings": {"format": "of another version"}}'))
    for name in ("clips", "failed"):
        content[name] = {int(row): text for row, text in content.get(name, {}).items()}
    return content


def write_long_row(
    path: Path,
    row: int,
    labels: torch.Tensor,
    blocks: Iterable[Mapping[str, torch.Tensor]],
    content: Mapping[str, Any],
) -> None:
    """Writes the shard of one long row while its blocks are made.

    Args:
        path (`Path`): The file.
        row (`int`): Number of the row.
        labels (`torch.Tensor` of shape `(T,)` or `(T, C)`): Its labels.
        blocks (`Iterable[Mapping[str, torch.Tensor]]`): `image_features` and `audio_features` of `BLOCK_SEGMENTS`
            segments each; the last block has the remaining ones.
        content (`Mapping[str, Any]`): Metadata.

    Raises:
        ValueError: if the blocks do not have as many segments as the labels.
    """
    num_segments = len(labels)
    fixed = {
        "labels": labels[None],
        "rows": torch.tensor([row]),
        "segment_mask": torch.ones(1, num_segments, dtype=torch.bool),
    }
    checksums: list[int] = []
    done = 0
    places: dict[str, tuple[int, int]] = {}  # position in the file, and bytes of a segment
    with open(path, "wb") as file:
        for block in blocks:
            if not places:
                empty = {name: block[name][None, :0].cpu() for name in FEATURES}
                places = _write_header(file, empty, num_segments, fixed, content)
            own = {name: block[name].cpu().contiguous() for name in FEATURES}
            for name, tensor in own.items():
                position, segment_bytes = places[name]
                file.seek(position + done * segment_bytes)
                file.write(as_bytes(tensor))
            length = len(own[FEATURES[0]])
            checksums.append(_block_checksum(own, labels[done : done + length]))
            done += length
        if done != num_segments:
            raise ValueError(f"Row {row} has {num_segments} labels, but features of {done} segments.")
        for name, tensor in {**fixed, CHECKSUMS: torch.tensor([checksums])}.items():
            file.seek(places[name][0])
            file.write(as_bytes(tensor))


def _write_header(
    file: Any,
    empty: Mapping[str, torch.Tensor],
    num_segments: int,
    fixed: Mapping[str, torch.Tensor],
    content: Mapping[str, Any],
) -> dict[str, tuple[int, int]]:
    """Writes the header, and returns where each tensor begins and how many bytes each of its segments has."""
    num_blocks = -(-num_segments // BLOCK_SEGMENTS)
    shapes = {name: (tensor.dtype, [1, num_segments, *tensor.shape[2:]]) for name, tensor in empty.items()}
    shapes |= {name: (tensor.dtype, list(tensor.shape)) for name, tensor in fixed.items()}
    shapes[CHECKSUMS] = (torch.int64, [1, num_blocks])
    header: dict[str, Any] = {"__metadata__": {METADATA_KEY: json.dumps(content)}}
    offset, sizes = 0, {}
    # The widest types first, as safetensors itself orders them: all tensors are then aligned.
    for name, (dtype, shape) in sorted(shapes.items(), key=lambda item: (-item[1][0].itemsize, item[0])):
        size = dtype.itemsize * int(torch.tensor(shape).prod())
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [offset, offset + size]}
        sizes[name] = (offset, size // shape[1] if len(shape) > 1 else size)
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    return {name: (8 + len(text) + start, segment_bytes) for name, (start, segment_bytes) in sizes.items()}


def read_row(path: Path, position: int, first: int = 0, length: int | None = None) -> dict[str, torch.Tensor]:
    """Reads one row of a shard, or a window of it, and verifies its checksum.

    Args:
        path (`Path`): The shard.
        position (`int`): Position of the row in it.
        first (`int`): First segment.
        length (`int`, *optional*): Number of segments; by default all from `first` on.

    Returns:
        `dict[str, torch.Tensor]`: The tensors without their first axis; a row of several is still padded.

    Raises:
        FeatureStoreError: if the shard is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as shard:
            names = shard.keys()
            if CHECKSUMS in names:
                clip = _read_blocks(shard, path, first, length)
            else:
                expected = json.loads(shard.metadata()[METADATA_KEY])["checksums"][position]
                clip = {name: shard.get_slice(name)[position] for name in names}
                if checksum(clip) != expected:
                    raise damaged(path, f"row {int(clip['rows'])} does not have its checksum")
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, FeatureStoreError):
            raise
        raise damaged(path, error) from error
    if CHECKSUMS in names:
        return clip
    end = None if length is None else first + length
    num_segments = int(clip["segment_mask"].sum())  # the clips of a shard are padded to the longest one
    return {name: value if name == "rows" else value[:num_segments][first:end] for name, value in clip.items()}


def read_labels(path: Path, position: int) -> torch.Tensor:
    """Reads the labels of one row of a shard; those of a row of several are still padded.

    Raises:
        FeatureStoreError: if the shard is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as shard:
            return shard.get_slice("labels")[position]
    except (OSError, SafetensorError, LookupError) as error:
        raise damaged(path, error) from error


def _read_blocks(shard: Any, path: Path, first: int, length: int | None) -> dict[str, torch.Tensor]:
    """Reads the blocks that contain a window of a long row, verifies them, and returns the window."""
    num_segments = shard.get_slice("segment_mask").get_shape()[1]
    end = num_segments if length is None else min(num_segments, first + length)
    expected = shard.get_tensor(CHECKSUMS)[0]
    row = shard.get_tensor("rows")[0]
    slices = {name: shard.get_slice(name) for name in (*FEATURES, "labels")}
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in slices}
    for number in range(first // BLOCK_SEGMENTS, -(-end // BLOCK_SEGMENTS)):
        start = number * BLOCK_SEGMENTS
        block = {name: tensor[0, start : start + BLOCK_SEGMENTS] for name, tensor in slices.items()}
        if _block_checksum(block, block["labels"]) != int(expected[number]):
            raise damaged(path, f"row {int(row)} does not have its checksum")
        for name, tensor in block.items():
            parts[name].append(tensor[max(0, first - start) : max(0, end - start)])
    window = {name: torch.cat(tensors) for name, tensors in parts.items()}
    return {"rows": row, "segment_mask": torch.ones(end - first, dtype=torch.bool), **window}


def verify_shard(path: Path) -> None:
    """Reads a shard and compares its checksums.

    Raises:
        FeatureStoreError: if one differs.
    """
    for position, length in enumerate(describe_shard(path)["lengths"]):
        for first in range(0, length, LONG_SEGMENTS):
            read_row(path, position, first, LONG_SEGMENTS)
            if length <= LONG_SEGMENTS:
                break


def describe_shard(path: Path) -> dict[str, Any]:
    """Returns what a shard contains, without its features.

    Returns:
        `dict[str, Any]`: one entry per readable row of `rows`, `lengths`, `events` (label, start and end; `None` where
        the truth is withheld) and `durations`; `labelled`, the number of rows with a label; and `checksums`.
    """
    content = read_metadata(path)
    facts: dict[str, Any] = {"rows": [], "lengths": [], "events": [], "durations": [], "labelled": 0, "checksums": []}
    try:
        with safe_open(path, "pt") as shard:
            if "rows" not in shard.keys():  # noqa: SIM118  (none of its rows could be read)
                return facts
            labels = shard.get_tensor("labels")
            facts["rows"] = shard.get_tensor("rows").tolist()
            facts["lengths"] = shard.get_tensor("segment_mask").sum(dim=1).tolist()
            is_long = CHECKSUMS in shard.keys()  # noqa: SIM118
            facts["checksums"] = shard.get_tensor(CHECKSUMS).tolist() if is_long else content["checksums"]
    except (OSError, SafetensorError, LookupError) as error:
        raise damaged(path, error) from error
    facts["labelled"] = int((labels != IGNORED_LABEL).flatten(1).any(dim=1).sum())
    facts["events"], facts["durations"] = content.get("events"), content.get("durations")
    if "seen" in content:  # of data sets that hold classes out of training
        facts["seen"] = content["seen"]
    settings = content["settings"]
    if facts["events"] is None and settings.get("problem_type") == MULTI_LABEL:  # written without their times
        facts["events"] = [None] * len(facts["rows"])
        facts["durations"] = [None] * len(facts["rows"])
    if facts["events"] is None:  # a shard of an earlier version: its labels say the same for whole segments
        seconds = settings.get("segment_seconds", 1.0)
        rows = [row[:length] for row, length in zip(labels, facts["lengths"])]
        facts["events"] = [_events_of_row(row, len(settings.get("id2label", ())) - 1, seconds) for row in rows]
        facts["durations"] = [length * seconds for length in facts["lengths"]]
    return facts


def checksum(clip: Mapping[str, torch.Tensor]) -> int:
    """Returns a checksum of the tensors of a row."""
    value = 0
    for name in sorted(clip):
        value = zlib.crc32(as_bytes(clip[name]), value)
    return value


def _block_checksum(block: Mapping[str, torch.Tensor], labels: torch.Tensor) -> int:
    return checksum({**{name: block[name] for name in FEATURES}, "labels": labels})


def as_bytes(tensor: torch.Tensor) -> memoryview:
    """Returns the bytes of a tensor on the CPU, without a copy if it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def finish_file(path: Path) -> None:
    """Sets the usual permissions of a safetensors file, which only its owner may read, and flushes it to the disk.

    Without the flush, a power failure right after renaming could leave an empty shard.
    """
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def plan_shards(lengths: Mapping[int, int], rows_per_shard: int) -> list[list[int]]:
    """Divides the rows of a split into shards: `rows_per_shard` short rows each, or one long row.

    Args:
        lengths (`Mapping[int, int]`): Number of segments of each row, in the order of the split.
        rows_per_shard (`int`): Short rows per shard.
    """
    shards: list[list[int]] = []
    is_open = False
    for row, length in lengths.items():
        is_long = length > LONG_SEGMENTS
        if is_long or not is_open or len(shards[-1]) == rows_per_shard:
            shards.append([])
        shards[-1].append(row)
        is_open = not is_long
    return shards


def _events_of_row(labels: torch.Tensor, background: int, segment_seconds: float) -> list[list] | None:
    """Returns runs of equal labels as events `[label, start, end]` in order of time; `None` if no label is known."""
    if not (labels != IGNORED_LABEL).any():
        return None
    events = events_of_labels(one_hot_labels(labels.numpy(), background), segment_seconds)
    return [list(event) for event in sorted(events, key=lambda event: event[1])]
