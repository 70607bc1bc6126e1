"""Options for reading a video, `ReadOptions`, and the results: `Segment`, `VideoClip` and `VideoInfo`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .decode_threads import AUTO, check_decode_threads
from .recording import MAX_DURATION_SECONDS, MAX_SIDE_PIXELS
from .segments import check_positive, next_frame_time, samples_per_segment
from .video_source import DownloadLimits

MAX_FRAMES_PER_SEGMENT = 1000
MAX_SAMPLES_PER_SEGMENT = 2**28


@dataclass
class VideoInfo:
    """Properties that a file declares, and the geometry of its first frame.

    Attributes:
        name: Path, URL or file name.
        duration_seconds: Declared length of video or audio, the longer one; 0 if the file does not declare it.
        width: Width of a displayed frame in pixels, after rotation; 0 without video.
        height: Height of a displayed frame in pixels, after rotation; 0 without video.
        frame_rate: Average frames per second; 0 without video.
        num_frames: Number of frames if the file declares it.
        has_video: Whether there is a decodable video track.
        has_audio: Whether there is a decodable audio track.
        audio_sampling_rate: Samples per second as stored.
        rotation: Clockwise rotation of the stored frames for display, in degrees: 0, 90, 180 or 270.
    """

    name: str
    duration_seconds: float
    width: int
    height: int
    frame_rate: float
    num_frames: int | None
    has_video: bool
    has_audio: bool
    audio_sampling_rate: int | None
    rotation: int


@dataclass
class Segment:
    """One segment of a video.

    Attributes:
        index: Position on the grid, 0 at `start_seconds`.
        frames: uint8 `(num_frames, height, width, 3)`, RGB, upright; fewer or none where the video has fewer.
        frame_times: `(num_frames,)` float64, when each frame appeared, in seconds from the video's time zero.
        waveform: float32 `(samples_per_segment,)`, mono in [-1, 1], zero where there is no audio.
    """

    index: int
    frames: np.ndarray
    frame_times: np.ndarray
    waveform: np.ndarray


@dataclass
class VideoClip:
    """A whole video, decoded and cut into T segments.

    Attributes:
        name: Path, URL or file name.
        frames: T arrays as in `Segment.frames`.
        frame_times: T arrays as in `Segment.frame_times`.
        waveforms: float32 `(num_segments, samples_per_segment)`.
        sampling_rate: Samples per second of `waveforms`.
        segment_seconds: Length of one segment.
        duration_seconds: Decoded length of video or audio from `start_seconds` on, the longer one.
        has_video: Whether there is a video track.
        has_audio: Whether there is an audio track.
        truncated: Whether the file stopped before its declared end.
    """

    name: str
    frames: list[np.ndarray]
    frame_times: list[np.ndarray]
    waveforms: np.ndarray
    sampling_rate: int
    segment_seconds: float
    duration_seconds: float
    has_video: bool
    has_audio: bool
    truncated: bool = False

    @property
    def num_segments(self) -> int:
        return len(self.frames)


@dataclass(frozen=True)
class ReadOptions:
    """The keyword arguments of `iter_segments`, checked on construction."""

    sampling_rate: int = 44100
    num_frames_per_segment: int = 16
    segment_seconds: float = 1.0
    start_seconds: float = 0.0
    end_seconds: float | None = None
    size: tuple[int, int] | None = None
    read_video: bool = True
    read_audio: bool = True
    audio_track: int | None = None
    max_download_bytes: int = DownloadLimits.max_bytes
    max_download_seconds: float = DownloadLimits.max_seconds
    frame_transform: Callable[[np.ndarray], np.ndarray] | None = None
    decode_threads: int | str = AUTO

    def __post_init__(self):
        check_positive("segment_seconds", self.segment_seconds)
        check_decode_threads(self.decode_threads)
        _check_integer("sampling_rate", self.sampling_rate, 1, 10_000_000)
        _check_integer("num_frames_per_segment", self.num_frames_per_segment, 1, MAX_FRAMES_PER_SEGMENT)
        num_samples = samples_per_segment(self.sampling_rate, self.segment_seconds)
        if not 1 <= num_samples <= MAX_SAMPLES_PER_SEGMENT:
            raise ValueError(
                f"Got segment_seconds={self.segment_seconds} at sampling_rate={self.sampling_rate}: a segment would "
                f"contain {num_samples} samples, expected 1 to {MAX_SAMPLES_PER_SEGMENT}."
            )
        if self.audio_track is not None:
            _check_integer("audio_track", self.audio_track, 0, 1000)
        self._check_span()
        self.download_limits  # noqa: B018 (checks its values)
        if self.size is not None:
            self._check_size()
        if not (self.read_video or self.read_audio):
            raise ValueError("Got read_video=False and read_audio=False: nothing to read. Set at least one to True.")

    def _check_span(self) -> None:
        if not 0 <= self.start_seconds <= MAX_DURATION_SECONDS:
            raise ValueError(
                f"Got start_seconds={self.start_seconds}, expected 0 to {MAX_DURATION_SECONDS:.0f} seconds."
            )
        if self.end_seconds is not None and not self.start_seconds < self.end_seconds <= MAX_DURATION_SECONDS:
            raise ValueError(
                f"Got end_seconds={self.end_seconds}, expected more than start_seconds={self.start_seconds} and "
                f"at most {MAX_DURATION_SECONDS:.0f}; leave it None to read to the end."
            )

    def _check_size(self) -> None:
        if not isinstance(self.size, (tuple, list)) or len(self.size) != 2:
            raise ValueError(f"Got size={self.size!r}, expected (height, width) in pixels.")
        _check_integer("size[0] (height)", self.size[0], 1, MAX_SIDE_PIXELS)
        _check_integer("size[1] (width)", self.size[1], 1, MAX_SIDE_PIXELS)

    @property
    def download_limits(self) -> DownloadLimits:
        return DownloadLimits(self.max_download_bytes, self.max_download_seconds)

    @property
    def end(self) -> float:
        return math.inf if self.end_seconds is None else self.end_seconds

    def next_frame_time(self, time: float) -> float:
        """Returns the first time at or after `time`, within rounding, at which a frame is wanted."""
        since_start = time - self.start_seconds
        return self.start_seconds + next_frame_time(since_start, self.num_frames_per_segment, self.segment_seconds)


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ValueError(f"Got {name}={value!r}, expected an integer from {low} to {high}.")
