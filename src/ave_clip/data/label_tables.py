"""Labels of data sets in the layout of AVE's h5 files, without annotations: label tables and row orders.

labels.h5 or right_labels.h5   (N, T, C) one-hot, background last
mil_labels.h5                  (N, C) one-hot class of the whole clip, optional
train_order.h5, val_order.h5, test_order.h5
categories.txt                 names of the C - 1 event classes, optional
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from .annotations import check_disjoint, parse_categories
from .categories import background_index
from .h5 import H5Array, H5FileError, read_order
from .source import ORDER_FILES
from .storage import ANNOTATIONS_FILE, CATEGORIES_FILE

LABEL_TABLES = ("right_labels.h5", "labels.h5")
VIDEO_LABEL_TABLE = "mil_labels.h5"


@dataclass(frozen=True)
class UnnamedClip:
    """A row without a video id: its number is used instead."""

    video_id: str


@dataclass(frozen=True)
class LabelTables:
    """The labels of such a data set, with the interface of `AVESource` that [`load_ave_features`] uses.

    Attributes:
        categories (`tuple[str, ...]`): Category names in index order, without background.
        segment_labels (`np.ndarray` of shape `(N, T)`, int64): Class ids.
        video_labels (`np.ndarray` of shape `(N,)`, int64): Class ids of whole clips.
        splits (`dict[str, list[int]]`): Row numbers of each split.
    """

    categories: tuple[str, ...]
    segment_labels: np.ndarray
    video_labels: np.ndarray
    splits: dict[str, list[int]]

    @property
    def background(self) -> int:
        """Class id of background."""
        return background_index(self.categories)

    @cached_property
    def annotations(self) -> list[UnnamedClip]:
        """One entry per row."""
        return [UnnamedClip(f"row_{row}") for row in range(len(self.segment_labels))]

    def category(self, row: int) -> int:
        """Returns the class id of a whole clip."""
        return int(self.video_labels[row])

    def labels(self, row: int, num_segments: int) -> list[int]:
        """Returns the class id of each segment of a row."""
        return self.segment_labels[row, :num_segments].tolist()


def has_label_tables_only(folder: Path) -> bool:
    """Whether a folder contains label tables and no annotations."""
    return not (folder / ANNOTATIONS_FILE).exists() and any((folder / name).exists() for name in LABEL_TABLES)


def read_label_tables(folder: Path, num_segments: int) -> LabelTables:
    """Reads label tables, row orders and category names.

    Args:
        folder (`Path`): Folder of the files.
        num_segments (`int`): Number of segments of a clip.

    Raises:
        H5FileError: if a file is damaged, a table is not one-hot or has another shape, or there is no order file.
        AnnotationError: if `categories.txt` cannot be used.
    """
    path = next(folder / name for name in LABEL_TABLES if (folder / name).exists())
    labels = _read_one_hot(path, 3)
    table_shape = H5Array(path).shape
    if table_shape[1] != num_segments:
        raise H5FileError(f"{path} has labels of {table_shape[1]} segments, but the features have {num_segments}.")
    names = folder / CATEGORIES_FILE
    categories = tuple(f"class {index}" for index in range(table_shape[2] - 1))
    if names.exists():
        categories = parse_categories(names.read_bytes(), str(names))
    if len(categories) != table_shape[2] - 1:
        raise H5FileError(
            f"{path} has {table_shape[2]} columns, the last of them background, but {names} names {len(categories)} "
            f"event classes, wanted {table_shape[2] - 1}."
        )
    videos = _video_labels(folder, labels, table_shape[2])
    return LabelTables(categories, labels, videos, _read_splits(folder, len(labels)))


def _video_labels(folder: Path, labels: np.ndarray, num_labels: int) -> np.ndarray:
    path = folder / VIDEO_LABEL_TABLE
    if path.exists():
        videos = _read_one_hot(path, 2)
        if videos.shape != labels.shape[:1]:
            raise H5FileError(f"{path} has {len(videos)} rows, wanted {len(labels)}.")
        return videos
    # Without the table, a clip has the class of most of its event segments, and background only if it has no event.
    counts = (labels[..., None] == np.arange(num_labels)).sum(axis=1)  # (N, C)
    counts[:, -1] = ~counts[:, :-1].any(axis=1)
    return counts.argmax(axis=1)


def _read_one_hot(path: Path, num_dimensions: int) -> np.ndarray:
    table = H5Array(path)
    if len(table.shape) != num_dimensions:
        raise H5FileError(f"{path} has the shape {table.shape}, wanted {num_dimensions} dimensions, classes last.")
    values = table.read_all()
    wrong = np.argwhere((values.sum(axis=-1) != 1) | (values.max(axis=-1) != 1))
    if len(wrong):
        raise H5FileError(f"{path} is not one-hot at {wrong[0].tolist()}: exactly one class is 1, all others 0.")
    return values.argmax(axis=-1)


def _read_splits(folder: Path, num_rows: int) -> dict[str, list[int]]:
    splits = {}
    for split, name in ORDER_FILES.items():
        if (folder / name).exists():
            try:
                splits[split] = read_order((folder / name).read_bytes(), num_rows)
            except H5FileError as error:
                raise H5FileError(f"{folder / name}: {error}") from error
    if not splits:
        raise H5FileError(f"{folder} contains none of {', '.join(ORDER_FILES.values())}, which define the splits.")
    check_disjoint(splits, str(folder))
    return splits
