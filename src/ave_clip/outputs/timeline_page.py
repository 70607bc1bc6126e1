"""Writes the timeline as a self-contained HTML page, without network access or other files.

Python fills a template with one JSON object; a script on the page builds everything from it with `textContent`, so no
label or file name can become markup. A content security policy forbids the page to load anything.
"""

import base64
import html
import io
import json
import os
import tempfile
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ..core.text import printable
from ..core.video_decoding import Recording
from ..core.video_source import VideoReadError, open_container, source_name
from .drawing import LabelStyle, clock, one_line, percent
from .timeline_track import Track
from .video_writing import even_size, rewrite_video

logger = logging.get_logger(__name__)

# Containers that browsers play, by FFmpeg's name of their format, and the codecs in them.
PLAYED_FORMATS = {"mov": "video/mp4", "webm": "video/webm"}
PLAYED_VIDEO = {"h264", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d"}
PLAYED_AUDIO = {"aac", "mp3", "mp3float", "opus", "libopus", "vorbis"}
PLAYED_PIXELS = {"yuv420p", "yuvj420p"}
# Longer videos are not encoded for the page: this would take minutes.
MAX_ENCODED_SECONDS = 600
SMALL_SIDE = 480
SMALL_SOUND_BIT_RATE = 64000
SMALL_OPTIONS = {"preset": "veryfast", "crf": "28"}


def write_page(
    tracks: list[Track], styles: Mapping[str, LabelStyle], path: Path, theme: str, max_embedded_bytes: int
) -> None:
    """Writes the page.

    Args:
        tracks (`list[Track]`): The videos.
        styles (`Mapping[str, LabelStyle]`): Style of each label.
        path (`Path`): The `.html` file.
        theme (`str`): `"dark"`, or `"light"` to follow the reader's system.
        max_embedded_bytes (`int`): Maximum size per video in the page; 0 embeds none.
    """
    content = [_track_object(track, max_embedded_bytes, path.parent) for track in tracks]
    shown = {label: {"colour": s.colour, "text": s.text_colour, "pattern": s.pattern} for label, s in styles.items()}
    template = (files("ave_clip") / "assets" / "timeline.html").read_text(encoding="utf-8")
    title = ", ".join(track.title for track in tracks[:3]) + ("…" if len(tracks) > 3 else "")
    values = {
        "%TITLE%": html.escape(f"{title} – audio-visual events"),
        "%THEME%": "dark" if theme == "dark" else "auto",
        "%DATA%": _script_json({"videos": content, "styles": shown}),
    }
    start, *rest = _split(template, list(values))
    with open(path, "w", encoding="utf-8", errors="replace") as file:
        file.write(start)
        for name, text in rest:
            file.write(values[name])
            file.write(text)


def _split(template: str, names: list[str]) -> list[Any]:
    """Splits a template into the text before the first name, and each name with the text after it."""
    places = sorted((template.index(name), name) for name in names)
    ends = [place for place, _ in places[1:]] + [len(template)]
    parts = [(name, template[place + len(name) : end]) for (place, name), end in zip(places, ends)]
    return [template[: places[0][0]], *parts]


def _script_json(content: Any) -> str:
    """Returns JSON that cannot end its script element, whatever its texts contain."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _track_object(track: Track, max_embedded_bytes: int, folder: Path) -> dict[str, Any]:
    preview = track.preview
    source, note = _embedded(track, max_embedded_bytes, folder)
    return {
        "title": track.title,
        "duration": track.duration,
        "length": clock(track.duration),
        "source": source,
        "note": note,
        "lanes": [{"label": label, "name": one_line(label)} for label in track.lanes],
        "segments": [_span(segment) for segment in track.segments],
        "events": [_span(event) for event in track.events],
        "truth": None if track.truth is None else [_span(event) for event in track.truth],
        "thumbnails": [] if preview is None else [_jpeg(image) for image in preview.thumbnails],
        "peaks": [] if preview is None else _percents(preview.peaks),
        "peaksSeconds": 0.0 if preview is None else preview.peaks_seconds,
    }


def _span(span: Mapping[str, Any]) -> dict[str, Any]:
    shown = {"start": span["start"], "end": span["end"], "label": span["label"], "name": one_line(span["label"])}
    if "score" in span:
        shown |= {"score": round(span["score"], 4), "percent": percent(span["score"])}
    return {**shown, "from": clock(span["start"]), "to": clock(span["end"])}


def _percents(peaks: np.ndarray) -> list[int]:
    return np.rint(100 * peaks / max(float(peaks.max()), 0.02)).astype(int).tolist() if len(peaks) else []


def _jpeg(image: np.ndarray) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=80)
    return _data_uri(stream.getvalue(), "image/jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _embedded(track: Track, max_bytes: int, folder: Path) -> tuple[str | None, str]:
    """Returns the video as a data URI, or `None`, and a note for the reader; a smaller copy is made in `folder`."""
    if track.preview is None:
        return None, "The video could not be read when this page was made."
    if not max_bytes:
        return None, "The video is not part of this page."
    try:
        kind = _played_kind(track.video)
        if kind is not None and os.path.isfile(track.video) and os.path.getsize(track.video) <= max_bytes:
            return _data_uri(Path(track.video).read_bytes(), kind), ""
        if not track.preview.info.has_video:
            return None, "The recording has no video and is not part of this page."
        if track.preview.info.duration_seconds > MAX_ENCODED_SECONDS:
            return None, "The video is too long to be part of this page."
        small = _small_copy(track.video, (track.preview.info.height, track.preview.info.width), folder)
    except (VideoReadError, OSError) as error:
        logger.warning(f"{printable(track.video)} is left out of the page: {error}")
        return None, "The video could not be encoded for this page."
    if len(small) > max_bytes:
        return None, "The video is too large to be part of this page."
    return _data_uri(small, "video/mp4"), "A smaller copy of the video."


def _played_kind(video: str) -> str | None:
    """Returns the MIME type if browsers can play the file unchanged, else `None`."""
    with open_container(video) as container:
        recording = Recording(container, source_name(video))
        names = recording.format_names
        stream, audio = recording.video, recording.audio
        if stream is None or stream.codec_context.name not in PLAYED_VIDEO:
            return None
        if stream.codec_context.pix_fmt not in PLAYED_PIXELS:
            return None
        if audio is not None and audio.codec_context.name not in PLAYED_AUDIO:
            return None
        is_webm = "webm" in names and stream.codec_context.name not in {"h264"}
        return PLAYED_FORMATS["webm"] if is_webm else PLAYED_FORMATS["mov"] if "mov" in names else None


def _small_copy(video: str, size: tuple[int, int], folder: Path) -> bytes:
    with tempfile.TemporaryDirectory(dir=folder) as part:  # in the page's hidden folder: never left behind
        path = Path(part) / "small.mp4"
        options = {"sound_bit_rate": SMALL_SOUND_BIT_RATE, "encoder_options": SMALL_OPTIONS}
        rewrite_video(video, path, size=even_size(*size, SMALL_SIDE), **options)
        return path.read_bytes()
