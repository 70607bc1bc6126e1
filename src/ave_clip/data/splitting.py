"""Splits of data sets that do not define them: from files that list videos, or a seeded split by video.

A video is never in two splits: rows of the same video, under any name, stay together.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .annotations import AnnotationError, decode_text

SPLITS = ("train", "validation", "test")
Row = TypeVar("Row", bound=Mapping[str, Any])


def split_settings(
    files: Mapping[str, str | os.PathLike] | None, fractions: Sequence[float] | None, seed: int
) -> dict[str, Any]:
    """Returns the arguments of a split as the settings of a builder, which its cache depends on."""
    return {
        "split_files": None if files is None else {split: os.path.abspath(path) for split, path in files.items()},
        "split_fractions": None if fractions is None else tuple(map(float, fractions)),
        "split_seed": seed,
    }


def assign_splits(
    examples: Mapping[str, list[Row]],
    split_files: Mapping[str, str] | None,
    split_fractions: Sequence[float] | None,
    split_seed: int,
) -> tuple[dict[str, list[Row]], list[str]]:
    """Moves the rows to the splits that files or fractions define; with neither, they stay where they are.

    Args:
        examples (`Mapping[str, list]`): Rows by split, each with `video_id` and `video`.
        split_files (`Mapping[str, str]`, *optional*): See `read_split_files`.
        split_fractions (`Sequence[float]`, *optional*): See `split_by_fractions`.
        split_seed (`int`): Seed of the latter.

    Returns:
        `(examples, notes)`: the rows by split, in the order of `examples`, and a message if rows are in no split.

    Raises:
        ValueError: if the data set has several splits already, or the settings cannot be used.
        AnnotationError: if a split file names a video that the data set does not have, or a video twice.
    """
    if split_files is None and split_fractions is None:
        return dict(examples), []
    if split_files is not None and split_fractions is not None:
        raise ValueError("Got both split_files and split_fractions. Pass one of them.")
    if len(examples) > 1:
        raise ValueError(
            f"The data set defines the splits {list(examples)} already. Leave split_files and split_fractions "
            "(--split_files, --split_fractions) out, or remove the splits from its annotations."
        )
    rows = [row for members in examples.values() for row in members]
    keys = names = [row["video_id"] for row in rows]
    if split_files is not None:
        split_of, notes = read_split_files(split_files, names)
    else:
        # Rows of one file have one key, the first one's name: unlike a path, it is the same on other machines.
        first: dict[str, str] = {}
        keys = [first.setdefault(_file_of(row), row["video_id"]) for row in rows]
        split_of, notes = split_by_fractions(keys, split_fractions or (), split_seed), []
    parts = {split: [row for row, key in zip(rows, keys) if split_of.get(key) == split] for split in SPLITS}
    return {split: members for split, members in parts.items() if members}, notes


def read_split_files(files: Mapping[str, str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Reads files with one video per line, as the annotations name it, with or without the suffix of the file.

    Args:
        files (`Mapping[str, str]`): The file of each split.
        names (`Sequence[str]`): The videos of the data set.

    Returns:
        `(split_of, notes)`: the split by video, and a message if some videos are in no file.

    Raises:
        AnnotationError: naming file and line, for an unknown video, or a video that occurs twice.
        ValueError: if a split is none of "train", "validation" and "test".
    """
    known = {name: name for name in names}
    for name in names:
        known.setdefault(os.path.splitext(name)[0], name)
    split_of: dict[str, str] = {}
    places: dict[str, str] = {}
    for split, path in files.items():
        if split not in SPLITS:
            raise ValueError(f"Got split_files for {split!r}, wanted some of {list(SPLITS)}.")
        for line, text in enumerate(decode_text(Path(path).read_bytes(), str(path)), start=1):
            if not text.strip():
                continue
            name = known.get(text.strip()) or known.get(os.path.normpath(text.strip()))
            if name is None:
                message = f"the video {text.strip()!r} is not in the annotations, whose first is {names[0]!r}."
                raise AnnotationError(message, str(path), line)
            if name in places:
                message = f"the video {name!r} is in {places[name]} already. A video is in one split, once."
                raise AnnotationError(message, str(path), line)
            split_of[name], places[name] = split, f"line {line} of {path}"
    rest = [name for name in dict.fromkeys(names) if name not in split_of]
    if not rest:
        return split_of, []
    return split_of, [
        f"{len(rest)} of {len(set(names))} videos are in no split file and left out, the first: {rest[0]}."
    ]


def split_by_fractions(keys: Iterable[str], fractions: Sequence[float], seed: int) -> dict[str, str]:
    """Draws a split of videos, which depends on their names and the seed but not on their order.

    Args:
        keys (`Iterable[str]`): The video of each row; rows with the same key stay together.
        fractions (`Sequence[float]`): Fractions of train, validation and test, whose sum is 1.
        seed (`int`): Seed of the choice.

    Returns:
        `dict[str, str]`: The split by video; every split with a fraction above 0 has at least one video.

    Raises:
        ValueError: if the fractions cannot be used, or there are fewer videos than splits.
    """
    is_usable = len(fractions) == len(SPLITS) and min(fractions) >= 0 and abs(sum(fractions) - 1) < 1e-6
    if not (is_usable and fractions[0] > 0):
        raise ValueError(
            f"Got split_fractions {tuple(fractions)}, wanted three fractions of {', '.join(SPLITS)} videos whose sum "
            "is 1, the first above 0: 0.8 0.1 0.1."
        )
    videos = sorted(set(keys))
    wanted = [split for split, fraction in zip(SPLITS, fractions) if fraction > 0]
    if len(videos) < len(wanted):
        raise ValueError(
            f"{len(videos)} videos cannot be divided into the splits {wanted}. Add videos, or set fractions to 0."
        )
    ends = np.round(np.cumsum(fractions) * len(videos)).astype(int)
    sizes = dict(zip(SPLITS, np.diff(ends, prepend=0).tolist()))
    for split in wanted:
        if not sizes[split]:  # its fraction of the videos was rounded to 0
            sizes[max(sizes, key=lambda name: sizes[name])] -= 1
            sizes[split] = 1
    order = np.random.default_rng([seed, len(videos)]).permutation(len(videos))
    owners = [split for split in SPLITS for _ in range(sizes[split])]
    return {videos[position]: split for position, split in zip(order, owners)}


def _file_of(row: Mapping[str, Any]) -> str:
    """Returns the real file of a row's video, so that links to one file are one video; its id without a file."""
    path = getattr(row["video"], "path", None)
    if path is None:
        return row["video_id"]
    return path if path.startswith("zip://") else os.path.realpath(path)
