"""Time stamps that jump, stand still or are damaged; and how long the last picture is on display."""

import logging
import shutil
import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from ave_clip.core.segments import last_frame_stays
from ave_clip.core.time_stamps import TimeStamps
from ave_clip.core.video_io import probe_video, read_video

from ..helpers.media import click_times, clicks, frame_number, write_recording

RATE = 8000
CLICKS = (0.5, 3.5, 5.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("stamps")


@pytest.fixture(scope="module", params=[".mkv", ".ts", ".mp4", ".flv", ".mov"])
def clip(request, folder) -> Path:
    codecs = ("libx264", "aac")
    return write_recording(folder / f"clip{request.param}", 6, sound=clicks(CLICKS), codecs=codecs)


def rewrite(path: Path, name: str, change: Callable[[str, int, float], float], separately: bool = False) -> Path:
    """A copy whose packets' time stamps are moved by `change(kind, number, seconds)`; the codecs' data stay.

    With `separately`, `change` is also asked for the stamp of display, which is otherwise moved as that of decoding.
    """
    target = path.with_name(f"{name}{path.suffix}")
    with av.open(str(path)) as source, av.open(str(target), "w") as container:
        streams = {stream.index: container.add_stream_from_template(stream) for stream in source.streams}
        counts, lowest = dict.fromkeys(streams, 0), dict.fromkeys(streams, -(2**40))
        for packet in source.demux():
            if not packet.size:
                continue
            index = packet.stream.index
            # Matroska has no stamps of decoding, and FFmpeg cannot compute the first two.
            stamp = round((counts[index] - 2) / 25 / packet.time_base) if packet.dts is None else packet.dts
            seconds = change(packet.stream.type, counts[index], float(stamp * packet.time_base))
            counts[index] += 1
            if isinstance(seconds, tuple):  # that of display only
                packet.pts += round(seconds[0] / packet.time_base)
            else:
                display = packet.stream.type, counts[index] - 1, float(packet.pts * packet.time_base)
                packet.pts += round((change(*display) if separately else seconds) / packet.time_base)
                packet.dts = stamp + round(seconds / packet.time_base)
                if packet.dts < lowest[index]:  # as ffmpeg does: muxers take no stamps that go back
                    packet.pts, packet.dts = max(packet.pts, lowest[index]), lowest[index]
                packet.pts = max(packet.pts, packet.dts)
                lowest[index] = packet.dts + 1
            packet.stream = streams[index]
            container.mux(packet)
    return target


def content(video) -> tuple[list[list[int]], list[float]]:
    numbers = [[frame_number(picture) for picture in frames] for frames in video.frames]
    return numbers, click_times(video.waveforms.reshape(-1), RATE)


def check_like(path: Path, original: Path, caplog, num_warnings: int = 1) -> None:
    options = {"sampling_rate": RATE, "num_frames_per_segment": 5}
    with caplog.at_level(logging.WARNING):
        video, expected = read_video(path, **options), read_video(original, **options)
    assert video.num_segments == expected.num_segments == 6
    # Matroska has no stamps of decoding: among frames that are stored out of order a step is known to 3 frames only.
    tolerance = 0.15 if original.suffix == ".mkv" else 0.05
    assert video.duration_seconds == pytest.approx(expected.duration_seconds, abs=tolerance)
    numbers, times = content(video)
    expected_numbers, expected_times = content(expected)
    for segment, expected_segment in zip(numbers, expected_numbers):
        assert np.abs(np.subtract(segment, expected_segment)).max() <= (3 if original.suffix == ".mkv" else 1)
    np.testing.assert_allclose(times, expected_times, rtol=0, atol=0.05)
    warnings = [record for record in caplog.records if "time stamp" in record.getMessage()]
    assert len(warnings) == num_warnings
    assert not video.truncated


@pytest.fixture(autouse=True)
def propagate(monkeypatch):
    monkeypatch.setattr(logging.getLogger("ave_clip"), "propagate", True)


@pytest.mark.parametrize("kind", ["video", "audio"])
@pytest.mark.parametrize("number", [1, 40, 70])
def test_a_single_stamp_of_display_that_is_late_is_ignored(clip, caplog, kind, number):
    if clip.suffix == ".flv" and kind == "audio":
        pytest.skip("FLV has no stamps of display for sound")
    late = rewrite(clip, f"late_{kind}_{number}", lambda k, n, _: (300.0 * (k == kind and n == number),))
    is_written = kind == "video" or clip.suffix in (".mkv", ".ts")  # mp4 has no stamps of display for sound either
    check_like(late, clip, caplog, num_warnings=int(is_written))


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_single_packet_that_is_late_does_not_move_those_after_it(clip, caplog, kind):
    """The muxer lets no stamp go back, so all that follow the late one stand still."""
    late = rewrite(clip, f"stuck_{kind}", lambda k, n, _: 300.0 * (k == kind and n == 70))
    check_like(late, clip, caplog)


def test_streams_that_leave_for_an_hour_and_return_have_no_gap(clip, caplog):
    """Among frames that are stored out of order, one leaves before others that are displayed earlier."""
    begin = 2.0 + (clip.suffix == ".ts") * 1.4
    away = rewrite(clip, "away", lambda _, __, seconds: 3600.0 * (begin <= seconds < begin + 2), separately=True)
    with caplog.at_level(logging.WARNING):
        video = read_video(away, sampling_rate=RATE, num_frames_per_segment=5)
    assert video.num_segments == 6
    assert video.duration_seconds == pytest.approx(6, abs=0.15)
    numbers, times = content(video)
    np.testing.assert_allclose(times, CLICKS, rtol=0, atol=0.1)
    shown = [number for segment in numbers for number in segment]
    assert len(shown) >= 28
    np.testing.assert_allclose(shown, (np.arange(30) * 5 + 2)[: len(shown)], rtol=0, atol=2)
    assert "jump by" in caplog.text


@pytest.mark.parametrize("kind", ["video", "audio"])
@pytest.mark.parametrize("step", [30.0, 300.0, 3600.0])
def test_a_step_that_one_stream_makes_alone_is_taken_out(clip, caplog, kind, step):
    moved = rewrite(clip, f"step_{kind}_{step}", lambda k, n, _: step * (k == kind and n >= 75))
    check_like(moved, clip, caplog)


def test_a_gap_that_all_streams_share_stays_where_stamps_do_not_jump(clip, caplog):
    moved = rewrite(clip, "gap", lambda _, __, seconds: 60.0 * (seconds >= 3 + (clip.suffix == ".ts") * 1.4))
    if clip.suffix == ".ts":
        return check_like(moved, clip, caplog)
    video = read_video(moved, sampling_rate=RATE, num_frames_per_segment=5)
    assert video.num_segments == 66
    np.testing.assert_allclose(content(video)[1], [0.5, 63.5, 65.5], rtol=0, atol=0.05)
    assert not caplog.records


def test_a_step_that_all_streams_make_and_take_back_is_no_gap(folder, caplog):
    for suffix in (".mp4", ".mkv", ".flv", ".mov"):
        clip = write_recording(folder / f"there{suffix}", 6, sound=clicks(CLICKS), codecs=("libx264", "aac"))
        moved = rewrite(clip, "there_and_back", lambda _, __, seconds: 300.0 * (2 <= seconds < 3))
        video = read_video(moved, sampling_rate=RATE, num_frames_per_segment=5)
        assert video.num_segments == 6
        # From the return on the muxers have written no usable stamps: the packets follow each other.
        np.testing.assert_allclose(content(video)[1], CLICKS, rtol=0, atol=0.3)
        assert any("jump" in record.getMessage() for record in caplog.records)
        caplog.clear()


def test_a_length_that_an_flv_declares_wrongly_is_no_cut(folder, caplog):
    path = write_recording(folder / "declared.flv", 6, codecs=("libx264", "aac"))
    content = path.read_bytes()
    start = content.index(b"duration") + 9
    path.write_bytes(content[:start] + struct.pack(">d", 300.0) + content[start + 8 :])
    assert not read_video(path, sampling_rate=RATE).truncated
    assert not caplog.records
    path.write_bytes(path.read_bytes()[: len(content) // 2])
    assert read_video(path, sampling_rate=RATE).truncated
    assert "cut off" in caplog.text


def test_an_flv_of_which_a_damaged_size_skips_the_rest_is_cut(folder, caplog):
    """It has the size that it declares. FFmpeg skips to the end of a packet of 16 MB."""
    path = write_recording(folder / "skipped.flv", 6, codecs=("libx264", "aac"))
    with av.open(str(path)) as container:
        position = [packet.pos for packet in container.demux(video=0) if packet.size][20]
    content = bytearray(path.read_bytes())
    assert content[position] == 9  # a tag of video, followed by its size
    content[position + 1 : position + 4] = b"\xff\xff\xff"
    path.write_bytes(content)
    video = read_video(path, sampling_rate=RATE)
    assert video.truncated and video.duration_seconds < 2
    assert "cut off or damaged: it stops at" in caplog.text


@pytest.mark.parametrize("offsets", [(0, 3600), (3600, 0), (0, 95000)])
def test_joined_transport_streams_follow_each_other_whatever_their_clocks(folder, caplog, offsets):
    parts = []
    for number, offset in enumerate(offsets):
        sound = clicks([1.5 + number])
        path = folder / f"part_{offset}.ts"
        write_recording(path, 3, sound=sound, options={"output_ts_offset": str(offset)})
        parts.append(path.read_bytes())
    joined = folder / "joined.ts"
    joined.write_bytes(b"".join(parts))
    video = read_video(joined, sampling_rate=RATE, num_frames_per_segment=5)
    assert video.num_segments == 6
    np.testing.assert_allclose(content(video)[1], [1.5, 5.5], rtol=0, atol=0.1)


def test_a_long_pause_of_the_video_is_no_jump(folder, caplog):
    for suffix in (".mkv", ".mp4", ".ts"):
        times = [0.0, 0.1, 0.2, 15.0, 15.1, 15.2]
        codecs = ("libx264", "aac")
        path = write_recording(folder / f"pause{suffix}", 20, frame_times=times, sound=clicks([5]), codecs=codecs)
        video = read_video(path, sampling_rate=RATE, num_frames_per_segment=4)
        assert video.num_segments == 20 or suffix == ".mp4"  # there the last picture has the pause's duration
        numbers = content(video)[0]
        assert numbers[7] == [2]
        assert numbers[17] == [5]  # the picture stays until the sound ends
    assert not caplog.records


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".ts"])
def test_one_image_with_audio_is_displayed_until_the_audio_ends(folder, suffix):
    path = folder / f"one{suffix}"
    write_recording(path, 5, frame_times=[0.0], picture=lambda _: np.full((48, 80, 3), 200, np.uint8))
    video = read_video(path, sampling_rate=RATE, num_frames_per_segment=4)
    assert [len(frames) for frames in video.frames] == [1] * 5


def test_a_video_of_constant_rate_that_ends_before_its_audio_keeps_its_end(folder):
    path = write_recording(folder / "short.mp4", 2, sound_seconds=5)
    video = read_video(path, sampling_rate=RATE, num_frames_per_segment=4)
    assert [len(frames) for frames in video.frames] == [4, 4, 0, 0, 0]


@pytest.mark.parametrize(
    ("times", "stays"),
    [
        ([0.0], True),
        ([0.0, 3.0], True),
        (np.arange(30) / 30, False),
        (np.arange(10) * 3.0, False),
        (np.delete(np.arange(100) / 25, [17, 50]), False),
        (np.arange(90) / 30 + np.tile([0, 0.004, -0.003], 30), False),
        (np.cumsum(np.tile([0.1] + [0.04] * 11, 5)), False),  # a twelfth of the steps is long: lost frames
        (np.cumsum(np.tile([0.1] + [0.04] * 4, 10)), True),  # a fifth: no rate
        ([0, 0.04, 0.08, 0.12, 0.16, 2.0, 2.04, 2.08], True),
        ([0, 0.1, 0.15, 0.6, 1.0, 1.8, 1.9], True),
    ],
)
def test_the_last_frame_stays_where_frames_come_on_changes_only(times, stays):
    assert last_frame_stays(np.array(times)) == stays


@pytest.mark.parametrize("frame_rate", [12, 25])
def test_the_last_frames_of_an_avi_with_b_frames_are_in_their_positions(folder, frame_rate):
    times = np.arange(3 * frame_rate) / frame_rate
    path = folder / f"b{frame_rate}.avi"
    times = np.arange(0, 75, 25 // frame_rate) / 25
    write_recording(path, 3, frame_times=times, codecs=("libx264", "pcm_s16le"))
    video = read_video(path, sampling_rate=RATE, num_frames_per_segment=25)
    shown = {
        frame_number(picture): time
        for frames, ts in zip(video.frames, video.frame_times)
        for picture, time in zip(frames, ts)
    }
    assert len(shown) == len(times)
    np.testing.assert_allclose([shown[number] for number in range(len(times))], times, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("declared", "num_repairs"), [(128, 0), (1024, 1)])
def test_short_packets_of_vorbis_are_no_stamps_that_stand_still(declared, num_repairs):
    """Vorbis has long and short packets in runs of any length; each says how long it lasts."""
    context = SimpleNamespace(frame_size=0, sample_rate=44100)
    stream = SimpleNamespace(index=0, type="audio", codec_context=context)
    durations = [1024] * 100 + [128] * 200
    stamps = np.cumsum([0, *durations[:-1]]).tolist()
    packets = [
        SimpleNamespace(
            stream=stream, pts=stamp, dts=stamp, time_base=Fraction(1, 44100), size=100,
            duration=duration if number < 100 else declared,
        )
        for number, (stamp, duration) in enumerate(zip(stamps, durations))
    ]  # fmt: skip
    repairs = []
    waiting = iter(packets)
    repaired = TimeStamps(lambda: next(waiting, None), [stream], repairs.append, may_jump=True)
    given = [repaired.next_packet().pts for _ in packets]
    assert len(repairs) == num_repairs
    assert (given == stamps) == (num_repairs == 0)


def test_several_damaged_stamps_near_each_other_are_no_pause():
    """Found by mutation: two frames with the same wrong stamp looked like frames after a pause of 37 hours."""
    stream = SimpleNamespace(index=0, type="video", codec_context=None)
    seconds = (np.arange(60) / 10).tolist()
    damaged = {30: 134223.4, 32: 268.0, 35: 134223.9}
    packets = [
        SimpleNamespace(
            stream=stream, pts=round(1000 * stamp), dts=round(1000 * stamp), time_base=Fraction(1, 1000), size=100,
            duration=100,
        )
        for number in range(60)
        for stamp in [damaged.get(number, seconds[number])]
    ]  # fmt: skip
    waiting = iter(packets)
    repaired = TimeStamps(lambda: next(waiting, None), [stream], lambda _: None, may_jump=False)
    stamps = [repaired.next_packet().pts for _ in packets]
    assert [number for number, stamp in enumerate(stamps) if stamp is None] == [30, 32, 35]
    assert max(stamp for stamp in stamps if stamp is not None) == 5900


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="PyAV has no encoder of Theora")
def test_headers_where_ogg_files_are_joined_are_not_frames(folder, caplog):
    path = write_recording(folder / "plain.mp4", 2, sound=clicks([1.5]))
    options = ["-c:v", "libtheora", "-c:a", "libvorbis", "-y", str(path.with_suffix(".ogg"))]
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(path), *options], check=True)
    path = path.with_suffix(".ogg")
    path.write_bytes(4 * path.read_bytes())
    video = read_video(path, sampling_rate=RATE, num_frames_per_segment=5)
    assert video.duration_seconds == pytest.approx(8, abs=0.1)
    # The sound of each part is a little longer than its pictures, so the later parts begin a frame later.
    np.testing.assert_allclose([numbers[2] for numbers in content(video)[0]], [12, 37] * 4, rtol=0, atol=2)
    assert "could not be decoded" not in caplog.text


def test_steps_of_different_size_do_not_shift_each_other():
    """Found by mutation: two streams whose stamps were damaged at the same place made a recording of ten hours."""
    packets, durations = [], {"video": 100, "audio": 20}
    streams = [SimpleNamespace(index=index, type=kind, codec_context=SimpleNamespace(frame_size=0, sample_rate=0))
               for index, kind in enumerate(durations)]  # fmt: skip
    for stream, step in zip(streams, (37_948_000, 20_000_000)):
        for stamp in range(0, 6000, durations[stream.type]):
            moved = stamp + step * (stamp >= 3000)
            packets.append((stamp, SimpleNamespace(
                stream=stream, pts=moved, dts=moved, time_base=Fraction(1, 1000), size=100,
                duration=durations[stream.type],
            )))  # fmt: skip
    packets = [packet for _, packet in sorted(packets, key=lambda item: item[0])]
    waiting = iter(packets)
    repaired = TimeStamps(lambda: next(waiting, None), streams, lambda _: None, may_jump=True)
    stamps = [repaired.next_packet().pts for _ in packets]
    assert max(stamps) < 6100
    assert stamps == sorted(stamps)


def test_frames_without_stamps_or_a_frame_rate_are_evenly_between_those_with_stamps(folder, caplog):
    """A program stream has one stamp per PES packet. 100 frames between two of them lasted 2 s each."""
    path = write_recording(folder / "sparse.vob", 6, sound=clicks(CLICKS), codecs=("libx264", "mp2"))
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate is None
        stamps = [packet.pts for packet in container.demux(video=0) if packet.size]
    assert 2 <= len(stamps) - stamps.count(None) <= 5
    with caplog.at_level(logging.WARNING):
        video = read_video(path, sampling_rate=RATE, num_frames_per_segment=5)
    assert video.duration_seconds == pytest.approx(6, abs=0.05)
    numbers, times = content(video)
    np.testing.assert_array_equal(np.concatenate(numbers), np.arange(30) * 5 + 2)
    # The audio is first by 10 ms.
    np.testing.assert_allclose(np.concatenate(video.frame_times), np.arange(30) / 5 + 0.09, rtol=0, atol=1e-3)
    np.testing.assert_allclose(times, np.add(CLICKS, 0.01), rtol=0, atol=0.01)
    assert not caplog.records
    assert probe_video(path).frame_rate == 0.0


@pytest.mark.parametrize(("number", "step", "num_repairs"), [(100, 40, 1), (150, 3600, 1), (100, -5, 1), (150, 2, 0)])
def test_frames_without_stamps_do_not_share_a_jump_among_them(number, step, num_repairs):
    stream = SimpleNamespace(index=0, type="video", codec_context=None)
    packets = []
    for index in range(250):
        stamp = None if index % 50 else 40 * index + 1000 * step * (index >= number)
        packets.append(SimpleNamespace(
            stream=stream, pts=stamp, dts=stamp, time_base=Fraction(1, 1000), size=100, duration=0,
        ))  # fmt: skip
    waiting, repairs = iter(packets), []
    repaired = TimeStamps(lambda: next(waiting, None), [stream], repairs.append, may_jump=True)
    given = [repaired.next_packet() for _ in packets]
    assert {packet.duration for packet in given} == {40}
    assert len(repairs) == num_repairs
    assert given[-50].pts == pytest.approx(200 * 40 + 2000 * (num_repairs == 0), abs=40)


def test_frames_of_a_low_rate_that_are_stored_out_of_order_do_not_go_back():
    """One frame per second: a B-frame is displayed 2 s before the frame that is stored before it."""
    stream = SimpleNamespace(index=0, type="video", codec_context=None)
    seconds = [0, *(3 * group + offset for group in range(10) for offset in (3, 1, 2))]
    packets = [
        SimpleNamespace(
            stream=stream, pts=1000 * stamp, dts=None, time_base=Fraction(1, 1000), size=100, duration=1000
        )
        for stamp in seconds
    ]  # fmt: skip
    waiting, repairs = iter(packets), []
    repaired = TimeStamps(lambda: next(waiting, None), [stream], repairs.append, may_jump=True)
    assert [repaired.next_packet().pts for _ in packets] == [1000 * stamp for stamp in seconds]
    assert not repairs
