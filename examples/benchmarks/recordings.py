"""Recordings for the benchmarks: drawn and encoded once, and made longer by repeating their packets."""

import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FRAME_RATE = 25
SAMPLING_RATE = 44100
HEIGHT, WIDTH = 360, 640
SAMPLES_PER_PACKET = 1024
BIT_RATE = 800_000


def scenery(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Returns an image with details of every size, `(height, width, 3)` uint8."""
    rng, picture = np.random.default_rng(seed), np.zeros((height, width, 3))
    for cell in (8, 16, 32, 64):
        coarse = rng.normal(size=(height // cell + 2, width // cell + 2, 3))
        picture += np.sqrt(cell) * coarse.repeat(cell, axis=0).repeat(cell, axis=1)[:height, :width]
    return (128 + 40 * picture / picture.std()).clip(0, 255).astype(np.uint8)


def moving(number: int, background: np.ndarray) -> np.ndarray:
    """Frame of a panning camera: everything moves."""
    return np.roll(background, (number, 3 * number), axis=(0, 1))


def still(number: int, background: np.ndarray) -> np.ndarray:
    """Frame of a static scene."""
    return background


def talking(number: int, background: np.ndarray) -> np.ndarray:
    """Frame of a talking head, which moves slightly in front of a static background."""
    picture = background.copy()
    height, width = background.shape[:2]
    rows, columns = np.ogrid[:height, :width]
    x, y = width / 2 + 4 * np.sin(number / 9), height / 2 + 2 * np.sin(number / 13)
    opening = height * (0.01 + 0.03 * abs(np.sin(number / 3)))
    head = ((columns - x) / (0.14 * width)) ** 2 + ((rows - y) / (0.35 * height)) ** 2 < 1
    mouth = ((columns - x) / (0.05 * width)) ** 2 + ((rows - y - 0.15 * height) / opening) ** 2 < 1
    picture[head], picture[mouth] = (205, 160, 130), (90, 20, 30)
    return picture


SCENES: dict[str, Callable[[int, np.ndarray], np.ndarray]] = {"moving": moving, "talking": talking, "still": still}


def write_recording(
    path: Path, seconds: int = 10, scene: str = "moving", seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> Path:
    """Encodes a recording as H.264 and AAC: frames of a scene, and noise that swells once per second.

    Args:
        path (`Path`): The file.
        seconds (`int`): Its length.
        scene (`str`): A name of `SCENES`.
        seed (`int`): Seed of the scenery and the noise.
        size (`tuple[int, int]`): Height and width. The bit rate grows with the number of pixels.
    """
    background = scenery(seed, *size)
    bit_rate = BIT_RATE * size[0] * size[1] // (HEIGHT * WIDTH)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", FRAME_RATE, options={"preset": "veryfast"})
        (video.height, video.width), video.pix_fmt, video.bit_rate = size, "yuv420p", bit_rate
        audio = container.add_stream("aac", SAMPLING_RATE, layout="mono")
        for number in range(seconds * FRAME_RATE):
            frame = av.VideoFrame.from_ndarray(SCENES[scene](number, background), format="rgb24")
            container.mux(video.encode(frame))
        for frame in _sound(seconds, seed):
            container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def _sound(seconds: int, seed: int):
    time = np.arange(seconds * SAMPLING_RATE) / SAMPLING_RATE
    samples = 0.2 * np.sin(np.pi * time) ** 2 * np.random.default_rng(seed).normal(size=len(time))
    samples = samples.clip(-1, 1).astype(np.float32)
    for start in range(0, len(samples), SAMPLES_PER_PACKET):
        frame = av.AudioFrame.from_ndarray(samples[None, start : start + SAMPLES_PER_PACKET], "flt", "mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLING_RATE, start, Fraction(1, SAMPLING_RATE)
        yield frame


def repeat_recording(source: Path, target: Path, times: int) -> Path:
    """Repeats a recording without encoding it again; all tracks have the same length."""
    with av.open(str(source)) as recording, av.open(str(target), "w") as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in recording.streams}
        latest = dict.fromkeys(streams, -math.inf)
        length = Fraction(round(recording.streams.video[0].duration * recording.streams.video[0].time_base))
        for number in range(times):
            recording.seek(0)
            for packet in recording.demux():
                index, shift = packet.stream.index, round(number * length / packet.time_base)
                if (
                    packet.dts is None
                    or packet.pts * packet.time_base >= length
                    or packet.dts + shift <= latest[index]
                ):
                    continue  # beyond the end, or the encoder's delay at a joint
                packet.dts, packet.pts = packet.dts + shift, packet.pts + shift
                latest[index], packet.stream = packet.dts, streams[index]
                container.mux(packet)
    return target
