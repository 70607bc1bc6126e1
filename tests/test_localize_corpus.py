"""The corpus script: every video once, whatever stops it, on processes and on Ray."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest

from .media import write_recording

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def corpus_script():
    import localize_corpus

    return localize_corpus


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    for name in ("a b.mp4", "-c.mp4", "more/d.mkv", "more/\u00e9.webm"):
        write_recording(folder / name, 2.0)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("not a video")
    return folder


def run(script, checkpoint, source, output, *more):
    return script.main(
        [*source, "--output_dir", str(output), "--model", checkpoint, "--cpu", "--videos_per_part", "2", *more]
    )


def test_every_video_of_a_folder_is_one_row_and_failures_are_told(corpus_script, checkpoint, videos, tmp_path):
    assert run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path) == {"videos": 5, "failed": 1}
    rows = {Path(row["video"]).name: row for row in corpus_script.read_results(tmp_path)}
    assert sorted(rows) == ["-c.mp4", "a b.mp4", "broken.mp4", "d.mkv", "\u00e9.webm"]
    assert "broken.mp4" in rows["broken.mp4"]["error"] and rows["broken.mp4"]["events"] is None
    for name, row in rows.items():
        if name != "broken.mp4":
            assert row["error"] is None and [s["end"] for s in row["segments"]] == [1.0, 2.0]


def test_a_run_goes_on_with_the_parts_that_are_missing(corpus_script, checkpoint, videos, tmp_path):
    run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path)
    parts = sorted(tmp_path.glob("*.parquet"))
    tables, kept = [pq.read_table(part) for part in parts], parts[0].stat().st_mtime_ns
    parts[1].unlink()
    run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path)
    assert [pq.read_table(part) for part in parts] == tables
    assert parts[0].stat().st_mtime_ns == kept


def test_parts_with_videos_that_failed_are_made_again_when_asked_for(corpus_script, checkpoint, videos, tmp_path):
    source, output = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(videos, source)
    assert run(corpus_script, checkpoint, ["--input", str(source)], output)["failed"] == 1
    stamps = {part: part.stat().st_mtime_ns for part in output.glob("*.parquet")}
    shutil.copyfile(source / "a b.mp4", source / "broken.mp4")
    assert run(corpus_script, checkpoint, ["--input", str(source)], output)["failed"] == 1
    assert run(corpus_script, checkpoint, ["--input", str(source)], output, "--retry_failed")["failed"] == 0
    assert sum(part.stat().st_mtime_ns != stamp for part, stamp in stamps.items()) == 1


def test_a_full_memory_stops_the_run_rather_than_counts_as_a_failed_video(
    corpus_script, checkpoint, videos, tmp_path, monkeypatch
):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(corpus_script.Corpus, "open", full)
    with pytest.raises(MemoryError):
        run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_folder_of_another_run_is_refused(corpus_script, checkpoint, videos, tmp_path):
    run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path)
    with pytest.raises(ValueError, match="decoder merge there, none now"):
        run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path, "--decoder", "none")


def test_lists_and_data_sets_are_read(corpus_script, checkpoint, videos, tmp_path):
    names = tmp_path / "list.txt"
    names.write_text(f"{videos / 'a b.mp4'}\n\n{videos / 'more' / 'd.mkv'}\n")
    assert run(corpus_script, checkpoint, ["--input", str(names)], tmp_path / "1") == {"videos": 2, "failed": 0}
    rows = [{"path": None, "bytes": (videos / "a b.mp4").read_bytes()}]
    table = datasets.Dataset.from_dict({"clip": rows}).cast_column("clip", datasets.Video(decode=False))
    table.to_parquet(tmp_path / "set" / "train.parquet")
    source = ["--dataset", str(tmp_path / "set"), "--video_column", "clip"]
    assert run(corpus_script, checkpoint, source, tmp_path / "2") == {"videos": 1, "failed": 0}
    first, second = (next(corpus_script.read_results(tmp_path / name)) for name in ("1", "2"))
    assert first["segments"] == second["segments"]
    with pytest.raises(ValueError, match="not 'video'"):
        run(corpus_script, checkpoint, source[:2], tmp_path / "3")


@pytest.mark.parametrize("source", ["missing", "empty", "video"])
def test_a_source_without_videos_is_named(corpus_script, checkpoint, videos, tmp_path, source):
    (tmp_path / "empty").mkdir()
    path = {"missing": tmp_path / "no", "empty": tmp_path / "empty", "video": videos / "a b.mp4"}[source]
    with pytest.raises(ValueError, match=path.name):
        run(corpus_script, checkpoint, ["--input", str(path)], tmp_path / "out")


@pytest.mark.slow
def test_two_processes_share_the_work(checkpoint, videos, tmp_path):
    script = [str(EXAMPLES / "localize_corpus.py"), "--input", str(videos), "--output_dir", str(tmp_path), "--cpu"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*torchrun, *script, "--model", checkpoint, "--videos_per_part", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert "4 videos localized, 1 failed" in done.stderr
    assert done.returncode == 1  # one video is broken
    assert sum(pq.read_metadata(part).num_rows for part in tmp_path.glob("part-*.parquet")) == 5


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra ray)")
def test_ray_gives_what_accelerate_gives(corpus_script, checkpoint, videos, tmp_path):
    run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path / "plain")
    command = [sys.executable, str(EXAMPLES / "localize_corpus.py"), "--input", str(videos), "--model", checkpoint]
    command += ["--output_dir", str(tmp_path / "ray"), "--ray", "--videos_per_part", "2"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert "4 videos localized, 1 failed" in done.stderr, done.stderr[-2000:]
    assert list(corpus_script.read_results(tmp_path / "ray")) == list(corpus_script.read_results(tmp_path / "plain"))
