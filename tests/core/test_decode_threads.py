"""Decoding with several threads: the same segments, errors and warnings as with one, and no thread that stays."""

import gc
import logging
import multiprocessing
import os
import random
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from ave_clip.core import video_io
from ave_clip.core.decode_threads import ThreadCheck, num_conversion_threads, num_decode_threads
from ave_clip.core.video_io import VideoReadError, iter_segments
from ave_clip.core.video_source import reopen_container

from ..helpers.media import write_recording
from .test_damaged_files import mutate

NUM_DAMAGED = 6
SEGMENTS = {"num_frames_per_segment": 5, "sampling_rate": 8000, "segment_seconds": 0.5}


@pytest.fixture(scope="module", params=[".mp4", ".mkv", ".ts", ".webm"])
def clip(request, tmp_path_factory) -> Path:
    codecs = ("mpeg4", "aac") if request.param == ".mkv" else None
    path = tmp_path_factory.mktemp("threads") / f"clip{request.param}"
    return write_recording(path, 2.0, sampling_rate=48000, codecs=codecs)


def read(source, caplog, **options) -> tuple[list, list[str], str | None]:
    """All segments, the warnings, and the error."""
    caplog.clear()
    segments, error = [], None
    try:
        segments.extend(iter_segments(source, **{**SEGMENTS, **options}))
    except VideoReadError as caught:
        error = str(caught)
    return segments, [record.getMessage() for record in caplog.records], error


def assert_same(given: tuple, expected: tuple) -> None:
    assert given[1:] == expected[1:]
    assert len(given[0]) == len(expected[0])
    for segment, other in zip(given[0], expected[0]):
        np.testing.assert_array_equal(segment.frames, other.frames)
        np.testing.assert_array_equal(segment.frame_times, other.frame_times)
        np.testing.assert_array_equal(segment.waveform, other.waveform)


@pytest.mark.parametrize("options", [{}, {"end_seconds": 1.3}, {"start_seconds": 0.7, "size": (24, 40)}])
def test_segments_do_not_depend_on_the_number_of_threads(clip, caplog, monkeypatch, options):
    monkeypatch.setattr(logging.getLogger("ave_clip"), "propagate", True)
    expected = read(clip, caplog, decode_threads=1, **options)
    assert expected[0] and not expected[2]
    for number in (2, 5):
        assert_same(read(clip, caplog, decode_threads=number, **options), expected)


def test_damaged_files_do_not_depend_on_the_number_of_threads(clip, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("ave_clip"), "propagate", True)
    content, rng = clip.read_bytes(), random.Random(clip.suffix)
    for number in range(NUM_DAMAGED):
        damaged, options = mutate(content, rng), {"end_seconds": 1.3} if number % 2 else {}
        expected = read(damaged, caplog, decode_threads=1, **options)
        assert_same(read(damaged, caplog, decode_threads=3, **options), expected)


def test_a_damaged_packet_is_decoded_as_with_one_thread(tmp_path, caplog, monkeypatch):
    """Damage late in the file: the first segments have been given when it is found."""
    monkeypatch.setattr(logging.getLogger("ave_clip"), "propagate", True)
    content = bytearray(write_recording(tmp_path / "clip.ts", 4, sound=None).read_bytes())
    start = int(0.7 * len(content)) // 188 * 188 + 60
    content[start : start + 100] = bytes(100)
    expected = read(bytes(content), caplog, decode_threads=1)
    reopened = []

    def reopen(*given):
        reopened.append(given)
        return reopen_container(*given)

    monkeypatch.setattr(video_io, "reopen_container", reopen)
    assert_same(read(bytes(content), caplog, decode_threads=2), expected)
    assert len(reopened) == 1


def test_only_a_thread_safe_transform_is_called_by_other_threads(clip):
    callers = set()

    def transform(frame):
        callers.add(threading.current_thread().name.split("_")[0])
        return frame[:1, :1]

    list(iter_segments(clip, frame_transform=transform, decode_threads=2))
    assert callers == {threading.current_thread().name}
    transform.is_thread_safe = True
    list(iter_segments(clip, frame_transform=transform, decode_threads=2))
    assert "ave-clip-frames" in callers


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts the threads of the system")
@pytest.mark.parametrize("place", [2, 4])
def test_damage_among_the_last_packets_is_noticed(place, tmp_path, caplog, monkeypatch):
    """PyAV reports no error that comes after the first frame that the threads return at the end."""
    monkeypatch.setattr(logging.getLogger("ave_clip"), "propagate", True)
    path = write_recording(tmp_path / "clip.mkv", 2, sound=None, codecs=("libx264", None))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux() if packet.size]
    content, damaged = path.read_bytes(), bytes(packets[-place])
    position = content.rindex(damaged)
    content = content[: position + 5] + b"\xff" * (len(damaged) - 5) + content[position + len(damaged) :]
    expected = read(content, caplog, decode_threads=1)
    assert_same(read(content, caplog, decode_threads=8), expected)


def test_lost_frames_are_noticed_where_time_stamps_repeat():
    for times, is_lost in (([6, 6], False), ([6], True)):
        check = ThreadCheck()
        for packet in [SimpleNamespace(pts=6, is_discard=False)] * 2:
            assert not check.has_lost_frames(packet, [], 2)
        assert check.has_lost_frames(None, [SimpleNamespace(pts=time) for time in times], 2) is is_lost


@pytest.mark.parametrize("closes", [True, False])
def test_a_reader_that_is_closed_or_dropped_ends_its_threads(clip, closes):
    def num_threads():
        return len(os.listdir("/proc/self/task"))

    gc.collect()
    before = num_threads()
    segments = iter_segments(clip, decode_threads=4)
    next(segments)
    assert num_threads() > before
    if closes:
        segments.close()
    del segments
    for _ in range(100):  # the system takes a moment to remove a thread that has ended
        if num_threads() <= before:
            break
        time.sleep(0.02)
    assert num_threads() <= before


def test_auto_uses_the_cpus_but_one_thread_in_workers_and_few_for_large_frames(monkeypatch):
    monkeypatch.setattr("ave_clip.core.decode_threads._num_cpus", lambda: 12)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert (num_decode_threads("auto", 640, 360), num_conversion_threads("auto")) == (14, 6)
    assert num_decode_threads("auto", 3840, 2160) == 10
    assert num_decode_threads(64, 7680, 4320) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (num_decode_threads("auto", 640, 360), num_conversion_threads("auto")) == (5, 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "12")
    assert num_decode_threads("auto", 640, 360) == 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: object())
    assert num_decode_threads("auto", 640, 360) == 1
    assert (num_decode_threads(2, 640, 360), num_conversion_threads(2)) == (2, 1)


@pytest.mark.parametrize("number", [0, 65, "many", True, None, 2.0])
def test_an_impossible_number_of_threads_is_refused(number):
    with pytest.raises(ValueError, match="decode_threads="):
        iter_segments("clip.mp4", decode_threads=number)
