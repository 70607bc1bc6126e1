"""The real annotation files: counts, splits, labels, duplicates and leaks as published."""

import os
import shutil
import sys
import zipfile

import datasets
import h5py
import numpy as np
import pytest
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from ave_clip.data import load_ave
from ave_clip.data.annotations import parse_annotations
from ave_clip.data.categories import AVE_CATEGORIES
from ave_clip.data.official_split import official_split
from ave_clip.data.source import read_source
from tests.helpers.ave_files import PeakMemory

SPLIT_FILES = {"train": "trainSet.txt", "validation": "valSet.txt", "test": "testSet.txt"}
TEST_LEAKS = [
    "-9_5_2i4igQ",
    "-PljzzluWNw",
    "-WOcO4B-Jis",
    "0NmA9tKpBdw",
    "0f_iTO5t3hU",
    "0qvQIuQoODo",
    "1cmo1SGxJnc",
    "7iIBkME4bSM",
]


@pytest.fixture(scope="module")
def splits(real_ave, tmp_path_factory):
    return load_ave(real_ave, cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def real_zip(real_ave, tmp_path_factory):
    path = tmp_path_factory.mktemp("zip") / "AVE.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in real_ave.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(real_ave.parent))
    return path


def linked(real_ave, folder, files):
    """A data set with other annotation files and the same videos."""
    folder.mkdir()
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    shutil.copytree(real_ave / "AVE", folder / "AVE", copy_function=os.link)
    return folder


def without_video(splits):
    return {split: part.remove_columns("video").to_list() for split, part in splits.items()}


def test_the_splits_are_the_split_files_row_by_row(splits, shared_ave):
    for split, file in SPLIT_FILES.items():
        rows = [
            f"{AVE_CATEGORIES[row['category']]}&{row['video_id']}&good&{row['start']:.0f}&{row['end']:.0f}"
            for row in splits[split].remove_columns("video")
        ]
        assert rows == (shared_ave / file).read_text().splitlines()
    assert {split: len(part) for split, part in splits.items()} == {"train": 3339, "validation": 402, "test": 402}


def test_labels_equal_the_published_label_files_in_all_rows(splits, shared_ave):
    rows = sorted(
        (row for part in splits.values() for row in part.remove_columns("video")), key=lambda row: row["row"]
    )
    assert [row["row"] for row in rows] == list(range(4143))
    labels, categories = np.array([row["labels"] for row in rows]), np.array([row["category"] for row in rows])
    with h5py.File(shared_ave / "mil_labels.h5") as file:
        assert np.array_equal(np.eye(29)[categories], file["avadataset"][:])
    with h5py.File(shared_ave / "labels_closs.h5") as file:
        assert np.array_equal(labels != 28, file["avadataset"][:] == 1)
    assert np.array_equal(np.where(labels == 28, categories[:, None], labels), np.tile(categories[:, None], 10))


def test_there_are_4097_videos_and_the_known_duplicates_and_leaks(splits):
    rows = [row for part in splits.values() for row in part.remove_columns("video")]
    assert len({row["video_id"] for row in rows}) == 4097
    assert sum(row["duplicate_of"] is not None for row in rows) == 46
    leaking = {split: {row["video_id"] for row in part if row["leaks_into"]} for split, part in splits.items()}
    assert sorted(leaking["test"]) == TEST_LEAKS
    assert len(leaking["validation"]) == 10
    assert leaking["train"] == leaking["test"] | leaking["validation"]


def test_row_26_is_all_background(splits):
    (row,) = splits["train"].remove_columns("video").filter(lambda row: row == 26, input_columns="row")
    assert row["labels"] == [28] * 10
    assert (row["video_id"], row["category"], row["events"]) == ("VWi2ENBuTbw", 0, [])


def test_both_header_variants_and_all_sources_of_the_split_give_the_same_data(splits, real_ave, shared_ave, tmp_path):
    expected = without_video(splits)
    split_files = [shared_ave / file for file in SPLIT_FILES.values()]
    order_files = [shared_ave / f"{split}_order.h5" for split in ("train", "val", "test")]
    for name, files in (
        ("header and split files", [shared_ave / "with_header" / "Annotations.txt", *split_files]),
        ("order files", [shared_ave / "Annotations.txt", *order_files]),
        ("header and nothing", [shared_ave / "with_header" / "Annotations.txt"]),
        ("nothing", [shared_ave / "Annotations.txt"]),
    ):
        assert without_video(load_ave(linked(real_ave, tmp_path / name, files))) == expected, name


def test_the_official_split_is_not_given_to_other_rows(shared_ave):
    rows = parse_annotations((shared_ave / "Annotations.txt").read_bytes(), AVE_CATEGORIES, 10)
    assert {split: len(members) for split, members in official_split(rows).items()} == {
        "train": 3339,
        "validation": 402,
        "test": 402,
    }
    assert official_split(rows[:-1]) is None


def test_the_cross_modality_split_contains_the_known_supervised_test_rows(splits, real_ave, shared_ave, tmp_path):
    files = [shared_ave / "Annotations.txt", *(shared_ave / f"{s}_order_match.h5" for s in ("train", "val", "test"))]
    source = read_source(linked(real_ave, tmp_path / "match", files), cross_modality=True)
    train = set(source.splits["train"])
    assert len(train & set(splits["test"]["row"])) == 323
    assert len(train & set(splits["validation"]["row"])) == 312


def test_streaming_from_the_zip_equals_the_built_data(real_zip, splits):
    streamed = load_ave(real_zip, streaming=True)
    assert {
        split: [{k: v for k, v in row.items() if k != "video"} for row in part] for split, part in streamed.items()
    } == without_video(splits)
    halves = [{row["row"] for row in split_dataset_by_node(streamed["test"], rank, 2)} for rank in range(2)]
    assert [len(half) for half in halves] == [201, 201]
    assert not halves[0] & halves[1]


def test_four_workers_see_every_row_once(real_zip, splits):
    streamed = load_ave(real_zip, split="train", streaming=True).select_columns(["row"])
    expected = sorted(splits["train"]["row"])
    assert sorted(row["row"] for row in DataLoader(streamed, batch_size=None, num_workers=4)) == expected
    built = DataLoader(splits["train"].select_columns(["row"]), batch_size=64, num_workers=4)
    assert sorted(row for batch in built for row in batch["row"].tolist()) == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads resident memory from /proc")
def test_building_takes_little_memory(real_ave, tmp_path):
    with PeakMemory() as peak:
        load_ave(real_ave, cache_dir=tmp_path)
    assert peak.megabytes < 100


def test_a_second_load_builds_nothing(real_ave, tmp_path, monkeypatch):
    first = load_ave(real_ave, cache_dir=tmp_path)
    monkeypatch.setattr(
        datasets.GeneratorBasedBuilder, "_prepare_split", lambda *args, **options: pytest.fail("built")
    )
    again = load_ave(real_ave, cache_dir=tmp_path)
    assert {split: part["row"] for split, part in again.items()} == {split: p["row"] for split, p in first.items()}
