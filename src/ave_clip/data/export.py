"""Writes data sets in formats that common tools read: a folder of videos, parquet files, or tar shards.

Each format is one folder with a data card. `datasets.load_dataset(folder)` reads it without this package, and
`huggingface_hub.upload_folder` uploads it to the Hub as it is. To add a format, add an entry to `EXPORT_FORMATS`.
"""

import io
import itertools
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import datasets

from ..core.text import printable
from ..core.video_io import VideoReadError, probe_video
from ..files import new_folder
from .data_card import build_data_card
from .decoding import open_video

ROWS_PER_GROUP = 16  # of a parquet file; a row group is read as a whole, and a video has megabytes
MAX_SHARD_BYTES = 500_000_000

Row = Mapping[str, Any]
Splits = Mapping[str, "datasets.Dataset"]


@dataclass(frozen=True)
class ExportFormat:
    """One format of exported data sets.

    Attributes:
        write (`Callable`): Writes all splits into a folder, given the bytes of video per file, and returns the name
            of the column that contains the video.
        pattern (`str`): The files of a split, for the data card.
        json_column (`str`, *optional*): The column that contains all other columns, if the format has one.
    """

    write: Callable[[Path, Splits, int], str]
    pattern: str
    json_column: str | None = None


def to_videofolder(
    dataset: "datasets.Dataset | datasets.DatasetDict", out_dir: str | os.PathLike, *, name: str = "AVE"
) -> Path:
    """Writes `out_dir/<split>/<row>.mp4`, with a `metadata.parquet` of all other columns in the same folder.

    A video that several rows show is written once.

    Args:
        dataset (`datasets.Dataset` or `datasets.DatasetDict`): Rows as returned by [`load_ave`].
        out_dir (`str` or `os.PathLike`): A new or empty folder.
        name (`str`): Name of the data set, for its card.

    Returns:
        `Path`: The folder. `load_dataset(folder)` reads it; `cast_column("video", Video(decode=False))` keeps its
        videos undecoded.

    Raises:
        ValueError: if the folder is not empty, a row has no video, or the file that it names is not a video.
    """
    return _export(dataset, out_dir, name, "videofolder")


def to_parquet(
    dataset: "datasets.Dataset | datasets.DatasetDict",
    out_dir: str | os.PathLike,
    *,
    name: str = "AVE",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes `out_dir/data/<split>-00000-of-00001.parquet` with the videos inside: the Hub shows and streams it.

    Args:
        dataset (`datasets.Dataset` or `datasets.DatasetDict`): Rows as returned by [`load_ave`].
        out_dir (`str` or `os.PathLike`): A new or empty folder.
        name (`str`): Name of the data set, for its card.
        max_shard_bytes (`int`): Bytes of video in one file.

    Returns:
        `Path`: The folder; `load_dataset(folder)` reads it.

    Raises:
        ValueError: if the folder is not empty, a row has no video, or the file that it names is not a video.
    """
    return _export(dataset, out_dir, name, "parquet", max_shard_bytes)


def to_webdataset(
    dataset: "datasets.Dataset | datasets.DatasetDict",
    out_dir: str | os.PathLike,
    *,
    name: str = "AVE",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes `out_dir/<split>-00000.tar`, each row as `<row>.mp4` and `<row>.json`, for sequential reading.

    Args:
        dataset (`datasets.Dataset` or `datasets.DatasetDict`): Rows as returned by [`load_ave`]. All videos have the
            same file suffix.
        out_dir (`str` or `os.PathLike`): A new or empty folder.
        name (`str`): Name of the data set, for its card.
        max_shard_bytes (`int`): Bytes of video in one file.

    Returns:
        `Path`: The folder. `load_dataset(folder)` reads it, with the columns `mp4` (the video) and `json` (the rest).

    Raises:
        ValueError: if the folder is not empty, a row has no video, the file that it names is not a video, the suffixes
            of the videos differ, or there are no rows.
    """
    return _export(dataset, out_dir, name, "webdataset", max_shard_bytes)


def _export(
    dataset: "datasets.Dataset | datasets.DatasetDict",
    out_dir: str | os.PathLike,
    name: str,
    form: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    if isinstance(dataset, dict):
        splits = dict(dataset)
    else:  # a slice or sum of splits is named after the first one
        split = re.match(r"\w+", str(dataset.split or "train"))
        splits = {split.group() if split else "train": dataset}
    export_format = EXPORT_FORMATS[form]
    with new_folder(out_dir) as folder:
        video_column = export_format.write(folder, splits, max_shard_bytes)
        patterns = {split: export_format.pattern.format(split=split) for split in splits}
        card = build_data_card(splits, name, form, patterns, video_column, export_format.json_column)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Path(out_dir)


def _write_videofolder(folder: Path, splits: Splits, max_shard_bytes: int) -> str:
    for split, rows in splits.items():
        _write_split_folder(folder / split, rows)
    return "video"


def _write_parquet_files(folder: Path, splits: Splits, max_shard_bytes: int) -> str:
    (folder / "data").mkdir()
    for split, rows in splits.items():
        parts = [
            _write_parquet(folder / "data" / f"{split}-{number:05d}.parquet", shard, rows.features)
            for number, shard in enumerate(_shards(rows, max_shard_bytes))
        ]
        # The Hub's names contain the number of files, which is known only at the end.
        for number, part in enumerate(parts):
            part.rename(part.with_name(f"{split}-{number:05d}-of-{len(parts):05d}.parquet"))
    return "video"


def _write_webdataset(folder: Path, splits: Splits, max_shard_bytes: int) -> str:
    suffixes: set[str] = set()
    for split, rows in splits.items():
        for number, shard in enumerate(_shards(rows, max_shard_bytes)):
            _write_tar(folder / f"{split}-{number:05d}.tar", shard, suffixes)
    if not suffixes:
        raise ValueError(f"The data set has no row in its splits {list(splits)}: there is nothing to write.")
    return suffixes.pop()  # WebDataset names a column after the suffix of its files


def _write_split_folder(folder: Path, rows: "datasets.Dataset") -> None:
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    features = datasets.Features(
        {"file_name": datasets.Value("string"), **{k: v for k, v in rows.features.items() if k != "video"}}
    )
    names: dict[str, str] = {}
    metadata = []
    for row in _undecoded(rows):
        source = row["video"]["path"] or f"row {row['row']}"
        if source not in names:
            names[source] = _file_name(row)
            with _open(row) as video, open(folder / names[source], "wb") as target:
                shutil.copyfileobj(video, target)
        metadata.append({**row, "file_name": names[source]})
    table = pyarrow.Table.from_pylist(metadata, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, folder / "metadata.parquet")


def _write_parquet(path: Path, rows: Iterable[tuple[Row, bytes]], features: datasets.Features) -> Path:
    import pyarrow
    import pyarrow.parquet

    features = datasets.Features({**features, "video": datasets.Video(decode=False)})
    embedded = ({**row, "video": {"bytes": content, "path": _file_name(row)}} for row, content in rows)
    with pyarrow.parquet.ParquetWriter(path, features.arrow_schema) as writer:
        while group := list(itertools.islice(embedded, ROWS_PER_GROUP)):
            writer.write_table(pyarrow.Table.from_pylist(group, schema=features.arrow_schema))
    return path


def _write_tar(path: Path, rows: Iterable[tuple[Row, bytes]], suffixes: set[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for row, video in rows:
            file_name = _file_name(row)
            key, _, suffix = file_name.rpartition(".")
            suffixes.add(suffix)
            if len(suffixes) > 1:
                raise ValueError(
                    f"The videos have the suffixes {sorted(suffixes)}, but shards need a single one. Convert some."
                )
            others = {column: value for column, value in row.items() if column != "video"}
            # Members of one sample share the name before the first dot and follow each other.
            metadata = json.dumps(others, ensure_ascii=False).encode()
            for member_name, content in ((file_name, video), (f"{key}.json", metadata)):
                member = tarfile.TarInfo(member_name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _shards(rows: "datasets.Dataset", max_shard_bytes: int) -> Iterator[Iterator[tuple[Row, bytes]]]:
    """Yields runs of rows with their videos, of up to `max_shard_bytes` but at least one row.

    Two videos are in memory at most, so a run must be consumed before the next one is requested.
    """

    def read_rows() -> Iterator[tuple[Row, bytes]]:
        for row in _undecoded(rows):
            with _open(row) as file:
                content = file.read()
            yield row, content

    waiting = read_rows()
    upcoming = next(waiting, None)

    def run() -> Iterator[tuple[Row, bytes]]:
        nonlocal upcoming
        size = 0
        while upcoming is not None and (size == 0 or size + len(upcoming[1]) <= max_shard_bytes):
            size += len(upcoming[1])
            current, upcoming = upcoming, next(waiting, None)
            yield current

    while upcoming is not None:
        yield run()


def _undecoded(rows: "datasets.Dataset") -> Iterator[Row]:
    return iter(rows.cast_column("video", datasets.Video(decode=False)).with_format(None))


def _file_name(row: Row) -> str:
    """Returns a name that is unique to the row and valid on every file system."""
    suffix = os.path.splitext((row["video"]["path"] or "").split("::")[0])[1].lower() or ".mp4"
    return f"{row['row']:06d}{suffix}"


def _open(row: Row) -> BinaryIO:
    """Opens the video of a row.

    Raises:
        ValueError: if it is not a video. A data set of unknown origin may name any file of this machine, which must
            not end up in an export.
    """
    video = open_video(row["video"])
    file = open(video, "rb") if isinstance(video, str) else video  # noqa: SIM115 (the caller closes it)
    try:
        if not probe_video(file).has_video:
            raise VideoReadError("it has no video stream")
    except BaseException as error:
        file.close()
        if not isinstance(error, VideoReadError):
            raise
        raise ValueError(
            f"Row {row['row']} names {printable(str(row['video']['path']))}, which is not a video ({error}). Only "
            "videos are exported: remove the row, or correct it."
        ) from error
    return file


EXPORT_FORMATS = {
    "videofolder": ExportFormat(_write_videofolder, "{split}/**"),
    "parquet": ExportFormat(_write_parquet_files, "data/{split}-*.parquet"),
    "webdataset": ExportFormat(_write_webdataset, "{split}-*.tar", json_column="json"),
}
