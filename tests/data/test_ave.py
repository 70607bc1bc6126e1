import datasets
import pytest
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from ave_clip.data import (
    AVE,
    AVE_CATEGORIES,
    AnnotationError,
    MissingVideoError,
    check_videos,
    generate_synthetic_ave,
    load_ave,
)
from tests.helpers.ave_files import ROWS, SPLITS, write_ave, write_lines, write_orders


def rows_of(dataset, without=("video",)):
    return [{name: value for name, value in row.items() if name not in without} for row in dataset]


def everything(splits, without=("video",)):
    return {split: rows_of(dataset, without) for split, dataset in splits.items()}


def messages(caplog):
    return " ".join(record.getMessage() for record in caplog.records)


@pytest.fixture
def heard(caplog, monkeypatch):
    """Log records of the package, which transformers' logger keeps from the root."""
    import logging

    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("ave_clip"), "propagate", True)
    return caplog


def test_a_row_says_everything_about_its_clip(ave):
    row = load_ave(ave.root, split="test")[1]
    assert row == {
        "row": 4,
        "video_id": "both_talk__E",
        "video": {"bytes": None, "path": str(ave.video("both_talk__E"))},
        "category": AVE_CATEGORIES.index("Male speech, man speaking"),
        "labels": [28, 1, 1, 1, 28, 28, 28, 28, 28, 28],
        "start": 1.0,
        "end": 4.0,
        "events": [{"label": 1, "start": 1.0, "end": 4.0}],
        "duration": 10.0,
        "duplicate_of": None,
        "leaks_into": ["train"],
    }


def test_splits_come_in_the_order_of_their_files_keyed_by_row(ave):
    splits = load_ave(ave.root)
    assert {split: list(dataset["row"]) for split, dataset in splits.items()} == SPLITS
    assert [row["video_id"] for row in splits["train"]] == [ROWS[row].split("&")[1] for row in SPLITS["train"]]


def test_a_row_without_event_is_all_background_but_keeps_its_category(ave):
    row = load_ave(ave.root, split="test")[2]
    assert row["labels"] == [28] * 10
    assert (row["category"], row["start"], row["end"], row["events"]) == (0, 0.0, 0.0, [])


def test_repeated_videos_are_marked_within_and_across_splits(ave):
    marks = {
        row["row"]: (row["duplicate_of"], row["leaks_into"]) for part in load_ave(ave.root).values() for row in part
    }
    assert marks[4] == (None, ["train"])
    assert marks[5] == (4, ["test"])
    assert marks[7] == (None, ["train"])
    assert marks[8] == (7, ["test"])
    assert all(marks[row] == (None, []) for row in (0, 1, 2, 3, 6))


@pytest.mark.parametrize("options", [{"header": True}, {"end": "\r\n"}, {"last": ""}, {"header": True, "end": "\r\n"}])
def test_variants_of_the_annotation_file_give_the_same_data(ave, tmp_path, options):
    other = write_ave(tmp_path / "other", **options)
    assert everything(load_ave(other.root)) == everything(load_ave(ave.root))


def test_order_files_and_split_files_give_the_same_data(ave, tmp_path):
    other = write_ave(tmp_path / "other", splits={})
    write_orders(other.root)
    assert everything(load_ave(other.root)) == everything(load_ave(ave.root))


def test_without_split_files_rows_that_are_not_aves_are_refused(tmp_path):
    other = write_ave(tmp_path / "other", splits={})
    with pytest.raises(ValueError, match=r"does not define splits.*trainSet\.txt.*train_order\.h5"):
        load_ave(other.root)


def test_an_order_file_with_a_row_that_does_not_exist_is_refused(tmp_path):
    other = write_ave(tmp_path / "other", splits={})
    write_orders(other.root, {"train": [0, 1, 9], "test": [2]})
    with pytest.raises(
        AnnotationError, match=r"train_order\.h5: row 9 does not exist; the annotations have rows 0 to 8"
    ):
        load_ave(other.root)


def test_an_empty_split_file_means_no_such_split(ave):
    (ave.root / "valSet.txt").write_text("")
    assert set(load_ave(ave.root)) == {"train", "test"}


def test_one_split_or_a_slice_of_one_can_be_asked_for(ave):
    assert list(load_ave(ave.root, split="val")["row"]) == SPLITS["validation"]
    assert list(load_ave(ave.root, split="train[:2]")["row"]) == SPLITS["train"][:2]
    assert list(load_ave(ave.root, split="val+test")["row"]) == SPLITS["validation"] + SPLITS["test"]
    with pytest.raises(ValueError, match="nosuch"):
        load_ave(ave.root, split="nosuch")


def test_categories_of_ones_own_come_from_their_file(tmp_path):
    rows = ["Gong&gong0000001&good&2&4", "Drum&drum0000001&good&0&1", "Gong&gong0000002&good&0&0"]
    files = write_ave(tmp_path / "own", rows, {"train": [1, 0], "test": [2]})
    write_lines(files.root / "categories.txt", ["Gong", "Drum"])
    train = load_ave(files.root, split="train")
    assert train.features["category"].names == ["Gong", "Drum"]
    assert train[0]["labels"] == [1] + [2] * 9
    assert train[1]["labels"] == [2, 2, 0, 0] + [2] * 6
    write_lines(files.root / "categories.txt", ["Gong", "Drums"])
    with pytest.raises(
        AnnotationError, match=r"Annotations\.txt, line 2: Got the category 'Drum'.*Did you mean 'Drums'"
    ):
        load_ave(files.root)


def test_without_a_category_file_the_categories_are_aves(ave):
    assert load_ave(ave.root, split="test").features["category"].names == list(AVE_CATEGORIES)


def test_longer_clips_need_num_segments(tmp_path):
    files = write_ave(tmp_path / "long", ["Bark&long0000001&good&8&12"], {"train": [0]})
    with pytest.raises(AnnotationError, match="ends at 12 s, but a clip has 10 s"):
        load_ave(files.root)
    assert load_ave(files.root, split="train", num_segments=12)[0]["labels"] == [28] * 8 + [2] * 4


def test_a_missing_or_empty_video_is_reported(ave, heard):
    ave.video("strings____G").unlink()
    ave.video("-bell_one-A").write_bytes(b"")
    with pytest.raises(
        MissingVideoError, match=r"3 of 9 rows cannot be read: -bell_one-A \(row 0\): empty; strings"
    ) as error:
        load_ave(ave.root)
    found = {(problem.row, problem.reason) for problem in error.value.problems}
    assert found == {(0, "empty"), (7, "missing"), (8, "missing")}
    assert {(p.row, p.reason) for p in check_videos(ave.root, probe_videos=False)} == found
    splits = load_ave(ave.root, on_missing="skip")
    assert {split: list(part["row"]) for split, part in splits.items()} == {
        "train": [5, 3],
        "validation": [1, 6],
        "test": [4, 2],
    }
    assert "These rows are left out" in messages(heard)
    heard.clear()
    assert "strings____G (row 8): missing" in load_ave(ave.root, split="test", on_missing="skip").info.description
    assert "These rows are left out" in messages(heard)  # also where the rows come from the cache
    heard.clear()
    list(load_ave(ave.root, split="test", on_missing="skip", streaming=True))
    assert "These rows are left out" in messages(heard)


def test_unreadable_videos_are_found_on_request(ave, recordings):
    for video in (ave.root / "AVE").iterdir():
        if video.stem != "_frying____F":
            video.write_bytes(recordings["short"].read_bytes())
    assert len(load_ave(ave.root, split="validation")) == 2
    with pytest.raises(MissingVideoError, match=r"_frying____F \(row 6\)"):
        load_ave(ave.root, probe_videos=True)
    assert [problem.row for problem in check_videos(ave.root)] == [6]
    assert list(load_ave(ave.root, split="validation", probe_videos=True, on_missing="skip")["row"]) == [1]


def test_a_data_set_without_any_video_is_refused_even_when_skipping(ave):
    for video in (ave.root / "AVE").iterdir():
        video.unlink()
    with pytest.raises(ValueError, match="has a video that can be read"):
        load_ave(ave.root, on_missing="skip")


def test_unknown_settings_are_refused(ave):
    with pytest.raises(ValueError, match='on_missing=\'ignore\', wanted "raise" or "skip"'):
        load_ave(ave.root, on_missing="ignore")
    with pytest.raises(ValueError, match="'strong' not found"):
        load_ave(ave.root, name="strong")
    with pytest.raises(ValueError, match='background_folder is for the configuration "weak"'):
        load_ave(ave.root, background_folder="AVE")


def test_a_changed_file_is_noticed_and_data_sets_do_not_share_a_cache(ave, tmp_path):
    other = write_ave(tmp_path / "other", [row.replace("&0&10", "&0&9") for row in ROWS])
    assert load_ave(ave.root, split="train")[1]["end"] == 10.0
    assert load_ave(other.root, split="train")[1]["end"] == 9.0
    write_ave(ave.root, [row.replace("&0&10", "&1&10") for row in ROWS])
    assert load_ave(ave.root, split="train")[1]["start"] == 1.0
    write_lines(ave.root / "trainSet.txt", [ave.rows[3]])
    with pytest.raises(AnnotationError):
        write_lines(ave.root / "testSet.txt", [ROWS[0]])
        load_ave(ave.root)


def test_a_second_load_reads_the_cache(ave, monkeypatch):
    load_ave(ave.root)
    monkeypatch.setattr(AVE, "read_examples", lambda self: pytest.fail("built again"))
    assert list(load_ave(ave.root, split="train")["row"]) == SPLITS["train"]


def test_cache_dir_is_where_the_rows_go(ave, tmp_path):
    load_ave(ave.root, cache_dir=tmp_path / "mine")
    assert list((tmp_path / "mine").rglob("*.arrow"))
    assert not (tmp_path / "datasets_cache").exists()


def test_the_zip_gives_what_the_folder_gives_without_unpacking(ave, tmp_path):
    archive = ave.zip(tmp_path / "AVE.zip")
    splits = load_ave(archive)
    assert everything(splits) == everything(load_ave(ave.root))
    assert splits["train"][0]["video"]["path"] == f"zip://AVE_Dataset/AVE/both_talk__E.mp4::{archive}"
    assert not list((tmp_path / "datasets_cache").rglob("*.mp4"))


@pytest.mark.parametrize("zipped", [False, True])
def test_streaming_gives_what_building_gives(ave, tmp_path, zipped):
    place = ave.zip(tmp_path / "AVE.zip") if zipped else ave.root
    built, streamed = load_ave(place), load_ave(place, streaming=True)
    assert everything(streamed, without=()) == everything(built, without=())
    assert streamed["train"].features == built["train"].features


def test_two_nodes_stream_disjoint_halves_and_workers_see_every_row_once(ave):
    streamed = load_ave(ave.root, split="train", streaming=True)
    halves = [{row["row"] for row in split_dataset_by_node(streamed, rank, 2)} for rank in range(2)]
    assert [len(half) for half in halves] == [2, 2]
    assert halves[0] | halves[1] == set(SPLITS["train"])
    loader = DataLoader(streamed.select_columns(["row"]), batch_size=None, num_workers=2)
    assert sorted(row["row"] for row in loader) == sorted(SPLITS["train"])


def test_weak_rows_have_the_videos_class_and_hide_the_seconds_of_training(ave):
    splits = load_ave(ave.root, name="weak")
    train = splits["train"][1]
    assert (train["row"], train["category"], train["video_label"]) == (0, 0, 0)
    assert train["labels"] == [-100] * 10
    assert (train["start"], train["end"], train["events"]) == (None, None, None)
    test = splits["test"][1]
    assert (test["labels"][1], test["start"], test["video_label"]) == (1, 1.0, 1)
    full = load_ave(ave.root)
    for split in ("validation", "test"):  # measured by seconds, as in the full setting
        assert len(splits[split])
        for name in ("labels", "start", "end", "events"):
            assert splits[split][name] == full[split][name]
    assert splits["train"].features["video_label"].names == [*AVE_CATEGORIES, "background"]


def test_background_videos_join_the_weak_training_rows(ave):
    (ave.root / "noise").mkdir()
    for name in ("quiet_b", "quiet_a"):
        (ave.root / "noise" / f"{name}.mp4").write_text(name)
    splits = load_ave(ave.root, name="weak", background_folder="noise")
    added = [row for row in splits["train"] if row["row"] >= len(ROWS)]
    assert [(row["row"], row["video_id"], row["category"], row["video_label"]) for row in added] == [
        (9, "quiet_a", None, 28),
        (10, "quiet_b", None, 28),
    ]
    assert added[0]["labels"] == [-100] * 10
    assert len(splits["test"]) == 3
    with pytest.raises(ValueError, match="the folder contains no video"):
        load_ave(ave.root, name="weak", background_folder="nothing")


def test_the_cross_modality_split_is_taken_from_its_files_with_a_warning(ave, heard):
    write_orders(ave.root, {"train": [0, 7, 4, 6], "validation": [1], "test": [2, 3]}, suffix="_match")
    splits = load_ave(ave.root, name="cross_modality")
    assert list(splits["train"]["row"]) == [0, 7, 4, 6]
    assert "contains 2 of the 3 test rows of the supervised task" in messages(heard)
    heard.clear()
    load_ave(ave.root, name="cross_modality")
    assert "contains 2 of the 3 test rows of the supervised task" in messages(heard)
    for name in ("train", "val", "test"):
        (ave.root / f"{name}Set.txt").unlink()
    assert list(load_ave(ave.root, split="test", name="cross_modality")["row"]) == [2, 3]


def test_the_cross_modality_split_needs_its_files(ave):
    with pytest.raises(ValueError, match=r"no split of the cross-modality task.*train_order_match\.h5"):
        load_ave(ave.root, name="cross_modality")


def test_the_builder_can_be_used_by_itself(ave, tmp_path):
    builder = AVE(data_dir=str(ave.root), cache_dir=str(tmp_path / "mine"))
    assert issubclass(AVE, datasets.GeneratorBasedBuilder)
    assert builder.info.features["category"].num_classes == 28
    builder.download_and_prepare()
    assert builder.as_dataset(split="test").num_rows == 3


def test_the_synthetic_data_set_loads_with_its_own_categories(tmp_path):
    generate_synthetic_ave(tmp_path / "synthetic", num_videos=3, num_workers=0, splits=(0.67, 0.33, 0.0))
    names = (tmp_path / "synthetic" / "categories.txt").read_text().splitlines()
    splits = load_ave(tmp_path / "synthetic", probe_videos=True)
    assert {split: len(part) for split, part in splits.items()} == {"train": 2, "validation": 1}
    assert splits["train"].features["category"].names == names
    for row in splits["train"]:
        event = range(int(row["start"]), int(row["end"]))
        assert row["labels"] == [row["category"] if second in event else len(names) for second in range(10)]
