"""Reader of Audacity's label tracks: `start<TAB>end<TAB>label`, one event per line (File > Export > Export Labels)."""

from pathlib import Path

from ..annotations import AnnotationError, decode_text
from ..storage import ANNOTATIONS_FILE, CATEGORIES_FILE
from .base import AnnotationReader, ReaderOptions, VideoAnnotation, check_event, has_suffix

# Audacity writes the frequency range of a spectral selection in a second line, which begins with a backslash:
# https://manual.audacityteam.org/man/importing_and_exporting_labels.html
_SPECTRAL_MARK = "\\"


def read_audacity(path: Path, options: ReaderOptions) -> tuple[list[VideoAnnotation], None]:
    """Reads a label file; an empty file means a video without events.

    Raises:
        AnnotationError: naming the line.
    """
    events = []
    for line, text in enumerate(decode_text(path.read_bytes(), str(path)), start=1):
        if text.startswith(_SPECTRAL_MARK) or not text.strip():
            continue
        fields = text.split("\t", 2)
        if len(fields) < 3 or not fields[2].strip():
            raise AnnotationError(
                f"got {text[:80]!r}, wanted start, end and label with tabs between them, as Audacity exports them.",
                str(path),
                line,
            )
        # Audacity uses the decimal separator of the system's language.
        start, end = (field.strip().replace(",", ".") for field in fields[:2])
        events.append(check_event(fields[2], start, end, str(path), line))
    return [VideoAnnotation(path.stem, "train", tuple(events))], None


READER = AnnotationReader(
    name="audacity",
    summary=".txt: Audacity's labels of one video",
    recognizes=lambda path: has_suffix(".txt")(path) and path.name not in (ANNOTATIONS_FILE, CATEGORIES_FILE),
    read=read_audacity,
    videos_by="file",
)
