import pickle
import sys

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from ave_clip.core.categories import labels_with_background
from ave_clip.data import AnnotationError, H5FileError, collate_rows, load_ave_features
from ave_clip.data.features import compare_label_files
from ave_clip.data.h5 import H5Array, read_order
from ave_clip.data.source import read_source
from tests.helpers.ave_files import ROWS, SPLITS, PeakMemory, write_array, write_orders
from tests.helpers.models import tiny_localizer

NUM_ROWS = len(ROWS)
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads resident memory from /proc")


@pytest.fixture
def features(ave):
    """AVE's feature files in small: 9 rows, 2 x 3 locations, widths 5 and 4."""
    draw = np.random.default_rng(0)
    write_array(ave.root / "audio_feature.h5", draw.normal(size=(NUM_ROWS, 10, 4)))
    write_array(ave.root / "visual_feature.h5", draw.normal(size=(NUM_ROWS, 10, 2, 3, 5)))
    return ave


def test_rows_contain_the_features_and_labels_of_their_clip(features):
    with h5py.File(features.root / "visual_feature.h5") as file:
        visual = file["avadataset"][:]
    with h5py.File(features.root / "audio_feature.h5") as file:
        audio = file["avadataset"][:]
    splits = load_ave_features(features.root)
    assert {split: [row["row"] for row in part] for split, part in splits.items()} == SPLITS
    row = splits["train"][0]
    assert row["video_id"] == "both_talk__E"
    assert row["image_features"].dtype == row["audio_features"].dtype == torch.float32
    assert np.array_equal(row["image_features"].numpy(), visual[5].reshape(10, 6, 5).astype(np.float32))
    assert np.array_equal(row["audio_features"].numpy(), audio[5].astype(np.float32))
    assert row["labels"].tolist() == list(splits["train"].labels_of(0)) == [28, 5, 5, 5] + [28] * 6
    assert row["video_label"].item() == 5
    assert (splits["train"].image_feature_size, splits["train"].audio_feature_size) == (5, 4)


def test_annotations_may_lie_elsewhere_and_splits_come_as_for_videos(features, tmp_path):
    elsewhere = tmp_path / "features"
    elsewhere.mkdir()
    for name in ("audio_feature.h5", "visual_feature.h5"):
        (features.root / name).rename(elsewhere / name)
    part = load_ave_features(elsewhere, "val", annotations_dir=features.root)
    assert [row["row"] for row in part] == SPLITS["validation"]
    with pytest.raises(ValueError, match=r"contains no Annotations\.txt"):
        load_ave_features(elsewhere)
    with pytest.raises(ValueError, match=r"split='dev', wanted one of \['train', 'validation', 'test'\]"):
        load_ave_features(elsewhere, "dev", annotations_dir=features.root)
    with pytest.raises(ValueError, match="name='strong'"):
        load_ave_features(elsewhere, name="strong", annotations_dir=features.root)


def test_pooled_features_stay_pooled(features):
    write_array(features.root / "visual_feature_vec.h5", np.ones((NUM_ROWS, 10, 5)))
    row = load_ave_features(features.root, "test", visual_file="visual_feature_vec.h5")[0]
    assert row["image_features"].shape == (10, 5)


def test_locations_may_be_flat(features):
    write_array(features.root / "flat.h5", np.arange(NUM_ROWS * 10 * 49 * 5.0).reshape(NUM_ROWS, 10, 49, 5))
    row = load_ave_features(features.root, "train", visual_file="flat.h5")[0]
    assert row["image_features"].shape == (10, 49, 5)
    assert row["image_features"][1, 2].tolist() == [((5 * 10 + 1) * 49 + 2) * 5 + channel for channel in range(5)]


def test_weak_training_rows_withhold_labels_per_second_and_include_background_clips(features):
    write_array(features.root / "audio_feature_noisy.h5", np.full((2, 10, 4), 7.0))
    write_array(features.root / "visual_feature_noisy.h5", np.full((2, 10, 2, 3, 5), 8.0))
    splits = load_ave_features(features.root, name="weak")
    train = splits["train"]
    assert len(train) == len(SPLITS["train"]) + 2
    assert train[0]["labels"].tolist() == [-100] * 10
    assert train[0]["video_label"].item() == 5
    noisy = train[len(SPLITS["train"]) + 1]
    assert (noisy["row"], noisy["video_id"], noisy["video_label"].item()) == (NUM_ROWS + 1, "noisy_001", 28)
    assert (noisy["image_features"] == 8).all()
    assert (noisy["audio_features"] == 7).all()
    full = load_ave_features(features.root)
    for split in ("validation", "test"):  # measured by seconds, as in the full setting
        assert len(splits[split]) == len(full[split]) > 0
        for weak_row, full_row in zip(splits[split], full[split]):
            assert weak_row["labels"].tolist() == full_row["labels"].tolist() != [-100] * 10
    batch = collate_rows([train[0], noisy], video_level=True)
    assert batch["labels"].tolist() == [5, 28]


def test_the_weak_setting_works_without_background_clips(features):
    assert len(load_ave_features(features.root, "train", name="weak")) == len(SPLITS["train"])
    write_array(features.root / "audio_feature_noisy.h5", np.full((2, 10, 4), 7.0))
    write_array(features.root / "visual_feature_noisy.h5", np.full((2, 10, 2, 3, 6), 8.0))
    with pytest.raises(H5FileError, match="do not match"):
        load_ave_features(features.root, name="weak")


def test_the_cross_modality_split_is_taken_from_its_files(features):
    write_orders(features.root, {"train": [0, 7], "test": [2, 3]}, suffix="_match")
    splits = load_ave_features(features.root, name="cross_modality")
    assert {split: [row["row"] for row in part] for split, part in splits.items()} == {"train": [0, 7], "test": [2, 3]}


def test_label_files_that_agree_are_silent_and_others_are_reported_by_row(features):
    source = read_source(features.root)
    labels = np.array([source.labels(row, 10) for row in range(NUM_ROWS)])
    categories = [source.category(row) for row in range(NUM_ROWS)]
    write_array(features.root / "labels_closs.h5", (labels != 28).astype(np.float32))
    write_array(features.root / "mil_labels.h5", np.eye(29, dtype=np.float32)[categories])
    write_array(features.root / "right_labels.h5", np.eye(29)[labels])
    wrong = np.eye(29)[labels]
    wrong[3, 4, 17] = 1
    wrong[7, 0] = np.eye(29)[28]
    write_array(features.root / "labels.h5", wrong)
    part = load_ave_features(features.root, "train")
    assert part.label_differences == {
        "labels.h5": [3, 7],
        "right_labels.h5": [],
        "mil_labels.h5": [],
        "labels_closs.h5": [],
    }
    assert part[2]["labels"].tolist() == [28, 28] + [1] * 8


def test_the_real_label_files_agree_with_the_annotations(shared_ave):
    differences = compare_label_files(shared_ave, read_source(shared_ave))
    assert differences == {"mil_labels.h5": [], "labels_closs.h5": []}


def test_label_files_of_another_shape_are_refused(features):
    write_array(features.root / "labels.h5", np.zeros((NUM_ROWS, 10, 28)))
    with pytest.raises(H5FileError, match=r"labels\.h5 has the shape \(9, 10, 28\), wanted \(9, 10, 29\)"):
        load_ave_features(features.root)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((8, 10, 4), r"shape \(8, 10, 4\), wanted \(9, 10\)"),
        ((9, 9, 4), "wanted"),
        ((9, 10), "wanted"),
        ((9, 10, 1, 4), "then the feature size"),
        ((9, 10, 1, 1, 4), ""),
    ],
)
def test_feature_files_of_another_shape_are_refused(features, shape, message):
    write_array(features.root / "audio_feature.h5", np.zeros(shape))
    with pytest.raises(H5FileError, match=rf"audio_feature\.h5 has the .*{message}"):
        load_ave_features(features.root)


def test_damaged_and_foreign_h5_files_are_refused(features):
    visual = features.root / "visual_feature.h5"
    content = visual.read_bytes()
    visual.write_bytes(content[: len(content) // 2])
    with pytest.raises(H5FileError, match=r"visual_feature\.h5 is not a complete h5 file .*Download it again"):
        load_ave_features(features.root)
    visual.write_text("<html>quota exceeded</html>")
    with pytest.raises(H5FileError, match="not a complete h5 file"):
        load_ave_features(features.root)
    write_array(visual, np.zeros((NUM_ROWS, 10, 2, 3, 5)), key="data")
    with pytest.raises(H5FileError, match=r"contains \['data'\], wanted an array named 'avadataset'"):
        load_ave_features(features.root)
    write_array(visual, np.array([b"text"]))
    with pytest.raises(H5FileError, match="wanted numbers"):
        load_ave_features(features.root)
    visual.unlink()
    with pytest.raises(FileNotFoundError, match=r"contains no visual_feature\.h5"):
        load_ave_features(features.root)


def test_order_files_contain_each_row_number_at_most_once(tmp_path):
    def order(array, key="order"):
        write_array(tmp_path / "order.h5", np.array(array), key)
        return read_order((tmp_path / "order.h5").read_bytes(), 5)

    assert order([3, 0, 4]) == [3, 0, 4]
    for array, message in (
        ([0, 5], "row 5 does not exist"),
        ([0, -1], "row -1 does not exist"),
        ([1, 2, 1], "row 1 comes 2 times"),
        ([0.5], "wanted a list of row numbers"),
        ([[0, 1]], "wanted a list of row numbers"),
    ):
        with pytest.raises(H5FileError, match=message):
            order(array)
    with pytest.raises(H5FileError, match=r"contains \['rows'\], wanted an array named 'order'"):
        order([0], key="rows")
    with pytest.raises(H5FileError, match="not a complete h5 file"):
        read_order(b"nonsense", 5)


def test_a_damaged_order_file_is_named(features):
    for name in ("train", "val", "test"):
        (features.root / f"{name}Set.txt").unlink()
    write_orders(features.root)
    (features.root / "val_order.h5").write_bytes(b"nonsense")
    with pytest.raises(AnnotationError, match=r"val_order\.h5: .*not a complete h5 file"):
        load_ave_features(features.root)


def test_handles_are_per_process_and_do_not_travel(features):
    part = load_ave_features(features.root, "train")
    expected = [row["image_features"] for row in part]
    assert all(
        torch.equal(one["image_features"], other) for one, other in zip(pickle.loads(pickle.dumps(part)), expected)
    )
    loader = DataLoader(part, batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert all(torch.equal(row["image_features"], other) for row, other in zip(loader, expected))


def test_an_array_reads_single_rows_as_float32(tmp_path):
    write_array(tmp_path / "a.h5", np.arange(12, dtype=np.float64).reshape(3, 4))
    array = H5Array(tmp_path / "a.h5")
    assert (len(array), array.shape) == (3, (3, 4))
    assert array[1].dtype == np.float32
    assert array[-1].tolist() == [8.0, 9.0, 10.0, 11.0]


def test_features_train_the_localizer(features):
    part = load_ave_features(features.root, "train")
    model = tiny_localizer(
        use_encoders=False,
        image_feature_size=part.image_feature_size,
        audio_feature_size=part.audio_feature_size,
        id2label=labels_with_background(part.categories),
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    losses = []
    for _ in range(15):
        for batch in DataLoader(part, batch_size=4, collate_fn=collate_rows):
            batch.pop("rows")
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


@linux
def test_eight_gigabytes_of_features_are_read_with_little_memory(ave, tmp_path):
    shape = (4143, 10, 7, 7, 512)
    rows = [f"Bark&video{row:06d}&good&0&5" for row in range(shape[0])]
    (ave.root / "Annotations.txt").write_text("\n".join(rows))
    for name in ("valSet.txt", "testSet.txt"):
        (ave.root / name).write_text("")
    (ave.root / "trainSet.txt").write_text("\n".join(rows))
    with h5py.File(ave.root / "visual_feature.h5", "w") as file:  # sparse: takes no room on the disk
        file.create_dataset("avadataset", shape, "f8")[4000, 3] = 1.5
    write_array(ave.root / "audio_feature.h5", np.zeros((shape[0], 10, 128)))
    assert (ave.root / "visual_feature.h5").stat().st_size > 8.3e9
    with PeakMemory() as peak:
        part = load_ave_features(ave.root, "train")
        loader = DataLoader(Subset(part, range(3600, 4143)), batch_size=16, collate_fn=collate_rows)
        total = sum(batch["image_features"].sum().item() for batch in loader)
    assert total == 1.5 * 7 * 7 * 512
    assert peak.megabytes < 200


@pytest.fixture
def tables(tmp_path):
    """Features with label tables and orders only: 5 rows, 3 classes and background, 4 segments."""
    draw = np.random.default_rng(0)
    write_array(tmp_path / "audio_feature.h5", draw.normal(size=(5, 4, 2)))
    write_array(tmp_path / "visual_feature.h5", draw.normal(size=(5, 4, 1, 2, 3)))
    labels = np.array([[0, 0, 3, 3], [3, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3], [3, 3, 0, 3]])
    write_array(tmp_path / "labels.h5", np.eye(4)[labels])
    write_orders(tmp_path, {"train": [4, 0, 3], "validation": [1], "test": [2]})
    return tmp_path


def test_label_tables_and_orders_do_without_annotations(tables):
    splits = load_ave_features(tables, num_segments=4)
    assert {split: [row["row"] for row in part] for split, part in splits.items()} == {
        "train": [4, 0, 3],
        "validation": [1],
        "test": [2],
    }
    assert splits["train"].labels == [(3, 3, 0, 3), (0, 0, 3, 3), (3, 3, 3, 3)]
    assert [row["video_label"].item() for row in splits["train"]] == [0, 0, 3]
    assert splits["train"].categories == ("class 0", "class 1", "class 2")
    (tables / "categories.txt").write_text("bark\nbell\ncat\n")
    write_array(tables / "mil_labels.h5", np.eye(4)[[0, 1, 2, 2, 0]])
    named = load_ave_features(tables, "train", num_segments=4, name="weak")
    assert named.categories == ("bark", "bell", "cat")
    assert [row["video_label"].item() for row in named] == [0, 0, 2]


def test_label_tables_that_cannot_be_used_are_refused(tables):
    with pytest.raises(H5FileError, match="labels of 4 segments, but the features have 10"):
        load_ave_features(tables)
    (tables / "categories.txt").write_text("bark\nbell\n")
    with pytest.raises(H5FileError, match=r"names 2 event classes, wanted 3"):
        load_ave_features(tables, num_segments=4)
    (tables / "categories.txt").unlink()
    write_array(tables / "labels.h5", np.ones((5, 4, 4)))
    with pytest.raises(H5FileError, match=r"not one-hot at \[0, 0\]"):
        load_ave_features(tables, num_segments=4)
    write_array(tables / "labels.h5", np.ones((5, 4)))
    with pytest.raises(H5FileError, match="wanted 3 dimensions"):
        load_ave_features(tables, num_segments=4)
    write_array(tables / "labels.h5", np.eye(4)[np.zeros((5, 4), dtype=int)])
    write_orders(tables, {"train": [4, 0, 3], "validation": [1], "test": [2, 3]})
    with pytest.raises(AnnotationError, match="row 3 is in the train split and in the test split"):
        load_ave_features(tables, num_segments=4)
    for path in tables.glob("*_order.h5"):
        path.unlink()
    with pytest.raises(H5FileError, match=r"contains none of train_order\.h5"):
        load_ave_features(tables, num_segments=4)
