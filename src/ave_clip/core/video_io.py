"""Reads a video file as the frames and the audio of each segment. PyAV decodes it (its wheel contains FFmpeg).

The file is read once, in constant memory: packets are demuxed as they are needed, only the frames that a segment needs
are converted to RGB, and those that nothing needs are not decoded (`frame_skipping.py`).

Time zero is the earlier start of video and audio, as in a player. A frame is displayed from its time stamp until that
of the next frame; samples are positioned by time stamp. Segment `t` then follows the grid of `segments.py`. Special
cases:

| the file | the result |
|---|---|
| no audio track | waveforms of zeros, `has_audio=False` |
| no video track (cover art does not count) | no frames (`F = 0`), `has_video=False` |
| audio and video of different length or start | the longer one counts; the other is zero or has no frames there |
| one image with audio, a screen that stops changing | the last frame is displayed until the audio ends; if frames at a constant rate stop earlier, the video ends there |
| shorter than one segment | one segment, the waveform padded with zeros |
| a last partial segment | kept if it is at least half a segment long, padded with zeros, else left out |
| any greater length | all its segments; `iter_segments` needs memory for one of them only |
| variable or low frame rate | the frame displayed at each wanted time, each once: `F` may be smaller |
| a gap in the time stamps of the audio | silence; jitter of up to 10 ms is not a gap |
| cut off in the middle | everything that can be decoded, `truncated=True`, and a warning with the time at which it stops (see below) |
| damaged in the middle | everything that can be decoded, and a warning with the number of packets that could not be decoded |
| recordings joined end to end | one after the other, although their time stamps start over or jump |
| damaged time stamps | repaired, a warning for each repair; `time_stamps.py` says how |
| rotation or mirroring in the metadata | applied: frames come out upright |
| frame size changing in the middle | every frame resized to the first one's size |
| pixels that are not square | left as stored: width and height are counted in pixels |
| several video or audio tracks | the default track, else the best one according to FFmpeg; `audio_track` chooses another audio track |
| stereo | the mean of both channels |
| 5.1 and similar layouts | FFmpeg's mix, scaled so that it cannot clip: centre 0.29, left and right 0.21, surround 0.15 |
| layouts of which FFmpeg's mix leaves out channels (7.1.4, 22.2, unknown positions) | the mean of all channels except low frequencies |
| ambisonic | the omnidirectional channel W |
| channels that cancel each other out (one is inverted) | the loudest channel during that time, and a warning |
| more than 64 audio channels | `VideoReadError` |
| a URL or pipe that exceeds the limits of downloads, stalls or is interrupted | `VideoReadError` that names the limit |
| HDR (PQ, HLG) | tone mapped to SDR, see `tone_mapping.py` |
| a colour matrix that FFmpeg cannot convert (YCgCo, ICtCp, BT.2020-CL ...) | the usual matrix, and a warning |
| not a recording, empty, encrypted, nothing decodable | `VideoReadError`, a `ValueError` that names the file |
| frames above 16384 pixels per side or 64 megapixels | `VideoReadError` |
| a clip of more than 16 GiB when decoded | `read_video` raises `VideoReadError`; `iter_segments` reads it |

A truncated file is recognised in formats that declare their length or that of their packets (mp4, mov, mkv, webm, avi,
flv, wmv), and in ts, mpg and ogg if the file ends within a packet.
After a seek to `start_seconds`, frames and times are the same as without seeking. Audio is also the same, except for
the random noise that AAC fills in, and for a shift of up to 1 ms where time stamps are rounded to milliseconds (mkv,
webm, flv).
"""  # noqa: E501

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from .audio_decoding import AudioTrack
from .decode_threads import ConversionThreads, num_conversion_threads, num_decode_threads
from .orientation import clockwise_degrees, display_matrix, displayed_size
from .recording import FORMATS_WITH_DURATION, Recording
from .segments import (
    check_positive,
    cut_waveform,
    first_sample,
    frame_times,
    last_frame_stays,
    num_segments_for,
    samples_per_segment,
    select_frames,
)
from .video_clip import ReadOptions, Segment, VideoClip, VideoInfo
from .video_decoding import MAX_REPAIR_WARNINGS, TRUNCATION_TOLERANCE_SECONDS, Demuxer, VideoTrack
from .video_source import (
    DownloadLimits,
    VideoReadError,
    is_downloaded,
    open_container,
    reopen_container,
    source_name,
)

logger = logging.get_logger(__name__)

MAX_CLIP_BYTES = 16 * 2**30


def probe_video(source: Any, is_quiet: bool = False) -> VideoInfo:
    """Describes a video without decoding more than its first frame.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): Path, http(s) URL, bytes or binary file object.
        is_quiet (`bool`): Leave out the warnings of repaired time stamps.

    Returns:
        `VideoInfo`: See there.

    Raises:
        VideoReadError: If the file cannot be read; see the table at the top.
    """
    with open_container(source) as container:
        recording = Recording(container, source_name(source), is_quiet=is_quiet)
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
    """Returns width, height and clockwise rotation for display. The rotation is read from the first decoded frame."""
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
    audio_track: int | None = None,
    max_download_bytes: int = DownloadLimits.max_bytes,
    max_download_seconds: float = DownloadLimits.max_seconds,
    frame_transform: Callable[[np.ndarray], np.ndarray] | None = None,
    decode_threads: int | str = "auto",
) -> Iterator[Segment]:
    """Reads a video segment by segment, in one pass and constant memory.

    The file is opened at the first segment and closed after the last, or when the iterator is closed or dropped.

    Args:
        source (`str`, `os.PathLike`, `bytes` or file object): Path, http(s) URL, bytes or binary file object.
        sampling_rate (`int`): Samples per second of the waveforms.
        num_frames_per_segment (`int`): Number of frames per segment, 1 to 1000.
        segment_seconds (`float`): Length of one segment.
        start_seconds (`float`): Start of segment 0. The reader seeks if this is far inside the file.
        end_seconds (`float`, *optional*): Time at which reading stops, as if the video ended there.
        size (`tuple[int, int]`, *optional*): Height and width to which frames are resized (FFmpeg's bicubic, aspect
            ratio not kept). Default: native size.
        read_video (`bool`): Whether to read frames.
        read_audio (`bool`): Whether to read audio.
        audio_track (`int`, *optional*): Audio track to read, counted from 0. Default: the file's default track, else
            FFmpeg's choice.
        max_download_bytes (`int`): Maximum number of bytes to read from a URL or a pipe, 4 GiB by default.
        max_download_seconds (`float`): Maximum total time to wait for the server of a URL, half an hour by default.
        frame_transform (`Callable`, *optional*): Called with each frame `(height, width, 3)` as soon as it is decoded;
            returns the uint8 array that is kept instead. At native size, a segment of 16 frames in 4K takes 400 MB;
            with a transform that shrinks the frames, only a few frames at a time have full size. Frames come in order
            and one at a time, unless the callable has an attribute `is_thread_safe=True`: then several threads call it
            in any order.
        decode_threads (`int` or `str`): Number of threads that decode, beside a few that convert frames; segments do
            not depend on it. `"auto"`: two more than this process has CPUs, at most 16, fewer for large frames; one
            on a single CPU, and in child processes of `multiprocessing` such as data loader workers. URLs and AVI
            files are read with one thread.

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
        audio_track=audio_track,
        max_download_bytes=max_download_bytes,
        max_download_seconds=max_download_seconds,
        frame_transform=frame_transform,
        decode_threads=decode_threads,
    )
    return _generate(source, options)


def _is_decoded_fast(recording: Recording, options: ReadOptions) -> bool:
    """Whether frames of a recording may be decoded by several threads, or skipped."""
    # Not in AVI, whose frames get their times from when the decoder returns them; in URLs: a damaged file is read
    # again from its start, which would count twice as a download; and in live streams, which cannot be read again,
    # and whose frames would be returned later by one per thread.
    if recording.video is None or not options.read_video or recording.is_live:
        return False
    return "avi" not in recording.format_names and not is_downloaded(recording.container)


def _generate(source: Any, options: ReadOptions) -> Iterator[Segment]:
    with open_container(source, options.download_limits) as container:
        yield from SegmentReader(Recording(container, source_name(source), options.audio_track), options)


class SegmentReader:
    """Iterates over the segments of a recording. The attributes are final after the last segment.

    Args:
        recording (`Recording`): The open file, at its beginning.
        options (`ReadOptions`): Options for reading.

    Attributes:
        duration_seconds: Length of video or audio from `start_seconds` on, the longer one, as far as read.
        truncated: Whether the file stopped before its declared end (after the last segment).
    """

    def __init__(self, recording: Recording, options: ReadOptions):
        self.options = options
        self.truncated = False
        self._begin(recording, _is_decoded_fast(recording, options))

    def _begin(self, recording: Recording, is_fast: bool) -> None:
        self.recording, options = recording, self.options
        video = recording.video if options.read_video else None
        audio = recording.audio if options.read_audio else None
        self._demuxer = Demuxer(recording, [stream for stream in (video, audio) if stream is not None])
        self._threads = self._decode_fast(video) if is_fast else None
        self._video = self._audio = None
        if video is not None:
            self._video = VideoTrack(self._demuxer, options.size, options.frame_transform, self._threads)
        if audio is not None:
            self._audio = AudioTrack(self._demuxer, options.sampling_rate)
        self._declared_duration = recording.duration_seconds

    def _decode_fast(self, video: Any) -> ConversionThreads | None:
        """Skips frames that are not needed, and decodes with several threads; returns those that convert frames."""
        is_skipping = self._demuxer.skip_frames(video, self.options.next_frame_time)
        context = video.codec_context
        num_threads = num_decode_threads(self.options.decode_threads, context.width, context.height)
        if is_skipping or num_threads > 1:
            self.recording.report_damage(video)
        if num_threads == 1:
            return None
        self.recording.use_frame_threads(video, num_threads)
        return ConversionThreads(num_conversion_threads(self.options.decode_threads))

    def __iter__(self) -> Iterator[Segment]:
        with contextlib.ExitStack() as stack:
            stack.callback(self._end)
            self._demuxer.seek(self.options.start_seconds)
            for index in itertools.count():
                segment = self._read_exactly(index, stack)
                if index == 0:
                    self._check_start()
                if index >= num_segments_for(self.duration_seconds, self.options.segment_seconds):
                    break
                yield segment
            self._check_end()

    def _end(self) -> None:
        """Ends all threads."""
        if self._threads is not None:
            self._threads.close()
        self._demuxer.close()

    def _read_exactly(self, index: int, stack: contextlib.ExitStack) -> Segment:
        """Reads a segment; if that might depend on threads or skipped frames, again without, from the file's start."""
        if not self.recording.is_strict:
            return self._read(index)
        try:
            segment = self._read(index)
            if not self._demuxer.may_depend_on_speed(is_read_to_end=self.options.end_seconds is None):
                return segment
        except VideoReadError:  # one thread may be able to read this segment, and meet the error in a later one
            pass
        self._end()
        recording = self.recording
        container = stack.enter_context(reopen_container(recording.container, recording.name))
        again = Recording(container, recording.name, self.options.audio_track, recording.is_quiet)
        again.warnings = recording.warnings
        self._begin(again, is_fast=False)
        self._demuxer.seek(self.options.start_seconds)
        for earlier in range(index):
            self._pass(earlier)
        return self._read(index)

    def _pass(self, index: int) -> None:
        """Decodes a segment without converting its frames."""
        if self._video is not None:
            self._video.advance(self.options.start_seconds + (index + 1) * self.options.segment_seconds)
        self._waveform(index)

    @property
    def _tracks(self) -> list[VideoTrack | AudioTrack]:
        return [track for track in (self._video, self._audio) if track is not None]

    @property
    def _known_end(self) -> float:
        """End of the content in seconds from time zero, as far as known; never beyond `end_seconds`."""
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
        """Raises if the file contains nothing, or nothing from `start_seconds` on."""
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
        """Sets `truncated` and warns about lost content."""
        demuxer, name = self._demuxer, self.recording.name
        # If time stamps were repaired, the declared length may be computed from the damaged ones.
        declared = 0.0 if demuxer.num_repairs else min(self._declared_duration, self.options.end)
        stops_early = self._known_end < declared - TRUNCATION_TOLERANCE_SECONDS
        declares_duration = bool(self.recording.format_names & FORMATS_WITH_DURATION)
        reads_to_end = self.options.end_seconds is None
        self.truncated = (
            demuxer.is_cut
            or (stops_early and declares_duration and not self.recording.has_declared_size(demuxer.end_position))
            or (reads_to_end and self.recording.lacks_its_end())
        )
        if self.truncated:
            of_declared = f" of {declared:.2f} s" if stops_early else ""
            reason = f" ({demuxer.error})" if demuxer.error else ""
            logger.warning(
                f"{name} is cut off or damaged: it stops at {self._known_end:.2f} s{of_declared}{reason}. "
                "What could be decoded is used."
            )
        elif (
            "avi" in self.recording.format_names
            and 0 < self._declared_duration < self._known_end - TRUNCATION_TOLERANCE_SECONDS
        ):
            # AVI has no time stamps, so repeated bytes are more packets. In other formats the last packet may simply
            # be longer.
            logger.warning(
                f"{name} declares a length of {self._declared_duration:.2f} s, but contains {self._known_end:.2f} s: "
                "its header is damaged or parts of it are repeated. All of it is used."
            )
        elif "matroska" in self.recording.format_names and self.recording.time_zero > TRUNCATION_TOLERANCE_SECONDS:
            # A lost first cluster cannot be recognised in any other way; the declared length always counts from 0.
            logger.warning(
                f"{name}: it contains nothing before {float(self.recording.time_zero):.2f} s. This is used as its "
                "start; its beginning may have been cut off."
            )
        if demuxer.has_skipped_most and not self.truncated:
            logger.warning(f"{name} is damaged: less than a tenth of its bytes could be read.")
        if demuxer.num_decoding_errors and not self.truncated:
            logger.warning(f"{name}: {demuxer.num_decoding_errors} packets could not be decoded ({demuxer.error}).")
        if demuxer.num_repairs > MAX_REPAIR_WARNINGS:
            logger.warning(f"{name}: {demuxer.num_repairs - MAX_REPAIR_WARNINGS} more time stamps were repaired.")
        if demuxer.num_late_packets:
            logger.warning(
                f"{name}: {demuxer.num_late_packets} packets came too late and were left out, because audio and "
                "video are stored far apart. Repair it with `ffmpeg -i INPUT -c copy OUTPUT.mp4`."
            )


def read_video(source: Any, **options: Any) -> VideoClip:
    """Reads a whole video into memory.

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
    with open_container(source, checked.download_limits) as container:
        recording = Recording(container, source_name(source), checked.audio_track)
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
            waveforms=_stacked([segment.waveform for segment in segments]),
            sampling_rate=checked.sampling_rate,
            segment_seconds=checked.segment_seconds,
            duration_seconds=reader.duration_seconds,
            has_video=recording.video is not None,
            has_audio=recording.audio is not None,
            truncated=reader.truncated,
        )


def _stacked(waveforms: list[np.ndarray]) -> np.ndarray:
    """Stacks all waveforms. Silent ones remain untouched zero pages, which need no memory: a gap may last hours."""
    stacked = np.zeros((len(waveforms), len(waveforms[0])), np.float32)
    for row, waveform in zip(stacked, waveforms):
        if waveform.any():
            row[:] = waveform
    return stacked


def _estimated_bytes(recording: Recording, options: ReadOptions) -> int:
    """Estimates the size of the decoded clip from the file's declared properties; 0 without them."""
    if not recording.format_names & FORMATS_WITH_DURATION:
        return 0  # the length would be a guess from the last time stamp, which may be damaged
    seconds = max(0.0, min(recording.duration_seconds, options.end) - options.start_seconds)
    segment_bytes = 4 * samples_per_segment(options.sampling_rate, options.segment_seconds)
    if options.read_video and recording.video is not None and options.frame_transform is None:
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
            f"Cannot read {name} at once: it takes {num_bytes / 2**30:.1f} GiB when decoded, the limit is "
            f"{MAX_CLIP_BYTES / 2**30:.0f} GiB. Use iter_segments, fewer frames per segment, a smaller `size`, or "
            "start_seconds and end_seconds."
        )


def clip_from_arrays(
    frames: np.ndarray | None = None,
    *,
    frame_rate: float | None = None,
    display_times: Sequence[float] | np.ndarray | None = None,
    end_seconds: float | None = None,
    waveform: np.ndarray | None = None,
    sampling_rate: int = 44100,
    num_frames_per_segment: int = 16,
    segment_seconds: float = 1.0,
    frame_transform: Callable[[np.ndarray], np.ndarray] | None = None,
    name: str = "<arrays>",
) -> VideoClip:
    """Cuts decoded frames and audio into segments by the same rules as a file.

    Args:
        frames (`np.ndarray` of shape `(num_frames, height, width, 3)`, *optional*): uint8 RGB, in display order.
        frame_rate (`float`, *optional*): Frames per second. `frames` need either this or `display_times`.
        display_times (`np.ndarray` of shape `(num_frames,)`, *optional*): Start of each frame in seconds, ascending.
        end_seconds (`float`, *optional*): End of the last frame. The default follows the rule of files: frames at a
            constant rate end one interval after the last frame; fewer than five frames, or frames at a variable rate,
            are displayed until the audio ends.
        waveform (`np.ndarray` of shape `(num_samples,)`, *optional*): Mono in [-1, 1], at `sampling_rate`.
        sampling_rate (`int`): Samples per second of `waveform`.
        num_frames_per_segment (`int`): Number of frames per segment.
        segment_seconds (`float`): Length of one segment.
        frame_transform (`Callable`, *optional*): As for `iter_segments`.
        name (`str`): Name of the clip.

    Returns:
        `VideoClip`: The clip; `has_video` and `has_audio` tell which of the two was passed.

    Raises:
        ValueError: If shapes, types or times do not fit.
    """
    options = ReadOptions(sampling_rate, num_frames_per_segment, segment_seconds)
    if frames is None and waveform is None:
        raise ValueError("Got neither frames nor a waveform. Pass at least one.")
    times, end = _display_times(frames, frame_rate, display_times)
    end = end if end_seconds is None else end_seconds
    samples = np.zeros(0, np.float32) if waveform is None else _checked_waveform(waveform)
    duration = max(end, len(samples) / sampling_rate)
    num_segments = num_segments_for(duration, segment_seconds)
    if end_seconds is None and last_frame_stays(times):
        end = math.inf
    frames = np.zeros((0, 0, 0, 3), np.uint8) if frames is None else np.asarray(frames)
    chosen = [
        select_frames(times, frame_times(index, options.num_frames_per_segment, segment_seconds), end)
        for index in range(num_segments)
    ]
    return VideoClip(
        name=name,
        frames=[_transformed(frames[indices], frame_transform) for indices in chosen],
        frame_times=[times[indices] for indices in chosen],
        waveforms=cut_waveform(samples, num_segments, sampling_rate, segment_seconds),
        sampling_rate=sampling_rate,
        segment_seconds=segment_seconds,
        duration_seconds=duration,
        has_video=len(frames) > 0,
        has_audio=waveform is not None,
    )


def _transformed(frames: np.ndarray, transform: Callable[[np.ndarray], np.ndarray] | None) -> np.ndarray:
    return frames if transform is None or not len(frames) else np.stack([transform(frame) for frame in frames])


def _display_times(
    frames: np.ndarray | None, frame_rate: float | None, display_times: Sequence[float] | np.ndarray | None
) -> tuple[np.ndarray, float]:
    """Returns the start of each frame and the end of the last one."""
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
        raise ValueError(f"Got a waveform of shape {waveform.shape}, expected (num_samples,). Mix it to mono first.")
    if not np.isfinite(waveform).all():
        raise ValueError("Got a waveform with NaN or infinite samples. Repair the recording or leave it out.")
    return waveform
