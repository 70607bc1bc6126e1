"""Writing of the events of a live video as they come."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from ..core.text import printable
from .drawing import one_line, percent
from .formats import FORMATS, Part
from .writers import TABLE, WrongOutputError

LIVE_FORMATS = (TABLE, *(name for name, entry in FORMATS.items() if entry.format_part is not None))


def check_live_format(name: str) -> None:
    """Refuses formats that can be written only when the whole result is known.

    Raises:
        WrongOutputError: naming those that can be used.
    """
    if name not in LIVE_FORMATS:
        raise WrongOutputError(
            f"--format {name} is written when the video has ended; --live works with {', '.join(LIVE_FORMATS)}."
        )


@contextmanager
def open_live_writer(name: str, video: str, output: str | None) -> Iterator["LiveWriter"]:
    """Opens the output for one live video. A file is written in place, so that it can be read while it grows.

    Args:
        name (`str`): `"table"`, or a name of `FORMATS` with `format_part`.
        video (`str`): Name of the video.
        output (`str`, *optional*): The file. Default: stdout.
    """
    if output is None:
        yield LiveWriter(sys.stdout, name, video)
        return
    with open(Path(output), "w", encoding="utf-8", errors="replace", newline="") as stream:
        yield LiveWriter(stream, name, video)


class LiveWriter:
    """Writes each part of a result and flushes it."""

    def __init__(self, stream: TextIO, name: str, video: str) -> None:
        self.stream, self.video = stream, video
        self.format_part = _table_rows if name == TABLE else FORMATS[name].format_part
        self.num_parts = self.num_events = 0

    def add(self, result: Mapping[str, Any]) -> None:
        """Writes the new segments and events."""
        assert self.format_part is not None  # see `check_live_format`
        part = Part(result, self.video, self.num_events, is_first=self.num_parts == 0)
        self.num_parts += 1
        self.num_events += len(result["events"])
        if text := self.format_part(part):
            self.stream.write(text)
            self.stream.flush()


def _table_rows(part: Part) -> str:
    """Returns a row per event, without the frame of the table for complete results, which depends on all rows."""
    return "".join(
        f"{event['start']:8.1f} s {event['end']:8.1f} s  {percent(event['score']):>5}  "
        f"{printable(one_line(event['label']))}\n"
        for event in part.result["events"]
    )
