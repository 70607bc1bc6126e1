"""Readers of data sets on disk: one module each, which this package finds by itself.

To add a reader, add a module here that defines `READER`, and its test. An `AnnotationReader` only reads annotations:
the rows, labels per segment, missing videos, caching and streaming are the same for all (`ave_clip.data.custom`).
"""

import functools
import importlib
import pkgutil
from pathlib import Path

from .base import AnnotationReader, Reader


@functools.cache
def all_readers() -> dict[str, Reader]:
    """Every reader by its name, in alphabetical order."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    readers = [module.READER for module in modules if hasattr(module, "READER")]
    return {reader.name: reader for reader in sorted(readers, key=lambda reader: reader.name)}


def annotation_readers() -> dict[str, AnnotationReader]:
    """The readers of annotation files by their names."""
    return {name: reader for name, reader in all_readers().items() if isinstance(reader, AnnotationReader)}


def find_reader(path: Path) -> Reader | None:
    """Returns the reader that recognizes a file or folder, or `None` if no reader does.

    A folder of label files, one per video, belongs to the readers of these files and not to one of its own.
    """
    return next((reader for reader in all_readers().values() if reader.recognizes(path)), None)
