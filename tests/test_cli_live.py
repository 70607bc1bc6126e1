"""`ave-clip localize --live`: standard input, formats that grow, and what cannot be combined with it."""

import io
import json

import pytest
from typer.testing import CliRunner

from ave_clip.cli import app
from ave_clip.cli_live import run_live
from ave_clip.outputs.formats import FORMATS
from ave_clip.outputs.live_writer import LIVE_FORMATS, LiveWriter
from ave_clip.outputs.writers import TABLE
from ave_clip.programs import Interrupted
from tests.helpers.media import write_recording

EVENTS = [
    {"start": 1.0, "end": 2.0, "label": "Bark", "score": 0.5},
    {"start": 3.0, "end": 5.0, "label": "Car, horn", "score": 0.75},
]


def test_standard_input_gives_a_line_per_segment(checkpoint, tmp_path):
    content = write_recording(tmp_path / "clip.ts", 2.0).read_bytes()
    arguments = ["localize", "-", "--live", "-f", "jsonl", "--top-k", "1", "--model", checkpoint, "--device", "cpu"]
    result = CliRunner().invoke(app, arguments, input=content)
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    segments = [segment for line in lines for segment in line["segments"]]
    assert [(segment["start"], len(segment["top_k"])) for segment in segments] == [(0, 1), (1, 1)]
    assert {line["video"] for line in lines} == {"<stdin>"}


def test_a_stream_that_cannot_be_read_is_one_line_and_exit_code_1(checkpoint, tmp_path):
    path = str(write_recording(tmp_path / "plain.mp4", 1.0))
    result = CliRunner().invoke(app, ["localize", path, "--live", "--model", checkpoint, "--device", "cpu"])
    assert result.exit_code == 1
    assert "an MP4 whose index comes at its end" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.ts", "b.ts", "--live"], "one video"),
        (["a.ts", "--live", "-f", "json"], "written when the video has ended"),
        (["a.ts", "--live", "--plot", "a.html"], "need the complete video"),
        (["a.ts", "--live-timeout", "3"], "requires --live"),
        (["a.ts", "--live", "--live-timeout", "0"], "above 0"),
    ],
)
def test_wrong_usage(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["localize", *arguments], env={"COLUMNS": "300"})
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("name", [name for name in LIVE_FORMATS if name not in (TABLE, "jsonl")])
def test_the_parts_of_a_format_make_the_whole(name):
    stream = io.StringIO()
    writer = LiveWriter(stream, name, "a.ts")
    for part in ([], EVENTS[:1], [], EVENTS[1:]):
        writer.add({"segments": [], "events": part})
    assert stream.getvalue() == FORMATS[name].format({"segments": [], "events": EVENTS}, "a.ts")


def test_after_a_signal_the_open_event_is_written(tmp_path):
    class Localizer:
        def stream(self, video, live):
            try:
                yield {"segments": [], "events": []}
                raise Interrupted(2)
            except Interrupted:
                yield {"segments": [], "events": EVENTS[:1]}
                raise

    output = tmp_path / "out.txt"
    with pytest.raises(Interrupted) as stop:
        run_live(Localizer(), "a.ts", TABLE, str(output), {}, print)
    assert stop.value.code == 130
    assert output.read_text().split() == ["1.0", "s", "2.0", "s", "50", "%", "Bark"]
