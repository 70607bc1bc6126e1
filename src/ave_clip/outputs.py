"""Where the command line writes: one file for all videos, one for each, or stdout. Nothing appears half written."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO
from urllib.parse import unquote, urlsplit

from .files import atomic_file
from .formats import FORMATS, SUFFIXES, format_csv, join_json, result_object

NAME_FIELD = "{name}"
PLOT_SUFFIXES = (".png", ".svg", ".html")
# `.txt` is left to the table: people call many things so.
FORMAT_OF_SUFFIX = {suffix: name for name, suffix in SUFFIXES.items() if suffix != ".txt"}


class WrongOutputError(ValueError):
    """An output that cannot be meant: the message says what to give instead."""


class NothingToWriteError(Exception):
    """Every video failed: a file with earlier results must not be replaced by an empty one."""


class Writer(Protocol):
    """Takes the results one after the other."""

    def add(self, video: str, result: Mapping[str, Any]) -> None:
        """Write one video's result."""

    def finish(self) -> None:
        """Write what comes after the last one."""


def format_of(output: str | None) -> str:
    """The format that an output's suffix asks for; `"table"` where it asks for none."""
    return FORMAT_OF_SUFFIX.get(Path(output or "").suffix.lower(), "table")


def names_each_video(output: str) -> bool:
    """Whether an output is a folder, or holds `{name}`, so that each video gets its own file."""
    return NAME_FIELD in Path(output).name or output.endswith(("/", os.sep)) or os.path.isdir(output)


def plan_files(videos: Sequence[str], output: str, suffix: str, option: str) -> dict[str, Path]:
    """The file of each video: `output`, or one called after the video where `output` is a folder or holds `{name}`.

    Where two would be called the same, the later one gets `-2` and so on.

    Args:
        videos (`Sequence[str]`): Paths or URLs.
        output (`str`): `folder/`, a folder that exists, `folder` for several videos, `folder/{name}.srt`, or a file.
        suffix (`str`): Of the files in a folder.
        option (`str`): For messages.

    Raises:
        WrongOutputError: if several videos would go to one file.
    """
    videos = list(dict.fromkeys(videos))
    if NAME_FIELD in Path(output).name:
        pattern = output
    elif names_each_video(output) or (len(videos) > 1 and not Path(output).suffix):
        pattern = os.path.join(output, NAME_FIELD + suffix)
    elif len(videos) > 1:
        raise WrongOutputError(
            f"{option} {output} is one file, but each of the {len(videos)} videos needs its own. Name a folder, or "
            f"put {NAME_FIELD} where the video's name should stand, as in {NAME_FIELD}{suffix}."
        )
    else:
        return {videos[0]: Path(output)}
    folder, file_name = os.path.split(pattern)
    names = _distinct_names(videos)
    return {video: Path(folder) / file_name.replace(NAME_FIELD, name) for video, name in zip(videos, names)}


def check_targets(targets: Iterable[tuple[str, str | Path]], videos: Sequence[str], new_folders: bool = False) -> None:
    """Refuse an output that would replace a video or another output, or has no folder to stand in.

    Args:
        targets (`Iterable[tuple[str, str | Path]]`): The option and the file of each output.
        videos (`Sequence[str]`): Paths or URLs.
        new_folders (`bool`): Whether the folder of a file may be made.

    Raises:
        WrongOutputError: naming the output.
    """
    existing = [video for video in videos if os.path.isfile(video)]
    for option, target in targets:
        path = Path(target)
        if path.is_file() and any(path.samefile(video) for video in existing):
            raise WrongOutputError(f"{option} {path} is one of the videos, which it would replace.")
        if path.is_dir() or str(target).endswith(("/", os.sep)):
            raise WrongOutputError(f"{option} {path} is a folder. Name a file.")
        folder = path.absolute().parent
        if not (folder.is_dir() or (new_folders and folder.parent.is_dir() and not folder.exists())):
            raise WrongOutputError(f"{option} {path}: there is no folder {path.parent}.")


@contextmanager
def open_writer(name: str, output: str | None, files: Mapping[str, Path] | None) -> Iterator[Writer]:
    """The writer of a format.

    Args:
        name (`str`): The format, `"table"` or one of `FORMATS`.
        output (`str`, *optional*): The file; stdout when not given.
        files (`Mapping[str, Path]`, *optional*): Instead of `output`, the file of each video.
    """
    if files is not None:
        yield FilePerVideo(name, files)
        return
    with _destination(output) as stream:
        writer = WRITERS.get(name, Appended)(stream, name)
        yield writer
        writer.finish()


class FilePerVideo:
    """Each result in a file of its own."""

    def __init__(self, name: str, files: Mapping[str, Path]) -> None:
        self.name, self.files = name, files

    def add(self, video: str, result: Mapping[str, Any]) -> None:
        path = self.files[video]
        places = {"folder": path.parent} if self.name == "elan" else {}
        path.parent.mkdir(exist_ok=True)
        with _destination(str(path)) as stream:
            stream.write(FORMATS[self.name](result, video, **places))

    def finish(self) -> None:
        """Every file is whole already."""


class _StreamWriter:
    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream, self.name = stream, name

    def finish(self) -> None:
        """Nothing follows the last result."""


class JsonList(_StreamWriter):
    """All videos in one list, written at the end."""

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__(stream, name)
        self.objects: list[dict[str, Any]] = []

    def add(self, video: str, result: Mapping[str, Any]) -> None:
        self.objects.append(result_object(result, video))

    def finish(self) -> None:
        self.stream.write(join_json(self.objects))


class Appended(_StreamWriter):
    """The text of each video behind that of the one before, as soon as it is known."""

    def add(self, video: str, result: Mapping[str, Any]) -> None:
        self.stream.write(FORMATS[self.name](result, video))
        self.stream.flush()


class CsvTable(_StreamWriter):
    """A line an event, as soon as its video is known."""

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__(stream, name)
        self.stream.write(format_csv({"events": ()}))

    def add(self, video: str, result: Mapping[str, Any]) -> None:
        self.stream.write(format_csv(result, video, header=False))
        self.stream.flush()


class Tables(_StreamWriter):
    """A table of the events for people."""

    def add(self, video: str, result: Mapping[str, Any]) -> None:
        from rich.console import Console
        from rich.markup import escape

        console = Console(file=self.stream, highlight=False, emoji=False)
        if not result["events"]:
            console.print(f"[bold]{escape(video)}[/bold]: no audio-visual event in {len(result['segments'])} segments")
            return
        console.print(f"[bold]{escape(video)}[/bold]")
        console.print(_rich_table(result["events"]))


WRITERS: dict[str, Callable[[TextIO, str], Writer]] = {
    "table": Tables,
    "json": JsonList,
    "csv": CsvTable,
}


def _rich_table(events: Sequence[Mapping[str, Any]]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for column, justify in (("start", "right"), ("end", "right"), ("event", "left"), ("score", "right")):
        table.add_column(column, justify=justify)
    for event in events:
        times = [f"{event[side]:.1f} s" for side in ("start", "end")]
        table.add_row(*times, escape(event["label"]), f"{event['score']:.2f}")
    return table


@contextmanager
def _destination(output: str | None) -> Iterator[TextIO]:
    """Stdout, or a file that appears only when it is complete; a device or a pipe is written directly."""
    if output is None:
        yield sys.stdout
        return
    path = Path(output)
    if path.exists() and not path.is_file():
        with _open(path) as stream:
            yield stream
        return
    with atomic_file(path.resolve()) as temporary, _open(temporary) as stream:
        yield stream


def _open(path: Path) -> TextIO:
    # A name that is no valid Unicode must not stop the output.
    return open(path, "w", encoding="utf-8", errors="replace", newline="")


def _distinct_names(videos: Sequence[str]) -> list[str]:
    """A file name without suffix for each video, no two alike on any file system."""
    names, taken = [], set()
    for video in videos:
        base = _stem(video)
        name, number = base, 1
        while name.casefold() in taken:
            number += 1
            name = f"{base}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _stem(video: str) -> str:
    """The name of a video without folder and suffix; of an URL, that of its path."""
    if re.match(r"[a-zA-Z][\w+.-]+://", video):
        video = unquote(urlsplit(video).path).rstrip("/")
    name = re.sub(r"[\x00-\x1f/\\]", "_", Path(video).stem)
    return name if name.strip(". ") else "video"
