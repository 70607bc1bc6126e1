"""The sounds and pictures of the event head's training as features, so that clips are composed of features.

Both classifiers judge each second by itself. So it is enough to encode each sound in a few takes of ten seconds, each
picture in a few shots, and what is neither in some backgrounds; a clip is then a choice of rows (`event_clips.py`).
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from event_media import (
    CLIP_SECONDS,
    SAMPLING_RATE,
    Source,
    background,
    compress,
    load_backgrounds,
    read_picture,
    read_sound,
    render,
)

TAKES, SHOTS, FRAMES_PER_SHOT = 3, 2, 2
BEDS, EMPTY_SHOTS, OTHER_ICONS = 24, 120, 150


@dataclass
class Bank:
    """Features of all media; a row number names a second of sound or a frame.

    Args:
        audio (`torch.Tensor` of shape `(num_rows, width)`), visual (`torch.Tensor` of shape `(num_frames, width)`).
            In a dense bank `visual` is `(num_frames, num_locations, width)`.
        takes (`dict[str, list[int]]`): Of each sound's key, the first row of each of its takes of ten seconds.
        beds (`list[int]`): First rows of the takes with nothing but noise or silence.
        shots (`dict[str, list[list[int]]]`): Of each picture's key, the frames of each shot.
        empty_shots (`list[list[int]]`), other_shots (`list[list[int]]`): Shots of backgrounds, and of icons that
            belong to no concept.
    """

    audio: torch.Tensor
    visual: torch.Tensor
    takes: dict[str, list[int]]
    beds: list[int]
    shots: dict[str, list[list[int]]]
    empty_shots: list[list[int]]
    other_shots: list[list[int]]


def load_bank(model, sources: list[Source], folder: Path, is_dense: bool = False) -> Bank:
    """Encode what the folder does not have yet. Each medium has its own random generator, so order changes nothing.

    A dense bank keeps the features of all locations of a frame instead of their mean.
    """
    sounds = _encode_missing(folder / "bank_sounds.pt", sources, "sound", model, _encode_sound, _encode_beds)
    photographs = load_backgrounds(folder)

    def encode_picture(model, source: Source) -> torch.Tensor:
        generator = _generator(source)
        picture = read_picture(source)
        shots = [render(picture, generator, photographs, FRAMES_PER_SHOT) for _ in range(SHOTS)]
        return _encode_frames(model, np.concatenate(shots), is_dense)

    def encode_others(model) -> dict[str, torch.Tensor]:
        generator = np.random.default_rng(8)
        empty = np.stack([compress(background(generator, photographs), generator) for _ in range(EMPTY_SHOTS)])
        icons = [encode_picture(model, source) for source in other_icons(folder, sources)]
        return {"empty": _encode_frames(model, empty, is_dense), "other": torch.cat(icons)}

    path = folder / ("bank_locations.pt" if is_dense else "bank_pictures.pt")
    pictures = _encode_missing(path, sources, "picture", model, encode_picture, encode_others)
    keys = {kind: [s.key for s in _unique(sources) if s.kind == kind] for kind in ("sound", "picture")}
    audio = [sounds[key] for key in keys["sound"]] + [sounds["beds"]]
    frames = SHOTS * FRAMES_PER_SHOT  # of each picture: a folder of an earlier run may have more
    visual = [pictures[key][:frames] for key in keys["picture"]] + [pictures["empty"], pictures["other"]]
    audio_ends, visual_ends = (np.cumsum([0, *map(len, parts)]) for parts in (audio, visual))
    takes = {key: list(range(a, b, CLIP_SECONDS)) for key, a, b in zip(keys["sound"], audio_ends, audio_ends[1:])}
    shots = {key: _shots(a, b) for key, a, b in zip(keys["picture"], visual_ends, visual_ends[1:])}
    return Bank(
        torch.cat(audio).float(),
        torch.cat(visual).float(),
        {key: rows for key, rows in takes.items() if rows},
        list(range(audio_ends[-2], audio_ends[-1], CLIP_SECONDS)),
        shots,
        [[row] for row in range(visual_ends[-3], visual_ends[-2])],
        _shots(visual_ends[-2], visual_ends[-1]),
    )


def _unique(sources: list[Source]) -> list[Source]:
    """One source per key: a file may belong to two concepts."""
    return list({source.key: source for source in sources}.values())


def _shots(start: int, end: int) -> list[list[int]]:
    return [list(range(first, first + FRAMES_PER_SHOT)) for first in range(int(start), int(end), FRAMES_PER_SHOT)]


def _generator(source: Source) -> np.random.Generator:
    return np.random.default_rng(list(source.key.encode()))


@torch.no_grad()
def _encode_missing(path: Path, sources: list[Source], kind: str, model, encode, encode_others) -> dict:
    encoded = torch.load(path) if path.exists() else {}
    missing = [source for source in _unique(sources) if source.kind == kind and source.key not in encoded]
    start = time.time()
    for number, source in enumerate(missing):
        encoded[source.key] = encode(model, source).half()
        if number % 25 == 0:
            torch.save(encoded, path)
            print(f"{number} of {len(missing)} {kind}s, {time.time() - start:.0f} s", flush=True)
    if "beds" not in encoded and "empty" not in encoded:
        encoded |= {name: features.half() for name, features in encode_others(model).items()}
    torch.save(encoded, path)
    return encoded


def _encode_sound(model, source: Source) -> torch.Tensor:
    """Takes of ten seconds, each of its own loudness, over its own noise; none for a sound of under 20 ms."""
    generator, takes = _generator(source), []
    total = CLIP_SECONDS * SAMPLING_RATE
    sound = read_sound(source, generator)
    for _ in range(TAKES):
        if source.path.suffix == ".pat":  # other notes in each take
            sound = read_sound(source, generator)
        if len(sound) < SAMPLING_RATE // 50:
            return torch.empty(0, 1024)
        gap = int(generator.uniform(0, 0.5) * SAMPLING_RATE)
        # Short sounds are repeated, so that no second of the event is silent.
        repeated = np.tile(np.concatenate([sound, np.zeros(min(gap, len(sound)))]), 2 + total // len(sound))
        first = int(generator.integers(0, len(sound)))
        takes.append(repeated[first : first + total] * 10 ** generator.uniform(-1.2, -0.1) + noise(generator))
    return _encode_seconds(model, np.concatenate(takes))


def _encode_beds(model) -> dict[str, torch.Tensor]:
    generator = np.random.default_rng(9)
    return {"beds": _encode_seconds(model, np.concatenate([noise(generator) for _ in range(BEDS)]))}


def noise(generator: np.random.Generator) -> np.ndarray:
    """Ten seconds of digital silence, or of quiet white or brown noise."""
    total = CLIP_SECONDS * SAMPLING_RATE
    white = generator.standard_normal(total)
    kind = generator.choice(["silence", "white", "brown"], p=[0.2, 0.4, 0.4])
    if kind == "brown":  # more of the low frequencies
        brown = np.cumsum(white)
        white = np.resize(brown[400:] - brown[:-400], total)
    level = 0 if kind == "silence" else 10 ** generator.uniform(-4, -1.3)
    return white / np.abs(white).max() * level


def _encode_seconds(model, waveform: np.ndarray) -> torch.Tensor:
    seconds = torch.from_numpy(np.clip(waveform, -1, 1).astype(np.float32)).view(-1, SAMPLING_RATE)
    return model._audio_features(seconds)


def _encode_frames(model, frames: np.ndarray, is_dense: bool) -> torch.Tensor:
    pixels = (torch.from_numpy(frames).permute(0, 3, 1, 2).float() - 127) / 128
    maps = model.image_model.feature_map(pixels.contiguous(memory_format=torch.channels_last))
    return maps.flatten(2).transpose(1, 2) if is_dense else maps.mean(dim=(2, 3))


def other_icons(folder: Path, sources: list[Source]) -> list[Source]:
    """Icons that belong to no concept of the sources, chosen at random from two sets."""
    used = {source.member for source in sources}
    generator, chosen = np.random.default_rng(10), []
    for name in ("fluent-emoji", "twemoji"):
        path = folder / f"@iconify-json+{name}" / "package" / "icons.json"
        names = sorted(set(json.loads(path.read_text())["icons"]) - used)
        # Flags, and variants of one person in many skins, are a third of an icon set.
        names = [
            name for name in names if not any(word in name for word in ("flag", "skin", "person", "man", "-face"))
        ]
        picked = generator.choice(names, OTHER_ICONS // 2, replace=False)
        chosen += [Source("", "picture", path.parent.parent.name, path, str(icon)) for icon in picked]
    return chosen
