"""The AVE data set as a `datasets` builder: `load_ave(folder_or_zip)` gives what `load_dataset` used to give.

Loading scripts are gone from `datasets`; a builder class in a package is their successor. The builder reads
annotations and looks up video files, and decodes nothing: a row holds the video's path, decoded on access. Rows are
keyed by their number in `Annotations.txt`, since video ids repeat.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from .annotations import AVE_CLIP_SECONDS, IGNORED_LABEL
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
from .storage import ANNOTATIONS_FILE, CATEGORIES_FILE, VIDEO_FOLDER, VideoFile, fingerprint, open_storage


@dataclass
class AVEConfig(EventConfig):
    """Settings of the `AVE` builder, beside those of [`EventConfig`].

    Attributes:
        num_segments (`int`): Length of a clip in seconds, one label each.
        video_folder (`str`): Folder of the videos, relative to `Annotations.txt`.
        background_folder (`str`, *optional*): With the configuration "weak", a folder of videos without any event, by
            the same rule; they join the train split.
    """

    num_segments: int = AVE_CLIP_SECONDS
    video_folder: str = VIDEO_FOLDER
    background_folder: str | None = None

    def fingerprint(self) -> str:
        """Hash of annotation files and video list."""
        storage = open_storage(self.data_dir)
        names = [ANNOTATIONS_FILE, CATEGORIES_FILE]
        names += [*SPLIT_FILES.values(), *ORDER_FILES.values(), *MATCH_ORDER_FILES.values()]
        videos = storage.list_videos(self.video_folder)
        if self.background_folder is not None:
            background = storage.list_videos(self.background_folder)
            videos |= {f"background/{video_id}": video for video_id, video in background.items()}
        return fingerprint(storage.name, {name: storage.read(name) for name in names}, videos)


class AVE(EventBuilder):
    """Builder of AVE and of every data set that lies in its layout; [`load_ave`] is the short way to use it.

    The layout is `Annotations.txt`, split files or order files, the folder `AVE` of videos named by id, and for
    categories that are not AVE's a `categories.txt`.

    Example:
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
            warn_of_test_rows(read_source(config.data_dir, config.num_segments, cross_modality=True))
        categories = read_categories(open_storage(config.data_dir))
        features = event_features(categories, video_level=config.name == "weak")
        return datasets.DatasetInfo(description=config.description, features=features)

    def read_examples(self) -> dict[str, list[Example]]:
        """Examples of each split, in the split's order."""
        config = self.config
        source = read_source(config.data_dir, config.num_segments, config.name == "cross_modality")
        videos = source.storage.list_videos(config.video_folder)
        examples = {
            split: [build_example(source, row, videos, config.num_segments) for row in rows]
            for split, rows in source.splits.items()
        }
        if config.name == "weak":
            _withhold_seconds(examples, source)
            examples.setdefault("train", []).extend(_background_examples(source, config))
        elif config.background_folder is not None:
            raise ValueError('background_folder is for the configuration "weak": pass name="weak", or leave it out.')
        return examples


def load_ave(
    data_dir: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    *,
    name: str = "full",
    num_segments: int = AVE_CLIP_SECONDS,
    on_missing: str = "raise",
    probe_videos: bool = False,
    video_folder: str | os.PathLike = VIDEO_FOLDER,
    background_folder: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> LoadedDataset:
    """Load AVE, or a data set in its layout, from an unpacked folder or a zip.

    The splits come from `trainSet.txt`, `valSet.txt` and `testSet.txt`, else from `train_order.h5` and its siblings;
    AVE itself, without either, gets its official split.

    Args:
        data_dir (`str` or `os.PathLike`): The folder that holds `Annotations.txt`, the folder one above, or the zip,
            which is read in place.
        split (`str`, *optional*): "train", "validation" ("val" for short), "test", or a slice of one as in
            "train[:10%]"; all of them by default.
        streaming (`bool`): Read rows as they are asked for and write no cache.
        name (`str`): The configuration. "full" has one class id per second. "weak" has the class of the whole video in
            `video_label` and hides the seconds of training rows. "cross_modality" uses the `_match` order files, whose
            train split holds supervised test rows.
        num_segments (`int`): Length of a clip in seconds.
        on_missing (`str`): What to do about rows whose video is missing or unreadable: "raise", or "skip" with a
            report.
        probe_videos (`bool`): Open every video to find unreadable ones, not only missing and empty files.
        video_folder (`str` or `os.PathLike`): Folder of the videos, relative to `Annotations.txt`.
        background_folder (`str` or `os.PathLike`, *optional*): With "weak", a folder of videos without events, which
            join the train split.
        cache_dir (`str` or `os.PathLike`, *optional*): Where built rows are kept; the cache of `datasets` by default.

    Returns:
        `datasets.Dataset` of one split, or a `datasets.DatasetDict` of all; their iterable twins when streaming.
        Columns as in [`event_features`].

    Raises:
        FileNotFoundError: if `data_dir` does not exist.
        MissingVideoError: if videos are missing and `on_missing` is "raise".
        ValueError: if the annotation files cannot be used; the message names file and line.

    Example:
        >>> load_ave("AVE_Dataset.zip", split="test")[0]["labels"]  # doctest: +SKIP
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    """
    builder = AVE(
        config_name=name,
        data_dir=as_text(data_dir),
        cache_dir=as_text(cache_dir),
        num_segments=num_segments,
        on_missing=on_missing,
        probe_videos=probe_videos,
        video_folder=as_text(video_folder),
        background_folder=as_text(background_folder),
    )
    return load_events(builder, split, streaming)


def check_videos(
    data_dir: str | os.PathLike, *, probe_videos: bool = True, video_folder: str | os.PathLike = VIDEO_FOLDER
) -> list[VideoProblem]:
    """The rows of a data set whose video is missing, empty or unreadable.

    Args:
        data_dir (`str` or `os.PathLike`): As for [`load_ave`].
        probe_videos (`bool`): Open every video; without it only missing and empty files are found.
        video_folder (`str` or `os.PathLike`): Folder of the videos, relative to `Annotations.txt`.

    Returns:
        `list[VideoProblem]`: One entry a row, with the reason.
    """
    storage = open_storage(data_dir)
    videos = storage.list_videos(os.fspath(video_folder))
    annotations = read_annotations(storage, read_categories(storage), num_segments=None)
    rows = ({"row": a.row, "video_id": a.video_id, "video": videos.get(a.video_id)} for a in annotations)
    return find_problems(rows, probe_videos)


def build_example(source: AVESource, row: int, videos: Mapping[str, VideoFile], num_segments: int) -> Example:
    """One row as an example; `video` is `None` where the video is missing."""
    annotation = source.annotations[row]
    return {
        "row": row,
        "video_id": annotation.video_id,
        "video": videos.get(annotation.video_id),
        "category": source.category(row),
        "labels": source.labels(row, num_segments),
        "start": annotation.start,
        "end": annotation.end,
        "events": [event._asdict() for event in source.events(row)],
    }


def _withhold_seconds(examples: Mapping[str, Sequence[Example]], source: AVESource) -> None:
    for split, rows in examples.items():
        for example in rows:
            example["video_label"] = example["category"]
            if split == "train":
                hidden: dict[str, Any] = {"start": None, "end": None, "events": None}
                example.update(hidden, labels=[IGNORED_LABEL] * len(example["labels"]))


def _background_examples(source: AVESource, config: AVEConfig) -> list[Example]:
    if config.background_folder is None:
        return []
    videos = source.storage.list_videos(config.background_folder)
    if not videos:
        raise ValueError(f"Got background_folder={config.background_folder!r}, but there is no video in it.")
    hidden = {"category": None, "start": None, "end": None, "events": None, "video_label": source.background}
    labels = [IGNORED_LABEL] * config.num_segments
    return [
        {"row": row, "video_id": video_id, "video": videos[video_id], "labels": labels, **hidden}
        for row, video_id in enumerate(sorted(videos), start=len(source.annotations))
    ]
