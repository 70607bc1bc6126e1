"""The labels of AVE: categories, rows and splits from the annotation files. Videos are not needed."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from transformers.utils import logging

from .annotations import (
    AVE_CLIP_SECONDS,
    Annotation,
    AnnotationError,
    LabelledSpan,
    check_disjoint,
    label_segments,
    match_split,
    parse_annotations,
    parse_categories,
)
from .categories import AVE_CATEGORIES, background_index
from .h5 import read_order
from .official_split import official_split
from .storage import ANNOTATIONS_FILE, CATEGORIES_FILE, FolderStorage, ZipStorage, open_storage

logger = logging.get_logger(__name__)

SPLIT_FILES = {"train": "trainSet.txt", "validation": "valSet.txt", "test": "testSet.txt"}
ORDER_FILES = {"train": "train_order.h5", "validation": "val_order.h5", "test": "test_order.h5"}
MATCH_ORDER_FILES = {
    "train": "train_order_match.h5",
    "validation": "val_order_match.h5",
    "test": "test_order_match.h5",
}
CONFIGURATIONS = {
    "full": "One class id per second, for supervised localization.",
    "weak": "The class of the whole video; the labels per second of training rows are withheld.",
    "cross_modality": "The split of the cross-modality task, which overlaps the supervised test split.",
}


@dataclass(frozen=True)
class AVESource:
    """The content of a data set's annotation files.

    Attributes:
        storage (`FolderStorage` or `ZipStorage`): Access to the files.
        categories (`tuple[str, ...]`): Category names in index order, without background.
        annotations (`list[Annotation]`): All rows.
        splits (`dict[str, list[int]]`): Row numbers of each split, in the split's order.
    """

    storage: FolderStorage | ZipStorage
    categories: tuple[str, ...]
    annotations: list[Annotation]
    splits: dict[str, list[int]]

    @property
    def background(self) -> int:
        """Class id of background."""
        return background_index(self.categories)

    @cached_property
    def rows_of(self) -> dict[str, list[int]]:
        """Row numbers of each video, in order."""
        rows: dict[str, list[int]] = {}
        for annotation in self.annotations:
            rows.setdefault(annotation.video_id, []).append(annotation.row)
        return rows

    def describe_repeats(self, are_joined: bool) -> str | None:
        """Returns a message about videos with several rows, which are joined or labelled like different videos."""
        repeated = [rows for rows in self.rows_of.values() if len(rows) > 1]
        if not repeated:
            return None
        first = [self.annotations[row] for row in repeated[0]]
        lines = " and ".join(str(annotation.line) for annotation in first)
        found = (
            f"{len(repeated)} videos of {ANNOTATIONS_FILE} have several rows, such as {first[0].video_id} in "
            f"lines {lines}."
        )
        if are_joined:
            return f"{found} The rows of a video are joined: it has the events of all of them."
        return (
            f"{found} Each row is a clip with its own event and background elsewhere, as published. "
            'problem_type="multi_label" (--problem_type multi_label) joins the rows of a video.'
        )

    def video_events(self, row: int) -> list[LabelledSpan]:
        """Returns the events of all rows that show the same video as this row."""
        return [event for other in self.rows_of[self.annotations[row].video_id] for event in self.events(other)]

    def events(self, row: int) -> list[LabelledSpan]:
        """Returns the event of a row as a list, which is empty if the event starts and ends at the same second."""
        annotation = self.annotations[row]
        if annotation.start == annotation.end:
            return []
        return [LabelledSpan(self.category(row), float(annotation.start), float(annotation.end))]

    def category(self, row: int) -> int:
        """Returns the class id of a row's category."""
        return self.categories.index(self.annotations[row].category)

    def labels(self, row: int, num_segments: int) -> list[int]:
        """Returns the class id of each second of a row."""
        return label_segments(self.events(row), num_segments, self.background)


def read_source(
    data_dir: str | os.PathLike,
    num_segments: int = AVE_CLIP_SECONDS,
    cross_modality: bool = False,
    allow_outside: bool = False,
    has_splits: bool = True,
) -> AVESource:
    """Reads the categories, rows and splits of a data set.

    Args:
        data_dir (`str` or `os.PathLike`): As for [`load_ave`].
        num_segments (`int`): Duration of a clip in seconds.
        cross_modality (`bool`): Use the split of the cross-modality task.
        allow_outside (`bool`): As for [`load_ave`].
        has_splits (`bool`): Whether the data set must define splits; otherwise all rows are "train" if it does not.

    Raises:
        AnnotationError: if a file cannot be used; the message names file and line.
    """
    storage = open_storage(data_dir, allow_outside)
    categories = read_categories(storage)
    annotations = read_annotations(storage, categories, num_segments)
    if not has_splits and not cross_modality and not _supervised_splits(storage, annotations):
        return AVESource(storage, categories, annotations, {"train": [row.row for row in annotations]})
    read = read_match_splits if cross_modality else read_splits
    return AVESource(storage, categories, annotations, read(storage, annotations))


def read_categories(storage: FolderStorage | ZipStorage) -> tuple[str, ...]:
    """Returns the category names of `categories.txt`, or those of AVE if the file does not exist."""
    data = storage.read(CATEGORIES_FILE)
    return AVE_CATEGORIES if data is None else parse_categories(data, storage.locate(CATEGORIES_FILE))


def read_splits(storage: FolderStorage | ZipStorage, annotations: Sequence[Annotation]) -> dict[str, list[int]]:
    """Returns the row numbers of each split in order, from split files, else order files, else AVE's official split.

    Raises:
        ValueError: if none of these is available.
        AnnotationError: if a split names a row that does not exist, or two splits share one.
    """
    splits = _supervised_splits(storage, annotations)
    if not splits:
        wanted = ", ".join([*SPLIT_FILES.values(), *ORDER_FILES.values()])
        raise ValueError(f"{storage.name} does not define splits, and its rows are not AVE's. Wanted: {wanted}.")
    check_disjoint(splits, storage.name)
    return splits


def read_match_splits(storage: FolderStorage | ZipStorage, annotations: Sequence[Annotation]) -> dict[str, list[int]]:
    """Returns the row numbers of each split of the cross-modality task.

    Raises:
        ValueError: if there is no `_match` order file.
        AnnotationError: if a file names a row that does not exist, or two splits share one.
    """
    splits = _read_orders(storage, MATCH_ORDER_FILES, len(annotations))
    if not splits:
        wanted = ", ".join(MATCH_ORDER_FILES.values())
        raise ValueError(f"{storage.name} has no split of the cross-modality task. Wanted: {wanted}.")
    check_disjoint(splits, storage.name)
    return splits


def warn_of_test_rows(source: AVESource) -> None:
    """Warns that the train split of the cross-modality task contains test rows of the supervised task."""
    held_out = set(_supervised_splits(source.storage, source.annotations).get("test", ()))
    shared = len(held_out & set(source.splits.get("train", ())))
    logger.warning(
        f"The train split of the cross-modality task contains {shared} of the {len(held_out)} test rows of the "
        "supervised task. Do not report supervised accuracy with a model trained on it."
    )


def read_annotations(
    storage: FolderStorage | ZipStorage, categories: Sequence[str], num_segments: int | None
) -> list[Annotation]:
    """Returns all rows of `Annotations.txt`, checked.

    Raises:
        AnnotationError: if a row cannot be used; the message names the line.
    """
    data = storage.read(ANNOTATIONS_FILE) or b""
    return parse_annotations(data, categories, num_segments, storage.locate(ANNOTATIONS_FILE))


def _supervised_splits(storage: FolderStorage | ZipStorage, annotations: Sequence[Annotation]) -> dict[str, list[int]]:
    files = _read_all(storage, SPLIT_FILES)
    if files:
        return {
            split: match_split(data, annotations, storage.locate(SPLIT_FILES[split])) for split, data in files.items()
        }
    return _read_orders(storage, ORDER_FILES, len(annotations)) or official_split(annotations) or {}


def _read_all(storage: FolderStorage | ZipStorage, files: Mapping[str, str]) -> dict[str, bytes]:
    contents = {split: storage.read(name) for split, name in files.items()}
    return {split: data for split, data in contents.items() if data is not None}


def _read_orders(storage: FolderStorage | ZipStorage, files: Mapping[str, str], num_rows: int) -> dict[str, list[int]]:
    orders = {}
    for split, data in _read_all(storage, files).items():
        try:
            orders[split] = read_order(data, num_rows)
        except ValueError as error:
            raise AnnotationError(str(error), storage.locate(files[split])) from error
    return orders
