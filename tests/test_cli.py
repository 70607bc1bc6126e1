"""The command line: formats, exit codes, and one bad file among good ones."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from ave_clip.cli import app
from tests.helpers.media import write_recording


def run(*arguments: str) -> Result:
    """The command in this process, which has imported torch already."""
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, arguments)


def run_process(*arguments: str, **options) -> subprocess.CompletedProcess:
    """The command in a process of its own, as a shell starts it."""
    command = [sys.executable, "-m", "ave_clip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    good = write_recording(folder / "a clip.mp4", 4.0)
    dashed = write_recording(folder / "-dash.mp4", 2.0)
    bad = folder / "bad.mp4"
    bad.write_text("not a video")
    return good, bad, dashed


def test_one_bad_file_does_not_stop_the_others(checkpoint, files, tmp_path):
    good, bad, dashed = files
    arguments = ("--model", checkpoint, "--format", "jsonl", "--", str(good), str(bad), dashed.name)
    result = run_process("localize", *arguments, cwd=good.parent)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 1
    assert [line["video"] for line in lines] == [str(good), dashed.name]
    assert [len(line["segments"]) for line in lines] == [4, 2]
    assert "bad.mp4" in result.stderr and "1 of 3 videos failed" in result.stderr
    assert "Traceback" not in result.stderr


def test_output_goes_to_a_file_in_the_format_of_its_suffix(checkpoint, files, tmp_path):
    good, _, _ = files
    for suffix in ("json", "csv"):
        result = run("localize", str(good), "--model", checkpoint, "--output", str(tmp_path / f"out.{suffix}"))
        assert (result.exit_code, result.stdout) == (0, "")
    (video,) = json.loads((tmp_path / "out.json").read_text())
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [event["label"] for event in video["events"]]
    assert all(row["video"] == str(good) for row in rows)
    assert sorted(os.listdir(tmp_path)) == ["out.csv", "out.json"]


def test_the_table_names_every_video(checkpoint, files):
    good, _, dashed = files
    result = run("localize", str(good), str(dashed), "--model", checkpoint)
    assert result.exit_code == 0
    assert "a clip.mp4" in result.stdout and "-dash.mp4" in result.stdout


def test_a_pipe_is_written_and_a_folder_refused(checkpoint, files, tmp_path):
    good, _, _ = files
    arguments = ("--model", checkpoint, "--format", "jsonl", "--output", "/dev/stdout")
    result = run_process("localize", str(good), *arguments)
    assert json.loads(result.stdout)["video"] == str(good)
    assert run("localize", str(good), "--model", checkpoint, "--output", str(tmp_path)).exit_code == 2


def test_neither_a_video_nor_earlier_results_are_overwritten(checkpoint, files, tmp_path):
    good, bad, _ = files
    before = good.read_bytes()
    result = run("localize", str(good), "--model", checkpoint, "--output", str(good))
    assert result.exit_code == 2 and good.read_bytes() == before
    (tmp_path / "old.json").write_text("[1]")
    result = run("localize", str(bad), "--model", checkpoint, "--output", str(tmp_path / "old.json"))
    assert result.exit_code == 1 and "is unchanged" in result.stderr
    assert (tmp_path / "old.json").read_text() == "[1]" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("localize",),
        ("localize", "x.mp4", "--format", "xml"),
        ("localize", "x.mp4", "--decoder", "no"),
        ("localize", "x.mp4", "--frame-tolerance", "-1"),
        ("localize", "x.mp4", "--compile", "--backend", "onnxruntime"),
        ("localize", "x.mp4", "--dtype", "bfloat16", "--backend", "openvino"),
        ("nonsense",),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments):
    assert run(*arguments).exit_code == 2


def test_frames_may_share_an_encoding(checkpoint, files):
    results = [
        run("localize", str(files[0]), "--model", checkpoint, "--format", "json", *options)
        for options in ((), ("--frame-tolerance", "0", "--backend", "torch"))
    ]
    assert [result.exit_code for result in results] == [0, 0]
    plain, shared = (json.loads(result.stdout) for result in results)
    for segment, other in zip(plain[0]["segments"], shared[0]["segments"], strict=True):
        assert other["label"] == segment["label"] and other["score"] == pytest.approx(segment["score"], abs=1e-3)


def test_torch_weights_are_not_run_by_another_backend(checkpoint):
    result = run("localize", "x.mp4", "--model", checkpoint, "--backend", "onnxruntime")
    assert result.exit_code == 1 and "ave-clip export" in result.stderr


def test_a_model_that_is_not_there_is_said_in_one_line(tmp_path):
    result = run("localize", "x.mp4", "--model", str(tmp_path / "nothing"))
    assert result.exit_code == 1 and "there is no such folder" in result.stderr
    assert "cannot load the model" in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_damaged_checkpoint_is_one_line_without_a_traceback(checkpoint, tmp_path):
    reasons = {"half": "weights that", "cut": "cannot be read", "pickle": "a pickle ", "none": "no file named"}
    for kind, reason in reasons.items():
        folder = shutil.copytree(checkpoint, tmp_path / kind)
        weights = folder / "model.safetensors"
        if kind == "half":
            save_file(dict(list(load_file(weights).items())[::2]), weights, metadata={"format": "pt"})
        elif kind == "cut":
            os.truncate(weights, weights.stat().st_size // 2)
        else:
            weights.unlink()
        if kind == "pickle":
            torch.save({"code": subprocess.Popen}, folder / "pytorch_model.bin")
        for command in (["localize", "x.mp4", "--model", str(folder)], ["export", str(folder), str(tmp_path / "out")]):
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 1 and reason in result.stderr, result.stderr
            assert len(result.stderr.splitlines()) == 1 and "Traceback" not in result.stderr


def test_synthesize_makes_a_data_set_and_does_not_overwrite(tmp_path):
    out = tmp_path / "set"
    first = run("synthesize", str(out), "--videos", "5", "--seed", "3", "--workers", "1")
    assert first.exit_code == 0, first.stderr
    assert len(list((out / "AVE").glob("*.mp4"))) == 5
    again = run("synthesize", str(out), "--videos", "5")
    assert again.exit_code == 1 and str(out) in again.stderr


def test_every_message_begins_with_the_name_of_the_command(checkpoint, tmp_path):
    write_recording(tmp_path / "mute.mp4", 2.0, sound=None)
    code = """
import sys, warnings
from ave_clip import cli
load = cli._load_pipeline
def load_with_warnings(*arguments):
    localizer = load(*arguments)
    from transformers.utils import logging
    logging.get_logger("transformers.modeling").warning("by transformers")
    warnings.warn("by a library")
    return localizer
cli._load_pipeline = load_with_warnings
cli.main()
"""
    command = [sys.executable, "-c", code, "localize", "mute.mp4", "bad.mp4", "--model", checkpoint, "--device", "cpu"]
    (tmp_path / "bad.mp4").write_text("not a video")
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    lines = result.stderr.splitlines()
    assert result.returncode == 1 and "1 of 2 videos failed." in lines[-1]
    for message in ("by transformers", "by a library", "has no audio", "bad.mp4"):
        assert any(message in line for line in lines), result.stderr
    # The further lines of a message are indented.
    assert all(line.startswith(("ave-clip: ", "    ")) for line in lines), result.stderr


def test_one_failed_video_is_singular(checkpoint, tmp_path):
    (tmp_path / "bad.mp4").write_text("not a video")
    result = CliRunner().invoke(app, ["localize", str(tmp_path), "--model", checkpoint, "--device", "cpu"])
    assert result.exit_code == 1
    assert f"ave-clip: {tmp_path}: 1 video." in result.stderr and "1 of 1 video failed." in result.stderr
