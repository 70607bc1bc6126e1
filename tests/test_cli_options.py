"""Options of `ave-clip localize` that do not go together are refused before anything is loaded."""

import sys

import pytest
from typer.testing import CliRunner

from ave_clip import cli_options as option
from ave_clip.cli import app
from ave_clip.core import decode_threads


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--max-download-seconds", "0"], "must be above 0, got 0"),
        (["--max-download-seconds", "nan"], "must be above 0, got nan"),
        (["--compile", "--backend", "openvino"], "--compile works with torch"),
        (["--dtype", "float16", "--backend", "onnx"], "--dtype float16 works with torch"),
        (["--decode-threads", "0"], 'decode_threads=0, expected "auto" or a number of threads'),
        (["--top-k", "2", "--format", "srt"], "srt contains events only"),
        (["--theme", "light"], "--theme sets the colours of --plot"),
        (["--agreement-threshold", "0.1"], "--agreement-threshold requires --labels"),
        (["--vision-model", "a/b", "--audio-model", "c/d"], "--vision-model and --audio-model require --labels"),
        (["--labels", "dog", "--vision-model", "a/b"], "--vision-model and --audio-model require each other"),
        (
            ["--labels", "dog", "--model", "e/f", "--vision-model", "a/b", "--audio-model", "c/d"],
            "Pass either --model",
        ),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(arguments, wrong):
    result = CliRunner().invoke(app, ["localize", "x.mp4", *arguments])
    message = " ".join(result.output.replace("│", " ").split())  # without the frame and its line breaks
    assert result.exit_code == 2 and wrong in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--labels", "dog,dog"], "contains a label twice"),
        (["--labels", ""], "must be one or more texts"),
        (["--labels", "dog", "--labels", "cat,dog"], "contains a label twice: ['dog', 'cat', 'dog']"),
        (["--labels", "dog brak,thunder"], "has a class for the label 'dog brak'"),
        (["--labels", "dog", "--agreement-threshold", "0.1"], "is an option for an AudioCLIP"),
    ],
)
def test_labels_that_cannot_be_used_are_wrong_usage_whatever_the_number_of_videos(arguments, expected):
    result = CliRunner().invoke(app, ["localize", "a.mp4", "b.mp4", "--device", "cpu", *arguments])
    text = " ".join(result.stderr.replace("│", " ").split())
    assert (result.exit_code, text.count(expected)) == (2, 1), result.stderr


def test_repeated_labels_are_added():
    assert option.zero_shot_options(["dog", "cat, horn"], None)["candidate_labels"] == ["dog", "cat", "horn"]


def test_the_help_of_decode_threads_says_what_auto_does(monkeypatch):
    wanted = {}
    for num_cpus in (1, 4, 100):
        monkeypatch.setattr(decode_threads, "cpus_per_process", lambda number=num_cpus: number)
        wanted[num_cpus] = decode_threads.num_decode_threads("auto", 64, 64)
    text = option.DecodeThreads.__metadata__[0].help
    assert f"the number of CPUs and {wanted[4] - 4} more, but at most {wanted[100]};" in text
    assert wanted[1] == 1 and "one on a single CPU" in text


def test_missing_matplotlib_is_told_before_anything_is_read(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = CliRunner().invoke(app, ["localize", "missing.mp4", "--model", "no/model", "--plot", "x.PNG"])
    message = " ".join(result.output.replace("│", " ").split())
    assert result.exit_code == 2 and 'pip install "ave-clip[viz]"' in message and "missing.mp4" not in message
