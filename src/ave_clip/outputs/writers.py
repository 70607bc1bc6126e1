"""Writers of the command line: one file for all videos, one file per video, or stdout. File writes are atomic."""

import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TextIO
from urllib.parse import unquote, urlsplit

from ..core.events import HEARD, SEEN
from ..core.text import counted, is_safe, printable
from ..core.video_source import source_name
from ..files import atomic_file
from ..video_files import VIDEO_SUFFIXES
from .drawing import PLOT_SUFFIXES, percent
from .formats import FORMATS, result_object

NAME_FIELD = "{name}"
TABLE = "table"  # the only format that depends on the width of the terminal; drawn by rich
MAX_NAME_BYTES = 255  # of a file name, on usual file systems
# `.txt` is left to the table: it is the suffix of many kinds of files.
FORMAT_OF_SUFFIX = {entry.suffix: name for name, entry in FORMATS.items() if entry.suffix != ".txt"}
TABLE_SUFFIXES = ("", ".txt")


class WrongOutputError(ValueError):
    """An output that cannot be used; the message says what to pass instead."""


class NothingToWriteError(Exception):
    """Every video failed, so the output must not be replaced by an empty file."""


class Writer(Protocol):
    """Takes the results one after the other."""

    def add(self, video: str, result: Mapping[str, Any]) -> None:
        """Writes one video's result."""

    def finish(self) -> None:
        """Writes the end of the output, after the last result."""


def format_of(output: str | None) -> str:
    """Returns the format for an output's suffix; `"table"` for stdout, folders, and names without a suffix.

    Raises:
        WrongOutputError: for any other suffix.
    """
    if output is None:
        return TABLE
    suffix = Path(output).suffix.lower()
    if suffix in TABLE_SUFFIXES or (names_each_video(output) and NAME_FIELD not in Path(output).name):
        return TABLE
    check_suffix(output)
    if suffix not in FORMAT_OF_SUFFIX:
        raise WrongOutputError(
            f"--output {output}: no format has the suffix {suffix}. Known: {', '.join(FORMAT_OF_SUFFIX)}, and .txt "
            "for a table. With --format the file may have any name."
        )
    return FORMAT_OF_SUFFIX[suffix]


def check_suffix(output: str) -> None:
    """Refuses to write text into a file with the suffix of a video or an image.

    Raises:
        WrongOutputError: naming the option that makes such a file.
    """
    suffix = Path(output).suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        video = Path(output).with_suffix(".mp4")
        raise WrongOutputError(
            f"--output {output}: results are text, not a video. Use --overlay {video} for the video with the events "
            f"drawn on it, or one of {', '.join(FORMAT_OF_SUFFIX)} for --output."
        )
    if suffix in (*PLOT_SUFFIXES, ".jpg", ".jpeg", ".pdf"):
        raise WrongOutputError(
            f"--output {output}: results are text, not an image. Use --plot with one of {', '.join(PLOT_SUFFIXES)} "
            f"for an image of the timeline, or one of {', '.join(FORMAT_OF_SUFFIX)} for --output."
        )


def names_each_video(output: str) -> bool:
    """Returns whether an output is a folder or contains `{name}`, so that there is one file per video."""
    return NAME_FIELD in Path(output).name or output.endswith(("/", os.sep)) or os.path.isdir(output)


def plan_files(videos: Sequence[str], output: str, suffix: str, option: str) -> dict[str, Path]:
    """Returns the file of each video: `output`, or a file named after the video in a folder or at `{name}`.

    Videos of the same name without suffix keep the suffix (`a.mov.srt`, `a.mp4.srt`), those that are still the same
    begin with their folder (`sub-a.mp4.srt`), and only what is equal then is numbered.

    Args:
        videos (`Sequence[str]`): Paths or URLs.
        output (`str`): `folder/`, a folder that exists, `folder` for several videos, `folder/{name}.srt`, or a file.
        suffix (`str`): Suffix of the files in a folder.
        option (`str`): The option that error messages name.

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
            f"{option} {output} is one file, but each of the {len(videos)} videos needs one. Pass a folder, or a path "
            f"containing {NAME_FIELD}, such as {NAME_FIELD}{suffix}."
        )
    else:
        return {videos[0]: Path(output)}
    folder, file_name = os.path.split(pattern)
    room = MAX_NAME_BYTES - len(os.fsencode(file_name.replace(NAME_FIELD, "")))
    names = _distinct_names(videos, room)
    return {video: Path(folder) / file_name.replace(NAME_FIELD, name) for video, name in zip(videos, names)}


def check_targets(targets: Iterable[tuple[str, str | Path]], videos: Sequence[str], new_folders: bool = False) -> None:
    """Refuses an output that would replace a video or another output, or whose folder does not exist.

    Args:
        targets (`Iterable[tuple[str, str | Path]]`): The option and the file of each output.
        videos (`Sequence[str]`): Paths or URLs.
        new_folders (`bool`): Whether the folder of a file may be created.

    Raises:
        WrongOutputError: naming the output.
    """
    existing = [video for video in videos if os.path.isfile(video)]
    for option, target in targets:
        path = Path(target)
        if path.is_file() and any(path.samefile(video) for video in existing):
            raise WrongOutputError(f"{option} {path} is one of the videos, which it would replace.")
        if path.is_dir() or str(target).endswith(("/", os.sep)):
            raise WrongOutputError(
                f"{option} {path} is a folder. Pass a file, or choose a --format with one file per video."
                if option == "--output"
                else f"{option} {path} is a folder. Pass a file."
            )
        folder = path.absolute().parent
        if not (folder.is_dir() or (new_folders and folder.parent.is_dir() and not folder.exists())):
            raise WrongOutputError(f"{option} {path}: there is no folder {path.parent}.")


@contextmanager
def open_writer(name: str, output: str | None, files: Mapping[str, Path] | None) -> Iterator[Writer]:
    """Opens the writer of a format.

    Args:
        name (`str`): The format, `"table"` or one of `FORMATS`.
        output (`str`, *optional*): The file. Default: stdout.
        files (`Mapping[str, Path]`, *optional*): Instead of `output`, the file of each video.
    """
    if files is not None:
        yield FilePerVideo(name, files)
        return
    with _destination(output) as stream:
        writer = Tables(stream) if name == TABLE else FileOfAll(stream, name)
        yield writer
        writer.finish()


class FilePerVideo:
    """Writes one file per result."""

    def __init__(self, name: str, files: Mapping[str, Path]) -> None:
        self.format, self.files = FORMATS[name], files

    def add(self, video: str, result: Mapping[str, Any]) -> None:
        path = self.files[video]
        options = {"folder": path.parent} if self.format.links_to_video else {}
        path.parent.mkdir(exist_ok=True)
        with _destination(str(path)) as stream:
            stream.write(self.format.format(result, video, **options))

    def finish(self) -> None:
        """Every file is complete already."""


class FileOfAll:
    """Writes all results into one stream: each at once, or all at the end if the format must join them."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self.stream, self.format = stream, FORMATS[name]
        self.objects: list[dict[str, Any]] = []  # for formats that join; without heat maps, which are large
        self.columns: Sequence[str] | None = None  # of a table; those of the first result

    def add(self, video: str, result: Mapping[str, Any]) -> None:
        if self.format.join is not None:
            self.objects.append(result_object(result, video))
            return
        if self.format.columns is None:
            self.stream.write(self.format.format(result, video))
        elif result["segments"]:  # a video without any has no rows, and does not show which columns the model gives
            is_first = self.columns is None
            self.columns = self.columns or self.format.columns(result)
            self.stream.write(self.format.format(result, video, header=is_first, columns=self.columns))
        self.stream.flush()

    def finish(self) -> None:
        if self.format.join is not None:
            self.stream.write(self.format.join(self.objects))
        elif self.format.columns is not None and self.columns is None:
            self.stream.write(self.format.format({"segments": [], "events": []}, ""))  # the header alone


class Tables:
    """Writes tables of the events for reading in a terminal."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def add(self, video: str, result: Mapping[str, Any]) -> None:
        from rich.console import Console
        from rich.markup import escape

        console = Console(file=self.stream, highlight=False, emoji=False)
        name = escape(printable(source_name(video)))
        if result["events"]:
            console.print(f"[bold]{name}[/bold]")
            console.print(_event_table(result["events"]))
        else:
            console.print(
                f"[bold]{name}[/bold]: no audio-visual event in {counted(len(result['segments']), 'segment')}"
            )
        if any("top_k" in segment for segment in result["segments"]):
            console.print(_segment_table(result["segments"]))

    def finish(self) -> None:
        """Nothing follows the last result."""


def _event_table(events: Sequence[Mapping[str, Any]]) -> Any:
    """Returns a table of events: start, end, label and score, and the probabilities of heard and seen if available."""
    senses = [sense for sense in (HEARD, SEEN) if any(sense in event for event in events)]
    return _rich_table("event", events, lambda event: [(event["label"], event["score"])], senses)


def _segment_table(segments: Sequence[Mapping[str, Any]]) -> Any:
    """Returns a table of the most probable labels per segment, one below the other."""
    return _rich_table("labels", segments, lambda segment: [(top["label"], top["score"]) for top in segment["top_k"]])


def _rich_table(
    name: str,
    entries: Sequence[Mapping[str, Any]],
    labels_of: Callable[[Mapping[str, Any]], list[tuple[str, float]]],
    senses: Sequence[str] = (),
) -> Any:
    """Returns a table of start, end, labels and scores, and one column for each of `senses`."""
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    for column, justify in (("start", "right"), ("end", "right"), (name, "left"), ("score", "right")):
        # In a narrow terminal a label may be broken into lines, but a time or a score must never be cut.
        table.add_column(column, justify=justify, no_wrap=column != name, overflow="fold")
    for sense in senses:
        table.add_column(sense, justify="right", no_wrap=True)
    for entry in entries:
        times = [f"{entry[side]:.1f} s" for side in ("start", "end")]
        labels, scores = zip(*labels_of(entry))
        known = ["cannot tell" if entry[sense] is None else percent(entry[sense]) for sense in senses]
        label_lines = escape("\n".join(map(printable, labels)))
        table.add_row(*times, label_lines, "\n".join(percent(score) for score in scores), *known)
    return table


@contextmanager
def _destination(output: str | None) -> Iterator[TextIO]:
    """Opens stdout, or a file that is written atomically; a device or a pipe is written directly."""
    if output is None:
        yield sys.stdout
        sys.stdout.flush()  # here an error such as a full disk can still be reported
        return
    path = Path(output)
    if path.exists() and not path.is_file():
        with _open(path) as stream:
            yield stream
        return
    with atomic_file(path.resolve()) as temporary, _open(temporary) as stream:
        yield stream


def _open(path: Path) -> TextIO:
    # A name that is not valid Unicode must not stop the output.
    return open(path, "w", encoding="utf-8", errors="replace", newline="")


def is_named_after(path: Path, video: str) -> bool:
    """Returns whether the name of an output is the video's with another suffix."""
    return path.name == _stem(video) + path.suffix


def _distinct_names(videos: Sequence[str], room: int) -> list[str]:
    """Returns a file name without suffix per video, at most `room` bytes long and unique on any file system.

    A name depends only on the videos of the same stem: they keep their suffix, and their folder if that is
    not enough.
    """
    wanted = [_stem(video) for video in videos]
    for longer in (_full_names, _names_with_folder):
        same: dict[str, list[int]] = {}
        for index, name in enumerate(wanted):
            same.setdefault(name.casefold(), []).append(index)
        for group in same.values():
            if len(group) > 1:
                for index, name in zip(group, longer([videos[index] for index in group])):
                    wanted[index] = name
    names, taken = [], set()
    # What is still equal, such as two queries of one URL or names that are cut, is numbered.
    for base in wanted:
        name, number = _cut_to_bytes(base, room), 1
        while name.casefold() in taken:
            number += 1
            name = _cut_to_bytes(base, room - len(f"-{number}")) + f"-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _stem(video: str) -> str:
    """Returns the name of a video without folder and suffix; for a URL, that of its path."""
    return _safe_name(Path(_path_in_url(video)).stem)


def _full_names(videos: Sequence[str]) -> list[str]:
    return [_safe_name(Path(_path_in_url(video)).name) for video in videos]


def _names_with_folder(videos: Sequence[str]) -> list[str]:
    """Returns the names of videos, each after the folders below those that all have in common: `sub-a.mp4`."""
    folders = [_folders(video) for video in videos]
    num_common = len(list(itertools.takewhile(lambda level: len(set(level)) == 1, zip(*folders))))
    pairs = zip(folders, _full_names(videos))
    return ["-".join([*map(_safe_name, parts[num_common:]), name]) for parts, name in pairs]


def _folders(video: str) -> list[str]:
    """Returns the folders of a video from the root on; for a URL, its host and the folders of its path."""
    if not _is_url(video):
        return [part for part in Path(os.path.abspath(video)).parent.parts if part.strip("/\\")]
    # The host name has neither the user nor the password of the address.
    return [part for part in (urlsplit(video).hostname, *_path_in_url(video).split("/")[:-1]) if part]


def _is_url(video: str) -> bool:
    return re.match(r"[a-zA-Z][\w+.-]+://", video) is not None


def _path_in_url(video: str) -> str:
    return unquote(urlsplit(video).path).rstrip("/") if _is_url(video) else video


def _safe_name(text: str) -> str:
    name = "".join("_" if char in "/\\" or not is_safe(char) else char for char in text)
    return name if name.strip(". ") else "video"


def _cut_to_bytes(name: str, room: int) -> str:
    """Cuts a name to at most `room` bytes, without splitting a character."""
    encoded = os.fsencode(name)
    if len(encoded) <= room:
        return name
    return encoded[: max(1, room)].decode(sys.getfilesystemencoding(), "ignore").rstrip(". ") or "video"
