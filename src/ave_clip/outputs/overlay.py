"""Draws a result on its video: heat map, label, score and a timeline of the events.

AGVA's weights are drawn over each segment as a heat map, within the part of the frame that the model saw (a centre
square). It fades to nothing where the frame goes on beyond that part. Below are the label with its score, and a strip
of all events with a cursor.

Everything is blended in the video's own YUV planes: `frame * (256 - alpha) + colour * alpha`, with alpha and colour
prepared once per segment.
"""

import bisect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..core.categories import BACKGROUND_LABEL
from ..core.text import printable
from ..core.video_io import VideoInfo, probe_video
from .drawing import check_result, label_styles, load_font, one_line, percent, rgb
from .video_writing import Planes, even_size, rewrite_video

# From zero to twice the average weight or more: transparent, violet, orange, yellow; the lightness increases
# steadily, so that the order is also visible in greyscale.
HEAT_ALPHAS = (0.0, 0.45, 0.6, 0.7)
HEAT_COLOURS = ("#2d0b59", "#a52c60", "#f06b22", "#ffd21f")
MIN_PEAK = 2.0
# Fraction of the side of the crop over which the heat map fades to nothing where the frame goes on: a hard edge would
# look like one in the picture.
FADE = 0.06
BAND_COLOUR = "#101418"
BAND_ALPHA = 0.72
MAX_SIDE = 1920
SUFFIX = ".mp4"
# Twice the bytes of slower presets, but encoding is most of the cost.
PRESET = "ultrafast"
# Frames are assumed to be BT.709 from this height on, else BT.601; a wrong guess only tints the drawing.
HD_HEIGHT = 720


@dataclass
class _Blend:
    """A blend into a rectangle of one plane: `(plane * keep + add) / 256`."""

    top: int
    left: int
    keep: np.ndarray
    add: np.ndarray

    def apply(self, plane: np.ndarray) -> None:
        height, width = self.keep.shape
        part = plane[self.top : self.top + height, self.left : self.left + width]
        total = np.multiply(part, self.keep, dtype=np.uint16)
        total += self.add
        total >>= 8
        part[:] = total


def write_overlay(
    video: str | os.PathLike,
    result: Mapping[str, Any],
    output: str | os.PathLike,
    *,
    heatmaps: np.ndarray | None = None,
    video_processor: Any | None = None,
    progress: bool | Callable[[str, float, float], None] = False,
    font: str | None = None,
    preset: str = PRESET,
) -> None:
    """Writes a video with heat maps, labels and timeline drawn on it, and with its audio.

    Videos whose longer side has more than 1920 pixels are scaled down to that.

    Args:
        video (`str` or `os.PathLike`): Path or http(s) URL.
        result (`Mapping`): The pipeline's result for this video.
        output (`str` or `os.PathLike`): The mp4 file. It is written atomically and replaces an existing file.
        heatmaps (`np.ndarray` of shape `(num_segments, rows, columns)`, *optional*): AGVA's weights, as the pipeline
            returns them with `return_heatmaps=True`. Default: `result["heatmaps"]`, if it exists. Weights at or below
            their average are not drawn.
        video_processor ([`AVEClipVideoProcessor`], *optional*): The processor that cropped the frames for the model.
            Default: the model saw the centre square.
        progress (`bool` or `Callable`): `True` for a bar, or a function called as
            `progress(name, seconds_done, seconds)`.
        font (`str`, *optional*): Font file for the labels. Default: an installed font for the labels' script.
        preset (`str`): Preset of the encoder x264; slower ones, such as `"medium"`, give smaller files.

    Raises:
        ValueError: If the result or the heat maps do not fit, or the video cannot be read or has no frames.
        OSError: If `output` cannot be written.
    """
    if not isinstance(video, (str, os.PathLike)) or not isinstance(output, (str, os.PathLike)):
        raise ValueError(
            f"Got a {type(video).__name__} as video and a {type(output).__name__} as output. Pass the video's path, "
            'its result, and a path: write_overlay("clip.mp4", localizer("clip.mp4"), "overlay.mp4").'
        )
    if Path(output).suffix.lower() != SUFFIX:
        raise ValueError(f"Cannot write {output}: an overlay must end in {SUFFIX}.")
    name = os.fsdecode(video)
    check_result(result, name)
    maps = _checked_heatmaps(result.get("heatmaps") if heatmaps is None else heatmaps, len(result["segments"]))
    info = probe_video(video, is_quiet=True)
    size = even_size(max(2, info.height), max(2, info.width), MAX_SIDE)
    painter = _Painter(result, maps, size, info, video_processor, font)
    with _reporter(progress, name, painter.duration) as report:
        options = {"size": size, "progress": report, "encoder_options": {"preset": preset}}
        # Quiet, because whoever made the result has read the video and warned of it.
        rewrite_video(video, output, draw=painter.draw, is_quiet=True, **options)


def _checked_heatmaps(heatmaps: Any, num_segments: int) -> np.ndarray | None:
    """Returns the weights relative to their mean, so that 1 is average; `None` without heat maps."""
    if heatmaps is None or not num_segments:
        return None
    maps = np.asarray(heatmaps, dtype=np.float32)
    if maps.ndim != 3 or len(maps) != num_segments or 0 in maps.shape:
        raise ValueError(
            f"Got heat maps of shape {maps.shape} for {num_segments} segments, expected ({num_segments}, rows, "
            "columns). Pass the heat maps of this result."
        )
    if not np.isfinite(maps).all() or (maps < 0).any():
        raise ValueError(
            "Got heat maps with negative, infinite or NaN weights. Pass the pipeline's heat maps unchanged."
        )
    mean = maps.mean(axis=(1, 2), keepdims=True)
    return maps / np.where(mean > 0, mean, 1)


class _Painter:
    """Draws on one video's frames. Everything that does not change during a segment is prepared once."""

    def __init__(
        self,
        result: Mapping[str, Any],
        heatmaps: np.ndarray | None,
        size: tuple[int, int],
        info: VideoInfo,
        video_processor: Any | None,
        font: str | None,
    ) -> None:
        self.segments, self.events = list(result["segments"]), result["events"]
        self.heatmaps, self.size, self.font = heatmaps, size, font
        active = [entry for segment in self.segments for entry in segment.get("labels", ())]
        self.styles = label_styles(entry["label"] for entry in (*self.events, *self.segments, *active))
        self.rows = _rows_of(self.events)
        self.duration = max([info.duration_seconds, *(segment["end"] for segment in self.segments)])
        self.crop = _crop_box(size, video_processor)
        self.fades = [_fade(self.crop, size, factor) for factor in (1, 2, 2)]  # per plane
        self.matrix = _rgb_to_yuv(size[0])
        self.peak = MIN_PEAK if heatmaps is None else max(MIN_PEAK, float(np.quantile(heatmaps, 0.995)))
        shorter = min(size)
        row_height = max(6, 0.025 * shorter)
        self.strip_height = min(_even(row_height * max(self.rows, default=0) + row_height), _even(size[0] / 6))
        self.band_height = min(_even(max(26, 0.115 * shorter)), _even(size[0] / 3))
        self._starts = [segment["start"] for segment in self.segments]
        self._current: int | None = None
        self._blends: list[list[_Blend]] = []

    def draw(self, planes: Planes, time: float) -> None:
        index = self._segment_at(time)
        if not self._blends or index != self._current:
            self._current, self._blends = index, self._prepare(index)
        for plane, blends in zip(planes, self._blends):
            for blend in blends:
                blend.apply(plane)
        self._draw_cursor(planes, time)

    def _segment_at(self, time: float) -> int:
        """Returns the index of the segment, or -1 outside all segments."""
        index = bisect.bisect_right(self._starts, time + 1e-4) - 1
        return index if index >= 0 and time < self.segments[index]["end"] else -1

    def _prepare(self, index: int) -> list[list[_Blend]]:
        """Returns, per plane, the blends for all frames of this segment."""
        band = self._band_blends(index)
        if self.heatmaps is None or index < 0:
            return [[blend] for blend in band]
        return [list(pair) for pair in zip(self._heat_blends(self.heatmaps[index]), band)]

    def _heat_blends(self, heatmap: np.ndarray) -> list[_Blend]:
        from PIL import Image

        top, left, height, width = self.crop
        strength = np.clip((heatmap - 1) / (self.peak - 1), 0, 1)
        alphas, colours = _heat_table(self.matrix)
        blends = []
        for plane in range(3):
            factor = 1 if plane == 0 else 2
            image = Image.fromarray(strength).resize((width // factor, height // factor), Image.Resampling.BICUBIC)
            steps = np.clip(np.asarray(image) * 255 + 0.5, 0, 255).astype(np.uint8)
            # Only the opacity fades: a colour stands for a weight.
            alpha = np.rint(alphas[steps] * self.fades[plane]).astype(np.uint16)
            blends.append(_Blend(top // factor, left // factor, 256 - alpha, alpha * colours[:, plane][steps]))
        return blends

    def _band_blends(self, index: int) -> list[_Blend]:
        image = np.asarray(self._band_image(index), np.float32)  # (band height, width, 4)
        alpha = np.rint(image[..., 3] * (256 / 255))
        yuv = image[..., :3] @ self.matrix[:, :3].T + self.matrix[:, 3]
        top = self.size[0] - len(image)
        blends = [_blend_of(top, alpha, yuv[..., 0])]
        for plane in (1, 2):
            blends.append(_blend_of(top // 2, _halved(alpha), _halved(yuv[..., plane])))
        return blends

    def _band_image(self, index: int) -> Any:
        """Returns an RGBA image of label and score, and below them the strip of events."""
        from PIL import Image, ImageDraw

        height, width = self.band_height + self.strip_height, self.size[1]
        image = Image.new("RGBA", (width, height), (*rgb(BAND_COLOUR), round(255 * BAND_ALPHA)))
        canvas = ImageDraw.Draw(image)
        if index >= 0:
            self._draw_label(canvas, self.segments[index])
        top = self.band_height
        canvas.rectangle((0, top, width, height), fill=(70, 76, 84, 255))
        edges = np.linspace(top, height, max(self.rows, default=0) + 2).round().astype(int)
        for event, row in zip(self.events, self.rows):
            left, right = (self._column(event[side]) for side in ("start", "end"))
            if right > left:
                colour = rgb(self.styles[event["label"]].colour)
                canvas.rectangle((left, edges[row], max(left, right - 2), edges[row + 1] - 1), fill=(*colour, 255))
        return image

    def _draw_label(self, canvas: Any, segment: Mapping[str, Any]) -> None:
        """Draws the label and score of a segment; of several labels at once, as many as have a legible width."""
        height, width = self.band_height, self.size[1]
        pad = max(2, height // 4)
        side = height - 2 * pad
        entries = list(segment.get("labels") or [segment])[: max(1, width // (3 * height))]
        for number, entry in enumerate(entries):
            begin, end = width * number // len(entries), width * (number + 1) // len(entries)
            colour = rgb(self.styles[entry["label"]].colour)
            box = (begin + pad, pad, begin + pad + side, pad + side)
            canvas.rectangle(box, fill=(*colour, 255), outline=(255, 255, 255, 255))
            left = begin + 2 * pad + side
            label, score = one_line(str(entry["label"])), percent(entry["score"])
            font, text = _fitted(label, f"  {score}", end - left - pad, round(0.62 * height), self.font)
            shade = 170 if entry["label"] == BACKGROUND_LABEL else 255
            canvas.text((left, height / 2), text, font=font, fill=(shade, shade, shade, 255), anchor="lm")

    def _column(self, time: float) -> int:
        return min(self.size[1], round(self.size[1] * time / self.duration)) if self.duration else 0

    def _draw_cursor(self, planes: Planes, time: float) -> None:
        """Draws a white line with black edges through the strip."""
        width = self.size[1]
        column = min(self._column(time) // 2 * 2, width - 2)
        top = self.size[0] - self.strip_height
        planes[0][top:, max(0, column - 2) : column + 4] = 16
        planes[0][top:, column : column + 2] = 235
        for plane in planes[1:]:
            plane[top // 2 :, max(0, column // 2 - 1) : column // 2 + 2] = 128


def _rows_of(events: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns a row of the strip for each event, so that events in one row do not overlap; as few rows as possible."""
    rows, ends = [0] * len(events), []
    for index in sorted(range(len(events)), key=lambda index: events[index]["start"]):
        free = [row for row, end in enumerate(ends) if end <= events[index]["start"]]
        rows[index] = free[0] if free else len(ends)
        ends[rows[index] : rows[index] + 1] = [events[index]["end"]]
    return rows


def _crop_box(size: tuple[int, int], video_processor: Any | None) -> tuple[int, int, int, int]:
    """Returns top, left, height and width, all even, of the part of the frame that the model sees."""
    height, width = size
    crop = (min(size), min(size))
    if video_processor is not None and not video_processor.do_center_crop:
        crop = size
    elif video_processor is not None:
        wanted, resized = video_processor.crop_size, video_processor.size if video_processor.do_resize else {}
        resized_sides = [resized.get("height", height), resized.get("width", width)]
        sides = size
        if resized.get("shortest_edge"):
            resized_sides, sides = [resized["shortest_edge"]] * 2, (min(size), min(size))
        # The product comes first: 224 * (230 / 224) is below 230, and the crop would end two pixels before the frame.
        parts = (wanted["height"] * sides[0] / resized_sides[0], wanted["width"] * sides[1] / resized_sides[1])
        crop = (min(height, parts[0]), min(width, parts[1]))
    rows, columns = (max(2, _even(side)) for side in crop)
    return _even((height - rows) / 2), _even((width - columns) / 2), rows, columns


def _fade(crop: tuple[int, int, int, int], size: tuple[int, int], factor: int) -> np.ndarray:
    """Returns the opacity of the heat map in the crop, from 0 to 1; `factor` is 2 for planes of half the size."""
    top, left, height, width = crop
    sides = []
    for start, length, whole in ((top, height, size[0]), (left, width, size[1])):
        places = np.arange(length // factor, dtype=np.float32) + 0.5
        before = places if start > 0 else np.inf
        after = places[::-1] if start + length < whole else np.inf
        ramp = np.clip(np.minimum(before, after) / (FADE * length / factor), 0, 1)
        sides.append(np.broadcast_to(ramp * ramp * (3 - 2 * ramp), places.shape))  # without a kink at either end
    return np.multiply.outer(*sides).astype(np.float32)


def _even(value: float) -> int:
    return int(value) // 2 * 2


def _rgb_to_yuv(height: int) -> np.ndarray:
    """Returns a `(3, 4)` matrix: weights of red, green, blue and an offset, for limited-range YUV (BT.601 or 709)."""
    red, blue = (0.2126, 0.0722) if height >= HD_HEIGHT else (0.299, 0.114)
    luma = np.array([red, 1 - red - blue, blue])
    rows = [
        luma * 219 / 255,
        (np.array([0, 0, 1]) - luma) / (1 - blue) * 112 / 255,
        (np.array([1, 0, 0]) - luma) / (1 - red) * 112 / 255,
    ]
    return np.column_stack([rows, [16, 128, 128]]).astype(np.float32)


def _heat_table(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns alpha `(256,)` from 0 to 256 and YUV colour `(256, 3)` for each strength, as uint16."""
    steps, places = np.linspace(0, 1, 256), np.linspace(0, 1, len(HEAT_ALPHAS))
    alphas = np.rint(256 * np.interp(steps, places, HEAT_ALPHAS)).astype(np.uint16)
    anchors = np.array([rgb(colour) for colour in HEAT_COLOURS])
    colours = np.stack([np.interp(steps, places, anchors[:, channel]) for channel in range(3)], axis=1)
    yuv = colours @ matrix[:, :3].T + matrix[:, 3]
    return alphas, np.rint(yuv).astype(np.uint16)


def _blend_of(top: int, alpha: np.ndarray, colour: np.ndarray) -> _Blend:
    return _Blend(top, 0, (256 - alpha).astype(np.uint16), np.rint(alpha * colour).astype(np.uint16))


def _halved(values: np.ndarray) -> np.ndarray:
    """Averages blocks of 2 x 2 pixels."""
    height, width = values.shape
    return np.floor(values.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)))


def _fitted(text: str, ending: str, width: int, size: int, file: str | None) -> tuple[Any, str]:
    """Returns the largest font, down to two thirds of `size`, in which a text fits, and the text.

    If the text does not fit in the smallest font, it is cut before its ending.
    """
    for smaller in range(size, max(7, size * 2 // 3), -1):
        font = load_font(smaller, text, file)
        if font.getlength(text + ending) <= width:
            return font, text + ending
    font = load_font(max(7, size * 2 // 3), text, file)
    for length in range(len(text), -1, -1):
        shorter = text if length == len(text) else text[:length].rstrip() + "…"
        if font.getlength(shorter + ending) <= width:
            return font, shorter + ending
    return font, ending.strip()


@contextmanager
def _reporter(
    progress: bool | Callable[[str, float, float], None], name: str, duration: float
) -> Iterator[Callable[[float], None] | None]:
    """Yields the function that is called with the time of each frame."""
    if not progress:
        yield None
    elif callable(progress):
        yield lambda time: progress(name, min(time, duration), duration)
    else:
        done = 0.0

        def report(time: float) -> None:
            nonlocal done
            bar.update(min(time, duration) - done)  # `bar.n` is not a number if progress bars are disabled
            done = min(time, duration)

        with logging.tqdm(total=round(duration, 2), desc=f"{printable(name)} (overlay)", unit="s") as bar:
            yield report
