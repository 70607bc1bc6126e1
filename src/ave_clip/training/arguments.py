"""What the stage scripts share around their loops: arguments (command line or YAML), Accelerate, result files."""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from ..files import atomic_file

# While one process decodes or uploads, the others wait; the process group must not give up meanwhile.
PATIENCE = timedelta(days=7)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every script takes: `--config`, `--seed`, `--cpu`, `--mixed_precision`, `--num_workers`."""
    group = parser.add_argument_group("run")
    group.add_argument("--config", help="YAML file of arguments; what stands on the command line wins.")
    group.add_argument("--seed", type=int, default=0, help="Seed of weights, order and augmentation.")
    group.add_argument("--cpu", action="store_true", help="Compute on CPU; needed for several processes on CPU.")
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="As in Accelerate.")
    group.add_argument("--num_workers", type=int, default=0, help="Processes that read data beside each trainer.")


def add_missing_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--on_missing`, what to do about rows of `--data_dir` whose video is missing or empty."""
    parser.add_argument(
        "--on_missing",
        choices=("raise", "skip"),
        default="raise",
        help="Where videos of --data_dir are missing or empty: stop at once, or go on without these rows.",
    )


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line over the values of an optional YAML file.

    The file maps argument names (without dashes) to values: a list for several values, a mapping for `NAME=VALUE`
    arguments, true or false for switches. It goes through the same checks as the command line.

    Args:
        parser (`argparse.ArgumentParser`): With a `--config` argument.
        argv (`Sequence[str]`, *optional*): The arguments; those of the process when not given.

    Returns:
        `argparse.Namespace`: the merged values.

    Raises:
        ValueError: where the file is no mapping or names an argument that the script does not have.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--config")
    path = early.parse_known_args(argv)[0].config
    return parser.parse_args(_yaml_arguments(parser, path) + argv if path else argv)


def parse_overrides(pairs: Sequence[str], config_class: type) -> dict[str, Any]:
    """Read `FIELD=VALUE` arguments for a configuration class, values in JSON (a bare word is a string).

    >>> from ave_clip import AVEClipConfig
    >>> parse_overrides(["hidden_size=64", "window_sizes=[10, 5]"], AVEClipConfig)
    {'hidden_size': 64, 'window_sizes': [10, 5]}

    Raises:
        ValueError: for a pair without `=`, or a field that the class does not have.
    """
    known, overrides = {field.name for field in fields(config_class)}, {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in known:
            raise ValueError(
                f"Got override {pair!r}: write FIELD=VALUE with a field of {config_class.__name__}: "
                f"{', '.join(sorted(known))}."
            )
        overrides[name] = _from_text(text)
    return overrides


def build_accelerator(cpu: bool = False, mixed_precision: str = "no", **options: Any) -> Accelerator:
    """Make the `Accelerator`, and stop where a launcher meant several processes but each would run alone.

    Args:
        cpu (`bool`): Compute on CPU.
        mixed_precision (`str`): As in Accelerate.
        options: Further arguments of `Accelerator`.

    Returns:
        `Accelerator`

    Raises:
        RuntimeError: where the environment announces several processes and Accelerate sees one.
    """
    handlers = [InitProcessGroupKwargs(timeout=PATIENCE), *options.pop("kwargs_handlers", [])]
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision, kwargs_handlers=handlers, **options)
    announced = int(os.environ.get("WORLD_SIZE", "1"))
    if announced > 1 and accelerator.num_processes == 1:
        raise RuntimeError(
            f"The launcher started {announced} processes (WORLD_SIZE={announced}), but Accelerate sees only one, so "
            "each would train alone on everything. On CPU pass --cpu and launch with `torchrun --nproc_per_node "
            f"{announced} SCRIPT --cpu` or `accelerate launch --multi_gpu --num_processes {announced} SCRIPT --cpu`."
        )
    return accelerator


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Write JSON atomically: the file is either the old one or whole. `nan` becomes null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(
            json.dumps(_without_nan(plain_values(content)), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


def plain_values(content: Any) -> Any:
    """Turn mappings, sequences, arrays, NumPy numbers and paths into what JSON holds; keys become strings."""
    if isinstance(content, Mapping):
        return {str(key): plain_values(value) for key, value in content.items()}
    if isinstance(content, (list, tuple, np.ndarray)):
        return [plain_values(value) for value in content]
    if isinstance(content, np.generic):
        return content.item()
    return str(content) if isinstance(content, os.PathLike) else content


def describe_run(arguments: argparse.Namespace, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Say how a result came about: the command, all arguments with the seed, versions and machine.

    Args:
        arguments (`argparse.Namespace`): The merged arguments.
        argv (`Sequence[str]`, *optional*): The arguments as given to `main`; those of the process when not given.
    """
    import accelerate
    import av
    import torch
    import transformers

    from .. import __version__

    command = sys.argv if argv is None else [sys.argv[0], *argv]
    versions = {"ave_clip": __version__, "python": platform.python_version()}
    versions |= {module.__name__: module.__version__ for module in (torch, transformers, accelerate, av, np)}
    machine = {"processor": processor_name(), "threads": torch.get_num_threads()}
    return {"command": shlex.join(command), "arguments": vars(arguments), "versions": versions, "machine": machine}


def processor_name() -> str:
    """As Linux names it, else as Python does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _yaml_arguments(parser: argparse.ArgumentParser, path: str) -> list[str]:
    import yaml

    values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} holds a {type(values).__name__}: it must map argument names to values.")
    actions = {action.dest: action for action in parser._actions}
    arguments: list[str] = []
    for name, value in values.items():
        if name not in actions or name == "config":
            known = ", ".join(sorted(set(actions) - {"help", "config"}))
            raise ValueError(f"{path} sets {name!r}, which {parser.prog} does not take. It takes: {known}.")
        arguments += _as_arguments(actions[name], value)
    return arguments


def _as_arguments(action: argparse.Action, value: Any) -> list[str]:
    option = action.option_strings[0]
    if value is None:
        return []
    if isinstance(value, bool):
        if action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction):
            return [option] if value else []
        return [option if value else f"--no-{action.dest}"]
    if isinstance(value, Mapping):
        return [option, *(f"{name}={json.dumps(item)}" for name, item in value.items())]
    return [option, *map(str, value if isinstance(value, list) else [value])]


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not np.isfinite(content) else content
