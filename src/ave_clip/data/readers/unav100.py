"""Reader of UnAV-100's annotations, as published at https://github.com/ttgeng233/UnAV."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..annotations import AnnotationError, check_video_id
from .base import AnnotationReader, NamedSpan, ReaderOptions, VideoAnnotation, is_json_with, parse_split
from .json_files import errors_name_video, load_json


def read_unav100(path: Path, options: ReaderOptions) -> tuple[list[VideoAnnotation], tuple[str, ...]]:
    """Reads `unav100_annotations.json`: `{"database": {id: {"duration", "subset", "annotations": [...]}}}`.

    Events of UnAV-100 may overlap; all are kept.

    Args:
        path (`Path`): The file.
        options (`ReaderOptions`): With `categories` for a file that does not use all of them.

    Returns:
        The videos in the order of the file, and the categories, by default in the order of their `label_id`.

    Raises:
        AnnotationError: if the file has another structure, or an entry cannot be used; the message names the video.
    """
    database = load_json(path).get("database")
    if not isinstance(database, dict) or not database:
        raise AnnotationError('no videos: wanted {"database": {id: {...}}}.', str(path))
    names: dict[int, str] = {}
    videos = []
    for video_id, entry in database.items():
        with errors_name_video(path, video_id):
            videos.append(_read_video(video_id, entry, names))
    if options.categories is not None:
        return videos, options.categories
    if sorted(names) != list(range(len(names))):
        missing = sorted(set(range(max(names))) - set(names))
        message = f"no event has label_id {missing[0]}. Pass `categories` for a part of the data set."
        raise AnnotationError(message, str(path))
    return videos, tuple(names[index] for index in range(len(names)))


def _read_video(video_id: str, entry: Mapping[str, Any], names: dict[int, str]) -> VideoAnnotation:
    """Reads one entry; `names` collects the class name of each `label_id`."""
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
        events.append(NamedSpan(event["label"], start, end))
    events.sort(key=lambda event: event.start)
    # Some published events end a little after their video.
    return VideoAnnotation(video_id, parse_split(entry["subset"]), tuple(events), duration, may_end_late=True)


READER = AnnotationReader(
    name="unav100",
    summary="UnAV-100: untrimmed videos with overlapping events",
    recognizes=is_json_with("database"),
    read=read_unav100,
    videos_by="id",
    problem_type="multi_label",
)
