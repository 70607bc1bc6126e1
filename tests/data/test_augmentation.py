import numpy as np
import pytest
import torch

from ave_clip.core.video_io import VideoClip
from ave_clip.data.augmentation import ClipAugmentation

NOTHING = {
    "gain_db": 0.0,
    "noise_probability": 0.0,
    "shift_seconds": 0.0,
    "flip_probability": 0.0,
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "brightness": 0.0,
    "contrast": 0.0,
    "saturation": 0.0,
}


def make_clip(num_segments=3, seed=0):
    draw = np.random.default_rng(seed)
    frames = [draw.integers(0, 256, (2, 24, 32, 3), dtype=np.uint8) for _ in range(num_segments)]
    frames[-1] = frames[-1][:1]
    return VideoClip(
        name="clip.mp4",
        frames=frames,
        frame_times=[np.arange(len(segment)) / 2.0 for segment in frames],
        waveforms=draw.uniform(-0.4, 0.4, (num_segments, 1000)).astype(np.float32),
        sampling_rate=1000,
        segment_seconds=1.0,
        duration_seconds=float(num_segments),
        has_video=True,
        has_audio=True,
    )


def augment(clip, seed=0, **settings):
    return ClipAugmentation(**{**NOTHING, **settings})(clip, torch.Generator().manual_seed(seed))


def test_with_everything_off_nothing_changes():
    clip = make_clip()
    same = augment(clip)
    assert np.array_equal(same.waveforms, clip.waveforms)
    assert all(np.array_equal(one, other) for one, other in zip(same.frames, clip.frames))


def test_the_clip_that_was_given_stays_as_it_is():
    clip, copy = make_clip(), make_clip()
    ClipAugmentation()(clip)
    assert np.array_equal(clip.waveforms, copy.waveforms)
    assert all(np.array_equal(one, other) for one, other in zip(clip.frames, copy.frames))


def test_the_generator_decides():
    clip = make_clip()
    one, same, other = (ClipAugmentation()(clip, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one.waveforms, same.waveforms)
    assert all(np.array_equal(a, b) for a, b in zip(one.frames, same.frames))
    assert not np.array_equal(one.waveforms, other.waveforms)


def test_without_a_generator_torchs_own_decides():
    clip = make_clip()
    torch.manual_seed(3)
    one = ClipAugmentation()(clip)
    torch.manual_seed(3)
    assert np.array_equal(ClipAugmentation()(clip).waveforms, one.waveforms)


def test_gain_multiplies_all_segments_alike_within_its_bounds():
    clip = make_clip()
    ratios = []
    for seed in range(20):
        ratio = augment(clip, seed, gain_db=6.0).waveforms / clip.waveforms
        assert np.allclose(ratio, ratio[0, 0], atol=1e-4)
        ratios.append(ratio[0, 0])
    assert 10 ** (-6 / 20) <= min(ratios) < 0.8
    assert 1.25 < max(ratios) <= 10 ** (6 / 20)


def test_loud_audio_is_cut_at_full_scale():
    clip = make_clip()
    clip.waveforms *= 2.4
    loud = [augment(clip, seed, gain_db=20.0).waveforms for seed in range(10)]
    assert max(np.abs(one).max() for one in loud) == 1.0
    assert all(one.dtype == np.float32 for one in loud)


def test_noise_has_the_given_signal_to_noise_ratio():
    clip = make_clip()
    noisy = augment(clip, noise_probability=1.0, noise_snr_db=(20.0, 20.0)).waveforms
    noise = noisy - clip.waveforms
    assert 10 * np.log10(np.mean(clip.waveforms**2) / np.mean(noise**2)) == pytest.approx(20.0, abs=0.5)
    assert not np.allclose(noise[0], noise[1], atol=1e-3)


def test_silence_stays_silent():
    clip = make_clip()
    clip.waveforms[:] = 0
    assert not ClipAugmentation(noise_probability=1.0)(clip).waveforms.any()


def test_the_time_shift_rotates_every_segment_alike_and_keeps_its_samples():
    clip = make_clip()
    shifts = set()
    for seed in range(10):
        shifted = augment(clip, seed, shift_seconds=0.1).waveforms
        (shift,) = {
            next(s for s in range(-100, 101) if np.array_equal(np.roll(one, s), other))
            for one, other in zip(clip.waveforms, shifted)
        }
        shifts.add(shift)
    assert len(shifts) > 5


def test_a_flip_swaps_left_and_right_in_every_frame():
    clip = make_clip()
    flipped = augment(clip, flip_probability=1.0)
    assert all(np.array_equal(one[:, :, ::-1], other) for one, other in zip(clip.frames, flipped.frames))


def test_a_crop_is_one_rectangle_for_all_frames():
    clip = make_clip()
    sizes = set()
    for seed in range(10):
        cropped = augment(clip, seed, crop_scale=(0.3, 0.8), crop_ratio=(0.75, 1.33))
        height, width = cropped.frames[0].shape[1:3]
        assert 0.25 < height * width / (24 * 32) < 0.85
        corners = [
            (top, left)
            for top in range(24 - height + 1)
            for left in range(32 - width + 1)
            if all(
                np.array_equal(one[:, top : top + height, left : left + width], other)
                for one, other in zip(clip.frames, cropped.frames)
            )
        ]
        assert len(corners) == 1
        sizes.add((height, width))
    assert len(sizes) > 5


def test_brightness_changes_all_frames_by_one_factor():
    clip = make_clip()
    for segment in clip.frames:
        segment[:] = segment // 3 + 20
    changed = augment(clip, seed=1, brightness=0.5)
    ratios = [np.median(other / one) for one, other in zip(clip.frames, changed.frames)]
    assert np.allclose(ratios, ratios[0], atol=0.03)
    assert abs(ratios[0] - 1) > 0.05


def test_no_saturation_makes_grey_frames():
    clip = make_clip()
    greys = [augment(clip, seed, saturation=1.0).frames[0].astype(int) for seed in range(30)]
    spreads = [np.abs(one[..., 0] - one[..., 2]).mean() for one in greys]
    assert min(spreads) < 0.2 * max(spreads)


def test_segments_without_frames_and_clips_without_any_pass():
    clip = make_clip()
    clip.frames[1] = clip.frames[1][:0]
    changed = ClipAugmentation()(clip)
    assert [len(segment) for segment in changed.frames] == [2, 0, 1]
    clip.frames = [segment[:0] for segment in clip.frames]
    assert all(len(segment) == 0 for segment in ClipAugmentation()(clip).frames)


def test_the_number_of_frames_and_samples_never_changes():
    clip = make_clip()
    for seed in range(10):
        changed = ClipAugmentation()(clip, torch.Generator().manual_seed(seed))
        assert changed.waveforms.shape == clip.waveforms.shape
        assert [len(segment) for segment in changed.frames] == [2, 2, 1]
        assert len({segment.shape[1:] for segment in changed.frames}) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"flip_probability": 1.5},
        {"noise_probability": -0.1},
        {"brightness": 2.0},
        {"gain_db": -1.0},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.8, 0.5)},
        {"crop_scale": (0.5, 1.5)},
        {"crop_ratio": (0.0, 1.0)},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match=f"Got {next(iter(settings))}="):
        ClipAugmentation(**settings)
