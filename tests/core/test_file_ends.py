"""Files whose end is missing, in formats that FFmpeg reads to a premature end without a word."""

import io
import logging
from pathlib import Path

import numpy as np
import pytest

from ave_clip.core.file_ends import declared_bytes, ends_within_packet
from ave_clip.core.video_io import read_video

from ..helpers.media import cut_off, write_recording

CODECS = {
    ".ts": ("libx264", "aac"),
    ".mpg": ("mpeg2video", "mp2"),
    ".ogg": (None, "libopus"),
    ".wmv": ("wmv2", "wmav2"),
}


def noise(num_samples: int, _: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, num_samples).astype(np.float32)


@pytest.fixture(scope="module", params=CODECS)
def recording(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ends") / f"clip{request.param}"
    codecs = CODECS[path.suffix]
    return write_recording(path, 4, sound=noise, sampling_rate=48000, audio_bit_rate=192000, codecs=codecs)


@pytest.mark.parametrize("fraction", [0.333, 0.617, 0.999])
def test_a_file_that_ends_early_is_reported(recording, caplog, monkeypatch, fraction):
    monkeypatch.setattr(logging.getLogger("ave_clip"), "propagate", True)
    assert not read_video(recording, sampling_rate=8000).truncated
    assert not caplog.records
    cut = cut_off(recording, fraction)
    if recording.suffix == ".ts":  # after a whole packet nothing shows it
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 188 * 188 + 100])
    assert read_video(cut, sampling_rate=8000).truncated
    assert "is cut off or damaged: it stops at" in caplog.text


def test_what_was_not_to_be_read_is_not_missed(recording):
    assert not read_video(cut_off(recording, 0.6), sampling_rate=8000, end_seconds=1.0).truncated


@pytest.mark.parametrize("length", [188, 192, 204])
def test_packets_of_transport_streams_have_three_sizes(length):
    packet = bytes(4 if length == 192 else 0) + b"\x47" + bytes(187) + bytes(16 if length == 204 else 0)
    assert not ends_within_packet(io.BytesIO(50 * packet), {"mpegts"})
    assert ends_within_packet(io.BytesIO(50 * packet + packet[:90]), {"mpegts"})


def test_what_is_unknown_is_not_reported():
    for name in ("mpegts", "mpeg", "ogg", "mov"):
        for content in (b"", b"OggS", b"\x00\x00\x01", bytes(5000)):
            assert not ends_within_packet(io.BytesIO(content), {name})
    assert declared_bytes(io.BytesIO(bytes(5000)), {"asf"}) is None
    assert declared_bytes(io.BytesIO(bytes(5000)), {"mov"}) is None


def test_a_file_of_which_almost_nothing_can_be_read_is_reported(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ave_clip"), "propagate", True)
    path = write_recording(tmp_path / "clip.mkv", 1.0, sound=None)
    num_skipped = 10 * path.stat().st_size + 50_000
    # An element of Matroska that readers skip: its id, the size in 8 bytes, and the content.
    path.write_bytes(path.read_bytes() + b"\xec\x01" + num_skipped.to_bytes(7, "big") + bytes(num_skipped))
    assert read_video(path, sampling_rate=8000).num_segments == 1
    assert "less than a tenth of its bytes could be read" in caplog.text
