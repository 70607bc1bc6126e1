"""Parses AVE's annotation files, checks their rows, and labels segments.

One line is `Category&VideoID&Quality&StartTime&EndTime`; the event covers the segments `[StartTime, EndTime)`. The
file is published with and without a header line; a reader that assumes the wrong one shifts every label by a row, so
the header is detected. Categories contain commas, so fields are separated at `&` only. Video ids repeat, so the key of
a row is its number.
"""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..core.text import printable
from .categories import BACKGROUND_LABEL, category_index
from .categories import IGNORED_LABEL as IGNORED_LABEL

HEADER = ("Category", "VideoID", "Quality", "StartTime", "EndTime")
AVE_CLIP_SECONDS = 10  # of every clip of AVE, which therefore has ten labels
_TOLERANCE = 1e-6  # seconds; times are read from decimal text


class AnnotationError(ValueError):
    """An annotation file that cannot be used; the message names the file and, if known, the line."""

    def __init__(self, message: str, file: str, line: int | None = None):
        place = file if line is None else f"{file}, line {line}"
        super().__init__(printable(f"{place}: {message}"))


class LabelledSpan(NamedTuple):
    """An annotated event: its class id, and its start and end in seconds."""

    label: int
    start: float
    end: float


@dataclass(frozen=True)
class Annotation:
    """One row of `Annotations.txt`.

    Attributes:
        row (`int`): Number of the row, from 0, without the header; its key in every file of the data set.
        category (`str`): The event's class name.
        video_id (`str`): The video's YouTube id; not unique.
        quality (`str`): The annotators' verdict, "good" throughout AVE.
        start (`int`): First second of the event.
        end (`int`): Second at which the event ends, exclusive; equal to `start` if there is no event.
        line (`int`): Line number in the file, from 1.
    """

    row: int
    category: str
    video_id: str
    quality: str
    start: int
    end: int
    line: int

    @property
    def key(self) -> tuple[str, str, str, int, int]:
        """The five fields of the line, which split files repeat."""
        return (self.category, self.video_id, self.quality, self.start, self.end)


def decode_text(data: bytes, file: str) -> list[str]:
    """Returns the lines of a UTF-8 text file with any line endings, without empty lines at its end.

    Raises:
        AnnotationError: if the bytes are not UTF-8 text; the message names the line of the first invalid byte.
    """
    try:
        text = data.decode("utf-8-sig")  # Windows programs write a byte order mark
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8. Save the file as UTF-8 text."
        raise AnnotationError(message, file, line) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise AnnotationError("a zero byte, as in UTF-16 text. Save the file as UTF-8 text.", file, line)
    # Not `splitlines`, which also splits at characters that may occur in a label, such as U+2028.
    lines = [line.rstrip("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def parse_categories(data: bytes, file: str = "categories.txt") -> tuple[str, ...]:
    """Returns the category names of a `categories.txt`: one per line, in index order, without background.

    Raises:
        AnnotationError: if the file or a line is empty, a name occurs twice or is "background".
    """
    names = [line.strip() for line in decode_text(data, file)]
    if not names:
        raise AnnotationError("there are no categories. Write one category name per line.", file)
    for line, name in enumerate(names, start=1):
        if not name:
            raise AnnotationError("an empty line. Write one category name per line.", file, line)
        if name.lower() == BACKGROUND_LABEL:
            raise AnnotationError("background is added after the last category. Remove it.", file, line)
    check_distinct_names(enumerate(names, start=1), file)
    return tuple(names)


def check_distinct_names(names: Iterable[tuple[int | None, str]], file: str, may_repeat: bool = False) -> None:
    """Checks that no two class names differ only in case, spaces or the encoding of accents.

    Args:
        names (`Iterable[tuple[int | None, str]]`): Line and name.
        file (`str`): The file's name, for messages.
        may_repeat (`bool`): Whether a name may occur more than once.

    Raises:
        AnnotationError: naming both names.
    """
    first: dict[str, tuple[int | None, str]] = {}
    for line, name in names:
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        first_line, first_name = first.setdefault(key, (line, name))
        if name == first_name and (may_repeat or line == first_line):
            continue
        where = "" if first_line is None else f" of line {first_line}"
        if name == first_name:
            raise AnnotationError(f"the category {name!r} is in line {first_line} already.", file, line)
        raise AnnotationError(
            f"the labels {name!r} and {first_name!r}{where} differ only in case, spaces or the encoding of "
            "accents, so they would be two classes with one name. Write them in the same way.",
            file,
            line,
        )


def parse_annotations(
    data: bytes, categories: Sequence[str], num_segments: int | None = None, file: str = "Annotations.txt"
) -> list[Annotation]:
    """Reads and checks every row of an `Annotations.txt`, with or without a header.

    Args:
        data (`bytes`): The file's content.
        categories (`Sequence[str]`): The category names that rows may use.
        num_segments (`int`, *optional*): Duration of a clip in seconds; no event may end later.
        file (`str`): The file's name, for messages.

    Returns:
        `list[Annotation]`: One entry per data row, in file order.

    Raises:
        AnnotationError: for another number of fields, an unknown category, an unusable id, times that are reversed,
            too late or not whole seconds, a row that occurs twice, or overlapping events of one category in one
            video.
    """
    rows = _parse_rows(data, file)
    known = set(categories)
    for annotation in rows:
        try:
            if annotation.category not in known:
                category_index(annotation.category, categories)
            check_video_id(annotation.video_id)
            _check_times(annotation, num_segments)
        except ValueError as error:
            raise AnnotationError(str(error), file, annotation.line) from error
    _check_repeats(rows, file)
    return rows


def match_split(data: bytes, annotations: Sequence[Annotation], file: str) -> list[int]:
    """Returns the numbers of the rows that a split file repeats, in its order; none for an empty file.

    Raises:
        AnnotationError: if a line is not a row of the annotations, or occurs twice.
    """
    row_of = {annotation.key: annotation.row for annotation in annotations}
    rows: dict[int, int] = {}
    if not decode_text(data, file):
        return []
    for entry in _parse_rows(data, file):
        row = row_of.get(entry.key)
        if row is None:
            message = f"no row of Annotations.txt reads {'&'.join(map(str, entry.key))!r}."
            raise AnnotationError(message, file, entry.line)
        if row in rows:
            raise AnnotationError(f"repeats line {rows[row]}. Remove one of them.", file, entry.line)
        rows[row] = entry.line
    return list(rows)


def check_disjoint(splits: Mapping[str, Sequence[int]], source: str) -> None:
    """Checks that no row is in two splits.

    Raises:
        AnnotationError: naming the row and both splits.
    """
    owner: dict[int, str] = {}
    for split, rows in splits.items():
        for row in rows:
            if row in owner:
                message = f"row {row} is in the {owner[row]} split and in the {split} split."
                raise AnnotationError(message, source)
            owner[row] = split


def label_segments(
    events: Sequence[LabelledSpan], num_segments: int, background: int, segment_seconds: float = 1.0
) -> list[int]:
    """Returns the class id of each segment: the class that covers most of it, or background if none covers half of it.

    If several classes cover a segment equally, the one whose event in that segment starts first is chosen, then the
    one with the smaller class id. Events of the class in other segments have no influence.

    Args:
        events (`Sequence[LabelledSpan]`): The clip's events, in any order.
        num_segments (`int`): Number of segments of the clip.
        background (`int`): Class id of background.
        segment_seconds (`float`): Duration of a segment.

    Returns:
        `list[int]`: `num_segments` class ids.

    >>> label_segments([LabelledSpan(3, 1.0, 2.6), LabelledSpan(5, 2.6, 3.4)], num_segments=4, background=28)
    [28, 3, 3, 28]
    >>> label_segments([LabelledSpan(0, 0, 1), LabelledSpan(1, 2, 6), LabelledSpan(0, 4, 6)], 6, background=9)
    [0, 9, 1, 1, 1, 1]
    """
    candidates: list[list[tuple[float, float, int]]] = [[] for _ in range(num_segments)]  # seconds, began at, class
    ordered = sorted(events, key=lambda event: event.start)
    for label in {event.label for event in ordered}:
        spans = [event for event in ordered if event.label == label]
        for segment, (covered, began) in coverage(spans, num_segments, segment_seconds).items():
            if covers_enough(covered, segment_seconds):
                candidates[segment].append((covered, began, label))
    labels = []
    for found in candidates:
        most = max((covered for covered, _, _ in found), default=0.0)
        equal = [(began, label) for covered, began, label in found if covered >= most - _TOLERANCE]
        labels.append(min(equal, default=(0.0, background))[1])
    return labels


def covers_enough(covered: float, segment_seconds: float) -> bool:
    """Whether the seconds that events cover of a segment are at least half of it."""
    return covered >= segment_seconds / 2 - _TOLERANCE


def coverage(
    spans: Sequence[LabelledSpan], num_segments: int, segment_seconds: float
) -> dict[int, tuple[float, float]]:
    """Returns how many seconds of each segment the spans cover, and when the first of them started.

    The spans belong to one class and are ordered by start. Time that several of them cover counts once.
    """
    covered: dict[int, tuple[float, float]] = {}
    reached = 0.0  # everything before this time has been counted
    for span in spans:
        start, end = max(span.start, reached), span.end
        first = max(0, int(start / segment_seconds))
        for segment in range(first, min(num_segments, math.ceil(end / segment_seconds))):
            inside = min(end, (segment + 1) * segment_seconds) - max(start, segment * segment_seconds)
            if inside > 0:
                seconds, began = covered.get(segment, (0.0, span.start))
                covered[segment] = seconds + inside, began
        reached = max(reached, end)
    return covered


def check_video_id(video_id: str) -> None:
    """Checks that an id can be a file name in the video folder.

    Raises:
        ValueError: if it is empty, or contains a path separator, `..`, white space or control characters.
    """
    if not video_id or ".." in video_id or any(c in "/\\:" or c.isspace() or not c.isprintable() for c in video_id):
        raise ValueError(
            f"Got the video id {video_id!r}, but an id is a file name without suffix: "
            "not empty, without path separators, '..' or white space."
        )


def _parse_rows(data: bytes, file: str) -> list[Annotation]:
    lines = decode_text(data, file)
    first = 1 if lines and lines[0].split("&")[0] == HEADER[0] else 0
    if first and tuple(field.strip() for field in lines[0].split("&")) != HEADER:
        raise AnnotationError(f"the header is {lines[0]!r}, wanted {'&'.join(HEADER)!r}.", file, 1)
    if len(lines) == first:
        raise AnnotationError("there are no rows.", file)
    return [_parse_row(text, row, row + first + 1, file) for row, text in enumerate(lines[first:])]


def _parse_row(text: str, row: int, line: int, file: str) -> Annotation:
    fields = [field.strip() for field in text.split("&")]
    if len(fields) != len(HEADER):
        message = f"{len(fields)} fields in {text!r}, wanted {len(HEADER)}: {'&'.join(HEADER)}."
        raise AnnotationError(message, file, line)
    category, video_id, quality, start, end = fields
    if not (start.isdecimal() and end.isdecimal()):
        message = f"times {start!r} and {end!r}, wanted whole seconds counted from 0."
        raise AnnotationError(message, file, line)
    return Annotation(row, category, video_id, quality, int(start), int(end), line)


def _check_times(annotation: Annotation, num_segments: int | None) -> None:
    if annotation.end < annotation.start:
        raise ValueError(f"The event ends at {annotation.end} s, before its start at {annotation.start} s.")
    if num_segments is not None and annotation.end > num_segments:
        raise ValueError(
            f"The event ends at {annotation.end} s, but a clip has {num_segments} s. "
            "Correct the row, or pass `num_segments` for longer clips."
        )


def _check_repeats(rows: Sequence[Annotation], file: str) -> None:
    seen: dict[tuple[str, str], list[Annotation]] = {}
    for annotation in rows:
        earlier = seen.setdefault((annotation.category, annotation.video_id), [])
        for other in earlier:
            if (other.start, other.end) == (annotation.start, annotation.end):
                raise AnnotationError(f"repeats line {other.line}. Remove one of them.", file, annotation.line)
            if other.start < annotation.end and annotation.start < other.end:
                message = (
                    f"{annotation.category!r} in {annotation.video_id} at {annotation.start} to {annotation.end} s "
                    f"overlaps {other.start} to {other.end} s in line {other.line}. Merge the two rows."
                )
                raise AnnotationError(message, file, annotation.line)
        earlier.append(annotation)
