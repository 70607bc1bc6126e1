"""Draws the timeline as PNG or SVG with matplotlib. All positions are in inches, so nothing overlaps or is cut off."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .drawing import WIDE_FAMILIES, LabelStyle, clock, one_line, percent
from .timeline_track import Track
from .video_preview import VideoPreview

WIDTH, RIGHT, MARGIN = 12.0, 0.35, 0.3
TITLE, MAX_THUMBNAIL, SCORES, LANE, MANY_LANES, WAVEFORM, AXIS, GAP = 0.4, 0.8, 0.5, 0.34, 0.24, 0.5, 0.4, 0.2
DPI, MAX_PIXELS = 150, 60000
MAX_LABEL_WIDTH = 3.0
SCORES_NAME, WAVEFORM_NAME = "score", "audio"
MAX_VIDEOS = 100
MAX_EDGED = 150  # boxes narrower than this fraction of a lane are drawn without an edge
FONT_SIZE = 9
COLOURS = {
    "light": {
        "page": "#ffffff",
        "text": "#16191d",
        "faint": "#5b636d",
        "lane": "#eef0f3",
        "line": "#b6bcc4",
        "edge": "#3a4048",
    },
    "dark": {
        "page": "#14171b",
        "text": "#eceff3",
        "faint": "#a6aeb8",
        "lane": "#22272e",
        "line": "#4a525c",
        "edge": "#14171b",
    },
}
TICK_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400)
MAX_TICKS = 12


def draw_figure(
    tracks: list[Track], styles: Mapping[str, LabelStyle], path: Path, theme: str, max_embedded_bytes: int
) -> None:
    """Draws the tracks one below the other.

    Args:
        tracks (`list[Track]`): The videos.
        styles (`Mapping[str, LabelStyle]`): Style of each label.
        path (`Path`): A `.png` or `.svg` file.
        theme (`str`): `"light"` or `"dark"`.
        max_embedded_bytes (`int`): Not used: an image contains no video.

    Raises:
        ValueError: If there are more than 100 videos.
    """
    import matplotlib
    from matplotlib import font_manager

    if len(tracks) > MAX_VIDEOS:
        raise ValueError(
            f"Got {len(tracks)} videos, but an image shows at most {MAX_VIDEOS}. Draw fewer, or an .html page."
        )
    # matplotlib takes each character from the first font that has it.
    installed = {font.name for font in font_manager.fontManager.ttflist}
    families = ["DejaVu Sans", *(name for name in WIDE_FAMILIES if name in installed)]
    options = {"svg.fonttype": "none", "svg.hashsalt": "ave-clip", "hatch.linewidth": 0.6, "font.size": FONT_SIZE}
    with matplotlib.rc_context({**options, "font.family": families}):
        figure = _Figure(tracks, styles, COLOURS[theme]).draw()
        metadata = {"Title": ", ".join(track.title for track in tracks[:5]), "Date": None}
        if path.suffix.lower() == ".png":
            metadata.pop("Date")
        dpi = min(DPI, MAX_PIXELS / figure.get_figheight())
        figure.savefig(path, dpi=dpi, format=path.suffix.lower()[1:], metadata=metadata, facecolor="auto")


def tick_times(duration: float) -> list[float]:
    """Returns round times for at most a dozen ticks.

    >>> tick_times(10)
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    """
    step = next((step for step in TICK_STEPS if duration / step < MAX_TICKS), TICK_STEPS[-1])
    while duration / step >= MAX_TICKS:
        step *= 2
    return [step * index for index in range(int(duration / step + 1e-6) + 1)]


class _Figure:
    """Positions and draws the rows of all tracks from top to bottom."""

    def __init__(self, tracks: list[Track], styles: Mapping[str, LabelStyle], colours: Mapping[str, str]) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.tracks, self.styles, self.colours = tracks, styles, colours
        self.figure = Figure(figsize=(WIDTH, 1), facecolor=colours["page"])
        self.canvas = FigureCanvasAgg(self.figure)
        labels = {one_line(label) for track in tracks for label in track.lanes}
        widths = [self._text_width(label) for label in (SCORES_NAME, WAVEFORM_NAME, *labels)]
        self.left = MARGIN + min(max(widths), MAX_LABEL_WIDTH) + 0.15
        self.height = 2 * MARGIN - GAP + sum(self._track_height(track) for track in tracks)
        self.figure.set_size_inches(WIDTH, self.height)
        self.top = MARGIN

    def draw(self) -> Any:
        for track in self.tracks:
            self._draw_track(track)
            self.top += GAP
        return self.figure

    def _track_height(self, track: Track) -> float:
        lanes = _lane_height(track) * max(1, len(track.lanes))
        sound = WAVEFORM if track.preview is not None and len(track.preview.peaks) else 0
        return TITLE + self._thumbnail_size(track)[1] / 0.92 + SCORES + lanes + sound + AXIS + GAP

    def _draw_track(self, track: Track) -> None:
        self._draw_title(track)
        preview = track.preview
        if preview is not None and preview.thumbnails:
            self._draw_thumbnails(self._row(self._thumbnail_size(track)[1] / 0.92, track), track, preview)
        self._draw_scores(self._row(SCORES, track, SCORES_NAME), track)
        height = _lane_height(track)
        for label in track.lanes:
            self._draw_lane(self._row(height, track, one_line(label)), track, label)
        if not track.lanes:
            axes = self._row(height, track)
            self._text(axes, track.duration / 2, 0.5, "no event found", self.colours["faint"], ha="center")
        if preview is not None and len(preview.peaks):
            self._draw_waveform(self._row(WAVEFORM, track, WAVEFORM_NAME), track, preview)
        self._draw_axis(self._row(AXIS, track), track)

    def _row(self, height: float, track: Track, name: str = "") -> Any:
        """Returns frameless axes across the page, `0..duration` by `0..1`, with a name to their left."""
        axes = self._axes(self.left, height, WIDTH - self.left - RIGHT)
        axes.set_xlim(0, track.duration or 1)
        if name:
            name = self._shortened(name, self.left - MARGIN - 0.14)
            x = (self.left - 0.12) / WIDTH
            y = 1 - (self.top - height / 2) / self.height
            self.figure.text(x, y, name, ha="right", va="center", color=self.colours["text"], parse_math=False)
        return axes

    def _axes(self, left: float, height: float, width: float) -> Any:
        self.top += height
        place = (left / WIDTH, 1 - self.top / self.height, width / WIDTH, height / self.height)
        axes = self.figure.add_axes(place)
        axes.set_axis_off()
        axes.set_ylim(0, 1)
        return axes

    def _draw_title(self, track: Track) -> None:
        axes = self._axes(MARGIN, TITLE, WIDTH - MARGIN - RIGHT)
        axes.set_xlim(0, WIDTH - MARGIN - RIGHT)
        room = WIDTH - MARGIN - RIGHT - (4.5 if track.truth is not None else 2.0)
        title = self._shortened(track.title, room / 1.4)
        self._text(axes, 0, 0.6, title, self.colours["text"], fontsize=12, fontweight="bold")
        ending = f"{clock(track.duration)} min" if track.duration < 3600 else f"{clock(track.duration)} h"
        if track.truth is not None:
            ending += " · filled: found · hatched: true"
        right = WIDTH - MARGIN - RIGHT
        self._text(axes, right, 0.6, ending, self.colours["faint"], ha="right")

    def _thumbnail_size(self, track: Track) -> tuple[float, float]:
        """Returns width and height in inches."""
        preview = track.preview
        if preview is None or not preview.thumbnails:
            return 0.0, 0.0
        height, width = preview.thumbnails[0].shape[:2]
        slot = (WIDTH - self.left - RIGHT) / len(preview.thumbnails)
        inches = min(0.94 * slot, MAX_THUMBNAIL * width / height)
        return inches, inches * height / width

    def _draw_thumbnails(self, axes: Any, track: Track, preview: VideoPreview) -> None:
        inches, _ = self._thumbnail_size(track)
        half = inches / 2 * track.duration / (WIDTH - self.left - RIGHT)
        for image, time in zip(preview.thumbnails, preview.thumbnail_times):
            axes.imshow(image, extent=(time - half, time + half, 0.08, 1), aspect="auto")
        axes.set_xlim(0, track.duration)
        axes.set_ylim(0, 1)

    def _draw_scores(self, axes: Any, track: Track) -> None:
        self._box(axes, 0, track.duration, 0.06, 0.94, self.colours["lane"])
        for segment in track.segments:
            style = self.styles[segment["label"]]
            top = 0.06 + 0.88 * segment["score"]
            self._box(axes, segment["start"], segment["end"], 0.06, top, style.colour, style.pattern, edge=True)

    def _draw_lane(self, axes: Any, track: Track, label: str) -> None:
        self._box(axes, 0, track.duration, 0.06, 0.94, self.colours["lane"])
        bottom = 0.06 if track.truth is None else 0.4
        style = self.styles[label]
        for event in (event for event in track.events if event["label"] == label):
            self._box(axes, event["start"], event["end"], bottom, 0.94, style.colour, style.pattern, edge=True)
            width = (event["end"] - event["start"]) / track.duration * (WIDTH - self.left - RIGHT)
            text = percent(event["score"])
            if width > self._text_width(text) * 0.8 + 0.12:
                box = {"facecolor": style.colour, "edgecolor": "none", "pad": 1} if style.pattern else None
                middle = (event["start"] + event["end"]) / 2
                options = {"ha": "center", "fontsize": 0.8 * FONT_SIZE, "bbox": box}
                self._text(axes, middle, (bottom + 0.92) / 2, text, style.text_colour, **options)
        for event in (event for event in track.truth or () if event["label"] == label):
            place = {"x": event["start"], "width": event["end"] - event["start"], "bottom": 0.08, "height": 0.24}
            axes.bar(**place, align="edge", color="none", edgecolor=self.colours["text"], hatch="////", linewidth=0.8)

    def _draw_waveform(self, axes: Any, track: Track, preview: VideoPreview) -> None:
        times = (np.arange(len(preview.peaks)) + 0.5) * preview.peaks_seconds / len(preview.peaks)
        heights = 0.46 * preview.peaks / max(float(preview.peaks.max()), 0.02)
        axes.fill_between(times, 0.5 - heights, 0.5 + heights, color=self.colours["faint"], linewidth=0.4)
        axes.set_xlim(0, track.duration or 1)
        axes.set_ylim(0, 1)

    def _draw_axis(self, axes: Any, track: Track) -> None:
        axes.plot((0, track.duration), (0.97, 0.97), color=self.colours["line"], linewidth=1, clip_on=False)
        for time in tick_times(track.duration):
            axes.plot((time, time), (0.8, 0.97), color=self.colours["line"], linewidth=1, clip_on=False)
            self._text(axes, time, 0.5, clock(time), self.colours["faint"], ha="center")

    def _box(
        self,
        axes: Any,
        start: float,
        end: float,
        low: float,
        high: float,
        fill: str,
        hatch: str = "",
        edge: bool = False,
    ) -> None:
        span = {"x": start, "width": end - start, "bottom": low, "height": high - low, "align": "edge"}
        has_room = end - start > axes.get_xlim()[1] / MAX_EDGED
        axes.bar(**span, color=fill, edgecolor=self.colours["edge"], linewidth=0.6 if edge and has_room else 0)
        if hatch:
            ink = "#000000" if LabelStyle(fill).text_colour == "#000000" else "#ffffff"
            axes.bar(**span, color="none", edgecolor=ink, hatch=hatch * 3, linewidth=0, alpha=0.55)

    def _text(self, axes: Any, x: float, y: float, text: str, colour: str, **options: Any) -> None:
        axes.text(x, y, text, color=colour, parse_math=False, va="center", **options)

    def _text_width(self, text: str) -> float:
        """Returns the width of a text in inches, in the default font size."""
        drawn = self.figure.text(0, 0, text, parse_math=False)
        width = drawn.get_window_extent(self.canvas.get_renderer()).width / self.figure.dpi
        drawn.remove()
        return width

    def _shortened(self, text: str, width: float) -> str:
        """Returns the text, with its middle left out if it is too wide."""
        return next(shorter for shorter in _shorter(text) if len(shorter) < 4 or self._text_width(shorter) <= width)


def _shorter(text: str) -> Iterator[str]:
    yield text
    for kept in range(min(len(text) - 1, 120), 1, -1):
        yield f"{text[: (kept + 1) // 2].rstrip()}…{text[len(text) - kept // 2 :].lstrip()}"
    yield "…"


def _lane_height(track: Track) -> float:
    return LANE if len(track.lanes) <= 12 or track.truth is not None else MANY_LANES
