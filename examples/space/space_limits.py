"""What the Space accepts: its settings, and the videos and labels within their limits."""

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path

from ave_clip.core.pipeline_ave_clip import parse_labels
from ave_clip.core.video_io import VideoInfo, VideoReadError, probe_video

MEGABYTE = 2**20  # as Gradio counts
MAX_PIXELS = 3840 * 2160
MAX_LABELS = 50
MAX_LABEL_CHARACTERS = 100


class UnusableVideoError(ValueError):
    """A video that this app does not accept. The message is shown to the user."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The models and limits of the app.

    Attributes:
        models: Folder, Hub id or built-in name of each model by the name shown. The first is chosen at the start.
        max_seconds: Longest video.
        max_megabytes: Largest file.
        cached_models: Models kept in memory at once.
    """

    models: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: {name: name for name in ("ave-clip-mini", "ave-clip-tiny")}
    )
    max_seconds: float = 300
    max_megabytes: float = 100
    cached_models: int = 2


def read_settings(environment: Mapping[str, str]) -> Settings:
    """Settings from environment variables.

    Args:
        environment (`Mapping`): `AVE_CLIP_MODELS` contains models between commas, each a folder, Hub id or
            built-in name, or `name=folder or id`; `AVE_CLIP_MAX_SECONDS`, `AVE_CLIP_MAX_MB` and
            `AVE_CLIP_CACHED_MODELS` contain numbers.

    Raises:
        ValueError: if two models have the same name, one is empty, or a number is not above 0.
    """
    defaults = Settings()
    models = {}
    for entry in filter(None, map(str.strip, environment.get("AVE_CLIP_MODELS", "").split(","))):
        name, separator, place = (part.strip() for part in entry.partition("="))
        place = place if separator else name
        name = name if separator else Path(name).name
        if not name or not place or name in models:
            raise ValueError(f"AVE_CLIP_MODELS: {entry!r} has no name or place of its own. Write name=folder-or-id.")
        models[name] = place
    return Settings(
        models=models or defaults.models,
        max_seconds=_positive(environment, "AVE_CLIP_MAX_SECONDS", defaults.max_seconds),
        max_megabytes=_positive(environment, "AVE_CLIP_MAX_MB", defaults.max_megabytes),
        cached_models=max(1, int(_positive(environment, "AVE_CLIP_CACHED_MODELS", defaults.cached_models))),
    )


def _positive(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not re.fullmatch(r"\d+(\.\d+)?", text) or float(text) <= 0:
        raise ValueError(f"{name}={text!r}, but it must be a number above 0, such as {default}.")
    return float(text)


def check_video(path: str | None, settings: Settings) -> VideoInfo:
    """Checks a video against the limits, decoding at most its first frame.

    Args:
        path (`str`, *optional*): The file.
        settings ([`Settings`]): The limits.

    Raises:
        UnusableVideoError: if there is no file, or it is too large, too long, not a video, or has no audio or frames.
    """
    if not path:
        raise UnusableVideoError("Choose a video first: upload one, record one, or take an example.")
    name, megabytes = Path(path).name, os.path.getsize(path) / MEGABYTE
    if megabytes > settings.max_megabytes:
        raise UnusableVideoError(
            f"{name} has {megabytes:.1f} MB, but at most {settings.max_megabytes:g} MB are taken here. "
            "Cut it, or make its pictures smaller."
        )
    try:
        info = probe_video(path)
    except VideoReadError as error:
        raise UnusableVideoError(str(error).replace(path, name)) from error
    if info.duration_seconds > settings.max_seconds + 1:
        raise UnusableVideoError(too_long(name, f"lasts {info.duration_seconds:.0f} s", settings))
    missing = [what for what, has in (("sound track", info.has_audio), ("pictures", info.has_video)) if not has]
    if missing:
        raise UnusableVideoError(
            f"{name} has no {missing[0]}. An audio-visual event is heard and seen at once, so there is nothing to "
            "find in it. Choose a video with sound."
        )
    if info.width * info.height > MAX_PIXELS:
        raise UnusableVideoError(
            f"The pictures of {name} have {info.width} x {info.height} pixels, but at most 3840 x 2160 are taken "
            "here. Make them smaller."
        )
    return info


def too_long(name: str, length: str, settings: Settings) -> str:
    """Returns the message for a video above `max_seconds`; `length` says how long it is."""
    return f"{name} {length}, but at most {settings.max_seconds:g} s are taken here. Cut it to the part that matters."


def check_labels(text: str) -> list[str]:
    """Returns the labels in a text, separated by commas or line breaks.

    Raises:
        ValueError: if there are none, too many, too long ones, duplicates, or "background".
    """
    entries = [entry for entry in re.split(r"[,\n]", text or "") if entry.strip()]
    if not entries:
        raise ValueError("This model looks for what you name: write one or more labels, such as: dog bark, bell.")
    if len(entries) > MAX_LABELS or max(map(len, entries)) > MAX_LABEL_CHARACTERS:
        raise ValueError(
            f"Got {len(entries)} labels, the longest of {max(map(len, entries))} characters, but at most {MAX_LABELS} "
            f"labels of {MAX_LABEL_CHARACTERS} characters are taken here."
        )
    return parse_labels(entries)
