"""Command-line and YAML arguments, the `Accelerator` and result files of the stage scripts."""

import argparse
import json
import logging
import math
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

from ..core.categories import MULTI_LABEL, SINGLE_LABEL
from ..files import atomic_file

logger = logging.getLogger(__name__)

# While one process decodes or uploads, the others wait in a collective, which fails after ten minutes by default.
PATIENCE = timedelta(days=7)
SHORTEST_SEGMENT, LONGEST_SEGMENT = 0.25, 1.0  # seconds


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of every script: `--config`, `--seed`, `--cpu`, `--mixed_precision`, `--num_workers`."""
    group = parser.add_argument_group("run")
    group.add_argument("--config", help="YAML file with arguments; the command line overrides it.")
    group.add_argument(
        "--seed", type=int, default=0, help="Seed of the weights, the order of the data and augmentation."
    )
    group.add_argument("--cpu", action="store_true", help="Run on the CPU; required for several processes on CPU.")
    group.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default="no", help="As in Accelerate.")
    group.add_argument("--num_workers", type=int, default=0, help="Data loading processes of each process.")


def add_data_argument(parser: Any, required: bool = False) -> None:
    """Adds `--data`, with its earlier name `--data_dir`, to a parser or to one of its groups."""
    parser.add_argument(
        "--data",
        "--data_dir",
        required=required,
        metavar="PATH_OR_NAME",
        help="Labelled videos: AVE's layout (folder or zip); a table (.csv, .tsv, .jsonl) of path, label, start, end "
        "and optionally split, or a folder of train.csv, test.csv and so on; label files of Audacity or ELAN; the "
        "JSON of UnAV-100 or OV-AVEBench; an export of ave_clip.data, in a folder or on the Hub.",
    )


def add_video_arguments(parser: argparse.ArgumentParser, segment_seconds: bool = True) -> None:
    """Adds the arguments that describe the data set of `--data`; `open_dataset` explains them.

    Args:
        parser (`argparse.ArgumentParser`): The parser.
        segment_seconds (`bool`): Add `--segment_seconds` and `--problem_type`, too; otherwise a model defines them.
    """
    group = parser.add_argument_group("data set of --data")
    group.add_argument("--video_dir", help="Folder of the videos. Default: that of the annotations.")
    if segment_seconds:
        group.add_argument(
            "--problem_type",
            choices=(SINGLE_LABEL, MULTI_LABEL),
            help="One label per segment, or several events at once. Default: what is usual for the data set.",
        )
        group.add_argument(
            "--segment_seconds", type=segment_length, default=1.0, help="Length of a segment and its label, 0.25 to 1."
        )
    group.add_argument(
        "--overlap",
        choices=("raise", "longest"),
        default="raise",
        help="Where events of two classes overlap but segments have one label: stop, or use the longer event.",
    )
    group.add_argument("--tier", help="Tier of ELAN's files.")
    group.add_argument("--meta", help="OV-AVEBench's table of splits. Default: beside its annotations.")
    group.add_argument(
        "--split_files",
        nargs="+",
        metavar="SPLIT=FILE",
        help="For data without splits: files with one video per line, as train=train.txt test=test.txt.",
    )
    group.add_argument(
        "--split_fractions",
        nargs=3,
        type=float,
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="For data without splits: a random split by video, as 0.8 0.1 0.1.",
    )
    group.add_argument("--split_seed", type=int, default=0, help="Seed of the random split.")
    group.add_argument(
        "--on_missing",
        choices=("raise", "skip"),
        default="raise",
        help="If videos are missing or empty: stop with an error, or skip these rows.",
    )
    group.add_argument(
        "--allow_outside", action="store_true", help="Also accept videos that are links to files outside the data."
    )


def segment_length(text: str) -> float:
    """Parses `--segment_seconds`.

    Raises:
        argparse.ArgumentTypeError: if it is not a number from 0.25 to 1.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not SHORTEST_SEGMENT <= seconds <= LONGEST_SEGMENT:
        raise argparse.ArgumentTypeError(
            f"got {text!r}, wanted a number of seconds from {SHORTEST_SEGMENT} to {LONGEST_SEGMENT:g}"
        )
    return seconds


def video_options(arguments: argparse.Namespace, **others: Any) -> dict[str, Any]:
    """Returns the values of `add_video_arguments` as arguments of [`~ave_clip.data.open_dataset`].

    Args:
        arguments (`argparse.Namespace`): The parsed arguments.
        others: Further arguments, such as the `segment_seconds` and `problem_type` of a model.

    Raises:
        ValueError: if `--split_files` are not of the form `SPLIT=FILE`.
    """
    names = ("video_dir", "problem_type", "segment_seconds", "overlap", "tier", "meta")
    names += ("split_fractions", "split_seed", "on_missing", "allow_outside")
    options = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    # Only where it is used: published data sets, whose events overlap, have their own default.
    if options["overlap"] == "raise":
        del options["overlap"]
    if options["split_fractions"] is not None:
        options["split_fractions"] = tuple(options["split_fractions"])
    if arguments.split_files is not None:
        pairs = [pair.partition("=") for pair in arguments.split_files]
        wrong = next((name + equals for name, equals, path in pairs if not path), None)
        if wrong is not None:
            raise ValueError(f"Got --split_files {wrong!r}: write SPLIT=FILE, such as train=train.txt.")
        options["split_files"] = {name: path for name, _, path in pairs}
    return {**options, **others}


def parse_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line and an optional YAML file, whose values the command line overrides.

    The file maps argument names (without dashes) to values: a list for several values, a mapping for `NAME=VALUE`
    arguments, true or false for switches. Its values are checked in the same way as the command line.

    Args:
        parser (`argparse.ArgumentParser`): Parser with a `--config` argument.
        argv (`Sequence[str]`, *optional*): The arguments. Default: those of the process.

    Returns:
        `argparse.Namespace`: the merged values.

    Raises:
        ValueError: if the file is not a mapping or sets an argument that the script does not have.
    """
    # ConfigArgParse and jsonargparse would not turn mappings into NAME=VALUE arguments, so they would save no code.
    argv = list(sys.argv[1:] if argv is None else argv)
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--config")
    path = early.parse_known_args(argv)[0].config
    return parser.parse_args(_yaml_arguments(parser, path) + argv if path else argv)


def parse_overrides(pairs: Sequence[str], config_class: type) -> dict[str, Any]:
    """Parses `FIELD=VALUE` arguments for a configuration class; values are JSON, or a bare word for a string.

    >>> from ave_clip import AVEClipConfig
    >>> parse_overrides(["hidden_size=64", "window_sizes=[10, 5]"], AVEClipConfig)
    {'hidden_size': 64, 'window_sizes': [10, 5]}

    Raises:
        ValueError: if a pair has no `=`, or the class does not have the field.
    """
    known, overrides = {field.name for field in fields(config_class)}, {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or name not in known:
            raise ValueError(
                f"Got override {pair!r}: write FIELD=VALUE with a field of {config_class.__name__}: "
                f"{', '.join(sorted(known))}."
            )
        try:
            overrides[name] = json.loads(text)
        except json.JSONDecodeError:  # a bare word
            overrides[name] = text
    return overrides


def build_accelerator(cpu: bool = False, mixed_precision: str = "no", **options: Any) -> Accelerator:
    """Returns the `Accelerator`, and checks that it sees all processes that the launcher started or was asked for.

    Args:
        cpu (`bool`): Run on the CPU.
        mixed_precision (`str`): As in Accelerate.
        options: Further arguments of `Accelerator`.

    Returns:
        `Accelerator`

    Raises:
        RuntimeError: if the environment announces several processes but Accelerate sees only one.
    """
    # What `accelerate launch --num_processes 4` sets for the single process that it starts on the CPU or on one GPU.
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    is_one_of_several = launched and "WORLD_SIZE" not in os.environ
    handlers = [InitProcessGroupKwargs(timeout=PATIENCE), *options.pop("kwargs_handlers", [])]
    accelerator = Accelerator(cpu=cpu, mixed_precision=mixed_precision, kwargs_handlers=handlers, **options)
    announced = int(os.environ.get("WORLD_SIZE", "1"))
    if announced > 1 and accelerator.num_processes == 1:
        raise RuntimeError(
            f"The launcher started {announced} processes (WORLD_SIZE={announced}), but Accelerate sees only one, so "
            "each would train alone on everything. On CPU pass --cpu and launch with `torchrun --nproc_per_node "
            f"{announced} SCRIPT --cpu` or `accelerate launch --multi_gpu --num_processes {announced} SCRIPT --cpu`."
        )
    if accelerator.num_processes == 1 and is_one_of_several:
        # No error: one process computes the same, and MASTER_ADDR may be exported for another reason.
        logger.warning(
            "accelerate launch started one process only, although it was asked for several (MASTER_ADDR is set, "
            "WORLD_SIZE is not). It does so on machines with fewer than two GPUs. For N processes on the CPU use "
            "`torchrun --nproc_per_node N SCRIPT --cpu`."
        )
    return accelerator


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a JSON file atomically; `nan` becomes null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        partial.write_text(
            json.dumps(_without_nan(plain_values(content)), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )


def plain_values(content: Any) -> Any:
    """Converts mappings, sequences, arrays, NumPy numbers and paths to JSON types; keys become strings."""
    if isinstance(content, Mapping):
        return {str(key): plain_values(value) for key, value in content.items()}
    if isinstance(content, (list, tuple, np.ndarray)):
        return [plain_values(value) for value in content]
    if isinstance(content, np.generic):
        return content.item()
    return str(content) if isinstance(content, os.PathLike) else content


def describe_run(arguments: argparse.Namespace, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Describes how a result was made: the command, all arguments with the seed, versions and machine.

    Args:
        arguments (`argparse.Namespace`): The merged arguments.
        argv (`Sequence[str]`, *optional*): The arguments given to `main`. Default: those of the process.
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
    """Returns the processor's name from Linux, or from Python on other systems."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _yaml_arguments(parser: argparse.ArgumentParser, path: str) -> list[str]:
    import yaml

    values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    if not isinstance(values, Mapping):
        raise ValueError(f"{path} contains a {type(values).__name__}: it must map argument names to values.")
    actions = {action.dest: action for action in parser._actions}
    # Earlier names of an argument, too.
    actions |= {option.lstrip("-"): action for action in parser._actions for option in action.option_strings}
    arguments: list[str] = []
    for name, value in values.items():
        if name not in actions or name == "config":
            known = ", ".join(sorted({action.dest for action in parser._actions} - {"help", "config"}))
            raise ValueError(f"{path} sets {name!r}, which {parser.prog} does not take. It takes: {known}.")
        arguments += _as_arguments(actions[name], value)
    return arguments


def _as_arguments(action: argparse.Action, value: Any) -> list[str]:
    option = action.option_strings[0]
    if value is None:  # keeps the default
        return []
    if isinstance(value, bool):
        # A plain switch can only be set: false keeps its default.
        if action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction):
            return [option] if value else []
        return [option if value else f"--no-{action.dest}"]
    if isinstance(value, Mapping):
        return [option, *(f"{name}={json.dumps(item)}" for name, item in value.items())]
    return [option, *map(str, value if isinstance(value, list) else [value])]


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not np.isfinite(content) else content
