"""The benchmark of a training step runs and reports what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "benchmarks" / "train_step.py"
TINY = ("--quick", "--batch_size", "2", "--hidden_size", "8", "--threads", "1")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """What the benchmark prints and writes at a tiny size."""
    output = tmp_path_factory.mktemp("benchmark") / "step.json"
    command = [sys.executable, str(SCRIPT), *TINY, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, json.loads(output.read_text())


def test_both_kinds_of_features_are_timed(benchmark):
    rows = benchmark[1]["rows"]
    assert [row["row"] for row in rows] == [f"training step, {kind} features, batch 2" for kind in ("pooled", "dense")]
    for row in rows:
        assert row["clips_per_second"] == pytest.approx(2000 / row["milliseconds"], rel=0.1)
        assert row["milliseconds"] <= row["slowest_milliseconds"]
    assert 100 < rows[0]["peak_megabytes"] <= rows[1]["peak_megabytes"]


def test_the_speed_is_printed_and_the_file_says_how_it_came_about(benchmark):
    printed, content = benchmark
    for line, row in zip(printed.splitlines(), content["rows"], strict=True):
        assert f"clips_per_second={row['clips_per_second']}" in line
    assert content["machine"]["threads"] == 1
    assert content["arguments"]["batch_size"] == 2
    assert "torch" in content["versions"]


def test_a_size_below_one_is_refused():
    done = subprocess.run([sys.executable, str(SCRIPT), "--steps", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--steps must be at least 1, got 0" in done.stderr
