"""The benchmark of a training step runs and reports what it promises."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmarks" / "train_step.py"
TINY = ("--quick", "--batch_size", "2", "--hidden_size", "8", "--threads", "1")


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    """What the benchmark prints and writes at a tiny size."""
    output = tmp_path_factory.mktemp("benchmark") / "step.json"
    command = [sys.executable, str(SCRIPT), *TINY, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, json.loads(output.read_text())


def test_both_kinds_of_features_are_timed(benchmark):
    results = benchmark[1]["train_step"]
    assert [result["features"] for result in results] == ["pooled", "dense"]
    for result in results:
        assert result["batch_size"] == 2
        assert result["clips_per_second"] == pytest.approx(2000 / result["median_ms"], rel=0.1)
        assert result["median_ms"] <= result["slowest_ms"]
    assert 100 < results[0]["peak_rss_mb"] <= results[1]["peak_rss_mb"]


def test_the_table_shows_the_results_and_the_file_says_how_they_came_about(benchmark):
    table, content = benchmark
    header, *rows = table.splitlines()
    assert header.split("  ")[0].strip() == "features"
    for row, result in zip(rows, content["train_step"], strict=True):
        assert row.split() == [str(value) for value in result.values()]
    assert content["machine"]["threads"] == 1
    assert content["arguments"]["batch_size"] == 2
    assert "torch" in content["versions"]


def test_a_size_below_one_is_refused():
    done = subprocess.run([sys.executable, str(SCRIPT), "--steps", "0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--steps must be at least 1, got 0" in done.stderr
