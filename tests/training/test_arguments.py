"""YAML files and the command line, overrides of configurations, and processes that do not see each other."""

import argparse
import json

import numpy as np
import pytest

from ave_clip import AVEClipConfig
from ave_clip.training.arguments import (
    add_run_arguments,
    build_accelerator,
    describe_run,
    parse_arguments,
    parse_overrides,
    write_json,
)


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser(prog="script")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--splits", nargs="+", choices=("train", "test"))
    parser.add_argument("--fields", nargs="*", default=[])
    parser.add_argument("--shuffle", action=argparse.BooleanOptionalAction, default=True)
    add_run_arguments(parser)
    return parser


def parse(parser, tmp_path, text, *argv):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return parse_arguments(parser, ["--config", str(path), *argv])


def test_yaml_sets_values_of_every_kind(parser, tmp_path):
    text = "epochs: 5\nrate: 1.0e-3\nsplits: [train, test]\nfields: {size: 64, windows: [10, 5]}\nshuffle: false"
    args = parse(parser, tmp_path, f"{text}\ncpu: true")
    assert (args.epochs, args.rate, args.splits, args.shuffle, args.cpu) == (5, 1e-3, ["train", "test"], False, True)
    assert args.fields == ["size=64", "windows=[10, 5]"]


def test_the_command_line_overrides_yaml(parser, tmp_path):
    args = parse(parser, tmp_path, "epochs: 5\nrate: 0.1", "--epochs", "7")
    assert (args.epochs, args.rate) == (7, 0.1)


def test_a_null_or_false_switch_in_yaml_keeps_the_default(parser, tmp_path):
    args = parse(parser, tmp_path, "epochs: null\nrate: 1\ncpu: false")
    assert (args.epochs, args.cpu) == (3, False)


@pytest.mark.parametrize(
    ("text", "message"), [("epoch: 5", "sets 'epoch', which script does not take"), ("- 1", "contains a list")]
)
def test_yaml_that_fits_no_argument_is_refused(parser, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse(parser, tmp_path, text)


def test_yaml_values_go_through_the_checks_of_the_command_line(parser, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(parser, tmp_path, "rate: 1\nsplits: [validation]")
    assert "invalid choice: 'validation'" in capsys.readouterr().err


def test_overrides_are_read_as_json_or_words():
    pairs = ["hidden_size=64", "window_sizes=[10,5]", "visual_feature_type=pooled", "use_refiner=false"]
    expected = {"hidden_size": 64, "window_sizes": [10, 5], "visual_feature_type": "pooled", "use_refiner": False}
    assert parse_overrides(pairs, AVEClipConfig) == expected


@pytest.mark.parametrize("pair", ["hiden_size=64", "hidden_size"])
def test_an_override_of_no_field_is_refused(pair):
    with pytest.raises(ValueError, match=f"Got override '{pair}'"):
        parse_overrides([pair], AVEClipConfig)


def test_processes_that_do_not_see_each_other_stop(monkeypatch):
    class Alone:
        num_processes = 1

        def __init__(self, **options):
            pass

    monkeypatch.setattr("ave_clip.training.arguments.Accelerator", Alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match=r"WORLD_SIZE=2.*pass --cpu"):
        build_accelerator()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert build_accelerator().num_processes == 1


@pytest.mark.parametrize("variables", [("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"), ("ACCELERATE_MIXED_PRECISION",)])
def test_a_launcher_that_starts_one_process_instead_of_several_is_noticed(monkeypatch, caplog, variables):
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name in variables:
        monkeypatch.setenv(name, "no")
    build_accelerator(cpu=True)
    assert ("torchrun --nproc_per_node N SCRIPT --cpu" in caplog.text) == ("MASTER_ADDR" in variables)


def test_json_contains_numpy_numbers_and_null_for_nan(tmp_path):
    content = {
        "a": np.float32(0.5),
        "b": [np.int64(3), float("nan")],
        1: tmp_path,
        "c": np.arange(2),
        "d": (True, None),
    }
    write_json(tmp_path / "new" / "results.json", content)
    read = json.loads((tmp_path / "new" / "results.json").read_text())
    assert read == {"a": 0.5, "b": [3, None], "1": str(tmp_path), "c": [0, 1], "d": [True, None]}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_run_is_described_by_command_settings_and_versions():
    run = describe_run(argparse.Namespace(seed=3), ["--name", "two words"])
    assert run["command"].endswith("--name 'two words'")
    assert run["arguments"] == {"seed": 3}
    assert {"ave_clip", "torch", "transformers", "accelerate", "av", "numpy", "python"} == set(run["versions"])
