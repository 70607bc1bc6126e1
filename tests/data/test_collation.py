import pytest
import torch

from ave_clip.data.collation import collate_rows
from tests.helpers.models import tiny_localizer


def feature_row(number, num_segments, num_labels=None, seed=0):
    generator = torch.Generator().manual_seed(seed + number)
    return {
        "row": number,
        "video_id": f"-video{number}",
        "image_features": torch.randn(num_segments, 4, 24, generator=generator),
        "audio_features": torch.randn(num_segments, 24, generator=generator),
        "labels": [number] * (num_segments if num_labels is None else num_labels),
        "video_label": number,
    }


def test_shorter_clips_are_padded_and_marked():
    batch = collate_rows([feature_row(1, 3), feature_row(2, 2)])
    assert batch["image_features"].shape == (2, 3, 4, 24)
    assert batch["segment_mask"].tolist() == [[True, True, True], [True, True, False]]
    assert batch["labels"].tolist() == [[1, 1, 1], [2, 2, -100]]
    assert batch["rows"].tolist() == [1, 2]
    assert not batch["audio_features"][1, 2].any()
    assert "video_id" not in batch


def test_a_labelled_second_that_is_missing_in_the_file_is_part_of_the_clip():
    batch = collate_rows([feature_row(1, 2, num_labels=3), feature_row(2, 4)])
    assert batch["segment_mask"].tolist() == [[True, True, True, False], [True] * 4]
    assert batch["labels"].tolist() == [[1, 1, 1, -100], [2] * 4]


def test_a_second_without_a_label_is_ignored():
    batch = collate_rows([feature_row(1, 4, num_labels=3)])
    assert batch["segment_mask"].tolist() == [[True] * 4]
    assert batch["labels"].tolist() == [[1, 1, 1, -100]]


def test_padding_that_the_processor_made_is_no_part_of_the_clip():
    row = {**feature_row(1, 4, num_labels=2), "segment_mask": torch.tensor([True, True, True, False])}
    assert collate_rows([row])["segment_mask"].tolist() == [[True, True, True, False]]


def test_a_fixed_number_of_segments_cuts_and_fills():
    batch = collate_rows([feature_row(1, 5), feature_row(2, 2)], num_segments=3)
    assert batch["image_features"].shape[:2] == (2, 3)
    assert batch["labels"].tolist() == [[1, 1, 1], [2, 2, -100]]


def test_video_level_labels_are_one_a_clip():
    assert collate_rows([feature_row(1, 3), feature_row(2, 2)], video_level=True)["labels"].tolist() == [1, 2]


def test_rows_that_are_not_decoded_are_refused():
    with pytest.raises(ValueError, match=r"Got rows with \['labels', 'row', 'video'\].*decode_videos"):
        collate_rows([{"row": 1, "video": {"path": "a.mp4"}, "labels": [0]}])


def test_a_batch_feeds_the_localizer_and_equals_its_rows_one_by_one():
    model = tiny_localizer(use_encoders=False, image_feature_size=24, audio_feature_size=24)
    rows = [feature_row(1, 4), feature_row(2, 3)]
    batch = collate_rows(rows)
    batch.pop("rows")
    with torch.no_grad():
        logits = model(**batch).logits
        alone = model(**{k: v for k, v in collate_rows(rows[1:]).items() if k != "rows"}).logits
    torch.testing.assert_close(logits[1:, :3], alone, rtol=1e-5, atol=1e-5)
