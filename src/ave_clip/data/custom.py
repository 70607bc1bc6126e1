"""Your own videos, UnAV-100 and OV-AVEBench as the same kind of data set as AVE.

Annotation files become [`VideoAnnotation`]s (`video_tables`, `benchmarks`); here these find their videos and get one
label a segment, so that everything that works with [`load_ave`]'s rows works with these.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets

from ..segments import num_segments_for
from .annotations import AnnotationError, LabelledSpan, label_segments, parse_categories
from .benchmarks import read_ov_avebench, read_unav100
from .builder import EventBuilder, EventConfig, Example, LoadedDataset, as_text, event_features, load_events
from .categories import background_index, category_index
from .storage import CATEGORIES_FILE, VideoFile, fingerprint, list_videos_below, stat_video
from .video_tables import VideoAnnotation, check_overlaps, check_span, read_video_table

CONFIGURATIONS = {
    "table": "A CSV, TSV or JSONL file of path, label, start and end.",
    "unav100": "UnAV-100: untrimmed videos with overlapping events.",
    "ov_avebench": "OV-AVEBench: ten-second videos of seen and unseen classes.",
}


@dataclass
class EventVideosConfig(EventConfig):
    """Settings of the `EventVideos` builder, beside those of [`EventConfig`].

    Attributes:
        annotations (`str`, *optional*): The annotation file.
        meta (`str`, *optional*): OV-AVEBench's table of splits and classes.
        video_dir (`str`, *optional*): Folder of the videos; for a table, of the paths in it (its own by default).
        categories (`tuple[str, ...]`, *optional*): Category names in index order.
        segment_seconds (`float`): Length of a segment, one label each.
        overlap (`str`): What to do where events of one video overlap: "raise", or "longest" to let the class that
            covers most of a segment have it.
    """

    annotations: str | None = None
    meta: str | None = None
    video_dir: str | None = None
    categories: tuple[str, ...] | None = None
    segment_seconds: float = 1.0
    overlap: str = "raise"

    def fingerprint(self) -> str:
        """Hash of annotation files and of the videos they name."""
        if self.overlap not in ("raise", "longest"):
            raise ValueError(f'Got overlap={self.overlap!r}, wanted "raise" or "longest".')
        annotations = _file(self.annotations)
        paths = [annotations, annotations.parent / CATEGORIES_FILE, *([_file(self.meta)] if self.meta else [])]
        contents = {str(path): path.read_bytes() if path.is_file() else None for path in paths}
        videos, _ = read_annotations(self)
        found = find_videos(self, videos)
        return fingerprint(str(annotations), contents, {name: video for name, video in found.items() if video})


class EventVideos(EventBuilder):
    """Builder of data sets from annotation files of one's own; [`load_videos`] is the short way to use it."""

    BUILDER_CONFIG_CLASS = EventVideosConfig
    BUILDER_CONFIGS = [EventVideosConfig(name=name, description=text) for name, text in CONFIGURATIONS.items()]
    DEFAULT_CONFIG_NAME = "table"

    def _info(self) -> datasets.DatasetInfo:
        _, categories = read_annotations(self.config)
        features = event_features(categories, seen=self.config.name == "ov_avebench")
        return datasets.DatasetInfo(description=self.config.description, features=features)

    def read_examples(self) -> dict[str, list[Example]]:
        """Examples of each split, in the order of the annotation file."""
        videos, categories = read_annotations(self.config)
        found = find_videos(self.config, videos)
        examples: dict[str, list[Example]] = {}
        for row, video in enumerate(videos):
            example = build_example(row, video, found[video.name], categories, self.config)
            examples.setdefault(video.split, []).append(example)
        return examples


def load_videos(
    annotations: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    *,
    video_dir: str | os.PathLike | None = None,
    categories: Sequence[str] | None = None,
    segment_seconds: float = 1.0,
    overlap: str = "raise",
    on_missing: str = "raise",
    probe_videos: bool = False,
    cache_dir: str | os.PathLike | None = None,
) -> LoadedDataset:
    """Load videos of one's own from a CSV, TSV or JSONL file of `path, label, start, end`.

    Args:
        annotations (`str` or `os.PathLike`): The file; see `video_tables` for its columns.
        split (`str`, *optional*): As for [`load_ave`]. Rows without the column `split` are "train".
        streaming (`bool`): Read rows as they are asked for and write no cache.
        video_dir (`str` or `os.PathLike`, *optional*): Where the paths start; the file's folder by default.
        categories (`Sequence[str]`, *optional*): Category names in index order. By default those of a `categories.txt`
            beside the file, else the file's labels in alphabetical order.
        segment_seconds (`float`): Length of a segment, one label each.
        overlap (`str`): What to do where events of one video overlap: "raise", or "longest" to let the class that
            covers most of a segment have it.
        on_missing (`str`), probe_videos (`bool`), cache_dir: As for [`load_ave`].

    Returns:
        As [`load_ave`]. A video may have any length and several events; `events` lists them all.

    Raises:
        FileNotFoundError: if the file does not exist.
        MissingVideoError: if videos are missing and `on_missing` is "raise".
        AnnotationError: if a row cannot be used; the message names the line.
    """
    builder = EventVideos(
        config_name="table",
        cache_dir=as_text(cache_dir),
        annotations=as_text(annotations),
        video_dir=as_text(video_dir),
        categories=_names(categories),
        segment_seconds=segment_seconds,
        overlap=overlap,
        on_missing=on_missing,
        probe_videos=probe_videos,
    )
    return load_events(builder, split, streaming)


def load_unav100(
    annotations: str | os.PathLike,
    video_dir: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    *,
    categories: Sequence[str] | None = None,
    segment_seconds: float = 1.0,
    on_missing: str = "raise",
    cache_dir: str | os.PathLike | None = None,
) -> LoadedDataset:
    """Load UnAV-100 from `unav100_annotations.json` and a folder of videos named by id.

    Events overlap there: `events` has all of them, in `labels` the class that covers most of a segment has it.

    Args:
        annotations (`str` or `os.PathLike`): The JSON file.
        video_dir (`str` or `os.PathLike`): Folder of the videos, at any depth.
        split, streaming, segment_seconds, on_missing, cache_dir: As for [`load_videos`].
        categories (`Sequence[str]`, *optional*): Category names in index order, for a file that does not use all.

    Returns:
        As [`load_videos`].
    """
    builder = EventVideos(
        config_name="unav100",
        cache_dir=as_text(cache_dir),
        annotations=as_text(annotations),
        video_dir=as_text(video_dir),
        categories=_names(categories),
        segment_seconds=segment_seconds,
        overlap="longest",
        on_missing=on_missing,
    )
    return load_events(builder, split, streaming)


def load_ov_avebench(
    meta: str | os.PathLike,
    annotations: str | os.PathLike,
    video_dir: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    *,
    on_missing: str = "raise",
    cache_dir: str | os.PathLike | None = None,
) -> LoadedDataset:
    """Load OV-AVEBench from `ovave_dataset_meta.csv`, `ovavel_dataset_anno.json` and a folder of videos named by id.

    Args:
        meta (`str` or `os.PathLike`): The table of splits and classes.
        annotations (`str` or `os.PathLike`): The JSON file of labels.
        video_dir (`str` or `os.PathLike`): Folder of the videos, at any depth.
        split, streaming, on_missing, cache_dir: As for [`load_videos`].

    Returns:
        As [`load_videos`], with the column `seen`: whether the class occurs in training.
    """
    builder = EventVideos(
        config_name="ov_avebench",
        cache_dir=as_text(cache_dir),
        annotations=as_text(annotations),
        meta=as_text(meta),
        video_dir=as_text(video_dir),
        on_missing=on_missing,
    )
    return load_events(builder, split, streaming)


def read_annotations(config: EventVideosConfig) -> tuple[list[VideoAnnotation], tuple[str, ...]]:
    """The videos of a configuration's annotation file, and the category names in index order.

    Raises:
        AnnotationError: if the file cannot be used, a label is no category, or events overlap and may not.
    """
    file = _file(config.annotations)
    if config.name == "unav100":
        videos, categories = read_unav100(file.read_bytes(), str(file), config.categories)
    elif config.name == "ov_avebench":
        meta = _file(config.meta)
        videos, categories = read_ov_avebench(meta.read_bytes(), str(meta), file.read_bytes(), str(file))
    else:
        videos = read_video_table(file.read_bytes(), str(file))
        categories = config.categories or _table_categories(file, videos)
    for video in videos:
        _check_labels(video, categories, str(file))
        if config.overlap == "raise":
            check_overlaps(video.events, video.name, str(file))
    return videos, categories


def find_videos(config: EventVideosConfig, videos: Sequence[VideoAnnotation]) -> Mapping[str, VideoFile | None]:
    """The file of each video by its name: a path for a table, an id for the benchmarks; `None` where there is none."""
    if config.name == "table":
        base = Path(config.video_dir or _file(config.annotations).parent).expanduser().absolute()
        return {video.name: stat_video(os.path.normpath(base / video.name)) for video in videos}
    if config.video_dir is None:
        raise ValueError(f"{config.name} needs video_dir: the folder of the videos.")
    found = list_videos_below(config.video_dir)
    return {video.name: found.get(video.name) for video in videos}


def build_example(
    row: int, video: VideoAnnotation, file: VideoFile | None, categories: Sequence[str], config: EventVideosConfig
) -> Example:
    """One video as an example; `problem` says why its length cannot be told, if it cannot.

    Raises:
        AnnotationError: if an event ends behind the end of the video's file.
    """
    duration, problem = _duration(video, file)
    if duration is not None:
        _check_ends(video, duration, str(_file(config.annotations)))
    num_segments = 0 if duration is None else num_segments_for(duration, config.segment_seconds)
    spans = [LabelledSpan(category_index(event.label, categories), event.start, event.end) for event in video.events]
    labels = label_segments(spans, num_segments, background_index(categories), config.segment_seconds)
    example = {
        "row": row,
        "video_id": video.name,
        "video": file,
        "category": _main_category(video, spans, categories),
        "labels": labels,
        "start": spans[0].start if spans else None,
        "end": max(span.end for span in spans) if spans else None,
        "events": [span._asdict() for span in spans],
        "problem": problem,
    }
    return example if video.seen is None else {**example, "seen": video.seen}


def _duration(video: VideoAnnotation, file: VideoFile | None) -> tuple[float | None, str | None]:
    """Length of a video in seconds, as annotated or as its file says; what is wrong where neither tells."""
    if video.duration_seconds is not None:
        return video.duration_seconds, None
    if file is None or file.size == 0:
        return None, "missing" if file is None else "empty"
    from ..video_io import VideoReadError, probe_video

    try:
        duration = probe_video(file.path).duration_seconds
    except VideoReadError as error:
        return None, str(error)
    return (
        (duration, None) if duration > 0 else (None, "the file does not say how long it is: add a column `duration`")
    )


def _check_ends(video: VideoAnnotation, duration: float, file: str) -> None:
    for event in video.events:
        try:
            check_span(event.start, event.end, duration)
        except ValueError as error:
            raise AnnotationError(f"{video.name!r}: {error}", file, event.line) from error


def _main_category(video: VideoAnnotation, spans: Sequence[LabelledSpan], categories: Sequence[str]) -> int | None:
    if video.category is not None:
        return category_index(video.category, categories)
    seconds: Counter[int] = Counter()
    for span in spans:
        seconds[span.label] += span.end - span.start
    return max(seconds, key=lambda label: (seconds[label], -label)) if seconds else None


def _table_categories(file: Path, videos: Sequence[VideoAnnotation]) -> tuple[str, ...]:
    beside = file.parent / CATEGORIES_FILE
    if beside.is_file():
        return parse_categories(beside.read_bytes(), str(beside))
    names = sorted({event.label for video in videos for event in video.events})
    if not names:
        raise AnnotationError("no event at all, and no category. Pass `categories`.", str(file))
    return parse_categories("\n".join(names).encode(), str(file))


def _check_labels(video: VideoAnnotation, categories: Sequence[str], file: str) -> None:
    for event in video.events:
        try:
            category_index(event.label, categories)
        except ValueError as error:
            raise AnnotationError(f"{video.name!r}: {error}", file, event.line) from error


def _file(path: str | None) -> Path:
    if path is None:
        raise ValueError("The builder needs `annotations`, and OV-AVEBench `meta`: the annotation files.")
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise FileNotFoundError(f"Got the annotation file {path!r}, but there is none.")
    return file


def _names(categories: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(categories, str):
        raise ValueError(f"Got categories={categories!r}, wanted a list of names.")
    return None if categories is None else parse_categories("\n".join(categories).encode(), "categories")
