"""Pictures of what happens when: `plot_timeline` draws one or many videos as PNG, SVG or an interactive HTML page.

Each video gets, from top to bottom: thumbnails; the score of every second, in its label's colour; a lane for each
label with its events, and the true ones below where they are known; the sound's waveform; the time. HTML needs no
matplotlib.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .categories import BACKGROUND_LABEL
from .drawing import LabelStyle, check_result, check_spans, label_styles, one_line
from .files import atomic_file
from .video_preview import VideoPreview, read_preview
from .video_source import VideoReadError

logger = logging.get_logger(__name__)

SUFFIXES = (".png", ".svg", ".html")
THEMES = ("light", "dark")
# From here on, neighbouring segments of one label are drawn as one, with their mean score.
MAX_SINGLE_SEGMENTS = 300
MAX_EMBEDDED_BYTES = 24 * 2**20

Span = Mapping[str, Any]


@dataclass
class Track:
    """All that is drawn of one video.

    Attributes:
        video: Path or URL.
        title: Its file name, on one line.
        duration: Seconds that the lanes span.
        segments: Scores; of long videos, joined.
        events: What was found.
        truth: What is known to be there; `None` where nothing is known.
        preview: Thumbnails and sound; `None` where the video could not be read.
    """

    video: str
    title: str
    duration: float
    segments: list[dict[str, Any]]
    events: list[Span]
    truth: list[Span] | None
    preview: VideoPreview | None

    @property
    def lanes(self) -> list[str]:
        """Labels of events, in order of appearance."""
        spans = sorted([*self.events, *(self.truth or ())], key=lambda span: span["start"])
        return list(dict.fromkeys(span["label"] for span in spans if span["label"] != BACKGROUND_LABEL))


def plot_timeline(
    results: Sequence[tuple[str | os.PathLike, Mapping[str, Any]]],
    output: str | os.PathLike,
    *,
    truth: Mapping[str, Sequence[Span]] | None = None,
    theme: str = "light",
    embed_video: bool = True,
    max_embedded_bytes: int = MAX_EMBEDDED_BYTES,
) -> None:
    """Draw the events of one or many videos.

    ```python
    >>> plot_timeline([("clip.mp4", localizer("clip.mp4"))], "clip.html")
    ```

    A video that cannot be read any more is drawn without thumbnails and sound, with a warning.

    Args:
        results (`Sequence[tuple[str, dict]]`): Each video's path or URL, and what the pipeline returned for it.
        output (`str` or `os.PathLike`): A `.png`, `.svg` or `.html` file; it appears when it is whole, and replaces
            one that exists. The first two need matplotlib.
        truth (`Mapping[str, Sequence[dict]]`, *optional*): For some of the videos, as they are named in `results`,
            the true events: dictionaries with `start` and `end` (seconds) and `label`.
        theme (`str`): `"light"` or `"dark"`. A page that is `"light"` follows its reader's system; a button on it
            changes it.
        embed_video (`bool`): Whether the page holds the videos themselves, so that they play in it.
        max_embedded_bytes (`int`): Greatest size of each of them; larger ones, and those that browsers cannot play,
            are encoded smaller, or left out if that does not help: the page then asks for the file.

    Raises:
        ValueError: Nothing to draw, a result or truth that does not fit, or another suffix or theme.
        ImportError: PNG or SVG without matplotlib.
        OSError: If `output` cannot be written.
    """
    path = Path(output)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"Cannot draw {path}: it must end in {', '.join(SUFFIXES)}.")
    if theme not in THEMES:
        raise ValueError(f"theme must be one of {list(THEMES)}, got {theme!r}.")
    named = [(os.fsdecode(video), result) for video, result in results]
    if not named:
        raise ValueError("Got no results to draw. Pass at least one (video, result).")
    _check(named, truth or {})
    draw = _html if path.suffix.lower() == ".html" else _figure()
    tracks = [_track(video, result, (truth or {}).get(video)) for video, result in named]
    styles = label_styles(label for track in tracks for label in track.lanes)
    styles |= label_styles([*styles, *(entry["label"] for track in tracks for entry in track.segments)])
    with atomic_file(path) as part:
        draw(tracks, styles, part, theme, max_embedded_bytes if embed_video else 0)


def _figure() -> Any:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'PNG and SVG pictures need matplotlib: `pip install "ave-clip[viz]"`. HTML pages do without.'
        ) from error
    from .timeline_figure import draw_figure

    return draw_figure


def _html(tracks: list[Track], styles: dict[str, LabelStyle], path: Path, theme: str, max_bytes: int) -> None:
    from .timeline_page import write_page

    write_page(tracks, styles, path, theme, max_bytes)


def _check(results: Sequence[tuple[str, Any]], truth: Mapping[str, Sequence[Span]]) -> None:
    videos = [video for video, _ in results]
    for video, result in results:
        check_result(result, video)
    for video, spans in truth.items():
        if video not in videos:
            raise ValueError(
                f"Got the truth of {video}, which is none of the videos {videos[:3]}. Name it like those."
            )
        check_spans(spans, f"true events of {video}", ("start", "end", "label"))


def _track(video: str, result: Mapping[str, Any], truth: Sequence[Span] | None) -> Track:
    spans = [*result["segments"], *result["events"], *(truth or ())]
    duration = max((span["end"] for span in spans), default=0.0)
    return Track(
        video=video,
        title=one_line(video.rstrip("/").rsplit("/", 1)[-1]) or one_line(video),
        duration=duration,
        segments=_joined(result["segments"]),
        events=sorted(result["events"], key=lambda span: span["start"]),
        truth=None if truth is None else sorted(truth, key=lambda span: span["start"]),
        preview=_preview(video, duration),
    )


def _preview(video: str, duration: float) -> VideoPreview | None:
    try:
        return read_preview(video, duration)
    except VideoReadError as error:
        logger.warning(f"Drawn without thumbnails and sound: {error}")
        return None


def _joined(segments: Sequence[Span]) -> list[dict[str, Any]]:
    """Segments as they are, or of long videos runs of one label with their mean score."""
    if len(segments) <= MAX_SINGLE_SEGMENTS:
        return [dict(segment) for segment in segments]
    joined = []
    for label, run in groupby(segments, key=lambda segment: segment["label"]):
        run = list(run)
        score = sum(segment["score"] for segment in run) / len(run)
        joined.append({"start": run[0]["start"], "end": run[-1]["end"], "label": label, "score": score})
    return joined
