"""Augmentation of decoded clips for training: the same change for every frame and every segment of a clip.

It works on the decoded clip, before the processor scales and normalises, and leaves the time grid alone: no sound or
frame moves to another segment, so labels stay true.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from ..video_io import VideoClip


@dataclass(frozen=True)
class ClipAugmentation:
    """Random changes of a clip's frames and sound; give it to [`decode_videos`], which leaves evaluation splits alone.

    Random numbers come from the generator given to the call, else from torch's default generator, which a `DataLoader`
    seeds for each worker and epoch, and `torch.manual_seed` for the main process.

    Args:
        gain_db (`float`): The sound is made louder or softer by up to so many decibels.
        noise_probability (`float`): How often white noise is added.
        noise_snr_db (`tuple[float, float]`): How far the noise lies below the sound, in decibels, least and most.
        shift_seconds (`float`): The sound of each segment is rotated within it by up to so much, all alike.
        flip_probability (`float`): How often left and right are swapped.
        crop_scale (`tuple[float, float]`): Share of the picture's area that is kept, least and most; the processor
            brings it back to size.
        crop_ratio (`tuple[float, float]`): Change of the picture's aspect ratio, least and most.
        brightness, contrast, saturation (`float`): Each is multiplied by a factor from `1 - x` to `1 + x`.

    Raises:
        ValueError: if a setting is out of its range.
    """

    gain_db: float = 6.0
    noise_probability: float = 0.3
    noise_snr_db: tuple[float, float] = (15.0, 40.0)
    shift_seconds: float = 0.1
    flip_probability: float = 0.5
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self):
        for name in ("noise_probability", "flip_probability", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Got {name}={getattr(self, name)}, wanted a number from 0 to 1.")
        for name in ("gain_db", "shift_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"Got {name}={getattr(self, name)}, wanted 0 or more.")
        for name, least, most in (("crop_scale", 0, 1), ("crop_ratio", 0, math.inf), ("noise_snr_db", -math.inf, 200)):
            low, high = getattr(self, name)
            if not least < low <= high <= most:
                raise ValueError(f"Got {name}={(low, high)}, wanted two rising numbers above {least}, up to {most}.")

    def __call__(self, clip: "VideoClip", generator: torch.Generator | None = None) -> "VideoClip":
        """Change a clip.

        Args:
            clip (`VideoClip`): As `read_video` gives it; stays as it is.
            generator (`torch.Generator`, *optional*): Where random numbers come from.

        Returns:
            `VideoClip`: As many segments and frames; frames may be smaller.
        """
        draw = _Draw(generator)
        waveforms = self._change_sound(clip.waveforms, clip.sampling_rate, draw)
        return replace(clip, frames=self._change_frames(clip.frames, draw), waveforms=waveforms)

    def _change_sound(self, waveforms: np.ndarray, sampling_rate: int, draw: "_Draw") -> np.ndarray:
        gain = 10 ** (draw.between(-self.gain_db, self.gain_db) / 20)
        shift = round(draw.between(-self.shift_seconds, self.shift_seconds) * sampling_rate)
        changed = np.roll(waveforms, shift, axis=-1) * gain
        if draw.chance(self.noise_probability):
            level = math.sqrt(float(np.mean(np.square(changed)))) * 10 ** (-draw.between(*self.noise_snr_db) / 20)
            changed = changed + level * draw.noise(changed.shape)
        return np.clip(changed, -1.0, 1.0).astype(np.float32)

    def _change_frames(self, frames: list[np.ndarray], draw: "_Draw") -> list[np.ndarray]:
        shape = next((segment.shape for segment in frames if len(segment)), None)
        if shape is None:
            return frames
        top, left, height, width = _draw_crop(shape[1], shape[2], self.crop_scale, self.crop_ratio, draw)
        step = -1 if draw.chance(self.flip_probability) else 1
        factors = [draw.between(1 - x, 1 + x) for x in (self.brightness, self.contrast, self.saturation)]
        return [
            _change_colour(segment[:, top : top + height, left : left + width][:, :, ::step], *factors)
            for segment in frames
        ]


class _Draw:
    """Random numbers from one generator, `None` for the process's own."""

    def __init__(self, generator: torch.Generator | None):
        self.generator = generator

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=self.generator).item()

    def chance(self, probability: float) -> bool:
        return torch.rand((), generator=self.generator).item() < probability

    def noise(self, shape: tuple[int, ...]) -> np.ndarray:
        return torch.randn(shape, generator=self.generator).numpy()


def _draw_crop(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], draw: _Draw
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop; one that would not fit is cut to the picture."""
    area = height * width * draw.between(*scale)
    aspect = width / height * math.exp(draw.between(math.log(ratio[0]), math.log(ratio[1])))
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    top = round(draw.between(0, height - crop_height))
    left = round(draw.between(0, width - crop_width))
    return top, left, crop_height, crop_width


def _change_colour(frames: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Change uint8 frames `(num_frames, height, width, 3)`."""
    if len(frames) == 0 or brightness == contrast == saturation == 1:
        return np.ascontiguousarray(frames)
    from torchvision.transforms.v2 import functional

    pictures = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # (F, 3, H, W)
    pictures = functional.adjust_brightness(pictures, brightness)
    pictures = functional.adjust_contrast(pictures, contrast)
    pictures = functional.adjust_saturation(pictures, saturation)
    return np.ascontiguousarray(pictures.permute(0, 2, 3, 1).numpy())
