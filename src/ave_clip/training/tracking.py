"""Training curves through Accelerate's trackers: a JSONL file by default, or trackio, TensorBoard, W&B.

accelerator = build_accelerator(args.cpu, args.mixed_precision, **build_trackers(args))
start_trackers(accelerator, args, step=0)
accelerator.log({"loss": 0.5}, step=1)
accelerator.end_training()
"""

import argparse
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process

from ..files import atomic_file
from .arguments import plain_values

METRICS_FILE = "metrics.jsonl"
PACKAGES = {"trackio": "trackio", "tensorboard": "tensorboard", "wandb": "wandb"}
TRACKERS = ("none", "jsonl", *PACKAGES)


def add_tracking_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--report_to`, `--project` and `--run_name`."""
    group = parser.add_argument_group("tracking")
    group.add_argument(
        "--report_to",
        choices=TRACKERS,
        default="jsonl",
        help=f"Tracker of the training curves; jsonl writes OUTPUT_DIR/{METRICS_FILE}.",
    )
    group.add_argument("--project", default="ave-clip", help="Project of the tracker.")
    group.add_argument("--run_name", help="Name of the run in the project. Default: the name of OUTPUT_DIR.")


def build_trackers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `Accelerator` for the requested tracker.

    Args:
        arguments (`argparse.Namespace`): Arguments with `report_to` and `output_dir`.

    Returns:
        `dict[str, Any]`: `log_with` and `project_dir`.

    Raises:
        ImportError: if the tracker's package is not installed.
    """
    chosen, folder = arguments.report_to, Path(arguments.output_dir)
    if chosen == "none":
        return {}
    if chosen == "jsonl":
        return {"log_with": [JSONLTracker(folder / METRICS_FILE)]}
    if importlib.util.find_spec(PACKAGES[chosen]) is None:
        raise ImportError(
            f"--report_to {chosen} needs a package that is not installed: `pip install {PACKAGES[chosen]}`. "
            f"Or pass --report_to jsonl, which writes {folder / METRICS_FILE} and needs no package."
        )
    return {"log_with": [chosen], "project_dir": str(folder)}


def start_trackers(accelerator: Accelerator, arguments: argparse.Namespace, step: int = 0) -> None:
    """Starts a run in the tracker, or resumes it.

    Args:
        accelerator (`Accelerator`): Built with the result of `build_trackers`.
        arguments (`argparse.Namespace`): All arguments of the script, recorded with the run.
        step (`int`): Step of the state that the run resumes from, 0 for a new run. Later entries, which the run will
            write again, are removed from the JSONL file and hidden in TensorBoard.
    """
    name = arguments.run_name or Path(arguments.output_dir).resolve().name
    resume = "allow" if step else "never"
    options = {
        "tensorboard": {"purge_step": step + 1 if step else None},
        "trackio": {"name": name, "resume": resume},
        "wandb": {"name": name, "id": name, "resume": "allow", "dir": str(arguments.output_dir)},
    }
    for tracker in accelerator.log_with:
        if isinstance(tracker, JSONLTracker):
            tracker.last_step = step
    simple = (bool, int, float, str)
    values = plain_values(vars(arguments))
    config = {key: value if isinstance(value, simple) else json.dumps(value) for key, value in values.items()}
    accelerator.init_trackers(arguments.project, config, options)


class JSONLTracker(GeneralTracker):
    """Appends one JSON object per line to a file, `step` first, without delay.

    Args:
        path (`str` or `os.PathLike`): The file.

    Attributes:
        last_step (`int`): When the tracker starts, existing entries after this step are deleted.
    """

    name = "jsonl"
    requires_logging_directory = False

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)
        self.last_step = 0

    @property
    def tracker(self) -> Path:
        return self.path

    @on_main_process
    def start(self) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines if self._is_kept(line)), encoding="utf-8")

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **plain_values(values)}) + "\n")

    def _is_kept(self, line: str) -> bool:
        try:
            return json.loads(line)["step"] <= self.last_step
        except (ValueError, KeyError, TypeError):  # incomplete: the run was killed while writing it
            return False
