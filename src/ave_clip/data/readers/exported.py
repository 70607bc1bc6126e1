"""Reader of data sets that `to_parquet`, `to_webdataset` or `to_videofolder` wrote, in a folder or on the Hub."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from transformers.utils import logging

from ...core.segments import num_segments_for
from ..annotations import LabelledSpan
from ..builder import event_features, problem_type_of
from ..splitting import assign_splits
from ..targets import EventCounts, unknown_labels
from .base import DataSetReader

logger = logging.get_logger(__name__)
_JSON_COLUMN = "json"  # of WebDataset: everything but the video


def is_exported(path: Path) -> bool:
    """Whether a folder has a data card beside parquet files, tar files or folders of videos with their metadata."""
    if not (path / "README.md").is_file():
        return False
    return any(next(path.glob(pattern), None) for pattern in ("data/*.parquet", "*-*.tar", "*/metadata.parquet"))


def load_exported(
    path: str | os.PathLike,
    split: str | None = None,
    *,
    problem_type: str | None = None,
    segment_seconds: float = 1.0,
    split_files: Mapping[str, str] | None = None,
    split_fractions: Sequence[float] | None = None,
    split_seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> "datasets.Dataset | datasets.DatasetDict":
    """Loads an exported data set, and labels its segments again from the times of its events.

    Args:
        path (`str` or `os.PathLike`): The folder, or the name of a repository on the Hub.
        split, problem_type, segment_seconds, split_files, split_fractions, split_seed, cache_dir: As for
            [`~ave_clip.data.open_dataset`].

    Raises:
        ValueError: if the columns are not those of such a data set, or it was exported without the durations that
            other labels need.
    """
    loaded = datasets.load_dataset(os.fspath(path), cache_dir=None if cache_dir is None else os.fspath(cache_dir))
    splits = {name: _event_columns(rows, path) for name, rows in loaded.items()}
    splits = _resplit(splits, split_files, split_fractions, split_seed)
    features = next(iter(splits.values())).features
    counts = EventCounts(features["category"].names, problem_type or problem_type_of(features), segment_seconds)
    splits = {name: _relabel(rows, counts) for name, rows in splits.items()}
    for line in counts.report():
        logger.warning(line)
    if split is None:
        return datasets.DatasetDict(splits)
    name = "validation" if split == "val" else split
    if name not in splits:
        raise ValueError(f"Got split={split!r}, but {path} has {list(splits)}.")
    return splits[name]


def _event_columns(rows: datasets.Dataset, path: str | os.PathLike) -> datasets.Dataset:
    """Returns rows with the columns of [`~ave_clip.data.load_videos`], their videos undecoded."""
    if _JSON_COLUMN in rows.column_names:
        video = next(name for name, feature in rows.features.items() if isinstance(feature, datasets.Video))
        # `flatten` would also take an undecoded video apart.
        rows = rows.remove_columns(["__key__", "__url__"]).cast_column(video, datasets.Video()).flatten()
        names = {name: name.removeprefix(f"{_JSON_COLUMN}.") for name in rows.column_names}
        rows = rows.rename_columns({**names, video: "video"} if video != "video" else names)
    missing = {"row", "video_id", "video", "category", "labels", "events"} - set(rows.column_names)
    if missing:
        raise ValueError(
            f"{path} has the columns {rows.column_names}, but not {sorted(missing)}: it is not a data set that "
            "to_parquet, to_webdataset or to_videofolder of ave_clip.data wrote."
        )
    return rows.cast_column("video", datasets.Video(decode=False))


def _resplit(
    splits: Mapping[str, datasets.Dataset],
    split_files: Mapping[str, str] | None,
    split_fractions: Sequence[float] | None,
    split_seed: int,
) -> dict[str, datasets.Dataset]:
    if split_files is None and split_fractions is None:
        return dict(splits)
    places = {
        name: [{"video_id": video, "video": None, "place": place} for place, video in enumerate(rows["video_id"])]
        for name, rows in splits.items()
    }
    parts, notes = assign_splits(places, split_files, split_fractions, split_seed)
    for note in notes:
        logger.warning(note)
    (rows,) = splits.values()  # otherwise `assign_splits` has raised
    return {name: rows.select([part["place"] for part in members]) for name, members in parts.items()}


def _relabel(rows: datasets.Dataset, counts: EventCounts) -> datasets.Dataset:
    """Returns rows with the labels of the wanted kind and segments, made from their events."""
    stored = problem_type_of(rows.features)
    if "duration" not in rows.column_names:
        if stored != counts.problem_type or counts.segment_seconds != 1.0:
            raise ValueError(
                "The data set was exported by an earlier version, without durations: its labels cannot be changed. "
                "Export it again, or leave problem_type and segment_seconds (--problem_type, --segment_seconds) out."
            )
        return rows
    labels: list[Any] = []
    for row in rows.select_columns(["video_id", "events", "duration"]).with_format(None):
        length = num_segments_for(row["duration"], counts.segment_seconds)
        if row["events"] is None:  # withheld
            labels.append(unknown_labels(length, len(counts.categories), counts.problem_type))
        else:
            events = [LabelledSpan(**event) for event in row["events"]]
            labels.append(counts.label(events, row["duration"], length, row["video_id"])[0])
    feature = event_features(counts.categories, problem_type=counts.problem_type)["labels"]
    order = rows.column_names
    # pyrefly: ignore[missing-argument]  (a decorator of `datasets` passes the fingerprint)
    changed = rows.remove_columns("labels").add_column("labels", labels, feature=feature)
    return changed.select_columns(order)


READER = DataSetReader(
    name="exported",
    summary="a folder written by to_parquet, to_webdataset or to_videofolder",
    recognizes=is_exported,
    load=load_exported,
    options=("problem_type", "segment_seconds", "split_files", "split_fractions", "split_seed", "cache_dir"),
)
