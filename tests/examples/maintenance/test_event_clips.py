"""The composed clips that `ave-clip-mini`'s event head is trained and tested on."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "maintenance"))

from event_clips import Media, compose_clips

CONCEPTS = ["dog", "cat", "bell", "thunder"]
# Ten rows per take; thunder has no picture. Beds have the rows from 900.
MEDIA = Media(
    takes={name: [100 * number, 100 * number + 10] for number, name in enumerate(CONCEPTS)},
    shots={name: [[100 * number, 100 * number + 1]] for number, name in enumerate(CONCEPTS[:3])},
    beds=[900],
    empty_shots=[[950]],
)


@pytest.mark.parametrize("hard", [0.0, 1.0])
def test_every_second_has_media_of_what_is_heard_and_seen(hard) -> None:
    clips = compose_clips(np.random.default_rng(0), CONCEPTS, MEDIA, 200, hard)
    for heard, seen, sounds, frames in zip(clips.heard, clips.seen, clips.sounds, clips.frames):
        assert [CONCEPTS[row // 100] if row < 900 else None for row in sounds] == heard
        assert [CONCEPTS[row // 100] if row < 900 else None for row in frames] == seen


def events(clips) -> list[list[bool]]:
    return [[a == b and a is not None for a, b in zip(*tracks)] for tracks in zip(clips.heard, clips.seen)]


def test_most_clips_like_aves_have_one_event_of_two_to_ten_seconds() -> None:
    found = events(compose_clips(np.random.default_rng(0), CONCEPTS, MEDIA, 500, hard=0.0))
    lengths = np.array([sum(seconds) for seconds in found])
    assert 0.04 < np.mean(lengths == 0) < 0.11
    assert lengths[lengths > 0].min() == 2
    assert 0.22 < 1 - lengths.mean() / 10 < 0.33  # background
    assert all(sum(b and not a for a, b in zip([False, *seconds], seconds)) <= 1 for seconds in found)


def test_hard_clips_often_have_audio_and_an_image_of_different_concepts() -> None:
    clips = compose_clips(np.random.default_rng(0), CONCEPTS, MEDIA, 500, hard=1.0)
    assert 0.4 < np.mean([not any(seconds) for seconds in events(clips)]) < 0.6
    different = [any(a and b and a != b for a, b in zip(*tracks)) for tracks in zip(clips.heard, clips.seen)]
    assert 0.15 < np.mean(different) < 0.35
