"""States of a training run on disk, from which a run that was killed resumes.

```
OUTPUT_DIR/state/state-000012/   files of Accelerate (trained weights, optimizer, scheduler, ...)
                 state-000012/progress.json   epoch, step, history; settings of the run; checksums of the other files
OUTPUT_DIR/state/finished.json   results of a finished run, whose states are deleted
```
A state is written under another name and renamed when it is complete; only then is the previous one deleted. So there
is always a complete state after the first one. Checksums detect states that are damaged later.
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

from ..files import atomic_file, remove_leftovers_in
from .arguments import plain_values

logger = logging.get_logger(__name__)

STATE_FOLDER = "state"
PROGRESS_FILE = "progress.json"
FINISHED_FILE = "finished.json"
PARTIAL_FOLDER = ".partial"
MODEL_FILE = "model.safetensors"
# Arguments that change where and how a run computes, but not its results.
WITHOUT_EFFECT = frozenset(
    ("config", "output_dir", "resume", "overwrite", "save_steps", "cpu", "num_workers", "allow_outside")
    + ("report_to", "project", "run_name", "push_to_hub", "private")
)


class RunStateError(ValueError):
    """A state of a training run exists already, is damaged, has other settings, or cannot be written."""


def add_resume_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--resume`, `--overwrite` and `--save_steps`."""
    group = parser.add_argument_group("interrupted runs")
    choice = group.add_mutually_exclusive_group()
    choice.add_argument("--resume", action="store_true", help="Resume from the state in OUTPUT_DIR, if there is one.")
    choice.add_argument(
        "--overwrite", action="store_true", help="Start from scratch, even if OUTPUT_DIR contains a run."
    )
    group.add_argument(
        "--save_steps", type=int, metavar="N", help="Save the state every N steps, in addition to each epoch."
    )


def check_output(arguments: argparse.Namespace) -> None:
    """Checks that the output does not overwrite the input model.

    Args:
        arguments (`argparse.Namespace`): Arguments with `model` and `output_dir`.

    Raises:
        ValueError: if both are the same folder.
    """
    if Path(arguments.model).resolve() == Path(arguments.output_dir).resolve():
        raise ValueError(
            f"--output_dir {arguments.output_dir} is the folder of --model, which would be overwritten. Pass another."
        )


def run_settings(arguments: argparse.Namespace, without: Iterable[str] = ()) -> dict[str, Any]:
    """Returns the arguments that determine the results; a run can only resume from a state with the same ones.

    Args:
        arguments (`argparse.Namespace`): All arguments of a script.
        without (`Iterable[str]`): Further arguments to leave out, such as paths whose content is compared otherwise.
    """
    left_out = WITHOUT_EFFECT | set(without)
    return {name: value for name, value in vars(arguments).items() if name not in left_out}


class RunState:
    """Saves and loads the state of a run, after all objects were prepared.

    A state contains prepared models (only trained parameters, and buffers), optimizers and schedulers, objects passed
    to `accelerator.register_for_checkpointing`, and the progress of the script.

    Args:
        accelerator (`Accelerator`): The accelerator that prepared models, optimizer and scheduler.
        folder (`str` or `os.PathLike`): Folder of states, `OUTPUT_DIR/state`.
        settings (`Mapping[str, Any]`): What determines the results (see `run_settings`), as JSON types.
    """

    def __init__(self, accelerator: Accelerator, folder: str | os.PathLike, settings: Mapping[str, Any]):
        self.accelerator = accelerator
        self.folder = Path(folder)
        self.settings = json.loads(json.dumps(plain_values(settings)))
        accelerator.register_save_state_pre_hook(self._keep_trained_weights)
        accelerator.register_load_state_pre_hook(self._load_trained_weights)

    def begin(self, resume: bool = False, overwrite: bool = False) -> dict[str, Any] | None:
        """Starts or resumes a run, according to `--resume` and `--overwrite`.

        Args:
            resume (`bool`): Load the newest state.
            overwrite (`bool`): Delete all states.

        Returns:
            `dict[str, Any]`, *optional*: the progress of the loaded state; `None` for a new run.

        Raises:
            RunStateError: without either, if there is a run already; and as in `load`.
        """
        self._on_main(self._remove_leftovers)
        if overwrite:
            self._on_main(lambda: _remove([self.folder]))
            return None
        if resume:
            return self.load()
        if self._places() or (self.folder / FINISHED_FILE).exists():
            raise RunStateError(
                f"{self.folder} contains a run already. Pass --resume to resume it (or to get the results of a "
                "finished one), --overwrite to start from scratch, or another --output_dir."
            )
        model = self.folder.parent / CONFIG_NAME
        if model.exists():
            raise RunStateError(
                f"{self.folder.parent} contains a model already ({model.name}), but no run that can be resumed. Pass "
                "another --output_dir, or --overwrite to replace it."
            )
        return None

    def save(self, progress: Mapping[str, Any]) -> None:
        """Writes a new state, then deletes the previous ones; all processes call this.

        Args:
            progress (`Mapping[str, Any]`): What the script needs to resume, as JSON types.

        Raises:
            RunStateError: if it cannot be written, for example because the disk is full; the previous state is kept.
        """
        partial, places = self.folder / PARTIAL_FOLDER, self._places()
        self._on_main(lambda: _make_empty(partial))
        try:
            self.accelerator.save_state(partial)
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                self._describe(partial, progress)
                partial.rename(self.folder / f"state-{_number(places[0]) + 1 if places else 0:06d}")
        except (OSError, RuntimeError, SafetensorError) as error:  # each library reports a full disk in its own way
            kept = f"{places[0]} is kept: free space and pass --resume" if places else "There is no previous state"
            raise RunStateError(f"The state could not be written to {partial} ({error}). {kept}.") from error
        finally:  # also if a signal stops the run
            if self.accelerator.is_main_process:
                shutil.rmtree(partial, ignore_errors=True)
        self._on_main(lambda: _remove(places))

    def load(self) -> dict[str, Any] | None:
        """Loads the newest complete state into the objects that the accelerator prepared.

        Returns:
            `dict[str, Any]`, *optional*: its progress; `None` if there is no state.

        Raises:
            RunStateError: if the state has other settings, or no state is complete.
        """
        damaged = []
        for place in self._places():
            try:
                content = self._read(place)
            except RunStateError as error:
                logger.warning(f"{error} Trying the previous state.")
                damaged.append(str(error))
                continue
            self._check_settings(content["settings"], place / PROGRESS_FILE)
            self.accelerator.load_state(str(place))
            return content["progress"]
        if damaged:
            raise RunStateError(
                f"{' '.join(damaged)} There is no complete state: start from scratch with --overwrite."
            )
        return None

    def finish(self, results: Mapping[str, Any]) -> None:
        """Records the results of a finished run and deletes its states; all processes call this."""

        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / FINISHED_FILE, {"settings": self.settings, "results": plain_values(results)})
            _remove(self._places())

        self._on_main(write)

    def finished(self) -> dict[str, Any] | None:
        """Returns the results of a finished run; `None` if it is not finished.

        Raises:
            RunStateError: if the run had other settings, or the file is damaged.
        """
        path = self.folder / FINISHED_FILE
        if not path.exists():
            return None
        content = _read_json(path)
        self._check_settings(content["settings"], path)
        return content["results"]

    def _remove_leftovers(self) -> None:
        """Deletes partial files of a killed run: a state, a model or results."""
        shutil.rmtree(self.folder / PARTIAL_FOLDER, ignore_errors=True)
        for folder in (self.folder, self.folder.parent):
            remove_leftovers_in(folder)

    def _places(self) -> list[Path]:
        """Returns the folders of states, newest first."""
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
                f"{path} belongs to a run with other settings ({differences}). Pass the same ones to resume it, "
                "--overwrite to start from scratch, or another --output_dir."
            )

    def _keep_trained_weights(self, models: list[torch.nn.Module], weights: list[dict], folder: str) -> None:
        """Saves under the names of the model without wrapping, so that any number of processes can resume."""
        if weights:  # empty if FSDP or DeepSpeed write the weights
            weights[:] = [_trained_weights(self.accelerator.unwrap_model(model)) for model in models]

    def _load_trained_weights(self, models: list[torch.nn.Module], folder: str) -> None:
        for number, model in enumerate(models):
            path = Path(folder) / (MODEL_FILE if number == 0 else MODEL_FILE.replace(".", f"_{number}."))
            weights, model = load_file(path), self.accelerator.unwrap_model(model)
            difference = weights.keys() ^ _trained_weights(model).keys()
            if difference:
                raise RunStateError(f"{path} belongs to another model: {sorted(difference)[:5]} are not in both.")
            # Not strict, because frozen weights are not saved; all others were compared above.
            model.load_state_dict(weights, strict=False)
        models.clear()  # so that Accelerate does not load them again


def _trained_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # Also the second names of shared parameters, which a file of weights cannot contain.
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name: tensor for name, tensor in model.state_dict().items() if name in trained or name not in parameters}


def _number(place: Path) -> int:
    return int(place.name.rpartition("-")[2])


def _remove(folders: Iterable[Path]) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _make_empty(folder: Path) -> None:
    _remove([folder])
    folder.mkdir(parents=True)


def _checksum(path: Path, flush: bool = False) -> str:
    """Returns size and CRC-32 of a file; `flush` writes it to the disk, so that it survives a power failure."""
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
