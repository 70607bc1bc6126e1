"""Access to the files of a data set, in an unpacked folder or in a zip, which is read without unpacking.

Both classes read annotation files and list videos. A video in a zip has the path `zip://<member>::<archive>`, which
`datasets` and `fsspec` also understand. `fingerprint` tells whether anything has changed since the last time.
"""

import hashlib
import os
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..video_files import VIDEO_SUFFIXES

ANNOTATIONS_FILE = "Annotations.txt"
CATEGORIES_FILE = "categories.txt"
VIDEO_FOLDER = "AVE"

MAX_ANNOTATION_BYTES = 256 * 2**20  # in a zip; AVE's have 0.2 MB
# Members larger than this must not be compressed by more than this ratio. Videos hardly shrink; zip bombs shrink by a
# factor of 1,000.
MAX_UNCHECKED_BYTES = 64 * 2**20
MAX_RATIO = 100
_ENCRYPTED = 1  # bit of a zip member's flags, section 4.4.4 of PKWARE's APPNOTE.TXT


@dataclass(frozen=True)
class VideoFile:
    """A video of the data set.

    Attributes:
        path (`str`): Its path or `zip://` URL.
        size (`int`): Size in bytes.
        modified (`str`): Time of its last modification, or its checksum in a zip.
        outside (`str`, *optional*): Its real path, if that is outside the data folder although it must not be.
    """

    path: str
    size: int
    modified: str
    outside: str | None = None


class FolderStorage:
    """An unpacked data set: `root/Annotations.txt` beside the folder of videos.

    Args:
        root (`Path`): The folder that contains `Annotations.txt`.
        allow_outside (`bool`): Whether videos may be links to files outside the folder.
    """

    def __init__(self, root: Path, allow_outside: bool = False):
        self.root = root.absolute()
        self.name = str(self.root)
        self.allow_outside = allow_outside

    def read(self, name: str) -> bytes | None:
        """Returns the bytes of a file in the root folder, or `None` if it does not exist."""
        path = self.root / name
        return path.read_bytes() if path.is_file() else None

    def locate(self, name: str) -> str:
        """Returns the path of a file in the root folder, for messages."""
        return str(self.root / name)

    def list_videos(self, folder: str = VIDEO_FOLDER) -> dict[str, VideoFile]:
        """Returns the videos of a folder (relative to the root, or absolute) by id: the file name without suffix."""
        directory = self.root / folder
        if not directory.is_dir():
            return {}
        # The user may name a folder anywhere, but the default folder must not be a link out of the data set.
        within = None if self.allow_outside else self.root if folder == VIDEO_FOLDER else directory
        paths = ((name, stat_video(directory / name, within)) for name in sorted(os.listdir(directory)))
        return _videos_by_id([(name, video) for name, video in paths if video is not None])


class ZipStorage:
    """A data set in a zip file.

    Args:
        archive (`Path`): The zip file.

    Raises:
        ValueError: if the file is not a zip, a member would be unpacked outside the folder, or it has no
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
        paths = [PurePosixPath(name) for name in self.members]
        # macOS adds a folder of resource forks with the same names.
        roots = {path.parent for path in paths if path.name == ANNOTATIONS_FILE and path.parts[0] != "__MACOSX"}
        if not roots:
            raise ValueError(f"{self.archive} contains no {ANNOTATIONS_FILE} among its {len(paths)} files.")
        self.root = min(roots, key=lambda root: (len(root.parts), str(root)))

    def read(self, name: str) -> bytes | None:
        """Returns the bytes of a file in the root folder, or `None` if it does not exist."""
        member = str(self.root / name)
        if member not in self.members:
            return None
        size = self.members[member].file_size
        if size > MAX_ANNOTATION_BYTES:
            raise ValueError(
                f"{self.locate(name)} would unpack to {size / 1e6:,.0f} MB, but an annotation file has at most "
                f"{MAX_ANNOTATION_BYTES / 1e6:,.0f} MB. Get the archive from a source you trust."
            )
        with zipfile.ZipFile(self.archive) as file:
            return file.read(member)

    def locate(self, name: str) -> str:
        """Returns the path of a file in the root folder, for messages."""
        return f"{self.archive}/{self.root / name}"

    def list_videos(self, folder: str = VIDEO_FOLDER) -> dict[str, VideoFile]:
        """Returns the videos of a folder (relative to the root) by id: the file name without suffix."""
        directory = self.root / folder
        entries = [
            (PurePosixPath(name).name, VideoFile(f"zip://{name}::{self.archive}", info.file_size, f"{info.CRC:08x}"))
            for name, info in self.members.items()
            if PurePosixPath(name).parent == directory
        ]
        return _videos_by_id(entries)


def open_storage(data_dir: str | os.PathLike | None, allow_outside: bool = False) -> FolderStorage | ZipStorage:
    """Opens an unpacked data set or a zip.

    Args:
        data_dir (`str` or `os.PathLike`): The folder that contains `Annotations.txt`, its parent folder, or a zip.
        allow_outside (`bool`): Whether videos may be links to files outside the folder.

    Returns:
        `FolderStorage` or `ZipStorage`: Access to the files.

    Raises:
        FileNotFoundError: if `data_dir` does not exist.
        ValueError: if `data_dir` is `None`, contains no `Annotations.txt` or several, or is an unusable zip.
    """
    if data_dir is None:
        raise ValueError(f"AVE needs data_dir: the folder that contains {ANNOTATIONS_FILE}, or the zip.")
    path = Path(data_dir).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"data_dir={str(data_dir)!r} does not exist. Give AVE's folder or its zip.")
    if path.is_file():
        return ZipStorage(path)
    if (path / ANNOTATIONS_FILE).is_file():
        return FolderStorage(path, allow_outside)
    below = sorted(child for child in path.iterdir() if (child / ANNOTATIONS_FILE).is_file())
    if len(below) != 1:
        found = f"{len(below)} folders below with one: {[p.name for p in below]}" if below else "none one level below"
        raise ValueError(f"{path} contains no {ANNOTATIONS_FILE}, and {found}. Give the folder that contains it.")
    return FolderStorage(below[0], allow_outside)


def list_videos_below(directory: str | os.PathLike, allow_outside: bool = False) -> dict[str, VideoFile]:
    """Returns the videos of a folder and its subfolders, by file name without suffix.

    Args:
        directory (`str` or `os.PathLike`): The folder.
        allow_outside (`bool`): Whether they may be links to files outside the folder.

    Raises:
        FileNotFoundError: if the folder does not exist.
    """
    root = Path(directory).expanduser().absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"The video folder {str(directory)!r} does not exist.")
    entries = []
    for folder, _, names in os.walk(root):
        for name in sorted(names):
            video = stat_video(os.path.join(folder, name), None if allow_outside else root)
            if video is not None:
                entries.append((name, video))
    return _videos_by_id(entries)


def stat_video(path: str | os.PathLike, within: str | os.PathLike | None = None) -> VideoFile | None:
    """Returns the video file at a path, or `None` if there is no file.

    Args:
        path (`str` or `os.PathLike`): The path as the data set gives it.
        within (`str` or `os.PathLike`, *optional*): The folder that must contain it. If `..`, an absolute path or a
            link leads out of the folder, `outside` of the result is the real path.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a path with a NUL is a ValueError
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    real = os.path.realpath(path)
    is_outside = within is not None and not Path(real).is_relative_to(os.path.realpath(within))
    return VideoFile(os.fspath(path), status.st_size, str(status.st_mtime_ns), real if is_outside else None)


def fingerprint(location: str, files: dict[str, bytes | None], videos: dict[str, VideoFile]) -> str:
    """Returns a hash that changes with the location, the annotation files, or the paths, sizes or times of videos."""
    digest = hashlib.sha256(location.encode("utf-8", "surrogateescape"))
    for name, data in sorted(files.items()):
        content = b"absent" if data is None else hashlib.sha256(data).digest()
        digest.update(name.encode() + b"\0" + content)
    for video_id, video in sorted(videos.items()):
        digest.update(f"{video_id}\0{video.path}\0{video.size}\0{video.modified}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


def _videos_by_id(entries: list[tuple[str, VideoFile]]) -> dict[str, VideoFile]:
    """Returns the videos by stem; of several with one stem, the one whose suffix is first in `VIDEO_SUFFIXES`."""
    ranked: dict[str, tuple[int, VideoFile]] = {}
    for name, video in entries:
        stem, suffix = os.path.splitext(name)
        if suffix.lower() not in VIDEO_SUFFIXES:
            continue
        rank = VIDEO_SUFFIXES.index(suffix.lower())
        if stem not in ranked or rank < ranked[stem][0]:
            ranked[stem] = (rank, video)
    return {stem: video for stem, (_, video) in ranked.items()}


def check_unpacked_size(info: zipfile.ZipInfo, archive: str) -> None:
    """Rejects a zip bomb by the sizes that it declares, which `zipfile` never exceeds.

    Raises:
        ValueError: naming the member.
    """
    if info.file_size > max(MAX_UNCHECKED_BYTES, MAX_RATIO * info.compress_size):
        raise ValueError(
            f"{archive}: the member {info.filename!r} would unpack from {info.compress_size / 1e6:,.1f} to "
            f"{info.file_size / 1e6:,.0f} MB, as only a zip bomb does. Get the archive from a source you trust."
        )


def _check_member(info: zipfile.ZipInfo, archive: str) -> None:
    name = info.filename
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    if is_link or name.startswith("/") or "\\" in name or ":" in name.split("/")[0] or ".." in name.split("/"):
        what = "is a symbolic link" if is_link else "would be unpacked outside the folder"
        raise ValueError(f"{archive}: the member {name!r} {what}. Get the archive from a source you trust.")
    check_unpacked_size(info, archive)
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{archive}: the member {name!r} is encrypted. Unpack the archive and give the folder.")
