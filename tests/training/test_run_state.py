"""States are complete or absent and match their settings, and a run resumes from them bit for bit."""

import argparse
import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from ave_clip.training.run_state import RunState, RunStateError, add_resume_arguments, run_settings

SETTINGS = {"learning_rate": 0.1, "sizes": (2, 3)}


class Run:
    """A model with a frozen part, trained on fixed data."""

    def __init__(self, folder, settings=SETTINGS, width=3):
        torch.manual_seed(0)
        model = torch.nn.ModuleDict({"frozen": torch.nn.Linear(2, width), "trained": torch.nn.Linear(width, 1)})
        model["frozen"].requires_grad_(False)
        self.accelerator = Accelerator(cpu=True)
        optimizer = torch.optim.Adam(model["trained"].parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        self.model, self.optimizer, self.scheduler = self.accelerator.prepare(model, optimizer, scheduler)
        self.state = RunState(self.accelerator, folder / "state", settings)

    def train(self, num_steps):
        for _ in range(num_steps):
            hidden = self.model["frozen"](torch.tensor([[1.0, 2.0], [3.0, -1.0]]))
            self.accelerator.backward(self.model["trained"](hidden).square().sum())
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
        return self

    def weights(self):
        return self.model["trained"].weight.detach().clone()


@pytest.fixture
def saved(tmp_path):
    run = Run(tmp_path).train(3)
    run.state.save({"epoch": 1, "history": [{"loss": np.float64(0.1)}]})
    return tmp_path


def test_a_run_goes_on_bit_for_bit_from_its_state(saved, tmp_path_factory):
    whole = Run(tmp_path_factory.mktemp("whole")).train(5)
    resumed = Run(saved)
    assert resumed.state.begin(resume=True) == {"epoch": 1, "history": [{"loss": 0.1}]}
    torch.testing.assert_close(resumed.train(2).weights(), whole.weights(), rtol=0, atol=0)
    assert resumed.scheduler.get_last_lr() == whole.scheduler.get_last_lr()


def test_what_is_frozen_is_not_in_the_state(saved):
    from safetensors.torch import load_file

    assert set(load_file(saved / "state" / "state-000000" / "model.safetensors")) == {"trained.weight", "trained.bias"}


def test_only_the_newest_state_is_kept(saved):
    run = Run(saved).train(1)
    run.state.save({"epoch": 2})
    assert [path.name for path in (saved / "state").iterdir()] == ["state-000001"]
    assert Run(saved).state.load() == {"epoch": 2}


def test_resuming_without_a_state_is_a_new_run(tmp_path):
    assert Run(tmp_path).state.begin(resume=True) is None
    assert Run(tmp_path).state.begin() is None


def test_a_run_in_the_folder_is_only_replaced_when_asked_for(saved):
    with pytest.raises(RunStateError, match=r"contains a run already\. Pass --resume"):
        Run(saved).state.begin()
    assert Run(saved).state.begin(overwrite=True) is None
    assert Run(saved).state.begin() is None


def test_a_state_of_other_settings_is_refused_with_the_difference(saved):
    run = Run(saved, {"learning_rate": 0.2, "sizes": [2, 3]})
    with pytest.raises(RunStateError, match=r"other settings \(learning_rate: 0.1, now 0.2\)"):
        run.state.begin(resume=True)


def test_a_state_of_another_model_is_refused(saved):
    run = Run(saved)
    run.model["more"] = torch.nn.Linear(1, 1)
    with pytest.raises(RunStateError, match=r"more\.bias"):
        run.state.load()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "progress.json"])
def test_a_damaged_state_is_named_and_not_used(saved, name):
    path = saved / "state" / "state-000000" / name
    path.write_bytes(path.read_bytes()[:-3] + b"xyz")
    with pytest.raises(RunStateError, match=f"{name} is.* damaged.*start from scratch with --overwrite"):
        Run(saved).state.load()


def test_a_damaged_newest_state_falls_back_to_the_one_before(saved):
    newer = saved / "state" / "state-000001"
    newer.mkdir()
    (newer / "progress.json").write_text("{")
    assert Run(saved).state.load()["epoch"] == 1


def test_a_state_that_was_being_written_when_the_run_was_killed_is_not_seen(saved):
    partial = saved / "state" / ".partial"
    partial.mkdir()
    (partial / "model.safetensors").write_bytes(b"half")
    run = Run(saved)
    assert run.state.load()["epoch"] == 1
    run.state.save({"epoch": 2})
    assert [path.name for path in (saved / "state").iterdir()] == ["state-000001"]


@pytest.mark.parametrize("error", [OSError("No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk_leaves_the_state_before_it(saved, error, monkeypatch):
    run = Run(saved).train(1)

    def fail(*_):
        raise error

    monkeypatch.setattr(run.accelerator, "save_state", fail)
    with pytest.raises(RunStateError, match=rf"{error}.*state-000000 is kept: free space and pass --resume"):
        run.state.save({"epoch": 2})
    assert [path.name for path in (saved / "state").iterdir()] == ["state-000000"]
    assert Run(saved).state.load()["epoch"] == 1


def test_a_run_that_ended_leaves_its_results_and_no_state(saved):
    results = {"accuracy": np.float32(0.5), "recall": float("nan")}
    Run(saved).state.finish(results)
    assert [path.name for path in (saved / "state").iterdir()] == ["finished.json"]
    run = Run(saved)
    np.testing.assert_equal(run.state.finished(), {"accuracy": 0.5, "recall": float("nan")})
    with pytest.raises(RunStateError, match="get the results of a finished one"):
        run.state.begin()
    with pytest.raises(RunStateError, match="other settings"):
        Run(saved, {"seed": 1}).state.finished()


def test_a_run_that_did_not_end_has_no_results(saved):
    assert Run(saved).state.finished() is None


def test_settings_leave_out_what_does_not_change_the_outcome():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="here")
    parser.add_argument("--data_dir", default="there")
    add_resume_arguments(parser)
    arguments = parser.parse_args(["--resume", "--save_steps", "5"])
    assert run_settings(arguments, ["data_dir"]) == {"seed": 0}
    with pytest.raises(SystemExit):
        parser.parse_args(["--resume", "--overwrite"])


def test_progress_is_plain_json(saved):
    content = json.loads((saved / "state" / "state-000000" / "progress.json").read_text())
    assert content["settings"] == {"learning_rate": 0.1, "sizes": [2, 3]}
    assert "optimizer.bin" in content["files"]
