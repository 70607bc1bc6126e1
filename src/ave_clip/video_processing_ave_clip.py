"""Frames to `pixel_values`: resized, cropped and normalised as CLIP's images, sorted into the segments of a video."""

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import BaseVideoProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_utils import infer_channel_dimension_format, is_valid_video_frame

from .segments import frame_times, num_segments_for, select_frames
from .video_io import iter_segments


class AVEClipVideoProcessorKwargs(VideosKwargs, total=False):
    r"""
    num_frames_per_segment (`int`, *optional*):
        Frames taken from each segment, evenly over it; fewer where the video has fewer.
    segment_seconds (`float`, *optional*):
        Length of a segment.
    frame_rate (`float`, *optional*):
        Frames per second of videos given as arrays. Without it (and without `video_metadata`) arrays count as already
        sampled: `num_frames_per_segment` frames a segment.
    """

    num_frames_per_segment: int | None
    segment_seconds: float | int | None
    frame_rate: float | int | None


class AVEClipVideoProcessor(BaseVideoProcessor):
    """Frames of one or many videos to fixed-shape `pixel_values` and the `frame_mask` that says which are real."""

    resample = PILImageResampling.BICUBIC
    image_mean = OPENAI_CLIP_MEAN
    image_std = OPENAI_CLIP_STD
    size = {"shortest_edge": 224}
    default_to_square = False
    crop_size = {"height": 224, "width": 224}
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    num_frames_per_segment = 16
    segment_seconds = 1.0
    frame_rate = None
    valid_kwargs = AVEClipVideoProcessorKwargs
    model_input_names = ["pixel_values", "frame_mask"]

    def preprocess(self, videos: Any, **kwargs: Unpack[AVEClipVideoProcessorKwargs]) -> BatchFeature:
        """Videos to the pixels of their segments.

        Args:
            videos:
                A path, bytes, file object or URL, or frames as an array `(num_frames, height, width, 3)` (or channels
                first) or a list of pictures; or a list of these.
            kwargs:
                Anything of [`AVEClipVideoProcessorKwargs`]; the processor's own values by default.

        Returns:
            [`BatchFeature`] with `pixel_values` `(batch_size, num_segments, num_frames, 3, height, width)` and
            `frame_mask` `(batch_size, num_segments, num_frames)`, `False` where a frame lacks.

        Raises:
            ValueError: A file that cannot be read, a video without frames, or sizes that do not fit together.
        """
        metadata = kwargs.pop("video_metadata", None)
        rate = kwargs.pop("frame_rate", self.frame_rate)
        count, seconds = (
            getattr(self, name) if kwargs.get(name) is None else kwargs[name]
            for name in ("num_frames_per_segment", "segment_seconds")
        )
        check_grid(count, seconds)
        items = as_video_list(videos)
        rates = frame_rates(items, metadata, rate)
        clips = [
            segment_array(as_frames(item), item_rate, count, seconds)
            if is_decoded(item)
            else self._read_frames(item, count, seconds)
            for item, item_rate in zip(items, rates)
        ]
        return self.preprocess_segments(clips, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """What is saved; the place of an export's code only where this class came from there or is being exported."""
        content = super().to_dict()
        if self._auto_class is None:
            content.pop("auto_map", None)
        return content

    def _read_frames(self, source: Any, count: int, seconds: float) -> list[np.ndarray]:
        segments = iter_segments(
            source, num_frames_per_segment=count, segment_seconds=seconds, read_audio=False, read_video=True
        )
        return [segment.frames for segment in segments]

    def preprocess_segments(
        self, clips: Sequence[Sequence[np.ndarray]], **kwargs: Unpack[AVEClipVideoProcessorKwargs]
    ) -> BatchFeature:
        """Decoded frames, already sorted into segments, to pixels.

        Args:
            clips (`list[list[np.ndarray]]`):
                For each video, for each segment, uint8 frames `(num_frames, height, width, 3)`; none is fine.

        Returns:
            As `preprocess`.
        """
        options = self._options(kwargs)
        count = options.pop("num_frames_per_segment")
        tensor_type = options.pop("return_tensors")
        pictures = [[self._pictures(frames, **options) if len(frames) else None for frames in clip] for clip in clips]
        pixel_values, frame_mask = _into_segments(pictures, count, self._blank_shape(options))
        return BatchFeature({"pixel_values": pixel_values, "frame_mask": frame_mask}, tensor_type=tensor_type)

    def _pictures(
        self, frames: np.ndarray, do_convert_rgb: bool | None, device: str | torch.device | None, **options: Any
    ) -> torch.Tensor:
        """One segment's frames, processed. In memory the colours stay last: torch resizes these four times as fast."""
        video = torch.from_numpy(np.require(frames, requirements="CW")).permute(0, 3, 1, 2)
        video = self.convert_to_rgb(video) if do_convert_rgb else video
        return self._preprocess(videos=[video.to(device)], **options)["pixel_values_videos"][0]

    def normalize_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Do last, on any device, what `do_rescale=False, do_normalize=False` left out.

        Args:
            pixels (`torch.Tensor` of shape `(..., 3, height, width)`): Values from 0 to 255, uint8 or float.

        Returns:
            `torch.Tensor` of the same shape, float32: what `preprocess` gives with the processor's own settings.
        """
        return self.rescale_and_normalize(
            pixels, self.do_rescale, self.rescale_factor, self.do_normalize, self.image_mean, self.image_std
        )

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(given) - set(self.valid_kwargs.__annotations__))
        if unknown:
            raise ValueError(f"Unknown video options {unknown}. Known: {sorted(self.valid_kwargs.__annotations__)}.")
        options = {name: getattr(self, name, None) for name in self.valid_kwargs.__annotations__}
        options.update({name: value for name, value in given.items() if value is not None or name.startswith("do_")})
        # Sampling is over by now: frames come sorted into segments.
        for name in ("do_sample_frames", "video_metadata", "fps", "num_frames", "segment_seconds", "frame_rate"):
            options.pop(name)
        tensor_type = options.pop("return_tensors")
        options = {**self._standardize_kwargs(**options), "input_data_format": "channels_last"}
        self._validate_preprocess_kwargs(**options)
        for name in ("data_format", "input_data_format", "return_metadata"):
            options.pop(name, None)
        return {"return_tensors": tensor_type, "device": None, "do_convert_rgb": None, **options}

    @staticmethod
    def _blank_shape(options: dict[str, Any]) -> tuple[int, int, int]:
        size = options["crop_size"] if options["do_center_crop"] else options["size"]
        height = size.height or size.shortest_edge
        return 3, height, size.width or height


def as_video_list(videos: Any) -> list[Any]:
    """One video or several, as a list. A list of pictures is one video."""
    if isinstance(videos, (list, tuple)):
        if not len(videos):
            raise ValueError("Got an empty list of videos. Pass at least one.")
        return [videos] if is_valid_video_frame(videos[0]) else list(videos)
    if isinstance(videos, (np.ndarray, torch.Tensor)) and videos.ndim == 5:
        return list(videos)
    return [videos]


def is_file(video: Any) -> bool:
    """Whether a video is given as a file: a path, a URL, its bytes or a file object."""
    return isinstance(video, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(video, "read")


def is_decoded(video: Any) -> bool:
    """Whether a video is given as pictures rather than as a file."""
    if is_file(video):
        return False
    if isinstance(video, (np.ndarray, torch.Tensor, list, tuple)):
        return True
    raise ValueError(
        f"Got a {type(video).__name__} as video. Pass a path, bytes, a file object, a URL, or frames as an array of "
        "shape (frames, height, width, 3)."
    )


def as_frames(video: Any) -> np.ndarray:
    """Pictures in any usual form as one uint8 array `(num_frames, height, width, 3)`."""
    if isinstance(video, (list, tuple)):
        video = np.stack([np.asarray(picture) for picture in video])
    frames = video.cpu().numpy() if isinstance(video, torch.Tensor) else np.asarray(video)
    if frames.ndim != 4 or 0 in frames.shape:
        raise ValueError(f"Frames must have the shape (frames, height, width, 3), got {frames.shape}.")
    if infer_channel_dimension_format(frames[0]).value == "channels_first":
        frames = np.moveaxis(frames, 1, -1)
    if frames.dtype != np.uint8:
        raise ValueError(f"Frames must be uint8 with values from 0 to 255, got {frames.dtype}.")
    return frames


def frame_rates(videos: Sequence[Any], metadata: Any, frame_rate: float | None) -> list[float | None]:
    """Frames per second of each decoded video: from its metadata, else the common `frame_rate`."""
    entries = list(metadata) if isinstance(metadata, (list, tuple)) else [metadata] * len(videos)
    if len(entries) != len(videos):
        raise ValueError(f"Got {len(entries)} `video_metadata` for {len(videos)} videos.")
    rates = []
    for entry in entries:
        fps = entry.get("fps") if isinstance(entry, dict) else getattr(entry, "fps", None)
        rate = fps if fps is not None else frame_rate
        if rate is not None and not (isinstance(rate, (int, float)) and 0 < rate <= 1000):
            raise ValueError(f"`frame_rate` must be in (0, 1000] frames per second, got {rate!r}.")
        rates.append(rate)
    return rates


def check_grid(num_frames_per_segment: Any, segment_seconds: Any) -> None:
    """Raise `ValueError` unless segments have a length and take at least one frame."""
    if isinstance(num_frames_per_segment, bool) or not isinstance(num_frames_per_segment, int):
        raise ValueError(f"`num_frames_per_segment` is a whole number, got {num_frames_per_segment!r}.")
    if num_frames_per_segment < 1:
        raise ValueError(f"`num_frames_per_segment` must be at least 1, got {num_frames_per_segment}.")
    is_number = isinstance(segment_seconds, (int, float)) and not isinstance(segment_seconds, bool)
    if not (is_number and math.isfinite(segment_seconds) and segment_seconds > 0):
        raise ValueError(f"`segment_seconds` must be a number above 0, got {segment_seconds!r}.")


def segment_array(
    frames: np.ndarray, frame_rate: float | None, num_frames_per_segment: int, segment_seconds: float
) -> list[np.ndarray]:
    """Cut decoded frames into segments.

    Args:
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`): All frames in order.
        frame_rate (`float`, *optional*): Frames per second; without it they are taken as already sampled.
        num_frames_per_segment (`int`): Frames wanted per segment.
        segment_seconds (`float`): Length of a segment.

    Returns:
        `list[np.ndarray]`: One array `(frames of the segment, height, width, 3)` a segment.
    """
    check_grid(num_frames_per_segment, segment_seconds)
    if frame_rate is None:
        starts = range(0, len(frames), num_frames_per_segment)
        return [frames[start : start + num_frames_per_segment] for start in starts]
    end = len(frames) / frame_rate
    times = np.arange(len(frames)) / frame_rate
    segments = []
    for index in range(num_segments_for(end, segment_seconds)):
        wanted = frame_times(index, num_frames_per_segment, segment_seconds)
        segments.append(frames[select_frames(times, wanted, end)])
    return segments


def _into_segments(
    clips: Sequence[Sequence[torch.Tensor | None]], count: int, blank: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the pictures of each segment of each clip, `None` where there are none, into one padded batch."""
    pictures = [segment for clip in clips for segment in clip if segment is not None]
    shapes = {tuple(segment.shape[1:]) for segment in pictures} or {blank}
    if len(shapes) > 1:
        raise ValueError(
            f"The videos have frames of different sizes {sorted(shapes)} after processing, which cannot be batched. "
            "Leave do_resize and do_center_crop on, or process them one by one."
        )
    longest = max(len(clip) for clip in clips)
    like = pictures[0] if pictures else torch.zeros(0)
    pixel_values = like.new_zeros(len(clips), longest, count, *shapes.pop())  # (B, T, K, 3, height, width)
    frame_mask = torch.zeros(len(clips), longest, count, dtype=torch.bool, device=like.device)
    for row, clip in enumerate(clips):
        for index, segment in enumerate(clip):
            if segment is None:
                continue
            if len(segment) > count:
                raise ValueError(f"A segment has {len(segment)} frames, but num_frames_per_segment is {count}.")
            frame_mask[row, index, : len(segment)] = True
            pixel_values[row, index, : len(segment)] = segment
    return pixel_values, frame_mask


__all__ = ["AVEClipVideoProcessor"]
