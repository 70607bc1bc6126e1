"""Recognizes video files by suffix and finds them in folders."""

import os
import re
from pathlib import Path

# Files with these suffixes are videos. Of several files with one stem, data sets use the suffix that comes first here.
VIDEO_SUFFIXES = (
    *(".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".flv", ".wmv"),
    *(".ogv", ".3gp"),
)


def find_video_files(directory: str | os.PathLike) -> tuple[list[str], int]:
    """Returns the videos in a folder and its subfolders, in natural order: `clip.mp4`, `clip2.mp4`, `clip10.mp4`.

    Hidden files and folders are ignored.

    Returns:
        `tuple[list[str], int]`: The paths, which begin with `directory`, and the number of other files.
    """
    paths, num_others = [], 0
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for path in (Path(folder) / name for name in names if not name.startswith(".")):
            if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file():
                paths.append(path)
            else:
                num_others += 1
    return [str(path) for path in sorted(paths, key=_natural_key)], num_others


def _natural_key(path: Path) -> list[list[str | int]]:
    # Splitting at numbers gives text and numbers in turn, so that equal positions can be compared.
    # The suffix is a part of its own: otherwise the "." of `clip.mp4` is compared with the "2" of `clip2.mp4`.
    names = (*path.parts[:-1], path.stem, path.suffix)
    return [[int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)] for name in names]
