"""The video with heat map, label and time line: what is drawn where, and that the file is still the same video."""

import json
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from transformers.utils import logging

from ave_clip.overlay import write_overlay
from ave_clip.video_io import VideoReadError, iter_segments, read_video
from ave_clip.video_processing_ave_clip import AVEClipVideoProcessor
from ave_clip.video_writing import even_size, rewrite_video

from .media import click_times, clicks, corner_picture, frame_number, numbered_picture, write_recording

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
def test_ffprobe_finds_the_same_duration_frames_and_sound(clip, tmp_path):
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


def test_sound_is_copied_and_stays_in_time(clip, tmp_path):
    output = tmp_path / "out.mp4"
    write_overlay(clip, result_of(4), output)
    assert sound_packets(output) == sound_packets(clip)
    sound = read_video(output).waveforms.reshape(-1)
    assert click_times(sound, 44100) == pytest.approx([0.5, 2.25], abs=0.002)


@pytest.mark.parametrize("name", ["clip.mkv", "clip.ts", "clip.avi"])
def test_other_sound_is_encoded_and_stays_in_time(tmp_path, name):
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


def test_frames_keep_their_own_times_and_order(tmp_path):
    times = [0.0, 0.04, 0.3, 0.31, 0.9, 1.5, 1.52, 1.9]
    clip = write_recording(
        tmp_path / "clip.mp4", 2.0, frame_times=times, picture=lambda number: numbered_picture(number, height=160)
    )
    write_overlay(clip, result_of(2), tmp_path / "out.mp4")
    found = frames_of(tmp_path / "out.mp4")
    assert [time for time, _ in found] == pytest.approx(times, abs=0.0011)
    assert [frame_number(picture[:40]) for _, picture in found] == list(range(8))


def test_a_late_picture_stays_late(tmp_path):
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


def test_the_heat_map_lies_where_the_model_looked(grey, tmp_path):
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


def test_a_whole_picture_is_covered_where_nothing_is_cropped(grey, tmp_path):
    processor = AVEClipVideoProcessor(do_center_crop=False)
    maps = np.full((3, 2, 2), 0.01)
    maps[:, 0, 0] = 1.0
    write_overlay(grey, result_of(3), tmp_path / "out.mp4", heatmaps=maps, video_processor=processor)
    assert np.argwhere(heat(tmp_path / "out.mp4", 0.5)[:60] > 30).min(axis=0) == pytest.approx([0, 0], abs=1)


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
    with pytest.raises(VideoReadError, match="has no picture"):
        write_overlay(sound, result_of(1), tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"sound.wav", "out.mp4"}


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
