"""Stage 1's pairs: which segments, what is random about them, and their negatives."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ave_clip.core.processing_audio_visual_encoder import AudioVisualEncoderProcessor
from ave_clip.data import generate_synthetic_ave, load_ave
from ave_clip.training.clips import build_clip_cache
from ave_clip.training.pairs import (
    NUM_DRAWS,
    SegmentPairs,
    augment_frames,
    augment_sounds,
    check_sound_augmentation,
    collate_pairs,
)
from tests.helpers.encoders import SAVERS
from tests.helpers.models import tiny_processor

BACKGROUND = 16


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    generate_synthetic_ave(folder, num_videos=6, seed=2, num_workers=0, splits=(0.6, 0.2, 0.2))
    return load_ave(folder, split="train")


@pytest.fixture(scope="module")
def cache(tmp_path_factory, examples):
    return build_clip_cache(tmp_path_factory.mktemp("cache"), examples, tiny_processor())


def assert_same_items(item, other):
    assert item.keys() == other.keys()
    for name, value in item.items():
        if name == "negative":
            assert_same_items(value, other[name])
        else:
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[name])), name


def draws(number, **values):
    """Draws in the middle of their range but for the named columns."""
    result = torch.full((number, NUM_DRAWS), 0.5)
    for name, column in values.items():
        result[:, int(name[1:])] = column
    return result


def test_pairs_are_the_event_segments(cache, examples):
    pairs = SegmentPairs(cache, examples, BACKGROUND, is_random=False)
    assert len(pairs) == int((cache.labels != BACKGROUND).sum())
    clip, segment = pairs.places[3]
    pair = pairs[3]
    assert pair["class_ids"] == examples[int(clip)]["labels"][segment] != BACKGROUND
    assert pair["rows"] == examples[int(clip)]["row"]
    np.testing.assert_array_equal(pair["frames"], cache.clip("frames", clip)[segment, 1])
    np.testing.assert_array_equal(pair["input_values"], cache.clip("sounds", clip)[segment])


def test_one_pair_per_video_is_the_middle_of_its_event(cache, examples):
    pairs = SegmentPairs(cache, examples, BACKGROUND, is_random=False, one_per_video=True)
    events = [np.flatnonzero(labels != BACKGROUND) for labels in cache.labels.reshape(len(cache), -1)]
    assert pairs.places == [(clip, event[len(event) // 2]) for clip, event in enumerate(events) if len(event)]


def test_rows_of_one_video_share_a_video_id_and_give_one_pair_for_retrieval(cache, examples):
    rows = list(examples["row"])
    columns = {"row": rows, "duplicate_of": [None, rows[0], *[None] * (len(rows) - 2)]}
    pairs = SegmentPairs(cache, columns, BACKGROUND, one_per_video=True)
    assert pairs.video_ids[:2] == [rows[0], rows[0]]
    assert len(pairs) == len(SegmentPairs(cache, examples, BACKGROUND, one_per_video=True)) - 1


def test_clips_without_a_labelled_event_are_refused(cache, examples):
    class Unlabelled:
        labels, frame_mask, starts = np.full_like(cache.labels, -100), cache.frame_mask, cache.starts

        def __len__(self):
            return len(cache)

    with pytest.raises(ValueError, match=f"None of the {len(cache)} clips has a segment with an event"):
        SegmentPairs(Unlabelled(), examples, BACKGROUND)


def test_shifted_audio_stays_within_its_event(cache, examples):
    pairs = SegmentPairs(cache, examples, BACKGROUND, max_shift=0.5)
    size = cache.sounds.shape[1]
    seen = set()
    for index in range(len(pairs)):
        clip, segment = pairs.places[index]
        sound = pairs[index]["input_values"].numpy()
        everything = np.lib.stride_tricks.sliding_window_view(cache.clip("sounds", clip).reshape(-1), size)
        start = int(np.flatnonzero((everything[:, :50] == sound[:50]).all(axis=1))[0])
        assert (everything[start] == sound).all()
        first, last = start // size, (start + size - 1) // size
        assert (cache.clip("labels", clip)[first : last + 1] == cache.clip("labels", clip)[segment]).all()
        assert abs(start - segment * size) <= size // 2
        seen.add(start % size != 0)
    assert True in seen  # some sounds were shifted, by no whole number of segments


def test_what_is_drawn_follows_seed_epoch_and_segment_and_nothing_else(cache, examples):
    options = {"max_shift": 0.5, "background_negatives": True}
    pairs, others = (SegmentPairs(cache, examples, BACKGROUND, seed=4, **options) for _ in range(2))
    pairs.set_epoch(2)
    others.set_epoch(2)
    expected = {index: pairs[index] for index in (5, 1, 7)}
    torch.manual_seed(99)
    for index in (1, 7, 5):
        assert_same_items(others[index], expected[index])
    others.set_epoch(3)
    assert not torch.equal(others[5]["draws"], expected[5]["draws"])
    assert not torch.equal(SegmentPairs(cache, examples, BACKGROUND, seed=5, **options)[5]["draws"], pairs[5]["draws"])


def test_workers_draw_what_the_process_itself_draws(cache, examples):
    pairs = SegmentPairs(cache, examples, BACKGROUND, seed=1, max_shift=0.5, background_negatives=True)
    pairs.set_epoch(1)
    here, there = (
        list(DataLoader(pairs, batch_size=5, collate_fn=collate_pairs, num_workers=number)) for number in (0, 2)
    )
    for batch, other in zip(here, there, strict=True):
        assert_same_items(batch, other)


def test_a_negative_is_a_background_segment_of_the_same_video(cache, examples):
    pairs = SegmentPairs(cache, examples, BACKGROUND, background_negatives=True)
    seen = set()
    for index, (clip, _) in enumerate(pairs.places):
        backgrounds = np.flatnonzero(cache.clip("labels", clip) == BACKGROUND)
        item = pairs[index]
        assert ("negative" in item) == (len(backgrounds) > 0)
        if "negative" in item:
            negative = item["negative"]
            assert (negative["class_ids"], negative["rows"]) == (BACKGROUND, item["rows"])
            sounds = cache.clip("sounds", clip)[backgrounds]
            seen.add((clip, int(np.flatnonzero((sounds == negative["input_values"].numpy()).all(axis=1))[0])))
    assert len(seen) > len({clip for clip, _ in seen}) > 0  # not always the same one of a video


def test_negatives_stand_behind_the_pairs_of_their_batch(cache, examples):
    pairs = SegmentPairs(cache, examples, BACKGROUND, background_negatives=True)
    items = [pairs[index] for index in range(len(pairs))]
    batch = collate_pairs(items)
    num_negatives = sum("negative" in item for item in items)
    assert 0 < num_negatives < len(pairs) + 1
    assert batch["num_pairs"] == len(pairs)
    assert len(batch["frames"]) == len(batch["draws"]) == len(pairs) + num_negatives
    assert (batch["class_ids"] == BACKGROUND).tolist() == [False] * len(pairs) + [True] * num_negatives


def test_an_image_without_augmentation_stays_as_it_is():
    frames = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(augment_frames(frames, torch.rand(2, NUM_DRAWS), 0, 0.0), frames.float())
    sounds = torch.randn(2, 5)
    torch.testing.assert_close(augment_sounds(sounds, torch.rand(2, NUM_DRAWS), 0.0), sounds)


@pytest.mark.parametrize(("draw", "pixels"), [(0.0, -2), (0.5, 0), (0.7, 1), (0.99999994, 2)])
def test_a_shifted_image_is_the_same_image_elsewhere(draw, pixels):
    frame = torch.arange(64.0).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    down = augment_frames(frame, draws(1, d0=draw), 2, 0.0)
    torch.testing.assert_close(down[..., 2:6, :], frame[..., 2 + pixels : 6 + pixels, :])
    right = augment_frames(frame, draws(1, d1=draw), 2, 0.0)
    torch.testing.assert_close(right[..., 2:6], frame[..., 2 + pixels : 6 + pixels])


def test_contrast_brightness_and_colours_change_each_on_their_own():
    frame = torch.full((1, 3, 4, 4), 100.0)
    frame[..., 0] = 60.0  # mean 90
    contrast = augment_frames(frame, draws(1, d2=1.0), 0, 0.2)
    torch.testing.assert_close(contrast, (frame - 90) * 1.2 + 90)
    brightness = augment_frames(frame, draws(1, d3=0.0), 0, 0.2)
    torch.testing.assert_close(brightness, frame - 9)
    red = augment_frames(frame, draws(1, d4=1.0), 0, 0.2)
    torch.testing.assert_close(red[:, 0], frame[:, 0] * 1.05)
    torch.testing.assert_close(red[:, 1:], frame[:, 1:])


def test_loudness_changes_within_its_bounds_and_for_each_audio_clip_alone():
    values = torch.linspace(0, 1, 5)
    gains = augment_sounds(torch.ones(5, 2), draws(5, d7=values), 6.0)
    assert torch.equal(gains[:, 0], gains[:, 1])
    torch.testing.assert_close(20 * gains[:, 0].log10(), torch.tensor([-6.0, -3.0, 0.0, 3.0, 6.0]))


def test_waveforms_with_channels_are_made_louder_one_by_one():
    sounds, values = torch.rand(3, 1, 4), torch.rand(3, NUM_DRAWS)
    expected = augment_sounds(sounds[:, 0], values, 6.0)
    torch.testing.assert_close(augment_sounds(sounds, values, 6.0)[:, 0], expected, rtol=0, atol=0)


def test_spectrograms_are_neither_shifted_nor_made_louder(tmp_path):
    sources = [SAVERS[name](tmp_path / name) for name in ("clip", "clap")]
    processor = AudioVisualEncoderProcessor.from_towers(*sources)
    check_sound_augmentation(processor, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"Got --sound_gain_db 3\.0, but this encoder takes values of shape .* 3 s"):
        check_sound_augmentation(processor, 0.0, 3.0)
    with pytest.raises(ValueError, match=r"Got --max_shift 0\.5"):
        check_sound_augmentation(processor, 0.5, 0.0)
