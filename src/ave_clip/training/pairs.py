"""Stage 1's examples: one picture and one second of sound of the same event segment, from a `ClipCache`.

What is random about a segment depends on seed, epoch and segment only: not on the process that reads it, and not on
what was read before.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from ..data.annotations import IGNORED_LABEL
from .clips import ClipCache
from .sampling import item_rng

NUM_PICTURE_DRAWS = 7  # shift down and right, contrast, brightness, three colours
NUM_DRAWS = NUM_PICTURE_DRAWS + 1  # and loudness


class SegmentPairs(Dataset):
    """Pairs of a frame and a sound, one for every segment that holds an event (and at least one frame).

    Args:
        cache (`ClipCache`): The decoded clips.
        examples (`Sequence[Mapping[str, Any]]`): Their rows, in the same order.
        background (`int`): Class id of background.
        seed (`int`): Seed of everything random.
        is_random (`bool`): Draw the frame of the segment, and shift the sound; otherwise the middle frame, unshifted.
        max_shift (`float`): With `is_random`, how far the sound may be shifted, in segments, within its event.
        one_per_video (`bool`): Only the middle event segment of each video, for retrieval over different videos.
        background_negatives (`bool`): Each pair brings a random background segment of its video, if there is one.

    Raises:
        ValueError: where no segment holds an event.
    """

    def __init__(
        self,
        cache: ClipCache,
        examples: Sequence[Mapping[str, Any]],
        background: int,
        *,
        seed: int = 0,
        is_random: bool = True,
        max_shift: float = 0.0,
        one_per_video: bool = False,
        background_negatives: bool = False,
    ):
        self.cache, self.seed, self.is_random, self.max_shift = cache, seed, is_random, max_shift
        has_frame = cache.frame_mask.any(axis=2)  # (N, T)
        is_event = (cache.labels != background) & (cache.labels != IGNORED_LABEL) & has_frame
        # Rows that show the same video (with another label) count as one video.
        columns = zip(examples["row"], examples["duplicate_of"])
        self.video_ids = [row if first is None else first for row, first in columns]
        self.places = self._middle_places(is_event) if one_per_video else [tuple(p) for p in np.argwhere(is_event)]
        if not self.places:
            raise ValueError(
                f"None of the {len(cache)} clips has a segment with an event: their labels are background or missing. "
                "Pass a split with a label for every segment."
            )
        is_negative = (cache.labels == background) & has_frame & background_negatives
        self.backgrounds = [np.flatnonzero(segments) for segments in is_negative]
        self.set_epoch(0)

    def _middle_places(self, is_event: np.ndarray) -> list[tuple[int, int]]:
        places = {}
        for clip, segments in enumerate(map(np.flatnonzero, is_event)):
            if len(segments):
                places.setdefault(self.video_ids[clip], (clip, segments[len(segments) // 2]))
        return list(places.values())

    def __len__(self) -> int:
        return len(self.places)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, which decides what is drawn; before a loader is iterated."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one pair.

        Returns:
            `dict[str, Any]`: `frames` `(3, H, W)` uint8, `input_values` `(S,)`, `draws` `(8,)` in [0, 1) for
            `augment_frames` and `augment_sounds`, the scalars `class_ids`, `video_ids` and `rows`; and `negative`, the
            same of a background segment, where there is one.
        """
        clip, segment = self.places[index]
        rng = item_rng(self.seed, self.epoch, index)
        item = self._read(clip, segment, rng)
        if len(self.backgrounds[clip]):
            item["negative"] = self._read(clip, rng.choice(self.backgrounds[clip]), rng)
        return item

    def _read(self, clip: int, segment: int, rng: np.random.Generator) -> dict[str, Any]:
        frames = np.flatnonzero(self.cache.frame_mask[clip, segment])
        frame = frames[rng.integers(len(frames)) if self.is_random else len(frames) // 2]
        return {
            "frames": torch.from_numpy(self.cache.frames[clip, segment, frame].copy()),
            "input_values": torch.from_numpy(self._sound(clip, segment, rng)),
            "draws": torch.from_numpy(rng.random(NUM_DRAWS, dtype=np.float32)),
            "class_ids": int(self.cache.labels[clip, segment]),
            "video_ids": self.video_ids[clip],
            "rows": self.cache.rows[clip],
        }

    def _sound(self, clip: int, segment: int, rng: np.random.Generator) -> np.ndarray:
        sounds = self.cache.sounds[clip]  # (T, S)
        if not (self.is_random and self.max_shift):
            return sounds[segment].copy()
        labels, size = self.cache.labels[clip], sounds.shape[1]
        has_next = segment + 1 < len(labels) and labels[segment + 1] == labels[segment]
        has_previous = segment > 0 and labels[segment - 1] == labels[segment]
        lowest, highest = -int(has_previous * self.max_shift * size), int(has_next * self.max_shift * size)
        start = segment * size + rng.integers(lowest, highest + 1)
        return sounds.reshape(-1)[start : start + size].copy()


def collate_pairs(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Batch pairs, and behind them the background segments that they brought.

    Args:
        items (`Sequence[Mapping[str, Any]]`): From `SegmentPairs`.

    Returns:
        `dict[str, Any]`: the items' values stacked, and the `int` `num_pairs`: that many come first.
    """
    pairs = [{name: value for name, value in item.items() if name != "negative"} for item in items]
    negatives = [item["negative"] for item in items if "negative" in item]
    return {**default_collate(pairs + negatives), "num_pairs": len(pairs)}


def augment_frames(frames: torch.Tensor, draws: torch.Tensor, max_shift_pixels: int, max_gain: float) -> torch.Tensor:
    """Shift each picture (edges repeat) and change its brightness, contrast and colour balance.

    Args:
        frames (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Pictures in [0, 255], any dtype.
        draws (`torch.Tensor` of shape `(batch_size, 8)`): What `SegmentPairs` drew for each, in [0, 1).
        max_shift_pixels (`int`): Largest shift along either axis.
        max_gain (`float`): Largest relative change of contrast; colours and brightness change less.

    Returns:
        `torch.Tensor` of the same shape, float32 in [0, 255].
    """
    _, _, height, width = frames.shape
    frames, draws = frames.float(), draws[:, :NUM_PICTURE_DRAWS].T
    if max_shift_pixels:
        frames = torch.nn.functional.pad(frames, [max_shift_pixels] * 4, mode="replicate")
        shifts = (draws[:2] * (2 * max_shift_pixels + 1)).long().clamp(max=2 * max_shift_pixels)[:, :, None]
        rows = shifts[0] + torch.arange(height, device=frames.device)  # (B, height)
        columns = shifts[1] + torch.arange(width, device=frames.device)
        frames = frames.gather(2, rows[:, None, :, None].expand(-1, 3, -1, frames.shape[3]))
        frames = frames.gather(3, columns[:, None, None, :].expand(-1, 3, height, -1))
    strengths = frames.new_tensor([1, 1 / 2, 1 / 4, 1 / 4, 1 / 4]) * max_gain
    gains = 1 + strengths * (2 * draws[2:].T - 1)  # (B, 5)
    contrast, brightness, colours = gains[:, :, None, None].split([1, 1, 3], dim=1)
    middle = frames.mean(dim=(1, 2, 3), keepdim=True)
    return (((frames - middle) * contrast + middle * brightness) * colours).clamp(0, 255)


def augment_sounds(sounds: torch.Tensor, draws: torch.Tensor, max_gain_db: float) -> torch.Tensor:
    """Play each sound louder or softer, evenly in decibels.

    Args:
        sounds (`torch.Tensor` of shape `(batch_size, num_samples)`): Waveforms in any range.
        draws (`torch.Tensor` of shape `(batch_size, 8)`): What `SegmentPairs` drew for each, in [0, 1).
        max_gain_db (`float`): Largest change.

    Returns:
        `torch.Tensor` of the same shape.
    """
    gains_db = max_gain_db * (2 * draws[:, NUM_PICTURE_DRAWS:] - 1)  # (B, 1)
    return sounds * 10 ** (gains_db / 20)
