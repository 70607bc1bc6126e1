"""Clips of a labelled data set as the towers want them: read one by one, or once for all into a memory-mapped cache.

N clips, T segments, K frames per segment, S samples per segment, H and W of a frame.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from transformers.utils import logging

from ..data.annotations import IGNORED_LABEL
from ..data.decoding import identify_video, open_video
from ..files import FolderInUseError, new_folder
from .arguments import write_json

logger = logging.get_logger(__name__)

CACHE_FORMAT = 1
LABEL_SECONDS = 1.0  # of AVE, and of whatever `load_ave` reads
INDEX_FILE = "index.json"  # written last
CACHED = {"frames": "pixel_values", "frame_mask": "frame_mask", "sounds": "input_values", "labels": "labels"}


class ClipReader(Dataset):
    """Decodes the clips of a data set through a processor, each to as many segments as it has labels.

    A clip shorter than its labels gets empty segments (no frame, silence) at the end; a longer one is cut.

    Args:
        examples (`Sequence[Mapping[str, Any]]`): Rows as `load_ave` gives them.
        processor (`AVEClipProcessor`): Turns a file into `pixel_values`, `frame_mask` and `input_values`.
        options: Arguments of the processor, over its own settings.

    Raises:
        ValueError: where the processor cuts segments of another length than the labels', a second.
    """

    def __init__(self, examples: Sequence[Mapping[str, Any]], processor: Callable, **options: Any):
        seconds = processor.video_processor.segment_seconds
        if seconds != LABEL_SECONDS:
            raise ValueError(
                f"The labels are of {LABEL_SECONDS:g} second each, but the processor cuts segments of {seconds:g} "
                "seconds, which would get the labels of other times. Pass --segment_seconds 1."
            )
        self.examples = examples
        self.processor = processor
        self.options = {"return_tensors": "pt", **options}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one clip.

        Returns:
            `dict[str, Any]`: `row`, `labels` `(T,)`, `pixel_values` `(T, K, 3, H, W)`, `frame_mask` `(T, K)` and
            `input_values` `(T, S)`; or `row` and `error`, the reason, where the file cannot be read.
        """
        example = self.examples[index]
        labels = torch.tensor(example["labels"])
        try:
            inputs = self.processor(videos=open_video(example["video"]), **self.options)
        except (ValueError, OSError) as error:
            return {"row": example["row"], "error": f"{example['video'].get('path')}: {error}"}
        arrays = {name: inputs[name][0] for name in ("pixel_values", "frame_mask", "input_values")}
        arrays = {name: _fit_length(array, len(labels)) for name, array in arrays.items()}
        return {"row": torch.tensor(example["row"]), "labels": labels, **arrays}


class ClipCache:
    """All clips of a split, decoded once, as memory-mapped arrays: training reads them at the speed of memory.

    Frames are kept as `uint8`, resized and cropped but not normalised (`AVEClipVideoProcessor.normalize_pixels` does
    that); sound as the float32 the audio tower takes.

    Args:
        folder (`str` or `os.PathLike`): Folder that `build_clip_cache` made.

    Attributes:
        frames (`np.ndarray` of shape `(N, T, K, 3, H, W)`, uint8)
        frame_mask (`np.ndarray` of shape `(N, T, K)`, bool): `False` where there is no frame.
        sounds (`np.ndarray` of shape `(N, T, S)`, float32)
        labels (`np.ndarray` of shape `(N, T)`, int64): -100 in every segment of a clip that could not be read.
        rows (`list[int]`): Row numbers.
        failed (`dict[int, str]`): Rows that could not be read, and why.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        index = json.loads((self.folder / INDEX_FILE).read_text(encoding="utf-8"))
        self.rows, self.failed = index["rows"], {int(row): error for row, error in index["failed"].items()}
        self.frames, self.frame_mask, self.sounds, self.labels = (
            np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in CACHED
        )

    def __len__(self) -> int:
        return len(self.rows)


def build_clip_cache(
    folder: str | os.PathLike, examples: Sequence[Mapping[str, Any]], processor: Callable, num_workers: int = 0
) -> ClipCache:
    """Decode every clip of a split, unless a cache of the same clips and settings stands in `folder` already.

    Args:
        folder (`str` or `os.PathLike`): Where caches lie; each gets a sub-folder named by what it holds.
        examples (`Sequence[Mapping[str, Any]]`): Rows as `load_ave` gives them, all with equally many labels.
        processor (`AVEClipProcessor`): Reads, resizes and crops; holds the time grid.
        num_workers (`int`): Processes that decode beside this one.

    Returns:
        `ClipCache`: it appears under its name only when whole.

    Raises:
        ValueError: where there are no clips, none can be read, their numbers of labels differ, or something else is
            in the cache's place.
    """
    if len(examples) == 0:
        raise ValueError("Got no clips to decode: the split is empty.")
    target = Path(folder) / cache_key(examples, processor)
    if not (target / INDEX_FILE).exists():
        reader = ClipReader(examples, processor, do_rescale=False, do_normalize=False)
        try:
            with new_folder(target) as partial:
                _fill_cache(partial, reader, num_workers)
        except FolderInUseError:
            if not (target / INDEX_FILE).exists():
                raise
            logger.info(f"Another process made {target} meanwhile: that one is used.")
    return ClipCache(target)


def cache_key(examples: Sequence[Mapping[str, Any]], processor: Any) -> str:
    """Name what a cache holds: a hash of the clips, their labels (see `clips_fingerprint`) and the settings."""
    settings = [processor.video_processor.to_dict(), processor.feature_extractor.to_dict()]
    content = json.dumps([CACHE_FORMAT, clips_fingerprint(examples), *settings], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def clips_fingerprint(examples: Iterable[Mapping[str, Any]]) -> str:
    """Hash what is learned from: each row's number, video (see `identify_video`) and labels; no video is read.

    Args:
        examples (`Iterable[Mapping[str, Any]]`): Rows as `load_ave` gives them.

    Returns:
        `str`: 16 hexadecimal digits; others for other videos, corrected labels or another order.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr((example["row"], identify_video(example["video"]), list(example["labels"]))).encode())
    return digest.hexdigest()[:16]


def _fill_cache(folder: Path, reader: ClipReader, num_workers: int) -> None:
    lengths = {len(labels) for labels in reader.examples["labels"]}
    if len(lengths) > 1:
        raise ValueError(f"The clips have {sorted(lengths)} labels each; a cache needs equally many for all.")
    arrays: dict[str, np.ndarray] = {}
    failed: dict[int, str] = {}
    for index, clip in enumerate(DataLoader(reader, batch_size=None, num_workers=num_workers)):
        if "error" in clip:
            failed[int(clip["row"])] = clip["error"]
            logger.warning(f"Row {clip['row']} is left out, it could not be read: {clip['error']}")
            continue
        values = {name: clip[source].numpy() for name, source in CACHED.items()}
        values["frames"] = values["frames"].astype(np.uint8)
        arrays = arrays or _new_arrays(folder, len(reader), values)
        for name, array in arrays.items():
            array[index] = values[name]
    if not arrays:
        raise ValueError(f"None of the {len(reader)} clips could be read. The first: {next(iter(failed.values()))}")
    for array in arrays.values():
        array.flush()
    write_json(folder / INDEX_FILE, {"rows": list(reader.examples["row"]), "failed": failed})


def _new_arrays(folder: Path, num_clips: int, clip: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    arrays = {}
    for name, values in clip.items():
        path, shape = folder / f"{name}.npy", (num_clips, *values.shape)
        arrays[name] = np.lib.format.open_memmap(path, mode="w+", dtype=values.dtype, shape=shape)
        _claim(path)
    arrays["labels"][:] = IGNORED_LABEL
    return arrays


def _claim(path: Path) -> None:
    """Take the room of a file that is empty as yet: a mapped file that finds the disk full kills the process."""
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
            f"The decoded clips need {size / 1e9:.1f} GB for {path.name} alone, {free:.1f} GB are free ({error}). "
            "Make room, or pass another --cache_dir or a smaller --num_frames_per_segment",
        ) from error


def _fit_length(array: torch.Tensor, num_segments: int) -> torch.Tensor:
    missing = num_segments - len(array)
    if missing <= 0:
        return array[:num_segments]
    return torch.cat([array, array.new_zeros(missing, *array.shape[1:])])
