"""The outputs of `ave-clip localize`: which file each of them is written to, checked before any video is read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

from .cli_options import OutputFormat, Theme
from .core.video_source import STANDARD_INPUT
from .outputs.drawing import PLOT_SUFFIXES, check_plot_packages
from .outputs.formats import FORMATS
from .outputs.writers import (
    FORMAT_OF_SUFFIX,
    TABLE,
    WrongOutputError,
    check_suffix,
    check_targets,
    format_of,
    names_each_video,
    plan_files,
)
from .programs import one_message

OVERLAY_SUFFIX = ".mp4"


@dataclass
class Plan:
    """The outputs of a run and their files."""

    videos: list[str]
    format: str
    output: str | None
    files: dict[str, Path] | None = None
    plot: Path | None = None
    theme: str = "light"
    overlays: dict[str, Path] = field(default_factory=dict)
    overlay_options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_per_video(self) -> bool:
        return self.format != TABLE and FORMATS[self.format].is_per_video

    @property
    def is_for_programs(self) -> bool:
        return self.format != TABLE and FORMATS[self.format].is_for_programs


def say(message: str) -> None:
    """Writes a message for the user to stderr."""
    typer.echo(f"ave-clip: {one_message(message)}", err=True)


def plan_outputs(
    videos: list[str],
    format: OutputFormat | None,
    output: str | None,
    plot: Path | None,
    theme: Theme | None,
    overlay: str | None,
) -> Plan:
    """Decides which file each output is written to, and refuses wrong combinations before any video is read."""
    try:
        name = format_of(output) if format is None else format.value
        if theme is not None and plot is None:
            raise WrongOutputError("--theme sets the colours of --plot, which is not given.")
        plan = Plan(videos, name, output, plot=plot, theme=(theme or Theme.light).value)
        _plan_results(plan)
        if plot is not None:
            if plot.suffix.lower() not in PLOT_SUFFIXES:
                raise WrongOutputError(f"--plot {plot} must end in {', '.join(PLOT_SUFFIXES)}.")
            check_targets([("--plot", plot)], videos)
            check_plot_packages(plot)
        if overlay is not None:
            if STANDARD_INPUT in videos:
                raise WrongOutputError(
                    "--overlay reads the video again, but standard input can be read only once. Save it to a file."
                )
            _plan_overlays(plan, overlay)
    except (WrongOutputError, ImportError) as error:
        raise typer.BadParameter(one_message(str(error))) from None
    _check_distinct(plan)
    return plan


def _plan_results(plan: Plan) -> None:
    output, videos = plan.output, plan.videos
    if output is None:
        if plan.is_per_video and len(videos) > 1:
            raise WrongOutputError(
                f"--format {plan.format} needs one file for each of the {len(videos)} videos: add --output FOLDER."
            )
        return
    check_suffix(output)
    suffix = Path(output).suffix.lower()
    if FORMAT_OF_SUFFIX.get(suffix, plan.format) != plan.format:
        say(f"warning: writing {plan.format} into {output}.")
    is_stream = os.path.exists(output) and not os.path.isfile(output) and not os.path.isdir(output)
    if plan.format != TABLE and (names_each_video(output) or (plan.is_per_video and not is_stream)):
        plan.files = plan_files(videos, output, FORMATS[plan.format].suffix, "--output")
        _check_files("--output", output, plan.files)
    else:
        check_targets([("--output", output)], videos)


def _plan_overlays(plan: Plan, overlay: str) -> None:
    plan.overlays = plan_files(plan.videos, overlay, OVERLAY_SUFFIX, "--overlay")
    for path in plan.overlays.values():
        if path.suffix.lower() != OVERLAY_SUFFIX:
            raise WrongOutputError(f"--overlay {path} must end in {OVERLAY_SUFFIX}.")
    _check_files("--overlay", overlay, plan.overlays)


def _check_files(option: str, output: str, files: Mapping[str, Path]) -> None:
    makes_folder = list(files.values()) != [Path(output)]
    check_targets([(option, path) for path in files.values()], list(files), makes_folder)


def _check_distinct(plan: Plan) -> None:
    results = plan.files.values() if plan.files else [Path(plan.output)] if plan.output else []
    paths = [os.path.realpath(path) for path in (*results, *plan.overlays.values(), *filter(None, [plan.plot]))]
    for path in paths:
        if paths.count(path) > 1:
            raise typer.BadParameter(one_message(f"{path} is the file of two outputs."))


def draw(plan: Plan, done: list[tuple[str, dict[str, Any]]]) -> None:
    if plan.plot is None:
        return
    if not done:
        say(f"{plan.plot} is not drawn: there is nothing to show.")
        return
    from .outputs.timeline import plot_timeline

    try:
        plot_timeline(done, plan.plot, theme=plan.theme)
    except (ImportError, OSError, ValueError) as error:
        say(f"cannot draw {plan.plot}: {error}")
        raise typer.Exit(1) from None
    say(f"wrote {plan.plot}")
