"""Mutated recordings: they are read, or refused with `VideoReadError`; a wrong length comes with a warning."""

import logging
import random
from pathlib import Path

import pytest

from ave_clip.core.video_io import VideoReadError, read_video

from ..helpers.media import write_recording

SECONDS = 2.0
NUM_FILES_PER_FORMAT = 10


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One kind of damage: flipped bits, a damaged header, bytes cut out, repeated, zeroed or overwritten."""
    data = bytearray(content)
    kind = rng.choice(["flip", "head", "cut", "repeat", "zero", "number"])
    start, length = rng.randrange(len(data)), rng.choice([1, 188, 1000, 5000])
    if kind == "flip":
        for _ in range(rng.choice([1, 2, 10, 100])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "head":
        for _ in range(rng.choice([1, 5, 20])):
            data[rng.randrange(min(2000, len(data)))] = rng.randrange(256)
    elif kind == "cut":
        del data[start : start + length]
    elif kind == "repeat":
        data[start:start] = data[start : start + length]
    elif kind == "zero":
        data[start : start + length] = bytes(len(data[start : start + length]))
    else:
        for _ in range(3):
            position = rng.randrange(len(data) - 4)
            data[position : position + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", rng.randbytes(4)])
    return bytes(data)


@pytest.fixture(scope="module", params=[".mp4", ".mkv", ".ts", ".avi", ".flv", ".webm"])
def recording(request, tmp_path_factory) -> Path:
    codecs = {".mkv": ("mpeg4", "aac"), ".flv": ("libx264", "aac")}.get(request.param)
    path = tmp_path_factory.mktemp("damaged") / f"clip{request.param}"
    return write_recording(path, SECONDS, sampling_rate=48000, codecs=codecs)


def test_damaged_files_are_read_or_refused(recording, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ave_clip"), "propagate", True)
    content, rng = recording.read_bytes(), random.Random(recording.suffix)
    num_read = 0
    for number in range(NUM_FILES_PER_FORMAT):
        caplog.clear()
        try:
            video = read_video(mutate(content, rng), sampling_rate=8000, num_frames_per_segment=2, size=(24, 40))
        except VideoReadError as error:
            assert str(error).startswith("Cannot read <bytes>"), number
            continue
        num_read += 1
        assert caplog.records or video.duration_seconds == pytest.approx(SECONDS, abs=0.6), number
        assert video.num_segments == len(video.waveforms) < 1000, number
    assert num_read  # not all are refused
