"""The AVE data set as a `datasets` builder: `load_ave(folder_or_zip)` gives what `load_dataset` used to give.

Loading scripts are gone from `datasets`; a builder class in a package is their successor. The builder reads
annotations and looks up video files, and decodes nothing: a row holds the video's path, decoded on access. Rows are
keyed by their number in `Annotations.txt`, since video ids repeat.
"""

import itertools
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from transformers.utils import logging

from .annotations import Annotation, check_disjoint, match_split, parse_annotations, parse_categories, segment_labels
from .categories import AVE_CATEGORIES, background_index
from .storage import ANNOTATIONS_FILE, VIDEO_FOLDER, FolderStorage, VideoFile, ZipStorage, fingerprint, open_storage

logger = logging.get_logger(__name__)

CATEGORIES_FILE = "categories.txt"
SPLIT_FILES = {"train": "trainSet.txt", "validation": "valSet.txt", "test": "testSet.txt"}
# A number that many counts of nodes and workers divide: each then streams its own shards and decodes nothing twice.
NUM_STREAMING_SHARDS = 48


@dataclass
class AVEConfig(datasets.BuilderConfig):
    """Settings of the `AVE` builder.

    Attributes:
        num_segments (`int`): Length of a clip in seconds, one label each.
        on_missing (`str`): What to do about rows whose video is missing or empty: "raise" or "skip".
        video_folder (`str`): Folder of the videos, relative to `Annotations.txt`.
    """

    num_segments: int = 10
    on_missing: str = "raise"
    video_folder: str = VIDEO_FOLDER

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name of the cache folder: settings and content of the data, so that no two data sets share one."""
        if self.on_missing not in ("raise", "skip"):
            raise ValueError(f'Got on_missing={self.on_missing!r}, wanted "raise" or "skip".')
        storage = _open(self.data_dir)
        files = {name: storage.read(name) for name in (ANNOTATIONS_FILE, CATEGORIES_FILE, *SPLIT_FILES.values())}
        content = fingerprint(storage.name, files, storage.list_videos(self.video_folder))
        return super().create_config_id({**config_kwargs, "content": content}, custom_features)


class AVE(datasets.GeneratorBasedBuilder):
    """Builder of AVE and of every data set that lies in its layout.

    The layout is `Annotations.txt`, split files, the folder `AVE` of videos named by id, and for categories that are
    not AVE's a `categories.txt`. Use [`load_ave`] unless the builder itself is wanted.

    Example:
        >>> builder = AVE(data_dir="AVE_Dataset")  # doctest: +SKIP
        >>> builder.download_and_prepare()  # doctest: +SKIP
        >>> builder.as_dataset(split="test")  # doctest: +SKIP
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = AVEConfig
    BUILDER_CONFIGS = [AVEConfig(name="full", description="One class id per second.")]
    DEFAULT_CONFIG_NAME = "full"

    def _info(self) -> datasets.DatasetInfo:
        categories = read_categories(_open(self.config.data_dir))
        return datasets.DatasetInfo(
            description="Audio-visual events, one label per second.", features=ave_features(categories)
        )

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        source = read_source(self.config.data_dir, self.config.num_segments)
        videos = source.storage.list_videos(self.config.video_folder)
        examples = build_examples(source, videos, self.config)
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"chunks": _chunk(rows, NUM_STREAMING_SHARDS)})
            for split, rows in examples.items()
        ]

    def _generate_examples(self, chunks: list[list[dict[str, Any]]]) -> Iterator[tuple[int, dict[str, Any]]]:
        for chunk in chunks:
            for example in chunk:
                yield example["row"], example


@dataclass(frozen=True)
class AVESource:
    """The label side of a data set: everything the annotation files say.

    Attributes:
        storage (`FolderStorage` or `ZipStorage`): Where the files lie.
        categories (`tuple[str, ...]`): Category names in index order, without background.
        annotations (`list[Annotation]`): All rows.
        splits (`dict[str, list[int]]`): Row numbers of each split, in the split's order.
    """

    storage: FolderStorage | ZipStorage
    categories: tuple[str, ...]
    annotations: list[Annotation]
    splits: dict[str, list[int]]


def ave_features(categories: Sequence[str]) -> datasets.Features:
    """Columns of the data set.

    Args:
        categories (`Sequence[str]`): Category names in index order, without background.

    Returns:
        `datasets.Features`: `row`; `video_id`; `video` (undecoded: `{"path", "bytes"}`); `category`; `labels`, a class
        id per second with background last; `start` and `end` of the event in seconds; `duplicate_of`, the first row
        that shows the same video, or none; `leaks_into`, the other splits that show the same video.
    """
    return datasets.Features(
        {
            "row": datasets.Value("int64"),
            "video_id": datasets.Value("string"),
            "video": datasets.Video(decode=False),
            "category": datasets.ClassLabel(names=list(categories)),
            "labels": datasets.List(datasets.Value("int64")),
            "start": datasets.Value("float64"),
            "end": datasets.Value("float64"),
            "duplicate_of": datasets.Value("int64"),
            "leaks_into": datasets.List(datasets.Value("string")),
        }
    )


def read_categories(storage: FolderStorage | ZipStorage) -> tuple[str, ...]:
    """Category names of `categories.txt`, AVE's 28 where there is no such file."""
    data = storage.read(CATEGORIES_FILE)
    return AVE_CATEGORIES if data is None else parse_categories(data, CATEGORIES_FILE)


def read_source(data_dir: str | os.PathLike, num_segments: int = 10) -> AVESource:
    """Read the label side of a data set: categories, rows and splits, without looking at a video.

    Raises:
        AnnotationError: if a file cannot be used; the message names file and line.
    """
    storage = _open(data_dir)
    categories = read_categories(storage)
    annotations = parse_annotations(storage.read(ANNOTATIONS_FILE), categories, num_segments)
    return AVESource(storage, categories, annotations, read_splits(storage, annotations))


def read_splits(storage: FolderStorage | ZipStorage, annotations: Sequence[Annotation]) -> dict[str, list[int]]:
    """Row numbers of each split, in the split's order, from the split files.

    Raises:
        ValueError: if there is no split file.
        AnnotationError: if a split names a row that does not exist, or two splits share one.
    """
    contents = {split: storage.read(file) for split, file in SPLIT_FILES.items()}
    splits = {
        split: match_split(data, annotations, SPLIT_FILES[split])
        for split, data in contents.items()
        if data is not None
    }
    if not splits:
        raise ValueError(f"{storage.name} holds no split file. Wanted {', '.join(SPLIT_FILES.values())}.")
    check_disjoint(splits, storage.name)
    return splits


def build_examples(
    source: AVESource, videos: Mapping[str, VideoFile], config: AVEConfig
) -> dict[str, list[dict[str, Any]]]:
    """Examples of each split, in the split's order, of the rows whose video is there.

    Raises:
        FileNotFoundError: if videos are missing or empty and `config.on_missing` is "raise".
    """
    missing = [
        annotation
        for annotation in source.annotations
        if annotation.video_id not in videos or videos[annotation.video_id].size == 0
    ]
    if missing:
        _report_missing(missing, source, config)
    lost = {annotation.row for annotation in missing}
    first_rows = _first_rows(source.annotations)
    leaks = find_leaks(source)
    background = background_index(source.categories)
    index_of = {name: index for index, name in enumerate(source.categories)}

    def example(row: int, split: str) -> dict[str, Any]:
        annotation = source.annotations[row]
        category = index_of[annotation.category]
        first = first_rows[annotation.video_id]
        return {
            "row": row,
            "video_id": annotation.video_id,
            "video": videos[annotation.video_id].path,
            "category": category,
            "labels": segment_labels(annotation, category, config.num_segments, background),
            "start": annotation.start,
            "end": annotation.end,
            "duplicate_of": None if first == row else first,
            "leaks_into": [other for other in leaks[annotation.video_id] if other != split],
        }

    return {split: [example(row, split) for row in rows if row not in lost] for split, rows in source.splits.items()}


def find_leaks(source: AVESource) -> dict[str, list[str]]:
    """The splits that show each video, by id: a video in more than one leaks from one to the other."""
    splits: dict[str, list[str]] = defaultdict(list)
    for split, rows in source.splits.items():
        for video_id in dict.fromkeys(source.annotations[row].video_id for row in rows):
            splits[video_id].append(split)
    return splits


def load_ave(
    data_dir: str | os.PathLike,
    split: str | None = None,
    streaming: bool = False,
    *,
    name: str = "full",
    num_segments: int = 10,
    on_missing: str = "raise",
    video_folder: str = VIDEO_FOLDER,
    cache_dir: str | os.PathLike | None = None,
) -> "datasets.Dataset | datasets.DatasetDict | datasets.IterableDataset | datasets.IterableDatasetDict":
    """Load AVE, or a data set in its layout, from an unpacked folder or a zip.

    Args:
        data_dir (`str` or `os.PathLike`): The folder that holds `Annotations.txt`, the folder one above, or the zip.
        split (`str`, *optional*): "train", "validation" ("val" for short), "test", or a slice of one as in
            "train[:10%]"; all of them by default.
        streaming (`bool`): Read rows as they are asked for and write no cache.
        name (`str`): The configuration: "full" has one class id per second.
        num_segments (`int`): Length of a clip in seconds.
        on_missing (`str`): What to do about rows whose video is missing or empty: "raise", or "skip" with a report.
        video_folder (`str`): Folder of the videos, relative to `Annotations.txt`.
        cache_dir (`str` or `os.PathLike`, *optional*): Where built rows are kept; the cache of `datasets` by default.

    Returns:
        `datasets.Dataset` of one split, or a `datasets.DatasetDict` of all; their iterable twins when streaming.
        Columns as in [`ave_features`].

    Raises:
        FileNotFoundError: if `data_dir` does not exist, or videos are missing and `on_missing` is "raise".
        ValueError: if the annotation files cannot be used; the message names file and line.

    Example:
        >>> test = load_ave("AVE_Dataset.zip", split="test")  # doctest: +SKIP
        >>> test[0]["labels"]  # doctest: +SKIP
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    """
    builder = AVE(
        config_name=name,
        data_dir=os.fspath(data_dir),
        cache_dir=None if cache_dir is None else os.fspath(cache_dir),
        num_segments=num_segments,
        on_missing=on_missing,
        video_folder=os.fspath(video_folder),
    )
    split = "validation" if split == "val" else split
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _open(data_dir: str | os.PathLike | None) -> FolderStorage | ZipStorage:
    if data_dir is None:
        raise ValueError("AVE needs data_dir: the folder that holds Annotations.txt, or the zip.")
    return open_storage(data_dir)


def _first_rows(annotations: Sequence[Annotation]) -> dict[str, int]:
    first: dict[str, int] = {}
    for annotation in annotations:
        first.setdefault(annotation.video_id, annotation.row)
    return first


def _report_missing(missing: Sequence[Annotation], source: AVESource, config: AVEConfig) -> None:
    shown = ", ".join(f"{annotation.video_id} (row {annotation.row})" for annotation in missing[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    report = (
        f"The videos of {len(missing)} of {len(source.annotations)} rows are missing or empty in "
        f"{config.video_folder!r} of {source.storage.name}: {shown}{more}."
    )
    if config.on_missing == "raise":
        raise FileNotFoundError(f'{report} Add them, or pass on_missing="skip" to do without these rows.')
    logger.warning(f"{report} These rows are left out.")


def _chunk(rows: list[dict[str, Any]], num_chunks: int) -> list[list[dict[str, Any]]]:
    """Cut rows into at most `num_chunks` runs, in order, whose lengths differ by at most one."""
    num_chunks = max(1, min(num_chunks, len(rows)))
    bounds = [len(rows) * index // num_chunks for index in range(num_chunks + 1)]
    return [rows[start:end] for start, end in itertools.pairwise(bounds)]
