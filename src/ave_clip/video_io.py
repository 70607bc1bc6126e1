"""From a video file to the frames and the sound of each segment. Decoding is PyAV's (FFmpeg inside the wheel).

One pass over the file, constant memory: packets are demuxed as they are needed, and only the frames that a segment
wants are turned into RGB.

Time zero is the earlier start of the picture and the sound, as a player shows them. A frame is on display from its
time stamp until the next frame's; samples are placed by time stamp. Segment `t` then follows the grid of
`segments.py`. What happens in the cases that are not plain:

| the file | what comes out |
|---|---|
| no sound track | waveforms of zeros, `has_audio=False` |
| no video track (cover art is none) | no frames (`F = 0`), `has_video=False` |
| sound and picture of different length or start | the longer one counts; the other is zero or has no frames there |
| shorter than one segment | one segment, the waveform padded with zeros |
| a last partial segment | kept when at least half a segment long, padded with zeros, else left out |
| any length above | as many segments as it has; `iter_segments` needs memory for one of them only |
| variable or low frame rate | the frame on display at each wanted time, each once: `F` may be smaller |
| a gap in the sound's time stamps | silence; jitter of up to 10 ms is not a gap |
| cut off in the middle | what can be decoded, `truncated=True`, a warning that says where it stopped (see below) |
| damaged in the middle | what can be decoded, and a warning with the number of packets that could not |
| recordings joined end to end (mpegts, ogg) | one after the other, although their time stamps start over |
| rotation or mirroring in the metadata | applied: frames come out upright |
| picture size changing in the middle | every frame resized to the first one's size |
| pixels that are not square | left as stored: width and height are counted in pixels |
| several video or sound tracks | the default one, else the one FFmpeg judges best |
| stereo | the mean of both channels |
| 5.1 and the like | FFmpeg's mix, scaled so that it cannot clip: centre 0.29, left and right 0.21, surround 0.15 |
| not a recording, empty, encrypted, nothing decodable | `VideoReadError`, a `ValueError` that names the file |
| pictures above 16384 pixels a side or 2^28 in total | `VideoReadError` |
| a clip of more than 16 GiB when decoded | `read_video` raises `VideoReadError`; `iter_segments` reads it |

That a file is cut off shows where it declares its length or that of its packets: mp4, mov, mkv, webm, avi, flv, wmv.
After a seek to `start_seconds`, frames and times are exactly those of reading from the beginning. So is the sound, but
for what depends on the past: the random noise that AAC fills in, and time stamps rounded to milliseconds (mkv, webm,
flv), which may place it up to 1 ms aside.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers.utils import logging

from .segments import (
    check_positive,
    cut_waveform,
    first_sample,
    frame_times,
    num_segments_for,
    samples_per_segment,
    select_frames,
)
from .video_decoding import (
    FORMATS_WITH_DURATION,
    MAX_DURATION_SECONDS,
    MAX_SIDE_PIXELS,
    TRUNCATION_TOLERANCE_SECONDS,
    AudioTrack,
    Demuxer,
    Recording,
    VideoTrack,
    clockwise_degrees,
    display_matrix,
    displayed_size,
)
from .video_source import VideoReadError, open_container, source_name

logger = logging.get_logger(__name__)

MAX_CLIP_BYTES = 16 * 2**30
MAX_FRAMES_PER_SEGMENT = 1000
MAX_SAMPLES_PER_SEGMENT = 2**28


@dataclass
class VideoInfo:
    """What a file declares about itself, with the first frame's geometry.

    Attributes:
        name: Path, URL or file name.
        duration_seconds: Declared length, the longer of picture and sound; 0 when the file does not say.
        width: Pixels of a frame as displayed, rotation applied; 0 without video.
        height: As `width`.
        frame_rate: Average frames per second; 0 without video.
        num_frames: Number of frames if the file says.
        has_video: Whether there is a decodable video track.
        has_audio: Whether there is a decodable sound track.
        audio_sampling_rate: Samples per second as stored.
        rotation: Degrees clockwise by which the stored picture is turned for display: 0, 90, 180 or 270.
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
        frames: uint8 `(num_frames, height, width, 3)`, RGB, upright; fewer than asked for, or none, where they lack.
        frame_times: `(num_frames,)` float64, when each frame appeared, in seconds from the video's time zero.
        waveform: float32 `(samples_per_segment,)`, mono in [-1, 1], zero where there is no sound.
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
        duration_seconds: How long picture or sound really lasted from `start_seconds` on, whichever is longer.
        has_video: Whether there is a video track.
        has_audio: Whether there is a sound track.
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
    """How to cut a video; checked on construction. The fields are the keyword arguments of `iter_segments`."""

    sampling_rate: int = 44100
    num_frames_per_segment: int = 16
    segment_seconds: float = 1.0
    start_seconds: float = 0.0
    end_seconds: float | None = None
    size: tuple[int, int] | None = None
    read_video: bool = True
    read_audio: bool = True

    def __post_init__(self):
        check_positive("segment_seconds", self.segment_seconds)
        _check_integer("sampling_rate", self.sampling_rate, 1, 10_000_000)
        _check_integer("num_frames_per_segment", self.num_frames_per_segment, 1, MAX_FRAMES_PER_SEGMENT)
        num_samples = samples_per_segment(self.sampling_rate, self.segment_seconds)
        if not 1 <= num_samples <= MAX_SAMPLES_PER_SEGMENT:
            raise ValueError(
                f"Got segment_seconds={self.segment_seconds} at sampling_rate={self.sampling_rate}: a segment would "
                f"hold {num_samples} samples, expected 1 to {MAX_SAMPLES_PER_SEGMENT}."
            )
        self._check_span()
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
    def end(self) -> float:
        return math.inf if self.end_seconds is None else self.end_seconds


def _check_integer(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        raise ValueError(f"Got {name}={value!r}, expected an integer from {low} to {high}.")


def probe_video(source: Any) -> VideoInfo:
    """Describe a video without decoding more than its first frame.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): Path, http(s) URL, bytes or binary file object.

    Returns:
        `VideoInfo`: See there.

    Raises:
        VideoReadError: If the file cannot be read; see the table at the top.
    """
    with open_container(source) as container:
        recording = Recording(container, source_name(source))
        width, height, rotation = _displayed_size(recording)
        video, audio = recording.video, recording.audio
        return VideoInfo(
            name=recording.name,
            duration_seconds=recording.duration_seconds,
            width=width,
            height=height,
            frame_rate=recording.frame_rate,
            num_frames=None if video is None else video.frames or None,
            has_video=video is not None,
            has_audio=audio is not None,
            audio_sampling_rate=None if audio is None else audio.codec_context.sample_rate or None,
            rotation=rotation,
        )


def _displayed_size(recording: Recording) -> tuple[int, int, int]:
    """Width, height and clockwise rotation as displayed. The rotation comes with the first decoded frame."""
    if recording.video is None:
        return 0, 0, 0
    _, frame = next(Demuxer(recording, [recording.video]).frames(recording.video), (None, None))
    if frame is None:
        return recording.video.codec_context.width, recording.video.codec_context.height, 0
    matrix = display_matrix(frame)
    height, width = displayed_size(frame, matrix)
    return width, height, clockwise_degrees(matrix)


def iter_segments(
    source: Any,
    *,
    sampling_rate: int = 44100,
    num_frames_per_segment: int = 16,
    segment_seconds: float = 1.0,
    start_seconds: float = 0.0,
    end_seconds: float | None = None,
    size: tuple[int, int] | None = None,
    read_video: bool = True,
    read_audio: bool = True,
) -> Iterator[Segment]:
    """Read a video segment by segment, in one pass and constant memory.

    The file is opened at the first segment and closed after the last, or when the iterator is closed or dropped.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): Path, http(s) URL, bytes or binary file object.
        sampling_rate (`int`): Samples per second of the waveforms.
        num_frames_per_segment (`int`): Frames wanted per segment, 1 to 1000.
        segment_seconds (`float`): Length of one segment.
        start_seconds (`float`): Where segment 0 begins. Far inside a file the reader seeks.
        end_seconds (`float`, *optional*): Treat the video as if it stopped here.
        size (`tuple[int, int]`, *optional*): Height and width to resize frames to (FFmpeg's bicubic, aspect ratio not
            kept); native size without it.
        read_video (`bool`): Whether frames are wanted.
        read_audio (`bool`): Whether sound is wanted.

    Returns:
        Iterator of `Segment`: At least one.

    Raises:
        ValueError: If an option is out of range (at once).
        VideoReadError: If the file cannot be read, or ends before `start_seconds` (at the first segment).
    """
    options = ReadOptions(
        sampling_rate=sampling_rate,
        num_frames_per_segment=num_frames_per_segment,
        segment_seconds=segment_seconds,
        start_seconds=start_seconds,
        end_seconds=end_seconds,
        size=size,
        read_video=read_video,
        read_audio=read_audio,
    )
    return _generate(source, options)


def _generate(source: Any, options: ReadOptions) -> Iterator[Segment]:
    with open_container(source) as container:
        yield from SegmentReader(Recording(container, source_name(source)), options)


class SegmentReader:
    """Iterates over the segments of a recording; afterwards knows how it ended.

    Args:
        recording (`Recording`): The open file, at its beginning.
        options (`ReadOptions`): How to cut it.

    Attributes:
        duration_seconds: How long picture or sound last from `start_seconds` on, as far as read.
        truncated: Whether the file stopped before its declared end (after the last segment).
    """

    def __init__(self, recording: Recording, options: ReadOptions):
        self.recording = recording
        self.options = options
        self.truncated = False
        video = recording.video if options.read_video else None
        audio = recording.audio if options.read_audio else None
        self._demuxer = Demuxer(recording, [stream for stream in (video, audio) if stream is not None])
        self._video = VideoTrack(self._demuxer, options.size) if video is not None else None
        self._audio = AudioTrack(self._demuxer, options.sampling_rate) if audio is not None else None
        self._declared_duration = recording.duration_seconds

    def __iter__(self) -> Iterator[Segment]:
        self._demuxer.seek(self.options.start_seconds)
        for index in itertools.count():
            segment = self._read(index)
            if index == 0:
                self._check_start()
            if index >= num_segments_for(self.duration_seconds, self.options.segment_seconds):
                break
            yield segment
        self._check_end()

    @property
    def _tracks(self) -> list[VideoTrack | AudioTrack]:
        return [track for track in (self._video, self._audio) if track is not None]

    @property
    def _known_end(self) -> float:
        """Where the content ends as far as known, in seconds from time zero; never beyond `end_seconds`."""
        ends = [track.known_end for track in self._tracks]
        return min(max(ends, default=self._declared_duration), self.options.end)

    @property
    def duration_seconds(self) -> float:
        return max(0.0, self._known_end - self.options.start_seconds)

    def _read(self, index: int) -> Segment:
        options = self.options
        wanted = options.start_seconds + frame_times(index, options.num_frames_per_segment, options.segment_seconds)
        frames, times = np.zeros((0, *(options.size or (0, 0)), 3), np.uint8), np.zeros(0)
        if self._video is not None:
            frames, times = self._video.frames_at(wanted[wanted < options.end])
            self._video.advance(options.start_seconds + (index + 1) * options.segment_seconds)
        return Segment(index, frames, times, self._waveform(index))

    def _waveform(self, index: int) -> np.ndarray:
        rate = self.options.sampling_rate
        length = samples_per_segment(rate, self.options.segment_seconds)
        if self._audio is None:
            return np.zeros(length, np.float32)
        start = round(self.options.start_seconds * rate) + first_sample(index, rate, self.options.segment_seconds)
        waveform = self._audio.samples(start, length)
        if self.options.end_seconds is not None:
            waveform[max(0, round(self.options.end_seconds * rate) - start) :] = 0
        return waveform

    def _check_start(self) -> None:
        """Raise if the file held nothing, or nothing from `start_seconds` on."""
        if self._tracks and not any(track.num_decoded for track in self._tracks):
            raise VideoReadError(
                f"Cannot read {self.recording.name}: nothing in it could be decoded "
                f"({self._demuxer.error or 'no data'}). It may be cut off, encrypted or damaged; "
                "check that a player shows it."
            )
        if self.options.start_seconds > 0 and self._known_end <= self.options.start_seconds:
            raise VideoReadError(
                f"Cannot read {self.recording.name} from start_seconds={self.options.start_seconds}: it ends at "
                f"{self._known_end:.2f} s. Choose an earlier start."
            )

    def _check_end(self) -> None:
        """Set `truncated`, and warn about what was lost."""
        demuxer, name = self._demuxer, self.recording.name
        declared = min(self._declared_duration, self.options.end)
        stops_early = self._known_end < declared - TRUNCATION_TOLERANCE_SECONDS
        self.truncated = demuxer.is_cut or (stops_early and bool(self.recording.format_names & FORMATS_WITH_DURATION))
        if self.truncated:
            of_declared = f" of {declared:.2f} s" if stops_early else ""
            reason = f" ({demuxer.error})" if demuxer.error else ""
            logger.warning(
                f"{name} is cut off or damaged: it stops at {self._known_end:.2f} s{of_declared}{reason}. "
                "What could be decoded is used."
            )
        elif demuxer.num_decoding_errors:
            logger.warning(f"{name}: {demuxer.num_decoding_errors} packets could not be decoded ({demuxer.error}).")
        if demuxer.num_late_packets:
            logger.warning(
                f"{name}: {demuxer.num_late_packets} packets came too late and were left out, because sound and "
                "picture are stored far apart. Repair it with `ffmpeg -i INPUT -c copy OUTPUT.mp4`."
            )


def read_video(source: Any, **options: Any) -> VideoClip:
    """Read a whole video into memory.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): Path, http(s) URL, bytes or binary file object.
        options: The keyword arguments of `iter_segments`.

    Returns:
        `VideoClip`: See there.

    Raises:
        ValueError: If an option is out of range.
        VideoReadError: If the file cannot be read, or would need more than 16 GiB.
    """
    checked = ReadOptions(**options)
    with open_container(source) as container:
        recording = Recording(container, source_name(source))
        _check_memory(recording.name, _estimated_bytes(recording, checked))
        reader = SegmentReader(recording, checked)
        segments, num_bytes = [], 0
        for segment in reader:
            segments.append(segment)
            num_bytes += segment.frames.nbytes + segment.waveform.nbytes
            _check_memory(recording.name, num_bytes)
        return VideoClip(
            name=recording.name,
            frames=[segment.frames for segment in segments],
            frame_times=[segment.frame_times for segment in segments],
            waveforms=np.stack([segment.waveform for segment in segments]),
            sampling_rate=checked.sampling_rate,
            segment_seconds=checked.segment_seconds,
            duration_seconds=reader.duration_seconds,
            has_video=recording.video is not None,
            has_audio=recording.audio is not None,
            truncated=reader.truncated,
        )


def _estimated_bytes(recording: Recording, options: ReadOptions) -> int:
    """Size of the decoded clip, from what the file declares."""
    seconds = max(0.0, min(recording.duration_seconds, options.end) - options.start_seconds)
    segment_bytes = 4 * samples_per_segment(options.sampling_rate, options.segment_seconds)
    if options.read_video and recording.video is not None:
        context = recording.video.codec_context
        height, width = options.size or (context.height, context.width)
        num_frames = options.num_frames_per_segment
        if recording.frame_rate > 0:
            num_frames = min(num_frames, math.ceil(recording.frame_rate * options.segment_seconds) + 1)
        segment_bytes += num_frames * height * width * 3
    return num_segments_for(seconds, options.segment_seconds) * segment_bytes


def _check_memory(name: str, num_bytes: int) -> None:
    if num_bytes > MAX_CLIP_BYTES:
        raise VideoReadError(
            f"Cannot read {name} at once: decoded it takes {num_bytes / 2**30:.1f} GiB, the limit is "
            f"{MAX_CLIP_BYTES / 2**30:.0f} GiB. Use iter_segments, fewer frames per segment, a smaller `size`, or "
            "start_seconds and end_seconds."
        )


def clip_from_arrays(
    frames: np.ndarray | None = None,
    *,
    frame_rate: float | None = None,
    display_times: Sequence[float] | np.ndarray | None = None,
    waveform: np.ndarray | None = None,
    sampling_rate: int = 44100,
    num_frames_per_segment: int = 16,
    segment_seconds: float = 1.0,
    name: str = "<arrays>",
) -> VideoClip:
    """Cut decoded frames and sound by the same rules as a file.

    Args:
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, *optional*): uint8 RGB, in display order.
        frame_rate (`float`, *optional*): Frames per second. Either this or `display_times` goes with `frames`.
        display_times (`np.ndarray` of shape `(num_frames,)`, *optional*): When each frame appears, ascending seconds.
        waveform (`np.ndarray` of shape `(num_samples,)`, *optional*): Mono in [-1, 1], at `sampling_rate`.
        sampling_rate (`int`): Samples per second of `waveform`.
        num_frames_per_segment (`int`): Frames wanted per segment.
        segment_seconds (`float`): Length of one segment.
        name (`str`): What to call the clip.

    Returns:
        `VideoClip`: With `has_video` and `has_audio` telling which of the two was given.

    Raises:
        ValueError: If shapes, types or times do not fit.
    """
    options = ReadOptions(sampling_rate, num_frames_per_segment, segment_seconds)
    if frames is None and waveform is None:
        raise ValueError("Got neither frames nor a waveform. Pass at least one.")
    times, end = _display_times(frames, frame_rate, display_times)
    sound = np.zeros(0, np.float32) if waveform is None else _checked_waveform(waveform)
    duration = max(end, len(sound) / sampling_rate)
    num_segments = num_segments_for(duration, segment_seconds)
    frames = np.zeros((0, 0, 0, 3), np.uint8) if frames is None else np.asarray(frames)
    chosen = [
        select_frames(times, frame_times(index, options.num_frames_per_segment, segment_seconds), end)
        for index in range(num_segments)
    ]
    return VideoClip(
        name=name,
        frames=[frames[indices] for indices in chosen],
        frame_times=[times[indices] for indices in chosen],
        waveforms=cut_waveform(sound, num_segments, sampling_rate, segment_seconds),
        sampling_rate=sampling_rate,
        segment_seconds=segment_seconds,
        duration_seconds=duration,
        has_video=len(frames) > 0,
        has_audio=waveform is not None,
    )


def _display_times(
    frames: np.ndarray | None, frame_rate: float | None, display_times: Sequence[float] | np.ndarray | None
) -> tuple[np.ndarray, float]:
    """When each frame appears, and when the last one disappears."""
    if frames is None:
        return np.zeros(0), 0.0
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(
            f"Got frames of shape {frames.shape} and type {frames.dtype}, expected uint8 "
            "(num_frames, height, width, 3)."
        )
    if (frame_rate is None) == (display_times is None):
        raise ValueError("Pass either frame_rate or display_times with the frames, not both and not neither.")
    if frame_rate is not None:
        check_positive("frame_rate", frame_rate)
        return np.arange(len(frames)) / frame_rate, len(frames) / frame_rate
    times = np.asarray(display_times, dtype=np.float64)
    if times.shape != (len(frames),) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError(
            f"Got display_times of shape {times.shape} for {len(frames)} frames, expected one finite time per frame, "
            "in ascending order."
        )
    last_gap = times[-1] - times[-2] if len(times) > 1 else 0.0
    return times, float(times[-1] + last_gap) if len(times) else 0.0


def _checked_waveform(waveform: np.ndarray) -> np.ndarray:
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim != 1:
        raise ValueError(f"Got a waveform of shape {waveform.shape}, expected (num_samples,). Mix it down first.")
    if not np.isfinite(waveform).all():
        raise ValueError("Got a waveform with NaN or infinite samples. Repair the recording or leave it out.")
    return waveform
