"""Draws timelines: `plot_timeline` shows the events of one or many videos as PNG, SVG or an interactive HTML page.

The rows of each video, from top to bottom: thumbnails; the score of each segment, in its label's colour; one lane per
label with its events, and below them the true events if they are known; the waveform; the time axis. HTML does not
need matplotlib.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import atomic_file
from .drawing import PLOT_SUFFIXES, LabelStyle, check_plot_packages, check_result, check_spans, label_styles
from .timeline_track import Span, Track, read_track

THEMES = ("light", "dark")
MAX_EMBEDDED_BYTES = 24 * 2**20


def plot_timeline(
    results: Sequence[tuple[str | os.PathLike, Mapping[str, Any]]],
    output: str | os.PathLike,
    *,
    truth: Mapping[str, Sequence[Span]] | None = None,
    theme: str = "light",
    embed_video: bool = True,
    max_embedded_bytes: int = MAX_EMBEDDED_BYTES,
) -> None:
    """Draws the events of one or many videos.

    ```python
    >>> plot_timeline([("clip.mp4", localizer("clip.mp4"))], "clip.html")
    ```

    A video that cannot be read any more is drawn without thumbnails and audio, with a warning.

    Args:
        results (`Sequence[tuple[str, dict]]`): Each video's path or URL, and the pipeline's result for it.
        output (`str` or `os.PathLike`): A `.png`, `.svg` or `.html` file. It is written atomically and replaces an
            existing file. PNG and SVG need matplotlib.
        truth (`Mapping[str, Sequence[dict]]`, *optional*): The true events of some or all videos, under the names in
            `results`: dictionaries with `start` and `end` (seconds) and `label`.
        theme (`str`): `"light"` or `"dark"`. A `"light"` page follows the theme of the reader's system; a button on
            the page changes it.
        embed_video (`bool`): Whether the page contains the videos, so that they can be played in it.
        max_embedded_bytes (`int`): Maximum size per embedded video. Larger videos, and those that browsers cannot
            play, are encoded to a smaller copy. If this is not possible, the page asks the reader for the file.

    Raises:
        ValueError: If there is nothing to draw, a result or truth does not fit, or the suffix or theme is unknown.
        ImportError: If PNG or SVG is requested without matplotlib.
        OSError: If `output` cannot be written.
    """
    _check_arguments(results, output)
    path = Path(output)
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise ValueError(f"Cannot draw {path}: it must end in {', '.join(PLOT_SUFFIXES)}.")
    if theme not in THEMES:
        raise ValueError(f"theme must be one of {list(THEMES)}, got {theme!r}.")
    named = [(os.fsdecode(video), result) for video, result in results]
    if not named:
        raise ValueError("Got no results to draw. Pass at least one (video, result).")
    _check(named, truth or {})
    check_plot_packages(path)
    draw = _html if path.suffix.lower() == ".html" else _figure
    tracks = [read_track(video, result, (truth or {}).get(video)) for video, result in named]
    styles = label_styles(label for track in tracks for label in track.lanes)
    styles |= label_styles([*styles, *(entry["label"] for track in tracks for entry in track.segments)])
    with atomic_file(path) as part:
        draw(tracks, styles, part, theme, max_embedded_bytes if embed_video else 0)


def _check_arguments(results: Any, output: Any) -> None:
    """Refuses results that are not pairs, and arguments in the wrong order."""
    example = 'plot_timeline([("clip.mp4", localizer("clip.mp4"))], "clip.html")'
    if not isinstance(output, (str, os.PathLike)):
        raise ValueError(f"Got a {type(output).__name__} as output. Pass the results first, then a path: {example}.")
    is_list = isinstance(results, Sequence) and not isinstance(results, str)
    if not is_list or not all(
        isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], (str, bytes, os.PathLike))
        for pair in results
    ):
        raise ValueError(
            f"Got a {type(results).__name__} as results that is not a list of pairs. Pass each video with the "
            f"pipeline's result for it: {example}."
        )


def _html(tracks: list[Track], styles: dict[str, LabelStyle], path: Path, theme: str, max_bytes: int) -> None:
    from .timeline_page import write_page

    write_page(tracks, styles, path, theme, max_bytes)


def _figure(tracks: list[Track], styles: dict[str, LabelStyle], path: Path, theme: str, max_bytes: int) -> None:
    from .timeline_figure import draw_figure

    draw_figure(tracks, styles, path, theme, max_bytes)


def _check(results: Sequence[tuple[str, Any]], truth: Mapping[str, Sequence[Span]]) -> None:
    videos = [video for video, _ in results]
    for video, result in results:
        check_result(result, video)
    for video, spans in truth.items():
        if video not in videos:
            raise ValueError(
                f"Got the truth of {video}, which is not one of the videos {videos[:3]}. Use the names in `results`."
            )
        check_spans(spans, f"true events of {video}", ("start", "end", "label"))
