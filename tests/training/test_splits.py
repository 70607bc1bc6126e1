"""Each source gives its splits as the model takes them, with the label of the whole clip."""

import numpy as np
import pytest
import torch

from ave_clip.data import load_ave_features
from ave_clip.training.features import FeatureStoreError, FeatureWriter, collate_clips
from ave_clip.training.splits import (
    FeatureSplits,
    H5Splits,
    SplitError,
    VideoSplits,
    build_prediction_loader,
    check_whole_videos,
    choose_clips,
    video_label,
)
from tests.helpers.ave_files import write_array, write_ave, write_orders

SETTINGS = {
    "encoder_fingerprint": "abc",
    "visual_feature_type": "pooled",
    "image_feature_size": 3,
    "audio_feature_size": 2,
    "id2label": {"0": "bark", "1": "bell", "2": "background"},
}


def write_features(folder, labels, **settings):
    """A split of stage 2's features with these labels."""
    clips = [
        {
            "row": torch.tensor(row),
            "labels": torch.tensor(values),
            "image_features": torch.full((len(values), 3), float(row)),
            "audio_features": torch.full((len(values), 2), float(row)),
        }
        for row, values in enumerate(labels)
    ]
    writer = FeatureWriter(folder, {**SETTINGS, **settings}, dict.fromkeys(range(len(labels)), "clip"))
    writer.write(0, clips)
    writer.finish(folder.name)


def test_weak_supervision_refuses_videos_that_it_would_have_to_cut(tmp_path):
    write_features(tmp_path / "train", [[0] * 4, [2] * 9])
    clips = FeatureSplits(tmp_path).open("train")
    assert check_whole_videos(clips, "train", 9) == 9
    with pytest.raises(SplitError, match=r"has 9 segments, more than max_segments=8\. Weak .* max_segments=9"):
        check_whole_videos(clips, "train", 8)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([2, 2, 5], 2), ([5, 5, 1], 1), ([5, 5, 5], 5), ([-100, 3, -100], 3), ([1, 2, 2], 2), ([-100, -100], -100)],
)
def test_the_label_of_a_clip_is_its_event_or_background_without_any(labels, expected):
    assert video_label(torch.tensor(labels), background=5) == expected


def test_a_smaller_subset_is_part_of_a_larger_one():
    clips = list(range(50))
    small, large = (set(choose_clips(clips, number, seed=1)) for number in (10, 30))
    assert len(small) == 10
    assert len(large) == 30
    assert small < large
    assert small != set(choose_clips(clips, 10, seed=2))
    assert choose_clips(clips, None, seed=1) is clips
    with pytest.raises(SplitError, match="Asked for 51 training clips, but there are 50"):
        choose_clips(clips, 51, seed=1)


def test_stage_2_features_come_with_both_kinds_of_labels(tmp_path):
    write_features(tmp_path / "train", [[0, 0, 2], [2, 2, 2]])
    source = FeatureSplits(tmp_path)
    batch = [source.open("train")[index] for index in range(2)]
    assert collate_clips(batch)["labels"].tolist() == [[0, 0, 2], [2, 2, 2]]
    assert collate_clips(batch, video_level=True)["labels"].tolist() == [0, 2]
    assert source.id2label == {0: "bark", 1: "bell", 2: "background"}
    assert source.open("test") is None


def test_a_split_made_differently_from_the_training_split_is_refused(tmp_path):
    write_features(tmp_path / "train", [[0]])
    names = {"0": "bell", "1": "bark", "2": "background"}
    write_features(tmp_path / "validation", [[0]], id2label=names)
    write_features(tmp_path / "test", [[0]], num_frames_per_segment=4)
    for split, difference in {"validation": "id2label", "test": "num_frames_per_segment"}.items():
        with pytest.raises(FeatureStoreError, match=difference):
            FeatureSplits(tmp_path).open(split)


def test_splits_without_labels_are_refused(tmp_path):
    write_features(tmp_path / "train", [[-100, -100]])
    with pytest.raises(FeatureStoreError, match="has no labels"):
        FeatureSplits(tmp_path).open("train")


def test_features_that_changed_have_another_fingerprint(tmp_path):
    folders = {"one": [[0]], "same": [[0]], "more": [[0], [1]], "corrected": [[1]]}
    for name, labels in folders.items():
        write_features(tmp_path / name / "train", labels)
    write_features(tmp_path / "test" / "train", [[0]])
    write_features(tmp_path / "test" / "test", [[0]])
    fingerprints = {name: FeatureSplits(tmp_path / name).fingerprint for name in (*folders, "test")}
    assert fingerprints["one"] == fingerprints["same"]
    assert len(set(fingerprints.values())) == 4


def test_clips_of_unequal_length_come_without_the_padding_of_their_shard(tmp_path):
    write_features(tmp_path / "train", [[0, 1, 2], [1]])
    clip = FeatureSplits(tmp_path).open("train")[1]
    assert clip["labels"].tolist() == [1] and clip["segment_mask"].tolist() == [True]
    assert clip["image_features"].shape == (1, 3) and clip["audio_features"].shape == (1, 2)


@pytest.fixture
def h5(tmp_path):
    files = write_ave(tmp_path / "ave")
    write_orders(files.root)
    draw = np.random.default_rng(0)
    write_array(files.root / "audio_feature.h5", draw.normal(size=(len(files.rows), 10, 4)))
    write_array(files.root / "visual_feature.h5", draw.normal(size=(len(files.rows), 10, 2, 3, 5)))
    return files.root


def test_h5_features_say_what_the_localizer_must_be(h5):
    assert H5Splits(h5).overrides == {
        "use_encoders": False,
        "image_feature_size": 5,
        "audio_feature_size": 4,
        "visual_feature_type": "dense",
    }
    write_array(h5 / "vec.h5", np.zeros((9, 10, 6)))
    assert H5Splits(h5, visual_file="vec.h5").overrides["visual_feature_type"] == "pooled"
    assert H5Splits(h5, visual_file="vec.h5").fingerprint != H5Splits(h5).fingerprint


def test_weak_training_on_h5_gets_the_background_clips_and_nothing_else_changes(h5):
    write_array(h5 / "audio_feature_noisy.h5", np.full((2, 10, 4), 7.0))
    write_array(h5 / "visual_feature_noisy.h5", np.full((2, 10, 2, 3, 5), 8.0))
    strong, weak = H5Splits(h5), H5Splits(h5, weak=True)
    assert len(weak.open("train")) == len(strong.open("train")) + 2
    assert len(weak.open("validation")) == len(strong.open("validation"))
    labels = [int(clip["video_label"]) for clip in weak.open("train")]
    mil = [int(row["video_label"]) for row in load_ave_features(h5, "train", name="weak")]
    assert labels == mil
    assert labels[-2:] == [28, 28]
    assert float(weak.open("train")[len(labels) - 1]["audio_features"].max()) == 7


def test_prediction_loaders_of_all_processes_hold_every_clip_once():
    clips = [
        {"row": row, "labels": torch.zeros(2), "video_label": 0, "audio_features": torch.zeros(2, 1)}
        for row in range(7)
    ]
    found = [
        row
        for index in range(3)
        for batch in build_prediction_loader(clips, 6, process_index=index, num_processes=3)
        for row in batch["rows"].tolist()
    ]
    assert sorted(found) == list(range(7))


def test_prediction_loaders_say_what_could_not_be_read_in_the_last_pass():
    clip = {"row": 1, "labels": torch.zeros(2), "video_label": 0, "audio_features": torch.zeros(2, 1)}
    loader = build_prediction_loader([{"row": 0, "error": "no video"}, clip], 1)
    for _ in range(2):
        assert [batch["rows"].tolist() for batch in loader] == [[1]]
        assert loader.unreadable == {0: "no video"}


def test_clips_that_cannot_be_read_are_left_out_unless_all_are():
    clip = {"row": 1, "labels": torch.zeros(2), "video_label": 0, "audio_features": torch.zeros(2, 1)}
    assert collate_clips([{"row": 0, "error": "no video"}, clip])["rows"].tolist() == [1]
    with pytest.raises(SplitError, match=r"None of 1 clips could be read\. The first: no video"):
        collate_clips([{"row": 0, "error": "no video"}])


def test_a_split_of_videos_is_opened_only_with_a_processor(tmp_path):
    splits = VideoSplits(write_ave(tmp_path / "ave").root, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(ValueError, match="Set `processor` before the train split is opened"):
        splits.open("train")
