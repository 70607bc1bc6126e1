"""The timeline as one HTML page that needs nothing else: no network, no files beside it.

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
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from .drawing import LabelStyle, clock, one_line, percent
from .video_decoding import Recording
from .video_source import VideoReadError, open_container, source_name
from .video_writing import even_size, rewrite_video

if TYPE_CHECKING:
    from .timeline import Track

logger = logging.get_logger(__name__)

# What browsers play: containers by their first bytes' format name, and codecs in them.
PLAYED_FORMATS = {"mov": "video/mp4", "webm": "video/webm"}
PLAYED_VIDEO = {"h264", "vp8", "vp9", "libvpx", "libvpx-vp9", "av1", "libdav1d"}
PLAYED_AUDIO = {"aac", "mp3", "mp3float", "opus", "libopus", "vorbis"}
PLAYED_PIXELS = {"yuv420p", "yuvj420p"}
# Longer ones are not encoded for the page: it would take minutes.
MAX_ENCODED_SECONDS = 600
SMALL_SIDE = 480
SMALL_SOUND_BIT_RATE = 64000
SMALL_OPTIONS = {"preset": "veryfast", "crf": "28"}


def write_page(
    tracks: "list[Track]", styles: Mapping[str, LabelStyle], path: Path, theme: str, max_embedded_bytes: int
) -> None:
    """Write the page.

    Args:
        tracks (`list[Track]`): The videos.
        styles (`Mapping[str, LabelStyle]`): Of each label.
        path (`Path`): The `.html` file.
        theme (`str`): `"dark"`, or `"light"` to follow the reader's system.
        max_embedded_bytes (`int`): Greatest size of a video in the page; 0 embeds none.
    """
    content = [_track_object(track, max_embedded_bytes) for track in tracks]
    shown = {label: {"colour": s.colour, "text": s.text_colour, "pattern": s.pattern} for label, s in styles.items()}
    template = (files(__package__) / "assets" / "timeline.html").read_text(encoding="utf-8")
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
    """The template before the first name, then each name with what follows it."""
    places = sorted((template.index(name), name) for name in names)
    ends = [place for place, _ in places[1:]] + [len(template)]
    parts = [(name, template[place + len(name) : end]) for (place, name), end in zip(places, ends)]
    return [template[: places[0][0]], *parts]


def _script_json(content: Any) -> str:
    """JSON that stays inside its script element whatever its texts hold."""
    text = json.dumps(content, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _track_object(track: "Track", max_embedded_bytes: int) -> dict[str, Any]:
    preview = track.preview
    source, note = _embedded(track, max_embedded_bytes)
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
        "thumbnails": [] if preview is None else [_jpeg(picture) for picture in preview.thumbnails],
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


def _jpeg(picture: np.ndarray) -> str:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=80)
    return _data_uri(stream.getvalue(), "image/jpeg")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _embedded(track: "Track", max_bytes: int) -> tuple[str | None, str]:
    """The video as a data URI, or `None`; and what to tell the reader about that."""
    if track.preview is None:
        return None, "The video could not be read when this page was made."
    if not max_bytes:
        return None, "The video is not part of this page."
    try:
        kind = _played_kind(track.video)
        if kind is not None and os.path.isfile(track.video) and os.path.getsize(track.video) <= max_bytes:
            return _data_uri(Path(track.video).read_bytes(), kind), ""
        if not track.preview.info.has_video:
            return None, "The recording has no picture and is not part of this page."
        if track.preview.info.duration_seconds > MAX_ENCODED_SECONDS:
            return None, "The video is too long to be part of this page."
        small = _small_copy(track.video, (track.preview.info.height, track.preview.info.width))
    except (VideoReadError, OSError) as error:
        logger.warning(f"{track.video} is left out of the page: {error}")
        return None, "The video could not be encoded for this page."
    if len(small) > max_bytes:
        return None, "The video is too large to be part of this page."
    return _data_uri(small, "video/mp4"), "A smaller copy of the video."


def _played_kind(video: str) -> str | None:
    """MIME type, if browsers play the file as it is."""
    with open_container(video) as container:
        recording = Recording(container, source_name(video))
        names = recording.format_names
        picture, sound = recording.video, recording.audio
        if picture is None or picture.codec_context.name not in PLAYED_VIDEO:
            return None
        if picture.codec_context.pix_fmt not in PLAYED_PIXELS:
            return None
        if sound is not None and sound.codec_context.name not in PLAYED_AUDIO:
            return None
        is_webm = "webm" in names and picture.codec_context.name not in {"h264"}
        return PLAYED_FORMATS["webm"] if is_webm else PLAYED_FORMATS["mov"] if "mov" in names else None


def _small_copy(video: str, size: tuple[int, int]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.mp4"
        options = {"sound_bit_rate": SMALL_SOUND_BIT_RATE, "encoder_options": SMALL_OPTIONS}
        rewrite_video(video, path, size=even_size(*size, SMALL_SIDE), **options)
        return path.read_bytes()
