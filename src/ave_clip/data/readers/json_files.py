"""Reads the JSON files of published data sets and names the video in their errors."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..annotations import AnnotationError, decode_text


def load_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        AnnotationError: if it is not JSON, or not an object.
    """
    try:
        content = json.loads("\n".join(decode_text(path.read_bytes(), str(path))))
    except json.JSONDecodeError as error:
        raise AnnotationError(f"not readable as JSON: {error.msg}.", str(path), error.lineno) from error
    if not isinstance(content, dict):
        raise AnnotationError(f"a JSON {type(content).__name__}, wanted an object.", str(path))
    return content


@contextmanager
def errors_name_video(path: Path, video_id: str) -> Iterator[None]:
    """Turns errors inside the block into an `AnnotationError` that names the file and the video."""
    try:
        yield
    except (KeyError, TypeError) as error:
        message = f"the entry has another structure ({type(error).__name__}: {error})."
        raise AnnotationError(message, f"{path}, video {video_id!r}") from error
    except ValueError as error:
        raise AnnotationError(str(error), f"{path}, video {video_id!r}") from error
