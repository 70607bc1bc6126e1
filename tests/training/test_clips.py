"""Clips from files: read one by one or cached."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from ave_clip.data import generate_synthetic_ave, load_ave
from ave_clip.training import clips
from ave_clip.training.clips import (
    ClipCache,
    ClipReader,
    build_clip_cache,
    cache_key,
    clips_fingerprint,
)
from tests.helpers.models import tiny_processor

BACKGROUND = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    generate_synthetic_ave(folder / "data", num_videos=6, seed=2, num_workers=0, splits=(0.6, 0.2, 0.2))
    return folder


@pytest.fixture(scope="module")
def examples(folder):
    return load_ave(folder / "data", split="train")


@pytest.fixture(scope="module")
def cache(folder, examples):
    return build_clip_cache(folder / "cache", examples, tiny_processor())


def test_a_clip_has_as_many_segments_as_labels(examples):
    clip = ClipReader(examples, tiny_processor())[0]
    assert clip["labels"].tolist() == examples[0]["labels"]
    assert clip["pixel_values"].shape == (10, 2, 3, 64, 64)
    assert clip["input_values"].shape == (10, 8000)
    assert clip["frame_mask"].all()


def test_a_clip_shorter_than_its_labels_gets_empty_segments(examples):
    longer = [{**examples[0], "labels": [*examples[0]["labels"], BACKGROUND, BACKGROUND]}]
    shorter = [{**examples[0], "labels": examples[0]["labels"][:3]}]
    clip, cut = ClipReader(longer, tiny_processor())[0], ClipReader(shorter, tiny_processor())[0]
    assert clip["frame_mask"].any(dim=1).tolist() == [True] * 10 + [False] * 2
    assert clip["input_values"][10:].abs().sum() == 0
    torch.testing.assert_close(cut["input_values"], clip["input_values"][:3])


def test_segments_of_another_length_than_the_labels_are_refused(examples):
    processor = tiny_processor()
    processor.video_processor.segment_seconds = 0.5
    with pytest.raises(ValueError, match="but the processor's segments are 0"):
        ClipReader(examples, processor)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the room of a file cannot be claimed here")
def test_a_cache_that_does_not_fit_on_the_disk_says_how_much_it_needs(tmp_path, examples, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match=r"need 0\.0 GB for frames\.npy alone.*Free space"):
        build_clip_cache(tmp_path / "cache", examples, tiny_processor())
    assert not list((tmp_path / "cache").iterdir())


def test_an_unreadable_clip_names_its_file(tmp_path):
    path = tmp_path / "x.mp4"
    path.write_text("no video")
    example = {"row": 4, "labels": [0], "video": {"path": str(path), "bytes": None}}
    clip = ClipReader([example], tiny_processor())[0]
    assert clip["row"] == 4
    assert "x.mp4" in clip["error"]


def test_the_cache_contains_what_the_reader_reads(cache, examples):
    processor = tiny_processor()
    for index in (0, len(examples) - 1):
        clip = ClipReader(examples, processor)[index]
        frames = processor.video_processor.normalize_pixels(torch.from_numpy(cache.clip("frames", index).copy()))
        torch.testing.assert_close(frames, clip["pixel_values"], rtol=1e-4, atol=1e-4)
        sounds = torch.from_numpy(cache.clip("sounds", index).copy())
        torch.testing.assert_close(sounds, clip["input_values"], rtol=0, atol=0)
        assert cache.clip("labels", index).tolist() == clip["labels"].tolist()
    assert cache.rows == list(examples["row"])


def test_a_cache_is_built_once_and_its_name_follows_the_settings(folder, examples, cache, monkeypatch):
    monkeypatch.setattr(ClipReader, "__getitem__", lambda self, index: pytest.fail("decoded again"))
    assert build_clip_cache(folder / "cache", examples, tiny_processor()).folder == cache.folder
    assert cache_key(examples, tiny_processor(3)) != cache_key(examples, tiny_processor(2))
    assert cache_key(examples.select([0]), tiny_processor(2)) != cache_key(examples, tiny_processor(2))


def test_a_fingerprint_follows_rows_labels_and_order_and_not_the_place_of_the_data(folder, examples, tmp_path):
    before = clips_fingerprint(examples)
    first = examples[0]
    assert clips_fingerprint([{**first, "labels": [*first["labels"][:9], 3]}]) != clips_fingerprint([first])
    assert clips_fingerprint([{**first, "row": 99}]) != clips_fingerprint([first])
    assert clips_fingerprint(reversed(list(examples))) != before
    shutil.copytree(folder / "data", tmp_path / "moved")
    moved = load_ave(tmp_path / "moved", split="train", cache_dir=tmp_path / "cache")
    assert clips_fingerprint(moved) == before
    path = Path(moved[0]["video"]["path"])
    path.write_bytes(path.read_bytes() + b"more")
    assert clips_fingerprint(moved) != before


def test_an_interrupted_cache_leaves_nothing(tmp_path, examples, monkeypatch):
    monkeypatch.setattr(ClipReader, "__getitem__", lambda self, index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_clip_cache(tmp_path, examples, tiny_processor())
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_another_process_finished_first_is_used(tmp_path, examples, cache, monkeypatch):
    def finish_second(folder, reader, num_workers):
        shutil.copytree(cache.folder, tmp_path / cache.folder.name)
        (folder / "index.json").touch()

    monkeypatch.setattr(clips, "_fill_cache", finish_second)
    assert build_clip_cache(tmp_path, examples, tiny_processor()).rows == cache.rows
    assert [path.name for path in tmp_path.iterdir()] == [cache.folder.name]


def test_something_else_in_the_place_of_a_cache_is_left_alone(tmp_path, examples, cache):
    (tmp_path / cache.folder.name).mkdir()
    (tmp_path / cache.folder.name / "thesis.txt").touch()
    with pytest.raises(ValueError, match="is not an empty folder"):
        build_clip_cache(tmp_path, examples, tiny_processor())


def test_rows_that_could_not_be_read_are_kept_with_the_reason(tmp_path, examples):
    path = tmp_path / "x.mp4"
    path.write_text("no video")
    columns = {**examples[:2], "row": [3, 8]}
    columns["video"] = [examples[0]["video"], {"path": str(path), "bytes": None}]
    cache = build_clip_cache(tmp_path / "cache", Dataset.from_dict(columns), tiny_processor())
    assert (cache.clip("labels", 1) == -100).all()
    assert list(cache.failed) == [8]
    assert "x.mp4" in cache.failed[8]
    assert ClipCache(cache.folder).failed == cache.failed
