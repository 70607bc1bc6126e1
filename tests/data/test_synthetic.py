"""The synthetic data set: scripts, layout, rendered files, independence of clips and failures."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ave_clip.core.video_io import probe_video, read_video
from ave_clip.data import load_ave
from ave_clip.data.synthetic.clips import (
    NOTHING,
    NUM_SECONDS,
    SPLITS,
    SYNTHETIC_CATEGORIES,
    ClipScript,
    draw_script,
    draw_video_ids,
    generate_synthetic_ave,
    render_clip,
)

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


def test_the_folder_has_the_layout_of_ave(folder):
    rows = rows_of(folder / "Annotations.txt")
    lists = {split: rows_of(folder / f"{split}Set.txt") for split in SPLITS}
    assert {split: len(part) for split, part in lists.items()} == {"train": 8, "val": 1, "test": 1}
    assert sorted(rows) == sorted(row for part in lists.values() for row in part)
    assert (folder / "categories.txt").read_text().splitlines() == list(SYNTHETIC_CATEGORIES)
    for category, video_id, quality, start, end in rows:
        assert category in SYNTHETIC_CATEGORIES and quality == "good" and len(video_id) == 11
        assert 0 <= int(start) <= int(end) <= NUM_SECONDS
        assert (folder / "AVE" / f"{video_id}.mp4").is_file()
    assert not any(video_id.startswith("-") for video_id in draw_video_ids(5, scripts(500)))
    assert json.loads((folder / "synthetic.json").read_text())["seed"] == 5


def test_an_event_is_exactly_where_object_and_audio_have_the_same_class():
    for script in scripts(500):
        for second, label in enumerate(script.labels):
            agree = script.objects[second] == script.sounds[second] != NOTHING
            assert agree == (label != BACKGROUND)
            if agree:
                assert label == script.objects[second] == script.category


@pytest.mark.parametrize("split", SPLITS)
def test_events_last_two_to_ten_seconds_and_some_clips_have_none(split):
    lengths = np.array([sum(label != BACKGROUND for label in draw_script(0, split, i).labels) for i in range(600)])
    assert set(lengths) == {0, *range(2, 11)}
    assert (lengths == 0).mean() == pytest.approx(0.10, abs=0.02)
    assert (lengths == 2).mean() == pytest.approx(0.045, abs=0.02)
    assert 1 - lengths.mean() / NUM_SECONDS == pytest.approx(0.426, abs=0.015)


def test_every_split_contains_all_classes_equally_often():
    for split in SPLITS:
        dealt = sorted(draw_script(0, split, index).category for index in range(32))
        assert dealt == sorted([*range(BACKGROUND)] * 2)


@pytest.mark.parametrize("modality", ["objects", "sounds"])
def test_one_modality_alone_cannot_tell_when(modality):
    """The baseline of one modality predicts the class that it shows for the longest time, in all of these seconds."""
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


def test_splits_and_seeds_share_no_instance(tmp_path):
    """The same script gives other frames and audio in another split, at another index or with another seed."""
    script = ClipScript("train", 0, category=4, start=0, end=10, objects=(4,) * 10, sounds=(4,) * 10, silent_room=True)
    variants = [(1, script), (2, script), *((1, replace(script, split=split)) for split in SPLITS[1:])]
    variants.append((1, replace(script, index=1)))
    clips = []
    for number, (seed, variant) in enumerate(variants):
        render_clip(seed, variant, tmp_path / f"{number}.mp4")
        clips.append(read_video(tmp_path / f"{number}.mp4", num_frames_per_segment=1))
    for one, other in itertools.combinations(clips, 2):
        assert np.abs(one.waveforms - other.waveforms).mean() > 0.01
        assert np.abs(one.frames[3].astype(float) - other.frames[3]).mean() > 5


def test_a_larger_set_of_the_same_seed_contains_the_smaller(tmp_path):
    for number in (1, 2):
        generate_synthetic_ave(tmp_path / str(number), num_videos=number, num_workers=0, splits=(0, 0, 1))
    (row,) = rows_of(tmp_path / "1/testSet.txt")
    assert rows_of(tmp_path / "2/testSet.txt")[0] == row
    name = f"AVE/{row[1]}.mp4"
    assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert (tmp_path / "1/trainSet.txt").read_bytes() == b""


def test_clips_are_ten_seconds_with_the_event_seen_and_heard(folder):
    for row, script in zip(rows_of(folder / "trainSet.txt"), scripts(8, seed=5)):
        path = folder / "AVE" / f"{row[1]}.mp4"
        info = probe_video(path)
        assert (info.has_video, info.has_audio, info.width, info.height) == (True, True, 192, 144)
        assert info.duration_seconds == pytest.approx(NUM_SECONDS, abs=0.05)
        clip = read_video(path, num_frames_per_segment=12)
        assert clip.num_segments == NUM_SECONDS
        assert [len(frames) for frames in clip.frames] == [12] * NUM_SECONDS
        level = np.sqrt((clip.waveforms**2).mean(axis=1))
        heard = np.array(script.sounds) != NOTHING
        if not heard.all():
            assert level[heard].min() > 2 * level[~heard].max()


def test_frames_and_audio_change_at_whole_seconds(tmp_path):
    objects, sounds = (NOTHING,) * 3 + (1,) * 4 + (NOTHING,) * 3, (NOTHING,) * 3 + (6,) * 4 + (NOTHING,) * 3
    script = ClipScript("val", 0, category=1, start=0, end=0, objects=objects, sounds=sounds, silent_room=True)
    render_clip(0, script, tmp_path / "clip.mp4")
    clip = read_video(tmp_path / "clip.mp4", num_frames_per_segment=12)
    loud = np.flatnonzero(np.abs(clip.waveforms.reshape(-1)) > 0.01) / clip.sampling_rate
    assert loud[[0, -1]] == pytest.approx([3, 7], abs=0.03)
    redness = [np.percentile(frame[..., 0].astype(int) - frame[..., 2], 99) for frame in np.concatenate(clip.frames)]
    assert min(redness[36:84]) > 1.3 * max(redness[:36] + redness[84:])


@pytest.mark.parametrize("streaming", [False, True])
def test_a_set_of_one_split_loads_and_another_split_is_refused(tmp_path, streaming):
    generate_synthetic_ave(tmp_path / "set", num_videos=2, num_workers=0, splits=(0, 0, 1))
    options = {"streaming": streaming, "cache_dir": tmp_path / "cache"}
    assert len(list(load_ave(tmp_path / "set", split="test", **options))) == 2
    assert list(load_ave(tmp_path / "set", **options)) == ["test"]
    for split in ("train", "val"):
        with pytest.raises(ValueError, match=r"[Ss]plit.*(train|validation).*\['test'\]"):
            load_ave(tmp_path / "set", split=split, **options)


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


def test_a_failure_leaves_no_files(tmp_path):
    def stop(done: int, total: int) -> None:
        assert (done, total) == (1, 3)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        generate_synthetic_ave(tmp_path / "set", num_videos=3, num_workers=0, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_filled_while_rendering_is_not_replaced(tmp_path):
    def intrude(done: int, total: int) -> None:
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set/thesis.txt").write_text("precious")

    with pytest.raises(ValueError, match="is not empty"):
        generate_synthetic_ave(tmp_path / "set", num_videos=3, num_workers=0, progress=intrude)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (tmp_path / "set/thesis.txt").read_text() == "precious"


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
