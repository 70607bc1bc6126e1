"""The feature store: what goes in comes out, whole or not at all."""

import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ave_clip.training.features import (
    FeatureStore,
    FeatureStoreError,
    FeatureWriter,
    collate_clips,
    encoder_fingerprint,
)
from tests.helpers.models import tiny_localizer

SETTINGS = {"encoder_fingerprint": "abc", "num_frames_per_segment": 4, "id2label": {"0": "Bell", "1": "background"}}
ROWS = (7, 3, 9)


def make_clip(row, num_segments=3, dtype=torch.float16):
    generator = torch.Generator().manual_seed(row)
    return {
        "row": torch.tensor(row),
        "labels": torch.randint(5, (num_segments,), generator=generator),
        "image_features": torch.randn(num_segments, 4, 6, generator=generator).to(dtype),
        "audio_features": torch.randn(num_segments, 6, generator=generator).to(dtype),
    }


def new_writer(folder, rows=ROWS, changed=(), rows_per_shard=2, **settings):
    clips = {row: f"clip {row}" + (" changed" if row in changed else "") for row in rows}
    return FeatureWriter(folder, {**SETTINGS, **settings}, clips, rows_per_shard, {"ave_clip": "1.0"})


def fill(folder, rows=ROWS, failed=(), writer=None, shards=None, **settings):
    writer = writer or new_writer(folder, rows, **settings)
    for shard in range(len(writer.shards)) if shards is None else shards:
        members = writer.shards[shard]
        clips = [make_clip(row) for row in members if row not in failed]
        writer.write(shard, clips, {row: "broken" for row in members if row in failed})
    return writer


def overwrite(path, offset, content):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)


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


def test_a_store_travels_to_workers(tmp_path):
    fill(tmp_path).finish("train")
    store = FeatureStore(tmp_path)
    first = store[0]["audio_features"]
    torch.testing.assert_close(pickle.loads(pickle.dumps(store))[0]["audio_features"], first, rtol=0, atol=0)


def test_the_manifest_says_what_made_the_features(tmp_path):
    fill(tmp_path).finish("train", {"name": "here/audioclip", "revision": "5f1d"})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["split"] == "train"
    assert manifest["model"] == {"name": "here/audioclip", "revision": "5f1d"}
    assert manifest["made_with"] == [{"ave_clip": "1.0"}]
    assert manifest["num_labelled_rows"] == 3
    assert {name: manifest[name] for name in SETTINGS} == SETTINGS
    assert [shard["rows"] for shard in manifest["shards"]] == [[7, 3], [9]]


def test_failed_rows_are_in_the_manifest_and_not_in_the_store(tmp_path):
    manifest = fill(tmp_path, failed=(7, 3)).finish("train")
    assert manifest["failed"] == {7: "broken", 3: "broken"}
    assert FeatureStore(tmp_path).rows == [9]


def test_a_missing_shard_stops_the_manifest(tmp_path):
    writer = fill(tmp_path)
    writer.path(1).unlink()
    with pytest.raises(FeatureStoreError, match=r"shard-00001.safetensors is missing"):
        writer.finish("train")
    with pytest.raises(FeatureStoreError, match=r"contains no manifest\.json"):
        FeatureStore(tmp_path)


def test_a_shard_that_lost_a_row_stops_the_manifest(tmp_path):
    writer = fill(tmp_path)
    writer.write(0, [make_clip(7)])
    with pytest.raises(FeatureStoreError, match=r"Rows \[3\] are missing"):
        writer.finish("train")


def test_shards_of_other_settings_are_refused_with_both_values(tmp_path):
    fill(tmp_path)
    message = r"other settings or by another encoder: num_frames_per_segment 4 there, 8 now\. Choose another folder"
    with pytest.raises(FeatureStoreError, match=message):
        new_writer(tmp_path, num_frames_per_segment=8).plan()


def test_only_missing_shards_are_to_be_made(tmp_path):
    writer = fill(tmp_path)
    assert writer.plan() == []
    writer.path(0).unlink()
    assert writer.plan() == [0]


def test_the_path_of_the_model_and_the_writer_of_the_shards_change_nothing(tmp_path):
    fill(tmp_path).finish("train", {"name": "here"})
    clips = {row: f"clip {row}" for row in ROWS}
    assert FeatureWriter(tmp_path, SETTINGS, clips, 2, {"ave_clip": "2.0"}).plan() == []


def test_a_changed_clip_touches_its_own_shard_only(tmp_path):
    fill(tmp_path)
    writer = new_writer(tmp_path, changed=[9])
    with pytest.raises(FeatureStoreError, match=r"1 of 2 shards .* rows \[9\] differ.* Pass --update"):
        writer.plan()
    assert writer.plan(update=True) == [1]
    fill(tmp_path, writer=writer, shards=[1])
    assert writer.plan() == []


def test_other_rows_in_a_shard_are_a_change(tmp_path):
    fill(tmp_path, rows=(7, 3, 9))
    assert new_writer(tmp_path, rows=(7, 3, 9, 11)).plan(update=True) == [1]
    with pytest.raises(FeatureStoreError, match="--rows_per_shard"):
        new_writer(tmp_path, rows_per_shard=3).plan()


def test_a_repaired_clip_is_made_again_when_asked_for(tmp_path):
    fill(tmp_path, failed=[3]).finish("train")
    repaired = new_writer(tmp_path, changed=[3])
    assert repaired.plan() == []
    assert repaired.plan(retry_failed=True) == [0]
    fill(tmp_path, writer=repaired, shards=[0])
    assert repaired.finish("train")["failed"] == {}
    assert repaired.plan(retry_failed=True) == []
    assert FeatureStore(tmp_path).rows == [7, 3, 9]


def test_a_shard_made_again_is_not_read_by_an_old_manifest(tmp_path):
    fill(tmp_path, failed=[7]).finish("train")
    store = FeatureStore(tmp_path)
    writer = fill(tmp_path, shards=[0])
    with pytest.raises(FeatureStoreError, match=r"it has row 7 instead of row 3"):
        store[0]
    writer.withdraw_manifest()
    with pytest.raises(FeatureStoreError, match="did not finish"):
        FeatureStore(tmp_path)


def test_the_same_clips_give_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        fill(tmp_path / folder, failed=[3])
    for name in ("shard-00000.safetensors", "shard-00001.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_no_partial_file_stays_behind(tmp_path):
    writer = fill(tmp_path)
    (tmp_path / ".shard-00001.safetensors.ave-clip-0").mkdir()
    (tmp_path / ".shard-00001.safetensors.ave-clip-0" / "shard-00001.safetensors").write_text("half")
    writer.remove_leftovers()
    writer.finish("train")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["manifest.json", "shard-00000.safetensors", "shard-00001.safetensors"]


def test_a_truncated_shard_is_named_and_made_again(tmp_path):
    writer = fill(tmp_path)
    writer.finish("train")
    writer.path(1).write_bytes(writer.path(1).read_bytes()[:-10])
    store = FeatureStore(tmp_path)
    assert int(store[0]["row"]) == 7
    with pytest.raises(FeatureStoreError, match=r"shard-00001.safetensors is missing or damaged .*--verify"):
        store[2]
    assert writer.plan() == [1]


@pytest.mark.parametrize("offset", [-1, -100, -200])
def test_a_changed_byte_is_found_when_its_row_is_read(tmp_path, offset):
    writer = fill(tmp_path)
    writer.finish("train")
    content = writer.path(1).read_bytes()
    overwrite(writer.path(1), len(content) + offset, bytes([content[offset] ^ 4]))
    with pytest.raises(FeatureStoreError, match=r"shard-00001.safetensors is missing or damaged \(row 9 does not"):
        FeatureStore(tmp_path)[2]
    assert writer.plan() == []
    assert writer.plan(verify=True) == [1]


def test_a_damaged_header_is_named(tmp_path):
    writer = fill(tmp_path)
    writer.finish("train")
    place = writer.path(1).read_bytes().index(b"checksums")
    overwrite(writer.path(1), place, b"chicksums")
    with pytest.raises(FeatureStoreError, match=r"shard-00001.safetensors is missing or damaged"):
        FeatureStore(tmp_path)[2]


@pytest.mark.parametrize(("content", "message"), [("{", "is damaged"), ('{"format_version": 1}', "has format 1")])
def test_a_manifest_that_cannot_be_used_says_why(tmp_path, content, message):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(FeatureStoreError, match=message):
        FeatureStore(tmp_path)


def test_a_full_disk_loses_nothing_that_is_finished(tmp_path):
    """The limit on a file's size, which any user can set, stands for the full disk."""
    writer = fill(tmp_path, shards=[0])
    before = writer.path(0).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(FeatureStoreError, match=r"shard-00001.safetensors could not be written .* Free space"):
            fill(tmp_path, writer=writer, shards=[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.safetensors"]
    assert writer.path(0).read_bytes() == before
    fill(tmp_path, writer=writer, shards=[1])
    assert writer.plan() == []


def test_features_of_another_encoder_are_refused(tmp_path):
    fill(tmp_path).finish("train", {"name": "here/audioclip", "revision": None})
    FeatureStore(tmp_path).check_encoder("abc")
    message = r"\(here/audioclip, revision unknown, fingerprint abc\) than the one given \(fingerprint xyz\)"
    with pytest.raises(FeatureStoreError, match=message):
        FeatureStore(tmp_path).check_encoder("xyz")


def test_features_that_the_localizer_does_not_expect_are_refused_with_both_values(tmp_path):
    fill(tmp_path).finish("train")
    store = FeatureStore(tmp_path)
    store.check_settings(num_frames_per_segment=4, id2label={0: "Bell", 1: "background"})
    with pytest.raises(FeatureStoreError, match=r"num_frames_per_segment 4 there, 16 now, visual_feature_type None"):
        store.check_settings(num_frames_per_segment=16, visual_feature_type="dense")


def test_a_split_without_labels_is_refused(tmp_path):
    fill(tmp_path / "labelled").finish("train")
    FeatureStore(tmp_path / "labelled").check_labels()
    writer = new_writer(tmp_path / "blank", rows=[1, 2])
    clips = [{**make_clip(row), "labels": torch.full((3,), -100)} for row in (1, 2)]
    writer.write(0, clips)
    writer.finish("train")
    with pytest.raises(FeatureStoreError, match=r"has no labels: of 2 rows \(0 more could not be read\)"):
        FeatureStore(tmp_path / "blank").check_labels()


def test_a_fingerprint_follows_every_weight_and_buffer():
    tower = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    before = encoder_fingerprint({"tower": tower})
    assert encoder_fingerprint({"tower": tower}) == before
    tower[1].running_mean += 1e-3
    assert encoder_fingerprint({"tower": tower}) != before


def test_a_fingerprint_follows_the_configuration_but_not_where_it_came_from(tmp_path):
    localizer = tiny_localizer()
    before = encoder_fingerprint({"tower": localizer.audio_model})
    localizer.save_pretrained(tmp_path)
    again = type(localizer).from_pretrained(tmp_path)
    assert encoder_fingerprint({"tower": again.audio_model}) == before
    again.audio_model.config.hop_length += 1
    assert encoder_fingerprint({"tower": again.audio_model}) != before


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


MEASURE = """
import sys
import torch
from ave_clip.training.features import FeatureStore

def resident_megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6

store = FeatureStore(sys.argv[1])
for index in range(8):
    store[index]
before = resident_megabytes()
total = 0
for index in torch.randperm(len(store), generator=torch.Generator().manual_seed(0)).tolist():
    total += store[index]["image_features"].nbytes / 1e6
print(resident_megabytes() - before, total)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the process's memory from Linux' /proc")
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    clip = {"labels": torch.zeros(10, dtype=torch.long), "audio_features": torch.zeros(10, 8)}
    clip["image_features"] = torch.randn(10, 49, 128).half()
    writer = new_writer(tmp_path, rows=range(1024), rows_per_shard=128)
    for shard, rows in enumerate(writer.shards):
        writer.write(shard, [{**clip, "row": torch.tensor(row)} for row in rows])
    writer.finish("train")
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    grown, read = map(float, done.stdout.split())
    assert read > 120
    assert grown < 12


def test_a_shard_is_an_ordinary_safetensors_file(tmp_path):
    writer = fill(tmp_path)
    (tmp_path / "ordinary").touch()
    assert writer.path(0).stat().st_mode == (tmp_path / "ordinary").stat().st_mode
    tensors = load_file(writer.path(0))
    assert sorted(tensors) == ["audio_features", "image_features", "labels", "rows", "segment_mask"]
    assert tensors["image_features"].shape == (2, 3, 4, 6)
