"""Reads videos of any length in windows of segments, in memory that is bounded by the window.

Frames are uint8, resized and cropped but not normalized, which takes a quarter of the memory of float32.
`AVEClipVideoProcessor.normalize_pixels` normalizes them on the model's device.

Shapes: T segments of a window, K frames per segment, S samples per segment.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

import torch

from .collation import fit_length

if TYPE_CHECKING:
    from ..core.processing_ave_clip import AVEClipProcessor
    from ..core.video_clip import Segment


def iter_windows(video: str | BinaryIO, processor: "AVEClipProcessor", size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Yields a whole video in windows of `size` segments, in one pass; the last window has the rest.

    Args:
        video (`str` or file object): The video, as `open_video` returns that of a row.
        processor ([`AVEClipProcessor`]): Defines the time grid and prepares frames and audio.
        size (`int`): Number of segments of a window.

    Yields:
        `dict[str, torch.Tensor]`: `pixel_values` `(T, K, 3, height, width)` uint8, `frame_mask` `(T, K)` and
        `input_values` `(T, S)`.

    Raises:
        VideoReadError: if the video cannot be read.
    """
    segments = _segments(video, processor)
    while block := list(itertools.islice(segments, size)):
        yield _prepare(block, processor)


def read_window(
    video: str | BinaryIO, processor: "AVEClipProcessor", first: int, length: int
) -> dict[str, torch.Tensor]:
    """Reads one window of a video; the reader seeks to it instead of decoding what comes before.

    Args:
        video (`str` or file object), processor ([`AVEClipProcessor`]): As for `iter_windows`.
        first (`int`): First segment of the window.
        length (`int`): Number of segments; those after the end of the file have no frames and are silent.

    Returns:
        `dict[str, torch.Tensor]`: As `iter_windows` yields it.

    Raises:
        VideoReadError: if the video cannot be read, or ends before the window.
    """
    # Encoders may take more audio than a segment. It is also read before and after the window.
    samples = processor.feature_extractor.sampling_rate * processor.video_processor.segment_seconds
    around = math.ceil((processor.window_samples - samples) / 2 / samples) if processor.audio_window_seconds else 0
    start = max(0, first - around)
    segments = list(_segments(video, processor, start, first + length + around))
    return {name: fit_length(values, length) for name, values in _prepare(segments, processor, first - start).items()}


def _segments(
    video: str | BinaryIO, processor: "AVEClipProcessor", start: int = 0, end: int | None = None
) -> "Iterator[Segment]":
    from ..core.streaming import with_audio_windows
    from ..core.video_io import iter_segments

    video_processor = processor.video_processor
    seconds = video_processor.segment_seconds
    segments = iter_segments(
        video,
        sampling_rate=processor.feature_extractor.sampling_rate,
        num_frames_per_segment=video_processor.num_frames_per_segment,
        segment_seconds=seconds,
        start_seconds=start * seconds,
        end_seconds=None if end is None else end * seconds,
        frame_transform=video_processor.frame_transform(),  # shrinks each frame as soon as it is decoded
    )
    if not processor.audio_window_seconds:
        return segments
    return with_audio_windows(segments, processor.window_samples)


def _prepare(segments: "Sequence[Segment]", processor: "AVEClipProcessor", first: int = 0) -> dict[str, torch.Tensor]:
    segments = segments[first:]
    visual = processor.video_processor.preprocess_segments(
        [[segment.frames for segment in segments]], is_resized=True, do_rescale=False, do_normalize=False
    )
    return {
        "pixel_values": visual["pixel_values"][0].to(torch.uint8),
        "frame_mask": visual["frame_mask"][0],
        "input_values": torch.from_numpy(processor.prepare_windows([segment.waveform for segment in segments])),
    }
