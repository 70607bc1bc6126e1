"""Decodes an open container to upright frames with common time stamps. Used by `video_io.py`.

`Demuxer` returns each stream's packets in order; `VideoTrack`, and `AudioTrack` of `audio_decoding.py`, decode only as
far as requested. Packets of the stream that is ahead are queued compressed, so badly interleaved files are read
completely with little memory.
"""

import heapq
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from .decode_threads import (
    BYTES_PER_HDR_PIXEL,
    BYTES_PER_IMAGE_PIXEL,
    ConversionThreads,
    SegmentImages,
    ThreadCheck,
)
from .frame_skipping import FrameSkipper, SkippedFrame, nal_format
from .orientation import display_matrix, displayed_size, is_transposed, turn_upright
from .recording import FORMATS_WITH_DURATION, MAX_DURATION_SECONDS, Recording, start_time
from .segments import TIME_TOLERANCE_SECONDS, last_frame_stays
from .time_stamps import JUMP_SECONDS, TimeStamps
from .tone_mapping import is_hdr, tone_map
from .video_source import VideoReadError

UNSPECIFIED_MATRIX = 2  # FFmpeg's AVCOL_SPC_UNSPECIFIED
# After a seek, codecs need some packets until the decoded audio is correct (Opus: 80 ms), so a seek aims this much
# earlier.
SEEK_MARGIN_SECONDS = 1.0
# How long the reader waits for more packets of a stream that has reached its declared end, and how many bytes of other
# streams it queues while waiting for any other stream.
MAX_WAITING_SECONDS = 10.0
MAX_WAITING_BYTES = 2**30
# Maximum number of warnings about repairs per file. One more warning counts the remaining repairs.
MAX_REPAIR_WARNINGS = 10
# Number of last frames from which a constant frame rate is recognised.
MAX_TIMES = 10_000
# A stream that ends this much before its declared end counts as truncated.
TRUNCATION_TOLERANCE_SECONDS = 0.5
# A file is damaged if a smaller fraction of its bytes is in packets: most of it was skipped.
MIN_PACKET_FRACTION = 0.1
MIN_DAMAGED_BYTES = 50_000  # most of a smaller file may be headers
# Formats whose seeking lands at a known time. The others are decoded from their beginning.
SEEKABLE_FORMATS = {"mov", "matroska", "flv"}


class Demuxer:
    """Returns the packets of each stream in order, and decodes them.

    Args:
        recording (`Recording`): The open file.
        streams (`list[av.stream.Stream]`): The streams to read; the others are skipped.
    """

    def __init__(self, recording: Recording, streams: list[Any]):
        self.recording = recording
        self.streams = streams
        self.error: str | None = None
        self.is_cut = False  # whether the file stopped within a packet
        self.num_decoding_errors = 0
        self._has_video_error = False
        self._skipper: FrameSkipper | None = None
        self.has_skipped_wrongly = False  # whether a frame is missing that had to be decoded
        self._thread_check = ThreadCheck()
        self.num_late_packets = 0
        self.end_position = 0  # in the file, of its last packet; 0 if not known
        # Streams in which FFmpeg would decode headers as frames where ogg files are joined.
        self._theora = {stream.index for stream in recording.streams if stream.codec_context.name == "theora"}
        self._declares_duration = bool(recording.format_names & FORMATS_WITH_DURATION)
        self._declared_ends: dict[int, float | None] = {}
        self._num_bytes = 0  # of the packets
        self._repairs: set[str] = set()
        self._restart()
        self._check_time_zero()

    def _restart(self) -> None:
        # All streams, including skipped ones: a comparison with them shows whether a time stamp is damaged.
        self._packets = self.recording.container.demux(self.recording.streams)
        self._stamps = TimeStamps(
            self._read,
            self.recording.streams,
            warn=self._warn_of_repair,
            may_jump=self.recording.stamps_may_jump,
            declared_end=self.recording.last_declared_stamp,
        )
        self._waiting: dict[int, deque] = {stream.index: deque() for stream in self.streams}
        self._waiting_bytes = 0
        self._latest = dict.fromkeys(self._waiting, -math.inf)
        self._first_dts: int | None = None  # of the video, and by how much its frames come out later
        self._delay: int | None = None
        self._number: int | None = None  # of the last frame, and the packets' of late (AVI)
        self._numbers: deque[int] = deque(maxlen=64)
        self._exhausted = False

    def _check_time_zero(self) -> None:
        """Corrects time zero if FFmpeg took it from a damaged time stamp."""
        recording, starts = self.recording, []
        repaired = self._stamps.start_times()
        for stream in recording.streams:
            declared, first = start_time(stream), repaired.get(stream.index)
            is_damaged = first is not None and abs(first - float(declared)) > JUMP_SECONDS
            if is_damaged or stream.start_time is not None:
                starts.append(Fraction(first) if is_damaged else declared)
        recording.time_zero = min(starts, default=Fraction(0))

    def _warn_of_repair(self, repair: str) -> None:
        if repair not in self._repairs:  # the first packets are repaired again after a seek
            self._repairs.add(repair)
            if len(self._repairs) <= MAX_REPAIR_WARNINGS and not self.recording.is_quiet:
                self.recording.warn_once(repair)

    def may_depend_on_speed(self, is_read_to_end: bool) -> bool:
        """Whether decoding all frames with one thread could have given something else so far.

        Frame threads read further ahead, and skipped frames are missed where others are damaged.

        Args:
            is_read_to_end (`bool`): Whether the whole file is wanted, with its last packet, wherever it is cut off.
        """
        is_unlike = self._has_video_error or self.has_skipped_wrongly or self.num_late_packets > 0
        return is_unlike or (self.is_cut and not is_read_to_end)

    def skip_frames(self, video: Any, next_wanted: Callable[[float], float]) -> bool:
        """Leaves out frames that are neither wanted nor needed to decode others; to be called before any is decoded.

        Args:
            video (`av.video.stream.VideoStream`): The stream.
            next_wanted (`Callable`): As for `FrameSkipper`.

        Returns:
            `bool`: Whether this is possible: for H.264 and HEVC, in containers with a time stamp per frame.
        """
        units = nal_format(video)
        if units is None or not self.recording.format_names & SEEKABLE_FORMATS:
            return False
        self._skipper = FrameSkipper(units, next_wanted, video.codec_context.reorder_depth)
        return True

    def close(self) -> None:
        """Frees what keeps the decoder, and so its threads, alive."""
        del self._stamps, self._packets

    @property
    def num_repairs(self) -> int:
        """Number of damaged time stamps and jumps repaired so far."""
        return len(self._repairs)

    def frames(self, stream: Any) -> Iterator[tuple[float | None, Any]]:
        """Yields the frames of a stream in display order, with their times (`None` if the file has none).

        Frames are decoded, or `SkippedFrame` after `skip_frames`.
        """
        skipper = self._skipper if stream.type == "video" else None
        skipped: list[SkippedFrame] = []  # a heap
        while (packet := self.next_packet(stream)) is not None:
            if skipper is not None and packet.pts is not None and not self._repairs:
                time = self.recording.seconds(packet.pts, stream)
                if skipper.can_skip(packet, time):
                    heapq.heappush(skipped, SkippedFrame(time, packet.duration or 0))
                    continue
            yield from self._in_order(self._decode(stream, packet), skipped)
        yield from self._in_order(self._decode(stream, None), skipped)
        yield from ((frame.time, frame) for frame in sorted(skipped))

    @staticmethod
    def _in_order(
        decoded: list[tuple[float | None, Any]], skipped: list[SkippedFrame]
    ) -> Iterator[tuple[float | None, Any]]:
        """Yields decoded frames, and before each of them the skipped ones with an earlier time, which it removes."""
        for time, frame in decoded:
            while skipped and time is not None and skipped[0].time < time:
                earlier = heapq.heappop(skipped)
                yield earlier.time, earlier
            yield time, frame

    def _decode(self, stream: Any, packet: Any | None) -> list[tuple[float | None, Any]]:
        import av

        if packet is not None and packet.dts is not None and stream.type == "video":
            self._numbers.append(packet.dts)
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            self.count_error(stream, error)
            return []
        timed = []
        for frame in frames:
            timestamp = self._timestamp(stream, frame)
            time = None if timestamp is None else self.recording.seconds(timestamp, stream)
            if time is None or abs(time) <= MAX_DURATION_SECONDS:
                timed.append((time, frame))
        if self.recording.is_strict and stream.type == "video":
            context = stream.codec_context
            self._has_video_error |= any(frame.is_corrupt for frame in frames)
            self._has_video_error |= self._thread_check.has_lost_frames(packet, frames, context.thread_count)
            if self._skipper is not None:
                self.has_skipped_wrongly |= self._skipper.is_wrong(timed, context.reorder_depth)
        return timed

    def count_error(self, stream: Any, error: Exception) -> None:
        self.num_decoding_errors += 1
        self._has_video_error |= stream.type == "video"
        self.error = self.error or f"{stream.type} packet: {getattr(error, 'strerror', None) or error}"

    def _timestamp(self, stream: Any, frame: Any) -> int | None:
        if stream.type == "audio" or "avi" not in self.recording.format_names:
            return frame.pts
        # AVI numbers frames in the order of decoding, so with B-frames their `pts` are wrong. `dts` is the number of
        # the packet after which the decoder returned the frame, late by a constant number of packets. The last frames
        # are returned after all packets: they get the remaining numbers, which need not be consecutive.
        if frame.dts is None:
            left = (number for number in self._numbers if self._number is None or number > self._number)
            self._number = next(left, None)
            return self._number
        if self._delay is None:
            self._delay = frame.dts - (self._first_dts or 0)
        self._number = frame.dts - self._delay
        return self._number

    def next_packet(self, stream: Any) -> Any | None:
        """Returns the stream's next packet; `None` if there is none, or if the stream is considered over."""
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
        """Puts the file's next packet into its queue."""
        packet = self._stamps.next_packet()
        if packet is None:
            self._exhausted = True
        elif packet.stream_index in self._waiting:
            self._keep(packet)
        elif packet.stream in self.streams:
            self.num_late_packets += 1

    def _read(self) -> Any | None:
        """Returns the file's next packet with content; `None` at its end, or if it cannot be read any further."""
        import av

        try:
            while (packet := next(self._packets, None)) is not None:
                self._num_bytes += packet.size
                self.end_position = max(self.end_position, (packet.pos or 0) + packet.size)
                if packet.size and not (packet.stream_index in self._theora and memoryview(packet)[0] & 0x80):
                    return packet
        except (av.FFmpegError, OSError) as error:
            self.error = getattr(error, "strerror", None) or str(error)
            self.is_cut = True
        except IndexError:  # PyAV 18 at the end of a file in which a stream appeared midway
            pass
        return None

    @property
    def has_skipped_most(self) -> bool:
        """Whether the whole file was read, but almost none of its bytes were in packets of its streams."""
        if self.recording.is_live:  # of unknown size
            return False
        recording, size = self.recording, self.recording.container.size
        is_whole = self._exhausted and len(recording.container.streams) == len(recording.streams)
        if recording.format_names & {"mpegts", "mpeg"}:  # these may contain mostly padding
            return False
        return is_whole and size > MIN_DAMAGED_BYTES and self._num_bytes < MIN_PACKET_FRACTION * size

    def _keep(self, packet: Any) -> None:
        if packet.has_sidedata("encryption_info"):
            raise VideoReadError(
                f"Cannot read {self.recording.name}: it is encrypted (copy protection). Use a copy without protection."
            )
        index = packet.stream_index
        # In other formats (mpegts) such a packet may only be damaged.
        self.is_cut |= packet.is_corrupt and self._declares_duration
        if self._first_dts is None and packet.stream.type == "video":
            self._first_dts = packet.dts
        self._waiting[index].append(packet)
        self._waiting_bytes += packet.size
        self._latest[index] = max(self._latest[index], self._packet_time(packet))

    def _packet_time(self, packet: Any) -> float:
        timestamp = packet.dts if packet.dts is not None else packet.pts
        return -math.inf if timestamp is None else self.recording.seconds(timestamp, packet.stream)

    def _is_over(self, stream: Any) -> bool:
        """Whether a stream without queued packets is considered over although the file continues.

        Otherwise, if the audio of a long film stops after 2 s, the whole film would be queued in memory.
        """
        if not self._waiting_bytes:
            return False
        if self._waiting_bytes > MAX_WAITING_BYTES:
            return True
        if self.recording.is_live:
            return self._is_silent(stream)
        if self.num_repairs or not self._declares_duration:
            return False  # the declared end is wrong, an estimate, or the end of the first of several recordings
        if stream.index not in self._declared_ends:
            self._declared_ends[stream.index] = self.recording.stream_end(stream)
        end = self._declared_ends[stream.index]
        if end is None or self._latest[stream.index] < end - TRUNCATION_TOLERANCE_SECONDS:
            return False
        return max(self._latest.values()) > end + MAX_WAITING_SECONDS

    def _is_silent(self, stream: Any) -> bool:
        """Whether a stream of a live recording has had no packets for so long that the other one must not wait."""
        others = [latest for index, latest in self._latest.items() if index != stream.index]
        latest = max(self._latest[stream.index], 0.0)
        if max(others, default=0.0) <= latest + MAX_WAITING_SECONDS:
            return False
        self.recording.warn_once(
            f"its {stream.type} has sent nothing since {latest:.1f} s, for {MAX_WAITING_SECONDS:g} seconds of the "
            "other track, and is considered over. Later packets of it are left out."
        )
        return True

    def seek(self, seconds: float) -> None:
        """Seeks to a position from which everything after `seconds` is decoded exactly as without seeking.

        Stays at the beginning if the format cannot seek to a known time.
        """
        target = seconds - SEEK_MARGIN_SECONDS
        if target <= 0 or not self.recording.format_names & SEEKABLE_FORMATS or not self._seek_packets(target):
            return
        if all(self._starts_before(stream, seconds) for stream in self.streams):
            return
        if not self._seek_packets(-SEEK_MARGIN_SECONDS):
            raise VideoReadError(
                f"Cannot seek to {seconds} s in {self.recording.name}: its index is damaged. Read it from the "
                "beginning (start_seconds=0), or repair it with `ffmpeg -i INPUT -c copy OUTPUT.mp4`."
            )

    def _seek_packets(self, seconds: float) -> bool:
        """Moves all streams to a time or shortly before; `False`, at an unchanged position, if this fails."""
        import av

        stream = self.recording.streams[0]
        timestamp = math.floor((self.recording.time_zero + Fraction(seconds)) / stream.time_base)
        try:
            self.recording.container.seek(timestamp, stream=stream, backward=True)
        except av.FFmpegError:
            return False
        self._restart()
        return True

    def _starts_before(self, stream: Any, seconds: float) -> bool:
        """Whether a stream's packets begin early enough to decode it from `seconds` on."""
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


def _place_first(frames: Iterator[tuple[float | None, Any]], interval: float) -> Iterator[tuple[float | None, Any]]:
    """Yields frames with their times. A first one without a time gets that of one frame before the second.

    FFmpeg gives the first frame of an RTSP stream no time. If the stream was entered between two key frames, its audio
    begins up to seconds earlier.
    """
    for time, frame in frames:
        second = next(frames, None) if time is None else None
        if second is not None and second[0] is not None:
            time = max(0.0, second[0] - interval)
        yield time, frame
        if second is not None:
            yield second
        break
    yield from frames


class VideoTrack:
    """Frames of a recording, by the time at which they are displayed.

    Args:
        demuxer (`Demuxer`): Source of the packets.
        size (`tuple[int, int]`, *optional*): Height and width of the images. Default: those of the first frame.
        transform (`Callable`, *optional*): Called with each wanted image, `(height, width, 3)` uint8; its result is
            kept instead. A transform that shrinks the image bounds memory: only few images at a time have full size.
        threads (`ConversionThreads`, *optional*): Where frames are converted. Default: in the calling thread.
    """

    def __init__(
        self,
        demuxer: Demuxer,
        size: tuple[int, int] | None,
        transform: Callable[[np.ndarray], np.ndarray] | None = None,
        threads: ConversionThreads | None = None,
    ):
        self._reformatters = threading.local()  # a scaler can be used by one thread at a time
        self.recording = demuxer.recording
        self.stream: Any = self.recording.video
        self._transform = transform
        self._threads = threads
        self._has_odd_matrix = False
        self._known_kinds: set[tuple] = set()  # of frames that were converted
        self.size = None if size is None else tuple(size)
        self.num_decoded = 0
        self._demuxer = demuxer
        self._interval = 1 / (self.recording.frame_rate or 25)
        self._frames = _place_first(demuxer.frames(self.stream), self._interval)
        self._current: _TimedFrame | None = None
        self._upcoming: _TimedFrame | None = None
        self._finished = False
        self._end = 0.0
        self._position = 0.0  # of the last frame, also where its time stamp goes back
        self._single: tuple[_TimedFrame, np.ndarray] | None = (
            None  # frame and image of the last segment with one image
        )
        self._stays = False  # whether the last frame is displayed beyond its end
        self._times: deque[float] = deque(maxlen=MAX_TIMES)  # of the last frames
        self._rotation: int | None = None
        self._matrix = (1, 0, 0, 1)

    @property
    def known_end(self) -> float:
        """End of the video in seconds, as far as known."""
        return self._end

    def frames_at(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the frames displayed at the wanted times, each once: uint8 `(F, height, width, 3)` and times `(F,)`.

        Times must not decrease from call to call.
        """
        converted, times, shown = SegmentImages(len(wanted), self._to_image, self._transform, self._threads), [], None
        for time in wanted:
            self.advance(time)
            if self._current is None or self._current is shown or (time >= self._end and not self._stays):
                continue
            shown = self._current
            if isinstance(shown.frame, SkippedFrame):  # the frame that was to replace it is missing
                self._demuxer.has_skipped_wrongly = True
                continue
            # Converted at once: stored decoded frames would need as much memory as full-size images.
            frame = shown.frame
            kind = frame.format.name, frame.colorspace, frame.color_range, frame.color_trc, frame.width, frame.height
            pixel_bytes = BYTES_PER_HDR_PIXEL if is_hdr(frame.color_trc) else BYTES_PER_IMAGE_PIXEL
            # The first of its kind in this thread: its warnings and errors then come at their place.
            converted.add(shown, pixel_bytes * frame.width * frame.height, at_once=kind not in self._known_kinds)
            self._known_kinds.add(kind)
            times.append(shown.time)
        images = converted.result()
        if images is None:
            return np.empty((0, *(self.size or (0, 0)), 3), np.uint8), np.zeros(0)
        if len(times) == 1 and shown is not None:  # during a pause of hours the same image is stored only once
            if self._single is None or self._single[0] is not shown:
                self._single = shown, images[:1].copy()
            return self._single[1], np.array(times, dtype=np.float64)
        return images, np.array(times, dtype=np.float64)

    def advance(self, time: float) -> None:
        """Decodes until the frame displayed at `time` is the current one."""
        if not self.num_decoded and not self._finished:
            self._upcoming = self._decode_next()
        while self._upcoming is not None and self._upcoming.time <= time + TIME_TOLERANCE_SECONDS:
            self._current, self._upcoming = self._upcoming, self._decode_next()

    def _decode_next(self) -> _TimedFrame | None:
        time, frame = next(self._frames, (None, None))
        if frame is None:
            self._finished = True
            self._stays = self.num_decoded > 0 and last_frame_stays(np.array(self._times))
            return None
        self.num_decoded += 1
        if not isinstance(frame, SkippedFrame):
            self._check_geometry(frame)
        # A frame without a time stamp, or one that goes back, follows the previous frame. Its own duration is used if
        # it has one, because the duration of the previous frame may include a jump that was removed.
        previous = self._upcoming.time if self._upcoming is not None else -math.inf
        ticks, per = self.recording.time_base(self.stream)
        duration = frame.duration * ticks / per if frame.duration else 0.0
        if time is not None and time > previous:
            self._position = time
        else:
            self._position = self._position + (duration or self._interval) if self.num_decoded > 1 else 0.0
            # Displayed at once if it goes back: the next frame may be in time, and would be late otherwise.
            time = self._position if time is None else previous
        if duration:
            self._interval = duration
        elif previous < time and previous > -math.inf:
            self._interval = time - previous
        self._end = self._position + self._interval
        self._times.append(time)
        return _TimedFrame(time, frame, self._matrix)

    def _check_geometry(self, frame: Any) -> None:
        self.recording.check_size(frame.width, frame.height)
        if frame.rotation != self._rotation:
            # Not for every frame: in PyAV 18 a frame whose side data was read is freed only by the garbage collector.
            self._rotation, self._matrix = frame.rotation, display_matrix(frame)
        if self.size is None:
            self.size = displayed_size(frame, self._matrix)

    def _to_image(self, timed: _TimedFrame) -> np.ndarray:
        assert self.size is not None  # the first frame has set it
        height, width = self.size[::-1] if is_transposed(timed.matrix) else self.size
        transfer, primaries = timed.frame.color_trc, timed.frame.color_primaries
        image = self._to_rgb(timed.frame, width, height, "rgb48le" if is_hdr(transfer) else "rgb24")
        image = tone_map(image, transfer, primaries) if is_hdr(transfer) else image
        return turn_upright(image, timed.matrix)

    def _to_rgb(self, frame: Any, width: int, height: int, pixel_format: str) -> np.ndarray:
        import av
        from av.video.reformatter import VideoReformatter

        # One reformatter per thread: a frame's own reformatter would set up the scaler each time.
        if not hasattr(self._reformatters, "own"):
            self._reformatters.own = VideoReformatter()
        options = {"interpolation": "BICUBIC", "threads": 1}
        try:
            return self._reformatters.own.reformat(frame, width, height, pixel_format, **options).to_ndarray()
        except (av.FFmpegError, ValueError) as error:
            if (
                frame.colorspace != UNSPECIFIED_MATRIX
            ):  # swscale does not support matrices such as YCgCo, ICtCp and BT.2020-CL
                if not self._has_odd_matrix:
                    self._has_odd_matrix = True
                    self.recording.warn_once(
                        f"FFmpeg cannot convert its colour matrix (number {frame.colorspace} of ITU-T H.273), so the "
                        "usual one is used and colours are not exact."
                    )
                frame.colorspace = UNSPECIFIED_MATRIX
                return self._to_rgb(frame, width, height, pixel_format)
            raise VideoReadError(
                f"Cannot read {self.recording.name}: its pixel format {frame.format.name} cannot be converted to "
                f"RGB ({error}). Convert it with `ffmpeg -i INPUT -pix_fmt yuv420p OUTPUT.mp4`."
            ) from error
