"""Readers of AVE's cousins: the annotation files of UnAV-100 and of OV-AVEBench, as published.

Both give the same [`VideoAnnotation`]s as a table of one's own does; videos are found by their ids.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..events import group_segments
from .annotations import AnnotationError, check_video_id, decode_text
from .video_tables import SPLIT_NAMES, NamedSpan, Row, VideoAnnotation, read_csv

OV_AVE_COLUMNS = ("split", "cls_name", "cls_type", "vid_name")
_OV_AVE_SEEN = {"close": True, "open": False}


def read_unav100(
    data: bytes, file: str, categories: Sequence[str] | None = None
) -> tuple[list[VideoAnnotation], tuple[str, ...]]:
    """Read `unav100_annotations.json`: `{"database": {id: {"duration", "subset", "annotations": [...]}}}`.

    Events of UnAV-100 may overlap; all are kept.

    Args:
        data (`bytes`): Content of the file.
        file (`str`): Its name.
        categories (`Sequence[str]`, *optional*): Category names in index order, for a file that does not use all.

    Returns:
        The videos in the file's order, and the categories, by default in the order of their `label_id`.

    Raises:
        AnnotationError: if the file has another form, or an entry cannot be used; the message names the video.
    """
    database = _load_json(data, file).get("database")
    if not isinstance(database, dict) or not database:
        raise AnnotationError('no videos: wanted {"database": {id: {...}}}.', file)
    names: dict[int, str] = {}
    videos = []
    for video_id, entry in database.items():
        with_place = _Place(file, video_id)
        videos.append(with_place(_unav_video, video_id, entry, names))
    if categories is not None:
        return videos, tuple(categories)
    if sorted(names) != list(range(len(names))):
        missing = sorted(set(range(max(names))) - set(names))
        message = f"no event has label_id {missing[0]}. Pass `categories` for a part of the data set."
        raise AnnotationError(message, file)
    return videos, tuple(names[index] for index in range(len(names)))


def read_ov_avebench(
    meta: bytes, meta_file: str, labels: bytes, labels_file: str
) -> tuple[list[VideoAnnotation], tuple[str, ...]]:
    """Read OV-AVEBench: `ovave_dataset_meta.csv` and `ovavel_dataset_anno.json`.

    Args:
        meta (`bytes`): Content of the table of `split, cls_name, cls_type, vid_name`.
        meta_file (`str`): Its name.
        labels (`bytes`): Content of `{id: {"category", "label": "[0, 1, ...]"}}`, one flag a second.
        labels_file (`str`): Its name.

    Returns:
        The videos in the table's order, and the categories in alphabetical order, as the authors count them.

    Raises:
        AnnotationError: if a file has another form, or they disagree; the message names line or video.
    """
    flags_of = _load_json(labels, labels_file)
    rows = list(_ov_ave_rows(meta, meta_file))
    videos = []
    for line, row in rows:
        entry = flags_of.get(row["vid_name"])
        if entry is None:
            raise AnnotationError(f"the video {row['vid_name']!r} is not in {labels_file}.", meta_file, line)
        with_place = _Place(labels_file, row["vid_name"])
        videos.append(with_place(_ov_ave_video, row, entry))
    return videos, tuple(sorted({row["cls_name"] for _, row in rows}))


class _Place:
    """Calls a function so that its `ValueError`s name the file and the video."""

    def __init__(self, file: str, video_id: str):
        self.place = f"{file}, video {video_id!r}"

    def __call__(self, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except (KeyError, TypeError) as error:
            message = f"an entry of another form ({type(error).__name__}: {error})."
            raise AnnotationError(message, self.place) from error
        except ValueError as error:
            raise AnnotationError(str(error), self.place) from error


def _unav_video(video_id: str, entry: Mapping[str, Any], names: dict[int, str]) -> VideoAnnotation:
    check_video_id(video_id)
    duration = float(entry["duration"])
    events = []
    for event in entry["annotations"]:
        start, end = (float(time) for time in event["segment"])
        if start < 0:
            raise ValueError(f"The event starts at {start} s, before the video.")
        if not start < min(end, duration):
            raise ValueError(f"An event from {start} to {end} s, in a video of {duration} s.")
        if names.setdefault(int(event["label_id"]), event["label"]) != event["label"]:
            raise ValueError(f"label_id {event['label_id']} is {event['label']!r}, before it was another label.")
        events.append(NamedSpan(event["label"], start, min(end, duration)))
    events.sort(key=lambda event: event.start)
    return VideoAnnotation(video_id, _split(entry["subset"]), tuple(events), duration)


def _ov_ave_video(row: Row, entry: Mapping[str, Any]) -> VideoAnnotation:
    check_video_id(row["vid_name"])
    if entry["category"] != row["cls_name"]:
        raise ValueError(f"The category is {entry['category']!r} here, but {row['cls_name']!r} in the table.")
    flags = json.loads(entry["label"]) if isinstance(entry["label"], str) else entry["label"]
    if not flags or set(flags) - {0, 1}:
        raise ValueError(f"The label is {entry['label']!r}, wanted a list of 0 and 1, one a second.")
    spans = group_segments(flags, background=0)
    events = tuple(NamedSpan(row["cls_name"], float(start), float(end)) for _, start, end in spans)
    seen = _OV_AVE_SEEN[row["cls_type"]]
    return VideoAnnotation(
        row["vid_name"], _split(row["split"]), events, float(len(flags)), category=row["cls_name"], seen=seen
    )


def _ov_ave_rows(data: bytes, file: str) -> Iterator[tuple[int, Row]]:
    lines: dict[str, int] = {}
    for line, row in read_csv(data, file, OV_AVE_COLUMNS):
        video_id = row["vid_name"]
        if row["cls_type"] not in _OV_AVE_SEEN:
            message = f"cls_type is {row['cls_type']!r}, wanted one of {list(_OV_AVE_SEEN)}."
            raise AnnotationError(message, file, line)
        if video_id in lines:
            raise AnnotationError(f"the video {video_id!r} stands in line {lines[video_id]} already.", file, line)
        lines[video_id] = line
        yield line, row


def _split(name: str) -> str:
    if name.lower() not in SPLIT_NAMES:
        raise ValueError(f"The subset is {name!r}, wanted train, validation or test.")
    return SPLIT_NAMES[name.lower()]


def _load_json(data: bytes, file: str) -> dict[str, Any]:
    try:
        content = json.loads("\n".join(decode_text(data, file)))
    except json.JSONDecodeError as error:
        raise AnnotationError(f"no readable JSON: {error.msg}.", file, error.lineno) from error
    if not isinstance(content, dict):
        raise AnnotationError(f"a JSON {type(content).__name__}, wanted an object.", file)
    return content
