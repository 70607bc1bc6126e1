"""Video processor: resizes, crops and normalizes frames as CLIP does, and sorts them into the segments of a video."""

import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BaseVideoProcessor, BatchFeature
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, PILImageResampling
from transformers.processing_utils import Unpack, VideosKwargs
from transformers.video_utils import infer_channel_dimension_format, is_valid_video_frame

from .builtin_checkpoints import LoadsBuiltinNames
from .configuration_audioclip import MAX_IMAGE_SIZE
from .segments import frame_times
from .video_clip import MAX_FRAMES_PER_SEGMENT, VideoClip
from .video_io import clip_from_arrays, iter_segments
from .video_source import is_video_dictionary

# Outside these limits a saved processor is damaged or hostile. They are checked before any memory is allocated.
MIN_SEGMENT_SECONDS, MAX_SEGMENT_SECONDS = 0.01, 3600.0
MAX_VALUES_PER_SEGMENT = 2**28  # 1 GiB in float32


class AVEClipVideoProcessorKwargs(VideosKwargs, total=False):
    r"""
    num_frames_per_segment (`int`, *optional*):
        Frames taken from each segment at equal distances; fewer where the video has fewer.
    segment_seconds (`float`, *optional*):
        Length of a segment.
    frame_rate (`float`, *optional*):
        Frames per second of videos given as arrays. Without it (and without `video_metadata`) arrays are taken as
        already sampled, with `num_frames_per_segment` frames per segment.
    """

    num_frames_per_segment: int | None
    segment_seconds: float | int | None
    frame_rate: float | int | None


class AVEClipVideoProcessor(LoadsBuiltinNames, BaseVideoProcessor):
    """Converts frames of videos to `pixel_values` of a fixed shape and a `frame_mask` that marks the real frames."""

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

    def __init__(self, **kwargs: Unpack[AVEClipVideoProcessorKwargs]) -> None:
        super().__init__(**kwargs)
        check_grid(self.num_frames_per_segment, self.segment_seconds)
        self._options({})  # checks the sizes

    def preprocess(self, videos: Any, **kwargs: Unpack[AVEClipVideoProcessorKwargs]) -> BatchFeature:
        """Converts videos to the pixels of their segments.

        Args:
            videos:
                A path, bytes, file object or URL, or frames as an array `(num_frames, height, width, 3)` (or channels
                first) or a list of images; or a list of these.
            kwargs:
                Options of [`AVEClipVideoProcessorKwargs`]; by default the processor's own values.

        Returns:
            [`BatchFeature`] with `pixel_values` `(batch_size, num_segments, num_frames, 3, height, width)` and
            `frame_mask` `(batch_size, num_segments, num_frames)`, `False` where a frame is missing.

        Raises:
            ValueError: If a file cannot be read, a video has no frames, or frames of different sizes are batched.
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
        grid: dict[str, Any] = {"num_frames_per_segment": count, "segment_seconds": seconds}
        transform = self.frame_transform(**kwargs)
        clips = [
            cut_frames(as_frames(item), item_rate, **grid, frame_transform=transform).frames
            if is_decoded(item)
            else [part.frames for part in iter_segments(item, **grid, read_audio=False, frame_transform=transform)]
            for item, item_rate in zip(items, rates)
        ]
        return self.preprocess_segments(clips, is_resized=True, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Returns what is saved, with the location of custom code only in a class that has custom code itself."""
        content = super().to_dict()
        if self._auto_class is None:
            content.pop("auto_map", None)
        return content

    def frame_transform(self, **kwargs: Unpack[AVEClipVideoProcessorKwargs]) -> Callable[[np.ndarray], np.ndarray]:
        """Returns a function that resizes and crops one frame, for readers, so that no frame is kept at native size.

        Args:
            kwargs: As in `preprocess`.

        Returns:
            `Callable`: Converts uint8 `(height, width, 3)` to the same type at the processor's size. Pass its results
            to `preprocess_segments` with `is_resized=True`.
        """
        options = self._options({**kwargs, "do_rescale": False, "do_normalize": False})
        del options["num_frames_per_segment"], options["return_tensors"]

        def transform(frame: np.ndarray) -> np.ndarray:
            (pixels,) = self._process(frame[None], **options)
            return pixels.permute(1, 2, 0).to(torch.uint8).cpu().numpy()

        transform.is_thread_safe = True  # pyrefly: ignore[missing-attribute]
        return transform

    def preprocess_segments(
        self,
        clips: Sequence[Sequence[np.ndarray]],
        is_resized: bool = False,
        **kwargs: Unpack[AVEClipVideoProcessorKwargs],
    ) -> BatchFeature:
        """Converts decoded frames, already sorted into segments, to pixels.

        Args:
            clips (`list[list[np.ndarray]]`):
                For each video and segment, uint8 frames `(num_frames, height, width, 3)`; a segment may be empty.
            is_resized (`bool`):
                Whether `frame_transform` was applied to the frames.

        Returns:
            As in `preprocess`.
        """
        options = self._options(kwargs)
        count = options.pop("num_frames_per_segment")
        tensor_type = options.pop("return_tensors")
        blank = self._blank_shape(options)
        if is_resized:
            options.update(do_resize=False, do_center_crop=False)
        processed = [[self._process(frames, **options) if len(frames) else None for frames in clip] for clip in clips]
        pixel_values, frame_mask = _into_segments(processed, count, blank)
        return BatchFeature({"pixel_values": pixel_values, "frame_mask": frame_mask}, tensor_type=tensor_type)

    def _process(
        self, frames: np.ndarray, do_convert_rgb: bool | None, device: str | torch.device | None, **options: Any
    ) -> torch.Tensor:
        """Processes the frames of one segment."""
        # Colors stay last in memory: torch resizes such frames four times as fast.
        video = torch.from_numpy(np.require(frames, requirements=["C", "W"])).permute(0, 3, 1, 2)
        video = self.convert_to_rgb(video) if do_convert_rgb else video
        # transformers declares that any kind of video comes out; of a tensor it makes a tensor.
        video = video.to(device)  # pyrefly: ignore[missing-attribute]
        return self._preprocess(videos=[video], **options)["pixel_values_videos"][0]

    def normalize_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Rescales and normalizes, on any device, pixels made with `do_rescale=False, do_normalize=False`.

        Args:
            pixels (`torch.Tensor` of shape `(..., 3, height, width)`): Values from 0 to 255, uint8 or float.

        Returns:
            `torch.Tensor` of the same shape, float32: the result of `preprocess` with the processor's own settings.
        """
        return self.rescale_and_normalize(
            pixels, self.do_rescale, self.rescale_factor, self.do_normalize, self.image_mean, self.image_std
        )

    def _options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        unknown = sorted(set(given) - set(self.valid_kwargs.__annotations__))
        if unknown:
            raise ValueError(f"Unknown video options {unknown}. Known: {sorted(self.valid_kwargs.__annotations__)}.")
        options: dict[str, Any] = {name: getattr(self, name, None) for name in self.valid_kwargs.__annotations__}
        options.update({name: value for name, value in given.items() if value is not None or name.startswith("do_")})
        # Frames are sampled before; transformers must not do it again.
        for name in ("do_sample_frames", "video_metadata", "fps", "num_frames", "segment_seconds", "frame_rate"):
            options.pop(name)
        tensor_type = options.pop("return_tensors")
        options = {**self._standardize_kwargs(**options), "input_data_format": "channels_last"}
        self._validate_preprocess_kwargs(**options)
        for name in ("data_format", "input_data_format", "return_metadata"):
            options.pop(name, None)
        for name in ("size", "crop_size"):
            for side in ("height", "width", "shortest_edge", "longest_edge"):
                pixels = getattr(options[name], side, None)
                if pixels is not None and not 1 <= pixels <= MAX_IMAGE_SIZE:
                    raise ValueError(f"`{name}` must be 1 to {MAX_IMAGE_SIZE} pixels per side, got {side}={pixels}.")
        _, height, width = self._blank_shape(options)
        if options["num_frames_per_segment"] * 3 * height * width > MAX_VALUES_PER_SEGMENT:
            raise ValueError(
                f"{options['num_frames_per_segment']} frames of {height} x {width} pixels per segment are more than "
                f"{MAX_VALUES_PER_SEGMENT} values. Lower `num_frames_per_segment` or `size`."
            )
        return {"return_tensors": tensor_type, "device": None, "do_convert_rgb": None, **options}

    @staticmethod
    def _blank_shape(options: dict[str, Any]) -> tuple[int, int, int]:
        size = options["crop_size"] if options["do_center_crop"] else options["size"]
        height = size.height or size.shortest_edge or size.longest_edge or 1
        return 3, height, size.width or height


def as_video_list(videos: Any) -> list[Any]:
    """Returns one or several videos as a list. A list of images is one video."""
    if isinstance(videos, (list, tuple)):
        if not len(videos):
            raise ValueError("Got an empty list of videos. Pass at least one.")
        return [videos] if is_valid_video_frame(videos[0]) else list(videos)
    if isinstance(videos, (np.ndarray, torch.Tensor)) and videos.ndim == 5:
        return list(videos)
    return [videos]


def is_file(video: Any) -> bool:
    """Whether a video is given as a file: a path, a URL, bytes, a dictionary of these, or a file object."""
    return (
        is_video_dictionary(video)
        or isinstance(video, (str, bytes, bytearray, memoryview, os.PathLike))
        or hasattr(video, "read")
    )


def is_decoded(video: Any) -> bool:
    """Whether a video is given as frames rather than as a file."""
    if is_file(video):
        return False
    if isinstance(video, (np.ndarray, torch.Tensor, list, tuple)):
        return True
    raise ValueError(
        f"Got a {type(video).__name__} as video. Pass a path, bytes, a file object, a URL, or frames as an array of "
        "shape (frames, height, width, 3)."
    )


def as_frames(video: Any) -> np.ndarray:
    """Returns frames in any usual form as one uint8 array `(num_frames, height, width, 3)`."""
    if isinstance(video, (list, tuple)):
        video = np.stack([np.asarray(image) for image in video])
    frames = video.cpu().numpy() if isinstance(video, torch.Tensor) else np.asarray(video)
    if frames.ndim != 4 or 0 in frames.shape:
        raise ValueError(f"Frames must have the shape (frames, height, width, 3), got {frames.shape}.")
    if not {1, 3} & {frames.shape[1], frames.shape[-1]} and 4 in (frames.shape[1], frames.shape[-1]):
        # RGBA: the alpha channel is dropped, as FFmpeg does for files.
        frames = frames[..., :3] if frames.shape[-1] == 4 else frames[:, :3]
    if infer_channel_dimension_format(frames[0]).value == "channels_first":
        frames = np.moveaxis(frames, 1, -1)
    if frames.shape[-1] == 1:
        frames = np.repeat(frames, 3, axis=-1)
    if frames.dtype != np.uint8:
        raise ValueError(f"Frames must be uint8 with values from 0 to 255, got {frames.dtype}.")
    return frames


def frame_rates(videos: Sequence[Any], metadata: Any, frame_rate: float | None) -> list[float | None]:
    """Returns the frames per second of each decoded video: from its metadata, else the common `frame_rate`."""
    entries = list(metadata) if isinstance(metadata, (list, tuple)) else [metadata] * len(videos)
    if len(entries) != len(videos):
        raise ValueError(f"Got {len(entries)} `video_metadata` for {len(videos)} videos.")
    rates: list[float | None] = []
    for entry in entries:
        fps = entry.get("fps") if isinstance(entry, dict) else getattr(entry, "fps", None)
        rate = fps if fps is not None else frame_rate
        # Not only float: PyAV gives `Fraction`, and numpy has number types of its own.
        if rate is not None and not (isinstance(rate, numbers.Real) and 0 < float(rate) <= 1000):
            raise ValueError(f"`frame_rate` must be in (0, 1000] frames per second, got {rate!r}.")
        rates.append(None if rate is None else float(rate))
    return rates


def check_grid(num_frames_per_segment: Any, segment_seconds: Any) -> None:
    """Raises `ValueError` unless the length of a segment and its number of frames are within their limits."""
    if isinstance(num_frames_per_segment, bool) or not isinstance(num_frames_per_segment, int):
        raise ValueError(f"`num_frames_per_segment` must be a whole number, got {num_frames_per_segment!r}.")
    if not 1 <= num_frames_per_segment <= MAX_FRAMES_PER_SEGMENT:
        raise ValueError(
            f"`num_frames_per_segment` must be 1 to {MAX_FRAMES_PER_SEGMENT}, got {num_frames_per_segment}."
        )
    is_number = isinstance(segment_seconds, (int, float)) and not isinstance(segment_seconds, bool)
    if not (is_number and math.isfinite(segment_seconds) and segment_seconds > 0):
        raise ValueError(f"`segment_seconds` must be a number above 0, got {segment_seconds!r}.")
    if not MIN_SEGMENT_SECONDS <= segment_seconds <= MAX_SEGMENT_SECONDS:
        raise ValueError(
            f"`segment_seconds` must be {MIN_SEGMENT_SECONDS} to {MAX_SEGMENT_SECONDS:.0f}, got {segment_seconds}."
        )


def cut_frames(
    frames: np.ndarray,
    frame_rate: float | None,
    num_frames_per_segment: int,
    segment_seconds: float,
    **options: Any,
) -> VideoClip:
    """Cuts decoded frames into segments by the rules for files.

    Args:
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`): All frames in order.
        frame_rate (`float`, *optional*): Frames per second; by default the frames are already sampled.
        num_frames_per_segment (`int`): Frames wanted per segment.
        segment_seconds (`float`): Length of a segment.
        options: Further arguments of `clip_from_arrays`.

    Returns:
        `VideoClip`: The segments, as `read_video` returns them.
    """
    check_grid(num_frames_per_segment, segment_seconds)
    grid = {"num_frames_per_segment": num_frames_per_segment, "segment_seconds": segment_seconds}
    if frame_rate is not None:
        return clip_from_arrays(frames, frame_rate=float(frame_rate), **grid, **options)
    num_segments = math.ceil(len(frames) / num_frames_per_segment)
    times = [frame_times(index, num_frames_per_segment, segment_seconds) for index in range(num_segments)]
    times = np.concatenate(times)[: len(frames)]
    return clip_from_arrays(frames, display_times=times, end_seconds=num_segments * segment_seconds, **grid, **options)


def _into_segments(
    clips: Sequence[Sequence[torch.Tensor | None]], count: int, blank: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Combines the frames of all segments (`None` where there are none) into one padded batch and its mask."""
    filled = [segment for clip in clips for segment in clip if segment is not None]
    shapes = {tuple(segment.shape[1:]) for segment in filled} or {blank}
    if len(shapes) > 1:
        raise ValueError(
            f"The videos have frames of different sizes {sorted(shapes)} after processing, which cannot be batched. "
            "Leave do_resize and do_center_crop on, or process them one by one."
        )
    longest = max(len(clip) for clip in clips)
    like = filled[0] if filled else torch.zeros(0)
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
