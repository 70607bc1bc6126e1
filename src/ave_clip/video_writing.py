"""A video written again, frame by frame, with something drawn on it: mp4 (H.264, yuv420p) that browsers play.

Streaming: one frame in, one frame out, each at its own time, so variable frame rates stay what they are. The sound is
copied where mp4 players take its codec, else encoded to AAC. Pictures come out upright and of even width and height.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
from transformers.utils import logging

from .files import atomic_file
from .video_decoding import Demuxer, Recording, display_matrix, displayed_size, is_transposed, turn_upright
from .video_source import VideoReadError, open_container, source_name

logger = logging.get_logger(__name__)

# What browsers play inside an mp4, from containers whose packets need no repair.
COPIED_CODECS = {"aac", "mp3", "mp3float", "opus", "libopus"}
COPIED_FORMATS = {"mov", "matroska", "flv"}
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
TIME_BASE = Fraction(1, 90000)
# The sound is written this much ahead of the picture.
LEAD_SECONDS = 0.5
TV_RANGE, FULL_RANGE = 1, 2

Planes = list[np.ndarray]


def rewrite_video(
    source: Any,
    output: str | os.PathLike,
    *,
    draw: Callable[[Planes, float], None] | None = None,
    size: tuple[int, int] | None = None,
    progress: Callable[[float], None] | None = None,
    sound_bit_rate: int | None = None,
    encoder_options: dict[str, str] | None = None,
) -> None:
    """Write a video to an mp4 file, which appears only when it is whole.

    Args:
        source (`str` or `os.PathLike`): Path or http(s) URL. It is opened twice, for picture and sound.
        output (`str` or `os.PathLike`): The mp4 file; one that exists is replaced.
        draw (`Callable`, *optional*): Called for each frame with its planes, writable uint8 arrays of shape
            `(height, width)` for Y and half of that for U and V, and the time in seconds at which it appears.
        size (`tuple[int, int]`, *optional*): Even height and width of the pictures; [`even_size`] by default.
        progress (`Callable`, *optional*): Called with the time of each frame.
        sound_bit_rate (`int`, *optional*): Encode the sound to AAC of so many bits a second rather than copy it.
        encoder_options (`dict`, *optional*): Of libx264, over `preset` and `crf`.

    Raises:
        VideoReadError: If `source` cannot be read or has no picture.
        OSError: If `output` cannot be written.
    """
    import av

    with contextlib.ExitStack() as stack:
        pictures = Recording(stack.enter_context(open_container(source)), source_name(source))
        if pictures.video is None:
            raise VideoReadError(f"Cannot draw on {pictures.name}: it has no picture. Pass a video, not a sound file.")
        part = stack.enter_context(atomic_file(output))
        target = stack.enter_context(av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}))
        picture = _PictureWriter(target, pictures, size, encoder_options or {})
        sound: Iterator[tuple[float, Any]] = iter(())
        if pictures.audio is not None:
            sounds = Recording(stack.enter_context(open_container(source)), pictures.name)
            sound = _sound_packets(target, sounds, sound_bit_rate)
        _interleave(target, picture.packets(draw, progress), sound)


def even_size(height: int, width: int, longest: int | None = None) -> tuple[int, int]:
    """Height and width as H.264 needs them, even, and no side above `longest`; the shape is kept.

    >>> even_size(361, 641), even_size(2160, 3840, longest=1920)
    ((360, 640), (1080, 1920))
    """
    scale = 1.0 if longest is None else min(1.0, longest / max(height, width))
    return tuple(max(2, int(side * scale + 0.01) // 2 * 2) for side in (height, width))


def _interleave(target: Any, pictures: Iterator[tuple[float, Any]], sound: Iterator[tuple[float, Any]]) -> None:
    """Write both kinds of packets in order of time."""
    waiting = next(sound, None)
    for time, packet in pictures:
        while waiting is not None and waiting[0] <= time + LEAD_SECONDS:
            target.mux(waiting[1])
            waiting = next(sound, None)
        target.mux(packet)
    while waiting is not None:
        target.mux(waiting[1])
        waiting = next(sound, None)


class _PictureWriter:
    """Decodes, turns, resizes and encodes the pictures of a recording.

    The encoder's stream is made at once, as all streams must be before the first packet, from the first frame.
    """

    def __init__(self, target: Any, recording: Recording, size: tuple[int, int] | None, options: dict[str, str]):
        from av.video.reformatter import VideoReformatter

        self.recording = recording
        self._reformatter = VideoReformatter()
        self._frames = Demuxer(recording, [recording.video]).frames(recording.video)
        self._first = next(self._frames, None)
        if self._first is None:
            raise VideoReadError(
                f"Cannot draw on {recording.name}: none of its pictures could be decoded. "
                "Check that a player shows it."
            )
        frame = self._first[1]
        self._rotation, self._matrix = frame.rotation, display_matrix(frame)
        self.size = size or even_size(*displayed_size(frame, self._matrix))
        self.stream = self._add_stream(target, options)

    def _add_stream(self, target: Any, options: dict[str, str]) -> Any:
        source = self.recording.video.codec_context
        rate = self.recording.video.average_rate or self.recording.video.guessed_rate or 25
        options = {"preset": "veryfast", "crf": "23", **options}
        stream = target.add_stream("libx264", rate=Fraction(rate).limit_denominator(60000), options=options)
        context = stream.codec_context
        context.height, context.width = self.size
        context.pix_fmt, context.time_base = "yuv420p", TIME_BASE
        context.color_range = TV_RANGE
        context.colorspace, context.color_primaries = source.colorspace, source.color_primaries
        context.color_trc = source.color_trc
        ratio = source.sample_aspect_ratio
        if ratio:
            context.sample_aspect_ratio = 1 / ratio if is_transposed(self._matrix) else ratio
        return stream

    def packets(
        self, draw: Callable[[Planes, float], None] | None, progress: Callable[[float], None] | None
    ) -> Iterator[tuple[float, Any]]:
        """Encoded packets, each with the time of the frame read last."""
        time = 0.0
        for time, duration, frame in self._timed_frames():
            frame = self._upright(frame, draw is not None)
            if draw is not None:
                draw(_planes(frame), time)
            frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
            frame.duration = max(1, round(duration / TIME_BASE))
            for packet in self.stream.encode(frame):
                yield time, packet
            if progress is not None:
                progress(time + duration)
        for packet in self.stream.encode(None):
            yield time, packet

    def _timed_frames(self) -> Iterator[tuple[float, float, Any]]:
        """Each frame with its time, strictly ascending, and its duration."""
        end = previous = -float(TIME_BASE)
        interval = 1 / (self.recording.frame_rate or 25)
        frames = self._frames
        for time, frame in self._with_first(frames):
            time = max(end if time is None else time, previous + float(TIME_BASE), 0.0)
            duration = float(frame.duration * self.recording.video.time_base) if frame.duration else interval
            end, previous = time + duration, time
            yield time, duration, frame

    def _with_first(self, frames: Iterator[tuple[float | None, Any]]) -> Iterator[tuple[float | None, Any]]:
        first, self._first = self._first, None
        yield first
        yield from frames

    def _upright(self, frame: Any, writable: bool) -> Any:
        """The frame as displayed, in the encoder's format and size; a copy if it is to be drawn on."""
        import av

        self.recording.check_size(frame.width, frame.height)
        if frame.rotation != self._rotation:  # looked at for each frame, side data would keep frames alive
            self._rotation, self._matrix = frame.rotation, display_matrix(frame)
        height, width = self.size[::-1] if is_transposed(self._matrix) else self.size
        is_ready = frame.format.name == "yuv420p" and (frame.height, frame.width) == (height, width)
        if not is_ready or frame.color_range == FULL_RANGE:
            frame = self._convert(frame, height, width)
        elif not writable and self._matrix == (1, 0, 0, 1):
            frame.pict_type = 0  # the encoder's choice, not the decoder's
            return frame
        upright = av.VideoFrame(self.size[1], self.size[0], "yuv420p")
        for plane, target in zip(_planes(frame), _planes(upright)):
            target[:] = turn_upright(plane, self._matrix)
        return upright

    def _convert(self, frame: Any, height: int, width: int) -> Any:
        import av

        try:
            return self._reformatter.reformat(
                frame, width, height, "yuv420p", interpolation="BICUBIC", dst_color_range=TV_RANGE, threads=1
            )
        except (av.FFmpegError, ValueError) as error:
            raise VideoReadError(
                f"Cannot draw on {self.recording.name}: its pixel format {frame.format.name} cannot be converted "
                f"({error}). Convert it with `ffmpeg -i INPUT -pix_fmt yuv420p OUTPUT.mp4`."
            ) from error


def _planes(frame: Any) -> Planes:
    """The planes of a frame as arrays that share its memory."""
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size]
        planes.append(rows.reshape(plane.height, plane.line_size)[:, : plane.width])
    return planes


def _sound_packets(target: Any, recording: Recording, bit_rate: int | None) -> Iterator[tuple[float, Any]]:
    """Packets of the sound for `target`, each with its time. Its stream is made at once."""
    codec = recording.audio.codec_context.name
    if bit_rate is None and codec in COPIED_CODECS and recording.format_names & COPIED_FORMATS:
        return _copied(target.add_stream_from_template(recording.audio), recording)
    return _encoded(_add_aac(target, recording, bit_rate), recording)


def _copied(stream: Any, recording: Recording) -> Iterator[tuple[float, Any]]:
    import av

    shift = round(recording.time_zero / recording.audio.time_base)
    try:
        for packet in recording.container.demux(recording.audio):
            if packet.dts is None or not packet.size:
                continue
            packet.dts -= shift
            packet.pts = packet.dts if packet.pts is None else packet.pts - shift
            time = float(packet.dts * packet.time_base)
            packet.stream = stream
            yield time, packet
    except (av.FFmpegError, OSError) as error:
        logger.warning(f"The sound of {recording.name} could not be read to its end: {error}.")


def _add_aac(target: Any, recording: Recording, bit_rate: int | None) -> Any:
    source = recording.audio.codec_context
    rate = source.sample_rate if source.sample_rate in AAC_RATES else 48000
    stream = target.add_stream("aac", rate=rate, layout="mono" if source.channels == 1 else "stereo")
    stream.codec_context.bit_rate = bit_rate or 64000 * stream.codec_context.channels
    return stream


def _encoded(stream: Any, recording: Recording) -> Iterator[tuple[float, Any]]:
    from av import AudioResampler

    rate, time = stream.codec_context.sample_rate, 0.0
    resampler, sound_format = None, None
    for start, frame in Demuxer(recording, [recording.audio]).frames(recording.audio):
        time = time if start is None else start
        found = (frame.format.name, frame.layout.name, frame.sample_rate)
        if found != sound_format:  # also in the middle of a recording
            yield from _flushed(stream, resampler, time)
            resampler, sound_format = AudioResampler("fltp", stream.layout, rate, frame_size=1024), found
        frame.pts, frame.time_base = round(time * frame.sample_rate), Fraction(1, frame.sample_rate)
        time += frame.samples / frame.sample_rate
        for resampled in resampler.resample(frame):
            for packet in stream.encode(resampled):
                yield time, packet
    yield from _flushed(stream, resampler, time)
    for packet in stream.encode(None):
        yield time, packet


def _flushed(stream: Any, resampler: Any, time: float) -> Iterator[tuple[float, Any]]:
    for resampled in resampler.resample(None) if resampler is not None else ():
        for packet in stream.encode(resampled):
            yield time, packet
