"""The registry's entry, and what all readers of annotations share: events, videos and checks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ..annotations import AnnotationError

# The splits of `datasets` by the names that annotation files give them.
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
# Containers round durations. Larger than this, an event beyond the end would change the label of a segment.
_END_TOLERANCE_SECONDS = 0.5


class NamedSpan(NamedTuple):
    """An event by name: its label, its start and end in seconds, and its line in the annotation file."""

    label: str
    start: float
    end: float
    line: int | None = None


@dataclass(frozen=True)
class VideoAnnotation:
    """What an annotation file says about one video.

    Attributes:
        name (`str`): The video's path or id as written.
        split (`str`): "train", "validation" or "test".
        events (`tuple[NamedSpan, ...]`): Its events, ordered by start.
        duration_seconds (`float`, *optional*): Its duration, if the file gives it.
        category (`str`, *optional*): The class of the whole video, if the file gives it; else that of the longest
            event.
        seen (`bool`, *optional*): Whether its class occurs in training, for open-vocabulary data sets.
        links (`tuple[str, ...]`): Paths and URLs of the video in a label file that belongs to one video.
        may_end_late (`bool`): Whether events may end after the video, where they are then clipped and counted.
    """

    name: str
    split: str
    events: tuple[NamedSpan, ...]
    duration_seconds: float | None = None
    category: str | None = None
    seen: bool | None = None
    links: tuple[str, ...] = ()
    may_end_late: bool = False


@dataclass(frozen=True)
class ReaderOptions:
    """Settings that some readers use; each ignores the others.

    Attributes:
        categories (`tuple[str, ...]`, *optional*): Category names in index order.
        tier (`str`, *optional*): Tier of ELAN's files.
        meta (`Path`, *optional*): OV-AVEBench's table of splits and classes.
    """

    categories: tuple[str, ...] | None = None
    tier: str | None = None
    meta: Path | None = None


@dataclass(frozen=True)
class Reader:
    """One kind of data set and how it is recognized; an [`AnnotationReader`] or a [`DataSetReader`].

    Attributes:
        name (`str`): Its name, as builder configurations and options call it.
        summary (`str`): What it is, in one line, for help texts and error messages.
        recognizes (`Callable`): Whether a path is a data set of this kind. Looks at names and the first bytes only.
        problem_type (`str`): How its segments are labelled by default: "single_label" or "multi_label".
    """

    name: str
    summary: str
    recognizes: Callable[[Path], bool]
    problem_type: str = field(default="single_label", kw_only=True)


@dataclass(frozen=True)
class AnnotationReader(Reader):
    """A reader of annotation files, from which `ave_clip.data.custom` makes the rows.

    Attributes:
        read (`Callable`): Reads an annotation file: its videos, and the category names in index order or `None` if the
            file does not define them.
        videos_by (`str`): How the annotations name the videos: by "path", by "id", or "file" for label files that
            belong to one video each, which has the same name or is linked.
    """

    read: Callable[[Path, ReaderOptions], tuple[list[VideoAnnotation], tuple[str, ...] | None]]
    videos_by: Literal["path", "id", "file"] = "path"


@dataclass(frozen=True)
class DataSetReader(Reader):
    """A reader of a data set whose rows are not made of such annotations.

    Attributes:
        load (`Callable`): Loads the data set, given its path, a split and the options that it accepts.
        options (`tuple[str, ...]`): Names of the options of [`~ave_clip.data.open_dataset`] that `load` accepts.
    """

    load: Callable[..., Any]
    options: tuple[str, ...] = ()


def has_suffix(*suffixes: str) -> Callable[[Path], bool]:
    """Returns a function that recognizes files by their suffix."""
    return lambda path: path.suffix.lower() in suffixes and not path.is_dir()


def is_json_with(*keys: str) -> Callable[[Path], bool]:
    """Returns a function that recognizes a JSON file by keys that occur near its beginning."""

    def recognizes(path: Path) -> bool:
        if path.suffix.lower() != ".json" or not path.is_file():
            return False
        with open(path, "rb") as file:
            beginning = file.read(4096)
        return all(f'"{key}"'.encode() in beginning for key in keys)

    return recognizes


def parse_split(name: str) -> str:
    """Returns the split that an annotation file means.

    Raises:
        ValueError: if the name is unknown.
    """
    if name.lower() not in SPLIT_NAMES:
        raise ValueError(f"Got the split {name!r}, wanted train, validation or test.")
    return SPLIT_NAMES[name.lower()]


def parse_seconds(text: str, name: str) -> float:
    """Returns a number of seconds.

    Raises:
        ValueError: if the text is not a finite number of at least 0.
    """
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"Got {name}={text!r}, wanted a number of seconds.") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"Got {name}={text!r}, wanted a number of seconds from 0 on.")
    return value


def check_span(start: float, end: float, duration: float | None) -> None:
    """Checks that an event ends after it starts, and not after its video ends.

    Raises:
        ValueError: with the times.
    """
    if end <= start:
        raise ValueError(f"The event ends at {end} s, but starts at {start} s; the end must come later.")
    if duration is not None and end > duration + _END_TOLERANCE_SECONDS:
        raise ValueError(f"The event ends at {end} s, but the video at {duration} s.")


def check_event(label: str, start: str, end: str, file: str, line: int | None = None) -> NamedSpan:
    """Returns an event of a label file.

    Raises:
        AnnotationError: if a time is not a number of seconds or the event does not end after it starts.
    """
    try:
        span = NamedSpan(label.strip(), parse_seconds(start, "start"), parse_seconds(end, "end"), line)
        check_span(span.start, span.end, None)
    except ValueError as error:
        raise AnnotationError(f"{label.strip()!r}: {error}", file, line) from error
    return span


def check_overlaps(events: Sequence[NamedSpan], name: str, file: str) -> None:
    """Checks that no two events of different classes overlap, since a segment has one label.

    Raises:
        AnnotationError: naming both events.
    """
    latest: dict[str, NamedSpan] = {}  # of each class's events so far, the one that ends last
    for event in sorted(events, key=lambda event: (event.start, event.end)):
        for other in latest.values():
            if other.label != event.label and event.start < other.end:
                line = "" if other.line is None else f" of line {other.line}"
                message = (
                    f"{event.label!r} at {event.start} to {event.end} s overlaps {other.label!r} at {other.start} to "
                    f'{other.end} s{line} in {name!r}. Several events at once need problem_type="multi_label" '
                    '(--problem_type multi_label). Or shorten one of them, or pass overlap="longest" (--overlap '
                    "longest): then each segment gets the class that covers most of it."
                )
                raise AnnotationError(message, file, event.line)
        if event.label not in latest or event.end > latest[event.label].end:
            latest[event.label] = event
