"""Decoded clips of a labelled data set for the towers: read one by one, or decoded once into a memory-mapped cache.

N clips, T segments, K frames per segment, S samples per segment, H and W of a frame.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Subset
from transformers.utils import logging

from ..core.losses import IGNORED_LABEL
from ..core.segments import num_segments_for
from ..core.video_source import VideoReadError
from ..data.collation import fit_length
from ..data.decoding import identify_video, label_counts, open_row_video, open_video
from ..data.windows import iter_windows, read_window
from ..files import FolderInUseError, new_folder
from .arguments import write_json

if TYPE_CHECKING:
    import datasets

    from ..core.processing_ave_clip import AVEClipProcessor

logger = logging.get_logger(__name__)

CACHE_FORMAT = 2
LONG_CLIP = 64  # segments; longer videos are decoded in blocks of this size
CHECKED_ROWS = 8  # rows of a data set whose number of labels is compared with their duration
INDEX_FILE = "index.json"  # written last: a folder without it is not a cache
INPUTS = ("pixel_values", "frame_mask", "input_values")
CACHED = {"frames": "pixel_values", "frame_mask": "frame_mask", "sounds": "input_values", "labels": "labels"}


class ClipReader(Dataset):
    """Decodes the clips of a data set with a processor, each into as many segments as it has labels.

    A clip shorter than its labels gets empty segments (no frame, silence) at the end; a longer one is cropped.

    Args:
        examples (`datasets.Dataset`): Rows of [`~ave_clip.data.open_dataset`].
        processor (`AVEClipProcessor`): Turns a file into `pixel_values`, `frame_mask` and `input_values`.
        options: Arguments of the processor that override its settings.

    Raises:
        ValueError: if the processor's segments do not have the length of the segments that the labels describe.
    """

    def __init__(self, examples: "datasets.Dataset", processor: "AVEClipProcessor", **options: Any):
        check_segments(examples, processor.video_processor.segment_seconds)
        self.examples = examples
        self.processor = processor
        self.options: dict[str, Any] = {"return_tensors": "pt", **options}

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def lengths(self) -> list[int]:
        """Number of segments of each clip."""
        return label_counts(self.examples)

    @cached_property
    def truth(self) -> dict[int, dict[str, Any]]:
        """The annotated `events` (a list of `label`, `start` and `end`, or `None`) and the `duration` of each row.

        Also `seen`, whether the class of a video is trained, if the data set tells.
        """
        names = [name for name in ("row", "events", "duration", "seen") if name in self.examples.column_names]
        rows = self.examples.select_columns(names).with_format(None)
        seen = ("seen",) if "seen" in names else ()
        return {row["row"]: {name: row.get(name) for name in ("events", "duration", *seen)} for row in rows}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads one clip.

        Returns:
            `dict[str, Any]`: `row`, `labels` `(T,)` or `(T, C)`, `pixel_values` `(T, K, 3, H, W)`, `frame_mask`
            `(T, K)` and `input_values` `(T, S)`; or `row` and `error`, the reason, if the file cannot be read.
        """
        example = self.examples[index]
        known = self._known(example)
        try:
            inputs = self.processor(videos=open_video(example["video"]), **self.options)
        except (ValueError, OSError) as error:
            return {"row": example["row"], "error": f"{example['video'].get('path')}: {error}"}
        arrays = {name: fit_length(inputs[name][0], len(known["labels"])) for name in INPUTS}
        return {**known, **arrays}

    @cached_property
    def _facts(self) -> Any:
        """The rows without their videos, which may be embedded and large."""
        examples: Any = self.examples
        return examples.remove_columns("video") if hasattr(examples, "remove_columns") else examples

    def labels_of(self, index: int) -> Any:
        """Returns the labels of a clip without decoding it."""
        return self._facts[index]["labels"]

    def _known(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what is known of a row without its file."""
        known: dict[str, Any] = {"row": torch.tensor(example["row"]), "labels": torch.tensor(example["labels"])}
        if "video_label" in example:  # the truth of rows whose labels are withheld
            known["video_label"] = torch.tensor(example["video_label"])
        return known

    def window(self, index: int, first: int = 0, length: int | None = None) -> dict[str, Any]:
        """Reads a window of a clip, in the form of `__getitem__`, without decoding the rest of the file.

        Args:
            index (`int`): Position of the clip.
            first (`int`): First segment of the window.
            length (`int`, *optional*): Number of segments. Default: the whole clip, with the options of the processor.
        """
        if length is None:
            return self[index]
        example = self._facts[index]
        known = self._known(example)
        known["labels"] = known["labels"][first : first + length]
        try:
            video = open_row_video(self.examples, index)
            window = read_window(video, self.processor, first, len(known["labels"]))
        except (ValueError, OSError) as error:
            return {"row": example["row"], "error": f"{self.examples[index]['video'].get('path')}: {error}"}
        if self.options.get("do_normalize", True):
            window["pixel_values"] = self.processor.video_processor.normalize_pixels(window["pixel_values"])
        return {**known, **window}

    def blocks(self, index: int, size: int) -> Iterator[dict[str, torch.Tensor]]:
        """Yields a clip of any length in blocks of `size` segments with uint8 frames, as many as it has labels.

        Raises:
            VideoReadError: if the file cannot be read.
        """
        left = self.lengths[index]
        block: dict[str, torch.Tensor] = {}
        try:
            blocks = iter_windows(open_row_video(self.examples, index), self.processor, size)
        except OSError as error:
            raise VideoReadError(str(error)) from error
        while left:
            try:
                block = next(blocks, None) or {name: values[:0] for name, values in block.items()}
            except OSError as error:
                raise VideoReadError(str(error)) from error
            # After the end of a file that is shorter than its labels, empty segments follow.
            length = min(left, len(block["frame_mask"]) or size)
            yield {name: fit_length(values, length) for name, values in block.items()}
            left -= length


def check_segments(examples: "datasets.Dataset", segment_seconds: float) -> None:
    """Checks that the labels of a data set are those of segments of this length.

    Raises:
        ValueError: if they are not.
    """
    if not hasattr(examples, "select_columns"):  # a plain list of rows has no duration to compare with
        return
    columns = [name for name in ("labels", "duration") if name in examples.column_names]
    for example in examples.select_columns(columns).select(range(min(CHECKED_ROWS, len(examples)))):
        number = len(example["labels"])
        # Data sets of earlier versions have labels of one second, and no durations.
        duration = example.get("duration") or float(number)
        if num_segments_for(duration, segment_seconds) != number:
            raise ValueError(
                f"The labels divide {duration:g} s into {number} segments, but the processor's segments are "
                f"{segment_seconds:g} s long and would get the labels of other times. Open the data set with "
                f"segment_seconds={segment_seconds:g} (--segment_seconds)."
            )


class ClipCache:
    """All clips of a split, decoded once: memory-mapped arrays of the segments of all clips, one clip after another.

    Frames are stored as `uint8`, resized and cropped but not normalized (`AVEClipVideoProcessor.normalize_pixels` does
    that); audio is stored as float32, as the audio tower takes it.

    Args:
        folder (`str` or `os.PathLike`): Folder written by `build_clip_cache`.

    Attributes:
        frames (`np.ndarray` of shape `(N, K, 3, H, W)`, uint8)
        frame_mask (`np.ndarray` of shape `(N, K)`, bool): `False` marks missing frames.
        sounds (`np.ndarray` of shape `(N, ..., S)`, float32)
        labels (`np.ndarray` of shape `(N,)` or `(N, C)`, int64): -100 in all segments of a clip that cannot be read.
        starts (`np.ndarray` of shape `(number of clips + 1,)`): First segment of each clip; the last entry is N.
        rows (`list[int]`): Row numbers.
        failed (`dict[int, str]`): The reason for each row that could not be read.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        index = json.loads((self.folder / INDEX_FILE).read_text(encoding="utf-8"))
        self.rows, self.failed = index["rows"], {int(row): error for row, error in index["failed"].items()}
        self.starts = np.cumsum([0, *index["lengths"]])
        self.frames, self.frame_mask, self.sounds, self.labels = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in CACHED
        )

    def __len__(self) -> int:
        return len(self.rows)

    def clip(self, name: str, index: int) -> np.ndarray:
        """Returns the part of `frames`, `frame_mask`, `sounds` or `labels` that belongs to one clip."""
        return getattr(self, name)[self.starts[index] : self.starts[index + 1]]


def build_clip_cache(
    folder: str | os.PathLike, examples: "datasets.Dataset", processor: "AVEClipProcessor", num_workers: int = 0
) -> ClipCache:
    """Decodes the clips of a split, unless `folder` already contains a cache with the same clips and settings.

    Args:
        folder (`str` or `os.PathLike`): Folder of all caches; each has a subfolder named after its content.
        examples (`datasets.Dataset`): Rows of [`~ave_clip.data.open_dataset`].
        processor (`AVEClipProcessor`): Reads, resizes and crops the frames on its time grid.
        num_workers (`int`): Number of additional decoding processes.

    Returns:
        `ClipCache`: the cache; its folder is written atomically.

    Raises:
        ValueError: if there are no clips, none can be read, or the cache's folder contains something else.
    """
    if len(examples) == 0:
        raise ValueError("There are no clips to decode: the split is empty.")
    target = Path(folder) / cache_key(examples, processor)
    if not (target / INDEX_FILE).exists():
        reader = ClipReader(examples, processor, do_rescale=False, do_normalize=False)
        try:
            with new_folder(target) as partial:
                _fill_cache(partial, reader, num_workers)
        except FolderInUseError:
            if not (target / INDEX_FILE).exists():
                raise
            logger.info(f"Another process has written {target} in the meantime; it is used.")
    return ClipCache(target)


def cache_key(examples: "datasets.Dataset", processor: "AVEClipProcessor") -> str:
    """Returns the folder name of a cache: a hash of its clips (see `clips_fingerprint`) and settings."""
    settings = [processor.video_processor.to_dict(), processor.feature_extractor.to_dict()]
    if processor.audio_window_seconds or processor.audio_options:  # of composites; AudioCLIP's caches keep their names
        settings.append({"window_seconds": processor.audio_window_seconds, **processor.audio_options})
    content = json.dumps([CACHE_FORMAT, clips_fingerprint(examples), *settings], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def clips_fingerprint(examples: Iterable[Mapping[str, Any]]) -> str:
    """Returns a hash of each row's number, video (see `identify_video`) and labels, without reading the videos.

    Args:
        examples (`Iterable[Mapping[str, Any]]`): Rows of [`~ave_clip.data.open_dataset`].

    Returns:
        `str`: 16 hexadecimal digits, which change with the videos, the labels and the order.
    """
    digest = hashlib.sha256()
    for example in examples:
        labels = list(example["labels"])
        digest.update(repr((example["row"], identify_video(example["video"]), labels)).encode())
        events = example.get("events")
        # Times that the labels do not tell; labels of whole seconds keep the hash of earlier versions.
        if events and not all(float(event[end]).is_integer() for event in events for end in ("start", "end")):
            digest.update(repr([(event["label"], event["start"], event["end"]) for event in events]).encode())
    return digest.hexdigest()[:16]


def _fill_cache(folder: Path, reader: ClipReader, num_workers: int) -> None:
    starts = np.cumsum([0, *reader.lengths])
    arrays: dict[str, np.memmap] = {}
    failed: dict[int, str] = {}
    # Long videos are decoded here, block by block, the others in the processes of the loader.
    is_long = [length > LONG_CLIP for length in reader.lengths]
    short = Subset(reader, [index for index, long in enumerate(is_long) if not long])
    clips = iter(DataLoader(short, batch_size=None, num_workers=num_workers))
    for index, row in enumerate(reader.examples["row"]):
        try:
            for first, values in _cache_blocks(reader, index) if is_long[index] else [(0, _read_short(clips))]:
                arrays = arrays or _new_arrays(folder, int(starts[-1]), values)
                for name, array in arrays.items():
                    place = starts[index] + first
                    array[place : place + len(values[name])] = values[name]
        except VideoReadError as error:
            failed[int(row)] = str(error)
            if arrays:
                arrays["labels"][starts[index] : starts[index + 1]] = IGNORED_LABEL
            logger.warning(f"Row {row} is left out because it could not be read: {error}")
    if not arrays:
        raise ValueError(f"None of the {len(reader)} clips could be read. The first: {next(iter(failed.values()))}")
    for array in arrays.values():
        array.flush()
    content = {"rows": list(reader.examples["row"]), "failed": failed, "lengths": reader.lengths}
    write_json(folder / INDEX_FILE, content)


def _read_short(clips: Iterator[dict[str, Any]]) -> dict[str, np.ndarray]:
    clip = next(clips)
    if "error" in clip:
        raise VideoReadError(clip["error"])
    values = {name: clip[source].numpy() for name, source in CACHED.items()}
    return {**values, "frames": values["frames"].astype(np.uint8)}


def _cache_blocks(reader: ClipReader, index: int) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    labels = np.array(reader.examples[index]["labels"], dtype=np.int64)
    first = 0
    for block in reader.blocks(index, LONG_CLIP):
        values = {name: block[source].numpy() for name, source in CACHED.items() if name != "labels"}
        length = len(values["frames"])
        yield first, {**values, "labels": labels[first : first + length]}
        first += length


def _new_arrays(folder: Path, num_segments: int, clip: Mapping[str, np.ndarray]) -> dict[str, np.memmap]:
    arrays = {}
    for name, values in clip.items():
        path, shape = folder / f"{name}.npy", (num_segments, *values.shape[1:])
        arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=values.dtype, shape=shape)
        _claim(path)
    arrays["labels"][:] = IGNORED_LABEL
    return arrays


def _claim(path: Path) -> None:
    """Allocates the disk space of a new file, whose blocks are otherwise allocated when they are written.

    If the disk is full at that moment, the kernel kills a process that writes through a memory map (SIGBUS); here it
    is an error.
    """
    size = path.stat().st_size
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free / 1e9
        raise OSError(
            error.errno,
            f"The decoded clips need {size / 1e9:.1f} GB for {path.name} alone, but {free:.1f} GB are free ({error}). "
            "Free space, or pass another --cache_dir or a smaller --num_frames_per_segment",
        ) from error
