"""The decoding under `video_io.py`: an open container to upright pictures and mono sound, both on one time line.

`Recording` knows the streams and time zero, `Demuxer` hands out each stream's packets in order, `VideoTrack` and
`AudioTrack` decode only as far as they are asked to. Packets of the stream that is ahead wait compressed, so badly
interleaved files lose nothing and cost little.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from transformers.utils import logging

from .segments import TIME_TOLERANCE_SECONDS, copy_overlap
from .video_source import VideoReadError

logger = logging.get_logger(__name__)

MAX_SIDE_PIXELS = 16384
MAX_FRAME_PIXELS = 2**28
MAX_DURATION_SECONDS = 1_000_000.0
# A lost packet of the usual codecs leaves a gap of 20 ms or more; rounded time stamps (Matroska, FLV) are off by 1 ms.
AUDIO_JITTER_SECONDS = 0.01
# Codecs need some packets before the sound they decode is right (Opus: 80 ms), so a seek aims this much earlier.
SEEK_MARGIN_SECONDS = 1.0
# A stream that has reached its declared end is waited for this long; any other until so many bytes are waiting.
MAX_WAITING_SECONDS = 10.0
MAX_WAITING_BYTES = 2**30
# Time stamps that go back this far start over: MPEG recordings that were joined end to end.
RESTART_SECONDS = 1.0
# A stream that ends this much before its declared end counts as truncated.
TRUNCATION_TOLERANCE_SECONDS = 0.5
# Formats that declare a duration. In others it is an estimate from the bit rate, or the last time stamp in the file.
FORMATS_WITH_DURATION = {"mov", "matroska", "avi", "flv", "asf"}
# Formats whose seeking lands at a known time. The others are decoded from their beginning.
SEEKABLE_FORMATS = {"mov", "matroska", "flv"}


class Recording:
    """An open container: which streams are read, where time zero is, and what the file declares.

    Args:
        container (`av.container.InputContainer`): The open file.
        name (`str`): What to call it in messages.

    Raises:
        VideoReadError: If no stream can be decoded, or the pictures are absurdly large.
    """

    def __init__(self, container: Any, name: str):
        self.container = container
        self.name = name
        self.format_names = set(container.format.name.split(","))
        self.video = _best_stream(container, "video")
        self.audio = _best_stream(container, "audio")
        if self.video is None and self.audio is None:
            found = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
            raise VideoReadError(
                f"Cannot read {name}: it has no picture or sound that can be decoded (streams found: {found}). "
                "Convert it with `ffmpeg -i INPUT OUTPUT.mp4`."
            )
        if self.video is not None:
            # One thread: more of them gain nothing at these sizes and get in the way of data loader workers.
            self.video.codec_context.thread_type = "NONE"
            self.video.codec_context.thread_count = 1
            self.check_size(self.video.codec_context.width, self.video.codec_context.height)
        starts = [_start_time(stream) for stream in self.streams if stream.start_time is not None]
        self.time_zero = min(starts, default=Fraction(0))

    @property
    def streams(self) -> list[Any]:
        return [stream for stream in (self.video, self.audio) if stream is not None]

    def check_size(self, width: int, height: int) -> None:
        if max(width, height) > MAX_SIDE_PIXELS or width * height > MAX_FRAME_PIXELS:
            raise VideoReadError(
                f"Cannot read {self.name}: its pictures are {width}x{height} pixels, but at most {MAX_SIDE_PIXELS} a "
                f"side and {MAX_FRAME_PIXELS} in total are read. Scale it down first."
            )

    def seconds(self, timestamp: int, time_base: Fraction) -> float:
        """A time stamp in seconds from time zero."""
        return float(timestamp * time_base - self.time_zero)

    def stream_end(self, stream: Any) -> float | None:
        """Where the file declares that a stream ends, in seconds from time zero; `None` if it does not."""
        if "avi" in self.format_names and stream.type == "video" and stream.frames and stream.average_rate:
            # FFmpeg shortens an AVI's durations to what it finds, but not its number of frames.
            return float(_start_time(stream) + stream.frames / stream.average_rate - self.time_zero)
        if "matroska" in self.format_names:  # keeps a stream's last time stamp as a tag
            tag = _parse_clock(stream.metadata.get("DURATION", ""))
            return None if tag is None else tag - float(self.time_zero)
        if stream.duration:
            return self.seconds(stream.duration, stream.time_base) + float(_start_time(stream))
        return None

    @property
    def duration_seconds(self) -> float:
        """Declared length from time zero, of the longer stream; 0 if the file does not say."""
        ends = [end for end in map(self.stream_end, self.streams) if end is not None]
        if len(ends) < len(self.streams) and self.container.duration:
            # Matroska declares the last time stamp rather than the time since the first.
            start = float(self.time_zero) if "matroska" in self.format_names else 0.0
            ends.append(self.container.duration / 1_000_000 - start)
        duration = max(ends, default=0.0)
        if duration > MAX_DURATION_SECONDS:
            raise VideoReadError(
                f"Cannot read {self.name}: it declares {duration:.0f} seconds, but at most {MAX_DURATION_SECONDS:.0f} "
                "are read. It may be damaged; repair it with `ffmpeg -i INPUT -c copy OUTPUT.mp4`."
            )
        return max(0.0, duration)

    @property
    def frame_rate(self) -> float:
        """Average frames per second; 0 without video, or if the file does not say."""
        return 0.0 if self.video is None else float(self.video.average_rate or self.video.guessed_rate or 0)


def _best_stream(container: Any, kind: str) -> Any | None:
    """The default or else FFmpeg's best decodable stream of a kind. Cover art is not a video."""
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [
        stream
        for stream in container.streams
        if stream.type == kind and stream.codec_context is not None and not stream.disposition & pictures
    ]
    best = container.streams.best(kind)
    ranked = sorted(streams, key=lambda stream: (bool(stream.disposition & Disposition.default), stream is best))
    return ranked[-1] if ranked else None


def _start_time(stream: Any) -> Fraction:
    return (stream.start_time or 0) * stream.time_base


def _parse_clock(text: str) -> float | None:
    """Seconds of `HH:MM:SS.fraction`, else `None`."""
    parts = text.split(":")
    try:
        return float(parts[0]) * 3600 + float(parts[1]) * 60 + float(parts[2]) if len(parts) == 3 else None
    except ValueError:
        return None


class Demuxer:
    """Hands out the packets of each stream in order, and decodes them.

    Args:
        recording (`Recording`): The open file.
        streams (`list[av.stream.Stream]`): Those that are read; the others are skipped.
    """

    def __init__(self, recording: Recording, streams: list[Any]):
        self.recording = recording
        self.streams = streams
        self.error: str | None = None
        self.is_cut = False  # whether the file stopped within a packet
        self.num_decoding_errors = 0
        self.num_late_packets = 0
        self._restart()

    def _restart(self) -> None:
        self._packets = self.recording.container.demux(self.streams)
        self._waiting: dict[int, deque] = {stream.index: deque() for stream in self.streams}
        self._waiting_bytes = 0
        self._latest = dict.fromkeys(self._waiting, -math.inf)
        self._epochs = dict.fromkeys(self._waiting, 0)  # how often each stream's time stamps started over
        self._shifts = [Fraction(0)]  # what to add to them in each epoch, in seconds
        self._first_dts: int | None = None  # of the video, and by how much its frames come out later
        self._delay: int | None = None
        self._exhausted = False

    def frames(self, stream: Any) -> Iterator[tuple[float | None, Any]]:
        """Decoded frames of a stream with their times (`None` where the file gives none), in display order."""
        while (packet := self._next_packet(stream)) is not None:
            yield from self._decode(stream, packet)
        yield from self._decode(stream, None)

    def _decode(self, stream: Any, packet: Any | None) -> Iterator[tuple[float | None, Any]]:
        import av

        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            self.count_error(stream, error)
            return
        for frame in frames:
            timestamp = self._timestamp(stream, frame)
            time = None if timestamp is None else self.recording.seconds(timestamp, stream.time_base)
            if time is None or abs(time) <= MAX_DURATION_SECONDS:
                yield time, frame

    def count_error(self, stream: Any, error: Exception) -> None:
        self.num_decoding_errors += 1
        self.error = self.error or f"{stream.type} packet: {getattr(error, 'strerror', None) or error}"

    def _timestamp(self, stream: Any, frame: Any) -> int | None:
        if stream.type == "audio" or "avi" not in self.recording.format_names:
            return frame.pts
        # AVI numbers frames in the order of decoding, so with B-frames their `pts` are wrong. `dts` is the number of
        # the packet that made the decoder put the frame out, which is always equally many packets late.
        if frame.dts is None:
            return None
        if self._delay is None:
            self._delay = frame.dts - (self._first_dts or 0)
        return frame.dts - self._delay

    def _next_packet(self, stream: Any) -> Any | None:
        """The stream's next packet; `None` when there is none, or it is not worth waiting for."""
        queue = self._waiting[stream.index]
        while not queue and not self._exhausted:
            if self._is_over(stream):
                del self._waiting[stream.index]
                return None
            self._demux()
        if not queue:
            return None
        packet = queue.popleft()
        self._waiting_bytes -= packet.size
        return packet

    def _demux(self) -> None:
        """Put the file's next packet into its queue."""
        import av

        try:
            packet = next(self._packets, None)
        except (av.FFmpegError, OSError) as error:
            self.error = getattr(error, "strerror", None) or str(error)
            self.is_cut, packet = True, None
        except IndexError:  # PyAV 18 at the end of a file in which a stream appeared midway
            packet = None
        if packet is None:
            self._exhausted = True
        elif packet.size and packet.stream.index in self._waiting:
            self._keep(packet)
        elif packet.size:
            self.num_late_packets += 1

    def _keep(self, packet: Any) -> None:
        if packet.has_sidedata("encryption_info"):
            raise VideoReadError(
                f"Cannot read {self.recording.name}: it is encrypted (copy protection). Use a copy without protection."
            )
        index = packet.stream.index
        self._continue_time(packet, index)
        # In other formats (mpegts) it may be damaged only.
        self.is_cut |= packet.is_corrupt and bool(self.recording.format_names & FORMATS_WITH_DURATION)
        if self._first_dts is None and packet.stream.type == "video":
            self._first_dts = packet.dts
        self._waiting[index].append(packet)
        self._waiting_bytes += packet.size
        self._latest[index] = max(self._latest[index], self._packet_time(packet))

    def _continue_time(self, packet: Any, index: int) -> None:
        """Where a stream's time stamps start over, let them go on. All streams are shifted by the same time."""
        time = self._packet_time(packet)
        shift = self._shifts[self._epochs[index]]
        if -math.inf < time < self._latest[index] - float(shift) - RESTART_SECONDS:
            self._epochs[index] += 1
            if self._epochs[index] == len(self._shifts):
                self._shifts.append(Fraction(max(self._latest.values()) - time))
            shift = self._shifts[self._epochs[index]]
        if shift:
            ticks = round(shift / packet.stream.time_base)
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.pts = None if packet.pts is None else packet.pts + ticks

    def _packet_time(self, packet: Any) -> float:
        timestamp = packet.dts if packet.dts is not None else packet.pts
        return -math.inf if timestamp is None else self.recording.seconds(timestamp, packet.stream.time_base)

    def _is_over(self, stream: Any) -> bool:
        """Whether a stream without waiting packets is taken to be over although the file goes on.

        Without this, sound that stops after 2 s of a long film would have the whole film wait in memory.
        """
        if self._waiting_bytes > MAX_WAITING_BYTES:
            return True
        end = self.recording.stream_end(stream)
        if len(self._shifts) > 1 or not self.recording.format_names & FORMATS_WITH_DURATION:
            return False  # the declared end is that of the first of several recordings, or an estimate
        if end is None or self._latest[stream.index] < end - TRUNCATION_TOLERANCE_SECONDS:
            return False
        return max(self._latest.values()) > end + MAX_WAITING_SECONDS

    def seek(self, seconds: float) -> None:
        """Go to where decoding must begin so that everything from `seconds` on comes out exactly as without seeking.

        Stays at the beginning where the format cannot seek to a known time.
        """
        target = seconds - SEEK_MARGIN_SECONDS
        if target <= 0 or not self.recording.format_names & SEEKABLE_FORMATS or not self._seek_packets(target):
            return
        if all(self._starts_before(stream, seconds) for stream in self.streams):
            return
        if not self._seek_packets(-SEEK_MARGIN_SECONDS):
            raise VideoReadError(
                f"Cannot go to {seconds} s in {self.recording.name}: its index is damaged. Read it from the beginning "
                "(start_seconds=0), or repair it with `ffmpeg -i INPUT -c copy OUTPUT.mp4`."
            )

    def _seek_packets(self, seconds: float) -> bool:
        """Move all streams to a time or shortly before; `False` if the file refuses, which leaves it where it was."""
        import av

        stream = self.recording.video or self.recording.audio
        timestamp = math.floor((self.recording.time_zero + Fraction(seconds)) / stream.time_base)
        try:
            self.recording.container.seek(timestamp, stream=stream, backward=True)
        except av.FFmpegError:
            return False
        self._restart()
        return True

    def _starts_before(self, stream: Any, seconds: float) -> bool:
        """Whether a stream's packets now begin early enough to decode it from `seconds` on."""
        queue = self._waiting[stream.index]
        while not queue and not self._exhausted and max(self._latest.values()) < seconds + MAX_WAITING_SECONDS:
            self._demux()
        if not queue:
            end = self.recording.stream_end(stream)
            return end is not None and end < seconds
        if stream.type == "video":
            return queue[0].is_keyframe and self._packet_time(queue[0]) <= seconds
        return self._packet_time(queue[0]) <= seconds - SEEK_MARGIN_SECONDS / 2


@dataclass
class _TimedFrame:
    time: float
    frame: Any
    matrix: tuple[int, int, int, int]


class VideoTrack:
    """The pictures of a recording, by the time at which they are on display.

    Args:
        demuxer (`Demuxer`): Where packets come from.
        size (`tuple[int, int]`, *optional*): Height and width of the pictures; the first frame's without it.
    """

    def __init__(self, demuxer: Demuxer, size: tuple[int, int] | None):
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        self.recording = demuxer.recording
        self.stream = self.recording.video
        self.size = None if size is None else tuple(size)
        self.num_decoded = 0
        self._frames = demuxer.frames(self.stream)
        self._interval = 1 / (self.recording.frame_rate or 25)
        self._current: _TimedFrame | None = None
        self._upcoming: _TimedFrame | None = None
        self._finished = False
        self._end = 0.0
        self._rotation: int | None = None
        self._matrix = (1, 0, 0, 1)

    @property
    def known_end(self) -> float:
        """How far, in seconds, the video is known to last by now."""
        return self._end

    def frames_at(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The frame on display at each wanted time, each once: `(F, height, width, 3)` uint8, and their times `(F,)`.

        Times must not go down from call to call.
        """
        shown: list[_TimedFrame] = []
        for time in wanted:
            self.advance(time)
            frame = self._current
            if frame is not None and time < self._end and (not shown or shown[-1] is not frame):
                shown.append(frame)
        pictures = np.empty((len(shown), *(self.size or (0, 0)), 3), np.uint8)
        for picture, timed in zip(pictures, shown):
            picture[:] = self._to_picture(timed)
        return pictures, np.array([timed.time for timed in shown], dtype=np.float64)

    def advance(self, time: float) -> None:
        """Decode until the frame on display at `time` is the current one."""
        if not self.num_decoded and not self._finished:
            self._upcoming = self._decode_next()
        while self._upcoming is not None and self._upcoming.time <= time + TIME_TOLERANCE_SECONDS:
            self._current, self._upcoming = self._upcoming, self._decode_next()

    def _decode_next(self) -> _TimedFrame | None:
        time, frame = next(self._frames, (None, None))
        if frame is None:
            self._finished = True
            return None
        self.num_decoded += 1
        self.recording.check_size(frame.width, frame.height)
        if frame.rotation != self._rotation:
            # Not for every frame: in PyAV 18 a frame whose side data was looked at waits for the garbage collector.
            self._rotation, self._matrix = frame.rotation, display_matrix(frame)
        if self.size is None:
            self.size = displayed_size(frame, self._matrix)
        # A missing or backward time stamp: right after the frame before.
        previous = self._upcoming.time if self._upcoming is not None else -math.inf
        if time is None:
            time = self._end if self.num_decoded > 1 else 0.0
        time = max(time, previous)
        if frame.duration:
            self._interval = float(frame.duration * self.stream.time_base)
        elif previous < time and previous > -math.inf:
            self._interval = time - previous
        self._end = time + self._interval
        return _TimedFrame(time, frame, self._matrix)

    def _to_picture(self, timed: _TimedFrame) -> np.ndarray:
        import av

        height, width = self.size[::-1] if is_transposed(timed.matrix) else self.size
        try:
            # One shared reformatter: each frame's own would set up the scaler anew. One thread, as for decoding.
            rgb = self._reformatter.reformat(timed.frame, width, height, "rgb24", interpolation="BICUBIC", threads=1)
        except (av.FFmpegError, ValueError) as error:
            raise VideoReadError(
                f"Cannot read {self.recording.name}: its pixel format {timed.frame.format.name} cannot be turned into "
                f"RGB ({error}). Convert it with `ffmpeg -i INPUT -pix_fmt yuv420p OUTPUT.mp4`."
            ) from error
        return turn_upright(rgb.to_ndarray(), timed.matrix)


def display_matrix(frame: Any) -> tuple[int, int, int, int]:
    """Signs of the upper left of a frame's display matrix, `(a, b, c, d)`: `x' = a x + c y`, `y' = b x + d y`."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV before 19 stumbles over kinds of side data that are new to it
        return {-90: (0, 1, -1, 0), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1)}.get(frame.rotation, (1, 0, 0, 1))
    if data is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(a) >= abs(b):
        return (-1 if a < 0 else 1), 0, 0, (-1 if d < 0 else 1)
    return 0, (-1 if b < 0 else 1), (-1 if c < 0 else 1), 0


def is_transposed(matrix: tuple[int, int, int, int]) -> bool:
    """Whether a display matrix swaps width and height."""
    return matrix[0] == 0


def displayed_size(frame: Any, matrix: tuple[int, int, int, int]) -> tuple[int, int]:
    """Height and width of a frame once its display matrix is applied."""
    return (frame.width, frame.height) if is_transposed(matrix) else (frame.height, frame.width)


def clockwise_degrees(matrix: tuple[int, int, int, int]) -> int:
    """Rotation of a display matrix: 0, 90, 180 or 270. A mirrored picture is first mirrored left to right."""
    a, b, c, d = matrix
    mirrored = a * d - b * c < 0
    return round(math.degrees(math.atan2(-b, -a) if mirrored else math.atan2(b, a))) % 360


def turn_upright(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """Apply a display matrix to an array `(height, width, 3)`."""
    a, b, c, d = matrix
    if is_transposed(matrix):
        picture = picture.swapaxes(0, 1)
    if a + c < 0:
        picture = picture[:, ::-1]
    if b + d < 0:
        picture = picture[::-1]
    return picture


class AudioTrack:
    """The sound of a recording: mono float32 at one rate, placed by time stamp.

    Args:
        demuxer (`Demuxer`): Where packets come from.
        sampling_rate (`int`): Samples per second that come out.
    """

    def __init__(self, demuxer: Demuxer, sampling_rate: int):
        self.recording = demuxer.recording
        self.sampling_rate = sampling_rate
        self._demuxer = demuxer
        self.num_decoded = 0
        self._frames = demuxer.frames(self.recording.audio)
        self._chunks: deque[tuple[int, np.ndarray]] = deque()  # first sample, samples
        self._resampler: Any = None
        self._format: tuple | None = None
        self._expected = 0.0  # time at which the next frame should start
        self._next_sample = 0  # where the next resampled sample goes
        self._finished = False

    @property
    def known_end(self) -> float:
        """How far, in seconds, the sound is known to last by now."""
        return self._next_sample / self.sampling_rate if self.num_decoded else 0.0

    def samples(self, start: int, length: int) -> np.ndarray:
        """Samples `[start, start + length)` from time zero, zero where there is none; earlier ones are forgotten."""
        while not self._finished and self._next_sample < start + length:
            self._decode_next()
        out = np.zeros(length, np.float32)
        for chunk_start, chunk in self._chunks:
            copy_overlap(out, start, chunk, chunk_start)
        while self._chunks and self._chunks[0][0] + len(self._chunks[0][1]) <= start + length:
            self._chunks.popleft()
        return out

    def _decode_next(self) -> None:
        import av

        time, frame = next(self._frames, (None, None))
        if frame is None:
            self._finished = True
            self._flush()
            return
        self.num_decoded += 1
        time = self._expected if time is None else time
        frame_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if frame_format != self._format or abs(time - self._expected) > AUDIO_JITTER_SECONDS:
            self._begin_run(time, frame_format)
        frame.pts = None
        try:
            self._append(self._resampler.resample(frame))
            self._expected += frame.samples / frame.sample_rate
        except (av.FFmpegError, ValueError, ZeroDivisionError) as error:  # a damaged packet gave an impossible format
            self._demuxer.count_error(self.recording.audio, error)
            self._resampler = self._format = None

    def _begin_run(self, time: float, frame_format: tuple) -> None:
        """Start a stretch of gapless sound at `time`; what lies between two stretches stays silent."""
        from av import AudioResampler

        self._flush()
        # By default FFmpeg adds channels of float samples with weights that sum to more than 1 (stereo: 1.41).
        self._resampler = AudioResampler("flt", "mono", self.sampling_rate, options={"rematrix_maxval": "1"})
        self._format = frame_format
        self._expected = time
        self._next_sample = round(time * self.sampling_rate)

    def _flush(self) -> None:
        if self._resampler is not None:
            self._append(self._resampler.resample(None))
            self._resampler = None

    def _append(self, resampled: list[Any]) -> None:
        for frame in resampled:
            samples = np.clip(frame.to_ndarray()[0], -1.0, 1.0)
            self._chunks.append((self._next_sample, samples))
            self._next_sample += len(samples)
