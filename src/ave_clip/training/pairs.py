"""Stage 1's examples: one picture and one second of sound of the same event segment, from a `ClipCache`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from ..data.annotations import IGNORED_LABEL
from .clips import ClipCache


class SegmentPairs(Dataset):
    """Pairs of a frame and a sound, one for every segment that holds an event (and at least one frame).

    Args:
        cache (`ClipCache`): The decoded clips.
        examples (`Sequence[Mapping[str, Any]]`): Their rows, in the same order.
        background (`int`): Class id of background.
        is_random (`bool`): Draw the frame of the segment, and shift the sound; otherwise the middle frame, unshifted.
        max_shift (`float`): With `is_random`, how far the sound may be shifted, in segments, within its event.
        one_per_video (`bool`): Only the middle event segment of each video, for retrieval over different videos.
    """

    def __init__(
        self,
        cache: ClipCache,
        examples: Sequence[Mapping[str, Any]],
        background: int,
        is_random: bool = True,
        max_shift: float = 0.0,
        one_per_video: bool = False,
    ):
        self.cache, self.is_random, self.max_shift = cache, is_random, max_shift
        is_event = (cache.labels != background) & (cache.labels != IGNORED_LABEL) & cache.frame_mask.any(axis=2)
        places = [np.flatnonzero(segments) for segments in is_event]
        self.places = [
            (clip, int(segment))
            for clip, segments in enumerate(places)
            for segment in (segments[len(segments) // 2 :][:1] if one_per_video else segments)
        ]
        # Rows that show the same video (with another label) count as one video.
        columns = zip(examples["row"], examples["duplicate_of"])
        self.video_ids = [row if first is None else first for row, first in columns]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return `frames` `(3, H, W)` uint8, `input_values` `(S,)`, `class_ids` and `video_ids` (scalars)."""
        clip, segment = self.places[index]
        label = self.cache.labels[clip, segment]
        frames = np.flatnonzero(self.cache.frame_mask[clip, segment])
        frame = frames[self._draw(len(frames)) if self.is_random else len(frames) // 2]
        return {
            "frames": torch.from_numpy(self.cache.frames[clip, segment, frame].copy()),
            "input_values": torch.from_numpy(self._sound(clip, segment, label)),
            "class_ids": int(label),
            "video_ids": self.video_ids[clip],
        }

    def _sound(self, clip: int, segment: int, label: int) -> np.ndarray:
        sounds = self.cache.sounds[clip]  # (T, S)
        if not (self.is_random and self.max_shift):
            return sounds[segment].copy()
        labels, size = self.cache.labels[clip], sounds.shape[1]
        has_next = segment + 1 < len(labels) and labels[segment + 1] == label
        has_previous = segment > 0 and labels[segment - 1] == label
        lowest, highest = -int(has_previous * self.max_shift * size), int(has_next * self.max_shift * size)
        start = segment * size + lowest + self._draw(highest - lowest + 1)
        return sounds.reshape(-1)[start : start + size].copy()

    @staticmethod
    def _draw(number: int) -> int:
        return int(torch.randint(number, ()))


def augment_frames(frames: torch.Tensor, max_shift_pixels: int, max_gain: float) -> torch.Tensor:
    """Shift each picture (edges repeat) and change its brightness, contrast and colour balance at random.

    Args:
        frames (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Pictures in [0, 255], any dtype.
        max_shift_pixels (`int`): Largest shift along either axis.
        max_gain (`float`): Largest relative change of contrast; colours and brightness change less.

    Returns:
        `torch.Tensor` of the same shape, float32 in [0, 255].
    """
    batch_size, _, height, width = frames.shape
    frames = frames.float()
    if max_shift_pixels:
        frames = torch.nn.functional.pad(frames, [max_shift_pixels] * 4, mode="replicate")
        shifts = torch.randint(2 * max_shift_pixels + 1, (2, batch_size, 1), device=frames.device)
        rows = shifts[0] + torch.arange(height, device=frames.device)  # (B, height)
        columns = shifts[1] + torch.arange(width, device=frames.device)
        frames = frames.gather(2, rows[:, None, :, None].expand(-1, 3, -1, frames.shape[3]))
        frames = frames.gather(3, columns[:, None, None, :].expand(-1, 3, height, -1))

    def gains(size: int, strength: float) -> torch.Tensor:
        return 1 + strength * (2 * torch.rand(batch_size, size, 1, 1, device=frames.device) - 1)

    middle = frames.mean(dim=(1, 2, 3), keepdim=True)
    frames = (frames - middle) * gains(1, max_gain) + middle * gains(1, max_gain / 2)
    return (frames * gains(3, max_gain / 4)).clamp(0, 255)


def augment_sounds(sounds: torch.Tensor, max_gain_db: float) -> torch.Tensor:
    """Play each sound louder or softer, evenly in decibels.

    Args:
        sounds (`torch.Tensor` of shape `(batch_size, num_samples)`): Waveforms in any range.
        max_gain_db (`float`): Largest change.

    Returns:
        `torch.Tensor` of the same shape.
    """
    gains_db = max_gain_db * (2 * torch.rand(len(sounds), 1, device=sounds.device) - 1)
    return sounds * 10 ** (gains_db / 20)
