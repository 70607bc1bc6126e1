"""A look at a whole video at small cost: a few thumbnails and the envelope of the sound.

Two passes over the file, one for each, in constant memory: an hour of video gives the same few hundred kB as a minute.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .video_decoding import Demuxer, Recording, VideoTrack
from .video_io import VideoInfo, iter_segments, probe_video
from .video_source import open_container, source_name

# Of longer videos only keyframes are decoded: a few a minute, at a hundredth of the cost.
FULL_DECODING_SECONDS = 120.0
PEAKS_PER_SECOND = 50
MAX_PEAKS = 1500
SAMPLING_RATE = 8000


@dataclass
class VideoPreview:
    """What a video looks and sounds like.

    Attributes:
        info: What the file declares.
        thumbnails: uint8 `(height, width, 3)` each, RGB, upright.
        thumbnail_times: Middle of the part of the video that each stands for, in seconds.
        peaks: `(num_peaks,)` float32 from 0 to 1, greatest amplitude of equal parts of `peaks_seconds` of sound.
        peaks_seconds: How long `peaks` last.
    """

    info: VideoInfo
    thumbnails: list[np.ndarray] = field(default_factory=list)
    thumbnail_times: list[float] = field(default_factory=list)
    peaks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    peaks_seconds: float = 0.0


def read_preview(source: Any, duration: float, height: int = 120, max_thumbnails: int = 12) -> VideoPreview:
    """Read thumbnails and the sound's envelope.

    Args:
        source (`str` or `os.PathLike`): Path or http(s) URL.
        duration (`float`): Seconds that the picture of it will span.
        height (`int`): Of the thumbnails, in pixels; narrower for pictures wider than 4:1.
        max_thumbnails (`int`): Fewer where they are wide, so that a row of them fits above a timeline.

    Returns:
        [`VideoPreview`]

    Raises:
        VideoReadError: If the file cannot be read.
    """
    info = probe_video(source)
    preview = VideoPreview(info)
    if info.has_video and duration > 0:
        aspect = info.width / max(1, info.height)
        count = max(1, min(max_thumbnails, int(16 / aspect)))
        height = max(2, min(height, round(4 * height / aspect)))
        size = (height, max(2, round(height * aspect)))
        preview.thumbnail_times = [(index + 0.5) * duration / count for index in range(count)]
        preview.thumbnails = _thumbnails(source, preview.thumbnail_times, size, duration > FULL_DECODING_SECONDS)
        preview.thumbnail_times = preview.thumbnail_times[: len(preview.thumbnails)]
    if info.has_audio:
        preview.peaks, preview.peaks_seconds = _peaks(source)
    return preview


def _thumbnails(source: Any, times: list[float], size: tuple[int, int], keyframes_only: bool) -> list[np.ndarray]:
    """The picture on display at each time, the last one again where there is none any more."""
    with open_container(source) as container:
        recording = Recording(container, source_name(source))
        if keyframes_only:
            recording.video.codec_context.skip_frame = "NONKEY"
        track = VideoTrack(Demuxer(recording, [recording.video]), size)
        pictures: list[np.ndarray] = []
        for time in times:
            shown, _ = track.frames_at(np.array([time]))
            if len(shown) or pictures:
                pictures.append(shown[0] if len(shown) else pictures[-1])
            else:  # the picture starts later than the sound
                pictures.append(np.zeros((*size, 3), np.uint8))
    return pictures


def _peaks(source: Any) -> tuple[np.ndarray, float]:
    segments = iter_segments(source, sampling_rate=SAMPLING_RATE, read_video=False, num_frames_per_segment=1)
    peaks = [np.abs(segment.waveform).reshape(PEAKS_PER_SECOND, -1).max(axis=1) for segment in segments]
    if not peaks:
        return np.zeros(0, np.float32), 0.0
    joined = np.concatenate(peaks)
    size = -(-len(joined) // MAX_PEAKS)
    padded = np.pad(joined, (0, -len(joined) % size))
    return padded.reshape(-1, size).max(axis=1), len(padded) / PEAKS_PER_SECOND
