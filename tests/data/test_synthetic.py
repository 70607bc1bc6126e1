"""Synthetic AVE: what happens when, in the layout and the files, and that nothing is shared or left behind."""

import json
from pathlib import Path

import numpy as np
import pytest

from ave_clip.data.synthetic import (
    NOTHING,
    NUM_SECONDS,
    SPLITS,
    SYNTHETIC_CATEGORIES,
    draw_script,
    generate_synthetic_ave,
)
from ave_clip.video_io import probe_video, read_video

BACKGROUND = len(SYNTHETIC_CATEGORIES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "set"
    generate_synthetic_ave(folder, num_videos=10, seed=5, num_workers=1)
    return folder


def rows_of(path: Path) -> list[list[str]]:
    return [line.split("&") for line in path.read_text().splitlines()]


def scripts(count: int, seed: int = 0):
    return [draw_script(seed, "train", index) for index in range(count)]


def test_the_folder_has_aves_layout(folder):
    rows = rows_of(folder / "Annotations.txt")
    lists = {split: rows_of(folder / f"{split}Set.txt") for split in SPLITS}
    assert {split: len(part) for split, part in lists.items()} == {"train": 8, "val": 1, "test": 1}
    assert sorted(rows) == sorted(row for part in lists.values() for row in part)
    assert (folder / "categories.txt").read_text().splitlines() == list(SYNTHETIC_CATEGORIES)
    for category, video_id, quality, start, end in rows:
        assert category in SYNTHETIC_CATEGORIES and quality == "good" and len(video_id) == 11
        assert 0 <= int(start) <= int(end) <= NUM_SECONDS
        assert (folder / "AVE" / f"{video_id}.mp4").is_file()
    assert any(row[1].startswith("-") for row in rows)
    assert json.loads((folder / "synthetic.json").read_text())["seed"] == 5


def test_an_event_is_exactly_where_sight_and_sound_are_of_one_class():
    for script in scripts(500):
        for second, label in enumerate(script.labels):
            agree = script.sights[second] == script.sounds[second] != NOTHING
            assert agree == (label != BACKGROUND)
            if agree:
                assert label == script.sights[second] == script.category


def test_events_last_two_to_ten_seconds_and_some_clips_have_none():
    lengths = np.array([script.end - script.start for script in scripts(1500)])
    assert set(lengths) == {0, *range(2, 11)}
    assert 0.06 < (lengths == 0).mean() < 0.15
    assert 0.35 < 1 - lengths.sum() / (len(lengths) * NUM_SECONDS) < 0.50


@pytest.mark.parametrize("modality", ["sights", "sounds"])
def test_one_modality_alone_cannot_tell_when(modality):
    """The class that is seen (or heard) for longest, wherever it is: what one modality shows of an event."""
    correct = []
    for script in scripts(1000):
        present = [value for value in getattr(script, modality) if value != NOTHING]
        main = max(set(present), key=present.count) if present else NOTHING
        guess = [value if value == main != NOTHING else BACKGROUND for value in getattr(script, modality)]
        correct += [a == b for a, b in zip(guess, script.labels)]
    assert np.mean(correct) < 0.78


def test_the_same_seed_gives_the_same_clips_and_another_seed_others(folder, tmp_path):
    generate_synthetic_ave(tmp_path / "again", num_videos=10, seed=5, num_workers=2)
    assert (tmp_path / "again/Annotations.txt").read_bytes() == (folder / "Annotations.txt").read_bytes()
    for path in sorted((folder / "AVE").glob("*.mp4"))[:3]:
        first, again = read_video(path), read_video(tmp_path / "again/AVE" / path.name)
        np.testing.assert_array_equal(first.waveforms, again.waveforms)
        for mine, theirs in zip(first.frames, again.frames):
            np.testing.assert_array_equal(mine, theirs)
    assert [s.labels for s in scripts(20, seed=0)] != [s.labels for s in scripts(20, seed=1)]


def test_splits_share_no_script_and_a_larger_set_holds_the_smaller():
    drawn = {split: {draw_script(3, split, index) for index in range(50)} for split in SPLITS}
    contents = {split: {(s.sights, s.sounds) for s in drawn[split] if len(set(s.sights)) > 1} for split in SPLITS}
    assert not contents["train"] & contents["test"] and not contents["train"] & contents["val"]


def test_clips_are_ten_seconds_with_the_event_seen_and_heard(folder):
    checked = 0
    for category, video_id, _, start, end in rows_of(folder / "trainSet.txt"):
        path = folder / "AVE" / f"{video_id}.mp4"
        info = probe_video(path)
        assert (info.has_video, info.has_audio, info.width, info.height) == (True, True, 192, 144)
        clip = read_video(path, num_frames_per_segment=12)
        assert clip.num_segments == NUM_SECONDS
        assert [len(frames) for frames in clip.frames] == [12] * NUM_SECONDS
        level = np.sqrt((clip.waveforms**2).mean(axis=1))
        script = next(
            s for s in scripts(8, seed=5) if (SYNTHETIC_CATEGORIES[s.category], s.start) == (category, int(start))
        )
        silent = [second for second in range(NUM_SECONDS) if script.sounds[second] == NOTHING]
        if silent and int(end) > int(start):
            assert level[int(start) : int(end)].min() > 2 * level[silent].max()
            checked += 1
    assert checked >= 1


def test_an_existing_folder_is_not_touched_without_leave(folder):
    before = (folder / "Annotations.txt").read_bytes()
    with pytest.raises(ValueError, match="is not empty"):
        generate_synthetic_ave(folder, num_videos=3)
    assert (folder / "Annotations.txt").read_bytes() == before
    assert not [path for path in folder.parent.iterdir() if path != folder]


def test_overwriting_replaces_a_synthetic_set_and_nothing_else(tmp_path):
    generate_synthetic_ave(tmp_path / "set", num_videos=3, num_workers=1)
    generate_synthetic_ave(tmp_path / "set", num_videos=4, num_workers=1, overwrite=True)
    assert len(rows_of(tmp_path / "set/Annotations.txt")) == 4
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="not an earlier synthetic data set"):
        generate_synthetic_ave(tmp_path / "mine", num_videos=3, overwrite=True)
    assert (tmp_path / "mine/thesis.txt").read_text() == "precious"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_videos": 0}, "num_videos=0"),
        ({"num_videos": 2}, "too few"),
        ({"seed": -1}, "seed=-1"),
        ({"num_workers": 1.5}, "num_workers=1.5"),
        ({"splits": (0.5, 0.1, 0.1)}, "sum to 1"),
    ],
)
def test_bad_numbers_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate_synthetic_ave(tmp_path / "set", **{"num_videos": 5, **arguments})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="'dev'"):
        draw_script(0, "dev", 0)
