"""Many videos at once: results are those of calls, joined batches keep videos apart, and no part is computed twice."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from transformers import pipeline

from ave_clip import corpus_videos, files
from ave_clip.corpus import Corpus, CorpusRun, CorpusSettings, read_results
from ave_clip.corpus_videos import ReadingPlan, localize_videos, plan_reading
from ave_clip.files import Claim
from tests.helpers.media import write_recording


@pytest.fixture(scope="module")
def localizer(checkpoint):
    return pipeline("audio-visual-event-localization", model=checkpoint, device="cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Corpus:
    folder = tmp_path_factory.mktemp("videos")
    for name, seconds in (("a.mp4", 3.0), ("b.mp4", 12.0), ("c.mp4", 1.0), ("d.mp4", 5.0)):
        write_recording(folder / name, seconds)
    write_recording(folder / "silent.mp4", 2.0, sound=None)
    (folder / "broken.mp4").write_bytes(b"no video")
    return Corpus.from_path(str(folder))


@pytest.fixture(scope="module")
def expected(localizer, corpus) -> dict[str, dict]:
    return {video: localizer(video) for video in corpus.videos if "broken" not in video}


def localize(localizer, corpus, num_workers, numbers=None) -> dict[str, dict]:
    numbers = iter(range(len(corpus))) if numbers is None else numbers
    return {
        row.pop("video"): row for _, row in localize_videos(localizer, corpus, numbers, ReadingPlan(num_workers, 1))
    }


@pytest.mark.parametrize("num_workers", [0, 2])
def test_results_are_those_of_calls_bit_by_bit(localizer, corpus, expected, num_workers):
    rows = localize(localizer, corpus, num_workers)
    broken = next(rows.pop(video) for video in list(rows) if "broken" in video)
    assert "broken.mp4" in broken["error"] and broken["events"] is None
    assert rows == {video: {"error": None, **result} for video, result in expected.items()}


def test_videos_that_share_tower_batches_keep_their_results(localizer, corpus, expected, monkeypatch):
    monkeypatch.setattr(corpus_videos, "_joined_segments", lambda *_: 15)
    sizes = []
    encode = localizer.encode_together
    monkeypatch.setattr(localizer, "encode_together", lambda blocks: sizes.append(len(blocks)) or encode(blocks))
    rows = localize(localizer, corpus, 2)
    assert max(sizes) > 1
    for video, result in expected.items():
        assert [entry["label"] for entry in rows[video]["segments"]] == [
            entry["label"] for entry in result["segments"]
        ]
        scores = [entry["score"] for entry in result["segments"]]
        assert [entry["score"] for entry in rows[video]["segments"]] == pytest.approx(scores, abs=1e-5)


def test_an_error_in_a_shared_batch_stays_with_its_video(localizer, corpus, expected, monkeypatch):
    monkeypatch.setattr(corpus_videos, "_joined_segments", lambda *_: 1000)
    forward = localizer.forward

    def fail_for_a(inputs):
        infos = inputs["info"] if isinstance(inputs["info"], list) else [inputs["info"]]
        if any(info["name"].endswith("a.mp4") for info in infos):
            raise RuntimeError("not this one")
        return forward(inputs)

    monkeypatch.setattr(localizer, "forward", fail_for_a)
    rows = localize(localizer, corpus, 0)
    assert [row["error"] for video, row in rows.items() if video.endswith("a.mp4")] == ["not this one"]
    assert all(rows[video]["error"] is None for video in expected if not video.endswith("a.mp4"))


def test_a_fault_of_the_machine_is_no_error_of_a_video(localizer, corpus, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(localizer, "encode_together", full)
    with pytest.raises(torch.OutOfMemoryError):
        localize(localizer, corpus, 1)


@pytest.mark.skipif(sys.platform != "linux", reason="no reading processes")
def test_a_killed_reader_is_no_error_of_the_video_in_work(localizer, corpus, monkeypatch):
    before = set(multiprocessing.active_children())
    number = next(i for i, video in enumerate(corpus.videos) if video.endswith("c.mp4"))
    forward = localizer.forward

    def kill_the_reader(inputs):
        (reader,) = set(multiprocessing.active_children()) - before
        reader.kill()
        os.waitid(os.P_PID, reader.pid, os.WEXITED | os.WNOWAIT)  # it has ended, but torch can still find out how
        return forward(inputs)

    monkeypatch.setattr(localizer, "forward", kill_the_reader)
    with contextlib.closing(localize_videos(localizer, corpus, iter([number]), ReadingPlan(1, 1))) as rows:
        _, row = next(rows)
    assert row["error"] is None


def test_the_plan_follows_device_cpus_and_shared_memory(localizer, monkeypatch, tmp_path):
    monkeypatch.setattr(corpus_videos, "cpus_per_process", lambda: 16)
    on_gpu = SimpleNamespace(
        device=torch.device("cuda"),
        segmenter=localizer.segmenter,
        stage_options=localizer.stage_options,
        block_segments=lambda count: 64,
    )
    if sys.platform == "linux":
        assert plan_reading(on_gpu, 100) == ReadingPlan(15, 1)
        assert plan_reading(on_gpu, 2) == ReadingPlan(2, 8)  # few videos: several threads for each
        assert plan_reading(localizer, 100) == ReadingPlan(8, 2)
        assert plan_reading(localizer, 100, num_processes=8) == ReadingPlan(1, 2)
        assert plan_reading(localizer, 100, 3, 4) == ReadingPlan(3, 4)
        free = SimpleNamespace(f_bavail=1, f_frsize=4 * 3 * corpus_videos._block_bytes(on_gpu))
        monkeypatch.setattr(corpus_videos.os, "statvfs", lambda _: free)
        assert plan_reading(on_gpu, 100) == ReadingPlan(2, 8)
        with monkeypatch.context() as launched:
            launched.setenv("LOCAL_WORLD_SIZE", "2")  # the other process needs as much shared memory
            assert plan_reading(on_gpu, 100) == ReadingPlan(1, 16)
    monkeypatch.setattr(corpus_videos, "SHARED_MEMORY", tmp_path / "none")
    assert plan_reading(on_gpu, 100) == ReadingPlan(0, "auto")


# The file alone: importing the package would take seconds.
HOLD = "import runpy, sys, time; c = runpy.run_path(sys.argv[1])['Claim'](sys.argv[2]); print(c.is_mine, flush=True); "


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_a_claim_excludes_others_until_its_process_ends(tmp_path):
    path = tmp_path / "part"
    command = [sys.executable, "-c", HOLD + "time.sleep(600)", files.__file__, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "True\n"
        refused = Claim(path)
        assert refused.is_known and not refused.is_mine
        refused.release()  # must not delete the file of the other process
        assert not Claim(path).is_mine
        os.kill(holder.pid, signal.SIGKILL)
    claim = Claim(path)
    assert claim.is_mine
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_without_locks_each_process_keeps_to_its_share(localizer, corpus, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    run = CorpusRun(corpus, tmp_path, CorpusSettings(checkpoint, videos_per_part=2), num_workers=0)
    run.begin()
    first, second, third = run.missing_parts()
    run._compute(localizer, [first], [third, second])
    assert run.missing_parts() == [second, third]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks")
def test_parts_of_other_processes_are_left_out_and_taken_when_they_are_free(corpus, checkpoint, tmp_path):
    run = CorpusRun(corpus, tmp_path, CorpusSettings(checkpoint, videos_per_part=2), num_workers=0)
    run.begin()
    first, second, third = run.missing_parts()
    other = Claim(second.path)
    localizer = run.settings.build_localizer("cpu")
    assert run._compute(localizer, [first], [third, second]) == 0
    assert [part.path for part in run.missing_parts()] == [second.path]
    written = third.path.stat().st_mtime_ns
    other.release()
    # A list from before: the other parts were computed since.
    assert run._compute(localizer, [second], [third, first]) == 1
    assert run.missing_parts() == [] and third.path.stat().st_mtime_ns == written
    assert [row["video"] for row in read_results(tmp_path)] == corpus.videos
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "corpus.json",
        *(f"part-0000{i}.parquet" for i in range(3)),
    ]


def test_one_process_computes_the_shares_of_all_if_it_is_alone(corpus, checkpoint, tmp_path):
    run = CorpusRun(corpus, tmp_path, CorpusSettings(checkpoint, videos_per_part=1), num_workers=0)
    alone = Accelerator(cpu=True)
    run.with_accelerate(
        SimpleNamespace(
            is_main_process=True,
            wait_for_everyone=alone.wait_for_everyone,
            process_index=1,
            num_processes=3,
            device=alone.device,
        )
    )
    assert len(list(read_results(tmp_path))) == len(corpus)
