"""Data sets in forms that everybody's tools read: a folder of videos, parquet with the videos inside, or tar shards.

Each of the three writes one folder with a data card; `datasets.load_dataset(folder)` reads it back without this
package, and `huggingface_hub.upload_folder` puts it on the Hub as it is.
"""

import io
import itertools
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import datasets

from ..files import new_folder
from .data_card import build_data_card
from .decoding import open_video

ROWS_PER_GROUP = 16  # of a parquet file; a row group is read as a whole, and a video has megabytes
MAX_SHARD_BYTES = 500_000_000

Row = Mapping[str, Any]


def to_videofolder(
    dataset: "datasets.Dataset | datasets.DatasetDict", out_dir: str | os.PathLike, *, name: str = "AVE"
) -> Path:
    """Write `out_dir/<split>/<row>.mp4` with a `metadata.parquet` of all other columns beside them.

    A video that several rows show is written once.

    Args:
        dataset (`datasets.Dataset` or `datasets.DatasetDict`): Rows as [`load_ave`] gives them.
        out_dir (`str` or `os.PathLike`): A new or empty folder.
        name (`str`): Name of the data set, for its card.

    Returns:
        `Path`: The folder. `load_dataset(folder)` reads it; `cast_column("video", Video(decode=False))` keeps its
        videos undecoded.

    Raises:
        ValueError: if the folder is not empty, or a row has no video.
    """
    with new_folder(out_dir) as folder:
        for split, rows in _splits(dataset).items():
            _write_split_folder(folder / split, rows)
        patterns = {split: f"{split}/**" for split in _splits(dataset)}
        _write_card(folder, dataset, name, "videofolder", patterns)
    return Path(out_dir)


def to_parquet(
    dataset: "datasets.Dataset | datasets.DatasetDict",
    out_dir: str | os.PathLike,
    *,
    name: str = "AVE",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write `out_dir/data/<split>-00000-of-00001.parquet` with the videos inside: the form the Hub shows and streams.

    Args:
        dataset (`datasets.Dataset` or `datasets.DatasetDict`): Rows as [`load_ave`] gives them.
        out_dir (`str` or `os.PathLike`): A new or empty folder.
        name (`str`): Name of the data set, for its card.
        max_shard_bytes (`int`): Bytes of video in one file.

    Returns:
        `Path`: The folder; `load_dataset(folder)` reads it.

    Raises:
        ValueError: if the folder is not empty, or a row has no video.
    """
    with new_folder(out_dir) as folder:
        (folder / "data").mkdir()
        for split, rows in _splits(dataset).items():
            parts = [
                _write_parquet(folder / "data" / f"{split}-{number:05d}.parquet", shard, rows.features)
                for number, shard in enumerate(_shards(rows, max_shard_bytes))
            ]
            for number, part in enumerate(parts):
                part.rename(part.with_name(f"{split}-{number:05d}-of-{len(parts):05d}.parquet"))
        patterns = {split: f"data/{split}-*.parquet" for split in _splits(dataset)}
        _write_card(folder, dataset, name, "parquet", patterns)
    return Path(out_dir)


def to_webdataset(
    dataset: "datasets.Dataset | datasets.DatasetDict",
    out_dir: str | os.PathLike,
    *,
    name: str = "AVE",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Write `out_dir/<split>-00000.tar`, each row as `<row>.mp4` and `<row>.json`, for sequential reading.

    Args:
        dataset (`datasets.Dataset` or `datasets.DatasetDict`): Rows as [`load_ave`] gives them, whose videos all have
            the same file ending.
        out_dir (`str` or `os.PathLike`): A new or empty folder.
        name (`str`): Name of the data set, for its card.
        max_shard_bytes (`int`): Bytes of video in one file.

    Returns:
        `Path`: The folder. `load_dataset(folder)` reads it, with the columns `mp4` (the video) and `json` (the rest).

    Raises:
        ValueError: if the folder is not empty, a row has no video, the videos' endings differ, or there is no row.
    """
    with new_folder(out_dir) as folder:
        endings: set[str] = set()
        for split, rows in _splits(dataset).items():
            for number, shard in enumerate(_shards(rows, max_shard_bytes)):
                _write_tar(folder / f"{split}-{number:05d}.tar", shard, endings)
        if not endings:
            raise ValueError(
                f"The data set has no row in its splits {list(_splits(dataset))}: there is nothing to write."
            )
        patterns = {split: f"{split}-*.tar" for split in _splits(dataset)}
        _write_card(folder, dataset, name, "webdataset", patterns, video_column=endings.pop())
    return Path(out_dir)


def _splits(dataset: "datasets.Dataset | datasets.DatasetDict") -> dict[str, "datasets.Dataset"]:
    if isinstance(dataset, dict):
        return dict(dataset)
    name = re.match(r"\w+", str(dataset.split or "train"))  # a slice or sum of splits goes by the first one's name
    return {name.group() if name else "train": dataset}


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
            _write_video(row, folder / names[source])
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


def _write_tar(path: Path, rows: Iterable[tuple[Row, bytes]], endings: set[str]) -> None:
    with tarfile.open(path, "w") as tar:
        for row, video in rows:
            file_name = _file_name(row)
            key, _, ending = file_name.rpartition(".")
            endings.add(ending)
            if len(endings) > 1:
                raise ValueError(f"The videos end in {sorted(endings)}, but shards need one ending. Convert some.")
            others = {column: value for column, value in row.items() if column != "video"}
            _add_member(tar, file_name, video)
            _add_member(tar, f"{key}.json", json.dumps(others, ensure_ascii=False).encode())


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _shards(rows: "datasets.Dataset", max_shard_bytes: int) -> Iterator[Iterator[tuple[Row, bytes]]]:
    """Rows with their videos in runs of up to `max_shard_bytes`, at least one row each; to be used up in turn."""
    waiting = ((row, _read_video(row)) for row in _undecoded(rows))
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
    """A name that no other row has and that every file system takes."""
    ending = os.path.splitext((row["video"]["path"] or "").split("::")[0])[1].lower() or ".mp4"
    return f"{row['row']:06d}{ending}"


def _open(row: Row) -> BinaryIO:
    video = open_video(row["video"])
    return open(video, "rb") if isinstance(video, str) else video


def _read_video(row: Row) -> bytes:
    with _open(row) as file:
        return file.read()


def _write_video(row: Row, path: Path) -> None:
    with _open(row) as source, open(path, "wb") as target:
        shutil.copyfileobj(source, target)


def _write_card(
    folder: Path,
    dataset: "datasets.Dataset | datasets.DatasetDict",
    name: str,
    form: str,
    patterns: Mapping[str, str],
    video_column: str | None = None,
) -> None:
    card = build_data_card(_splits(dataset), name, form, patterns, video_column)
    (folder / "README.md").write_text(card, encoding="utf-8")
