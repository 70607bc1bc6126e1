"""Files and folders that appear under their name only when they are whole, and not at all if anything fails."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class FolderInUseError(ValueError):
    """The folder to be made exists already and is not empty, or is a file."""


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path to write a file to, which takes the place of `path` at the end of the block.

    Args:
        path (`str` or `os.PathLike`): The file; one that exists is replaced. Its folder must exist.

    Yields:
        `Path`: of the same name, in a hidden folder beside `path`.
    """
    target = Path(path).absolute()
    with _workshop(target) as workshop:
        yield workshop / target.name
        os.replace(workshop / target.name, target)


@contextmanager
def new_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder to fill, which takes the place of `path` at the end of the block.

    Args:
        path (`str` or `os.PathLike`): The folder to make, new or empty. Its parent folders are made, too.
        overwrite (`bool`): Replace what is there.

    Yields:
        `Path`: The folder, inside a hidden one beside `path`.

    Raises:
        FolderInUseError: without `overwrite`, where there is a file or a folder that is not empty, at the start or by
            the end of the block.
    """
    target = Path(path).absolute()
    if not overwrite:
        _check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _workshop(target) as workshop:
        folder = workshop / "new"
        folder.mkdir()
        yield folder
        if overwrite and target.exists():
            target.rename(workshop / "old")
        _put_in_place(folder, target, workshop / "old")


def check_replaceable(path: str | os.PathLike, mark: str, kind: str, *needed: str | os.PathLike) -> None:
    """Refuse to replace a folder that is not an earlier one of its kind, or that holds what is still needed.

    Args:
        path (`str` or `os.PathLike`): The folder to be replaced; one that is missing or empty is fine.
        mark (`str`): File that every folder of this kind holds.
        kind (`str`): What such a folder is, for the message.
        needed (`str` or `os.PathLike`): Paths that must survive, beside the working directory.

    Raises:
        FolderInUseError: for a file, a folder without the mark, or one that holds a needed path.
    """
    target = Path(path).resolve()
    for place in (Path.cwd(), *(Path(item).resolve() for item in needed)):
        if place.is_relative_to(target):
            raise FolderInUseError(
                f"{target} holds {place}, which replacing it would delete. Write to another folder."
            )
    if target.is_dir() and any(target.iterdir()) and not (target / mark).is_file():
        raise FolderInUseError(
            f"{target} holds no {mark}, so it is not an earlier {kind} and is not replaced. Delete it yourself, or "
            "write to another folder."
        )
    if target.exists() and not target.is_dir():
        raise FolderInUseError(f"{target} is a file. Delete it, or write to another place.")


@contextmanager
def _workshop(target: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent, ignore_cleanup_errors=True) as name:
        yield Path(name)


def _check_free(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FolderInUseError(f"{target} exists and is not an empty folder. Delete it, or write to another one.")


def _put_in_place(folder: Path, target: Path, replaced: Path) -> None:
    """Rename `folder` to `target` unless something is there; if that fails, `replaced` comes back."""
    try:
        if target.is_dir():
            target.rmdir()
        folder.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        else:
            _check_free(target)
        raise
