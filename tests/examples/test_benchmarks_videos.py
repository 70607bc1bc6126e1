"""The benchmarks of videos run at a small size and report what they promise."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from ave_clip import AudioCLIPConfig, AudioCLIPModel
from ave_clip.core.video_io import probe_video, read_video
from tests.helpers.models import tiny_audioclip_config

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def scripts():
    """The modules by name, imported as the scripts import each other."""
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in ("recordings", "pipeline", "frames")}
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def small_audioclip(tmp_path_factory) -> str:
    """Towers that take seconds at 44.1 kHz but are small."""
    content = tiny_audioclip_config().to_dict()
    content["audio_config"] |= {"sampling_rate": 44100, "hop_length": 512}
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("benchmarks") / "audioclip"
    AudioCLIPModel(AudioCLIPConfig(**content | {"towers": ("vision", "audio")})).save_pretrained(folder)
    return str(folder)


def rows_of(content: dict) -> dict[str, dict]:
    return {row["row"]: row for row in content["rows"]}


def test_a_repeated_recording_lasts_as_long_as_its_copies(scripts, tmp_path):
    recordings = scripts["recordings"]
    source = recordings.write_recording(tmp_path / "one.mp4", 2, "talking")
    target = recordings.repeat_recording(source, tmp_path / "three.mp4", 3)
    assert probe_video(target).duration_seconds == pytest.approx(6, abs=0.1)
    once, thrice = (read_video(path, num_frames_per_segment=2) for path in (source, target))
    assert [len(frames) for frames in thrice.frames] == [2] * 6
    for index in (2, 4):
        assert (thrice.frames[index] == once.frames[0]).all()
    assert (thrice.waveforms[2:4] != 0).mean() > 0.95


def test_overlap_and_length_are_measured(scripts, small_audioclip, tmp_path):
    output = tmp_path / "pipeline.json"
    arguments = ["--quick", "--rounds", "1", "--threads", "1", "--model", small_audioclip, "--output", str(output)]
    arguments += ["--parts", "localize", "length", "--frames", "1", "--minutes", "1"]
    rows = rows_of(scripts["pipeline"].main(arguments))
    assert json.loads(output.read_text())["rows"] == list(rows.values())
    localize = rows["localize, 10 s, 1 frames a segment"]
    assert localize["ratio"] == pytest.approx(localize["encoder_milliseconds"] / localize["milliseconds"], rel=0.01)
    minute = rows["video of 1 minutes, time a minute"]
    assert minute["ratio"] == 1
    assert 0 < minute["seconds_to_first_segments"] < minute["seconds"]
    assert rows["video of 1 minutes, peak memory"]["megabytes_more"] == 0


def test_the_default_model_is_compared_with_its_plain_towers(scripts, monkeypatch):
    monkeypatch.setattr(scripts["pipeline"], "MINI_SECONDS", 10)
    rows = rows_of(scripts["pipeline"].main(["--quick", "--rounds", "1", "--threads", "1", "--parts", "mini"]))
    row = rows["ave-clip-mini, 10 s"]
    assert row["times_real_time"] == pytest.approx(10_000 / row["milliseconds"], abs=0.1)
    assert 0 <= row["max_difference"] < 1e-4


def test_sharing_saves_most_encodings_of_a_still_image(scripts, small_audioclip):
    arguments = ["--quick", "--rounds", "1", "--models", "full", "--model", small_audioclip, "--parts", "sharing"]
    rows = rows_of(scripts["frames"].main(arguments))
    assert len(rows) == len(scripts["frames"].SCENES) * len(scripts["frames"].TOLERANCES)
    assert rows["still picture, tolerance 4, full"]["encoded_share"] <= 0.3
    assert rows["still picture, tolerance 4, full"]["min_cosine"] > 0.99
    moving = rows["moving picture, tolerance 0, full"]
    assert moving["encoded_share"] == 1
    assert moving["mean_cosine"] == pytest.approx(1, abs=1e-4)


def test_resize_and_number_of_frames_are_compared(scripts):
    arguments = ["--quick", "--rounds", "1", "--models", "embedded", "--parts", "resize", "number", "--clips", "3"]
    rows = rows_of(scripts["frames"].main(arguments))
    fast = rows["fast resize, embedded, 4 frames a segment"]
    assert 0 < fast["grey_levels_apart"] < 10
    assert fast["neighbours_cosine"] < fast["mean_cosine"] < 1
    assert rows["fast resize, embedded, accuracy"]["clips"] == 3
    assert rows["16 frames a segment, embedded"]["min_cosine"] == pytest.approx(1, abs=1e-4)
    assert all(rows[f"{count} frames a segment, embedded"]["accuracy"] > 0.5 for count in (1, 2, 4, 8, 16))
