"""Fast previews of videos: a few thumbnails and the envelope of the audio.

The file is read twice, once for each, in constant memory: the preview of one hour is as large as that of one minute,
a few hundred kB.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.video_decoding import Demuxer, Recording, VideoTrack
from ..core.video_io import VideoInfo, iter_segments, probe_video
from ..core.video_source import open_container, source_name

# In longer videos only keyframes are decoded: a few per minute, at a hundredth of the cost.
FULL_DECODING_SECONDS = 120.0
PEAKS_PER_SECOND = 50
MAX_PEAKS = 1500
SAMPLING_RATE = 8000


@dataclass
class VideoPreview:
    """Thumbnails and audio envelope of a video.

    Attributes:
        info: Metadata of the file.
        thumbnails: One uint8 array `(height, width, 3)` per thumbnail, RGB, upright.
        thumbnail_times: Middle of the part of the video that each thumbnail represents, in seconds.
        peaks: `(num_peaks,)` float32 from 0 to 1: maximum amplitude in equal parts of the audio.
        peaks_seconds: Duration of the audio that `peaks` covers.
    """

    info: VideoInfo
    thumbnails: list[np.ndarray] = field(default_factory=list)
    thumbnail_times: list[float] = field(default_factory=list)
    peaks: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    peaks_seconds: float = 0.0


def read_preview(source: Any, duration: float, height: int = 120, max_thumbnails: int = 12) -> VideoPreview:
    """Reads thumbnails and the envelope of the audio.

    Args:
        source (`str` or `os.PathLike`): Path or http(s) URL.
        duration (`float`): Seconds that the preview covers.
        height (`int`): Height of the thumbnails in pixels; smaller for frames wider than 4:1.
        max_thumbnails (`int`): Maximum number of thumbnails; fewer if they are wide, so that they fit in a row above a
            timeline.

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
    """Returns the frame displayed at each time; after the end of the video, the last frame again."""
    with open_container(source) as container:
        recording = Recording(container, source_name(source))
        video = recording.video
        if video is None:  # the file has changed since it was probed
            return []
        if keyframes_only:
            video.codec_context.skip_frame = "NONKEY"
        track = VideoTrack(Demuxer(recording, [video]), size)
        images: list[np.ndarray] = []
        for time in times:
            shown, _ = track.frames_at(np.array([time]))
            if len(shown) or images:
                images.append(shown[0] if len(shown) else images[-1])
            else:  # the video starts later than the audio
                images.append(np.zeros((*size, 3), np.uint8))
    return images


def _peaks(source: Any) -> tuple[np.ndarray, float]:
    segments = iter_segments(source, sampling_rate=SAMPLING_RATE, read_video=False, num_frames_per_segment=1)
    peaks = [np.abs(segment.waveform).reshape(PEAKS_PER_SECOND, -1).max(axis=1) for segment in segments]
    if not peaks:
        return np.zeros(0, np.float32), 0.0
    joined = np.concatenate(peaks)
    size = -(-len(joined) // MAX_PEAKS)
    padded = np.pad(joined, (0, -len(joined) % size))
    return padded.reshape(-1, size).max(axis=1), len(padded) / PEAKS_PER_SECOND
