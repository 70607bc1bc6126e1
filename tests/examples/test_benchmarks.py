"""The benchmark scripts measure what they say, at tiny sizes, and their check notices what became slower."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from ave_clip.core.modeling_audioclip import AudioCLIPModel
from ave_clip.training.arguments import processor_name
from tests.helpers.models import tiny_audioclip_config

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"
ROWS = [{"row": "a", "ratio": 2.0}, {"row": "b", "ratio": 1.0}]


@pytest.fixture
def benchmark(monkeypatch):
    """Import a script as it is run: with its folder on the path."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in (
        "timing",
        "encoders",
        "fusion",
        "localizer",
        "run",
        "train_step",
        "gpu",
        "recordings",
        "decoding",
        "originals",
    ):
        sys.modules.pop(name, None)


def test_times_are_medians_of_interleaved_calls(benchmark, monkeypatch):
    timing = benchmark("timing")
    clock = iter([0, 9, 0, 4, 4, 6, 10, 16, 20, 22, 30, 32, 40, 44])  # a warm-up of both, then three rounds
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    calls = []
    results = timing.interleaved({"reference": lambda: calls.append("r"), "fast": lambda: calls.append("f")}, 3)
    assert calls == ["r", "f"] * 4
    assert results["reference"] == {"milliseconds": 4000.0, "ratio": 1.0}
    assert results["fast"] == {"milliseconds": 2000.0, "ratio": 2.0}


def test_encoders_are_timed_and_compared_with_the_reference(benchmark, tmp_path):
    torch.manual_seed(0)
    model = AudioCLIPModel(tiny_audioclip_config())
    model.audio_model.bn1.running_mean.fill_(20.0)
    model.audio_model.bn1.running_var.fill_(400.0)
    model.save_pretrained(tmp_path / "model")
    output = tmp_path / "encoders.json"
    argv = ["--model", str(tmp_path / "model"), "--batch_sizes", "2", "--rounds", "1", "--output", str(output)]
    content = benchmark("encoders").main([*argv, "--threads", "1"])
    assert [row["row"] for row in content["rows"]] == [
        f"{tower} {dtype} batch 2" for tower in ("audio", "image") for dtype in ("float32", "bfloat16")
    ]
    for row in content["rows"]:
        exact = "float32" in row["row"]
        assert row["max_difference"] < (1e-5 if exact else 1) and row["min_cosine"] > (0.99999 if exact else 0.99)
        assert row["ratio"] == pytest.approx(row["reference_milliseconds"] / row["milliseconds"], rel=0.1)
    assert json.loads(output.read_text())["rows"] == content["rows"]


def test_fusion_equals_the_loops(benchmark, monkeypatch):
    fusion = benchmark("fusion")
    monkeypatch.setattr(fusion, "peak_memory", lambda name, args: len(name))  # of processes of their own: see below
    argv = ["--rounds", "1", "--batch_size", "4", "--hidden_size", "16", "--threads", "1"]
    loop, package = fusion.main(argv)["rows"]
    assert "loop" in loop["row"] and "package" in package["row"]
    for row in (loop, package):
        assert 0 <= row["max_relative_difference"] < 1e-4
    assert package["peak_memory_mb"] == len("package")


@pytest.mark.slow
def test_fusion_takes_less_memory_than_the_loop(benchmark):
    fusion = benchmark("fusion")
    args = fusion.parse_args(["--batch_size", "32", "--threads", "1"])
    assert fusion.peak_memory("package", args) < 0.5 * fusion.peak_memory("reference", args)


def test_localizer_equals_its_loop(benchmark):
    rows = benchmark("localizer").main(["--rounds", "1", "--hidden_size", "16", "--threads", "1"])["rows"]
    assert ["pooled" in row["row"] for row in rows] == [True, False]
    assert all(row["max_difference"] < 1e-4 and row["milliseconds"] > 0 for row in rows)


def test_rounds_below_one_are_refused(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark("localizer").main(["--rounds", "0"])
    assert "--rounds must be at least 1, got 0" in capsys.readouterr().err


def test_a_ratio_may_drop_by_15_percent_but_no_more(benchmark):
    run = benchmark("run")
    assert run.dropped(ROWS, {"a": 2.35, "b": 1.17, "elsewhere": 9.0}) == []
    assert run.dropped(ROWS, {"a": 2.36, "b": 1.0}) == ["a: 2 times the reference, committed 2.36"]


def write_committed(path: Path, ratio: float, processor: str | None = None) -> str:
    machine = {"threads": 2, "processor": processor or processor_name()}
    path.write_text(json.dumps({"rows": [{"row": "a", "ratio": ratio}], "machine": machine}))
    return str(path)


def test_check_measures_once_more_and_takes_the_better(benchmark, monkeypatch, tmp_path):
    run, measured = benchmark("run"), [1.0, 1.9]
    monkeypatch.setattr(run, "run_part", lambda name, args: [{"row": "a", "ratio": measured.pop(0)}])
    committed = write_committed(tmp_path / "committed.json", 2.0)
    content = run.main(["--parts", "fusion", "--check", committed, "--output", str(tmp_path / "merged.json")])
    assert content["rows"] == [{"row": "a", "ratio": 1.9}] and not measured
    assert json.loads((tmp_path / "merged.json").read_text())["machine"]["threads"] == 2


def test_check_fails_where_a_part_stays_slower(benchmark, monkeypatch, tmp_path):
    run = benchmark("run")
    monkeypatch.setattr(run, "run_part", lambda name, args: [{"row": "a", "ratio": 1.0}])
    with pytest.raises(SystemExit, match=r"Slower by more than 15%.*\na: 1 times the reference, committed 2"):
        run.main(["--parts", "fusion", "--check", write_committed(tmp_path / "committed.json", 2.0)])


def test_results_of_another_cpu_are_shown_and_not_judged(benchmark, monkeypatch, tmp_path, capsys):
    run = benchmark("run")
    monkeypatch.setattr(run, "run_part", lambda name, args: [{"row": "a", "ratio": 1.0}])
    run.main(["--parts", "fusion", "--check", write_committed(tmp_path / "committed.json", 2.0, "Another CPU")])
    assert "Another CPU" in (shown := capsys.readouterr().out) and "1         2  a" in shown
    assert "nothing is judged" in shown


def test_parts_run_in_a_process_of_their_own(benchmark, tmp_path):
    content = benchmark("run").main(
        ["--parts", "localizer", "--threads", "1", "--quick", "--check", write_committed(tmp_path / "c.json", 0.1)]
    )
    assert [row["row"] for row in content["rows"]] == [
        f"localizer, one clip, {kind} features" for kind in ("pooled", "dense")
    ]
    assert content["machine"]["threads"] == 1


def test_the_authors_code_is_imported_from_a_folder_of_the_user(benchmark, tmp_path):
    originals = benchmark("originals")
    network = """
import torch
class psp_net(torch.nn.Module):
    def __init__(self, audio, image, hidden, classes):
        super().__init__()
        self.layer = torch.nn.Linear(audio, classes).cuda()
    def forward(self, audio, video, threshold):
        assert video.shape[2:] == (7, 7, 512)
        return None, self.layer(audio + torch.zeros(1).cuda()), None
"""
    (tmp_path / "fully_model.py").write_text(network)
    originals.original_psp_step(tmp_path / "fully_model.py", originals.psp_batch(2, "cpu"))()
    with pytest.raises(FileNotFoundError, match="AudioCLIP's repository"):
        originals.original_audioclip(tmp_path, "cpu")


def test_the_check_of_a_gpu_runs_on_the_cpu_with_tiny_inputs(benchmark):
    rows = benchmark("gpu").main(["--device", "cpu", "--quick"])["rows"]
    reached = {row["row"]: row["reached"] for row in rows}
    assert reached["threads, same segments and events"] == 1
    # Without a GPU, the CPUs stand in for its decoder, so the pictures are equal.
    assert {value for name, value in reached.items() if name.endswith("largest difference in grey levels")} == {0}
    # Cosines, towers, graphs, compile; corpus and pipeline, threads; reader, decoding; training.
    assert len(rows) == (4 + 2 + 2 + 2) + (4 + 1) + (3 + 2 + 4) + 3
    assert all(value > 0 for name, value in reached.items() if "difference" not in name)
