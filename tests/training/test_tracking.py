"""Curves go where they are asked to go, and not twice after a run was resumed."""

import argparse
import importlib.util
import json

import pytest
from accelerate import Accelerator

from ave_clip.training.tracking import add_tracking_arguments, build_trackers, start_trackers


def arguments(folder, *argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", default=str(folder))
    parser.add_argument("--sizes", default=[1, 2])
    add_tracking_arguments(parser)
    return parser.parse_args(argv)


def run(args, steps, step=0):
    accelerator = Accelerator(cpu=True, **build_trackers(args))
    start_trackers(accelerator, args, step)
    for number in steps:
        accelerator.log({"loss": 1 / number}, step=number)
    accelerator.end_training()


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_default_is_one_json_object_a_line(tmp_path):
    run(arguments(tmp_path / "out"), [1, 2])
    assert lines(tmp_path / "out") == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]


def test_a_resumed_run_has_every_step_once(tmp_path):
    run(arguments(tmp_path), [1, 2, 3])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    run(arguments(tmp_path), [3, 4], step=2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_a_new_run_begins_a_new_file(tmp_path):
    run(arguments(tmp_path), [1, 2, 3])
    run(arguments(tmp_path), [1])
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_nothing_is_written_where_nothing_is_asked_for(tmp_path):
    run(arguments(tmp_path, "--report_to", "none"), [1])
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install wandb"):
        build_trackers(arguments(tmp_path, "--report_to", "wandb"))


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard")
def test_tensorboard_gets_the_curve(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(arguments(tmp_path, "--report_to", "tensorboard", "--project", "curves"), [1, 2])
    events = EventAccumulator(str(tmp_path / "curves"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="needs trackio")
def test_trackio_gets_the_run_by_its_name(tmp_path, monkeypatch):
    import trackio

    asked = {}

    class Run:
        def log(self, values, step=None):
            asked.setdefault("logged", []).append((values, step))

        def finish(self):
            asked["finished"] = True

    class Config:
        def update(self, values, **_):
            asked["config"] = values

    monkeypatch.setattr(trackio, "init", lambda **options: asked.update(options) or Run())
    monkeypatch.setattr(trackio, "config", Config())
    run(arguments(tmp_path / "seed-3", "--report_to", "trackio"), [1], step=4)
    assert (asked["project"], asked["name"], asked["resume"]) == ("ave-clip", "seed-3", "allow")
    assert asked["config"]["sizes"] == "[1, 2]"
    assert asked["logged"] == [({"loss": 1.0}, 1)]
    assert asked["finished"] is True
