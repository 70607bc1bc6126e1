"""Rewrites a video frame by frame, with drawings on it, as an mp4 file (H.264, yuv420p) that browsers play.

Frames are streamed and keep their times, so variable frame rates are preserved. A frame that is displayed for a long
time is encoded several times if something is drawn on it, and the last frame is repeated until the audio ends. Audio
is copied if browsers play its codec in an mp4, else encoded to AAC. Frames are written upright, with even width and
height, and HDR as SDR.
"""

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np
from av.video.reformatter import Colorspace, VideoReformatter
from transformers.utils import logging

from ..core.audio_decoding import AudioTrack
from ..core.orientation import display_matrix, displayed_size, is_transposed, turn_upright
from ..core.segments import last_frame_stays
from ..core.tone_mapping import BT709_PRIMARIES, is_hdr, tone_map
from ..core.video_decoding import MAX_TIMES, UNSPECIFIED_MATRIX, Demuxer, Recording
from ..core.video_source import VideoReadError, open_container, source_name
from ..files import atomic_file

logger = logging.get_logger(__name__)

# Audio codecs that browsers play in an mp4 file, and containers whose packets can be copied without repair.
COPIED_CODECS = {"aac", "mp3", "mp3float", "opus", "libopus"}
COPIED_FORMATS = {"mov", "matroska", "flv"}
# Layouts of more than two channels that FFmpeg mixes to stereo from all their channels, except low frequencies (LFE).
FFMPEG_LAYOUTS = {"5.0", "5.0(side)", "5.1", "5.1(side)", "7.0", "7.1"}
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
TIME_BASE = Fraction(1, 90000)
FRAME_SAMPLES = 1024  # of AAC
# Audio is written this much ahead of the video.
LEAD_SECONDS = 0.5
# A frame that stays for longer is encoded again at every step.
MAX_STILL_SECONDS = 1.0
STILL_STEP_SECONDS = 0.2
# FFmpeg's numbers (AVCOL_RANGE_*, AVCOL_SPC_*, AVCOL_TRC_*).
TV_RANGE, FULL_RANGE = 1, 2
BT709_MATRIX = BT709_TRANSFER = 1

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
    is_quiet: bool = False,
) -> None:
    """Writes a video to an mp4 file, atomically.

    Args:
        source (`str` or `os.PathLike`): Path or http(s) URL. It is opened twice, for video and audio.
        output (`str` or `os.PathLike`): The mp4 file; an existing file is replaced.
        draw (`Callable`, *optional*): Called for each frame with its planes, writable uint8 arrays of shape
            `(height, width)` for Y and half of that for U and V, and the frame's time in seconds.
        size (`tuple[int, int]`, *optional*): Even height and width of the frames. Default: [`even_size`].
        progress (`Callable`, *optional*): Called with the time of each frame.
        sound_bit_rate (`int`, *optional*): Encode the audio to AAC of this bit rate instead of copying it.
        encoder_options (`dict`, *optional*): Options of libx264, in addition to `preset` and `crf`.
        is_quiet (`bool`): Whether to leave out the warnings about repaired time stamps.

    Raises:
        VideoReadError: If `source` cannot be read or has no video.
        OSError: If `output` cannot be written.
    """
    with contextlib.ExitStack() as stack:
        container = stack.enter_context(open_container(source))
        recording = Recording(container, source_name(source), is_quiet=is_quiet)
        if recording.video is None:
            raise VideoReadError(
                f"Cannot draw on {recording.name}: it has no video stream. Pass a video, not an audio file."
            )
        part = stack.enter_context(atomic_file(output))
        target = stack.enter_context(av.open(str(part), "w", format="mp4", options={"movflags": "faststart"}))
        frames = _FrameWriter(target, recording, recording.video, size, encoder_options or {})
        audio: Iterator[tuple[float, Any]] = iter(())
        if recording.audio is not None:
            # Quiet, because the reader of the frames gives the same warnings.
            second = Recording(stack.enter_context(open_container(source)), recording.name, is_quiet=True)
            audio = _audio_packets(target, second, second.audio, sound_bit_rate)
        _interleave(target, frames, audio, draw, progress)


def even_size(height: int, width: int, longest: int | None = None) -> tuple[int, int]:
    """Returns height and width for H.264: even, no side above `longest`, and with the same aspect ratio.

    >>> even_size(361, 641), even_size(2160, 3840, longest=1920)
    ((360, 640), (1080, 1920))
    """
    scale = 1.0 if longest is None else min(1.0, longest / max(height, width))
    height, width = (max(2, int(side * scale + 0.01) // 2 * 2) for side in (height, width))
    return height, width


def _interleave(
    target: Any,
    frames: "_FrameWriter",
    audio: Iterator[tuple[float, Any]],
    draw: Callable[[Planes, float], None] | None,
    progress: Callable[[float], None] | None,
) -> None:
    """Writes video and audio packets in order of time."""
    waiting = next(audio, None)
    for time, packet in frames.packets(draw, progress):
        while waiting is not None and waiting[0] <= time + LEAD_SECONDS:
            target.mux(waiting[1])
            waiting = next(audio, None)
        target.mux(packet)
    end = 0.0
    while waiting is not None:
        time, packet = waiting
        end = time + float((packet.duration or 0) * packet.time_base)
        target.mux([*frames.repeat_last(end, draw, progress), packet])
        waiting = next(audio, None)
    target.mux([*frames.repeat_last(end, draw, progress, is_end=True), *frames.finish()])


class _FrameWriter:
    """Decodes, rotates, resizes and encodes the frames of a recording.

    The encoder's stream is created in `__init__` from the first frame, because all streams must exist before the first
    packet is written.
    """

    def __init__(
        self, target: Any, recording: Recording, video: Any, size: tuple[int, int] | None, options: dict[str, str]
    ):
        self.recording, self.video = recording, video
        self._reformatter = VideoReformatter()
        frames = Demuxer(recording, [video]).frames(video)
        first = next(frames, None)
        if first is None:
            raise VideoReadError(
                f"Cannot draw on {recording.name}: none of its frames could be decoded. Check that a player shows it."
            )
        self._frames = chain([first], frames)
        frame = first[1]
        self._rotation, self._matrix = frame.rotation, display_matrix(frame)
        self.size = size or even_size(*displayed_size(frame, self._matrix))
        self.stream = self._add_stream(target, options, frame.color_trc)
        self._times: deque[float] = deque(maxlen=MAX_TIMES)
        self._last: Any = None  # frame
        self._end = 0.0  # when it disappears
        self._stays: bool | None = None  # whether it is on display beyond that

    def _add_stream(self, target: Any, options: dict[str, str], transfer: int) -> Any:
        source = self.video.codec_context
        rate = self.video.average_rate or 25
        options = {"preset": "veryfast", "crf": "23", **options}
        stream = target.add_stream("libx264", rate=Fraction(rate).limit_denominator(60000), options=options)
        context = stream.codec_context
        context.height, context.width = self.size
        context.pix_fmt, context.time_base = "yuv420p", TIME_BASE
        context.color_range = TV_RANGE
        if is_hdr(transfer):  # `_convert` writes its frames as SDR
            colours = BT709_MATRIX, BT709_PRIMARIES, BT709_TRANSFER
        else:
            colours = source.colorspace, source.color_primaries, source.color_trc
        context.colorspace, context.color_primaries, context.color_trc = colours
        ratio = source.sample_aspect_ratio
        if ratio:
            context.sample_aspect_ratio = 1 / ratio if is_transposed(self._matrix) else ratio
        return stream

    def packets(
        self, draw: Callable[[Planes, float], None] | None, progress: Callable[[float], None] | None
    ) -> Iterator[tuple[float, Any]]:
        """Yields encoded packets, each with the time of the frame read last. `finish` returns the last packets."""
        frames = self._timed_frames()
        following = next(frames, None)
        while following is not None:
            (time, duration, frame), following = following, next(frames, None)
            self._times.append(time)
            self._last = frame
            end = time + duration if following is None else following[0]
            # The drawing changes while a frame is displayed for a long time, so the frame is encoded several times.
            is_still = draw is not None and end - time > MAX_STILL_SECONDS
            while is_still and end - time > STILL_STEP_SECONDS:
                for packet in self._encode(frame, time, STILL_STEP_SECONDS, draw, progress):
                    yield time, packet
                time, duration = time + STILL_STEP_SECONDS, end - time - STILL_STEP_SECONDS
            for packet in self._encode(frame, time, duration, draw, progress):
                yield time, packet
            self._end = time + duration

    def repeat_last(
        self,
        end: float,
        draw: Callable[[Planes, float], None] | None,
        progress: Callable[[float], None] | None,
        is_end: bool = False,
    ) -> Iterator[Any]:
        """Yields encoded packets of the last frame up to `end`, if players would display it until the audio ends."""
        if self._stays is None:
            self._stays = last_frame_stays(np.array(self._times))
        while self._stays and (end - self._end >= STILL_STEP_SECONDS or (is_end and end > self._end)):
            duration = min(STILL_STEP_SECONDS, end - self._end)
            yield from self._encode(self._last, self._end, duration, draw, progress)
            self._end += duration

    def finish(self) -> list[Any]:
        """Returns the packets that are left in the encoder."""
        return self.stream.encode(None)

    def _encode(
        self,
        frame: Any,
        time: float,
        duration: float,
        draw: Callable[[Planes, float], None] | None,
        progress: Callable[[float], None] | None,
    ) -> list[Any]:
        frame = self._upright(frame, draw is not None)
        if draw is not None:
            draw(_planes(frame), time)
        frame.pts, frame.time_base = round(time / TIME_BASE), TIME_BASE
        frame.duration = max(1, round(duration / TIME_BASE))
        packets = self.stream.encode(frame)
        if progress is not None:
            progress(time + duration)
        return packets

    def _timed_frames(self) -> Iterator[tuple[float, float, Any]]:
        """Yields each frame with its time, strictly ascending, and its duration."""
        end = previous = -float(TIME_BASE)
        interval = 1 / (self.recording.frame_rate or 25)
        for time, frame in self._frames:
            time = max(end if time is None else time, previous + float(TIME_BASE), 0.0)
            duration = float(frame.duration * self.video.time_base) if frame.duration else interval
            end, previous = time + duration, time
            yield time, duration, frame

    def _upright(self, frame: Any, writable: bool) -> Any:
        """Returns the upright frame in the encoder's format and size; a copy if it will be drawn on."""
        self.recording.check_size(frame.width, frame.height)
        if frame.rotation != self._rotation:  # reading the side data of every frame would keep frames alive
            self._rotation, self._matrix = frame.rotation, display_matrix(frame)
        height, width = self.size[::-1] if is_transposed(self._matrix) else self.size
        is_ready = frame.format.name == "yuv420p" and (frame.height, frame.width) == (height, width)
        if not is_ready or frame.color_range == FULL_RANGE or is_hdr(frame.color_trc):
            frame = self._convert(frame, height, width)
        elif not writable and self._matrix == (1, 0, 0, 1):
            frame.pict_type = 0  # lets the encoder choose the frame type
            return frame
        upright = av.VideoFrame(self.size[1], self.size[0], "yuv420p")
        for plane, target in zip(_planes(frame), _planes(upright)):
            target[:] = turn_upright(plane, self._matrix)
        return upright

    def _convert(self, frame: Any, height: int, width: int) -> Any:
        """Resizes a frame to 8-bit yuv420p. HDR is mapped to SDR as for the model."""
        options = {"dst_color_range": TV_RANGE}
        if is_hdr(frame.color_trc):
            image = self._reformat(frame, height, width, "rgb48le").to_ndarray()
            sdr = tone_map(image, frame.color_trc, frame.color_primaries)
            frame = av.VideoFrame.from_ndarray(sdr, "rgb24")
            options["dst_colorspace"] = Colorspace.ITU709
        return self._reformat(frame, height, width, "yuv420p", **options)

    def _reformat(self, frame: Any, height: int, width: int, pixel_format: str, **options: Any) -> Any:
        options |= {"interpolation": "BICUBIC", "threads": 1}
        try:
            return self._reformatter.reformat(frame, width, height, pixel_format, **options)
        except (av.FFmpegError, ValueError) as error:
            if frame.colorspace != UNSPECIFIED_MATRIX:  # as the reader does for matrices such as YCgCo and ICtCp
                frame.colorspace = UNSPECIFIED_MATRIX
                return self._reformat(frame, height, width, pixel_format, **options)
            raise VideoReadError(
                f"Cannot draw on {self.recording.name}: its pixel format {frame.format.name} cannot be converted "
                f"({error}). Convert it with `ffmpeg -i INPUT -pix_fmt yuv420p OUTPUT.mp4`."
            ) from error


def _planes(frame: Any) -> Planes:
    """Returns the planes of a frame as arrays that share its memory."""
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size]
        planes.append(rows.reshape(plane.height, plane.line_size)[:, : plane.width])
    return planes


def _audio_packets(target: Any, recording: Recording, audio: Any, bit_rate: int | None) -> Iterator[tuple[float, Any]]:
    """Returns the audio packets for `target`, each with its time. Adds the stream at once, before the first packet."""
    source = audio.codec_context
    is_mixed_by_ffmpeg = source.channels <= 2 or source.layout.name in FFMPEG_LAYOUTS
    is_playable = source.name in COPIED_CODECS and recording.format_names & COPIED_FORMATS and is_mixed_by_ffmpeg
    if bit_rate is None and is_playable:
        return _copied(target.add_stream_from_template(audio), recording, audio)
    rate = source.sample_rate if source.sample_rate in AAC_RATES else 48000
    is_stereo = is_mixed_by_ffmpeg and source.channels > 1
    stream = target.add_stream("aac", rate=rate, layout="stereo" if is_stereo else "mono")
    stream.codec_context.bit_rate = bit_rate or 64000 * stream.codec_context.channels
    return (_encoded if is_mixed_by_ffmpeg else _encoded_mono)(stream, recording, audio)


def _copied(stream: Any, recording: Recording, audio: Any) -> Iterator[tuple[float, Any]]:
    demuxer, next_dts = Demuxer(recording, [audio]), None
    shift = round(recording.time_zero / audio.time_base)
    while (packet := demuxer.next_packet(audio)) is not None:
        # The repair of time stamps removes wrong ones; the packet then follows the previous one. In mp4, dts must
        # increase.
        wanted = next_dts or 0 if packet.dts is None else packet.dts - shift
        dts = wanted if next_dts is None else max(next_dts, wanted)
        packet.pts = dts if packet.pts is None else max(dts, packet.pts - shift)
        packet.dts, next_dts = dts, dts + max(1, packet.duration or 0)
        packet.stream = stream
        yield float(dts * audio.time_base), packet
    if demuxer.is_cut:
        logger.warning(f"The audio of {recording.name} could not be read to its end: {demuxer.error}.")


def _encoded(stream: Any, recording: Recording, audio: Any) -> Iterator[tuple[float, Any]]:
    from av import AudioResampler

    rate, time = stream.codec_context.sample_rate, 0.0
    resampler, audio_format = None, None
    for start, frame in Demuxer(recording, [audio]).frames(audio):
        time = time if start is None else start
        found = (frame.format.name, frame.layout.name, frame.sample_rate)
        if resampler is None or found != audio_format:  # also in the middle of a recording
            yield from _flushed(stream, resampler, time)
            resampler, audio_format = AudioResampler("fltp", stream.layout, rate, frame_size=FRAME_SAMPLES), found
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


def _encoded_mono(stream: Any, recording: Recording, audio: Any) -> Iterator[tuple[float, Any]]:
    """Encodes the model's mono mix, for channel layouts that FFmpeg cannot mix to stereo."""
    rate, start = stream.codec_context.sample_rate, 0
    track = AudioTrack(Demuxer(recording, [audio]), rate)
    while (samples := track.samples(start, FRAME_SAMPLES)) is not None and start < round(track.known_end * rate):
        frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        for packet in stream.encode(frame):
            yield start / rate, packet
        start += FRAME_SAMPLES
    for packet in stream.encode(None):
        yield start / rate, packet
