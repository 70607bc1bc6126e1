"""Generates a synthetic data set of short videos with audio, in AVE's folder layout.

There are 16 classes, each a family of sounds (`sounds.py`) and of moving objects (`objects.py`). A clip lasts ten
seconds and contains at most one event: 2 to 10 whole seconds in which the object and the sound of one class occur
together. Before and after it there is the object without its sound, the sound without its object, a pair of other
classes, or nothing; every tenth clip has no event. It is easy to tell the classes apart; to tell *when* an event
happens requires both modalities.

`draw_script` decides what happens in each second, `render_clip` renders it, and `generate_synthetic_ave` does so for
every clip and writes the annotation files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import logging

from ...files import check_replaceable, new_folder
from ...programs import process_pool
from ..storage import ANNOTATIONS_FILE, CATEGORIES_FILE, VIDEO_FOLDER
from . import sounds
from .objects import HEIGHT, WIDTH, Appearance, Mover, Scene, paste

logger = logging.get_logger(__name__)

GENERATOR_VERSION = 1  # increase it whenever the same seed gives other clips
SPLITS = ("train", "val", "test")
NUM_SECONDS = 10
FRAME_RATE = 12
SAMPLING_RATE = 44100
NOTHING = -1  # no object is visible, or only the background is audible
METADATA_FILE = "synthetic.json"
LEVELS_DB = (-24.0, -15.0)  # lowest and highest level of a sound

# Fraction of events by duration in seconds. Short ones are rare, as in AVE, where 5 % of the rows last 2 s.
EVENT_LENGTHS = {2: 0.05, 3: 0.08, 4: 0.11, 5: 0.13, 6: 0.14, 7: 0.14, 8: 0.13, 9: 0.11, 10: 0.11}
EMPTY_SHARE = 0.10  # fraction of clips without an event
_ID_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@dataclass(frozen=True)
class SyntheticClass:
    """One class: its name, the function that makes its sound, and the appearance of its object."""

    name: str
    sound: Callable[[np.random.Generator, np.ndarray], np.ndarray]
    appearance: Appearance


SYNTHETIC_CLASSES = tuple(
    SyntheticClass(name, sound, Appearance(*look))
    for name, sound, look in (
        ("Amber gong", sounds.gong, ("ring", "plain", "beat", (0.11, 0.95, 1.0), (0.11, 0.5, 0.6))),
        ("Whirling siren", sounds.siren, ("circle", "wheel", "spin", (0.0, 0.9, 0.95), (0.0, 0.0, 1.0))),
        ("Glass marble", sounds.marble, ("circle", "shine", "bounce", (0.53, 0.85, 0.95), (0.53, 0.05, 1.0))),
        ("Rattling crate", sounds.crate, ("square", "checker", "shake", (0.07, 0.75, 0.6), (0.1, 0.5, 0.95))),
        ("Copper whistle", sounds.whistle, ("triangle", "plain", "slide", (0.05, 0.9, 0.95), (0.05, 0.5, 0.5))),
        ("Mossy frog", sounds.frog, ("blob", "shade", "hop", (0.3, 0.85, 0.75), (0.22, 0.7, 0.9))),
        ("Violet organ", sounds.organ, ("bars", "plain", "still", (0.76, 0.75, 0.95), (0.76, 0.4, 0.5))),
        ("Paper fan", sounds.fan, ("sector", "columns", "swing", (0.13, 0.08, 1.0), (0.95, 0.5, 0.9))),
        ("Laser comet", sounds.comet, ("star", "plain", "orbit", (0.24, 0.95, 1.0), (0.24, 0.5, 0.6))),
        ("Steel drummer", sounds.drummer, ("cross", "plain", "beat", (0.6, 0.3, 0.85), (0.6, 0.3, 0.6))),
        ("Rising kite", sounds.kite, ("kite", "stripes", "sway", (0.93, 0.7, 1.0), (0.15, 0.7, 1.0))),
        ("Humming top", sounds.top, ("gear", "plain", "spin", (0.45, 0.9, 0.7), (0.45, 0.5, 0.5))),
        ("Crackling ember", sounds.ember, ("flame", "core", "still", (0.02, 0.95, 0.9), (0.15, 0.9, 1.0))),
        ("Crystal harp", sounds.harp, ("snowflake", "plain", "slow spin", (0.57, 0.35, 1.0), (0.57, 0.3, 1.0))),
        ("Radio moth", sounds.moth, ("butterfly", "spots", "flap", (0.84, 0.85, 0.9), (0.16, 0.6, 1.0))),
        ("Tidal wave", sounds.tide, ("wave", "shade", "drift", (0.63, 0.95, 0.8), (0.5, 0.6, 0.95))),
    )
)
SYNTHETIC_CATEGORIES = tuple(one.name for one in SYNTHETIC_CLASSES)


@dataclass(frozen=True)
class ClipScript:
    """What happens in each second of a clip; its labels follow from it.

    Attributes:
        split (`str`): One of `SPLITS`.
        index (`int`): Number of the clip within its split.
        category (`int`): The row's class. It also occurs in a clip without an event, but never in both modalities at
            the same time.
        start (`int`): First second of the event; 0 without an event.
        end (`int`): Second at which the event ends; 0 without an event.
        objects (`tuple[int, ...]`): Class of the visible object in each second, or `NOTHING`.
        sounds (`tuple[int, ...]`): Class of the sound in each second, or `NOTHING`.
        silent_room (`bool`): Whether the background is digital silence instead of noise and hum.
    """

    split: str
    index: int
    category: int
    start: int
    end: int
    objects: tuple[int, ...]
    sounds: tuple[int, ...]
    silent_room: bool

    @property
    def labels(self) -> tuple[int, ...]:
        """The class of each second; background is the last class, `len(SYNTHETIC_CATEGORIES)`."""
        background = len(SYNTHETIC_CATEGORIES)
        return tuple(self.category if self.start <= t < self.end else background for t in range(NUM_SECONDS))


@dataclass(frozen=True)
class SyntheticSummary:
    """Statistics of a generated data set, which are also stored in `synthetic.json`.

    Attributes:
        path (`str`): The data set's folder.
        seed (`int`): Its seed.
        num_videos (`dict[str, int]`): Number of clips per split.
        background_share (`dict[str, float]`): Fraction of background seconds per non-empty split.
        empty_share (`float`): Fraction of clips without an event.
        mean_event_seconds (`float`): Mean duration of the events.
        num_classes (`int`): Number of categories, without background.
    """

    path: str
    seed: int
    num_videos: dict[str, int]
    background_share: dict[str, float]
    empty_share: float
    mean_event_seconds: float
    num_classes: int


# ── the script ──


def draw_script(seed: int, split: str, index: int) -> ClipScript:
    """Draws what happens in one clip.

    The result depends only on the arguments, so a larger data set with the same seed contains the clips of a smaller
    one.

    Args:
        seed (`int`): The data set's seed, at least 0.
        split (`str`): `"train"`, `"val"` or `"test"`.
        index (`int`): Number of the clip within the split, at least 0.

    Raises:
        ValueError: if the split is unknown or a number is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"Got split {split!r}, but it must be one of {', '.join(SPLITS)}.")
    if seed < 0 or index < 0:
        raise ValueError(f"Got seed {seed} and index {index}, but both must be at least 0.")
    rng = _generator(seed, split, index, "script")
    category, length = _draw_category(seed, split, index), _draw_length(seed, split, index)
    start = int(rng.integers(NUM_SECONDS - length + 1)) if length else 0
    end = start + length
    objects, heard = [NOTHING] * NUM_SECONDS, [NOTHING] * NUM_SECONDS
    if length:
        objects[start:end] = heard[start:end] = [category] * length
        _fill_around_event(rng, category, start, end, objects, heard)
    else:
        _fill_without_event(rng, category, objects, heard)
    silent_room = bool(rng.uniform() < 0.06)
    return ClipScript(split, index, category, start, end, tuple(objects), tuple(heard), silent_room)


def _generator(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """Returns the random generator for one purpose in one clip, independent of all others."""
    purposes = ("script", "objects", "sounds", "video id", "balance")
    return np.random.default_rng([seed, SPLITS.index(split), index, purposes.index(purpose)])


def _draw_category(seed: int, split: str, index: int) -> int:
    """Returns the class from a new permutation of all classes for every 16 clips, so that each is equally frequent."""
    number = len(SYNTHETIC_CATEGORIES)
    return int(_generator(seed, split, index // number, "balance").permutation(number)[index % number])


def _draw_length(seed: int, split: str, index: int) -> int:
    """Returns the event's duration in seconds, 0 for none."""
    # Multiples of the golden ratio modulo 1 fill [0, 1) evenly, so that small splits also have the intended fractions.
    offset = _generator(seed, split, 0, "balance").uniform()
    quantile = (offset + index * 0.6180339887498949) % 1
    lengths = (0, *EVENT_LENGTHS)
    fractions = np.array([EMPTY_SHARE, *((1 - EMPTY_SHARE) * fraction for fraction in EVENT_LENGTHS.values())])
    return lengths[min(int(np.searchsorted(fractions.cumsum(), quantile, side="right")), len(lengths) - 1)]


def _fill_around_event(
    rng: np.random.Generator, category: int, start: int, end: int, objects: list[int], heard: list[int]
) -> None:
    """Fills the seconds before and after an event, in place; object and sound never match there."""
    carriers, probabilities = ("object", "sound", "wrong pair", "nothing"), (0.44, 0.44, 0.07, 0.05)
    before = carriers[rng.choice(4, p=probabilities)]
    after = before if rng.uniform() < 0.7 else carriers[rng.choice(4, p=probabilities)]
    for region, carrier in ((range(start), before), (range(end, NUM_SECONDS), after)):
        for part in _parts(rng, region, 0.3):
            stranger = _draw_stranger(rng, category)
            if carrier == "object":
                _fill(part, category, stranger, objects, heard)
            elif carrier == "sound":
                _fill(part, stranger, category, objects, heard)
            elif carrier == "wrong pair":
                _fill(part, *_draw_pair(rng, category), objects, heard)


def _fill_without_event(rng: np.random.Generator, category: int, objects: list[int], heard: list[int]) -> None:
    """Fills a clip without an event: the class is visible or audible, or first one and then the other, never both."""
    sight_first = rng.uniform() < 0.5
    turn = int(rng.integers(3, NUM_SECONDS - 2)) if rng.uniform() < 0.3 else NUM_SECONDS
    for region, is_seen in ((range(turn), sight_first), (range(turn, NUM_SECONDS), not sight_first)):
        for part in _parts(rng, region, 0.6):
            stranger = _draw_stranger(rng, category)
            pair = (category, stranger) if is_seen else (stranger, category)
            _fill(part, *pair, objects, heard)


def _fill(part: range, shown: int, sound: int, objects: list[int], heard: list[int]) -> None:
    for second in part:
        objects[second], heard[second] = shown, sound


def _parts(rng: np.random.Generator, region: range, probability: float) -> list[range]:
    """Splits a region of seconds at a random second, with a probability and if it is long enough."""
    if len(region) < 3 or rng.uniform() >= probability:
        return [region]
    cut = int(rng.integers(1, len(region)))
    return [region[:cut], region[cut:]]


def _draw_stranger(rng: np.random.Generator, category: int) -> int:
    """Draws what accompanies a class in one modality only: another class, or nothing in a third of the cases."""
    return NOTHING if rng.uniform() < 0.33 else _draw_pair(rng, category)[0]


def _draw_pair(rng: np.random.Generator, category: int) -> tuple[int, int]:
    """Draws two different classes other than `category`."""
    number = len(SYNTHETIC_CATEGORIES)
    first, second = (category + 1 + rng.choice(number - 1, size=2, replace=False)) % number
    return int(first), int(second)


# ── one clip ──


def render_clip(seed: int, script: ClipScript, path: str | os.PathLike) -> None:
    """Renders a script as an mp4 file (h264, 192 x 144 pixels at 12 frames per second; aac, 44.1 kHz).

    Args:
        seed (`int`): The data set's seed.
        script ([`ClipScript`]): What happens in each second.
        path (`str` or `os.PathLike`): The file; its folder must exist.
    """
    frames = _render_frames(_generator(seed, script.split, script.index, "objects"), script)
    waveform = _render_waveform(_generator(seed, script.split, script.index, "sounds"), script)
    write_video(path, frames, waveform)


def write_video(path: str | os.PathLike, frames: Iterator[np.ndarray], waveform: np.ndarray) -> None:
    """Writes an mp4 file (h264, 192 x 144 pixels at 12 frames per second; aac, 44.1 kHz).

    Args:
        path (`str` or `os.PathLike`): The file; its folder must exist.
        frames (`Iterator[np.ndarray]`): Frames `(HEIGHT, WIDTH, 3)`, uint8, 12 for each second of audio.
        waveform (`np.ndarray` of shape `(1 or 2, num_samples)`): Audio of a whole number of seconds.
    """
    import av

    layout = "stereo" if len(waveform) == 2 else "mono"
    with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "ultrafast", "crf": "24"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.thread_count = 1  # clips are rendered in parallel instead
        audio = container.add_stream("aac", rate=SAMPLING_RATE, layout=layout, bit_rate=96000)
        for second in range(waveform.shape[1] // SAMPLING_RATE):
            for _ in range(FRAME_RATE):
                container.mux(video.encode(av.VideoFrame.from_ndarray(next(frames), format="rgb24")))
            piece = np.ascontiguousarray(waveform[:, second * SAMPLING_RATE : (second + 1) * SAMPLING_RATE])
            sound = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            sound.sample_rate, sound.pts = SAMPLING_RATE, second * SAMPLING_RATE
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def _render_frames(rng: np.random.Generator, script: ClipScript) -> Iterator[np.ndarray]:
    """Yields the clip's frames in order, uint8 `(HEIGHT, WIDTH, 3)`."""
    scene = Scene(rng)
    # Sorted, since the order of a set is not defined and decides which random numbers an object gets.
    classes = sorted(set(script.objects) - {NOTHING})
    movers = {shown: Mover(SYNTHETIC_CLASSES[shown].appearance, rng) for shown in classes}
    for second, shown in enumerate(script.objects):
        times = second + np.arange(FRAME_RATE) / FRAME_RATE
        drawn = zip(*movers[shown].draw(times)) if shown != NOTHING else [None] * FRAME_RATE
        for time, layer in zip(times, drawn):
            frame = scene.frame(time)
            if layer is not None:
                paste(frame, *layer)
            yield scene.expose(frame)


def _render_waveform(rng: np.random.Generator, script: ClipScript) -> np.ndarray:
    """Returns the clip's audio, float32 `(1 or 2 channels, samples)` in [-1, 1]."""
    heard = sorted(set(script.sounds) - {NOTHING})
    present = {SYNTHETIC_CLASSES[sound]: np.array(script.sounds) == sound for sound in heard}
    return mix_sounds(rng, present, SAMPLING_RATE, script.silent_room, NUM_SECONDS)


def mix_sounds(
    rng: np.random.Generator,
    present: Mapping[SyntheticClass, np.ndarray],
    samples_per_step: int,
    silent_room: bool,
    num_seconds: int,
    levels: tuple[float, float] = LEVELS_DB,
) -> np.ndarray:
    """Mixes the sounds of classes, each at its own level, with a background.

    Args:
        rng (`np.random.Generator`): Draws sounds and levels.
        present (`Mapping[SyntheticClass, np.ndarray]`): For each class, in which steps of the time grid it is heard,
            bool `(num_steps,)`.
        samples_per_step (`int`): Length of a step.
        silent_room (`bool`): Whether the background is digital silence.
        num_seconds (`int`): Length of the result.
        levels (`tuple[float, float]`): Lowest and highest level of a sound in dB, as root mean square.

    Returns:
        `np.ndarray` of shape `(1 or 2, num_samples)`, float32, in [-1, 1].
    """
    num_samples = num_seconds * SAMPLING_RATE
    times = np.arange(num_samples) / SAMPLING_RATE
    waveform = np.zeros(num_samples, np.float32)
    loudest = 0.0
    for one, steps in present.items():
        signal = one.sound(rng, times)
        level = 10 ** (rng.uniform(*levels) / 20)
        # At the drawn level, unless peaks would be clipped.
        signal *= np.float32(min(level / max(float(signal.std()), 1e-6), 0.8 / float(np.abs(signal).max())))
        loudest = max(loudest, float(signal.std()))
        waveform += signal * _gate(steps, samples_per_step)
    if not silent_room:
        # The background is 14 to 32 dB below the loudest sound.
        loudest = loudest or 10 ** (-20 / 20)
        noise_level = loudest * 10 ** (-rng.uniform(14, 32) / 20)
        waveform += np.float32(noise_level) * sounds.background_sound(rng, times)
    waveform = np.clip(waveform, -0.98, 0.98)
    if rng.uniform() < 0.7:
        return waveform[None]
    balance = rng.uniform(-0.4, 0.4)
    return np.stack([waveform * np.float32(min(1, 1 - balance)), waveform * np.float32(min(1, 1 + balance))])


def _gate(present: np.ndarray, samples_per_step: int, fade_seconds: float = 0.015) -> np.ndarray:
    """Returns a sound's volume over the clip: 1 in the steps of its presence, with short fades inside them."""
    gate = np.repeat(present.astype(np.float32), samples_per_step)
    fade = np.linspace(0, 1, int(fade_seconds * SAMPLING_RATE), dtype=np.float32)
    edges = np.flatnonzero(np.diff(present.astype(int))) + 1
    for edge in edges:
        sample = edge * samples_per_step
        if present[edge]:
            gate[sample : sample + len(fade)] = fade
        else:
            gate[sample - len(fade) : sample] = fade[::-1]
    return gate


# ── the data set ──


def generate_synthetic_ave(
    out_dir: str | os.PathLike,
    num_videos: int = 400,
    seed: int = 0,
    num_workers: int | None = None,
    splits: Sequence[float] = (0.8, 0.1, 0.1),
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticSummary:
    """Generates a synthetic data set in AVE's layout.

    The folder contains `AVE/<VideoID>.mp4`, `Annotations.txt` (all rows, grouped by category), `trainSet.txt`,
    `valSet.txt`, `testSet.txt`, `categories.txt` and `synthetic.json` (settings and statistics). The write is atomic.
    The same seed gives the same clips for any number of workers; no clip occurs in two splits.

    Args:
        out_dir (`str` or `os.PathLike`): Folder to create, with its parent folders.
        num_videos (`int`): Number of clips in all splits together.
        seed (`int`): Seed of at least 0.
        num_workers (`int`, *optional*): Number of rendering processes. Defaults to the number of processors; with 0 or
            1, this process renders.
        splits (`Sequence[float]`): Fractions of train, val and test, which sum to 1. With 0, that list is empty.
        overwrite (`bool`): Replace an earlier synthetic data set at `out_dir`.
        progress (`Callable[[int, int], None]`, *optional*): Called with the number of finished clips and of all clips.

    Returns:
        [`SyntheticSummary`]: Statistics of the data set.

    Raises:
        ValueError: if an argument is out of range, or `out_dir` is in use: a file, a folder that is not empty (without
            `overwrite`), or a folder that is not an earlier synthetic data set (with it).
    """
    if num_workers is None:
        num_workers = os.cpu_count() or 1
    check_numbers(num_videos=(num_videos, 1), seed=(seed, 0), num_workers=(num_workers, 0))
    counts = split_counts(num_videos, splits)
    target = Path(out_dir).resolve()
    check_target(target, overwrite)
    scripts = [draw_script(seed, split, index) for split in SPLITS for index in range(counts[split])]
    video_ids = draw_video_ids(seed, scripts)
    summary = _summarize(target, seed, counts, scripts)
    with new_folder(target, overwrite) as folder:
        (folder / VIDEO_FOLDER).mkdir()
        paths = [str(folder / VIDEO_FOLDER / f"{video_id}.mp4") for video_id in video_ids]
        render_all(partial(render_clip, seed), scripts, paths, num_workers, progress)
        _write_lists(folder, scripts, video_ids)
        facts = {key: value for key, value in asdict(summary).items() if key != "path"}
        about = "Synthetic audio-visual events made by ave_clip.data.generate_synthetic_ave. No real recordings."
        described = {"about": about, "generator_version": GENERATOR_VERSION, **facts}
        (folder / METADATA_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
        check_target(target, overwrite)  # again: another program may have used the name during the rendering
    logger.info(f"Wrote {num_videos} synthetic clips to {target}.")
    return summary


def check_numbers(**numbers: tuple[Any, int]) -> None:
    """Raises `ValueError` unless each value is a whole number of at least the one beside it."""
    for name, (value, least) in numbers.items():
        # bool is a subclass of int, but True is no number of videos.
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"Got {name}={value!r}, but it must be a whole number of at least {least}.")


def split_counts(num_videos: int, splits: Sequence[float]) -> dict[str, int]:
    """Returns the number of clips per split by largest remainders; a split with a fraction gets at least one clip."""
    fractions = np.array(splits, dtype=float)
    if fractions.shape != (len(SPLITS),) or not (fractions >= 0).all() or abs(fractions.sum() - 1) > 1e-6:
        raise ValueError(
            f"Got splits={splits!r}, but it must be three fractions (train, val, test) of at least 0 that sum to 1, "
            "for example (0.8, 0.1, 0.1)."
        )
    wanted = fractions * num_videos
    counts = np.where(fractions > 0, np.maximum(np.floor(wanted), 1), 0).astype(int)
    while counts.sum() < num_videos:
        counts[np.argmax(wanted - counts)] += 1
    while counts.sum() > num_videos and counts.max() > 1:
        counts[np.argmax(counts)] -= 1
    if counts.sum() != num_videos:
        raise ValueError(f"Got num_videos={num_videos}, too few for one clip in each split of splits={splits!r}.")
    return dict(zip(SPLITS, counts.tolist()))


def check_target(target: Path, overwrite: bool) -> None:
    """Raises `ValueError` if a data set cannot be written there."""
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"out_dir {str(target)!r} is a file. Give a new or empty folder.")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"out_dir {str(target)!r} is not empty. Give another folder, or pass overwrite=True.")
    check_replaceable(target, METADATA_FILE, "synthetic data set")


def draw_video_ids(seed: int, scripts: Sequence[Any]) -> list[str]:
    """Draws unique ids of 11 characters, as YouTube's; none begins with "-", as an option does."""
    video_ids: list[str] = []
    taken: set[str] = set()
    for script in scripts:
        rng = _generator(seed, script.split, script.index, "video id")
        while True:
            drawn = "".join(_ID_CHARACTERS[number] for number in rng.integers(len(_ID_CHARACTERS), size=11))
            video_id = f"_{drawn[1:]}" if drawn.startswith("-") else drawn
            if video_id.lower() not in taken:  # some file systems ignore case
                break
        taken.add(video_id.lower())
        video_ids.append(video_id)
    return video_ids


def _summarize(target: Path, seed: int, counts: dict[str, int], scripts: Sequence[ClipScript]) -> SyntheticSummary:
    lengths = {split: [one.end - one.start for one in scripts if one.split == split] for split in SPLITS}
    everything = np.concatenate([lengths[split] for split in SPLITS])
    return SyntheticSummary(
        path=str(target),
        seed=int(seed),
        num_videos=counts,
        background_share={
            split: round(1 - float(np.mean(lengths[split])) / NUM_SECONDS, 4) for split in SPLITS if lengths[split]
        },
        empty_share=round(float(np.mean(everything == 0)), 4),
        mean_event_seconds=round(float(everything.sum() / max((everything > 0).sum(), 1)), 4),
        num_classes=len(SYNTHETIC_CATEGORIES),
    )


def render_all(
    render: Callable[[Any, str], None],
    scripts: Sequence[Any],
    paths: Sequence[str],
    num_workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Renders each script to its path, in this process or in several."""
    if num_workers <= 1:
        _report(map(render, scripts, paths), len(scripts), progress)
        return
    with process_pool(min(num_workers, len(scripts))) as pool:
        _report(pool.map(render, scripts, paths, chunksize=2), len(scripts), progress)


def _report(rendered: Iterator[None], total: int, progress: Callable[[int, int], None] | None) -> None:
    for done, _ in enumerate(rendered, start=1):
        if progress is not None:
            progress(done, total)


def _write_lists(folder: Path, scripts: Sequence[ClipScript], video_ids: Sequence[str]) -> None:
    rows = {
        script: f"{SYNTHETIC_CATEGORIES[script.category]}&{video_id}&good&{script.start}&{script.end}"
        for script, video_id in zip(scripts, video_ids)
    }
    lists = {ANNOTATIONS_FILE: [rows[one] for one in sorted(rows, key=lambda one: one.category)]}
    for split in SPLITS:
        lists[f"{split}Set.txt"] = [row for one, row in rows.items() if one.split == split]
    lists[CATEGORIES_FILE] = list(SYNTHETIC_CATEGORIES)
    for name, lines in lists.items():
        (folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode("ascii"))
