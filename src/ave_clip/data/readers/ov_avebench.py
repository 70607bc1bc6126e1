"""Reader of OV-AVEBench's annotations, as published at https://github.com/jasongief/OV-AVEL."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...core.events import group_segments
from ..annotations import AnnotationError, check_video_id
from .base import AnnotationReader, NamedSpan, ReaderOptions, VideoAnnotation, is_json_with, parse_split
from .json_files import errors_name_video, load_json
from .table import Row, read_csv

META_FILE = "ovave_dataset_meta.csv"
META_COLUMNS = ("split", "cls_name", "cls_type", "vid_name")
_SEEN = {"close": True, "open": False}  # values of `cls_type`


def read_ov_avebench(path: Path, options: ReaderOptions) -> tuple[list[VideoAnnotation], tuple[str, ...]]:
    """Reads `ovavel_dataset_anno.json` and `options.meta`, by default the `ovave_dataset_meta.csv` beside it.

    The JSON file has `{id: {"category", "label": "[0, 1, ...]"}}` with one flag per second, the table the split and
    the class of each video.

    Returns:
        The videos in the order of the table, and the categories in alphabetical order, which is the authors' order.

    Raises:
        AnnotationError: if a file has another structure, or they disagree; the message names the line or the video.
    """
    meta = options.meta or path.with_name(META_FILE)
    if not meta.is_file():
        raise ValueError(f"OV-AVEBench needs `meta` (--meta): its table of splits and classes, {META_FILE}.")
    flags_of = load_json(path)
    rows = list(_read_meta(meta))
    videos = []
    for line, row in rows:
        video_id = row["vid_name"]
        if video_id not in flags_of:
            raise AnnotationError(f"the video {video_id!r} is not in {path}.", str(meta), line)
        with errors_name_video(path, video_id):
            videos.append(_read_video(row, flags_of[video_id]))
    return videos, tuple(sorted({row["cls_name"] for _, row in rows}))


def _read_video(row: Row, entry: Mapping[str, Any]) -> VideoAnnotation:
    name, video_id = row["cls_name"], row["vid_name"]
    check_video_id(video_id)
    if entry["category"] != name:
        raise ValueError(f"The category is {entry['category']!r} here, but {name!r} in the table.")
    # The published file stores the list as text.
    flags = json.loads(entry["label"]) if isinstance(entry["label"], str) else entry["label"]
    if not flags or set(flags) - {0, 1}:
        raise ValueError(f"The label is {entry['label']!r}, wanted a list of 0 and 1, one per second.")
    spans = group_segments(flags, background=0)
    events = tuple(NamedSpan(name, float(start), float(end)) for _, start, end in spans)
    split, seen = parse_split(row["split"]), _SEEN[row["cls_type"]]
    return VideoAnnotation(video_id, split, events, float(len(flags)), category=name, seen=seen)


def _read_meta(path: Path) -> Iterator[tuple[int, Row]]:
    lines: dict[str, int] = {}
    for line, row in read_csv(path.read_bytes(), str(path), META_COLUMNS):
        video_id = row["vid_name"]
        if row["cls_type"] not in _SEEN:
            message = f"cls_type is {row['cls_type']!r}, wanted one of {list(_SEEN)}."
            raise AnnotationError(message, str(path), line)
        if video_id in lines:
            raise AnnotationError(f"the video {video_id!r} is in line {lines[video_id]} already.", str(path), line)
        lines[video_id] = line
        yield line, row


READER = AnnotationReader(
    name="ov_avebench",
    summary="OV-AVEBench: ten-second videos of seen and unseen classes",
    recognizes=is_json_with("category", "label"),
    read=read_ov_avebench,
    videos_by="id",
)
