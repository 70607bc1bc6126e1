"""Augmentation of decoded clips for training, the same for all frames and segments of a clip.

It changes the decoded clip before the processor resizes and normalizes it. Frames and audio stay in their segments, so
labels remain valid.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from ..core.video_io import VideoClip


@dataclass(frozen=True)
class ClipAugmentation:
    """Random changes of a clip's frames and audio; pass it to [`decode_videos`], which applies it to "train" only.

    Random numbers come from the generator passed to the call, else from torch's default generator, which a
    `DataLoader` seeds for each worker and epoch, and `torch.manual_seed` for the main process.

    Args:
        gain_db (`float`): Maximum change of the audio level in decibels, up or down.
        noise_probability (`float`): Probability of adding white noise.
        noise_snr_db (`tuple[float, float]`): Minimum and maximum signal-to-noise ratio in decibels.
        shift_seconds (`float`): Maximum circular shift of the audio within each segment, the same for all of them.
        flip_probability (`float`): Probability of a horizontal flip.
        crop_scale (`tuple[float, float]`): Minimum and maximum fraction of the frame's area that is kept; the
            processor resizes the result.
        crop_ratio (`tuple[float, float]`): Minimum and maximum factor of the aspect ratio.
        brightness, contrast, saturation (`float`): Each is multiplied by a factor from `1 - x` to `1 + x`.

    Raises:
        ValueError: if a setting is out of range.
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
                raise ValueError(
                    f"Got {name}={(low, high)}, wanted two increasing numbers above {least}, up to {most}."
                )

    def __call__(self, clip: "VideoClip", generator: torch.Generator | None = None) -> "VideoClip":
        """Returns a changed copy of a clip.

        Args:
            clip (`VideoClip`): As returned by `read_video`; it is not modified.
            generator (`torch.Generator`, *optional*): Source of random numbers.

        Returns:
            `VideoClip`: With the same number of segments and frames; frames may be smaller.
        """
        draw = _Draw(generator)
        waveforms = self._change_audio(clip.waveforms, clip.sampling_rate, draw)
        return replace(clip, frames=self._change_frames(clip.frames, draw), waveforms=waveforms)

    def _change_audio(self, waveforms: np.ndarray, sampling_rate: int, draw: "_Draw") -> np.ndarray:
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
    """Random numbers from one generator; `None` means torch's default generator."""

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
    """Returns top, left, height and width of a crop, which is limited to the frame."""
    area = height * width * draw.between(*scale)
    # Uniform in the logarithm, so that a ratio and its inverse are equally likely.
    aspect = width / height * math.exp(draw.between(math.log(ratio[0]), math.log(ratio[1])))
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    top = round(draw.between(0, height - crop_height))
    left = round(draw.between(0, width - crop_width))
    return top, left, crop_height, crop_width


def _change_colour(frames: np.ndarray, brightness: float, contrast: float, saturation: float) -> np.ndarray:
    """Returns uint8 frames `(num_frames, height, width, 3)` with changed colours."""
    if len(frames) == 0 or brightness == contrast == saturation == 1:
        return np.ascontiguousarray(frames)
    from torchvision.transforms.v2 import functional

    images = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)  # (F, 3, H, W)
    images = functional.adjust_brightness(images, brightness)
    images = functional.adjust_contrast(images, contrast)
    images = functional.adjust_saturation(images, saturation)
    return np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
