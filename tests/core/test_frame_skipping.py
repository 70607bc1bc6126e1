"""Frames that are not decoded: the segments are those of a reader that decodes all of them."""

from types import SimpleNamespace

import av
import numpy as np
import pytest

from ave_clip.core import video_decoding, video_io
from ave_clip.core.frame_skipping import FrameSkipper, nal_format
from ave_clip.core.video_io import iter_segments
from ave_clip.core.video_source import reopen_container

from ..helpers import media
from ..helpers.media import write_recording

OPTIONS = {"num_frames_per_segment": 2, "sampling_rate": 8000, "decode_threads": 2}
ENCODERS = {
    "pyramid.mp4": ("libx264", {"x264-params": "bframes=6:b-adapt=0:keyint=40"}),
    "no pyramid.mkv": ("libx264", {"x264-params": "bframes=3:b-pyramid=none:slices=3:nal-hrd=vbr:vbv-maxrate=500"}),
    "open gop.flv": ("libx264", {"x264-params": "bframes=4:open-gop=1:keyint=20:aud=1", "vbv-bufsize": "500"}),
    "hevc.mov": ("libx265", {"x265-params": "bframes=4:keyint=30:log-level=none"}),
}


def record(path, monkeypatch, codec, options, **given):
    monkeypatch.setitem(media.CODEC_OPTIONS, codec, {"preset": "veryfast", **options})
    return write_recording(path, 4, codecs=(codec, "aac"), **given)


@pytest.fixture
def skipped(monkeypatch) -> list[float]:
    """Times of the frames that are skipped."""
    times, can_skip = [], FrameSkipper.can_skip

    def counting(self, packet, time):
        is_skipped = can_skip(self, packet, time)
        times.extend([time] * is_skipped)
        return is_skipped

    monkeypatch.setattr(FrameSkipper, "can_skip", counting)
    return times


@pytest.fixture
def reopened(monkeypatch) -> list:
    given = []
    monkeypatch.setattr(video_io, "reopen_container", lambda *args: given.append(args) or reopen_container(*args))
    return given


def all_decoded(path, **options) -> list:
    """The segments without skipping."""
    with pytest.MonkeyPatch.context() as context:
        context.setattr(video_decoding.Demuxer, "skip_frames", lambda *_: False)
        return list(iter_segments(path, **{**OPTIONS, **options}))


def assert_same(segments: list, expected: list) -> None:
    assert len(segments) == len(expected)
    for segment, other in zip(segments, expected):
        np.testing.assert_array_equal(segment.frames, other.frames)
        np.testing.assert_array_equal(segment.frame_times, other.frame_times)
        np.testing.assert_array_equal(segment.waveform, other.waveform)


@pytest.mark.parametrize("name", ENCODERS)
def test_segments_are_those_of_all_frames(name, tmp_path, monkeypatch, skipped, reopened):
    path = record(tmp_path / name, monkeypatch, *ENCODERS[name])
    for options in (
        {},
        {"decode_threads": 1},
        {"start_seconds": 1.37, "segment_seconds": 0.7},
        {"end_seconds": 2.2, "num_frames_per_segment": 1},
        {"num_frames_per_segment": 60},
    ):
        skipped.clear()
        segments = list(iter_segments(path, **{**OPTIONS, **options}))
        assert_same(segments, all_decoded(path, **options))
        assert bool(skipped) == (options.get("num_frames_per_segment") != 60)
        assert not reopened


def test_a_variable_frame_rate_with_pauses(tmp_path, monkeypatch, skipped):
    times = np.cumsum(np.random.default_rng(0).choice([0.02, 0.04, 0.3, 0.9], 60, p=[0.5, 0.4, 0.05, 0.05]))
    path = record(tmp_path / "clip.mp4", monkeypatch, *ENCODERS["pyramid.mp4"], frame_times=times)
    for count in (1, 3, 10):
        assert_same(
            list(iter_segments(path, **{**OPTIONS, "num_frames_per_segment": count})),
            all_decoded(path, num_frames_per_segment=count),
        )
    assert skipped


def test_frames_without_b_frames_or_with_fields_are_all_decoded(tmp_path, monkeypatch, skipped):
    for name, params in {"baseline": "bframes=0", "fields": "interlaced=1:bframes=3"}.items():
        path = record(tmp_path / f"{name}.mp4", monkeypatch, "libx264", {"x264-params": params})
        assert_same(list(iter_segments(path, **OPTIONS)), all_decoded(path))
    assert not skipped


@pytest.mark.parametrize("number_of_threads", [1, 3])
def test_a_frame_that_is_missing_where_it_is_shown_makes_the_reader_decode_all(
    number_of_threads, tmp_path, monkeypatch, reopened
):
    """As if the frame that covers a skipped one could not be decoded."""
    path = record(tmp_path / "clip.mp4", monkeypatch, *ENCODERS["pyramid.mp4"])
    expected = all_decoded(path)
    shown = expected[1].frame_times[1]
    can_skip = FrameSkipper.can_skip
    monkeypatch.setattr(
        FrameSkipper, "can_skip", lambda self, packet, time: can_skip(self, packet, time) or time == shown
    )
    assert_same(list(iter_segments(path, **{**OPTIONS, "decode_threads": number_of_threads})), expected)
    assert len(reopened) == 1


class Packet(bytes):
    def has_sidedata(self, _):
        return False


def unit(*content: int) -> bytes:
    return len(content).to_bytes(4, "big") + bytes(content)


SLICE, REFERENCE, TIMING, TURN, DELIMITER = (0x01, 8), (0x21, 8), (0x06, 1, 0), (0x06, 47, 0), (0x09, 16)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (unit(*SLICE), True),
        (unit(*DELIMITER) + unit(*TIMING) + unit(*SLICE) + unit(*SLICE), True),
        (unit(*SLICE) + unit(*REFERENCE), False),
        (unit(*TURN) + unit(*SLICE), False),
        (unit(0x67, 0) + unit(*SLICE), False),
        (unit(*TIMING), False),
        (unit(*SLICE)[:-1], False),
        (unit(*SLICE) + b"\0\0", False),
        (unit(*SLICE) + unit(), False),
        (b"\0\0\0\1" + bytes(SLICE), False),
        (b"", False),
    ],
)
def test_packets_of_unreferenced_frames(content, expected):
    extradata = bytes([1, 100, 0, 30, 0xFF, 0xE1]) + bytes(20)
    stream = SimpleNamespace(codec_context=SimpleNamespace(name="h264", extradata=extradata))
    assert nal_format(stream).is_unreferenced(Packet(content)) is expected


def test_streams_without_lengths_and_with_several_layers_are_not_read(tmp_path, monkeypatch):
    path = record(tmp_path / "clip.ts", monkeypatch, *ENCODERS["pyramid.mp4"])
    with av.open(str(path)) as container:
        assert nal_format(container.streams.video[0]) is None
    layers = bytes([1] + [0] * 20 + [2 << 3 | 3, 0])
    for extradata, expected in ((layers, False), (layers[:21] + bytes([1 << 3 | 3, 0]), True), (None, False)):
        stream = SimpleNamespace(codec_context=SimpleNamespace(name="hevc", extradata=extradata))
        assert (nal_format(stream) is not None) is expected


@pytest.mark.parametrize("shift", [None, 0.3])
def test_frames_without_their_place_make_the_reader_decode_all(shift, tmp_path, monkeypatch, skipped, reopened):
    """Time stamps that were removed, and that are not in the order in which frames are displayed."""
    path = record(tmp_path / "clip.mp4", monkeypatch, *ENCODERS["pyramid.mp4"])
    next_packet = video_decoding.Demuxer.next_packet

    def changed(self, stream):
        packet = next_packet(self, stream)
        if packet is not None and stream.type == "video" and packet.dts == packet.stream.start_time + 40 * 512:
            packet.pts = None if shift is None else packet.pts + round(shift / packet.time_base)
        return packet

    monkeypatch.setattr(video_decoding.Demuxer, "next_packet", changed)
    segments = list(iter_segments(path, **OPTIONS))
    assert len(reopened) == 1
    assert skipped
    assert_same(segments, all_decoded(path))


def skipper_and_packet() -> tuple[FrameSkipper, SimpleNamespace]:
    """With packets of unreferenced frames; nothing is wanted soon."""
    packet = SimpleNamespace(is_discard=False, is_corrupt=False)
    return FrameSkipper(SimpleNamespace(is_unreferenced=lambda _: True), lambda _: 9.0, 2), packet


def test_frames_before_the_first_packet_are_not_skipped():
    """Decoders leave them out where they need frames before the start, as in a copy that begins within a video."""
    skipper, packet = skipper_and_packet()
    assert not skipper.is_wrong([(1.0, SimpleNamespace(interlaced_frame=False))], 2)
    assert [skipper.can_skip(packet, time) for time in (1.0, 0.5, 0.9, 2.0, 1.5)] == [False, False, False, False, True]


def test_nothing_is_skipped_before_a_frame_shows_whether_the_video_is_interlaced():
    """Matroska files need not declare it."""
    skipper, packet = skipper_and_packet()
    assert not any(skipper.can_skip(packet, time) for time in (1.0, 2.0, 1.5))
    assert not skipper.is_wrong([(1.0, SimpleNamespace(interlaced_frame=True))], 2)
    assert not skipper.can_skip(packet, 1.6)
