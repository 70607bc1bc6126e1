"""States of a training run on disk, so that a run that was killed goes on where it stood.

```
OUTPUT_DIR/state/state-000012/   what Accelerate saves (weights that are trained, optimizer, scheduler, ...)
                 state-000012/progress.json   epoch, step, history; the run's settings; checksums of the other files
OUTPUT_DIR/state/finished.json   results of a run that ended; its states are deleted
```
A state is written under another name and renamed when it is whole; only then is the one before it deleted. So at any
moment there is a whole state, or none yet. Checksums tell a state that was damaged later.
"""

import argparse
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import CONFIG_NAME, logging

from ..files import atomic_file
from .arguments import plain_values

logger = logging.get_logger(__name__)

STATE_FOLDER = "state"
PROGRESS_FILE = "progress.json"
FINISHED_FILE = "finished.json"
PARTIAL_FOLDER = ".partial"
MODEL_FILE = "model.safetensors"
# Arguments that change where and how a run computes, not what comes out.
WITHOUT_EFFECT = frozenset(
    ("config", "output_dir", "resume", "overwrite", "save_steps", "cpu", "num_workers")
    + ("report_to", "project", "run_name", "push_to_hub", "private")
)


class RunStateError(ValueError):
    """A state of a training run is in the way, damaged, of other settings, or cannot be written."""


def add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--resume`, `--overwrite` and `--save_steps`."""
    group = parser.add_argument_group("interrupted runs")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("--resume", action="store_true", help="Go on from the state in OUTPUT_DIR, if there is one.")
    choice.add_argument("--overwrite", action="store_true", help="Start anew, even where OUTPUT_DIR holds a run.")
    group.add_argument(
        "--save_steps", type=int, metavar="N", help="Save the state every N steps, too; always after each epoch."
    )


def check_output(arguments: argparse.Namespace) -> None:
    """Refuse to write a model over the one that is read.

    Args:
        arguments (`argparse.Namespace`): With `model` and `output_dir`.

    Raises:
        ValueError: where both are one folder.
    """
    if Path(arguments.model).resolve() == Path(arguments.output_dir).resolve():
        raise ValueError(
            f"--output_dir {arguments.output_dir} is the folder of --model, which would be overwritten. Pass another."
        )


def run_settings(arguments: argparse.Namespace, without: Iterable[str] = ()) -> dict[str, Any]:
    """Pick the arguments that decide what a run gives; a state only fits a run where all of them are equal.

    Args:
        arguments (`argparse.Namespace`): All arguments of a script.
        without (`Iterable[str]`): Further arguments to leave out, such as paths of what is identified otherwise.
    """
    left_out = WITHOUT_EFFECT | set(without)
    return {name: value for name, value in vars(arguments).items() if name not in left_out}


class RunState:
    """Saves and loads the state of a run; everything must be prepared before.

    What is saved: prepared models (only parameters that are trained, and buffers), optimizers and schedulers, objects
    given to `accelerator.register_for_checkpointing`, and the progress that the script keeps.

    Args:
        accelerator (`Accelerator`): That prepared models, optimizer and scheduler.
        folder (`str` or `os.PathLike`): Folder of states, `OUTPUT_DIR/state`.
        settings (`Mapping[str, Any]`): What decides the outcome (see `run_settings`), in values that JSON can hold.
    """

    def __init__(self, accelerator: Accelerator, folder: str | os.PathLike, settings: Mapping[str, Any]):
        self.accelerator = accelerator
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(plain_values(settings)))
        accelerator.register_save_state_pre_hook(self._keep_trained_weights)
        accelerator.register_load_state_pre_hook(self._load_trained_weights)

    def begin(self, resume: bool = False, overwrite: bool = False) -> dict[str, Any] | None:
        """Do what `--resume` or `--overwrite` says.

        Args:
            resume (`bool`): Load the newest state.
            overwrite (`bool`): Delete all states.

        Returns:
            `dict[str, Any]`, *optional*: the progress of the state that was loaded; `None` for a new run.

        Raises:
            RunStateError: without either, where there is a run already; and as in `load`.
        """
        if overwrite:
            self._on_main(lambda: shutil.rmtree(self.folder, ignore_errors=True))
            return None
        if resume:
            return self.load()
        if self._places() or (self.folder / FINISHED_FILE).exists():
            raise RunStateError(
                f"{self.folder} holds a run already. Pass --resume to go on with it (or get its results, where it "
                "ended), --overwrite to start anew, or another --output_dir."
            )
        model = self.folder.parent / CONFIG_NAME
        if model.exists():
            raise RunStateError(
                f"{self.folder.parent} holds a model already ({model.name}), which is not of a run that can go on. "
                "Pass another --output_dir, or --overwrite to replace it."
            )
        return None

    def save(self, progress: Mapping[str, Any]) -> None:
        """Write a new state, then delete those before it; all processes call this.

        Args:
            progress (`Mapping[str, Any]`): What the script needs to go on, in values that JSON can hold.

        Raises:
            RunStateError: where it cannot be written, as on a full disk; the state before it is kept.
        """
        partial, places = self.folder / PARTIAL_FOLDER, self._places()
        self._on_main(lambda: _make_empty(partial))
        try:
            self.accelerator.save_state(partial)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self._describe(partial, progress)
                partial.rename(self.folder / f"state-{_number(places[0]) + 1 if places else 0:06d}")
        except (OSError, RuntimeError, SafetensorError) as error:  # each library reports a full disk its own way
            shutil.rmtree(partial, ignore_errors=True)
            kept = f"{places[0]} is kept: free space and go on with --resume" if places else "There is none before it"
            raise RunStateError(f"The state could not be written to {partial} ({error}). {kept}.") from error
        self._on_main(lambda: [shutil.rmtree(place, ignore_errors=True) for place in places])

    def load(self) -> dict[str, Any] | None:
        """Load the newest whole state into what the accelerator prepared.

        Returns:
            `dict[str, Any]`, *optional*: its progress; `None` where there is no state.

        Raises:
            RunStateError: where the state is of other settings, or no state is whole.
        """
        damaged = []
        for place in self._places():
            try:
                content = self._read(place)
            except RunStateError as error:
                logger.warning(f"{error} Trying the state before it.")
                damaged.append(str(error))
                continue
            self._check_settings(content["settings"], place / PROGRESS_FILE)
            self.accelerator.load_state(str(place))
            return content["progress"]
        if damaged:
            raise RunStateError(f"{' '.join(damaged)} There is no whole state: start anew with --overwrite.")
        return None

    def finish(self, results: Mapping[str, Any]) -> None:
        """Note the results of a run that ended, and delete its states; all processes call this."""

        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / FINISHED_FILE, {"settings": self.settings, "results": plain_values(results)})
            for place in self._places():
                shutil.rmtree(place, ignore_errors=True)

        self._on_main(write)

    def finished(self) -> dict[str, Any] | None:
        """Give the results of a run that ended; `None` where it did not.

        Raises:
            RunStateError: where it was a run of other settings, or the file is damaged.
        """
        path = self.folder / FINISHED_FILE
        if not path.exists():
            return None
        content = _read_json(path)
        self._check_settings(content["settings"], path)
        return content["results"]

    def _places(self) -> list[Path]:
        """Folders of states, newest first."""
        return sorted(self.folder.glob("state-*"), key=_number, reverse=True)

    def _on_main(self, function: Callable[[], Any]) -> None:
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            function()
        self.accelerator.wait_for_everyone()

    def _describe(self, folder: Path, progress: Mapping[str, Any]) -> None:
        files = {path.name: _checksum(path, flush=True) for path in sorted(folder.iterdir())}
        content = {"settings": self.settings, "files": files, "progress": plain_values(progress)}
        _write(folder / PROGRESS_FILE, content)

    def _read(self, place: Path) -> dict[str, Any]:
        content = _read_json(place / PROGRESS_FILE)
        for name, checksum in content["files"].items():
            path = place / name
            if not path.exists() or _checksum(path) != checksum:
                raise RunStateError(f"{path} is {'damaged' if path.exists() else 'missing'}.")
        return content

    def _check_settings(self, found: Mapping[str, Any], path: Path) -> None:
        names = sorted(name for name in {*found, *self.settings} if found.get(name) != self.settings.get(name))
        if names:
            differences = ", ".join(f"{name}: {found.get(name)!r}, now {self.settings.get(name)!r}" for name in names)
            raise RunStateError(
                f"{path} is of a run with other settings ({differences}). Pass the same ones to go on, --overwrite to "
                "start anew, or another --output_dir."
            )

    def _keep_trained_weights(self, models: list[torch.nn.Module], weights: list[dict], folder: str) -> None:
        """Save under the names of the bare model, without what is frozen: any number of processes can go on."""
        if weights:  # empty where FSDP or DeepSpeed write the weights
            weights[:] = [_trained_weights(self.accelerator.unwrap_model(model)) for model in models]

    def _load_trained_weights(self, models: list[torch.nn.Module], folder: str) -> None:
        for number, model in enumerate(models):
            path = Path(folder) / (MODEL_FILE if number == 0 else MODEL_FILE.replace(".", f"_{number}."))
            weights, model = load_file(path), self.accelerator.unwrap_model(model)
            difference = weights.keys() ^ _trained_weights(model).keys()
            if difference:
                raise RunStateError(f"{path} is of another model: {sorted(difference)[:5]} are not in both.")
            model.load_state_dict(weights, strict=False)  # what is frozen stays; all others were compared above
        models.clear()


def _trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in frozen}


def _number(place: Path) -> int:
    return int(place.name.rpartition("-")[2])


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _checksum(path: Path, flush: bool = False) -> str:
    """Size and CRC-32 of a file; with `flush` the file is on the disk afterwards, also if the power fails."""
    checksum = 0
    with open(path, "rb+" if flush else "rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
        if flush:
            os.fsync(file.fileno())
    return f"{path.stat().st_size}-{checksum:08x}"


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunStateError(f"{path} is missing or damaged ({error}).") from error
