"""`open_dataset`: one door to all kinds of data sets, their splits, and the errors of each."""

import json
import logging

import datasets
import pytest

from ave_clip.data import (
    AnnotationError,
    load_ave,
    load_videos,
    open_dataset,
    to_parquet,
    to_videofolder,
    to_webdataset,
)
from ave_clip.outputs.formats import format_audacity
from tests.data.test_benchmarks import OV_LABELS, OV_META, UNAV

LINES = [
    "path,label,start,end",
    "a.mp4,Bark,0,2",
    "a.mp4,Whine,1,3",
    "b.mp4,Bark,0,1",
    "c.mp4,,,",
    "d.mp4,Whine,1,2.6",
]
NAMES = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]


@pytest.fixture
def own(tmp_path, recordings):
    """Four videos of 3 seconds and a table without splits; two events overlap."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(recordings["long"].read_bytes())
    return write(folder / "events.csv", LINES)


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def split_names(dataset) -> dict[str, list[str]]:
    return {split: rows["video_id"][:] for split, rows in dataset.items()}


def test_a_table_with_several_events_at_once(own):
    rows = open_dataset(own, "train", problem_type="multi_label")
    assert [row["labels"] for row in rows] == [
        [[1, 0], [1, 1], [0, 1]],
        [[1, 0], [0, 0], [0, 0]],
        [[0, 0], [0, 0], [0, 0]],
        [[0, 0], [0, 1], [0, 1]],
    ]
    assert rows[0]["events"] == [{"label": 0, "start": 0.0, "end": 2.0}, {"label": 1, "start": 1.0, "end": 3.0}]
    assert rows["duration"][:] == [3.0] * 4
    with pytest.raises(AnnotationError, match=r"line 3: 'Whine' .* overlaps 'Bark' .* of line 2 .*multi_label"):
        open_dataset(own)


def test_shorter_segments_have_labels_of_their_own(own):
    rows = open_dataset(own, "train", problem_type="multi_label", segment_seconds=0.5)
    assert rows[3]["labels"] == [[0, 0], [0, 0], [0, 1], [0, 1], [0, 1], [0, 0]]


@pytest.mark.parametrize("write_export", [to_parquet, to_webdataset, to_videofolder])
def test_exported_data_sets_are_opened_with_the_same_columns(write_export, own, tmp_path):
    wanted = open_dataset(own, problem_type="multi_label", split_fractions=(0.5, 0.25, 0.25))
    write_export(wanted, tmp_path / "exported")
    found = open_dataset(tmp_path / "exported")
    assert found.keys() == wanted.keys()
    for split, rows in wanted.items():
        assert found[split].features["labels"] == rows.features["labels"]
        columns = [name for name in rows.column_names if name != "video"]
        assert found[split].select_columns(columns).to_list() == rows.select_columns(columns).to_list()
    halves = open_dataset(tmp_path / "exported", "train", segment_seconds=0.5)
    assert (
        halves["labels"][:]
        == open_dataset(own, problem_type="multi_label", segment_seconds=0.5, split_fractions=(0.5, 0.25, 0.25))[
            "train"
        ]["labels"][:]
    )
    single = open_dataset(tmp_path / "exported", "train", problem_type="single_label")
    assert isinstance(single.features["labels"].feature, datasets.Value)
    with pytest.raises(ValueError, match="defines the splits"):
        open_dataset(tmp_path / "exported", split_fractions=(0.5, 0.25, 0.25))


def test_published_data_sets_are_opened_by_their_annotations(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in (*UNAV["database"], *OV_LABELS):
        (videos / f"{name}.mp4").write_text(name)
    (tmp_path / "unav100_annotations.json").write_text(json.dumps(UNAV))
    unav = open_dataset(tmp_path / "unav100_annotations.json", video_dir=videos)
    assert unav["train"][0]["labels"] == [[0, 1, 0], [0, 1, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]]
    (tmp_path / "anno.json").write_text(json.dumps(OV_LABELS))
    with pytest.raises(ValueError, match="--meta"):
        open_dataset(tmp_path / "anno.json", video_dir=videos)
    write(tmp_path / "ovave_dataset_meta.csv", OV_META)
    ov = open_dataset(tmp_path / "anno.json", video_dir=videos)
    assert ov["test"][0]["labels"] == [2, 2, 2, 2, 0, 0, 2, 0, 0, 0] and not ov["test"][0]["seen"]
    with pytest.raises(ValueError, match="--video_dir"):
        open_dataset(tmp_path / "anno.json")


def test_aves_layout_is_opened_by_its_folder_or_its_annotations(ave):
    wanted = load_ave(ave.root, split="test").to_list()
    assert open_dataset(ave.root, "test").to_list() == wanted
    assert open_dataset(ave.root / "Annotations.txt", "test").to_list() == wanted


def test_label_files_are_opened_as_a_folder(own):
    for name, events in (("a", [("Bark", 0.0, 2.0)]), ("b", [])):
        result = {"events": [dict(zip(("label", "start", "end", "score"), (*event, 1.0))) for event in events]}
        (own.parent / f"{name}.txt").write_text(format_audacity({**result, "segments": []}, str(own.parent)))
    own.unlink()
    rows = open_dataset(own.parent, "train", problem_type="multi_label")
    assert rows["video_id"][:] == ["a.mp4", "b.mp4"] and rows[0]["labels"] == [[1], [1], [0]]


def test_a_folder_of_tables_has_the_splits_of_their_names(own):
    write(own.parent / "train.csv", LINES[:4])
    write(own.parent / "val.csv", [LINES[0], LINES[5]])
    write(own.parent / "notes.txt", ["anything"])
    own.unlink()
    splits = open_dataset(own.parent, problem_type="multi_label")
    assert split_names(splits) == {"train": ["a.mp4", "b.mp4"], "validation": ["d.mp4"]}
    write(own.parent / "val.csv", [LINES[0], LINES[5], LINES[3]])
    with pytest.raises(AnnotationError, match=r"val\.csv, line 3: the video 'b\.mp4' is in train\.csv, too"):
        open_dataset(own.parent, problem_type="multi_label")
    write(own.parent / "val.csv", [LINES[0] + ",split", LINES[5] + ",test"])
    with pytest.raises(AnnotationError, match=r"val\.csv, line 2: .* the file is named after validation"):
        open_dataset(own.parent, problem_type="multi_label")


def test_a_random_split_keeps_the_rows_of_a_video_together_and_does_not_depend_on_their_order(own):
    (own.parent / "e.mp4").symlink_to(own.parent / "d.mp4")  # the same video under another name
    options = {"problem_type": "multi_label", "split_fractions": (0.5, 0.25, 0.25)}
    write(own, [*LINES, "e.mp4,Bark,0,1"])
    first = split_names(open_dataset(own, **options))
    assert sorted(name for names in first.values() for name in names) == [*NAMES, "e.mp4"]
    assert {split: len(set(names) - {"e.mp4"}) for split, names in first.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    assert any({"d.mp4", "e.mp4"} <= set(names) for names in first.values())
    write(own, [LINES[0], "d.mp4,Whine,1,2.6", *LINES[1:5], "e.mp4,Bark,0,1"])
    again = split_names(open_dataset(own, **options))
    assert {split: sorted(names) for split, names in again.items()} == {
        split: sorted(names) for split, names in first.items()
    }
    seeds = [split_names(open_dataset(own, **options, split_seed=seed))["train"] for seed in range(6)]
    assert len({tuple(names) for names in seeds}) > 1


@pytest.mark.parametrize("fractions", [(0.8, 0.2), (0.5, 0.6, 0.1), (-0.1, 0.6, 0.5), (0.0, 0.5, 0.5)])
def test_fractions_that_are_no_split_are_refused(own, fractions):
    with pytest.raises(ValueError, match="whose sum is 1"):
        open_dataset(own, problem_type="multi_label", split_fractions=fractions)


def test_split_files_name_the_videos_of_each_split(own, caplog):
    files = {
        "train": write(own.parent / "train.txt", ["a.mp4", "b"]),  # with or without the suffix
        "test": write(own.parent / "test.txt", ["d.mp4"]),
    }
    with caplog.at_level(logging.WARNING):
        splits = load_videos(own, problem_type="multi_label", split_files=files)
    assert split_names(splits) == {"train": ["a.mp4", "b.mp4"], "test": ["d.mp4"]}
    assert "1 of 4 videos are in no split file and left out, the first: c.mp4." in caplog.text
    write(files["test"], ["d.mp4", "x.mp4"])
    with pytest.raises(AnnotationError, match=r"test\.txt, line 2: the video 'x\.mp4' is not in the annotations"):
        load_videos(own, problem_type="multi_label", split_files=files)
    write(files["test"], ["a.mp4"])
    with pytest.raises(AnnotationError, match=r"test\.txt, line 1: the video 'a\.mp4' is in line 1 of \S*train\.txt"):
        load_videos(own, problem_type="multi_label", split_files=files)
    with pytest.raises(ValueError, match="split_files for 'dev'"):
        load_videos(own, problem_type="multi_label", split_files={"dev": files["train"]})
    with pytest.raises(ValueError, match="Pass one of them"):
        load_videos(own, problem_type="multi_label", split_files=files, split_fractions=(0.5, 0.25, 0.25))


def test_a_data_set_with_splits_is_not_split_again(own, ave):
    write(own, [LINES[0] + ",split", *(line + ",train" for line in LINES[1:4]), LINES[5] + ",test"])
    for data, options in ((own, {"problem_type": "multi_label"}), (ave.root, {})):
        with pytest.raises(ValueError, match=r"defines the splits .* already"):
            open_dataset(data, split_fractions=(0.8, 0.1, 0.1), **options)


def test_aves_layout_without_splits_is_split_by_video(ave):
    for name in ("trainSet.txt", "valSet.txt", "testSet.txt"):
        (ave.root / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="does not define splits"):
        open_dataset(ave.root)
    splits = open_dataset(ave.root, split_fractions=(0.6, 0.2, 0.2))
    assert sum(map(len, splits.values())) == len(ave.rows)
    assert all(not others for rows in splits.values() for others in rows["leaks_into"])


def test_what_is_no_data_set_is_refused_with_all_that_are(own, tmp_path):
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "empty", own.parent / "a.mp4"):
        with pytest.raises(ValueError, match=r"reader recognizes .*Audacity.*UnAV-100"):
            open_dataset(data)
    with pytest.raises(FileNotFoundError, match=r"does not exist\. Wanted: .*AVE's layout"):
        open_dataset(tmp_path / "nowhere.csv")
    with pytest.raises(TypeError, match=r"has no options \['colour'\]"):
        open_dataset(own, colour=1)


def test_a_path_that_looks_like_a_name_of_the_hub_is_called_a_missing_path(monkeypatch):
    def unreachable(*arguments, **options):
        raise ConnectionError("Couldn't reach 'labels/train.csv' on the Hub")

    monkeypatch.setattr("ave_clip.data.opening.load_exported", unreachable)
    with pytest.raises(FileNotFoundError, match=r"'labels/train.csv' is neither a path here nor .* reach .*UnAV-100"):
        open_dataset("labels/train.csv")


def test_options_of_another_kind_of_data_set_are_refused(own, ave):
    with pytest.raises(ValueError, match=r"'ave' .* no option \['tier'\]"):
        open_dataset(ave.root, tier="events")
    with pytest.raises(ValueError, match=r"'table' .* no option \['num_segments'\]"):
        open_dataset(own, num_segments=5)
    with pytest.raises(ValueError, match=r"`problem_type` must be .* got 'several'"):
        open_dataset(own, problem_type="several")
