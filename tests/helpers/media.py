"""Small real recordings for the tests, encoded with PyAV. Every frame shows its own number, sound clicks on demand.

```python
write_recording(tmp_path / "clip.mp4", seconds=3)                        # h264 + aac
write_recording(tmp_path / "clip.webm", seconds=3)                       # vp9 + opus
write_recording(tmp_path / "silent.mp4", seconds=3, sound=None)
write_recording(tmp_path / "late.mp4", video_start=0.5)                  # the picture starts half a second late
[frame_number(picture) for picture in frames]                            # which frames came back
```
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NUM_BITS = 10
CODECS = {
    ".mp4": ("libx264", "aac"),
    ".mov": ("libx264", "aac"),
    ".m4a": (None, "aac"),
    ".webm": ("libvpx-vp9", "libopus"),
    ".mkv": ("libx264", "pcm_s16le"),
    ".ts": ("libx264", "aac"),
    ".avi": ("mpeg4", "pcm_s16le"),
    ".wav": (None, "pcm_s16le"),
    ".mp3": (None, "libmp3lame"),
    ".flac": (None, "flac"),
    ".ogg": (None, "libopus"),
}
CODEC_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "18", "bf": "2", "g": "25"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20", "g": "25"},
}


def numbered_picture(number: int, height: int = 48, width: int = 80) -> np.ndarray:
    """A picture whose vertical stripes, left to right, are the bits of `number`, lowest first."""
    bits = (number >> np.arange(NUM_BITS)) & 1
    columns = np.repeat(np.where(bits, 235, 20), width // NUM_BITS).astype(np.uint8)
    return np.broadcast_to(columns[None, :, None], (height, len(columns), 3)).copy()


def frame_number(picture: np.ndarray) -> int:
    """The number that `numbered_picture` drew, whatever the codec did to it."""
    width = picture.shape[1] // NUM_BITS
    stripes = picture.astype(float).mean(axis=(0, 2)).reshape(NUM_BITS, width).mean(axis=1)
    return int((1 << np.arange(NUM_BITS))[stripes > 128].sum())


def corner_picture(_: int, height: int = 48, width: int = 80) -> np.ndarray:
    """Red at the top left, green at the top right, blue at the bottom left, white at the bottom right."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[: height // 2, : width // 2, 0] = 255
    picture[: height // 2, width // 2 :, 1] = 255
    picture[height // 2 :, : width // 2, 2] = 255
    picture[height // 2 :, width // 2 :] = 255
    return picture


def sine(num_samples: int, rate: int, frequency: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    """A steady tone."""
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(num_samples) / rate)).astype(np.float32)


def clicks(times: Sequence[float]) -> Callable[[int, int], np.ndarray]:
    """Sound that is silent but for a 4 ms burst of 3 kHz from each of the times on."""

    def make(num_samples: int, rate: int) -> np.ndarray:
        waveform = np.zeros(num_samples, np.float32)
        burst = 0.8 * np.sin(2 * np.pi * 3000 * np.arange(round(0.004 * rate)) / rate)
        for time in times:
            start = round(time * rate)
            waveform[start : start + len(burst)] = burst[: num_samples - start]
        return waveform

    return make


def click_times(waveform: np.ndarray, rate: int) -> list[float]:
    """Onsets of the bursts of `clicks`, in seconds, by matching the burst's shape."""
    burst = np.sin(2 * np.pi * 3000 * np.arange(round(0.004 * rate)) / rate)
    match = np.abs(np.correlate(waveform, burst, mode="valid"))
    times = []
    while match.max() > 0.3 * 0.8 * len(burst) / 2:
        peak = int(match.argmax())
        times.append(peak / rate)
        match[max(0, peak - rate // 50) : peak + rate // 50] = 0
    return sorted(times)


def write_recording(
    path: Path,
    seconds: float = 2.0,
    *,
    frame_rate: int = 25,
    frame_times: Sequence[float] | None = None,
    picture: Callable[[int], np.ndarray] | None = numbered_picture,
    sound: Callable[[int, int], np.ndarray] | None = sine,
    sound_seconds: float | None = None,
    sampling_rate: int | None = None,
    layout: str = "mono",
    video_start: float = 0.0,
    audio_start: float = 0.0,
    rotation: int = 0,
    codecs: tuple[str | None, str | None] | None = None,
    audio_bit_rate: int | None = None,
    options: dict[str, str] | None = None,
    interleaved: bool = True,
    drop: Callable[[str, float], bool] | None = None,
) -> Path:
    """Encode a recording; the suffix of `path` chooses container and codecs.

    Args:
        path: Where to write. `seconds` is the length of picture and sound, `sound_seconds` that of the sound if other.
        frame_times: When each frame appears (variable frame rate), instead of `frame_rate`.
        picture: Draws frame `i`, or `None` for no video track.
        sound: Makes `(num_samples, rate)` samples, or `None` for no sound track; each channel gets the same, unless it
            returns `(channels, num_samples)`.
        rotation: Degrees clockwise to turn the picture for display, written as metadata only.
        audio_bit_rate: Bits per second of the audio; the encoder's default if not given.
        options: Of the container, such as `{"movflags": "faststart"}`.
        interleaved: `False` writes all the picture before all the sound.
        drop: Told the kind and time of each packet, says whether to leave it out.

    Returns:
        `path`.
    """
    video_codec, audio_codec = codecs or CODECS[path.suffix]
    with av.open(str(path), "w", options=options or {}) as container:
        streams = []
        if video_codec is not None and picture is not None:
            times = np.arange(round(seconds * frame_rate)) / frame_rate if frame_times is None else frame_times
            streams.append(_video_packets(container, video_codec, picture, np.add(times, video_start), rotation))
        if audio_codec is not None and sound is not None:
            rate = sampling_rate or (48000 if audio_codec == "libopus" else 44100)
            samples = np.atleast_2d(sound(round((sound_seconds or seconds) * rate), rate))
            streams.append(_audio_packets(container, audio_codec, samples, rate, layout, audio_start, audio_bit_rate))
        packets = [packet for stream in streams for packet in stream()]
        if interleaved:
            packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            if drop is None or not drop(packet.stream.type, float(packet.pts * packet.time_base)):
                container.mux(packet)
    return path


def _video_packets(container, codec, picture, times, rotation) -> Callable:
    first = picture(0)
    stream = container.add_stream(codec, rate=25, options=CODEC_OPTIONS.get(codec, {}))
    stream.height, stream.width, stream.pix_fmt = first.shape[0], first.shape[1], "yuv420p"
    base = Fraction(1, 25 if container.format.name in ("avi", "mpeg") else 1000)  # these take frame rates only
    stream.codec_context.time_base = stream.time_base = base
    if rotation:
        stream.set_display_rotation(-rotation)

    def packets():
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = round(time / frame.time_base)
            yield from stream.encode(frame)
        yield from stream.encode(None)

    return packets


def _audio_packets(container, codec, samples, rate, layout, start, bit_rate=None) -> Callable:
    stream = container.add_stream(codec, rate=rate)
    if bit_rate is not None:
        stream.bit_rate = bit_rate
    stream.layout = layout
    num_channels = len(stream.layout.channels)
    samples = np.broadcast_to(samples, (num_channels, samples.shape[1])).astype(np.float32)

    def packets():
        # Packed: PyAV 18 reads past the end of a list of 8 and more planes.
        packed = np.ascontiguousarray(samples.T).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(start * rate)
        resampler = av.AudioResampler(stream.format, stream.layout, rate, frame_size=stream.frame_size or 1024)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            yield from stream.encode(part)
        yield from stream.encode(None)

    return packets


def cut_off(path: Path, fraction: float) -> Path:
    """A copy of a file that ends after a fraction of its bytes."""
    content = path.read_bytes()
    copy = path.with_name(f"cut_{path.name}")
    copy.write_bytes(content[: int(len(content) * fraction)])
    return copy


def add_cover_art(path: Path) -> Path:
    """A copy of an mp3 with a picture attached to it."""
    codec = av.CodecContext.create("png", "w")
    codec.width, codec.height, codec.pix_fmt, codec.time_base = 32, 32, "rgb24", Fraction(1, 25)
    image = b"".join(
        bytes(packet)
        for frame in (av.VideoFrame.from_ndarray(np.full((32, 32, 3), 200, np.uint8)), None)
        for packet in codec.encode(frame)
    )
    body = b"\x00image/png\x00\x03\x00" + image
    frame = b"APIC" + len(body).to_bytes(4, "big") + b"\x00\x00" + body
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    copy = path.with_name(f"cover_{path.name}")
    copy.write_bytes(b"ID3\x03\x00\x00" + size + frame + path.read_bytes())
    return copy
