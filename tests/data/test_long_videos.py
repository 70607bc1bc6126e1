"""Synthetic long videos with overlapping events: the script, the files, and what users can get wrong."""

import csv
import json

import numpy as np
import pytest
from typer.testing import CliRunner

from ave_clip.cli import app
from ave_clip.core.video_io import read_video
from ave_clip.data.synthetic.long_videos import (
    MAX_AT_ONCE,
    OVERLAPPING_CATEGORIES,
    STEPS_PER_SECOND,
    LongScript,
    Occurrence,
    draw_long_script,
    generate_overlapping_videos,
    render_long_video,
)


def active(script: LongScript, *kinds: str) -> np.ndarray:
    """Which classes occur as one of these kinds in each step, `(num_steps, num_classes)`."""
    table = np.zeros((script.num_seconds * STEPS_PER_SECOND, len(OVERLAPPING_CATEGORIES)), int)
    for one in script.occurrences:
        if one.kind in kinds:
            table[round(one.start * STEPS_PER_SECOND) : round(one.end * STEPS_PER_SECOND), one.category] += 1
    return table


@pytest.mark.parametrize("index", range(5))
def test_a_class_is_both_seen_and_heard_only_in_its_events(index):
    script = draw_long_script(3, "train", index, 60)
    seen, heard = active(script, "event", "seen"), active(script, "event", "heard")
    assert (((seen > 0) & (heard > 0)) == (active(script, "event") > 0)).all()
    assert seen.max() <= 1 and heard.max() <= 1
    assert seen.sum(axis=1).max() <= MAX_AT_ONCE and heard.sum(axis=1).max() <= MAX_AT_ONCE
    assert all(0 <= one.start < one.end <= 60 for one in script.occurrences)


def test_events_overlap_and_every_class_and_kind_occurs():
    scripts = [draw_long_script(0, "train", index, 60) for index in range(16)]
    at_once = np.concatenate([active(script, "event").sum(axis=1) for script in scripts])
    assert (at_once >= 2).mean() > 0.15
    assert (at_once == 0).mean() > 0.1
    everything = [one for script in scripts for one in script.occurrences]
    assert {one.kind for one in everything} == {"event", "seen", "heard"}
    assert {one.category for one in everything if one.kind == "event"} == set(range(len(OVERLAPPING_CATEGORIES)))


def test_objects_that_are_visible_together_are_at_different_places():
    for index in range(5):
        visible = [one for one in draw_long_script(1, "test", index, 60).occurrences if one.kind != "heard"]
        for number, one in enumerate(visible):
            together = [other for other in visible[:number] if one.start < other.end and other.start < one.end]
            assert one.place not in [other.place for other in together]


def test_frames_and_audio_change_where_the_script_says(tmp_path):
    occurrences = (Occurrence(0, "event", 2.25, 6.0, 1), Occurrence(3, "heard", 7.0, 9.0))
    script = LongScript("train", 0, 10, occurrences, silent_room=True)
    render_long_video(0, script, tmp_path / "one.mp4")
    clip = read_video(tmp_path / "one.mp4", sampling_rate=44100, num_frames_per_segment=4)
    assert clip.num_segments == 10
    loud = [float(np.abs(part).max()) > 0.01 for part in clip.waveforms.reshape(40, -1)]
    expected = [2.25 <= t < 6 or 7 <= t < 9 for t in np.arange(0, 10, 0.25)]
    # The codec spreads sound by a few milliseconds, into the neighboring quarter of a second at most.
    assert sum(one != other for one, other in zip(loud, expected)) <= 4
    # The object is pink and yellow: much more red than the background anywhere.
    frames = [frame.astype(int) for part in clip.frames for frame in part]
    red = [float((frame[..., 0] - frame.min(axis=-1) > 110).mean()) for frame in frames]
    assert [share > 0.005 for share in red] == [2.25 <= t < 6 for t in np.arange(0, 10, 0.25)]


def test_the_folder_is_annotated_in_one_table(tmp_path):
    counts = generate_overlapping_videos(tmp_path / "out", num_videos=3, num_seconds=10, seed=5, num_workers=0)
    with open(tmp_path / "out" / "annotations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"train", "validation", "test"}
    assert len({row["path"] for row in rows}) == 3
    assert all((tmp_path / "out" / row["path"]).stat().st_size > 0 for row in rows)
    assert sum(bool(row["label"]) for row in rows) == sum(counts.values())
    written = (tmp_path / "out" / "categories.txt").read_text().split("\n")[:-1]
    assert tuple(written) == OVERLAPPING_CATEGORIES
    facts = json.loads((tmp_path / "out" / "synthetic.json").read_text())
    assert (facts["seed"], facts["num_seconds"], facts["num_events"]) == (5, 10, counts)
    with pytest.raises(ValueError, match="not empty"):
        generate_overlapping_videos(tmp_path / "out", num_videos=3, num_seconds=10, num_workers=0)


def test_the_same_seed_gives_the_same_videos(tmp_path):
    script = draw_long_script(0, "val", 2, 10)
    assert script == draw_long_script(0, "val", 2, 10) != draw_long_script(1, "val", 2, 10)
    for name in ("a", "b"):
        render_long_video(0, script, tmp_path / f"{name}.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_seconds": 9}, "num_seconds=9"),
        ({"num_videos": 0}, "num_videos=0"),
        ({"num_videos": 2}, "too few"),
        ({"seed": -1}, "seed=-1"),
        ({"splits": (1, 1, 1)}, "sum to 1"),
    ],
)
def test_bad_numbers_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_overlapping_videos(tmp_path / "out", **{"num_videos": 3, "num_workers": 0, **arguments})
    assert not (tmp_path / "out").exists()


def test_the_command_makes_long_videos(tmp_path):
    options = ["--overlapping", "--videos", "3", "--duration", "10", "--workers", "1"]
    result = CliRunner().invoke(app, ["synthesize", str(tmp_path / "out"), *options])
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out" / "videos").glob("*.mp4"))) == 3
    result = CliRunner().invoke(app, ["synthesize", str(tmp_path / "other"), "--duration", "30"])
    assert result.exit_code == 2
