"""The content of a timeline for one video."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from transformers.utils import logging

from ..core.categories import BACKGROUND_LABEL
from ..core.video_source import VideoReadError, source_name
from .drawing import one_line
from .video_preview import VideoPreview, read_preview

logger = logging.get_logger(__name__)

# From this number on, neighbouring segments with the same label are drawn as one, with their mean score.
MAX_SINGLE_SEGMENTS = 300

Span = Mapping[str, Any]


@dataclass
class Track:
    """The drawn content of one video.

    Attributes:
        video: Path or URL.
        title: Its file name, on one line.
        duration: Seconds that the lanes span.
        segments: Scores per segment; joined in long videos.
        events: Predicted events.
        truth: True events; `None` if they are not known.
        preview: Thumbnails and waveform; `None` if the video could not be read.
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


def read_track(video: str, result: Mapping[str, Any], truth: Sequence[Span] | None) -> Track:
    """Reads the drawn content of a video. The video may no longer exist; the track then has no preview.

    Args:
        video (`str`): Path or URL.
        result (`Mapping`): The pipeline's result for it.
        truth (`Sequence`, *optional*): Its true events.
    """
    spans = [*result["segments"], *result["events"], *(truth or ())]
    duration = max((span["end"] for span in spans), default=0.0)
    try:
        preview = read_preview(video, duration)
    except VideoReadError as error:
        logger.warning(f"Drawn without thumbnails and audio: {error}")
        preview = None
    name = source_name(video)
    return Track(
        video=video,
        title=one_line(name.rstrip("/").rsplit("/", 1)[-1]) or one_line(name),
        duration=duration,
        segments=_joined(result["segments"]),
        events=sorted(result["events"], key=lambda span: span["start"]),
        truth=None if truth is None else sorted(truth, key=lambda span: span["start"]),
        preview=preview,
    )


def _joined(segments: Sequence[Span]) -> list[dict[str, Any]]:
    """Returns the segments, or for long videos the runs of one label with their mean score."""
    if len(segments) <= MAX_SINGLE_SEGMENTS:
        return [dict(segment) for segment in segments]
    joined = []
    for label, run in groupby(segments, key=lambda segment: segment["label"]):
        run = list(run)
        score = sum(segment["score"] for segment in run) / len(run)
        joined.append({"start": run[0]["start"], "end": run[-1]["end"], "label": label, "score": score})
    return joined
