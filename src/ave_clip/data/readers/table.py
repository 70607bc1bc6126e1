"""Reader of tables of `path, label, start, end`: your own videos, checked row by row.

    path,label,start,end
    dogs/one.mp4,Bark,1.5,4
    dogs/one.mp4,Whine,6,7.25
    quiet.mp4,,,

Several rows may name one video; a row without label, start and end names a video without events. Optional columns are
`split` (train, validation or test) and `duration` of the video in seconds, which is otherwise read from the video
file. In a table without `end`, `duration` is the duration of the event.

The columns may have the names that other tools use (`ALIASES`): `filename, onset, offset, event_label` is the same
table. Case, spaces, hyphens and a unit in parentheses are ignored: `Begin Time (s)` is `begin_time`.
"""

import csv
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ...core.text import read_csv_cell
from ..annotations import AnnotationError, decode_text
from .base import (
    SPLIT_NAMES,
    AnnotationReader,
    NamedSpan,
    ReaderOptions,
    VideoAnnotation,
    check_span,
    has_suffix,
    parse_seconds,
    parse_split,
)

SUFFIXES = (".csv", ".tsv", ".jsonl")
COLUMNS = ("path", "label", "start", "end")
OPTIONAL_COLUMNS = ("split", "duration")
# Other names of the columns. A column with the name itself takes precedence over them.
ALIASES = {
    "path": (
        *("file", "filename", "file_name", "filepath", "file_path"),
        *("video", "video_file", "video_filename", "video_name", "video_path"),
    ),
    "label": (
        *("class", "class_label", "class_name", "category", "tag", "annotation"),
        *("event", "event_class", "event_label", "event_type"),
    ),
    "start": ("begin", "begin_time", "onset", "start_s", "start_sec", "start_seconds", "start_time"),
    "end": ("end_s", "end_sec", "end_seconds", "end_time", "offset", "stop", "stop_time"),
    "split": ("subset", "partition"),
    "duration": ("duration_s", "duration_sec", "duration_seconds", "video_duration"),
}
Row = Mapping[str, Any]


class _CheckedRow(NamedTuple):
    """One checked row; `event` is `None` if the video has no events."""

    line: int
    path: str
    event: NamedSpan | None
    split: str | None
    duration: float | None


def read_video_table(path: Path, options: ReaderOptions) -> tuple[list[VideoAnnotation], None]:
    """Reads a CSV, TSV or JSONL file of events; the suffix tells which. CSV may also be separated by semicolons.

    A folder of tables named after their splits, such as `train.csv` and `test.csv`, is read as one data set.

    Returns:
        One entry per video, in order of appearance, and `None` for the categories.

    Raises:
        AnnotationError: naming the line, if a column is missing, a field is not a number, times are negative, reversed
            or beyond the end, a row occurs twice, the rows of a video disagree about split or duration, or a video is
            in two tables.
    """
    if not path.is_dir():
        return [_join_rows(rows, str(path)) for rows in _read_rows(path).values()], None
    videos: list[VideoAnnotation] = []
    owner: dict[str, Path] = {}
    for split, file in split_tables(path):
        for name, rows in _read_rows(file).items():
            if name in owner:
                message = f"the video {name!r} is in {owner[name].name}, too. A video is in one split."
                raise AnnotationError(message, str(file), rows[0].line)
            owner[name] = file
            wrong = next((row for row in rows if row.split not in (None, split)), None)
            if wrong is not None:
                message = f"{name!r} has the split {wrong.split}, but the file is named after {split}."
                raise AnnotationError(message, str(file), wrong.line)
            videos.append(replace(_join_rows(rows, str(file)), split=split))
    return videos, None


def split_tables(folder: Path) -> list[tuple[str, Path]]:
    """Returns the tables in a folder that are named after a split, each with its split, train first."""
    found = [
        (SPLIT_NAMES[file.stem.lower()], file)
        for file in sorted(folder.iterdir())
        if file.suffix.lower() in SUFFIXES and file.stem.lower() in SPLIT_NAMES and file.is_file()
    ]
    order = list(dict.fromkeys(SPLIT_NAMES.values()))
    return sorted(found, key=lambda entry: order.index(entry[0]))


def _read_rows(path: Path) -> dict[str, list[_CheckedRow]]:
    """Returns the rows of a table by video."""
    data, file, suffix = path.read_bytes(), str(path), path.suffix.lower()
    if suffix == ".jsonl":
        records = _json_records(data, file)
    else:
        header = decode_text(data, file)[:1]
        # Spreadsheets write semicolons where the comma is the decimal separator.
        delimiter = "\t" if suffix == ".tsv" else ";" if header and ";" in header[0] and "," not in header[0] else ","
        records = read_csv(data, file, (), delimiter)
    rows_of: dict[str, list[_CheckedRow]] = defaultdict(list)
    for line, record in records:
        row = _check_row(_rename_columns(record, line, file, is_table=suffix != ".jsonl"), line, file)
        rows_of[row.path].append(row)
    if not rows_of:
        raise AnnotationError("there are no rows.", file)
    return rows_of


def read_csv(data: bytes, file: str, columns: Sequence[str], delimiter: str = ",") -> Iterator[tuple[int, Row]]:
    """Yields the line number and the fields of each row of a table with a header.

    Cells are decoded as [`~ave_clip.core.text.csv_cell`] encodes them.

    Args:
        data (`bytes`): Content of the file, UTF-8.
        file (`str`): Its name.
        columns (`Sequence[str]`): Required columns; others are allowed.
        delimiter (`str`): Separator of the fields.

    Raises:
        AnnotationError: naming the line, if a column is missing, a row has another number of fields than the header,
            or a quote is not closed.
    """
    lines = (f"{line}\n" for line in decode_text(data, file))  # a quoted cell may contain line breaks
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        found = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = found
        missing = [name for name in columns if name not in found]
        if missing:
            raise AnnotationError(f"the header is {found}, without the columns {missing}.", file, 1)
        for row in reader:
            # DictReader stores surplus fields under the key None, and None for missing fields.
            if None in row or None in row.values():
                message = f"another number of fields than the header, which has {len(found)}."
                raise AnnotationError(message, file, reader.line_num)
            yield reader.line_num, {name: read_csv_cell(cell) for name, cell in row.items()}
    except csv.Error as error:
        raise AnnotationError(f"not readable as CSV: {error}.", file, reader.reader.line_num) from error


def _json_records(data: bytes, file: str) -> Iterator[tuple[int, Row]]:
    for line, text in enumerate(decode_text(data, file), start=1):
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise AnnotationError(f"not readable as JSON: {error}.", file, line) from error
        if not isinstance(record, dict):
            wanted = '{"path": ..., "label": ..., "start": ..., "end": ...}'
            raise AnnotationError(f"got {text[:80]!r}, wanted an object like {wanted}.", file, line)
        yield line, record


def _rename_columns(record: Row, line: int, file: str, is_table: bool) -> Row:
    """Returns a record with the names of `COLUMNS` and `OPTIONAL_COLUMNS`, for any names in `ALIASES`.

    `is_table` says that every record has all columns; a JSON object may omit those that do not apply.

    Raises:
        AnnotationError: if a column is missing, or two columns have the same meaning.
    """
    plain = {_plain_name(name): name for name in record}
    found: dict[str, str] = {}
    for meaning, aliases in ALIASES.items():
        names = [meaning] if meaning in plain else [name for name in aliases if name in plain]
        if len(names) > 1:
            meant = " and ".join(repr(plain[name]) for name in names)
            message = f"the columns {meant} can both be the {meaning}. Rename the right one to {meaning!r}."
            raise AnnotationError(message, file, 1 if is_table else line)
        if names:
            found[meaning] = plain[names[0]]
    values = {meaning: record[name] for meaning, name in found.items()}
    if "end" not in values and "start" in values and "duration" in values:
        values["event_duration"] = values.pop("duration")
    wanted = (
        ["path"] if not is_table else [name for name in COLUMNS if name != "end" or "event_duration" not in values]
    )
    missing = [name for name in wanted if name not in values]
    if missing:
        names = "; ".join(f"{name} (or {', '.join(ALIASES[name])})" for name in missing)
        message = f"the columns are {list(record)}, without {names}."
        raise AnnotationError(message, file, 1 if is_table else line)
    return values


def _plain_name(name: Any) -> str:
    """Returns a column's name in lower case, with underscores, without a unit in parentheses."""
    return re.sub(r"[\s-]+", "_", re.sub(r"\(.*?\)|\[.*?\]", "", str(name)).strip()).lower()


def _check_row(record: Row, line: int, file: str) -> _CheckedRow:
    names = (*COLUMNS, *OPTIONAL_COLUMNS, "event_duration")
    values = {name: "" if record.get(name) is None else str(record[name]).strip() for name in names}
    try:
        if not values["path"]:
            raise ValueError("The path is empty.")
        split = parse_split(values["split"]) if values["split"] else None
        duration = parse_seconds(values["duration"], "duration") if values["duration"] else None
        if values["event_duration"] and values["start"]:
            length = parse_seconds(values["event_duration"], "duration")
            values["end"] = str(parse_seconds(values["start"], "start") + length)
        # "./one.mp4" and "one.mp4" are one video, which may be in one split only.
        path = os.path.normpath(values["path"])
        return _CheckedRow(line, path, _check_event(values, line, duration), split, duration)
    except ValueError as error:
        raise AnnotationError(str(error), file, line) from error


def _check_event(values: Mapping[str, str], line: int, duration: float | None) -> NamedSpan | None:
    given = [name for name in ("label", "start", "end") if values[name]]
    if not given:
        return None
    if len(given) < 3:
        raise ValueError(
            f"Only {' and '.join(given)} given. An event needs label, start and end; a video without events none."
        )
    start, end = parse_seconds(values["start"], "start"), parse_seconds(values["end"], "end")
    check_span(start, end, duration)
    return NamedSpan(values["label"], start, end, line)


def _join_rows(rows: Sequence[_CheckedRow], file: str) -> VideoAnnotation:
    """Returns the annotation of the one video that all these rows name."""
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
    seen: dict[Any, int] = {}  # line by (label, start, end), or by None for a row without an event
    for row in rows:
        content = row.event and row.event[:3]
        if content in seen:
            raise AnnotationError(f"repeats line {seen[content]}. Remove one of them.", file, row.line)
        if seen and None in (content, *seen):
            message = f"a row without an event, but {row.path!r} has one in another row. Remove one of them."
            raise AnnotationError(message, file, row.line)
        seen[content] = row.line


def write_records(table: Any) -> bytes:
    """Returns JSON lines of a data frame (pandas, polars), an Arrow table, a data set, or a sequence of dictionaries.

    Missing values, such as NaN, become `null`.

    Raises:
        TypeError: for anything else.
    """
    if hasattr(table, "to_dicts"):  # polars
        records = table.to_dicts()
    elif hasattr(table, "to_pylist"):  # Arrow
        records = table.to_pylist()
    elif hasattr(table, "to_dict") and hasattr(table, "columns"):  # pandas
        records = table.to_dict("records")
    elif hasattr(table, "to_list") and hasattr(table, "column_names"):  # datasets
        records = table.to_list()
    else:
        records = table
    if not isinstance(records, Sequence) or not all(isinstance(record, Mapping) for record in records):
        raise TypeError(
            f"Got annotations of the type {type(table).__name__}. Pass the path of a file or folder, a data frame, or "
            "a list of dictionaries."
        )
    lines = [json.dumps({str(name): _json_value(value) for name, value in record.items()}) for record in records]
    return "".join(f"{line}\n" for line in lines).encode()


def _json_value(value: Any) -> str | float | int | bool | None:
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    # pandas.NA, NaT and NaN are the values that do not equal themselves.
    if value is None or (value == value) is not True:
        return None
    return value if isinstance(value, (str, int, float, bool)) else str(value)


def _is_table(path: Path) -> bool:
    return bool(split_tables(path)) if path.is_dir() else has_suffix(*SUFFIXES)(path)


READER = AnnotationReader(
    name="table",
    summary=".csv, .tsv, .jsonl: a table of path, label, start and end, or a folder of train.csv, test.csv and so on",
    recognizes=_is_table,
    read=read_video_table,
)
