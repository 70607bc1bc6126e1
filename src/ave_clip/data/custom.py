"""Loads your own videos, UnAV-100 and OV-AVEBench as the same kind of data set as AVE.

Readers turn annotation files into [`VideoAnnotation`]s (`ave_clip.data.readers`). This module finds their videos and
gives each segment its label, so that everything that takes the rows of [`load_ave`] also takes these.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from ..core.categories import MULTI_LABEL, SINGLE_LABEL
from ..core.segments import num_segments_for
from ..core.text import first_few
from ..files import atomic_file
from .annotations import AnnotationError, LabelledSpan, check_distinct_names, parse_categories
from .builder import EventBuilder, EventConfig, Example, LoadedDataset, as_text, event_features, load_events
from .categories import BACKGROUND_LABEL, category_index
from .label_files import label_files_of, read_label_files
from .readers import annotation_readers
from .readers.base import AnnotationReader, NamedSpan, ReaderOptions, VideoAnnotation, check_overlaps, check_span
from .readers.table import split_tables, write_records
from .splitting import split_settings
from .storage import CATEGORIES_FILE, VideoFile, fingerprint, list_videos_below, stat_video
from .targets import ROUNDING_SECONDS, EventCounts, main_category

MAX_SHOWN = 10  # wrong labels in an error message
OWN_VIDEOS = "table"  # the builder configuration of a table or of label files, told apart by the file
CONFIGURATIONS = {
    OWN_VIDEOS: "Your own videos: a table of path, label, start and end, or label files of one video each.",
    **{reader.name: f"{reader.summary}." for reader in annotation_readers().values() if reader.videos_by == "id"},
}


@dataclass
class EventVideosConfig(EventConfig):
    """Settings of the `EventVideos` builder, in addition to those of [`EventConfig`].

    Attributes:
        annotations (`str`, *optional*): The annotation file.
        meta (`str`, *optional*): OV-AVEBench's table of splits and classes.
        video_dir (`str`, *optional*): Folder of the videos; for a table, the folder that its paths are relative to
            (by default the folder of the table).
        categories (`tuple[str, ...]`, *optional*): Category names in index order.
        overlap (`str`): With one label per segment, what to do where events of different classes overlap: "raise", or
            "longest" to label each segment with the class that covers most of it.
        tier (`str`, *optional*): Tier of ELAN's files.
    """

    annotations: str | None = None
    meta: str | None = None
    video_dir: str | None = None
    categories: tuple[str, ...] | None = None
    overlap: str = "raise"
    tier: str | None = None

    def fingerprint(self) -> str:
        """Returns a hash of the annotation files and of the videos that they name."""
        if self.overlap not in ("raise", "longest"):
            raise ValueError(f'Got overlap={self.overlap!r}, wanted "raise" or "longest".')
        annotations = _file(self.annotations)
        label_files = _label_files(annotations) if self.name == OWN_VIDEOS else {}
        paths = [*(label_files or files_of(annotations)), _categories_beside(annotations)]
        paths += [_file(self.meta)] if self.meta else []
        contents = {str(path): path.read_bytes() if path.is_file() else None for path in paths}
        videos, _ = read_annotations(self)
        found = find_videos(self, videos)
        return fingerprint(str(annotations), contents, {name: video for name, video in found.items() if video})


class EventVideos(EventBuilder):
    """Builder of data sets from annotation files; [`load_videos`] is the short way to use it."""

    BUILDER_CONFIG_CLASS = EventVideosConfig
    BUILDER_CONFIGS = [EventVideosConfig(name=name, description=text) for name, text in CONFIGURATIONS.items()]
    DEFAULT_CONFIG_NAME = OWN_VIDEOS

    def _info(self) -> datasets.DatasetInfo:
        videos, categories = read_annotations(self.config)
        seen = any(video.seen is not None for video in videos)
        features = event_features(categories, seen=seen, problem_type=self.config.problem_type)
        return datasets.DatasetInfo(description=self.config.description, features=features)

    def read_examples(self) -> dict[str, list[Example]]:
        """Returns the examples of each split, in the order of the annotation file."""
        videos, categories = read_annotations(self.config)
        found = find_videos(self.config, videos)
        counts = EventCounts(categories, self.config.problem_type, self.config.segment_seconds)
        examples: dict[str, list[Example]] = {}
        for row, video in enumerate(videos):
            example = build_example(row, video, found[video.name], counts, self.config)
            examples.setdefault(video.split, []).append(example)
        self.notes = counts.report()
        return examples


def load_videos(
    annotations: Any,
    split: str | None = None,
    streaming: bool = False,
    *,
    video_dir: str | os.PathLike | None = None,
    categories: Sequence[str] | None = None,
    problem_type: str = SINGLE_LABEL,
    segment_seconds: float = 1.0,
    overlap: str = "raise",
    tier: str | None = None,
    on_missing: str = "raise",
    probe_videos: bool = False,
    allow_outside: bool = False,
    split_files: Mapping[str, str | os.PathLike] | None = None,
    split_fractions: Sequence[float] | None = None,
    split_seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> LoadedDataset:
    """Loads your own videos from a table of `path, label, start, end`, or from label files of Audacity and ELAN.

    Args:
        annotations (`str`, `os.PathLike`, data frame or `list[dict]`): A CSV, TSV or JSONL file, a data frame of
            pandas or polars, or dictionaries, with the columns that `ave_clip.data.readers.table` explains; an
            Audacity label file (`.txt`), an ELAN file (`.eaf`), or a folder of them, one per video; or a folder of
            tables named after their splits, such as `train.csv` and `test.csv`.
        split (`str`, *optional*): As for [`load_ave`]. Rows without the column `split` are "train".
        streaming (`bool`): Read rows on demand and write no cache.
        video_dir (`str` or `os.PathLike`, *optional*): Folder that the paths are relative to; by default the file's
            folder, and the working directory for a data frame.
        categories (`Sequence[str]`, *optional*): Category names in index order. By default those of a `categories.txt`
            beside the file, else the file's labels in alphabetical order.
        problem_type (`str`): "single_label" for one label per segment, or "multi_label" for several events at once.
        segment_seconds (`float`): Duration of a segment.
        overlap (`str`): With one label per segment, what to do where events of different classes overlap: "raise", or
            "longest" to label each segment with the class that covers most of it.
        tier (`str`, *optional*): Tier of ELAN's files; by default "events", else the only one with annotations.
        on_missing (`str`), probe_videos (`bool`), cache_dir: As for [`load_ave`].
        allow_outside (`bool`): Accept videos outside `video_dir`: absolute paths, paths with `..` that lead out of it,
            links. Without it, these rows count as unreadable.
        split_files (`Mapping[str, str]`, *optional*): A file per split with one video per line, for annotations
            without splits.
        split_fractions (`Sequence[float]`, *optional*): Fractions of train, validation and test videos of a random
            split, which keeps all rows of a video together.
        split_seed (`int`): Seed of that split.

    Returns:
        As [`load_ave`]. A video may have any duration and several events; `events` lists all of them. Overlapping
        events of one class are joined. A warning counts the events that the labels do not show completely.

    Raises:
        FileNotFoundError: if the file does not exist.
        MissingVideoError: if videos are missing and `on_missing` is "raise".
        AnnotationError: if a row cannot be used; the message names the line.
        TypeError: if `annotations` has another type.
    """
    if not isinstance(annotations, (str, os.PathLike)):
        annotations = _saved_table(annotations, cache_dir)
        video_dir = os.getcwd() if video_dir is None else video_dir
    builder = EventVideos(
        config_name="table",
        cache_dir=as_text(cache_dir),
        annotations=as_text(annotations),
        video_dir=as_text(video_dir),
        categories=category_names(categories),
        problem_type=problem_type,
        segment_seconds=segment_seconds,
        overlap=overlap,
        tier=tier,
        on_missing=on_missing,
        probe_videos=probe_videos,
        allow_outside=allow_outside,
        **split_settings(split_files, split_fractions, split_seed),
    )
    return load_events(builder, split, streaming)


def load_unav100(
    annotations: str | os.PathLike,
    video_dir: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    *,
    categories: Sequence[str] | None = None,
    problem_type: str = MULTI_LABEL,
    segment_seconds: float = 1.0,
    on_missing: str = "raise",
    probe_videos: bool = False,
    allow_outside: bool = False,
    split_files: Mapping[str, str | os.PathLike] | None = None,
    split_fractions: Sequence[float] | None = None,
    split_seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> LoadedDataset:
    """Loads UnAV-100 from `unav100_annotations.json` and a folder of videos named by id.

    Its events overlap, so its labels are those of several events at once. With `problem_type="single_label"`, `labels`
    has the class that covers most of each segment, and a warning counts what is lost.

    Args:
        annotations (`str` or `os.PathLike`): The JSON file.
        video_dir (`str` or `os.PathLike`): Folder of the videos, at any depth.
        split, streaming, problem_type, segment_seconds, on_missing, probe_videos, allow_outside, split_files,
            split_fractions, split_seed, cache_dir: As for [`load_videos`].
        categories (`Sequence[str]`, *optional*): Category names in index order, for a file that does not use all of
            them.

    Returns:
        As [`load_videos`].
    """
    builder = EventVideos(
        config_name="unav100",
        cache_dir=as_text(cache_dir),
        annotations=as_text(annotations),
        video_dir=as_text(video_dir),
        categories=category_names(categories),
        problem_type=problem_type,
        segment_seconds=segment_seconds,
        overlap="longest",
        on_missing=on_missing,
        probe_videos=probe_videos,
        allow_outside=allow_outside,
        **split_settings(split_files, split_fractions, split_seed),
    )
    return load_events(builder, split, streaming)


def load_ov_avebench(
    meta: str | os.PathLike,
    annotations: str | os.PathLike,
    video_dir: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    *,
    problem_type: str = SINGLE_LABEL,
    segment_seconds: float = 1.0,
    on_missing: str = "raise",
    probe_videos: bool = False,
    allow_outside: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> LoadedDataset:
    """Loads OV-AVEBench from `ovave_dataset_meta.csv`, `ovavel_dataset_anno.json` and a folder of videos named by id.

    Args:
        meta (`str` or `os.PathLike`): The table of splits and classes.
        annotations (`str` or `os.PathLike`): The JSON file of labels.
        video_dir (`str` or `os.PathLike`): Folder of the videos, at any depth.
        split, streaming, problem_type, segment_seconds, on_missing, probe_videos, allow_outside, cache_dir: As for
            [`load_videos`].

    Returns:
        As [`load_videos`], with the column `seen`: whether the class occurs in training.
    """
    builder = EventVideos(
        config_name="ov_avebench",
        cache_dir=as_text(cache_dir),
        annotations=as_text(annotations),
        meta=as_text(meta),
        video_dir=as_text(video_dir),
        problem_type=problem_type,
        segment_seconds=segment_seconds,
        on_missing=on_missing,
        probe_videos=probe_videos,
        allow_outside=allow_outside,
    )
    return load_events(builder, split, streaming)


def read_annotations(config: EventVideosConfig) -> tuple[list[VideoAnnotation], tuple[str, ...]]:
    """Returns the videos of a configuration's annotation file, and the category names in index order.

    Raises:
        AnnotationError: if the file cannot be used, a label is not a category or "background", or events overlap and
            must not.
    """
    file = _file(config.annotations)
    meta = None if config.meta is None else _file(config.meta)
    options = ReaderOptions(config.categories, config.tier, meta)
    if config.name == OWN_VIDEOS:
        videos, categories = _read_own_annotations(file, config, options), config.categories
    else:
        videos, categories = annotation_readers()[config.name].read(file, options)
    categories = categories or _table_categories(file, videos)
    if BACKGROUND_LABEL in (name.strip().casefold() for name in categories):
        message = f"a class is called {BACKGROUND_LABEL!r}, as segments without an event are. Rename or remove it."
        raise AnnotationError(message, str(file))
    _check_labels(videos, categories, file)
    if config.overlap == "raise" and config.problem_type == SINGLE_LABEL:
        for video in videos:
            check_overlaps(video.events, video.name, str(file))
    return videos, categories


def _check_labels(videos: Sequence[VideoAnnotation], categories: Sequence[str], file: Path) -> None:
    """Checks that the label of every event is a category.

    Raises:
        AnnotationError: about one event, with the closest category; about several, with their lines.
    """
    wrong = [(video, event) for video in videos for event in video.events if event.label not in categories]
    if not wrong:
        return
    video, event = wrong[0]
    try:
        category_index(event.label, categories)
    except ValueError as error:
        message = f"{video.name!r}: {error}"
        if len(wrong) > 1:
            shown = first_few([_place_of(*each) for each in wrong], MAX_SHOWN)
            message += f" {len(wrong)} events have a label that is not in the list: {shown}."
        raise AnnotationError(message, str(file), event.line) from error


def _place_of(video: VideoAnnotation, event: NamedSpan) -> str:
    return f"{event.label!r} ({video.name if event.line is None else f'line {event.line}'})"


def _read_own_annotations(file: Path, config: EventVideosConfig, options: ReaderOptions) -> list[VideoAnnotation]:
    label_files = _label_files(file)
    if label_files:
        video_dir = None if config.video_dir is None else _video_base(config)
        return read_label_files(label_files, video_dir, options, config.allow_outside)
    own = [reader for reader in annotation_readers().values() if reader.videos_by != "id"]
    reader = next((reader for reader in own if reader.recognizes(file)), None)
    if reader is None:
        wanted = "; ".join(reader.summary for reader in own)
        raise AnnotationError(f"the suffix is {file.suffix.lower()!r}. Wanted: {wanted}.", str(file))
    return reader.read(file, options)[0]


def _label_files(path: Path) -> dict[Path, AnnotationReader]:
    """Returns the label files at a path; none for a table, or a folder of tables, which may contain other text."""
    return {} if path.is_dir() and split_tables(path) else label_files_of(path)


def find_videos(config: EventVideosConfig, videos: Sequence[VideoAnnotation]) -> Mapping[str, VideoFile | None]:
    """Returns the file of each video by the video's name, `None` where it is missing."""
    if config.name == OWN_VIDEOS:
        base = _video_base(config)
        within = None if config.allow_outside else base
        return {video.name: stat_video(os.path.normpath(base / video.name), within) for video in videos}
    if config.video_dir is None:
        raise ValueError(f"{config.name} needs video_dir: the folder of the videos.")
    found = list_videos_below(config.video_dir, config.allow_outside)
    return {video.name: found.get(video.name) for video in videos}


def build_example(
    row: int, video: VideoAnnotation, file: VideoFile | None, counts: EventCounts, config: EventVideosConfig
) -> Example:
    """Returns one video as an example; `problem` says why its duration is unknown, if it is.

    `counts` labels the segments, and counts the events of videos that can be read.

    Raises:
        AnnotationError: if an event ends after the end of the video's file.
    """
    duration, problem = _duration(video, file)
    if duration is not None:
        for event in video.events:
            try:
                check_span(event.start, event.end, None if video.may_end_late else duration)
            except ValueError as error:
                message = f"{video.name!r}: {error}"
                raise AnnotationError(message, str(_file(config.annotations)), event.line) from error
    num_segments = 0 if duration is None else num_segments_for(duration, config.segment_seconds)
    events = [
        LabelledSpan(category_index(event.label, counts.categories), event.start, event.end) for event in video.events
    ]
    labels: list = []
    if duration is not None and file is not None and problem is None:
        rounding = 0.0 if video.may_end_late else ROUNDING_SECONDS
        labels, events = counts.label(events, duration, num_segments, video.name, rounding)
    category = main_category(events) if video.category is None else category_index(video.category, counts.categories)
    example = {
        "row": row,
        "video_id": video.name,
        "video": file,
        "category": category,
        "labels": labels,
        "start": events[0].start if events else None,
        "end": max(event.end for event in events) if events else None,
        "events": [event._asdict() for event in events],
        "duration": duration,
        "problem": problem,
    }
    return example if video.seen is None else {**example, "seen": video.seen}


def _duration(video: VideoAnnotation, file: VideoFile | None) -> tuple[float | None, str | None]:
    """Returns the duration of a video in seconds, from the annotations or its file, or what is wrong with the file."""
    if video.duration_seconds is not None:
        return video.duration_seconds, None
    if file is None or file.size == 0 or file.outside is not None:
        return None, None  # `find_problems` reports it
    from ..core.video_io import VideoReadError, probe_video

    try:
        duration = probe_video(file.path).duration_seconds
    except VideoReadError as error:
        return None, str(error)
    if duration > 0:
        return duration, None
    return None, "the file does not state its duration: add a column `duration`"


def files_of(annotations: Path) -> list[Path]:
    """Returns the files that an annotation path stands for: itself, or the tables of a folder."""
    return [file for _, file in split_tables(annotations)] if annotations.is_dir() else [annotations]


def _video_base(config: EventVideosConfig) -> Path:
    """Returns the folder that the paths of a table are relative to."""
    return Path(config.video_dir or _categories_beside(_file(config.annotations)).parent).expanduser().absolute()


def _categories_beside(annotations: Path) -> Path:
    """Returns the path of the `categories.txt` that belongs to an annotation file or a folder of them."""
    return (annotations if annotations.is_dir() else annotations.parent) / CATEGORIES_FILE


def _saved_table(table: Any, cache_dir: str | os.PathLike | None) -> Path:
    """Writes a data frame to the cache, where the builder reads it, and users find the line that an error names."""
    data = write_records(table)
    folder = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "ave_clip_tables"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
    with atomic_file(path) as part:
        part.write_bytes(data)
    return path


def _table_categories(file: Path, videos: Sequence[VideoAnnotation]) -> tuple[str, ...]:
    """Returns the categories of `categories.txt`, else the labels that occur in alphabetical order."""
    beside = _categories_beside(file)
    if beside.is_file():
        return parse_categories(beside.read_bytes(), str(beside))
    events = [event for video in videos for event in video.events]
    check_distinct_names([(event.line, event.label) for event in events], str(file), may_repeat=True)
    names = sorted({event.label for event in events})
    if not names:
        raise AnnotationError("there are no events, so the categories are unknown. Pass `categories`.", str(file))
    return parse_categories("\n".join(names).encode(), str(file))


def _file(path: str | None) -> Path:
    if path is None:
        raise ValueError("The builder needs `annotations`, and OV-AVEBench `meta`: the annotation files.")
    file = Path(path).expanduser().absolute()
    if not file.exists():
        raise FileNotFoundError(f"The annotation file {path!r} does not exist.")
    return file


def category_names(categories: Sequence[str] | None) -> tuple[str, ...] | None:
    """Returns category names, checked; `None` for `None`.

    Raises:
        ValueError: if they are one text, or a name is empty, occurs twice or is "background".
    """
    if isinstance(categories, str):
        raise ValueError(f"Got categories={categories!r}, wanted a list of names.")
    return None if categories is None else parse_categories("\n".join(categories).encode(), "categories")
