"""The AVE data set as a `datasets` builder, which [`load_ave`] builds and opens.

`datasets` no longer runs loading scripts; a builder class in a package replaces them. The builder reads annotations
and looks up video files, but decodes nothing: a row contains the path of its video. The key of a row is its number in
`Annotations.txt`, since video ids repeat.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from ..core.categories import MULTI_LABEL, SINGLE_LABEL
from ..core.segments import num_segments_for
from .annotations import AVE_CLIP_SECONDS
from .builder import EventBuilder, EventConfig, Example, LoadedDataset, as_text, event_features, load_events
from .decoding import VideoProblem, find_problems
from .source import (
    CONFIGURATIONS,
    MATCH_ORDER_FILES,
    ORDER_FILES,
    SPLIT_FILES,
    AVESource,
    read_annotations,
    read_categories,
    read_source,
    warn_of_test_rows,
)
from .splitting import split_settings
from .storage import ANNOTATIONS_FILE, CATEGORIES_FILE, VIDEO_FOLDER, VideoFile, fingerprint, open_storage
from .targets import EventCounts, class_flags, unknown_labels


@dataclass
class AVEConfig(EventConfig):
    """Settings of the `AVE` builder, in addition to those of [`EventConfig`].

    Attributes:
        num_segments (`int`): Duration of a clip in seconds.
        video_folder (`str`): Folder of the videos, relative to `Annotations.txt`.
        background_folder (`str`, *optional*): With the configuration "weak", a folder of videos without events,
            relative to `Annotations.txt`; they are added to the train split.
    """

    num_segments: int = AVE_CLIP_SECONDS
    video_folder: str = VIDEO_FOLDER
    background_folder: str | None = None

    def fingerprint(self) -> str:
        """Returns a hash of the annotation files and the list of videos."""
        storage = open_storage(self.data_dir, self.allow_outside)
        names = [ANNOTATIONS_FILE, CATEGORIES_FILE]
        names += [*SPLIT_FILES.values(), *ORDER_FILES.values(), *MATCH_ORDER_FILES.values()]
        videos = storage.list_videos(self.video_folder)
        if self.background_folder is not None:
            background = storage.list_videos(self.background_folder)
            videos |= {f"background/{video_id}": video for video_id, video in background.items()}
        return fingerprint(storage.name, {name: storage.read(name) for name in names}, videos)


class AVE(EventBuilder):
    """Builder of AVE and of other data sets in its layout; [`load_ave`] is the short way to use it.

    The layout is `Annotations.txt`, split files or order files, the folder `AVE` of videos named by id, and
    `categories.txt` if the categories are not those of AVE.

    Examples:
        >>> builder = AVE(data_dir="AVE_Dataset")  # doctest: +SKIP
        >>> builder.download_and_prepare()  # doctest: +SKIP
        >>> builder.as_dataset(split="test")  # doctest: +SKIP
    """

    BUILDER_CONFIG_CLASS = AVEConfig
    BUILDER_CONFIGS = [AVEConfig(name=name, description=text) for name, text in CONFIGURATIONS.items()]
    DEFAULT_CONFIG_NAME = "full"

    def _info(self) -> datasets.DatasetInfo:
        config = self.config
        if config.name == "cross_modality":
            if config.problem_type == MULTI_LABEL:
                raise ValueError(
                    'name="cross_modality" has one event per row. Leave problem_type="multi_label" out, or pass '
                    'name="full".'
                )
            warn_of_test_rows(read_source(config.data_dir, config.num_segments, cross_modality=True))
        categories = read_categories(open_storage(config.data_dir))
        is_weak = config.name == "weak"
        features = event_features(categories, video_level=is_weak, problem_type=config.problem_type)
        return datasets.DatasetInfo(description=config.description, features=features)

    def read_examples(self) -> dict[str, list[Example]]:
        """Returns the examples of each split, in the split's order."""
        config = self.config
        is_cross_modality = config.name == "cross_modality"
        has_splits = config.split_files is None and config.split_fractions is None
        source = read_source(
            config.data_dir, config.num_segments, is_cross_modality, config.allow_outside, has_splits=has_splits
        )
        videos = source.storage.list_videos(config.video_folder)
        counts = EventCounts(source.categories, config.problem_type, config.segment_seconds)
        is_multi = config.problem_type == MULTI_LABEL
        examples = {
            split: [
                build_example(source, row, videos, config.num_segments, counts)
                for row in (_first_rows(source, rows) if is_multi else rows)
            ]
            for split, rows in source.splits.items()
        }
        repeats = None if is_cross_modality else source.describe_repeats(are_joined=is_multi)
        self.notes = [*filter(None, [repeats]), *counts.report()]
        if config.name == "weak":
            _withhold_labels(examples, counts)
            examples.setdefault("train", []).extend(_background_examples(source, config))
        elif config.background_folder is not None:
            raise ValueError('background_folder is for the configuration "weak": pass name="weak", or omit it.')
        return examples


def load_ave(
    data_dir: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    *,
    name: str = "full",
    num_segments: int = AVE_CLIP_SECONDS,
    problem_type: str = SINGLE_LABEL,
    segment_seconds: float = 1.0,
    on_missing: str = "raise",
    probe_videos: bool = False,
    video_folder: str | os.PathLike = VIDEO_FOLDER,
    background_folder: str | os.PathLike | None = None,
    allow_outside: bool = False,
    split_files: Mapping[str, str | os.PathLike] | None = None,
    split_fractions: Sequence[float] | None = None,
    split_seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> LoadedDataset:
    """Loads AVE, or a data set in its layout, from an unpacked folder or a zip.

    The splits are read from `trainSet.txt`, `valSet.txt` and `testSet.txt`, else from `train_order.h5`,
    `val_order.h5` and `test_order.h5`. AVE itself gets its official split if all of these are missing.

    Args:
        data_dir (`str` or `os.PathLike`): The folder that contains `Annotations.txt`, its parent folder, or the zip,
            which is not unpacked.
        split (`str`, *optional*): "train", "validation" ("val" for short), "test", or a slice of one as in
            "train[:10%]"; all of them by default.
        streaming (`bool`): Read rows on demand and write no cache.
        name (`str`): The configuration. "full" has one class id per second. "weak" has the class of the whole video in
            `video_label` and withholds the labels per second of training rows. "cross_modality" uses the `_match`
            order files, whose train split contains supervised test rows.
        num_segments (`int`): Duration of a clip in seconds.
        problem_type (`str`): "single_label": one row and one event per line, also where lines name the same video.
            "multi_label": one row per video of a split, with the events of all its lines.
        segment_seconds (`float`): Duration of a segment.
        on_missing (`str`): What to do with rows whose video is missing or unreadable: "raise", or "skip" with a
            report.
        probe_videos (`bool`): Open every video to find unreadable ones, in addition to missing and empty files.
        video_folder (`str` or `os.PathLike`): Folder of the videos, relative to `Annotations.txt`.
        background_folder (`str` or `os.PathLike`, *optional*): With "weak", a folder of videos without events, which
            are added to the train split.
        allow_outside (`bool`): Accept videos that are links to files outside `data_dir`. Without it, these rows count
            as unreadable.
        split_files, split_fractions, split_seed: As for [`load_videos`], for a data set without splits.
        cache_dir (`str` or `os.PathLike`, *optional*): Folder for built rows; the cache of `datasets` by default.

    Returns:
        `datasets.Dataset` of one split, or `datasets.DatasetDict` of all; `IterableDataset` and `IterableDatasetDict`
        when streaming. The columns are described in [`event_features`].

    Raises:
        FileNotFoundError: if `data_dir` does not exist.
        MissingVideoError: if videos are missing and `on_missing` is "raise".
        ValueError: if the annotation files cannot be used; the message names file and line.

    Examples:
        >>> load_ave("AVE_Dataset.zip", split="test")[0]["labels"]  # doctest: +SKIP
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    """
    builder = AVE(
        config_name=name,
        data_dir=as_text(data_dir),
        cache_dir=as_text(cache_dir),
        num_segments=num_segments,
        problem_type=problem_type,
        segment_seconds=segment_seconds,
        on_missing=on_missing,
        probe_videos=probe_videos,
        video_folder=as_text(video_folder),
        background_folder=as_text(background_folder),
        allow_outside=allow_outside,
        **split_settings(split_files, split_fractions, split_seed),
    )
    return load_events(builder, split, streaming)


def check_videos(
    data_dir: str | os.PathLike,
    *,
    probe_videos: bool = True,
    video_folder: str | os.PathLike = VIDEO_FOLDER,
    allow_outside: bool = False,
) -> list[VideoProblem]:
    """Returns the rows of a data set whose video is missing, empty or unreadable.

    Args:
        data_dir (`str` or `os.PathLike`): As for [`load_ave`].
        probe_videos (`bool`): Open every video; without it, only missing and empty files are found.
        video_folder (`str` or `os.PathLike`): Folder of the videos, relative to `Annotations.txt`.
        allow_outside (`bool`): As for [`load_ave`].

    Returns:
        `list[VideoProblem]`: One entry per row, with the reason.
    """
    storage = open_storage(data_dir, allow_outside)
    videos = storage.list_videos(os.fspath(video_folder))
    annotations = read_annotations(storage, read_categories(storage), num_segments=None)
    rows = ({"row": a.row, "video_id": a.video_id, "video": videos.get(a.video_id)} for a in annotations)
    return find_problems(rows, probe_videos)


def build_example(
    source: AVESource, row: int, videos: Mapping[str, VideoFile], num_segments: int, counts: EventCounts
) -> Example:
    """Returns one row as an example; `video` is `None` if the video is missing.

    `num_segments` is the duration in seconds; `counts` labels the segments and counts the events.
    """
    annotation = source.annotations[row]
    is_multi = counts.problem_type == MULTI_LABEL
    duration = float(num_segments)
    events = source.video_events(row) if is_multi else source.events(row)
    number = num_segments_for(duration, counts.segment_seconds)
    labels, events = counts.label(events, duration, number, annotation.video_id)
    category = source.category(row)
    start, end = float(annotation.start), float(annotation.end)
    if is_multi and events:
        start, end = events[0].start, max(event.end for event in events)
    return {
        "row": row,
        "video_id": annotation.video_id,
        "video": videos.get(annotation.video_id),
        "category": category,
        "labels": labels,
        "start": start,
        "end": end,
        "events": [event._asdict() for event in events],
        "duration": duration,
    }


def _first_rows(source: AVESource, rows: Sequence[int]) -> list[int]:
    """Returns the first row of each video of a split, in the split's order."""
    return list({source.annotations[row].video_id: row for row in reversed(rows)}.values())[::-1]


def _withhold_labels(examples: Mapping[str, Sequence[Example]], counts: EventCounts) -> None:
    """Adds `video_label` to all rows, and removes the labels per second of training rows."""
    is_multi = counts.problem_type == MULTI_LABEL
    for split, rows in examples.items():
        for example in rows:
            classes = {event["label"] for event in example["events"]}
            example["video_label"] = class_flags(classes, len(counts.categories)) if is_multi else example["category"]
            if split == "train":
                hidden: dict[str, Any] = {"start": None, "end": None, "events": None}
                length = len(example["labels"])
                example.update(hidden, labels=unknown_labels(length, len(counts.categories), counts.problem_type))


def _background_examples(source: AVESource, config: AVEConfig) -> list[Example]:
    if config.background_folder is None:
        return []
    videos = source.storage.list_videos(config.background_folder)
    if not videos:
        raise ValueError(f"Got background_folder={config.background_folder!r}, but the folder contains no video.")
    num_categories, duration = len(source.categories), float(config.num_segments)
    video_label = source.background if config.problem_type == SINGLE_LABEL else class_flags((), num_categories)
    hidden = {"category": None, "start": None, "end": None, "events": None, "video_label": video_label}
    length = num_segments_for(duration, config.segment_seconds)
    labels = unknown_labels(length, num_categories, config.problem_type)
    return [
        {
            "row": row,
            "video_id": video_id,
            "video": videos[video_id],
            "labels": labels,
            "duration": duration,
            **hidden,
        }
        for row, video_id in enumerate(sorted(videos), start=len(source.annotations))
    ]
