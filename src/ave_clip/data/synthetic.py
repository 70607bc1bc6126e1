"""Synthetic AVE: short made-up videos with sound, in AVE's own folder layout.

There are 16 classes, each a family of sounds (`synthetic_sounds.py`) and a family of moving pictures
(`synthetic_pictures.py`). A clip lasts ten seconds and holds at most one event: a span of 2 to 10 whole seconds in
which the sight and the sound of one class are there together. Before and after it the sight goes on without its
sound, the sound goes on without its sight, an unmatched pair plays, or nothing does; every tenth clip has no event at
all. Telling the classes apart is easy; telling *when* sight and sound agree needs both.

The road from a seed to a folder: `draw_script` decides what happens in each second, `render_clip` draws and sounds it,
`generate_synthetic_ave` does so for every clip and writes the lists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ..files import check_replaceable, new_folder
from . import synthetic_sounds as sounds
from .synthetic_pictures import HEIGHT, WIDTH, Mover, Picture, Scene, paste

logger = logging.get_logger(__name__)

GENERATOR_VERSION = 1  # raise it whenever the same seed gives other clips
SPLITS = ("train", "val", "test")
NUM_SECONDS = 10
FRAME_RATE = 12
SAMPLING_RATE = 44100
NOTHING = -1  # no object in sight, or no sound but the room's
METADATA_FILE = "synthetic.json"

# Shares of events by length in seconds. Short ones are rare, as in AVE, where 5 % of the rows last 2 s.
EVENT_LENGTHS = {2: 0.05, 3: 0.08, 4: 0.11, 5: 0.13, 6: 0.14, 7: 0.14, 8: 0.13, 9: 0.11, 10: 0.11}
EMPTY_SHARE = 0.10  # of the clips hold no event
_ID_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@dataclass(frozen=True)
class SyntheticClass:
    """One class: its name, the maker of its sound and the look of its object."""

    name: str
    sound: Callable[[np.random.Generator, np.ndarray], np.ndarray]
    picture: Picture


SYNTHETIC_CLASSES = tuple(
    SyntheticClass(name, sound, Picture(*look))
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
    """What happens in one clip, second by second; its labels follow from it.

    Attributes:
        split (`str`): One of `SPLITS`.
        index (`int`): Number of the clip within its split.
        category (`int`): The row's class. Present in a clip without an event, too, but never in both at once.
        start (`int`): First second of the event; 0 without one.
        end (`int`): Second at which the event is over; 0 without one.
        sights (`tuple[int, ...]`): Class of the object in sight in each second, or `NOTHING`.
        sounds (`tuple[int, ...]`): Class of the sound in each second, or `NOTHING`.
        silent_room (`bool`): Whether the background is digital silence instead of noise and hum.
    """

    split: str
    index: int
    category: int
    start: int
    end: int
    sights: tuple[int, ...]
    sounds: tuple[int, ...]
    silent_room: bool

    @property
    def labels(self) -> tuple[int, ...]:
        """The class of each second; background is the last class, `len(SYNTHETIC_CATEGORIES)`."""
        background = len(SYNTHETIC_CATEGORIES)
        return tuple(self.category if self.start <= t < self.end else background for t in range(NUM_SECONDS))


@dataclass(frozen=True)
class SyntheticSummary:
    """What `generate_synthetic_ave` wrote; the same facts are in `synthetic.json`.

    Attributes:
        path (`str`): The data set's folder.
        seed (`int`): The seed it was drawn from.
        num_videos (`dict[str, int]`): Clips per split.
        background_share (`dict[str, float]`): Share of background seconds per non-empty split.
        empty_share (`float`): Share of clips without an event.
        mean_event_seconds (`float`): Mean length of the events there are.
        num_classes (`int`): Number of categories, background not counted.
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
    """Draw what happens in one clip.

    The result depends on the three arguments only: a larger data set of the same seed holds the smaller one's clips.

    Args:
        seed (`int`): The data set's seed, at least 0.
        split (`str`): `"train"`, `"val"` or `"test"`.
        index (`int`): Number of the clip within the split, at least 0.

    Raises:
        ValueError: If the split is unknown or a number is negative.
    """
    if split not in SPLITS:
        raise ValueError(f"Got split {split!r}, but it must be one of {', '.join(SPLITS)}.")
    if seed < 0 or index < 0:
        raise ValueError(f"Got seed {seed} and index {index}, but both must be at least 0.")
    rng = _generator(seed, split, index, "script")
    category, length = _draw_category(seed, split, index), _draw_length(seed, split, index)
    start = int(rng.integers(NUM_SECONDS - length + 1)) if length else 0
    end = start + length
    sights, heard = [NOTHING] * NUM_SECONDS, [NOTHING] * NUM_SECONDS
    if length:
        sights[start:end] = heard[start:end] = [category] * length
        _fill_around_event(rng, category, start, end, sights, heard)
    else:
        _fill_without_event(rng, category, sights, heard)
    silent_room = bool(rng.uniform() < 0.06)
    return ClipScript(split, index, category, start, end, tuple(sights), tuple(heard), silent_room)


def _generator(seed: int, split: str, index: int, purpose: str) -> np.random.Generator:
    """Return the random stream of one purpose of one clip; no two streams are the same."""
    purposes = ("script", "sights", "sounds", "video id", "balance")
    return np.random.default_rng([seed, SPLITS.index(split), index, purposes.index(purpose)])


def _draw_category(seed: int, split: str, index: int) -> int:
    """Deal the classes out in shuffled rounds, so that each split holds all of them about equally often."""
    number = len(SYNTHETIC_CATEGORIES)
    return int(_generator(seed, split, index // number, "balance").permutation(number)[index % number])


def _draw_length(seed: int, split: str, index: int) -> int:
    """Return the event's length in seconds, 0 for none, spread evenly over a split by a golden-ratio sequence."""
    offset = _generator(seed, split, 0, "balance").uniform()
    quantile = (offset + index * 0.6180339887498949) % 1
    lengths = (0, *EVENT_LENGTHS)
    shares = np.array([EMPTY_SHARE, *((1 - EMPTY_SHARE) * share for share in EVENT_LENGTHS.values())])
    return lengths[min(int(np.searchsorted(shares.cumsum(), quantile, side="right")), len(lengths) - 1)]


def _fill_around_event(
    rng: np.random.Generator, category: int, start: int, end: int, sights: list[int], heard: list[int]
) -> None:
    """Fill what comes before and after an event, in place; sight and sound never agree there."""
    carriers, shares = ("sight", "sound", "wrong pair", "nothing"), (0.44, 0.44, 0.07, 0.05)
    before = carriers[rng.choice(4, p=shares)]
    after = before if rng.uniform() < 0.7 else carriers[rng.choice(4, p=shares)]
    for region, carrier in ((range(start), before), (range(end, NUM_SECONDS), after)):
        for part in _parts(rng, region, 0.3):
            stranger = _draw_stranger(rng, category)
            if carrier == "sight":
                _fill(part, category, stranger, sights, heard)
            elif carrier == "sound":
                _fill(part, stranger, category, sights, heard)
            elif carrier == "wrong pair":
                _fill(part, *_draw_pair(rng, category), sights, heard)


def _fill_without_event(rng: np.random.Generator, category: int, sights: list[int], heard: list[int]) -> None:
    """Fill a clip without an event: the class is seen, or heard, or first one and then the other, never both."""
    sight_first = rng.uniform() < 0.5
    turn = int(rng.integers(3, NUM_SECONDS - 2)) if rng.uniform() < 0.3 else NUM_SECONDS
    for region, is_seen in ((range(turn), sight_first), (range(turn, NUM_SECONDS), not sight_first)):
        for part in _parts(rng, region, 0.6):
            stranger = _draw_stranger(rng, category)
            pair = (category, stranger) if is_seen else (stranger, category)
            _fill(part, *pair, sights, heard)


def _fill(part: range, sight: int, sound: int, sights: list[int], heard: list[int]) -> None:
    for second in part:
        sights[second], heard[second] = sight, sound


def _parts(rng: np.random.Generator, region: range, share: float) -> list[range]:
    """Cut a region of seconds in two at a random second, in `share` of the cases where it is long enough."""
    if len(region) < 3 or rng.uniform() >= share:
        return [region]
    cut = int(rng.integers(1, len(region)))
    return [region[:cut], region[cut:]]


def _draw_stranger(rng: np.random.Generator, category: int) -> int:
    """Draw what is beside a class that goes on alone: another class, or nothing in a third of the cases."""
    return NOTHING if rng.uniform() < 0.33 else _draw_pair(rng, category)[0]


def _draw_pair(rng: np.random.Generator, category: int) -> tuple[int, int]:
    """Draw two different classes, both other than `category`."""
    number = len(SYNTHETIC_CATEGORIES)
    first, second = (category + 1 + rng.choice(number - 1, size=2, replace=False)) % number
    return int(first), int(second)


# ── one clip ──


def render_clip(seed: int, script: ClipScript, path: str | os.PathLike) -> None:
    """Draw and sound a script and write it as an mp4 file (h264, 192 x 144 at 12 frames per second; aac, 44.1 kHz).

    Args:
        seed (`int`): The data set's seed.
        script ([`ClipScript`]): What happens in each second.
        path (`str` or `os.PathLike`): File to write; its folder must exist.
    """
    import av

    frames = _render_frames(_generator(seed, script.split, script.index, "sights"), script)
    waveform = _render_waveform(_generator(seed, script.split, script.index, "sounds"), script)
    layout = "stereo" if len(waveform) == 2 else "mono"
    with av.open(os.fspath(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "ultrafast", "crf": "24"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        video.codec_context.thread_count = 1  # clips are made side by side instead
        audio = container.add_stream("aac", rate=SAMPLING_RATE, layout=layout, bit_rate=96000)
        for second in range(NUM_SECONDS):
            for _ in range(FRAME_RATE):
                container.mux(video.encode(av.VideoFrame.from_ndarray(next(frames), format="rgb24")))
            piece = np.ascontiguousarray(waveform[:, second * SAMPLING_RATE : (second + 1) * SAMPLING_RATE])
            sound = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            sound.sample_rate, sound.pts = SAMPLING_RATE, second * SAMPLING_RATE
            container.mux(audio.encode(sound))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def _render_frames(rng: np.random.Generator, script: ClipScript) -> Iterator[np.ndarray]:
    """Yield the clip's frames in order, uint8 `(HEIGHT, WIDTH, 3)`."""
    scene = Scene(rng)
    movers = {sight: Mover(SYNTHETIC_CLASSES[sight].picture, rng) for sight in sorted(set(script.sights) - {NOTHING})}
    for second, sight in enumerate(script.sights):
        times = second + np.arange(FRAME_RATE) / FRAME_RATE
        drawn = zip(*movers[sight].draw(times)) if sight != NOTHING else [None] * FRAME_RATE
        for time, layer in zip(times, drawn):
            frame = scene.frame(time)
            if layer is not None:
                paste(frame, *layer)
            yield scene.expose(frame)


def _render_waveform(rng: np.random.Generator, script: ClipScript) -> np.ndarray:
    """Return the clip's sound, float32 `(1 or 2 channels, samples)` within [-1, 1]."""
    num_samples = NUM_SECONDS * SAMPLING_RATE
    times = np.arange(num_samples) / SAMPLING_RATE
    waveform = np.zeros(num_samples, np.float32)
    loudest = 0.0
    for sound in sorted(set(script.sounds) - {NOTHING}):
        present = np.array(script.sounds) == sound
        signal = SYNTHETIC_CLASSES[sound].sound(rng, times)
        level = 10 ** (rng.uniform(-24, -15) / 20)
        signal *= np.float32(min(level / max(float(signal.std()), 1e-6), 0.8 / float(np.abs(signal).max())))
        loudest = max(loudest, float(signal.std()))
        waveform += signal * _gate(present)
    if not script.silent_room:
        loudest = loudest or 10 ** (-20 / 20)
        noise_level = loudest * 10 ** (-rng.uniform(14, 32) / 20)
        waveform += np.float32(noise_level) * sounds.background_sound(rng, times)
    waveform = np.clip(waveform, -0.98, 0.98)
    if rng.uniform() < 0.7:
        return waveform[None]
    balance = rng.uniform(-0.4, 0.4)
    return np.stack([waveform * np.float32(min(1, 1 - balance)), waveform * np.float32(min(1, 1 + balance))])


def _gate(present: np.ndarray, fade_seconds: float = 0.015) -> np.ndarray:
    """Return a sound's volume over the clip: 1 in the seconds it is present, with short fades inside them."""
    gate = np.repeat(present.astype(np.float32), SAMPLING_RATE)
    fade = np.linspace(0, 1, int(fade_seconds * SAMPLING_RATE), dtype=np.float32)
    edges = np.flatnonzero(np.diff(present.astype(int))) + 1
    for edge in edges:
        sample = edge * SAMPLING_RATE
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
    """Write a synthetic data set in AVE's layout.

    The folder holds `AVE/<VideoID>.mp4`, `Annotations.txt` (all rows, grouped by category), `trainSet.txt`,
    `valSet.txt`, `testSet.txt`, `categories.txt` and `synthetic.json` (how it was made, and statistics). It appears
    under its name only when it is complete. The same seed gives the same clips whatever the number of workers; the
    splits share no instance.

    Args:
        out_dir (`str` or `os.PathLike`): Folder to make. Its parent folders are made, too.
        num_videos (`int`): Number of clips, over all splits.
        seed (`int`): Any number from 0 on; other seeds give other clips.
        num_workers (`int`, *optional*): Processes that render. Defaults to the number of processors; 0 or 1 stays in
            this process.
        splits (`Sequence[float]`): Shares of train, val and test; they sum to 1. A share of 0 leaves that list empty.
        overwrite (`bool`): Replace an earlier synthetic data set at `out_dir`.
        progress (`Callable[[int, int], None]`, *optional*): Called with the clips done so far and their total number.

    Returns:
        [`SyntheticSummary`]

    Raises:
        ValueError: If an argument is out of range, or `out_dir` is in use: a file, a folder that is not empty (without
            `overwrite`), or a folder that holds anything but an earlier synthetic data set (with it).
    """
    if num_workers is None:
        num_workers = os.cpu_count() or 1
    _check_numbers(num_videos, seed, num_workers)
    counts = _split_counts(num_videos, splits)
    target = Path(out_dir).resolve()
    _check_target(target, overwrite)
    scripts = [draw_script(seed, split, index) for split in SPLITS for index in range(counts[split])]
    video_ids = _draw_video_ids(seed, scripts)
    summary = _summarize(target, seed, counts, scripts)
    with new_folder(target, overwrite) as folder:
        (folder / "AVE").mkdir()
        paths = [str(folder / "AVE" / f"{video_id}.mp4") for video_id in video_ids]
        _render_all(seed, scripts, paths, num_workers, progress)
        _write_lists(folder, scripts, video_ids)
        _write_metadata(folder, summary)
        _check_target(target, overwrite)  # again: rendering takes minutes, in which others may have used the name
    logger.info(f"Wrote {num_videos} synthetic clips to {target}.")
    return summary


def _check_numbers(num_videos: int, seed: int, num_workers: int) -> None:
    for name, value, least in (("num_videos", num_videos, 1), ("seed", seed, 0), ("num_workers", num_workers, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"Got {name}={value!r}, but it must be a whole number of at least {least}.")


def _split_counts(num_videos: int, splits: Sequence[float]) -> dict[str, int]:
    """Share the clips out by largest remainders; a split with a share gets at least one clip."""
    shares = np.array(splits, dtype=float)
    if shares.shape != (len(SPLITS),) or not (shares >= 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise ValueError(
            f"Got splits={splits!r}, but it must be three shares (train, val, test) of at least 0 that sum to 1, "
            "for example (0.8, 0.1, 0.1)."
        )
    wanted = shares * num_videos
    counts = np.where(shares > 0, np.maximum(np.floor(wanted), 1), 0).astype(int)
    while counts.sum() < num_videos:
        counts[np.argmax(wanted - counts)] += 1
    while counts.sum() > num_videos and counts.max() > 1:
        counts[np.argmax(counts)] -= 1
    if counts.sum() != num_videos:
        raise ValueError(f"Got num_videos={num_videos}, too few for one clip in each split of splits={splits!r}.")
    return dict(zip(SPLITS, counts.tolist()))


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ValueError(f"out_dir {str(target)!r} is a file. Name a folder that is new or empty.")
    if not any(target.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"out_dir {str(target)!r} is not empty. Name another folder, or pass overwrite=True.")
    check_replaceable(target, METADATA_FILE, "synthetic data set")


def _draw_video_ids(seed: int, scripts: Sequence[ClipScript]) -> list[str]:
    """Draw unique ids of 11 characters like YouTube's; every eighth begins with "-", as AVE's may."""
    video_ids: list[str] = []
    taken: set[str] = set()
    for script in scripts:
        rng = _generator(seed, script.split, script.index, "video id")
        while True:
            drawn = "".join(_ID_CHARACTERS[number] for number in rng.integers(len(_ID_CHARACTERS), size=11))
            video_id = f"-{drawn[1:]}" if script.index % 8 == 2 else drawn
            if video_id.lower() not in taken:
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


def _render_all(
    seed: int,
    scripts: Sequence[ClipScript],
    paths: Sequence[str],
    num_workers: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    render = partial(render_clip, seed)
    if num_workers <= 1:
        _report(map(render, scripts, paths), len(scripts), progress)
        return
    with ProcessPoolExecutor(min(num_workers, len(scripts))) as pool:
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
    _write_lines(folder / "Annotations.txt", [rows[one] for one in sorted(rows, key=lambda one: one.category)])
    for split in SPLITS:
        _write_lines(folder / f"{split}Set.txt", [row for one, row in rows.items() if one.split == split])
    _write_lines(folder / "categories.txt", SYNTHETIC_CATEGORIES)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_bytes("".join(f"{line}\n" for line in lines).encode("ascii"))


def _write_metadata(folder: Path, summary: SyntheticSummary) -> None:
    facts = asdict(summary)
    facts.pop("path")
    about = "Synthetic audio-visual events made by ave_clip.data.generate_synthetic_ave. No real recordings."
    described = {"about": about, "generator_version": GENERATOR_VERSION, **facts}
    (folder / METADATA_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
