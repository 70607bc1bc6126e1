"""Feature stores of several labels, with events and durations, and of long rows that are read in windows."""

import json

import pytest
import torch
from safetensors.torch import load_file

from ave_clip.training.feature_shards import BLOCK_SEGMENTS, plan_shards
from ave_clip.training.features import FeatureStore, FeatureStoreError, FeatureWriter

SETTINGS = {
    "encoder_fingerprint": "abc",
    "num_frames_per_segment": 4,
    "segment_seconds": 0.5,
    "id2label": {"0": "Bell", "1": "Bark"},
    "problem_type": "multi_label",
}
LENGTHS = {7: 3, 3: 100, 9: 5}
EVENTS = [{"label": 1, "start": 0.2, "end": 1.3}, {"label": 0, "start": 1.0, "end": 1.4}]


def make_clip(row, length=None):
    generator = torch.Generator().manual_seed(row)
    length = length or LENGTHS[row]
    return {
        "row": torch.tensor(row),
        "labels": torch.randint(2, (length, 2), generator=generator),
        "image_features": torch.randn(length, 4, 6, generator=generator).half(),
        "audio_features": torch.randn(length, 6, generator=generator).half(),
        "events": EVENTS,
        "duration": length / 2,
    }


def blocks(clip, size=BLOCK_SEGMENTS, fail_at=None):
    for first in range(0, len(clip["labels"]), size):
        if first == fail_at:
            raise ValueError("the video is damaged")
        yield {name: clip[name][first : first + size] for name in ("image_features", "audio_features")}


def new_writer(folder, **settings):
    clips = {row: f"clip {row}" for row in LENGTHS}
    return FeatureWriter(folder, {**SETTINGS, **settings}, clips, 2, lengths=LENGTHS)


def fill(folder):
    writer = new_writer(folder)
    for shard, rows in enumerate(writer.shards):
        if writer.is_long(shard):
            writer.write_long(shard, make_clip(rows[0]), blocks(make_clip(rows[0])))
        else:
            writer.write(shard, [make_clip(row) for row in rows])
    return writer


def test_a_long_row_has_a_shard_of_its_own():
    assert plan_shards({1: 10, 2: 10, 3: 65, 4: 10, 5: 64, 6: 10, 7: 99, 8: 99}, 2) == [
        [1, 2],
        [3],
        [4, 5],
        [6],
        [7],
        [8],
    ]


def test_rows_of_any_length_come_back_bit_for_bit(tmp_path):
    manifest = fill(tmp_path).finish("train")
    assert manifest["format_version"] == 3 and manifest["num_labelled_rows"] == 3
    store = FeatureStore(tmp_path)
    assert (store.rows, store.lengths, store.problem_type) == ([7, 3, 9], [3, 100, 5], "multi_label")
    assert store.truth[3] == {"events": EVENTS, "duration": 50.0}
    for index, row in enumerate(store.rows):
        clip, expected = store[index], make_clip(row)
        for name in ("labels", "image_features", "audio_features"):
            torch.testing.assert_close(clip[name], expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(("first", "length"), [(0, 1), (15, 2), (16, 16), (30, 40), (90, 10), (99, 1)])
def test_a_window_of_a_long_row_is_its_part(tmp_path, first, length):
    fill(tmp_path).finish("train")
    window, expected = FeatureStore(tmp_path).window(1, first, length), make_clip(3)
    for name in ("labels", "image_features", "audio_features"):
        torch.testing.assert_close(window[name], expected[name][first : first + length], rtol=0, atol=0)
    assert window["segment_mask"].tolist() == [True] * length


def test_the_shard_of_a_long_row_is_an_ordinary_safetensors_file(tmp_path):
    writer = fill(tmp_path)
    tensors = load_file(writer.path(1))
    assert tensors["rows"].tolist() == [3] and tensors["segment_mask"].all()
    torch.testing.assert_close(tensors["image_features"][0], make_clip(3)["image_features"], rtol=0, atol=0)
    again = fill(tmp_path / "again")
    assert writer.path(1).read_bytes() == again.path(1).read_bytes()


def test_damage_is_found_in_the_window_that_contains_it(tmp_path):
    writer = fill(tmp_path)
    writer.finish("train")
    content = bytearray(writer.path(1).read_bytes())
    part = make_clip(3)["image_features"][40].contiguous().view(torch.uint8).numpy().tobytes()
    content[content.index(part)] ^= 4
    writer.path(1).write_bytes(content)
    store = FeatureStore(tmp_path)
    assert len(store.window(1, 0, 32)["labels"]) == 32
    with pytest.raises(FeatureStoreError, match="row 3 does not have its checksum"):
        store.window(1, 36, 5)
    assert writer.plan() == [] and writer.plan(verify=True) == [1]


def test_a_long_video_that_fails_in_the_middle_leaves_no_file(tmp_path):
    writer = new_writer(tmp_path)
    with pytest.raises(ValueError, match="the video is damaged"):
        writer.write_long(1, make_clip(3), blocks(make_clip(3), fail_at=32))
    with pytest.raises(ValueError, match="has 100 labels, but features of 64 segments"):
        writer.write_long(1, make_clip(3), blocks(make_clip(3, 64)))
    assert list(tmp_path.iterdir()) == []
    writer.write(1, [], {3: "the video is damaged"})
    assert writer.state(1) == "failed"


def test_stores_of_earlier_versions_load_and_resume(tmp_path):
    settings = {name: value for name, value in SETTINGS.items() if name != "problem_type"}
    settings |= {"id2label": {"0": "Bell", "1": "background"}}
    clip = {**make_clip(7), "labels": torch.tensor([1, 0, 0])}
    old = {name: value for name, value in clip.items() if name not in ("events", "duration")}
    writer = FeatureWriter(tmp_path, settings, {7: "clip 7"})
    writer.write(0, [old])
    manifest = writer.finish("train")
    assert manifest["format_version"] == 2
    manifest["shards"] = [{"file": shard["file"], "rows": shard["rows"]} for shard in manifest["shards"]]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    store = FeatureStore(tmp_path)
    assert store.lengths == [3] and store.problem_type == "single_label"
    assert store.truth == {7: {"events": [{"label": 0, "start": 0.5, "end": 1.5}], "duration": 1.5}}
    store.check_settings(problem_type="single_label")
    now = FeatureWriter(tmp_path, {**settings, "problem_type": "single_label"}, {7: "clip 7"}, lengths={7: 3})
    assert now.plan() == []
    with pytest.raises(FeatureStoreError, match="problem_type 'single_label' there, 'multi_label' now"):
        FeatureWriter(tmp_path, {**settings, "problem_type": "multi_label"}, {7: "clip 7"}).plan()
