"""AVE's published features as a data set: visual and audio features in h5 files, labels from the annotations.

[`load_ave_features`] returns rows that are inputs of `AVEClipForLocalization` (feature sizes 512 and 128, set in its
configuration). The visual file has 8 GB, so rows are read one at a time. Labels are rebuilt from the annotations;
label files are only compared with them.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from .annotations import AVE_CLIP_SECONDS
from .categories import IGNORED_LABEL
from .h5 import AUDIO_FILE, NOISY_AUDIO_FILE, NOISY_VISUAL_FILE, VISUAL_FILE, H5Array, H5FileError
from .label_tables import LabelTables, has_label_tables_only, read_label_tables
from .source import CONFIGURATIONS, AVESource, read_source, warn_of_test_rows

logger = logging.get_logger(__name__)

# The dimensions that the features of one segment may have, by their number.
AUDIO_SHAPES = {1: "the feature size"}
VISUAL_SHAPES = {**AUDIO_SHAPES, 2: "locations and channels", 3: "height, width and channels"}

Source = AVESource | LabelTables


@dataclass(frozen=True)
class _FeatureRow:
    """The position of a row's features in their files, and the row's labels."""

    audio: H5Array
    visual: H5Array
    index: int
    row: int
    video_id: str
    labels: tuple[int, ...]
    video_label: int


class AVEFeatures:
    """One split of AVE as precomputed features, for a `DataLoader`; made by [`load_ave_features`].

    A row is a dictionary: `row` (int), `video_id`, `image_features` `(num_segments, num_locations, D)` or, if the
    file is pooled, `(num_segments, D)`, `audio_features` `(num_segments, D)`, both float32, `labels`
    `(num_segments,)` (-100 where the truth is withheld) and `video_label`, the class of the whole video.

    Attributes:
        categories (`tuple[str, ...]`): Category names in index order, without background.
        image_feature_size, audio_feature_size (`int`): Feature sizes, for the model's configuration.
        label_differences (`dict[str, list[int]]`): Rows in which a label file differs from the annotations.
    """

    def __init__(
        self, rows: Sequence[_FeatureRow], categories: tuple[str, ...], label_differences: dict[str, list[int]]
    ):
        self._rows = list(rows)
        self.categories = categories
        self.label_differences = label_differences
        self.image_feature_size = self._rows[0].visual.shape[-1]
        self.audio_feature_size = self._rows[0].audio.shape[-1]

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def labels(self) -> list[tuple[int, ...]]:
        """The class ids of every row's segments, without reading a feature."""
        return [row.labels for row in self._rows]

    def labels_of(self, index: int) -> tuple[int, ...]:
        """Returns the class ids of a row's segments without reading its features."""
        return self._rows[index].labels

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch  # here: reading annotations and label tables does not need it

        row = self._rows[index]
        visual = row.visual[row.index]
        if visual.ndim == 4:
            visual = visual.reshape(visual.shape[0], -1, visual.shape[-1])  # (T, H * W, D)
        return {
            "row": row.row,
            "video_id": row.video_id,
            "image_features": torch.from_numpy(visual),
            "audio_features": torch.from_numpy(row.audio[row.index]),
            "labels": torch.tensor(row.labels),
            "video_label": torch.tensor(row.video_label),
        }


def load_ave_features(
    features_dir: str | os.PathLike,
    split: str | None = None,
    *,
    name: str = "full",
    annotations_dir: str | os.PathLike | None = None,
    num_segments: int = AVE_CLIP_SECONDS,
    audio_file: str = AUDIO_FILE,
    visual_file: str = VISUAL_FILE,
) -> AVEFeatures | dict[str, AVEFeatures]:
    """Loads AVE's published features; a row is read when it is accessed.

    Args:
        features_dir (`str` or `os.PathLike`): Folder of `audio_feature.h5` and `visual_feature.h5`. Label files in it
            (`labels.h5`, `right_labels.h5`, `mil_labels.h5`, `labels_closs.h5`) are compared with the annotations,
            and differences are reported by row.
        split (`str`, *optional*): "train", "validation" ("val" for short) or "test"; all of them by default.
        name (`str`): The configuration, as for [`load_ave`]. With "weak", the background clips of
            `audio_feature_noisy.h5` and `visual_feature_noisy.h5` are added to the train split if both files exist.
        annotations_dir (`str` or `os.PathLike`, *optional*): Folder or zip of `Annotations.txt` and the splits;
            `features_dir` by default. Without annotations, `labels.h5` (or `right_labels.h5`) and the order files
            are used, with names from `categories.txt`.
        num_segments (`int`): Duration of a clip in seconds.
        audio_file (`str`), visual_file (`str`): Names of the feature files, such as `visual_feature_vec.h5`.

    Returns:
        [`AVEFeatures`] of one split, or a dictionary of all.

    Raises:
        FileNotFoundError: if a feature file or the annotations are missing.
        H5FileError: if a file is damaged, or its shape does not match the annotations.
        ValueError: if the annotation files cannot be used, or there is no such split.
    """
    if name not in CONFIGURATIONS:
        raise ValueError(f"Got name={name!r}, wanted one of {list(CONFIGURATIONS)}.")
    folder = Path(features_dir)
    source: Source
    if annotations_dir is None and name != "cross_modality" and has_label_tables_only(folder):
        source = read_label_tables(folder, num_segments)
    else:
        source = read_source(annotations_dir or folder, num_segments, name == "cross_modality")
        if name == "cross_modality":
            warn_of_test_rows(source)
    shape = (len(source.annotations), num_segments)
    audio = _open_features(folder, audio_file, shape, AUDIO_SHAPES)
    visual = _open_features(folder, visual_file, shape, VISUAL_SHAPES)
    differences = compare_label_files(folder, source, num_segments)
    rows = {key: _clip_rows(source, key, audio, visual, num_segments, name) for key in source.splits}
    if name == "weak":
        rows.setdefault("train", []).extend(_noisy_rows(folder, source, audio, visual, num_segments))
    splits = {key: AVEFeatures(members, source.categories, differences) for key, members in rows.items() if members}
    if split is None:
        return splits
    split = "validation" if split == "val" else split
    if split not in splits:
        raise ValueError(f"Got split={split!r}, wanted one of {list(splits)}.")
    return splits[split]


def compare_label_files(
    folder: str | os.PathLike, source: Source, num_segments: int = AVE_CLIP_SECONDS
) -> dict[str, list[int]]:
    """Compares the label files of a folder with the labels rebuilt from the annotations, which are the truth.

    Args:
        folder (`str` or `os.PathLike`): Folder that may contain `labels.h5`, `right_labels.h5`, `mil_labels.h5` and
            `labels_closs.h5`.
        source (`AVESource` or `LabelTables`): The annotations.
        num_segments (`int`): Duration of a clip in seconds.

    Returns:
        `dict[str, list[int]]`: The rows that differ, for each file that exists; a warning names them.

    Raises:
        H5FileError: if a file is damaged or has another shape.
    """
    differences = {}
    for name, make_table in _expected_tables(source, num_segments).items():
        path = Path(folder) / name
        if not path.is_file():
            continue
        table, wanted = H5Array(path), make_table()
        if table.shape != wanted.shape:
            raise H5FileError(f"{path} has the shape {table.shape}, wanted {wanted.shape}.")
        differs = (table.read_all() != wanted).reshape(len(wanted), -1).any(axis=1)
        differences[name] = np.flatnonzero(differs).tolist()
        if differences[name]:
            logger.warning(
                f"{path} differs from the annotations in {len(differences[name])} rows: {differences[name][:20]}. "
                "The annotations are used."
            )
    return differences


def _open_features(folder: Path, name: str, shape: tuple[int, int], shapes: Mapping[int, str]) -> H5Array:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} contains no {name}. Give the folder of AVE's feature files, or the file's name."
        )
    array = H5Array(path)
    if array.shape[:2] != shape or len(array.shape) - 2 not in shapes:
        raise H5FileError(
            f"{path} has the shape {array.shape}, wanted {shape} for rows and segments, then "
            f"{' or '.join(shapes.values())}."
        )
    return array


def _clip_rows(
    source: Source, split: str, audio: H5Array, visual: H5Array, num_segments: int, name: str
) -> list[_FeatureRow]:
    withheld = name == "weak" and split == "train"
    rows = []
    for row in source.splits[split]:
        labels = [IGNORED_LABEL] * num_segments if withheld else source.labels(row, num_segments)
        video_id = source.annotations[row].video_id
        rows.append(_FeatureRow(audio, visual, row, row, video_id, tuple(labels), source.category(row)))
    return rows


def _noisy_rows(folder: Path, source: Source, audio: H5Array, visual: H5Array, num_segments: int) -> list[_FeatureRow]:
    """Returns the background clips of the weak setting. The files do not store their video ids."""
    if not ((folder / NOISY_AUDIO_FILE).is_file() and (folder / NOISY_VISUAL_FILE).is_file()):
        logger.warning(
            f"{folder} does not contain {NOISY_AUDIO_FILE} and {NOISY_VISUAL_FILE}: the weak setting has no "
            "background clips."
        )
        return []
    num_rows = len(H5Array(folder / NOISY_AUDIO_FILE))
    files = {NOISY_AUDIO_FILE: AUDIO_SHAPES, NOISY_VISUAL_FILE: VISUAL_SHAPES}
    noisy = [_open_features(folder, file, (num_rows, num_segments), shapes) for file, shapes in files.items()]
    if (noisy[0].shape[2:], noisy[1].shape[2:]) != (audio.shape[2:], visual.shape[2:]):
        raise H5FileError(
            f"{folder}: the background features have the shapes {noisy[0].shape} and {noisy[1].shape}, which do not "
            f"match {audio.shape} and {visual.shape}."
        )
    first = len(source.annotations)  # their row numbers continue those of the annotations
    labels = (IGNORED_LABEL,) * num_segments
    return [
        _FeatureRow(noisy[0], noisy[1], index, first + index, f"noisy_{index:03d}", labels, source.background)
        for index in range(num_rows)
    ]


def _expected_tables(source: Source, num_segments: int) -> dict[str, Callable[[], np.ndarray]]:
    """Returns the label files as they follow from the annotations; functions, since few folders have all of them."""
    labels = np.array([source.labels(row, num_segments) for row in range(len(source.annotations))])
    categories = np.array([source.category(row) for row in range(len(source.annotations))])
    one_hot = np.eye(source.background + 1, dtype=np.float32)
    return {
        "labels.h5": lambda: one_hot[labels],  # (N, T, C)
        "right_labels.h5": lambda: one_hot[labels],
        "mil_labels.h5": lambda: one_hot[categories],  # (N, C), background never set
        "labels_closs.h5": lambda: (labels != source.background).astype(np.float32),  # (N, T)
    }
