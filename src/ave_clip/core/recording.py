"""The properties that an open container declares: streams, time zero, length and rates. Nothing is decoded."""

from fractions import Fraction
from typing import Any

from transformers.utils import logging

from .audio_mixing import MAX_CHANNELS, take_channel_names
from .file_ends import declared_bytes, ends_within_packet
from .video_source import VideoReadError

logger = logging.get_logger(__name__)

MAX_SIDE_PIXELS = 16384
MAX_FRAME_PIXELS = 64_000_000
MAX_DURATION_SECONDS = 1_000_000.0
MAX_INDEX_BYTES = 2**14  # what may follow the last packet of a flv or wmv file
# Formats that declare a duration. In others it is an estimate from the bit rate, or the last time stamp in the file.
FORMATS_WITH_DURATION = {"mov", "matroska", "avi", "flv", "asf"}


class Recording:
    """An open container: its selected streams, its time zero, and the properties that the file declares.

    Args:
        container (`av.container.InputContainer`): The open file.
        name (`str`): Name of the file in messages.
        audio_track (`int`, *optional*): Audio track to read, counted from 0.
        is_quiet (`bool`): Whether to leave out the warnings about repaired time stamps, for a file that is read again.
        is_live (`bool`): Whether it is still being written: its length and size are not known, whatever it declares.

    Raises:
        VideoReadError: If no stream can be decoded, or the frames exceed the size limits.
    """

    def __init__(
        self,
        container: Any,
        name: str,
        audio_track: int | None = None,
        is_quiet: bool = False,
        is_live: bool = False,
    ):
        self.container = container
        self.is_quiet = is_quiet
        self.is_live = is_live
        self.is_strict = False  # whether a packet that cannot be decoded is a reason to start again
        self.warnings: set[str] = set()  # logged so far
        self.name = name
        self._time_bases: dict[int, tuple[int, int]] = {}
        self.format_names = set(container.format.name.split(","))
        self.video = _best_stream(container, "video")
        self.audio = _best_stream(container, "audio")
        if audio_track is not None:
            tracks = [stream for stream in container.streams.audio if stream.codec_context is not None]
            if audio_track >= len(tracks):
                raise VideoReadError(
                    f"Cannot read audio track {audio_track} of {name}: it has {len(tracks)} audio tracks, counted "
                    "from 0."
                )
            self.audio = tracks[audio_track]
        if self.video is None and self.audio is None:
            found = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
            raise VideoReadError(
                f"Cannot read {name}: it has no video or audio that can be decoded (streams found: {found}). "
                "Convert it with `ffmpeg -i INPUT OUTPUT.mp4`."
            )
        if self.video is not None:
            self.video.codec_context.thread_type = "NONE"
            self.video.codec_context.thread_count = 1
            self.check_size(self.video.codec_context.width, self.video.codec_context.height)
        self.channel_names: tuple[str, ...] = ()
        if self.audio is not None:
            self.channel_names = take_channel_names(self.audio.codec_context)
            if len(self.channel_names) > MAX_CHANNELS:
                raise VideoReadError(
                    f"Cannot read {name}: its audio has {len(self.channel_names)} channels, but at most "
                    f"{MAX_CHANNELS} are read. Choose some of them with `ffmpeg -i INPUT -af pan=... OUTPUT`."
                )
        starts = [start_time(stream) for stream in self.streams if stream.start_time is not None]
        self.time_zero = min(starts, default=Fraction(0))

    @property
    def time_zero(self) -> Fraction:
        """Time stamp in seconds that counts as 0: the earlier start of video and audio."""
        return self._time_zero

    @time_zero.setter
    def time_zero(self, seconds: Fraction) -> None:
        self._time_zero = seconds
        self._factors: dict[int, tuple[int, int, int]] = {}  # of `seconds`, per stream

    @property
    def streams(self) -> list[Any]:
        return [stream for stream in (self.video, self.audio) if stream is not None]

    def warn_once(self, message: str) -> None:
        """Logs a warning unless it was logged for this file before."""
        if message not in self.warnings:
            self.warnings.add(message)
            logger.warning(f"{self.name}: {message}")

    def use_frame_threads(self, video: Any, num_threads: int) -> None:
        """Decodes several frames at once; to be called before anything is decoded.

        With frame threads FFmpeg conceals damage less well and reports it later: `report_damage` belongs to it.
        """
        video.codec_context.thread_type, video.codec_context.thread_count = "FRAME", num_threads

    def report_damage(self, video: Any) -> None:
        """Makes the decoder report whatever it finds wrong; to be called before anything is decoded.

        The reader then starts again, with one thread and without skipping frames.
        """
        video.codec_context.options = {**video.codec_context.options, "err_detect": "explode"}
        self.is_strict = True

    def check_size(self, width: int, height: int) -> None:
        if max(width, height) > MAX_SIDE_PIXELS or width * height > MAX_FRAME_PIXELS:
            raise VideoReadError(
                f"Cannot read {self.name}: its frames are {width}x{height} pixels, but at most {MAX_SIDE_PIXELS} "
                f"per side and {MAX_FRAME_PIXELS / 1e6:.0f} megapixels are read. Scale it down, for example with "
                "`ffmpeg -i INPUT -vf scale=1920:-2 OUTPUT.mp4`."
            )

    def seconds(self, timestamp: int, stream: Any) -> float:
        """Converts a time stamp of a stream to seconds from time zero."""
        # In integers, because this runs several times per packet and fractions are slow. Python rounds the quotient
        # of two integers correctly, so the result is that of the fraction `timestamp * time_base - time_zero`.
        factors = self._factors.get(stream.index)
        if factors is None:
            ticks, per = self.time_base(stream)
            zero, per_zero = self.time_zero.as_integer_ratio()
            factors = self._factors[stream.index] = ticks * per_zero, zero * per, per * per_zero
        return (timestamp * factors[0] - factors[1]) / factors[2]

    def time_base(self, stream: Any) -> tuple[int, int]:
        """Returns numerator and denominator of a stream's time base in seconds."""
        ratio = self._time_bases.get(stream.index)
        if ratio is None:
            ratio = self._time_bases[stream.index] = stream.time_base.as_integer_ratio()
        return ratio

    def stream_end(self, stream: Any) -> float | None:
        """Returns the declared end of a stream in seconds from time zero; `None` if the file does not declare it."""
        if self.is_live:
            return None
        if "avi" in self.format_names and stream.type == "video" and stream.frames and stream.average_rate:
            # FFmpeg reduces an AVI's durations to the length that it finds, but not its number of frames.
            return float(start_time(stream) + stream.frames / stream.average_rate - self.time_zero)
        if "matroska" in self.format_names:  # keeps a stream's last time stamp as a tag
            tag = _parse_clock(stream.metadata.get("DURATION", ""))
            return None if tag is None else tag - float(self.time_zero)
        if stream.duration:
            ticks, per = self.time_base(stream)
            return self.seconds(stream.duration, stream) + (stream.start_time or 0) * ticks / per
        return None

    @property
    def duration_seconds(self) -> float:
        """Declared length of the longer stream from time zero; 0 if the file does not declare it."""
        ends = [end for end in map(self.stream_end, self.streams) if end is not None]
        if len(ends) < len(self.streams) and self.container.duration and not self.is_live:
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
    def stamps_may_jump(self) -> bool:
        """Whether the container's time stamps may start over or jump without damage: mpegts, mpeg, ogg and others."""
        from av.format import Flags

        return bool(self.container.format.flags & Flags.ts_discont.value)

    @property
    def last_declared_stamp(self) -> float | None:
        """Declared time stamp of the file's end in seconds; `None` if the file does not declare it."""
        if self.is_live or not self.container.duration or not self.format_names & FORMATS_WITH_DURATION:
            return None
        start = 0 if "matroska" in self.format_names else max(0, self.container.start_time or 0)
        return (start + self.container.duration) / 1_000_000

    def has_declared_size(self, end_position: int) -> bool:
        """Whether a file contains as many bytes as it declares, and was read to its end: so nothing is missing.

        Args:
            end_position (`int`): Where the last of its packets ends. A damaged size of a packet skips all others.
        """
        size = self.container.size
        return (
            size - end_position <= MAX_INDEX_BYTES
            and declared_bytes(self.container.file.file, self.format_names) == size
        )

    def lacks_its_end(self) -> bool:
        """Whether the bytes of a file show that its end is missing."""
        if self.is_live:  # read forward only
            return False
        declared = declared_bytes(self.container.file.file, self.format_names)
        is_short = "asf" in self.format_names and declared is not None and self.container.size < declared
        return is_short or ends_within_packet(self.container.file.file, self.format_names)

    @property
    def frame_rate(self) -> float:
        """Average frames per second; 0 without video, or if the file does not declare it."""
        # Not FFmpeg's guess, which may be the resolution of the time stamps (2000) or half the rate.
        return 0.0 if self.video is None else float(self.video.average_rate or 0)


def _best_stream(container: Any, kind: str) -> Any | None:
    """Returns the default stream of a kind, else FFmpeg's best decodable one. Cover art does not count as video."""
    from av.stream import Disposition

    cover_art = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [
        stream
        for stream in container.streams
        if stream.type == kind and stream.codec_context is not None and not stream.disposition & cover_art
    ]
    best = container.streams.best(kind)
    ranked = sorted(streams, key=lambda stream: (bool(stream.disposition & Disposition.default), stream is best))
    return ranked[-1] if ranked else None


def start_time(stream: Any) -> Fraction:
    """Returns the declared first time stamp of a stream in seconds; 0 if the file does not declare it."""
    return (stream.start_time or 0) * stream.time_base


def _parse_clock(text: str) -> float | None:
    """Returns the seconds of a text `HH:MM:SS.fraction`; `None` for any other text."""
    parts = text.split(":")
    try:
        return float(parts[0]) * 3600 + float(parts[1]) * 60 + float(parts[2]) if len(parts) == 3 else None
    except ValueError:
        return None
