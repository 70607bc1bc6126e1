"""Where a data set lies: an unpacked folder, or the zip it came in, read in place without unpacking.

Both answer the same three questions: what are the bytes of this annotation file, which videos are there, and has
anything changed since last time (the fingerprint). A video inside a zip is named `zip://<member>::<archive>`, which
`datasets` and `fsspec` understand as well.
"""

import hashlib
import os
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ANNOTATIONS_FILE = "Annotations.txt"
CATEGORIES_FILE = "categories.txt"
VIDEO_FOLDER = "AVE"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")

_ENCRYPTED = 1  # bit of a zip member's flags


@dataclass(frozen=True)
class VideoFile:
    """A video of the data set: its path (or `zip://` address), size in bytes, and time of last change."""

    path: str
    size: int
    modified: str


class FolderStorage:
    """An unpacked data set: `root/Annotations.txt` beside the folder of videos.

    Args:
        root (`Path`): The folder that holds `Annotations.txt`.
    """

    def __init__(self, root: Path):
        self.root = root.absolute()
        self.name = str(self.root)

    def read(self, name: str) -> bytes | None:
        """Bytes of a file in the root folder, `None` when there is none."""
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def locate(self, name: str) -> str:
        """Where a file of the root folder lies, for messages."""
        return str(self.root / name)

    def list_videos(self, folder: str = VIDEO_FOLDER) -> dict[str, VideoFile]:
        """The videos of a folder (relative to the root, or absolute) by id, which is the file name without ending."""
        directory = self.root / folder
        if not directory.is_dir():
            return {}
        paths = ((name, stat_video(directory / name)) for name in sorted(os.listdir(directory)))
        return _videos_by_id([(name, video) for name, video in paths if video is not None])


class ZipStorage:
    """A data set inside a zip file, which is read in place.

    Args:
        archive (`Path`): The zip file.

    Raises:
        ValueError: if the file is no zip, a member would leave the folder it is unpacked in, or it has no
            `Annotations.txt`.
    """

    def __init__(self, archive: Path):
        self.archive = archive.absolute()
        self.name = str(self.archive)
        try:
            with zipfile.ZipFile(self.archive) as file:
                self.members = {info.filename: info for info in file.infolist() if not info.is_dir()}
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self.archive} is not a readable zip file ({error}). Download it again.") from error
        for info in self.members.values():
            _check_member(info, self.name)
        self.root = self._find_root()

    def _find_root(self) -> PurePosixPath:
        paths = [PurePosixPath(name) for name in self.members]
        roots = {path.parent for path in paths if path.name == ANNOTATIONS_FILE and path.parts[0] != "__MACOSX"}
        if not roots:
            raise ValueError(f"{self.archive} holds no {ANNOTATIONS_FILE} among its {len(paths)} files.")
        return min(roots, key=lambda root: (len(root.parts), str(root)))

    def read(self, name: str) -> bytes | None:
        """Bytes of a file in the root folder, `None` when there is none."""
        member = str(self.root / name)
        if member not in self.members:
            return None
        with zipfile.ZipFile(self.archive) as file:
            return file.read(member)

    def locate(self, name: str) -> str:
        """Where a file of the root folder lies, for messages."""
        return f"{self.archive}/{self.root / name}"

    def list_videos(self, folder: str = VIDEO_FOLDER) -> dict[str, VideoFile]:
        """The videos of a folder (relative to the root) by id, which is the file name without ending."""
        directory = self.root / folder
        entries = [
            (PurePosixPath(name).name, VideoFile(f"zip://{name}::{self.archive}", info.file_size, f"{info.CRC:08x}"))
            for name, info in self.members.items()
            if PurePosixPath(name).parent == directory
        ]
        return _videos_by_id(entries)


def open_storage(data_dir: str | os.PathLike | None) -> FolderStorage | ZipStorage:
    """Open an unpacked data set or a zip.

    Args:
        data_dir (`str` or `os.PathLike`): The folder that holds `Annotations.txt`, the folder one above, or a zip.

    Returns:
        `FolderStorage` or `ZipStorage`: the data set's files.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if `data_dir` is `None`, holds no `Annotations.txt` or several, or is a zip that cannot be used.
    """
    if data_dir is None:
        raise ValueError(f"AVE needs data_dir: the folder that holds {ANNOTATIONS_FILE}, or the zip.")
    path = Path(data_dir).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"Got data_dir={str(data_dir)!r}, but nothing is there. Give AVE's folder or its zip.")
    if path.is_file():
        return ZipStorage(path)
    if (path / ANNOTATIONS_FILE).is_file():
        return FolderStorage(path)
    below = sorted(child for child in path.iterdir() if (child / ANNOTATIONS_FILE).is_file())
    if len(below) != 1:
        found = f"{len(below)} folders below with one: {[p.name for p in below]}" if below else "none one level below"
        raise ValueError(f"{path} holds no {ANNOTATIONS_FILE}, and {found}. Give the folder that holds it.")
    return FolderStorage(below[0])


def list_videos_below(directory: str | os.PathLike) -> dict[str, VideoFile]:
    """The videos of a folder and the folders in it, by file name without ending.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    root = Path(directory).expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"Got the video folder {str(directory)!r}, but there is none.")
    entries = []
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            video = stat_video(os.path.join(folder, name))
            if video is not None:
                entries.append((name, video))
    return _videos_by_id(entries)


def stat_video(path: str | os.PathLike) -> VideoFile | None:
    """A video file by its path; `None` where there is none."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    is_file = stat.S_ISREG(status.st_mode)
    return VideoFile(os.fspath(path), status.st_size, str(status.st_mtime_ns)) if is_file else None


def fingerprint(location: str, files: dict[str, bytes | None], videos: dict[str, VideoFile]) -> str:
    """Hash over place, annotation files and list of videos (paths, sizes, times): other content, other fingerprint."""
    digest = hashlib.sha256(location.encode("utf-8", "surrogateescape"))
    for name, data in sorted(files.items()):
        content = b"absent" if data is None else hashlib.sha256(data).digest()
        digest.update(name.encode() + b"\0" + content)
    for video_id, video in sorted(videos.items()):
        digest.update(f"{video_id}\0{video.path}\0{video.size}\0{video.modified}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _videos_by_id(entries: list[tuple[str, VideoFile]]) -> dict[str, VideoFile]:
    """Key the video files by stem; of two files with one stem the earlier ending in `VIDEO_SUFFIXES` counts."""
    ranked: dict[str, tuple[int, VideoFile]] = {}
    for name, video in entries:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in VIDEO_SUFFIXES:
            continue
        rank = VIDEO_SUFFIXES.index(suffix.lower())
        if stem not in ranked or rank < ranked[stem][0]:
            ranked[stem] = (rank, video)
    return {stem: video for stem, (_, video) in ranked.items()}


def _check_member(info: zipfile.ZipInfo, archive: str) -> None:
    name = info.filename
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    if is_link or name.startswith("/") or "\\" in name or ":" in name.split("/")[0] or ".." in name.split("/"):
        what = "is a symbolic link" if is_link else "would leave the folder it is unpacked in"
        raise ValueError(f"{archive}: the member {name!r} {what}. Get the archive from a source you trust.")
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{archive}: the member {name!r} is encrypted. Unpack the archive and give the folder.")
