"""Clips composed from real sounds and pictures, with truth by construction, to train and test the event head.

A clip lasts 10 s. Two kinds are composed. `"ave"` clips are like those of AVE: most have an event of 2 to 10 s, and
around it one of the two goes on alone, or something else is heard and seen. `"hard"` clips have an event less often: a
sound alone, a picture alone, both of different concepts, or nothing. Clips are composed of features (`event_bank.py`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from event_bank import Bank
from event_media import CLIP_SECONDS, Source

# What a hard clip has, and how often.
PLANS = {"event": 0.50, "mismatch": 0.24, "sound": 0.09, "picture": 0.10, "nothing": 0.07}
EMPTY_FRACTION = 0.07  # of the clips like AVE's
FULL_LENGTH_FRACTION = 0.5  # of their events
# What is before and after an event, as in the package's synthetic clips.
CARRIERS = {"picture": 0.44, "sound": 0.44, "wrong pair": 0.07, "nothing": 0.05}


@dataclass
class Media:
    """Rows of a bank, by concept: the takes of its sounds, and the shots of its pictures."""

    takes: dict[str, list[int]]
    shots: dict[str, list[list[int]]]
    beds: list[int]
    empty_shots: list[list[int]]

    @classmethod
    def of(cls, bank: Bank, sources: Sequence[Source]) -> "Media":
        media = cls({}, {}, bank.beds, bank.empty_shots + bank.other_shots)
        for source in sources:
            if source.kind == "sound" and source.key in bank.takes:
                media.takes.setdefault(source.concept, []).extend(bank.takes[source.key])
            if source.kind == "picture":
                media.shots.setdefault(source.concept, []).extend(bank.shots[source.key])
        return media


@dataclass
class Clips:
    """Composed clips: rows of the bank, and the concept that is heard and seen in each second."""

    sounds: np.ndarray  # (N, T)
    frames: np.ndarray
    heard: list[list[str | None]]
    seen: list[list[str | None]]


def compose_clips(
    generator: np.random.Generator, concepts: Sequence[str], media: Media, count: int, hard: float
) -> Clips:
    """Compose clips of these concepts, a fraction `hard` of them as hard ones."""
    clips = Clips(np.empty((count, CLIP_SECONDS), int), np.empty((count, CLIP_SECONDS), int), [], [])
    composer = Composer(generator, concepts, media)
    for number in range(count):
        heard, seen = composer.hard_clip() if generator.random() < hard else composer.ave_clip()
        clips.sounds[number], clips.frames[number] = composer.sound_rows(heard), composer.frame_rows(seen)
        clips.heard.append(heard)
        clips.seen.append(seen)
    return clips


class Composer:
    """Draws what is heard and seen in each second, and with which media."""

    def __init__(self, generator: np.random.Generator, concepts: Sequence[str], media: Media) -> None:
        self.generator, self.media = generator, media
        self.audible = [concept for concept in concepts if media.takes.get(concept)]
        self.visible = [concept for concept in concepts if media.shots.get(concept)]
        self.both = [concept for concept in self.audible if concept in self.visible]

    def ave_clip(self) -> tuple[list[str | None], list[str | None]]:
        heard: list[str | None] = [None] * CLIP_SECONDS
        seen: list[str | None] = [None] * CLIP_SECONDS
        concept = self._draw(self.both)
        if self.generator.random() < EMPTY_FRACTION:
            self._fill_part(
                heard, seen, concept, range(CLIP_SECONDS), str(self.generator.choice(["picture", "sound"]))
            )
            return heard, seen
        is_full = self.generator.random() < FULL_LENGTH_FRACTION
        length = CLIP_SECONDS if is_full else int(self.generator.integers(2, CLIP_SECONDS))
        start = int(self.generator.integers(0, CLIP_SECONDS - length + 1))
        heard[start : start + length] = seen[start : start + length] = [concept] * length
        before = after = self._carrier()
        if self.generator.random() < 0.3:
            after = self._carrier()
        self._fill_part(heard, seen, concept, range(start), before)
        self._fill_part(heard, seen, concept, range(start + length, CLIP_SECONDS), after)
        return heard, seen

    def hard_clip(self) -> tuple[list[str | None], list[str | None]]:
        heard: list[str | None] = [None] * CLIP_SECONDS
        seen: list[str | None] = [None] * CLIP_SECONDS
        plan = self.generator.choice(list(PLANS), p=list(PLANS.values()))
        first, second = self._span(), self._span()
        if plan == "event":
            concept = self._draw(self.both)
            _fill(heard, first, concept)
            _fill(seen, second if set(second) & set(first) else first, concept)
        if plan in ("mismatch", "sound"):
            _fill(heard, first, self._draw(self.audible))
        if plan in ("mismatch", "picture"):
            _fill(seen, second if self.generator.random() < 0.3 else first, self._draw(self.visible, *heard))
        return heard, seen

    def _fill_part(self, heard: list, seen: list, concept: str, part: range, carrier: str) -> None:
        """Seconds without an event: the concept is seen or heard alone, or two others are."""
        if carrier == "nothing" or not part:
            return
        if carrier == "picture":
            _fill(seen, part, concept)
            _fill(heard, part, self._stranger(self.audible, concept))
        elif carrier == "sound":
            _fill(heard, part, concept)
            _fill(seen, part, self._stranger(self.visible, concept))
        else:
            other = self._draw(self.audible, concept)
            _fill(heard, part, other)
            _fill(seen, part, self._draw(self.visible, concept, other))

    def _stranger(self, names: list[str], concept: str) -> str | None:
        return None if self.generator.random() < 0.33 else self._draw(names, concept)

    def _carrier(self) -> str:
        return str(self.generator.choice(list(CARRIERS), p=list(CARRIERS.values())))

    def _span(self) -> range:
        length = CLIP_SECONDS if self.generator.random() < 0.3 else int(self.generator.integers(2, CLIP_SECONDS))
        start = int(self.generator.integers(0, CLIP_SECONDS - length + 1))
        return range(start, start + length)

    def _draw(self, names: list[str], *excluded: str | None) -> str | None:
        left = [name for name in names if name not in excluded]
        return left[self.generator.integers(len(left))] if left else None

    def sound_rows(self, heard: list[str | None]) -> list[int]:
        """Each run of a concept is a part of one take; silence is one bed."""
        bed = self.media.beds[self.generator.integers(len(self.media.beds))]
        rows = [bed + second for second in range(CLIP_SECONDS)]
        for concept, start, end in _runs(heard):
            if concept is not None:
                takes = self.media.takes[concept]
                first = takes[self.generator.integers(len(takes))]
                first += int(self.generator.integers(0, CLIP_SECONDS - (end - start) + 1))
                rows[start:end] = range(first, first + end - start)
        return rows

    def frame_rows(self, seen: list[str | None]) -> list[int]:
        rows: list[int] = []
        for concept, start, end in _runs(seen):
            shots = self.media.shots[concept] if concept else self.media.empty_shots
            shot = shots[self.generator.integers(len(shots))]
            rows += [shot[index] for index in self.generator.integers(0, len(shot), end - start)]
        return rows


def _fill(track: list[str | None], part: Sequence[int], concept: str | None) -> None:
    for second in part:
        track[second] = concept


def _runs(track: list[str | None]) -> Iterator[tuple[str | None, int, int]]:
    start = 0
    for end in range(1, len(track) + 1):
        if end == len(track) or track[end] != track[start]:
            yield track[start], start, end
            start = end
