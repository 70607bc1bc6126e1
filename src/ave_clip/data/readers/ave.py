"""Reader of AVE's layout: `Annotations.txt`, the splits and the folder of videos, unpacked or in a zip."""

import os
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

from ..ave import load_ave
from ..builder import LoadedDataset
from ..h5 import VISUAL_FILE
from ..storage import ANNOTATIONS_FILE
from .base import DataSetReader


def is_ave(path: Path) -> bool:
    """Whether a path is a folder with `Annotations.txt`, the folder above it, or a zip of them.

    A folder of published features, which may contain the annotations too, belongs to the reader of features.
    """
    if path.is_dir():
        folders = [path, *(child for child in path.iterdir() if child.is_dir())]
        return not (path / VISUAL_FILE).is_file() and any((one / ANNOTATIONS_FILE).is_file() for one in folders)
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(PurePosixPath(name).name == ANNOTATIONS_FILE for name in file.namelist())


def _load(path: Path, split: str | None = None, *, video_dir: str | None = None, **options: Any) -> LoadedDataset:
    if video_dir is not None:
        options["video_folder"] = os.path.abspath(video_dir)
    return load_ave(path, split, **options)


READER = DataSetReader(
    name="ave",
    summary="AVE's layout: a folder or zip with Annotations.txt and the folder AVE of videos",
    recognizes=is_ave,
    load=_load,
    options=(
        *("name", "num_segments", "streaming", "video_dir", "background_folder", "problem_type", "segment_seconds"),
        *("on_missing", "probe_videos", "allow_outside", "split_files", "split_fractions", "split_seed", "cache_dir"),
    ),
)
