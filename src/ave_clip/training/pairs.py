"""The examples of stage 1: one frame and one second of audio of the same event segment, from a `ClipCache`.

Random choices for a segment depend only on the seed, the epoch and the segment: not on the process that reads it, and
not on earlier reads.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from ..core.losses import IGNORED_LABEL
from .clips import ClipCache
from .sampling import item_rng

if TYPE_CHECKING:
    import datasets

    from ..core.processing_ave_clip import AVEClipProcessor

NO_CLASS = -1  # class id of a segment with several events
NUM_FRAME_DRAWS = 7  # shift down and right, contrast, brightness, three colours
NUM_DRAWS = NUM_FRAME_DRAWS + 1  # and loudness


class SegmentPairs(Dataset):
    """Pairs of a frame and audio, one for each segment with an event and at least one frame.

    Args:
        cache (`ClipCache`): The decoded clips.
        examples (`datasets.Dataset`): The rows of the clips, in the same order.
        background (`int`): Class id of background. Of segments with several labels, those with one event are used:
            only there, frame and audio show what the class says.
        seed (`int`): Seed of all random choices.
        is_random (`bool`): Choose the frame at random and shift the audio. Otherwise the middle frame, without shift.
        max_shift (`float`): With `is_random`, the largest shift of the audio within its event, in segments. The cached
            audio must then be waveforms that follow each other without gaps.
        one_per_video (`bool`): Only the middle event segment of each video, for retrieval among different videos.
        background_negatives (`bool`): Add a random background segment of the same video to each pair, if there is one.

    Raises:
        ValueError: if no segment has an event.
    """

    def __init__(
        self,
        cache: ClipCache,
        examples: "datasets.Dataset",
        background: int,
        *,
        seed: int = 0,
        is_random: bool = True,
        max_shift: float = 0.0,
        one_per_video: bool = False,
        background_negatives: bool = False,
    ):
        self.cache, self.seed, self.is_random, self.max_shift = cache, seed, is_random, max_shift
        has_frame = cache.frame_mask.any(axis=1)  # (N,)
        self.classes = _segment_classes(cache.labels, background)
        is_event = (self.classes >= 0) & (self.classes != background) & has_frame
        # AVE lists some videos twice, with different labels: such rows count as one video.
        columns = zip(examples["row"], examples["duplicate_of"])
        self.video_ids = [row if first is None else first for row, first in columns]
        segments = [np.flatnonzero(self._of(is_event, clip)) for clip in range(len(cache))]
        if one_per_video:
            self.places = self._middle_places(segments)
        else:
            self.places = [(clip, int(segment)) for clip, found in enumerate(segments) for segment in found]
        if not self.places:
            raise ValueError(
                f"None of the {len(cache)} clips has a segment with an event: their labels are background or missing. "
                "Pass a split with segment labels."
            )
        is_negative = (self.classes == background) & has_frame & background_negatives
        self.backgrounds = [np.flatnonzero(self._of(is_negative, clip)) for clip in range(len(cache))]
        self.set_epoch(0)

    def _of(self, values: np.ndarray, clip: int) -> np.ndarray:
        """Returns the values of the segments of one clip."""
        return values[self.cache.starts[clip] : self.cache.starts[clip + 1]]

    def _middle_places(self, segments: Sequence[np.ndarray]) -> list[tuple[int, int]]:
        places = {}
        for clip, found in enumerate(segments):
            if len(found):
                places.setdefault(self.video_ids[clip], (clip, int(found[len(found) // 2])))
        return list(places.values())

    def __len__(self) -> int:
        return len(self.places)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which determines the random choices; call it before iterating a loader."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads one pair.

        Returns:
            `dict[str, Any]`: `frames` `(3, H, W)` uint8, `input_values` `(..., S)`, `draws` `(8,)` in [0, 1) for
            `augment_frames` and `augment_sounds`, the scalars `class_ids`, `video_ids` and `rows`; and `negative`, the
            same for a background segment, if there is one.
        """
        clip, segment = self.places[index]
        rng = item_rng(self.seed, self.epoch, index)
        item = self._read(clip, segment, rng)
        if len(self.backgrounds[clip]):
            item["negative"] = self._read(clip, rng.choice(self.backgrounds[clip]), rng)
        return item

    def _read(self, clip: int, segment: int, rng: np.random.Generator) -> dict[str, Any]:
        place = self.cache.starts[clip] + segment
        frames = np.flatnonzero(self.cache.frame_mask[place])
        frame = frames[rng.integers(len(frames)) if self.is_random else len(frames) // 2]
        return {
            "frames": torch.from_numpy(self.cache.frames[place, frame].copy()),
            "input_values": torch.from_numpy(self._sound(clip, segment, rng)),
            "draws": torch.from_numpy(rng.random(NUM_DRAWS, dtype=np.float32)),
            "class_ids": int(self.classes[place]),
            "video_ids": self.video_ids[clip],
            "rows": self.cache.rows[clip],
        }

    def _sound(self, clip: int, segment: int, rng: np.random.Generator) -> np.ndarray:
        sounds = self.cache.clip("sounds", clip)  # (T, ..., S)
        if not (self.is_random and self.max_shift):
            return sounds[segment].copy()
        labels, size = self._of(self.classes, clip), sounds.shape[-1]
        has_next = segment + 1 < len(labels) and labels[segment + 1] == labels[segment]
        has_previous = segment > 0 and labels[segment - 1] == labels[segment]
        lowest, highest = -int(has_previous * self.max_shift * size), int(has_next * self.max_shift * size)
        start = segment * size + rng.integers(lowest, highest + 1)
        return sounds.reshape(-1)[start : start + size].reshape(sounds.shape[1:]).copy()


def _segment_classes(labels: np.ndarray, background: int) -> np.ndarray:
    """Returns the class id of each segment; negative for several events, and where a label is unknown.

    Args:
        labels (`np.ndarray` of shape `(N,)` or `(N, C)`): Class ids, or 0 and 1 for each class; -100 is unknown.
        background (`int`): Class id of background.
    """
    if labels.ndim == 1:
        return np.asarray(labels)
    number = (labels == 1).sum(axis=1)
    classes = np.where(number == 1, labels.argmax(axis=1), np.where(number == 0, background, NO_CLASS))
    return np.where((labels == IGNORED_LABEL).any(axis=1), IGNORED_LABEL, classes)


def collate_pairs(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Batches pairs, followed by their background segments.

    Args:
        items (`Sequence[Mapping[str, Any]]`): Items of `SegmentPairs`.

    Returns:
        `dict[str, Any]`: the stacked values, and the `int` `num_pairs`, the number of pairs, which come first.
    """
    pairs = [{name: value for name, value in item.items() if name != "negative"} for item in items]
    negatives = [item["negative"] for item in items if "negative" in item]
    return {**default_collate(pairs + negatives), "num_pairs": len(pairs)}


def augment_frames(frames: torch.Tensor, draws: torch.Tensor, max_shift_pixels: int, max_gain: float) -> torch.Tensor:
    """Shifts each frame (edges repeat) and changes its brightness, contrast and colour balance.

    Args:
        frames (`torch.Tensor` of shape `(batch_size, 3, height, width)`): Frames in [0, 255], any dtype.
        draws (`torch.Tensor` of shape `(batch_size, 8)`): `draws` of `SegmentPairs`, in [0, 1).
        max_shift_pixels (`int`): Largest shift along either axis.
        max_gain (`float`): Largest relative change of contrast; colours change a quarter, brightness half as much.

    Returns:
        `torch.Tensor` of the same shape, float32 in [0, 255].
    """
    _, _, height, width = frames.shape
    frames, draws = frames.float(), draws[:, :NUM_FRAME_DRAWS].T
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
    """Changes the loudness of each waveform, uniformly in decibels.

    Args:
        sounds (`torch.Tensor` of shape `(batch_size, ..., num_samples)`): Waveforms in any range.
        draws (`torch.Tensor` of shape `(batch_size, 8)`): `draws` of `SegmentPairs`, in [0, 1).
        max_gain_db (`float`): Largest change in decibels.

    Returns:
        `torch.Tensor` of the same shape.
    """
    gains_db = max_gain_db * (2 * draws[:, NUM_FRAME_DRAWS] - 1)  # (B,)
    return sounds * 10 ** (gains_db.view(-1, *[1] * (sounds.dim() - 1)) / 20)


def check_sound_augmentation(processor: "AVEClipProcessor", max_shift: float, max_gain_db: float) -> None:
    """Checks that the audio an encoder takes can be augmented: it may be spectrograms, or windows that overlap.

    Args:
        processor (`AVEClipProcessor`): Prepares the audio.
        max_shift (`float`): As in `SegmentPairs`.
        max_gain_db (`float`): As in `augment_sounds`.

    Raises:
        ValueError: if it cannot.
    """
    window = processor.prepare_windows([np.zeros(processor.window_samples, dtype=np.float32)])  # (1, ...)
    is_waveform = window.size == processor.window_samples
    segment_seconds = processor.video_processor.segment_seconds
    are_adjacent = is_waveform and processor.window_seconds == segment_seconds
    for name, value, is_possible in (
        ("sound_gain_db", max_gain_db, is_waveform),
        ("max_shift", max_shift, are_adjacent),
    ):
        if value and not is_possible:
            raise ValueError(
                f"Got --{name} {value}, but this encoder takes values of shape {window.shape[1:]} for each window of "
                f"{processor.window_seconds:g} s, not the samples of a segment of {segment_seconds:g} s. Leave it out."
            )
