"""Reads h5 files: large arrays row by row, and the row orders of AVE's splits.

Most published work on AVE starts from such files. The names here are those of the published download.
"""

import io
import os
from typing import Any

import numpy as np

FEATURE_KEY = "avadataset"
ORDER_KEY = "order"
AUDIO_FILE = "audio_feature.h5"
VISUAL_FILE = "visual_feature.h5"
NOISY_AUDIO_FILE = "audio_feature_noisy.h5"
NOISY_VISUAL_FILE = "visual_feature_noisy.h5"
MAX_TABLE_BYTES = 2**30


class H5FileError(ValueError):
    """An h5 file that is damaged or contains something else; the message names the file."""


class H5Array:
    """One array of an h5 file, read row by row; memory does not grow with the file.

    Every process opens the file for itself: h5 handles do not survive a fork and cannot be pickled.

    Args:
        path (`str` or `os.PathLike`): The file.
        key (`str`): Name of the array in the file.

    Raises:
        H5FileError: if the file is not a complete h5 file, or has no such array.
    """

    def __init__(self, path: str | os.PathLike, key: str = FEATURE_KEY):
        self.path = os.fspath(path)
        self.key = key
        self._handle: Any = None
        self._process_id: int | None = None
        array = self._array()
        self.shape: tuple[int, ...] = array.shape
        if not np.issubdtype(array.dtype, np.number):
            raise H5FileError(f"{self.path}: {key!r} contains {array.dtype}, wanted numbers.")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, row: int) -> np.ndarray:
        """Returns one row as float32. The published files store float64, which no model needs."""
        return self._array().astype(np.float32)[row]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_process_id": None}

    def read_all(self) -> np.ndarray:
        """Returns the whole array, for small files.

        Raises:
            H5FileError: if it declares more than 1 GB: a small compressed file may declare any size.
        """
        array = self._array()
        if array.nbytes > MAX_TABLE_BYTES:
            raise H5FileError(
                f"{self.path}: {self.key!r} of shape {array.shape} has {array.nbytes / 1e6:,.0f} MB, but a table has "
                f"at most {MAX_TABLE_BYTES / 1e6:,.0f} MB."
            )
        return array[:]

    def _array(self) -> Any:
        if self._process_id != os.getpid():
            self._handle = _open_h5(self.path, self.path)
            self._process_id = os.getpid()
        return _find_array(self._handle, self.key, self.path)


def read_order(data: bytes, num_rows: int) -> list[int]:
    """Returns the row numbers in an order file.

    Args:
        data (`bytes`): Content of the file.
        num_rows (`int`): Number of rows of the data set.

    Raises:
        H5FileError: if it is not an h5 file of existing row numbers, each at most once.
    """
    array = _find_array(_open_h5(io.BytesIO(data), "the file"), ORDER_KEY, "the file")
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise H5FileError(f"{ORDER_KEY!r} has the shape {array.shape} of {array.dtype}, wanted a list of row numbers.")
    # Checked before anything is read: see `H5Array.read_all`.
    if len(array) > num_rows:
        raise H5FileError(f"{ORDER_KEY!r} has {len(array)} entries, but there are only {num_rows} rows.")
    rows = array[:].tolist()
    wrong = [row for row in rows if not 0 <= row < num_rows]
    if wrong:
        raise H5FileError(f"row {wrong[0]} does not exist; the annotations have rows 0 to {num_rows - 1}.")
    if len(set(rows)) < len(rows):
        repeated = next(row for row in rows if rows.count(row) > 1)
        raise H5FileError(f"row {repeated} comes {rows.count(repeated)} times.")
    return rows


def _open_h5(file: str | io.BytesIO, name: str) -> Any:
    import h5py

    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise H5FileError(f"{name} is not a complete h5 file ({error}). Download it again.") from error


def _find_array(handle: Any, key: str, name: str) -> Any:
    array = handle.get(key)
    if array is None or not hasattr(array, "shape"):  # a group has no shape
        raise H5FileError(f"{name} contains {list(handle)}, wanted an array named {key!r}.")
    return array
