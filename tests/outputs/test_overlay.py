"""The video with heat map, label and time line: what is drawn where, and that the file is still the same video."""

import json
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from transformers.utils import logging

from ave_clip.core.video_io import VideoReadError, iter_segments, read_video
from ave_clip.core.video_processing_ave_clip import AVEClipVideoProcessor
from ave_clip.outputs.overlay import _crop_box, write_overlay
from ave_clip.outputs.video_writing import even_size, rewrite_video
from tests.helpers.media import click_times, clicks, corner_picture, frame_number, numbered_picture, write_recording

NEEDS_FFPROBE = pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")


def grey_picture(_: int, height: int = 96, width: int = 160) -> np.ndarray:
    return np.full((height, width, 3), 128, np.uint8)


def result_of(seconds: int, label: str = "Bark", first: int = 1, last: int = 2) -> dict:
    """`label` from segment `first` to `last`, background elsewhere."""
    labels = [label if first <= index <= last else "background" for index in range(seconds)]
    segments = [
        {"start": float(index), "end": index + 1.0, "label": name, "score": 0.9} for index, name in enumerate(labels)
    ]
    return {
        "segments": segments,
        "events": [{"start": float(first), "end": last + 1.0, "label": label, "score": 0.9}],
    }


def frames_of(path: Path) -> list[tuple[float, np.ndarray]]:
    with path.open("rb") as file, av.open(file) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def probe(path: Path) -> dict:
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-show_format", "-of", "json", str(path)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def sound_packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_recording(tmp_path_factory.mktemp("overlay") / "clip.mp4", 4.0, sound=clicks([0.5, 2.25]))


@NEEDS_FFPROBE
def test_ffprobe_finds_the_same_duration_frames_and_audio(clip, tmp_path):
    output = tmp_path / "out.mp4"
    write_overlay(clip, result_of(4), output, heatmaps=np.ones((4, 7, 7)))
    source, found = probe(clip), probe(output)
    picture, sound = found["streams"]
    assert (picture["codec_name"], picture["pix_fmt"], sound["codec_name"]) == ("h264", "yuv420p", "aac")
    assert [stream["nb_read_frames"] for stream in found["streams"]] == [
        stream["nb_read_frames"] for stream in source["streams"]
    ]
    assert float(found["format"]["duration"]) == pytest.approx(float(source["format"]["duration"]), abs=0.01)
    content = output.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # plays before it is loaded


def test_audio_is_copied_and_stays_in_time(clip, tmp_path):
    output = tmp_path / "out.mp4"
    write_overlay(clip, result_of(4), output)
    assert sound_packets(output) == sound_packets(clip)
    sound = read_video(output).waveforms.reshape(-1)
    assert click_times(sound, 44100) == pytest.approx([0.5, 2.25], abs=0.002)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.ts", "clip.avi"])
def test_other_audio_is_encoded_and_stays_in_time(tmp_path, name):
    clip = write_recording(tmp_path / name, 3.0, sound=clicks([0.5, 2.25]), layout="stereo")
    write_overlay(clip, result_of(3), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.audio[0]
        assert (stream.codec_context.name, stream.layout.name) == ("aac", "stereo")
    heard = [click_times(read_video(path).waveforms.reshape(-1), 44100) for path in (tmp_path / "out.mp4", clip)]
    assert heard[0] == pytest.approx(heard[1], abs=0.002)
    assert len(frames_of(tmp_path / "out.mp4")) == 75


def test_webm_keeps_its_opus(tmp_path):
    clip = write_recording(tmp_path / "clip.webm", 2.0)
    write_overlay(clip, result_of(2), tmp_path / "out.mp4")
    assert sound_packets(tmp_path / "out.mp4") == sound_packets(clip)


@pytest.mark.parametrize(
    "name, layout", [("clip.mkv", "12 channels"), ("clip.mov", "3 channels"), ("clip.mkv", "7.1.4")]
)
def test_audio_that_ffmpeg_cannot_mix_to_stereo_is_the_models_mono_mix(tmp_path, name, layout):
    codecs = ("libx264", "pcm_s16le")
    clip = write_recording(tmp_path / name, 2.0, sound=clicks([0.5, 1.25]), layout=layout, codecs=codecs)
    write_overlay(clip, result_of(2, last=1), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert (container.streams.audio[0].codec_context.name, container.streams.audio[0].layout.name) == (
            "aac",
            "mono",
        )
    heard = read_video(tmp_path / "out.mp4").waveforms.reshape(-1)
    assert click_times(heard, 44100) == pytest.approx([0.5, 1.25], abs=0.002)
    assert np.abs(heard).max() == pytest.approx(np.abs(read_video(clip).waveforms).max(), rel=0.2)


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_damaged_time_stamp_is_repaired_as_for_the_events(clip, tmp_path, kind):
    damaged = tmp_path / "damaged.mkv"
    with av.open(str(clip)) as source, av.open(str(damaged), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                if packet.stream.type == kind and 1.0 < packet.pts * packet.time_base < 1.05:
                    packet.pts += round(300 / packet.time_base)
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    write_overlay(damaged, result_of(4), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [float(stream.duration * stream.time_base) for stream in container.streams] == pytest.approx(
            [4.0, 4.0], abs=0.1
        )
    assert click_times(read_video(tmp_path / "out.mp4").waveforms.reshape(-1), 44100) == pytest.approx(
        [0.5, 2.25], abs=0.03
    )


def test_hdr_becomes_sdr_as_the_model_sees_it(tmp_path):
    clip = tmp_path / "hdr.mkv"
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 96, 160, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_primaries, context.colorspace, context.color_range = 16, 9, 9, 1
        frame = av.VideoFrame.from_ndarray(np.full((144, 160), 512, np.uint16), format="yuv420p10le")
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    rewrite_video(clip, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.color_trc, context.color_primaries, context.colorspace) == (1, 1, 1)
    seen = next(iter_segments(clip)).frames[0].astype(int)
    assert seen.mean() > 140  # without tone mapping it would be 128
    assert np.abs(frames_of(tmp_path / "out.mp4")[0][1].astype(int) - seen).max() <= 3


def test_frames_keep_their_own_times_and_order(tmp_path):
    times = [0.0, 0.04, 0.3, 0.31, 0.9, 1.5, 1.52, 1.9]
    clip = write_recording(
        tmp_path / "clip.mp4", 2.0, frame_times=times, picture=lambda number: numbered_picture(number, height=160)
    )
    write_overlay(clip, result_of(2), tmp_path / "out.mp4")
    found = frames_of(tmp_path / "out.mp4")
    assert [time for time, _ in found] == pytest.approx(times, abs=0.0011)
    assert [frame_number(picture[:40]) for _, picture in found] == list(range(8))


def test_a_late_video_stays_late(tmp_path):
    clip = write_recording(tmp_path / "clip.mp4", 2.0, video_start=0.5, sound=clicks([1.0]))
    write_overlay(clip, result_of(2), tmp_path / "out.mp4")
    assert frames_of(tmp_path / "out.mp4")[0][0] == pytest.approx(0.5, abs=0.002)
    assert click_times(read_video(tmp_path / "out.mp4").waveforms.reshape(-1), 44100) == pytest.approx(
        [1.0], abs=0.002
    )


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_turned_videos_come_out_upright(tmp_path, rotation):
    clip = write_recording(
        tmp_path / "clip.mp4", 1.0, picture=lambda _: corner_picture(0, 160, 192), rotation=rotation
    )
    write_overlay(clip, result_of(1, first=0, last=0), tmp_path / "out.mp4")
    wanted = next(iter_segments(clip)).frames[0].astype(int)
    found = frames_of(tmp_path / "out.mp4")[0][1].astype(int)
    assert found.shape == wanted.shape
    height = len(found) // 3
    assert np.abs(found[:height] - wanted[:height]).mean() < 6
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_odd_sizes_lose_at_most_a_row_and_a_column(tmp_path):
    clip = write_recording(
        tmp_path / "clip.mkv", 1.0, picture=lambda _: grey_picture(0, 97, 161), codecs=("ffv1", None), sound=None
    )
    write_overlay(clip, result_of(1, first=0, last=0), tmp_path / "out.mp4")
    assert frames_of(tmp_path / "out.mp4")[0][1].shape == (96, 160, 3)


def test_even_size_keeps_the_shape_within_the_limit():
    assert even_size(1080, 1920, longest=1920) == (1080, 1920)
    assert even_size(3840, 2160, longest=1920) == (1920, 1080)
    assert even_size(1, 1) == (2, 2)


def test_a_silent_video_stays_silent(tmp_path):
    clip = write_recording(tmp_path / "clip.mp4", 1.0, sound=None)
    write_overlay(clip, result_of(1, first=0, last=0), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video"]


@pytest.fixture(scope="module")
def grey(tmp_path_factory) -> Path:
    return write_recording(tmp_path_factory.mktemp("grey") / "grey.mp4", 3.0, picture=grey_picture, sound=None)


def heat(path: Path, time: float) -> np.ndarray:
    """How far each pixel's colour is from grey, at a time."""
    picture = next(picture for at, picture in frames_of(path) if at >= time).astype(int)
    return picture.max(axis=2) - picture.min(axis=2)


def test_the_heat_map_is_drawn_where_the_model_looked(grey, tmp_path):
    maps = np.full((3, 4, 4), 0.01)
    maps[1, 0, 3] = 1.0  # top right cell of the centre square, in the second second
    write_overlay(grey, result_of(3), tmp_path / "out.mp4", heatmaps=maps)
    before, during = (heat(tmp_path / "out.mp4", time)[:60] for time in (0.5, 1.5))
    assert before.max() < 12
    row, column = np.unravel_index(during.argmax(), during.shape)
    # The square spans columns 32 to 127, so its last cell 104 to 127.
    assert row < 30 and 96 <= column < 128
    assert during[:, :30].max() < 12 and during[:, 132:].max() < 12
    assert during[:20, 34:70].max() < 12


def test_the_heat_map_follows_the_processors_crop(grey, tmp_path):
    processor = AVEClipVideoProcessor(size={"shortest_edge": 96}, crop_size={"height": 48, "width": 48})
    maps = np.full((3, 2, 2), 0.01)
    maps[:, 0, 0] = 1.0
    write_overlay(grey, result_of(3), tmp_path / "out.mp4", heatmaps=maps, video_processor=processor)
    found = np.argwhere(heat(tmp_path / "out.mp4", 0.5)[:60] > 30)
    assert found.min(axis=0) == pytest.approx([24, 56], abs=3) and found[:, 1].max() < 92


def test_the_complete_frame_is_covered_if_nothing_is_cropped(grey, tmp_path):
    processor = AVEClipVideoProcessor(do_center_crop=False)
    maps = np.full((3, 2, 2), 0.01)
    maps[:, 0, 0] = 1.0
    write_overlay(grey, result_of(3), tmp_path / "out.mp4", heatmaps=maps, video_processor=processor)
    assert np.argwhere(heat(tmp_path / "out.mp4", 0.5)[:60] > 30).min(axis=0) == pytest.approx([0, 0], abs=1)


def test_the_heat_map_fades_where_the_frame_goes_on_and_only_there(grey, tmp_path):
    maps = np.full((3, 4, 4), 0.01)
    maps[:, :2, 0] = 1.0  # the upper half of the left edge of the centre square, which begins at column 32
    write_overlay(grey, result_of(3), tmp_path / "out.mp4", heatmaps=maps)
    drawn = heat(tmp_path / "out.mp4", 0.5)[:32]
    middle = drawn[8:24, 44].mean()
    assert middle > 60 and drawn[:, 30:34].max() < middle / 4
    assert np.diff(drawn[16, 28:44]).max() < middle / 2
    assert drawn[0, 44] == pytest.approx(middle, rel=0.2)


def test_the_crop_is_as_high_as_the_frame_where_the_model_sees_all_of_it():
    boxes = [
        _crop_box((height, 1000), AVEClipVideoProcessor()) for height in (230, 460, 906)
    ]  # 224 * (230 / 224) < 230
    assert [(top, height) for top, _, height, _ in boxes] == [(0, 230), (0, 460), (0, 906)]


def test_average_weights_show_nothing(grey, tmp_path):
    write_overlay(grey, result_of(3), tmp_path / "out.mp4", heatmaps=np.full((3, 7, 7), 1 / 49))
    assert heat(tmp_path / "out.mp4", 0.5)[:60].max() < 12


def test_the_band_names_the_event_in_its_colour(grey, tmp_path):
    write_overlay(grey, result_of(3), tmp_path / "out.mp4")
    quiet, event = (
        next(picture for at, picture in frames_of(tmp_path / "out.mp4") if at >= time).astype(int)
        for time in (0.5, 1.5)
    )
    band = slice(96 - 6 - 26, 96 - 6)
    blue = event[band, 2:24, 2] - event[band, 2:24, 0]
    assert blue.max() > 80 and (quiet[band, 2:24, 2] - quiet[band, 2:24, 0]).max() < 40
    assert (event[band, 30:150].min(axis=2) > 150).sum() > 40  # white letters
    assert np.abs(event[: 96 - 34] - 128).max() < 12  # nothing above


def test_events_at_the_same_time_are_named_side_by_side_and_have_rows_of_the_strip(grey, tmp_path):
    events = [
        {"start": 0.0, "end": 2.0, "label": "Bark", "score": 0.9},
        {"start": 1.0, "end": 3.0, "label": "Speech", "score": 0.8},
    ]
    active = [{"label": "Bark", "score": 0.9}, {"label": "Speech", "score": 0.8}]
    result = {**result_of(3), "events": events}
    result["segments"] = [
        {**segment, **active[min(t, 1)], "labels": labels}
        for t, (segment, labels) in enumerate(zip(result["segments"], (active[:1], active, active[1:])))
    ]
    write_overlay(grey, result, tmp_path / "out.mp4")
    alone, both = (next(p for at, p in frames_of(tmp_path / "out.mp4") if at >= time) for time in (0.5, 1.5))
    # A swatch in the colour of the label begins each half of the band.
    band = slice(96 - 12 - 26, 96 - 12)
    colourful = [np.ptp(picture[band].astype(int), axis=2).max(axis=0) > 60 for picture in (alone, both)]
    assert colourful[0][:24].any() and not colourful[0][82:].any()
    assert colourful[1][:24].any() and colourful[1][82:104].any()
    upper, lower = (both[row].astype(int) for row in (96 - 9, 96 - 3))
    first, second = (row[:, 2] - row[:, 0] for row in (upper, lower))  # blue, then orange
    assert first[20] > 60 and abs(first[150]) < 40
    assert second[150] < -60 and abs(second[20]) < 40


def test_the_cursor_moves_along_the_strip_of_events(grey, tmp_path):
    write_overlay(grey, result_of(3), tmp_path / "out.mp4")
    columns = [picture[-4:].min(axis=2).mean(axis=0).argmax() for _, picture in frames_of(tmp_path / "out.mp4")]
    assert columns[0] <= 2 and columns == sorted(columns)
    assert columns[37] == pytest.approx(160 * 1.5 / 3, abs=3) and columns[-1] == pytest.approx(158, abs=3)
    strip = frames_of(tmp_path / "out.mp4")[0][1][-3].astype(int)
    assert strip[80, 2] - strip[80, 0] > 80 and abs(strip[25, 2] - strip[25, 0]) < 40


@pytest.mark.parametrize("label", ["<b>&amp;</b> {x} %s", "鐘の音 звон колокола", "long " * 60, "\x00\n\u202e", ""])
def test_any_label_can_be_written(grey, tmp_path, label):
    write_overlay(grey, result_of(3, label), tmp_path / "out.mp4")
    assert len(frames_of(tmp_path / "out.mp4")) == 75


@pytest.mark.parametrize(
    "name", ["-dash it.mp4", "100%03d 'q' \"d\".mp4", "鐘 & звон.mp4", "concat:a|b.mp4", "x\udc80.mp4"]
)
def test_strange_file_names_are_only_names(clip, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    shutil.copy(clip, tmp_path / name)
    write_overlay(name, result_of(4), f"out {name}")
    assert len(frames_of(tmp_path / f"out {name}")) == 100


def test_progress_is_told_to_the_end(clip, tmp_path):
    told = []
    write_overlay(clip, result_of(4), tmp_path / "out.mp4", progress=lambda *args: told.append(args))
    assert len(told) == 100 and told[-1][0] == str(clip)
    assert told[-1][1] == pytest.approx(told[-1][2], abs=0.05) and told[-1][2] == pytest.approx(4.0, abs=0.05)


@pytest.mark.usefixtures("progress_bars")
def test_a_progress_bar_is_shown_unless_switched_off(clip, tmp_path, capsys):
    write_overlay(clip, result_of(4), tmp_path / "out.mp4", progress=True)
    assert "clip.mp4 (overlay): 100%" in capsys.readouterr().err
    logging.disable_progress_bar()
    write_overlay(clip, result_of(4), tmp_path / "out.mp4", progress=True)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "heatmaps, message", [(np.ones((3, 7, 7)), "for 4 segments"), (-np.ones((4, 7, 7)), "negative")]
)
def test_heat_maps_that_do_not_fit_are_refused(clip, tmp_path, heatmaps, message):
    with pytest.raises(ValueError, match=message):
        write_overlay(clip, result_of(4), tmp_path / "out.mp4", heatmaps=heatmaps)


def test_what_cannot_be_drawn_on_leaves_the_output_as_it_was(tmp_path):
    sound = write_recording(tmp_path / "sound.wav", 1.0)
    (tmp_path / "out.mp4").write_bytes(b"before")
    with pytest.raises(VideoReadError, match="has no video stream"):
        write_overlay(sound, result_of(1), tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"sound.wav", "out.mp4"}


def test_wrong_arguments_are_told_the_right_call(clip, tmp_path):
    result, output = result_of(3), str(tmp_path / "x.mp4")
    for arguments in ((result, str(clip), output), (str(clip), output, result), ([str(clip)], result, output)):
        with pytest.raises(ValueError, match=r'write_overlay\("clip\.mp4", '):
            write_overlay(*arguments)
    for name in ("x.avi", "x", "x.png"):
        with pytest.raises(ValueError, match=r"must end in \.mp4"):
            write_overlay(clip, result, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_an_error_midway_leaves_nothing_behind(clip, tmp_path):
    def fail(planes, time):
        if time > 1:
            raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        rewrite_video(clip, tmp_path / "out.mp4", draw=fail)
    assert list(tmp_path.iterdir()) == []


def test_the_pipelines_heat_maps_can_be_drawn(checkpoint, clip, tmp_path):
    from transformers import pipeline

    localizer = pipeline("audio-visual-event-localization", model=checkpoint, device="cpu")
    write_overlay(clip, localizer(str(clip), return_heatmaps=True), tmp_path / "out.mp4")
    assert len(frames_of(tmp_path / "out.mp4")) == 100


def test_one_image_is_displayed_until_the_audio_ends_and_shows_each_segment(tmp_path):
    clip = write_recording(tmp_path / "still.mp4", 4, frame_times=[0.0], picture=grey_picture, sound=clicks([3.5]))
    write_overlay(clip, result_of(4), tmp_path / "out.mp4")
    frames = frames_of(tmp_path / "out.mp4")
    times = np.array([time for time, _ in frames])
    assert times[0] == 0 and 3.7 <= times[-1] < 4.1
    assert np.diff(times).max() < 0.25
    written = read_video(tmp_path / "out.mp4", sampling_rate=8000, num_frames_per_segment=2)
    assert [len(pictures) for pictures in written.frames] == [2, 2, 2, 2]
    # The band with the label: the same within an event, another one outside it.
    bands = [pictures[0][-24:-8].astype(int) for pictures in written.frames]
    assert np.abs(bands[1] - bands[2]).mean() < 2 < np.abs(bands[0] - bands[1]).mean()


def test_a_frame_before_a_long_pause_is_drawn_on_in_each_segment(tmp_path):
    times = [0.0, 0.1, 0.2, 3.0, 3.1, 3.2]
    clip = write_recording(
        tmp_path / "pause.mkv", 4, frame_times=times, picture=grey_picture, codecs=("libx264", "aac")
    )
    write_overlay(clip, result_of(4), tmp_path / "out.mp4")
    written = np.array([time for time, _ in frames_of(tmp_path / "out.mp4")])
    assert np.diff(written).max() < 0.25
    assert {round(time, 1) for time in times} <= {round(time, 1) for time in written}


def test_frames_at_a_constant_rate_that_end_before_the_audio_keep_their_end(tmp_path):
    clip = write_recording(tmp_path / "short.mp4", 2, sound_seconds=4)
    write_overlay(clip, result_of(4), tmp_path / "out.mp4")
    assert len(frames_of(tmp_path / "out.mp4")) == 50


def test_an_overlay_repeats_no_warning_of_a_repair(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_logger("ave_clip"), "propagate", True)
    parts = [
        write_recording(tmp_path / f"{offset}.ts", 2, options={"output_ts_offset": str(offset)}).read_bytes()
        for offset in (0, 3600)
    ]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(parts))
    read_video(joined, sampling_rate=8000)
    assert sum("jump" in record.getMessage() for record in caplog.records) == 1
    write_overlay(joined, result_of(4), tmp_path / "out.mp4")
    assert sum("jump" in record.getMessage() for record in caplog.records) == 1
