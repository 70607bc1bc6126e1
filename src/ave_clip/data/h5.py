"""The h5 files that most published work on AVE starts from: features, row orders, label tables.

[`load_ave_features`] gives rows that feed `AVEClipForLocalization` directly (widths 128 and 512 by configuration). The
visual file has 8 GB, so rows are read one at a time through a handle that each process opens for itself. Labels are
rebuilt from the annotations; label tables are only compared with them.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from .annotations import AVE_CLIP_SECONDS, IGNORED_LABEL

if TYPE_CHECKING:
    from .source import AVESource

logger = logging.get_logger(__name__)

FEATURE_KEY = "avadataset"
ORDER_KEY = "order"
AUDIO_FILE = "audio_feature.h5"
VISUAL_FILE = "visual_feature.h5"
NOISY_AUDIO_FILE = "audio_feature_noisy.h5"
NOISY_VISUAL_FILE = "visual_feature_noisy.h5"
# How many dimensions a segment's features may have, and what they are.
AUDIO_SHAPES = {1: "the feature's width"}
VISUAL_SHAPES = {**AUDIO_SHAPES, 2: "locations and channels", 3: "height, width and channels"}


class H5FileError(ValueError):
    """An h5 file that is damaged or holds something else; the message names the file."""


class H5Array:
    """One array of an h5 file, read row by row; memory does not grow with the file.

    Every process opens the file for itself, since h5 handles do not survive a fork, and none travels by pickle.

    Args:
        path (`str` or `os.PathLike`): The file.
        key (`str`): Name of the array in the file.

    Raises:
        H5FileError: if the file is no complete h5 file, or has no such array.
    """

    def __init__(self, path: str | os.PathLike, key: str = FEATURE_KEY):
        self.path = os.fspath(path)
        self.key = key
        self._handle: Any = None
        self._process_id: int | None = None
        array = self._array()
        self.shape: tuple[int, ...] = array.shape
        if not np.issubdtype(array.dtype, np.number):
            raise H5FileError(f"{self.path}: {key!r} holds {array.dtype}, wanted numbers.")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> np.ndarray:
        """One row as float32; the files hold float64, of which nothing finer is needed."""
        return self._array().astype(np.float32)[row]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_process_id": None}

    def read_all(self) -> np.ndarray:
        """The whole array, for small files."""
        return self._array()[:]

    def _array(self) -> Any:
        if self._process_id != os.getpid():
            self._handle = _open_h5(self.path, self.path)
            self._process_id = os.getpid()
        return _find_array(self._handle, self.key, self.path)


@dataclass(frozen=True)
class _FeatureRow:
    """Where the features of a sample lie, and what is known about it."""

    audio: H5Array
    visual: H5Array
    index: int
    row: int
    video_id: str
    labels: tuple[int, ...]
    video_label: int


class AVEFeatures:
    """One split of AVE as precomputed features, for a `DataLoader`; made by [`load_ave_features`].

    A row is a dictionary: `row` (int), `video_id`, `image_features` `(num_segments, num_locations, D)` or, where the
    file is pooled, `(num_segments, D)`, `audio_features` `(num_segments, D)`, both float32, `labels`
    `(num_segments,)` (-100 where the truth is withheld) and `video_label`, the class of the whole video.

    Attributes:
        categories (`tuple[str, ...]`): Category names in index order, without background.
        image_feature_size, audio_feature_size (`int`): Widths, for the model's configuration.
        label_differences (`dict[str, list[int]]`): Rows in which a label file does not agree with the annotations.
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

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch  # here, since the builder of videos reads order files through this module and needs no torch

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
    """Read AVE's published features, lazily.

    Args:
        features_dir (`str` or `os.PathLike`): Folder of `audio_feature.h5` and `visual_feature.h5`. Label files in it
            (`labels.h5`, `right_labels.h5`, `mil_labels.h5`, `labels_closs.h5`) are compared with the annotations,
            and differences are reported by row.
        split (`str`, *optional*): "train", "validation" ("val" for short) or "test"; all of them by default.
        name (`str`): The configuration, as for [`load_ave`]. With "weak" the background samples of
            `audio_feature_noisy.h5` and `visual_feature_noisy.h5`, where both are there, join the train split.
        annotations_dir (`str` or `os.PathLike`, *optional*): Folder or zip of `Annotations.txt` and the splits;
            `features_dir` by default. Where there are none, `labels.h5` (or `right_labels.h5`) and the order files
            count, with names from `categories.txt`.
        num_segments (`int`): Length of a clip in seconds.
        audio_file (`str`), visual_file (`str`): Names of the feature files, such as `visual_feature_vec.h5`.

    Returns:
        [`AVEFeatures`] of one split, or a dictionary of all.

    Raises:
        FileNotFoundError: if a feature file or the annotations are missing.
        H5FileError: if a file is damaged, or its shape does not fit the annotations.
        ValueError: if the annotation files cannot be used, or there is no such split.
    """
    from .label_tables import has_label_tables_only, read_label_tables
    from .source import CONFIGURATIONS, read_source, warn_of_test_rows

    if name not in CONFIGURATIONS:
        raise ValueError(f"Got name={name!r}, wanted one of {list(CONFIGURATIONS)}.")
    folder = Path(features_dir)
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
    return splits if split is None else _pick_split(splits, split)


def compare_label_files(
    folder: str | os.PathLike, source: "AVESource", num_segments: int = AVE_CLIP_SECONDS
) -> dict[str, list[int]]:
    """Compare the label files of a folder with the labels rebuilt from the annotations, which count as the truth.

    Args:
        folder (`str` or `os.PathLike`): Where `labels.h5`, `right_labels.h5`, `mil_labels.h5` and `labels_closs.h5`
            are looked for.
        source (`AVESource`): The annotations.
        num_segments (`int`): Length of a clip in seconds.

    Returns:
        `dict[str, list[int]]`: For each file that is there, the rows that differ; a warning names them.

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


def read_order(data: bytes, num_rows: int) -> list[int]:
    """Row numbers of an order file.

    Args:
        data (`bytes`): Content of the file.
        num_rows (`int`): Number of rows there are.

    Raises:
        H5FileError: if it is no h5 file of whole row numbers, each at most once.
    """
    array = _find_array(_open_h5(io.BytesIO(data), "the file"), ORDER_KEY, "the file")
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise H5FileError(f"{ORDER_KEY!r} has the shape {array.shape} of {array.dtype}, wanted a list of row numbers.")
    rows = array[:].tolist()
    wrong = [row for row in rows if not 0 <= row < num_rows]
    if wrong:
        raise H5FileError(f"row {wrong[0]} does not exist; the annotations have rows 0 to {num_rows - 1}.")
    if len(set(rows)) < len(rows):
        repeated = next(row for row in rows if rows.count(row) > 1)
        raise H5FileError(f"row {repeated} comes {rows.count(repeated)} times.")
    return rows


def _pick_split(splits: dict[str, AVEFeatures], split: str) -> AVEFeatures:
    split = "validation" if split == "val" else split
    if split not in splits:
        raise ValueError(f"Got split={split!r}, wanted one of {list(splits)}.")
    return splits[split]


def _open_features(folder: Path, name: str, shape: tuple[int, int], shapes: Mapping[int, str]) -> H5Array:
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {name}. Give the folder of AVE's feature files, or the file's name."
        )
    array = H5Array(path)
    if array.shape[:2] != shape or len(array.shape) - 2 not in shapes:
        raise H5FileError(
            f"{path} has the shape {array.shape}, wanted {shape} for rows and segments, then "
            f"{' or '.join(shapes.values())}."
        )
    return array


def _clip_rows(
    source: "AVESource", split: str, audio: H5Array, visual: H5Array, num_segments: int, name: str
) -> list[_FeatureRow]:
    withheld = name == "weak" and split == "train"
    rows = []
    for row in source.splits[split]:
        labels = [IGNORED_LABEL] * num_segments if withheld else source.labels(row, num_segments)
        video_id = source.annotations[row].video_id
        rows.append(_FeatureRow(audio, visual, row, row, video_id, tuple(labels), source.category(row)))
    return rows


def _noisy_rows(
    folder: Path, source: "AVESource", audio: H5Array, visual: H5Array, num_segments: int
) -> list[_FeatureRow]:
    """The background samples of the weak setting; their videos' ids are lost, their labels are all background."""
    if not ((folder / NOISY_AUDIO_FILE).is_file() and (folder / NOISY_VISUAL_FILE).is_file()):
        logger.warning(
            f"{folder} holds no {NOISY_AUDIO_FILE} and {NOISY_VISUAL_FILE}: the weak setting goes without background "
            "samples."
        )
        return []
    num_rows = len(H5Array(folder / NOISY_AUDIO_FILE))
    files = {NOISY_AUDIO_FILE: AUDIO_SHAPES, NOISY_VISUAL_FILE: VISUAL_SHAPES}
    noisy = [_open_features(folder, file, (num_rows, num_segments), shapes) for file, shapes in files.items()]
    if (noisy[0].shape[2:], noisy[1].shape[2:]) != (audio.shape[2:], visual.shape[2:]):
        raise H5FileError(
            f"{folder}: the background features have the shapes {noisy[0].shape} and {noisy[1].shape}, which does not "
            f"go with {audio.shape} and {visual.shape}."
        )
    first = len(source.annotations)
    labels = (IGNORED_LABEL,) * num_segments
    return [
        _FeatureRow(noisy[0], noisy[1], index, first + index, f"noisy_{index:03d}", labels, source.background)
        for index in range(num_rows)
    ]


def _expected_tables(source: "AVESource", num_segments: int) -> dict[str, Callable[[], np.ndarray]]:
    """The label files as the annotations say they should be, each made when it is asked for."""
    labels = np.array([source.labels(row, num_segments) for row in range(len(source.annotations))])
    categories = np.array([source.category(row) for row in range(len(source.annotations))])
    one_hot = np.eye(source.background + 1, dtype=np.float32)
    return {
        "labels.h5": lambda: one_hot[labels],  # (N, T, C)
        "right_labels.h5": lambda: one_hot[labels],
        "mil_labels.h5": lambda: one_hot[categories],  # (N, C), background never set
        "labels_closs.h5": lambda: (labels != source.background).astype(np.float32),  # (N, T)
    }


def _open_h5(file: str | io.BytesIO, name: str) -> Any:
    import h5py

    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise H5FileError(f"{name} is no complete h5 file ({error}). Download it again.") from error


def _find_array(handle: Any, key: str, name: str) -> Any:
    array = handle.get(key)
    if array is None or not hasattr(array, "shape"):
        raise H5FileError(f"{name} holds {list(handle)}, wanted an array named {key!r}.")
    return array
