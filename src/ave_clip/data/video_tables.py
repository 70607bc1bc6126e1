"""Annotations of your own videos: a CSV or JSONL file of `path, label, start, end`, checked row by row.

    path,label,start,end
    dogs/one.mp4,Bark,1.5,4
    dogs/one.mp4,Whine,6,7.25
    quiet.mp4,,,

Several rows may name one video; a row without label, start and end names a video without events. Optional columns are
`split` (train, validation or test) and `duration` in seconds, which is read from the file where it is not given.
"""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .annotations import AnnotationError, decode_text

COLUMNS = ("path", "label", "start", "end")
OPTIONAL_COLUMNS = ("split", "duration")
SPLIT_NAMES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
_END_TOLERANCE_SECONDS = 0.5  # containers round durations; half a segment more than this would be another label


Row = Mapping[str, Any]


class NamedSpan(NamedTuple):
    """An event by name: its label, where it starts and ends in seconds, and the line that says so."""

    label: str
    start: float
    end: float
    line: int | None = None


@dataclass(frozen=True)
class VideoAnnotation:
    """All that an annotation file says about one video.

    Attributes:
        name (`str`): The video's path or id as written.
        split (`str`): "train", "validation" or "test".
        events (`tuple[NamedSpan, ...]`): Its events, in the order of their starts.
        duration_seconds (`float`, *optional*): Its length, where the file says.
        category (`str`, *optional*): Its class as a whole, where the file says; else that of the longest event.
        seen (`bool`, *optional*): Whether its class occurs in training, for open-vocabulary benchmarks.
    """

    name: str
    split: str
    events: tuple[NamedSpan, ...]
    duration_seconds: float | None = None
    category: str | None = None
    seen: bool | None = None


class _CheckedRow(NamedTuple):
    """One checked row: `event` is `None` where the video has none."""

    line: int
    path: str
    event: NamedSpan | None
    split: str | None
    duration: float | None


def read_video_table(data: bytes, file: str) -> list[VideoAnnotation]:
    """Read a CSV, TSV or JSONL file of events, told apart by its ending.

    Args:
        data (`bytes`): Content of the file, UTF-8.
        file (`str`): Its name.

    Returns:
        `list[VideoAnnotation]`: One entry a video, in order of appearance.

    Raises:
        AnnotationError: naming the line, if a column is missing, a field is no number, times are negative, reversed or
            behind the end, a row comes twice, or the rows of a video disagree about split or duration.
    """
    suffix = Path(file).suffix.lower()
    if suffix not in (".csv", ".tsv", ".jsonl"):
        raise AnnotationError(f"the ending is {suffix!r}, wanted .csv, .tsv or .jsonl.", file)
    if suffix == ".jsonl":
        records = _json_records(data, file)
    else:
        records = read_csv(data, file, COLUMNS, "\t" if suffix == ".tsv" else ",")
    rows_of: dict[str, list[_CheckedRow]] = defaultdict(list)
    for line, record in records:
        row = _check_row(record, line, file)
        rows_of[row.path].append(row)
    if not rows_of:
        raise AnnotationError("no row at all.", file)
    return [_join_rows(rows, file) for rows in rows_of.values()]


def check_overlaps(events: Sequence[NamedSpan], name: str, file: str) -> None:
    """Make sure that no two events of a video overlap: a segment has one label.

    Raises:
        AnnotationError: naming both events.
    """
    latest: NamedSpan | None = None
    for event in sorted(events, key=lambda event: (event.start, event.end)):
        if latest is not None and event.start < latest.end:
            message = (
                f"{event.label!r} at {event.start} to {event.end} s overlaps {latest.label!r} at {latest.start} to "
                f'{latest.end} s in {name!r}. Cut one of them, or pass overlap="longest" to let the class that covers '
                "most of a segment have it."
            )
            raise AnnotationError(message, file, event.line)
        if latest is None or event.end > latest.end:
            latest = event


def read_csv(data: bytes, file: str, columns: Sequence[str], delimiter: str = ",") -> Iterator[tuple[int, Row]]:
    """Line number and fields of each row of a table with a header.

    Args:
        data (`bytes`): Content of the file, UTF-8.
        file (`str`): Its name.
        columns (`Sequence[str]`): Columns that must be there; others may be.
        delimiter (`str`): What stands between fields.

    Raises:
        AnnotationError: naming the line, if a column is missing, a row has another number of fields than the header,
            or a quote is not closed.
    """
    reader = csv.DictReader(decode_text(data, file), delimiter=delimiter, strict=True)
    try:
        found = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = found
        missing = [name for name in columns if name not in found]
        if missing:
            raise AnnotationError(f"the header is {found}, without the columns {missing}.", file, 1)
        for row in reader:
            if None in row or None in row.values():
                message = f"another number of fields than the header, which has {len(found)}."
                raise AnnotationError(message, file, reader.line_num)
            yield reader.line_num, row
    except csv.Error as error:
        raise AnnotationError(f"no readable CSV: {error}.", file, reader.reader.line_num) from error


def _json_records(data: bytes, file: str) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(decode_text(data, file), start=1):
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise AnnotationError(f"no readable JSON: {error}.", file, line) from error
        if not isinstance(record, dict) or "path" not in record:
            wanted = '{"path": ..., "label": ..., "start": ..., "end": ...}'
            raise AnnotationError(f"got {text[:80]!r}, wanted an object like {wanted}.", file, line)
        yield line, record


def _check_row(record: Row, line: int, file: str) -> _CheckedRow:
    values = {name: _field(record.get(name)) for name in (*COLUMNS, *OPTIONAL_COLUMNS)}
    try:
        if not values["path"]:
            raise ValueError("The path is empty.")
        split = values["split"].lower()
        if split and split not in SPLIT_NAMES:
            raise ValueError(f"Got the split {values['split']!r}, wanted train, validation or test.")
        duration = _seconds(values["duration"], "duration") if values["duration"] else None
        return _CheckedRow(
            line, values["path"], _check_event(values, line, duration), SPLIT_NAMES.get(split), duration
        )
    except ValueError as error:
        raise AnnotationError(str(error), file, line) from error


def _check_event(values: Mapping[str, str], line: int, duration: float | None) -> NamedSpan | None:
    given = [name for name in ("label", "start", "end") if values[name]]
    if not given:
        return None
    if len(given) < 3:
        raise ValueError(f"Only {' and '.join(given)} given; an event has label, start and end, a quiet video none.")
    start, end = _seconds(values["start"], "start"), _seconds(values["end"], "end")
    check_span(start, end, duration)
    return NamedSpan(values["label"], start, end, line)


def check_span(start: float, end: float, duration: float | None) -> None:
    """Make sure an event ends after it starts, and not behind the end of its video.

    Raises:
        ValueError: with the times.
    """
    if end <= start:
        raise ValueError(f"The event ends at {end} s, but starts at {start} s; the end must come later.")
    if duration is not None and end > duration + _END_TOLERANCE_SECONDS:
        raise ValueError(f"The event ends at {end} s, but the video at {duration} s.")


def _join_rows(rows: Sequence[_CheckedRow], file: str) -> VideoAnnotation:
    first = rows[0]
    for row in rows[1:]:
        for name in ("split", "duration"):
            before, now = getattr(first, name), getattr(row, name)
            if before != now:
                message = f"{row.path!r} has the {name} {now} here, but {before} in line {first.line}."
                raise AnnotationError(message, file, row.line)
    _check_repeats(rows, file)
    events = sorted((row.event for row in rows if row.event is not None), key=lambda event: event.start)
    return VideoAnnotation(first.path, first.split or "train", tuple(events), first.duration)


def _check_repeats(rows: Iterable[_CheckedRow], file: str) -> None:
    seen: dict[Any, int] = {}
    for row in rows:
        content = row.event and row.event[:3]
        if content in seen:
            raise AnnotationError(f"repeats line {seen[content]}. Remove one of them.", file, row.line)
        if seen and None in (content, *seen):
            message = f"a row without event, but {row.path!r} has one in another row. Remove one of them."
            raise AnnotationError(message, file, row.line)
        seen[content] = row.line


def _field(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _seconds(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"Got {name}={text!r}, wanted a number of seconds.") from None
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"Got {name}={text!r}, wanted a number of seconds from 0 on.")
    return value
