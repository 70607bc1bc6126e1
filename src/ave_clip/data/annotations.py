"""AVE's annotation files: from the bytes of `Annotations.txt` and the split files to checked rows.

One line is `Category&VideoID&Quality&StartTime&EndTime`; the event covers the segments `[StartTime, EndTime)`. The
file comes with and without a header line; reading one as the other shifts every label by a row, so the header is
detected. Categories contain commas and video ids repeat: fields are cut at `&` only, a sample is its row number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .categories import BACKGROUND_LABEL, category_index

HEADER = ("Category", "VideoID", "Quality", "StartTime", "EndTime")
AVE_CLIP_SECONDS = 10  # every clip of AVE, and so the number of its labels
IGNORED_LABEL = -100  # of a segment whose truth is withheld or unknown; losses and metrics leave it out
_TOLERANCE = 1e-6  # seconds; times come from decimal text


class AnnotationError(ValueError):
    """An annotation file that cannot be used as it is; the message names the file and, if there is one, the line."""

    def __init__(self, message: str, file: str, line: int | None = None):
        place = file if line is None else f"{file}, line {line}"
        super().__init__(f"{place}: {message}")


class LabelledSpan(NamedTuple):
    """An event as annotated: its class id, and where it starts and ends, in seconds."""

    label: int
    start: float
    end: float


@dataclass(frozen=True)
class Annotation:
    """One row of `Annotations.txt`.

    Attributes:
        row (`int`): Position among the data rows, from 0; the key of the sample in every file of the data set.
        category (`str`): The event's class name.
        video_id (`str`): The video's YouTube id; not unique.
        quality (`str`): The annotators' verdict, "good" throughout AVE.
        start (`int`): First second of the event.
        end (`int`): Second at which the event is over, exclusive; equal to `start` when there is no event at all.
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
        """The five fields of the line: what a split file repeats of it."""
        return (self.category, self.video_id, self.quality, self.start, self.end)


def decode_text(data: bytes, file: str) -> list[str]:
    """Lines of a UTF-8 text file, any line ending, without the empty ones at its end.

    Raises:
        AnnotationError: if the bytes are not UTF-8 text (the line of the first bad byte is named).
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        message = f"byte 0x{data[error.start]:02x} is not UTF-8. Save the file as UTF-8 text."
        raise AnnotationError(message, file, line) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise AnnotationError("a zero byte, as in UTF-16 text. Save the file as UTF-8 text.", file, line)
    lines = [line.rstrip("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def parse_categories(data: bytes, file: str = "categories.txt") -> tuple[str, ...]:
    """Category names of a `categories.txt`: one a line, in index order, background not among them.

    Raises:
        AnnotationError: if the file is empty, a line is empty, a name comes twice or is "background".
    """
    names = [line.strip() for line in decode_text(data, file)]
    if not names:
        raise AnnotationError("no category at all. Write one category name a line.", file)
    for line, name in enumerate(names, start=1):
        if not name:
            raise AnnotationError("an empty line. Write one category name a line.", file, line)
        if name.lower() == BACKGROUND_LABEL:
            raise AnnotationError("background is added behind the last category. Leave it out.", file, line)
        if name in names[: line - 1]:
            message = f"the category {name!r} stands in line {names.index(name) + 1} already."
            raise AnnotationError(message, file, line)
    return tuple(names)


def parse_annotations(
    data: bytes, categories: Sequence[str], num_segments: int | None = None, file: str = "Annotations.txt"
) -> list[Annotation]:
    """Read and check every row of an `Annotations.txt`, with or without header.

    Args:
        data (`bytes`): The file's content.
        categories (`Sequence[str]`): The category names a row may use.
        num_segments (`int`, *optional*): Length of a clip in seconds; no event may end later.
        file (`str`): The file's name, for messages.

    Returns:
        `list[Annotation]`: One entry per data row, in file order.

    Raises:
        AnnotationError: on another field count, unknown category, unusable id, times that are reversed, negative, late
            or no whole seconds, a row that comes twice, or two overlapping events of one category in one video.
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
    """Row numbers of the rows that a split file repeats, in its order; none for an empty file.

    Raises:
        AnnotationError: if a line is no row of the annotations, or stands in the file twice.
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
    """Make sure no row is in two splits.

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
    """Class id of each segment: the class that covers most of it, background if none covers half of it.

    Where classes cover a segment alike, the one whose event began first counts.

    Args:
        events (`Sequence[LabelledSpan]`): The clip's events, in any order.
        num_segments (`int`): Number of segments of the clip.
        background (`int`): Class id of background.
        segment_seconds (`float`): Length of a segment.

    Returns:
        `list[int]` of length `num_segments`.

    >>> label_segments([LabelledSpan(3, 1.0, 2.6), LabelledSpan(5, 2.6, 3.4)], num_segments=4, background=28)
    [28, 3, 3, 28]
    """
    labels = [background] * num_segments
    best = [segment_seconds / 2] * num_segments
    ordered = sorted(events, key=lambda event: (event.start, event.label))
    for label in dict.fromkeys(event.label for event in ordered):
        spans = [event for event in ordered if event.label == label]
        for segment, covered in _coverage(spans, num_segments, segment_seconds).items():
            is_better = covered > best[segment] + _TOLERANCE
            is_half = labels[segment] == background and covered >= best[segment] - _TOLERANCE
            if is_better or is_half:
                labels[segment], best[segment] = label, covered
    return labels


def _coverage(spans: Sequence[LabelledSpan], num_segments: int, segment_seconds: float) -> dict[int, float]:
    """Seconds of each touched segment inside the spans, which are of one class and in order of their starts."""
    covered: dict[int, float] = {}
    reached = 0.0
    for span in spans:
        start, end = max(span.start, reached), span.end
        first = max(0, int(start / segment_seconds))
        for segment in range(first, min(num_segments, math.ceil(end / segment_seconds))):
            inside = min(end, (segment + 1) * segment_seconds) - max(start, segment * segment_seconds)
            covered[segment] = covered.get(segment, 0.0) + max(0.0, inside)
        reached = max(reached, end)
    return covered


def check_video_id(video_id: str) -> None:
    """Make sure an id can be a file name inside the video folder.

    Raises:
        ValueError: if it is empty, holds a path separator, `..`, white space or control characters.
    """
    if not video_id or ".." in video_id or any(c in "/\\:" or c.isspace() or not c.isprintable() for c in video_id):
        raise ValueError(
            f"Got the video id {video_id!r}, but an id is a file name without its ending: "
            "not empty, no path separator, no '..', no white space."
        )


def _parse_rows(data: bytes, file: str) -> list[Annotation]:
    lines = decode_text(data, file)
    first = 1 if lines and lines[0].split("&")[0] == HEADER[0] else 0
    if first and tuple(field.strip() for field in lines[0].split("&")) != HEADER:
        raise AnnotationError(f"the header is {lines[0]!r}, wanted {'&'.join(HEADER)!r}.", file, 1)
    if len(lines) == first:
        raise AnnotationError("no row at all.", file)
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
