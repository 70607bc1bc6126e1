"""Atomic writes of files and folders: whatever stops the program, a file or folder is complete or does not exist.

While `NAME` is written, the new content is in the hidden folder `.NAME.ave-clip-0` in the same folder (`-1` and so on
if several processes write the same name). The writing process has a lock on the hidden folder, which the system
releases when the process ends, also after `kill -9`. The next write of `NAME` can therefore recognize what a dead
process left behind, and deletes it.
"""

import atexit
import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: leftovers cannot be distinguished from folders in use and are not deleted
    fcntl = None

MARK = ".ave-clip-"
REPLACED = ".replaced"  # in the hidden folder: the previous content of the name
MAX_LEFTOVERS = 8  # that each write looks for; more processes rarely write one name at the same time
MAX_NAME_BYTES = 200  # of the target's name within the hidden folder's name; file systems allow 255 bytes in all
LOCKED_ERRORS = (errno.EAGAIN, errno.EACCES)  # if another process has the lock; which one depends on the file system


class FolderInUseError(ValueError):
    """The folder to be created exists and is not empty, or is a file."""


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Provides a path to write a file to, which replaces `path` at the end of the block.

    Args:
        path (`str` or `os.PathLike`): The file; an existing one is replaced. Its folder must exist.

    Yields:
        `Path`: A path with the same name, in a hidden folder.
    """
    target = Path(path).absolute()
    with workshop_beside(target) as workshop:
        partial = workshop / "new" / target.name
        partial.parent.mkdir()
        yield partial
        os.replace(partial, target)


@contextmanager
def new_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Provides an empty folder to fill, which becomes `path` at the end of the block.

    Args:
        path (`str` or `os.PathLike`): The folder, new or empty. Its parent folders are created, too.
        overwrite (`bool`): Replace an existing file or folder.

    Yields:
        `Path`: The folder to fill, in a hidden folder.

    Raises:
        FolderInUseError: without `overwrite`, if `path` is a file or a folder that is not empty, at the start or at
            the end of the block.
    """
    target = Path(path).absolute()
    remove_leftovers(target)
    if not overwrite:
        _check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with workshop_beside(target) as workshop:
        folder = workshop / "new"
        folder.mkdir()
        yield folder
        if overwrite and target.exists():
            target.rename(workshop / REPLACED)
        _put_in_place(folder, target, workshop / REPLACED)


def check_replaceable(path: str | os.PathLike, mark: str, kind: str, *needed: str | os.PathLike) -> None:
    """Checks that a folder may be replaced: it is of the same kind, and contains nothing that is still needed.

    Args:
        path (`str` or `os.PathLike`): The folder to be replaced; it may be missing or empty.
        mark (`str`): A file that every folder of this kind contains.
        kind (`str`): Name of this kind of folder, for the message.
        needed (`str` or `os.PathLike`): Paths that must not be deleted, in addition to the working directory.

    Raises:
        FolderInUseError: for a file, a folder without the mark, or a folder that contains a needed path.
    """
    target = Path(path).resolve()
    for kept in (Path.cwd(), *(Path(item).resolve() for item in needed)):
        if kept.is_relative_to(target):
            raise FolderInUseError(
                f"{target} contains {kept}, which would be deleted with it. Write to another folder."
            )
    if target.is_dir() and any(target.iterdir()) and not (target / mark).is_file():
        raise FolderInUseError(
            f"{target} contains no {mark}, so it is not an earlier {kind} and is not replaced. Delete it yourself, or "
            "write to another folder."
        )
    if target.exists() and not target.is_dir():
        raise FolderInUseError(f"{target} is a file. Delete it, or write to another folder.")


@contextmanager
def workshop_beside(path: str | os.PathLike) -> Iterator[Path]:
    """Provides an empty hidden folder next to `path` and deletes it at the end of the block.

    Hidden folders that dead processes left behind for `path` are deleted first.

    Args:
        path (`str` or `os.PathLike`): The file or folder to be created. Its folder must exist.

    Yields:
        `Path`: The hidden folder.

    Raises:
        OSError: naming `path`, if something in the hidden folder cannot be written.
    """
    target = Path(path).absolute()
    remove_leftovers(target)
    lock = None
    try:
        for number in itertools.count():
            workshop = _hidden_name(target, number)
            lock = _make_locked(workshop)
            if lock is not None:
                break
        _open_workshops[workshop] = (target, os.getpid())
        yield workshop
    except OSError as error:
        if MARK in str(error):  # users do not know the hidden folder
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    finally:
        if lock is None:  # interrupted between the creation of the folder and the lock
            remove_leftovers(target)
        else:
            _discard(workshop, target)
            _open_workshops.pop(workshop, None)
            if lock >= 0:
                os.close(lock)


def remove_leftovers(path: str | os.PathLike) -> None:
    """Deletes what killed processes left behind when they wrote `path`; content that was to be replaced is restored.

    Args:
        path (`str` or `os.PathLike`): The file or folder that was being written.
    """
    target = Path(path).absolute()
    for number in range(MAX_LEFTOVERS):
        _discard_unused(_hidden_name(target, number), target)


def remove_leftovers_in(folder: str | os.PathLike) -> None:
    """Deletes what killed processes left behind in a folder, for any file or folder that they wrote.

    Args:
        folder (`str` or `os.PathLike`): The folder, without subfolders; it may be missing.
    """
    for leftover in Path(folder).glob(f".*{MARK}*"):
        name, _, number = leftover.name[1:].rpartition(MARK)
        # Content that was to be replaced is left to the next write of the same name: only that knows the full name,
        # which is hashed if it is long.
        if name and number.isdecimal() and not (leftover / REPLACED).exists():
            _discard_unused(leftover, leftover.with_name(name))


class Claim:
    """The exclusive right of this process to a name, such as that of a file to be computed.

    It is a lock on a hidden file beside the name, which the system releases when the process ends, also after
    `kill -9`. It works between machines if their shared file system has locks, as NFS does.

    Args:
        path (`str` or `os.PathLike`): The name. Its folder must exist.

    Attributes:
        is_mine (`bool`): Whether this process has the claim.
        is_known (`bool`): Whether the system could tell; otherwise nobody has the claim.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        target = Path(path).absolute()
        self._file = target.with_name(f".{target.name}.claim")
        self._lock: int | None = None
        self.is_known = fcntl is not None
        while self.is_known and self._lock is None and self._try_to_lock():
            pass
        self.is_mine = self._lock is not None

    def _try_to_lock(self) -> bool:
        """Tries to get the lock; returns whether to try again."""
        assert fcntl is not None
        lock = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            self.is_known = error.errno in LOCKED_ERRORS
            if not self.is_known:
                self._file.unlink(missing_ok=True)
            return False
        # If another process deleted the file after it was opened here, others cannot see this lock.
        try:
            is_same = os.path.samestat(os.fstat(lock), os.stat(self._file))
        except FileNotFoundError:
            is_same = False
        if is_same:
            self._lock = lock
            return False
        os.close(lock)
        return True

    def release(self) -> None:
        """Ends the claim and deletes its file; does nothing if the claim is not this process's."""
        if self._lock is not None:
            self._file.unlink(missing_ok=True)  # while locked: later it may be another process's claim
            os.close(self._lock)
            self._lock, self.is_mine = None, False


def _discard_unused(leftover: Path, target: Path) -> None:
    if leftover in _open_workshops or not os.path.lexists(leftover):
        return
    lock = _lock(leftover)
    if lock is not None:  # otherwise it is in use, or the system cannot tell
        _discard(leftover, target)
        os.close(lock)


# Hidden folders of this process, each with its target and the process id: a forked process has a copy of this
# dictionary, but must not delete the folders.
_open_workshops: dict[Path, tuple[Path, int]] = {}


def _hidden_name(target: Path, number: int) -> Path:
    name = target.name
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
    return target.with_name(f".{name}{MARK}{number}")


def _make_locked(workshop: Path) -> int | None:
    """Creates and locks a folder; `None` means that the name is taken, -1 that the system has no locks."""
    try:
        workshop.mkdir(mode=0o700)
    except FileExistsError:
        return None
    if fcntl is None:
        return -1
    try:
        lock = os.open(workshop, os.O_RDONLY)
    except FileNotFoundError:  # another process deleted it as a leftover before it was locked
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # the other process has the lock at this moment, or the file system has no locks
        os.close(lock)
        return None if not workshop.exists() else -1
    if workshop.exists():
        return lock
    os.close(lock)  # the other process deleted it between the two calls, so the lock is on nothing
    return None


def _lock(leftover: Path) -> int | None:
    """Locks a folder that no living process uses; returns `None` for others and for anything but a folder."""
    if fcntl is None:
        return None
    try:
        if not stat.S_ISDIR(os.lstat(leftover).st_mode):  # such as a link to a folder of the user
            return None
        lock = os.open(leftover, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _discard(workshop: Path, target: Path) -> None:
    """Deletes a hidden folder; a target that was moved into it and not replaced is moved back first."""
    replaced = workshop / REPLACED
    if replaced.exists() and not target.exists():
        with contextlib.suppress(OSError):
            replaced.rename(target)
    if not (replaced.exists() and not target.exists()):  # otherwise it is the only copy
        shutil.rmtree(workshop, ignore_errors=True)


@atexit.register
def _discard_all() -> None:
    """Deletes the hidden folders whose deletion was interrupted by a second signal."""
    for workshop, (target, process_id) in list(_open_workshops.items()):
        if process_id == os.getpid():
            _discard(workshop, target)


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FolderInUseError(f"{target} exists and is not an empty folder. Delete it, or write to another one.")


def _put_in_place(folder: Path, target: Path, replaced: Path) -> None:
    """Renames `folder` to `target` if that is free; if this fails, `_discard` moves `replaced` back."""
    try:
        if target.is_dir():
            target.rmdir()
        folder.rename(target)
    except OSError:
        if not replaced.exists():
            _check_free(target)
        raise
