"""Label files that belong to one video each, and how their videos are found.

A label file belongs to the video of the same name or, in formats that store it, to the video that it links to. The
package writes two such formats: `ave-clip localize VIDEO --format audacity` and `--format elan`.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

from .annotations import AnnotationError
from .categories import BACKGROUND_LABEL
from .readers import annotation_readers
from .readers.base import AnnotationReader, ReaderOptions, VideoAnnotation
from .storage import VideoFile, list_videos_below


def label_file_readers() -> list[AnnotationReader]:
    """Returns the readers of files that belong to one video each."""
    return [reader for reader in annotation_readers().values() if reader.videos_by == "file"]


def label_files_of(path: Path) -> dict[Path, AnnotationReader]:
    """Returns the label files at a path, each with its reader: the file itself, or those in a folder, sorted by name.

    Raises:
        FileNotFoundError: if a folder contains none.
    """
    candidates = [path]
    if path.is_dir():
        candidates = [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    readers = label_file_readers()
    found = {file: reader for file in candidates for reader in readers if reader.recognizes(file)}
    if path.is_dir() and not found:
        wanted = "; ".join(reader.summary for reader in readers)
        raise FileNotFoundError(f"{path} contains no label file. Wanted: {wanted}.")
    return found


def read_label_files(
    files: Mapping[Path, AnnotationReader], video_dir: Path | None, options: ReaderOptions, allow_outside: bool = False
) -> list[VideoAnnotation]:
    """Reads label files and finds the video of each.

    Args:
        files (`Mapping[Path, AnnotationReader]`): The files, with their readers.
        video_dir (`Path`, *optional*): Folder of the videos, at any depth; by default the folder of the label files.
        options (`ReaderOptions`): Settings of the readers.
        allow_outside (`bool`): Whether videos may be links to files outside their folder.

    Returns:
        `list[VideoAnnotation]`: One entry per file; `name` is the path of its video.

    Raises:
        AnnotationError: naming file and line, if a file or an event cannot be used, or two files label one video.
    """
    base = video_dir or next(iter(files)).parent
    videos = list_videos_below(base, allow_outside)
    owner: dict[str, Path] = {}
    annotations = []
    for file, reader in files.items():
        (annotation,), _ = reader.read(file, options)
        name = _video_of(file, annotation.links, base, videos)
        if name in owner:
            raise AnnotationError(f"labels {name}, as {owner[name].name} does. Remove one of them.", str(file))
        owner[name] = file
        # Background is the time between events and not an event, also where a program has labelled it.
        events = [event for event in annotation.events if event.label.lower() != BACKGROUND_LABEL]
        events.sort(key=lambda event: event.start)
        annotations.append(replace(annotation, name=name, events=tuple(events)))
    return annotations


def _video_of(file: Path, links: tuple[str, ...], base: Path, videos: Mapping[str, VideoFile]) -> str:
    """Returns the path of the video that a label file belongs to, relative to `base` if it is below it."""
    # Some programs percent-encode the names, ELAN does not.
    paths = [Path(part) for link in links for part in (link, unquote(re.sub(r"^file:/*(?=/)", "", link)))]
    # As ELAN does, look in the folder of the videos before the path where the video was when it was annotated.
    inside = [base / path for path in paths if not path.is_absolute()] + [base / path.name for path in paths]
    found = next((path for path in inside if path.is_file()), None)
    # The label file of `clip.mp4` may be `clip.txt` or `clip.mp4.txt`.
    named = videos.get(file.stem) or videos.get(Path(file.stem).stem)
    outside = next((path for path in paths if path.is_absolute() and path.is_file()), None)
    expected = base / (paths[0].name if paths else f"{file.stem}.mp4")  # for the report of missing videos
    path = (found or (Path(named.path) if named else outside or expected)).absolute()
    base = base.absolute()
    return str(path.relative_to(base)) if path.is_relative_to(base) else str(path)
