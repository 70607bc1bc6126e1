"""The corpus script: it localizes every video once, resumes, and runs on several processes and on Ray."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from accelerate import Accelerator

from ave_clip import DEFAULT_CHECKPOINT
from ave_clip.corpus import Corpus, CorpusRun, CorpusSettings, read_results
from tests.helpers.media import write_recording

EXAMPLES = Path(__file__).parents[2] / "examples"


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


def test_every_video_of_a_folder_is_one_row_and_failures_are_reported(
    corpus_script, checkpoint, videos, tmp_path, caplog
):
    assert run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path) == {"videos": 5, "failed": 1}
    assert "Exit code 1 because 1 video failed; the results of the other 4 are complete." in caplog.text
    rows = {Path(row["video"]).name: row for row in read_results(tmp_path)}
    assert sorted(rows) == ["-c.mp4", "a b.mp4", "broken.mp4", "d.mkv", "\u00e9.webm"]
    assert "broken.mp4" in rows["broken.mp4"]["error"] and rows["broken.mp4"]["events"] is None
    for name, row in rows.items():
        if name != "broken.mp4":
            assert row["error"] is None and [s["end"] for s in row["segments"]] == [1.0, 2.0]


def test_the_engine_gives_what_the_script_gives(corpus_script, checkpoint, videos, tmp_path):
    run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path / "script")
    settings = CorpusSettings(checkpoint, videos_per_part=2)
    job = CorpusRun(Corpus.from_path(str(videos)), tmp_path / "engine", settings)
    job.with_accelerate(Accelerator(cpu=True))
    assert list(read_results(tmp_path / "engine")) == list(read_results(tmp_path / "script"))
    assert job.missing_parts() == []
    assert (tmp_path / "engine" / "corpus.json").read_text() == (tmp_path / "script" / "corpus.json").read_text()


def test_a_run_resumes_with_the_parts_that_are_missing(corpus_script, checkpoint, videos, tmp_path):
    run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path)
    parts = sorted(tmp_path.glob("*.parquet"))
    tables, kept = [pq.read_table(part) for part in parts], parts[0].stat().st_mtime_ns
    parts[1].unlink()
    run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path)
    assert [pq.read_table(part) for part in parts] == tables
    assert parts[0].stat().st_mtime_ns == kept


def test_retry_failed_computes_parts_with_failed_videos_again(corpus_script, checkpoint, videos, tmp_path):
    source, output = tmp_path / "videos", tmp_path / "out"
    shutil.copytree(videos, source)
    assert run(corpus_script, checkpoint, ["--input", str(source)], output)["failed"] == 1
    stamps = {part: part.stat().st_mtime_ns for part in output.glob("*.parquet")}
    shutil.copyfile(source / "a b.mp4", source / "broken.mp4")
    assert run(corpus_script, checkpoint, ["--input", str(source)], output)["failed"] == 1
    assert run(corpus_script, checkpoint, ["--input", str(source)], output, "--retry_failed")["failed"] == 0
    assert sum(part.stat().st_mtime_ns != stamp for part, stamp in stamps.items()) == 1


def test_exhausted_memory_stops_the_run_and_is_not_a_failed_video(
    corpus_script, checkpoint, videos, tmp_path, monkeypatch
):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr(Corpus, "open", full)
    with pytest.raises(MemoryError):
        run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path)
    assert not list(tmp_path.glob("*.parquet"))


def test_a_folder_of_another_run_is_refused(corpus_script, checkpoint, videos, tmp_path):
    run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path)
    with pytest.raises(ValueError, match="decoder None there, none now"):
        run(corpus_script, checkpoint, ["--input", str(videos)], tmp_path, "--decoder", "none")


def test_the_builtin_model_is_the_same_model_in_another_installation(tmp_path, monkeypatch):
    folder = Path(DEFAULT_CHECKPOINT)
    runs = [CorpusSettings(), CorpusSettings(folder.name), CorpusSettings(os.path.relpath(folder))]
    for settings in runs:
        CorpusRun(Corpus(["a.mp4"]), tmp_path / "out", settings).begin()
    assert json.loads((tmp_path / "out" / "corpus.json").read_text())["model"] == folder.name
    monkeypatch.chdir(tmp_path)
    Path(folder.name).mkdir()  # another model
    with pytest.raises(ValueError, match=r"model ave-clip-mini there, \./ave-clip-mini now"):
        CorpusRun(Corpus(["a.mp4"]), tmp_path / "out", CorpusSettings(folder.name)).begin()


def test_lists_and_data_sets_are_read(corpus_script, checkpoint, videos, tmp_path):
    names = tmp_path / "list.txt"
    names.write_text(f"{videos / 'a b.mp4'}\n\n{videos / 'more' / 'd.mkv'}\n")
    assert run(corpus_script, checkpoint, ["--input", str(names)], tmp_path / "1") == {"videos": 2, "failed": 0}
    rows = [{"path": None, "bytes": (videos / "a b.mp4").read_bytes()}]
    table = datasets.Dataset.from_dict({"clip": rows}).cast_column("clip", datasets.Video(decode=False))
    table.to_parquet(tmp_path / "set" / "train.parquet")
    source = ["--dataset", str(tmp_path / "set"), "--video_column", "clip"]
    assert run(corpus_script, checkpoint, source, tmp_path / "2") == {"videos": 1, "failed": 0}
    first, second = (next(read_results(tmp_path / name)) for name in ("1", "2"))
    assert first["segments"] == second["segments"]
    with pytest.raises(ValueError, match="not 'video'"):
        run(corpus_script, checkpoint, source[:2], tmp_path / "3")


def test_the_videos_of_a_labelled_data_set_are_read_once(corpus_script, checkpoint, videos, tmp_path):
    table = videos / "events.csv"
    table.write_text("path,label,start,end\na b.mp4,Bark,0,0.8\na b.mp4,Whine,0.2,1\nmore/d.mkv,,,\n")
    try:
        assert run(corpus_script, checkpoint, ["--data", str(table)], tmp_path) == {"videos": 2, "failed": 0}
    finally:
        table.unlink()


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
    assert list(read_results(tmp_path / "ray")) == list(read_results(tmp_path / "plain"))


@pytest.mark.parametrize("model", [None, "other"])
def test_what_the_default_model_knows_is_said_if_no_other_is_named(
    corpus_script, videos, tmp_path, monkeypatch, caplog, model
):
    monkeypatch.setattr(corpus_script.CorpusRun, "with_accelerate", lambda *_: None)
    more = [] if model is None else ["--model", model]
    corpus_script.main(["--input", str(videos), "--output_dir", str(tmp_path), "--cpu", *more])
    assert ("no --model given: the built-in ave-clip-" in caplog.text) == (model is None)
