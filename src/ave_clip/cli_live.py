"""`ave-clip localize --live`: events of a video that is still being written or sent."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from .core.video_source import source_name
from .outputs.live_writer import check_live_format, open_live_writer
from .outputs.writers import WrongOutputError
from .programs import Interrupted

if TYPE_CHECKING:
    from .core.pipeline_base import VideoPipeline


def check_live(videos: Sequence[str], format: str, has_drawings: bool) -> None:
    """Refuses options that a live video cannot have."""
    if len(videos) != 1 or os.path.isdir(videos[0]):
        raise typer.BadParameter(f"--live takes one video; got {', '.join(videos)}.")
    if has_drawings:
        raise typer.BadParameter("--plot and --overlay need the complete video; leave them out with --live.")
    try:
        check_live_format(format)
    except WrongOutputError as error:
        raise typer.BadParameter(str(error)) from None


def run_live(
    localizer: "VideoPipeline",
    video: str,
    format: str,
    output: str | None,
    options: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    """Localizes a live video and writes its events as they come.

    Args:
        localizer: The pipeline.
        video (`str`): Path or URL, or `-`.
        format (`str`), output (`str`, *optional*): As for `open_live_writer`.
        options (`dict`): Of `stream`.
        say (`Callable`): Writes a message for the user.
    """
    parts, name = localizer.stream(video, live=True, **options), source_name(video)  # without a password
    try:
        with open_live_writer(format, name, output) as writer:
            try:
                for part in parts:
                    writer.add(part)
            except Interrupted as stop:
                # Raised between two parts, so the stream does not know yet. If it was raised within the stream, the
                # rest is written already, and `throw` only raises it again.
                writer.add(parts.throw(stop))
                raise
    except BrokenPipeError:  # the reading program, for example `head`, has ended
        sys.stderr.close()
        raise typer.Exit(1) from None
    except ValueError as error:
        message = str(error)
        say(message if name in message else f"{name}: {message}")
        raise typer.Exit(1) from None
    except OSError as error:
        say(f"cannot write {output or 'the results'}: {error}")
        raise typer.Exit(1) from None
    if output is not None:
        say(f"wrote {output}")
