"""Generates long synthetic videos in which several events happen at once, annotated in one CSV file.

The classes are eight of those of `clips`. In a video each of them occurs several times: as an event (its object and
its sound at the same time), as the object alone or as the sound alone. Up to three objects are visible and up to three
sounds audible at any time. All times are multiples of a quarter of a second.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ...files import new_folder
from ..storage import CATEGORIES_FILE
from .clips import (
    FRAME_RATE,
    GENERATOR_VERSION,
    METADATA_FILE,
    SAMPLING_RATE,
    SPLITS,
    SYNTHETIC_CATEGORIES,
    SYNTHETIC_CLASSES,
    check_numbers,
    check_target,
    draw_video_ids,
    mix_sounds,
    render_all,
    split_counts,
    write_video,
)
from .objects import HEIGHT, WIDTH, Mover, Scene, paste

logger = logging.get_logger(__name__)

ANNOTATIONS_CSV = "annotations.csv"
LONG_VIDEO_FOLDER = "videos"
STEPS_PER_SECOND = 4  # of the grid on which everything begins and ends
EVENT_SECONDS = (4.0, 12.0)
# Classes whose sounds stay distinguishable when others are mixed with them.
OVERLAPPING_CATEGORIES = (
    "Rising kite",
    "Whirling siren",
    "Glass marble",
    "Rattling crate",
    "Violet organ",
    "Humming top",
    "Crystal harp",
    "Radio moth",
)
_CLASSES = tuple(SYNTHETIC_CLASSES[SYNTHETIC_CATEGORIES.index(name)] for name in OVERLAPPING_CATEGORIES)
LEVELS_DB = (-20.0, -16.0)  # of sounds: similar, so that none masks the others
MAX_AT_ONCE = 3  # objects, and sounds
SECONDS_PER_OCCURRENCE = 3.5  # of the video, for each occurrence of a class that is drawn
# An occurrence is an event, only seen or only heard.
_KINDS, _KIND_PROBABILITIES = ("event", "seen", "heard"), (0.7, 0.15, 0.15)
# Occurrences of one class are at least this far apart, so that the ends of an event are clear.
_GAP_SECONDS = 2.0
# Where the objects that are visible together are, as fractions of width and height: inside the square in the middle of
# the frame, which is all that image towers see.
_PLACES = ((0.31, 0.33), (0.5, 0.69), (0.69, 0.33))
_LARGEST_RADIUS = 24.0  # pixels; larger objects would hide each other
_ATTEMPTS = 20


@dataclass(frozen=True)
class Occurrence:
    """One occurrence of a class in a video.

    Attributes:
        category (`int`): The class, an index of `OVERLAPPING_CATEGORIES`.
        kind (`str`): "event", "seen" (the object alone) or "heard" (the sound alone).
        start (`float`), end (`float`): Seconds.
        place (`int`): Where the object is, an index of the places in a frame.
    """

    category: int
    kind: str
    start: float
    end: float
    place: int = 0


@dataclass(frozen=True)
class LongScript:
    """What happens in one long video.

    Attributes:
        split (`str`): One of `SPLITS`.
        index (`int`): Number of the video within its split.
        num_seconds (`int`): Length of the video.
        occurrences (`tuple[Occurrence, ...]`): In the order of their start.
        silent_room (`bool`): Whether the background is digital silence instead of noise and hum.
    """

    split: str
    index: int
    num_seconds: int
    occurrences: tuple[Occurrence, ...]
    silent_room: bool

    @property
    def events(self) -> tuple[Occurrence, ...]:
        """The occurrences that are both seen and heard."""
        return tuple(one for one in self.occurrences if one.kind == "event")


def generate_overlapping_videos(
    out_dir: str | os.PathLike,
    num_videos: int = 20,
    num_seconds: int = 60,
    seed: int = 0,
    num_workers: int | None = None,
    splits: Sequence[float] = (0.8, 0.1, 0.1),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, int]:
    """Generates long videos with overlapping events.

    The folder contains `videos/<id>.mp4`, `annotations.csv` with the columns `path, label, start, end, split,
    duration` (a video without events has one row without a label), `categories.txt` and `synthetic.json`. The write is
    atomic. The same seed gives the same videos for any number of workers.

    Args:
        out_dir (`str` or `os.PathLike`): Folder to create, with its parent folders.
        num_videos (`int`): Number of videos in all splits together.
        num_seconds (`int`): Length of each video, at least 10.
        seed (`int`): Seed of at least 0.
        num_workers (`int`, *optional*): Number of rendering processes. Defaults to the number of processors; with 0 or
            1, this process renders.
        splits (`Sequence[float]`): Fractions of train, validation and test, which sum to 1.
        overwrite (`bool`): Replace an earlier synthetic data set at `out_dir`.
        progress (`Callable[[int, int], None]`, *optional*): Called with the number of finished and of all videos.

    Returns:
        `dict[str, int]`: The number of events per split.

    Raises:
        ValueError: if an argument is out of range, or `out_dir` is in use.
    """
    if num_workers is None:
        num_workers = os.cpu_count() or 1
    numbers = {"num_videos": (num_videos, 1), "num_seconds": (num_seconds, 10)}
    check_numbers(**numbers, seed=(seed, 0), num_workers=(num_workers, 0))
    counts = split_counts(num_videos, splits)
    target = Path(out_dir).resolve()
    check_target(target, overwrite)
    scripts = [draw_long_script(seed, split, index, num_seconds) for split in SPLITS for index in range(counts[split])]
    names = [f"{LONG_VIDEO_FOLDER}/{video_id}.mp4" for video_id in draw_video_ids(seed, scripts)]
    events = {split: sum(len(one.events) for one in scripts if one.split == split) for split in SPLITS}
    with new_folder(target, overwrite) as folder:
        (folder / LONG_VIDEO_FOLDER).mkdir()
        paths = [str(folder / name) for name in names]
        render_all(partial(render_long_video, seed), scripts, paths, num_workers, progress)
        (folder / ANNOTATIONS_CSV).write_text(_annotations(scripts, names), encoding="utf-8")
        names_of_classes = "".join(f"{name}\n" for name in OVERLAPPING_CATEGORIES)
        (folder / CATEGORIES_FILE).write_text(names_of_classes, encoding="utf-8")
        facts = {
            "about": "Synthetic videos with overlapping events made by ave_clip. No real recordings.",
            "generator_version": GENERATOR_VERSION,
            "seed": int(seed),
            "num_seconds": int(num_seconds),
            "num_videos": counts,
            "num_events": events,
        }
        (folder / METADATA_FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        check_target(target, overwrite)  # again: another program may have used the name during the rendering
    logger.info(f"Wrote {num_videos} synthetic videos to {target}.")
    return events


def draw_long_script(seed: int, split: str, index: int, num_seconds: int) -> LongScript:
    """Draws what happens in one video; the result depends only on the arguments."""
    rng = _generator(seed, split, index, "script")
    num_classes = len(OVERLAPPING_CATEGORIES)
    # All classes in turn, in an order that differs from video to video, so that they are about equally frequent.
    order = iter([])
    drawn: list[Occurrence] = []
    for _ in range(round(num_seconds / SECONDS_PER_OCCURRENCE)):
        category = next(order, None)
        if category is None:
            order = iter(rng.permutation(num_classes).tolist())
            category = next(order)
        for _ in range(_ATTEMPTS):
            candidate = _draw_occurrence(rng, category, num_seconds)
            place = _free_place(candidate, drawn)
            if place is not None:
                drawn.append(Occurrence(category, candidate.kind, candidate.start, candidate.end, place))
                break
    ordered = tuple(sorted(drawn, key=lambda one: (one.start, one.category)))  # as an annotator would list them
    return LongScript(split, index, num_seconds, ordered, bool(rng.uniform() < 0.06))


def _generator(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    # The first number separates these videos from the clips of the same seed.
    purposes = ("script", "objects", "sounds")
    return np.random.default_rng([60, seed, SPLITS.index(split), index, purposes.index(purpose)])


def _draw_occurrence(rng: np.random.Generator, category: int, num_seconds: int) -> Occurrence:
    kind = _KINDS[rng.choice(len(_KINDS), p=_KIND_PROBABILITIES)]
    length = round(rng.uniform(*EVENT_SECONDS) * STEPS_PER_SECOND) / STEPS_PER_SECOND
    length = min(length, float(num_seconds))
    start = int(rng.integers(round((num_seconds - length) * STEPS_PER_SECOND) + 1)) / STEPS_PER_SECOND
    return Occurrence(category, kind, start, start + length)


def _free_place(candidate: Occurrence, drawn: Sequence[Occurrence]) -> int | None:
    """Returns a place that no other object has at that time, or `None` if the candidate does not fit."""
    together = [one for one in drawn if one.start < candidate.end and candidate.start < one.end]
    near = (
        one for one in drawn if one.start < candidate.end + _GAP_SECONDS and candidate.start < one.end + _GAP_SECONDS
    )
    if any(one.category == candidate.category for one in near):
        return None
    for kind in {"seen", "heard"} if candidate.kind == "event" else {candidate.kind}:
        if sum(one.kind in ("event", kind) for one in together) >= MAX_AT_ONCE:
            return None
    if candidate.kind == "heard":
        return 0
    taken = {one.place for one in together if one.kind != "heard"}
    free = [place for place in range(len(_PLACES)) if place not in taken]
    return free[(len(drawn) * 7 + candidate.category) % len(free)] if free else None


def render_long_video(seed: int, script: LongScript, path: str | os.PathLike) -> None:
    """Renders a script as an mp4 file, see [`~ave_clip.data.synthetic.clips.write_video`]."""
    frames = _render_frames(_generator(seed, script.split, script.index, "objects"), script)
    present: dict[int, np.ndarray] = {}
    for one in script.occurrences:
        if one.kind != "seen":
            steps = present.setdefault(one.category, np.zeros(script.num_seconds * STEPS_PER_SECOND, bool))
            steps[round(one.start * STEPS_PER_SECOND) : round(one.end * STEPS_PER_SECOND)] = True
    rng = _generator(seed, script.split, script.index, "sounds")
    samples_per_step = SAMPLING_RATE // STEPS_PER_SECOND
    heard = {_CLASSES[category]: steps for category, steps in sorted(present.items())}
    waveform = mix_sounds(rng, heard, samples_per_step, script.silent_room, script.num_seconds, LEVELS_DB)
    write_video(path, frames, waveform)


def _render_frames(rng: np.random.Generator, script: LongScript) -> Iterator[np.ndarray]:
    """Yields the video's frames in order, uint8 `(HEIGHT, WIDTH, 3)`."""
    scene = Scene(rng)
    visible = [one for one in script.occurrences if one.kind != "heard"]
    movers = []
    for one in visible:
        mover = Mover(_CLASSES[one.category].appearance, rng)
        mover.home = np.array([_PLACES[one.place][0] * WIDTH, _PLACES[one.place][1] * HEIGHT])
        mover.radius = min(mover.radius, _LARGEST_RADIUS)
        movers.append(mover)
    for index in range(script.num_seconds * FRAME_RATE):
        time = index / FRAME_RATE
        frame = scene.frame(time)
        for one, mover in zip(visible, movers):
            if one.start <= time < one.end:
                for layer in zip(*mover.draw(np.array([time]))):
                    paste(frame, *layer)
        yield scene.expose(frame)


def _annotations(scripts: Sequence[LongScript], names: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("path", "label", "start", "end", "split", "duration"))
    for script, name in zip(scripts, names):
        facts = ("validation" if script.split == "val" else script.split, script.num_seconds)
        for one in script.events:
            writer.writerow((name, OVERLAPPING_CATEGORIES[one.category], one.start, one.end, *facts))
        if not script.events:
            writer.writerow((name, "", "", "", *facts))
    return text.getvalue()


__all__ = ["generate_overlapping_videos"]
