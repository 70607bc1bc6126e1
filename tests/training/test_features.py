"""The feature store: what goes in comes out, whole or not at all."""

import pickle

import pytest
import torch

from ave_clip.training.features import (
    FeatureStore,
    FeatureStoreError,
    FeatureWriter,
    collate_clips,
    encoder_fingerprint,
)

DESCRIPTION = {"encoder_fingerprint": "abc", "num_frames_per_segment": 4}


def make_clip(row, num_segments=3, dtype=torch.float16):
    generator = torch.Generator().manual_seed(row)
    return {
        "row": torch.tensor(row),
        "labels": torch.randint(5, (num_segments,), generator=generator),
        "image_features": torch.randn(num_segments, 4, 6, generator=generator).to(dtype),
        "audio_features": torch.randn(num_segments, 6, generator=generator).to(dtype),
    }


def fill(folder, rows=(7, 3, 9), failed=(), **description):
    writer = FeatureWriter(folder, {**DESCRIPTION, **description}, rows, rows_per_shard=2)
    for shard, members in enumerate(writer.shards):
        clips = [make_clip(row) for row in members if row not in failed]
        writer.write(shard, clips, {row: "broken" for row in members if row in failed})
    return writer


def test_rows_come_back_bit_for_bit_in_their_order(tmp_path):
    fill(tmp_path).finish("train")
    store = FeatureStore(tmp_path)
    assert store.rows == [7, 3, 9]
    for index, row in enumerate(store.rows):
        clip, expected = store[index], make_clip(row)
        assert int(clip["row"]) == row
        assert clip["segment_mask"].all()
        for name in ("labels", "image_features", "audio_features"):
            torch.testing.assert_close(clip[name], expected[name], rtol=0, atol=0)


def test_a_store_travels_to_workers_while_files_are_open(tmp_path):
    fill(tmp_path).finish("train")
    store = FeatureStore(tmp_path)
    first = store[0]["audio_features"]
    torch.testing.assert_close(pickle.loads(pickle.dumps(store))[0]["audio_features"], first, rtol=0, atol=0)


def test_failed_rows_are_in_the_manifest_and_not_in_the_store(tmp_path):
    manifest = fill(tmp_path, failed=(7, 3)).finish("train")
    assert manifest["failed"] == {7: "broken", 3: "broken"}
    assert FeatureStore(tmp_path).rows == [9]


def test_a_missing_shard_stops_the_manifest(tmp_path):
    writer = fill(tmp_path)
    writer.path(1).unlink()
    with pytest.raises(FeatureStoreError, match=r"shard-00001.safetensors is missing"):
        writer.finish("train")
    with pytest.raises(FeatureStoreError, match=r"holds no manifest\.json"):
        FeatureStore(tmp_path)


def test_a_shard_that_lost_a_row_stops_the_manifest(tmp_path):
    writer = fill(tmp_path)
    writer.write(0, [make_clip(7)])
    with pytest.raises(FeatureStoreError, match=r"lacks rows \[3\]"):
        writer.finish("train")


def test_shards_of_other_settings_are_refused(tmp_path):
    fill(tmp_path)
    other = FeatureWriter(tmp_path, {**DESCRIPTION, "num_frames_per_segment": 8}, (7, 3, 9), rows_per_shard=2)
    with pytest.raises(FeatureStoreError, match="with other settings or by another encoder"):
        other.is_done(0)


def test_only_missing_shards_are_to_be_done(tmp_path):
    writer = fill(tmp_path)
    writer.path(0).unlink()
    assert [writer.is_done(shard) for shard in range(2)] == [False, True]


def test_no_partial_file_stays_behind(tmp_path):
    fill(tmp_path).finish("train")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"]


def test_a_damaged_shard_is_named(tmp_path):
    writer = fill(tmp_path)
    writer.finish("train")
    writer.path(1).write_bytes(b"nonsense" * 4)
    store = FeatureStore(tmp_path)
    assert int(store[0]["row"]) == 7
    with pytest.raises(FeatureStoreError, match=r"shard-00001.safetensors is missing or damaged"):
        store[2]
    with pytest.raises(FeatureStoreError, match="is damaged"):
        writer.is_done(1)


def test_features_of_another_encoder_are_refused(tmp_path):
    fill(tmp_path).finish("train")
    FeatureStore(tmp_path).check_encoder("abc")
    with pytest.raises(FeatureStoreError, match=r"\(fingerprint abc\) than the one given \(xyz\)"):
        FeatureStore(tmp_path).check_encoder("xyz")


def test_a_fingerprint_follows_every_weight_and_buffer():
    tower = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    before = encoder_fingerprint({"tower": tower})
    assert encoder_fingerprint({"tower": tower}) == before
    tower[1].running_mean += 1e-3
    assert encoder_fingerprint({"tower": tower}) != before


def test_clips_of_different_lengths_are_padded():
    batch = collate_clips([make_clip(1, 2), make_clip(2, 3)])
    assert batch["rows"].tolist() == [1, 2]
    assert batch["segment_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["labels"][0, 2] == -100
    assert batch["image_features"].shape == (2, 3, 4, 6)
    assert batch["image_features"][0, 2].abs().sum() == 0
    torch.testing.assert_close(batch["audio_features"][1], make_clip(2, 3)["audio_features"])


def test_unreadable_clips_are_left_out_of_a_batch():
    broken = {"row": 5, "error": "a.mp4: no video"}
    assert collate_clips([broken, make_clip(2)])["rows"].tolist() == [2]
    with pytest.raises(ValueError, match=r"None of 1 clips could be read. The first: a\.mp4: no video"):
        collate_clips([broken])
