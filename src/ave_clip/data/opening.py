"""Opens labelled data sets of every kind: [`open_dataset`] finds the reader of a path; all have the same columns."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .annotations import AnnotationError
from .builder import as_text, load_events
from .custom import OWN_VIDEOS, EventVideos, category_names
from .label_files import label_files_of
from .readers import all_readers, find_reader
from .readers.base import AnnotationReader, DataSetReader, Reader
from .readers.exported import load_exported
from .splitting import split_settings
from .storage import ANNOTATIONS_FILE

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
# All options with their defaults. An option with its default value is not passed on, so that scripts can pass all of
# them to every reader.
_DEFAULTS: dict[str, Any] = {
    "name": "full",
    "num_segments": None,
    "streaming": False,
    "video_dir": None,
    "background_folder": None,
    "annotations_dir": None,
    "audio_file": None,
    "visual_file": None,
    "categories": None,
    "problem_type": None,
    "segment_seconds": 1.0,
    "overlap": "raise",
    "tier": None,
    "meta": None,
    "on_missing": "raise",
    "probe_videos": False,
    "allow_outside": False,
    "split_files": None,
    "split_fractions": None,
    "split_seed": 0,
    "cache_dir": None,
}
# Options of the readers of annotations; the other readers name theirs in `DataSetReader.options`.
_ANNOTATION_OPTIONS = set(_DEFAULTS) - {
    "name",
    "num_segments",
    "background_folder",
    "annotations_dir",
    "audio_file",
    "visual_file",
}


def open_dataset(data: str | os.PathLike, split: str | None = None, **options: Any) -> Any:
    """Opens a labelled data set of any kind that this package reads.

    Args:
        data (`str` or `os.PathLike`): AVE's layout (a folder or zip); a CSV, TSV or JSONL table of `path, label,
            start, end` and optionally `split`; a folder of such tables named after their splits; a label file of
            Audacity or ELAN, or a folder of them; UnAV-100's JSON; OV-AVEBench's JSON; a folder that `to_parquet`,
            `to_webdataset` or `to_videofolder` wrote, or the name of one on the Hub; or a folder of AVE's h5 features.
        split (`str`, *optional*): "train", "validation" ("val" for short) or "test"; all of them by default.
        video_dir (`str` or `os.PathLike`, *optional*): Folder of the videos; required by UnAV-100 and OV-AVEBench.
        problem_type (`str`, *optional*): "single_label" for one label per segment, or "multi_label" for several events
            at once. By default what is usual for the data set: "multi_label" for UnAV-100, else "single_label".
        segment_seconds (`float`): Duration of a segment, 1 by default.
        categories, overlap, tier: As for [`load_videos`].
        meta (`str` or `os.PathLike`, *optional*): OV-AVEBench's table of splits and classes; by default
            `ovave_dataset_meta.csv` beside its annotations.
        name (`str`), num_segments (`int`), background_folder: As for [`load_ave`], for AVE's layout.
        on_missing (`str`), probe_videos (`bool`), allow_outside (`bool`), streaming (`bool`), cache_dir: As for
            [`load_ave`].
        split_files (`Mapping[str, str]`, *optional*): A file per split with one video per line, for a data set
            without splits.
        split_fractions (`Sequence[float]`, *optional*): Fractions of train, validation and test videos, for a random
            split by video.
        split_seed (`int`): Seed of that split.

    Returns:
        `datasets.Dataset` of one split, or `datasets.DatasetDict` of all, with the columns of [`event_features`]; for
        h5 features what [`load_ave_features`] returns.

    Raises:
        FileNotFoundError: if `data` does not exist.
        TypeError: if there is no such option.
        ValueError: if no reader recognizes `data`, or its reader does not know an option.
        AnnotationError: if an annotation cannot be used; the message names file and line.
        MissingVideoError: if videos are missing and `on_missing` is "raise".
    """
    unknown = sorted(set(options) - set(_DEFAULTS))
    if unknown:
        raise TypeError(f"open_dataset has no options {unknown}; it has {sorted(_DEFAULTS)}.")
    given = {name: value for name, value in options.items() if value != _DEFAULTS[name]}
    path = Path(data).expanduser()
    if path.name == ANNOTATIONS_FILE and path.is_file():
        path = path.parent
    if not path.exists():
        if _HUB_NAME.fullmatch(os.fspath(data)):
            try:
                return load_exported(data, split, **_accepted(all_readers()["exported"], given, data))
            except (FileNotFoundError, ConnectionError) as error:  # a path with one slash looks like a name
                message = f"{os.fspath(data)!r} is neither a path here nor a data set on the Hub: {error} {_wanted()}"
                raise FileNotFoundError(message) from error
        raise FileNotFoundError(f"The data set {os.fspath(data)!r} does not exist. {_wanted()}")
    reader = find_reader(path)
    if isinstance(reader, DataSetReader):
        return reader.load(path, split, **_accepted(reader, given, data))
    return _load_annotations(path, reader, split, _accepted(reader, given, data))


def _load_annotations(path: Path, reader: Reader | None, split: str | None, options: Mapping[str, Any]) -> Any:
    """Loads an annotation file, or the label files of a folder, which have no reader of their own."""
    if reader is None:
        try:
            readers = list(label_files_of(path).values())
        except FileNotFoundError as error:
            raise ValueError(f"No reader recognizes {path}. {_wanted()}") from error
        if not readers:
            raise AnnotationError(f"no reader recognizes this file. {_wanted()}", str(path))
        reader = readers[0]
    if not isinstance(reader, AnnotationReader):
        raise TypeError(f"The reader {reader.name!r} is neither a DataSetReader nor an AnnotationReader.")
    options = {"problem_type": reader.problem_type, **options}
    splits = [options.pop(name, _DEFAULTS[name]) for name in ("split_files", "split_fractions", "split_seed")]
    streaming = options.pop("streaming", False)
    paths = {name: as_text(options.pop(name, None)) for name in ("video_dir", "meta", "cache_dir")}
    if reader.videos_by == "id":
        options.setdefault("overlap", "longest")  # published data sets overlap
        if paths["video_dir"] is None:
            raise ValueError(f"{path} names its videos by id. Pass video_dir (--video_dir): the folder of the videos.")
    builder = EventVideos(
        config_name=reader.name if reader.videos_by == "id" else OWN_VIDEOS,
        annotations=os.fspath(path),
        categories=category_names(options.pop("categories", None)),
        **split_settings(*splits),
        **paths,
        **options,
    )
    return load_events(builder, split, streaming)


def _accepted(reader: Reader | None, given: Mapping[str, Any], data: str | os.PathLike) -> dict[str, Any]:
    """Returns the given options.

    Raises:
        ValueError: if the reader does not know one of them.
    """
    known = reader.options if isinstance(reader, DataSetReader) else _ANNOTATION_OPTIONS
    others = [name for name in given if name not in known]
    if others:
        kind = "an annotation file" if reader is None else f"{reader.name!r} ({reader.summary})"
        raise ValueError(f"{os.fspath(data)} is {kind}, which has no option {others}. It has {sorted(known)}.")
    return dict(given)


def _wanted() -> str:
    return f"Wanted: {'; '.join(reader.summary for reader in all_readers().values())}."
