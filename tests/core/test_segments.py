import numpy as np
import pytest

from ave_clip.core.segments import (
    audio_windows,
    copy_overlap,
    cut_waveform,
    first_sample,
    frame_times,
    num_segments_for,
    samples_per_segment,
    select_frames,
)


@pytest.mark.parametrize(
    ("duration", "segment_seconds", "expected"),
    [
        (10.0, 1.0, 10),
        (10.04, 1.0, 10),
        (9.96, 1.0, 10),
        (10.5, 1.0, 11),
        (10.49, 1.0, 10),
        (9.5 - 1e-12, 1.0, 10),
        (0.0, 1.0, 1),
        (0.2, 1.0, 1),
        (1.2, 0.5, 2),
        (1.25, 0.5, 3),
        (3.0, 0.1, 30),
        (7.0, 3.0, 2),
    ],
)
def test_a_last_partial_segment_counts_from_half_a_segment_on(duration, segment_seconds, expected):
    assert num_segments_for(duration, segment_seconds) == expected


@pytest.mark.parametrize(("duration", "segment_seconds"), [(-1.0, 1.0), (np.nan, 1.0), (np.inf, 1.0), (1.0, 0.0)])
def test_impossible_durations_are_refused(duration, segment_seconds):
    with pytest.raises(ValueError, match=r"Got (duration|segment)_seconds="):
        num_segments_for(duration, segment_seconds)


def test_frame_times_are_the_centres_of_equal_parts():
    np.testing.assert_allclose(frame_times(2, 4, 0.5), [1.0625, 1.1875, 1.3125, 1.4375], rtol=0, atol=1e-12)
    np.testing.assert_allclose(frame_times(0, 1, 1.0), [0.5], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sampling_rate", "segment_seconds"), [(44100, 1.0), (44100, 0.96), (22050, 0.333), (8000, 1)]
)
def test_segments_do_not_drift_from_the_exact_grid(sampling_rate, segment_seconds):
    length = samples_per_segment(sampling_rate, segment_seconds)
    assert abs(length - sampling_rate * segment_seconds) <= 0.5
    for index in (0, 1, 7, 1000):
        exact = index * segment_seconds * sampling_rate
        assert abs(first_sample(index, sampling_rate, segment_seconds) - exact) <= 0.5


def test_cut_waveform_contains_exactly_the_samples_of_each_segment_and_zeros_after():
    waveform = np.arange(1, 26, dtype=np.float32)
    segments = cut_waveform(waveform, num_segments=4, sampling_rate=10, segment_seconds=0.75)
    # Segment 1 starts at round(7.5) = 8, segment 2 at 15, segment 3 at round(22.5) = 22; each is round(7.5) = 8 long.
    np.testing.assert_array_equal(segments[0], np.arange(1, 9))
    np.testing.assert_array_equal(segments[1], np.arange(9, 17))
    np.testing.assert_array_equal(segments[2], np.arange(16, 24))
    np.testing.assert_array_equal(segments[3], [23, 24, 25, 0, 0, 0, 0, 0])
    assert segments.dtype == np.float32


def test_cut_waveform_may_start_before_or_inside_the_audio():
    waveform = np.arange(1, 7)
    np.testing.assert_array_equal(cut_waveform(waveform, 2, 4, 1.0, start_sample=-2), [[0, 0, 1, 2], [3, 4, 5, 6]])
    np.testing.assert_array_equal(cut_waveform(waveform, 1, 4, 1.0, start_sample=3), [[4, 5, 6, 0]])
    np.testing.assert_array_equal(cut_waveform(waveform, 1, 4, 1.0, start_sample=9), [[0, 0, 0, 0]])


def test_cut_waveform_copies():
    waveform = np.ones(8, np.float32)
    cut_waveform(waveform, 2, 4)[:] = 5
    np.testing.assert_array_equal(waveform, np.ones(8))


def test_cut_waveform_refuses_several_channels():
    with pytest.raises(ValueError, match=r"shape \(2, 8\)"):
        cut_waveform(np.zeros((2, 8)), 1, 8)


def test_copy_overlap_matches_copying_sample_by_sample():
    generator = np.random.default_rng(0)
    for _ in range(200):
        target_start, samples_start = generator.integers(-10, 10, 2)
        samples = generator.integers(1, 100, generator.integers(0, 12))
        target = np.zeros(generator.integers(0, 12), dtype=np.int64)
        expected = target.copy()
        for position, sample in enumerate(samples, start=samples_start):
            if 0 <= position - target_start < len(expected):
                expected[position - target_start] = sample
        copy_overlap(target, target_start, samples, samples_start)
        np.testing.assert_array_equal(target, expected)


def test_each_wanted_time_gets_the_frame_on_display():
    display_times = [0.0, 0.04, 0.3, 0.9]
    np.testing.assert_array_equal(select_frames(display_times, [0.02, 0.04, 0.5, 0.95], end=1.0), [0, 1, 2, 3])


def test_a_frame_that_stays_on_display_comes_once():
    np.testing.assert_array_equal(select_frames([0.0, 0.5], frame_times(0, 16), end=1.0), [0, 1])


def test_nothing_is_selected_before_the_first_frame_or_after_the_last_one_ended():
    assert select_frames([0.5], [0.1, 0.4], end=1.0).tolist() == []
    assert select_frames([0.5, 0.6], [0.7, 0.8], end=0.7).tolist() == []
    assert select_frames([], [0.5], end=1.0).tolist() == []


def test_a_rounded_time_stamp_still_counts_as_on_display():
    third = round(1 / 3, 7)  # lies 3e-8 below the exact value
    np.testing.assert_array_equal(select_frames([0.0, 1 / 3], [third], end=1.0), [1])


def test_select_frames_matches_a_plain_search():
    generator = np.random.default_rng(1)
    for _ in range(100):
        times = np.sort(generator.uniform(0, 3, generator.integers(0, 20)))
        wanted = np.sort(generator.uniform(0, 3, 8))
        end = generator.uniform(1, 3)
        expected = sorted(
            {
                max(i for i, shown in enumerate(times) if shown <= time)
                for time in wanted
                if time < end and (times <= time).any()
            }
        )
        assert select_frames(times, wanted, end).tolist() == expected


@pytest.mark.parametrize(("num_segments", "window"), [(5, 4), (5, 12), (1, 12), (5, 9), (7, 50), (0, 12)])
def test_audio_windows_are_cut_from_the_whole_waveform(num_segments, window):
    segments = np.arange(4 * num_segments, dtype=np.float32).reshape(num_segments, 4)
    whole, side = segments.flatten(), (window - 4) // 2
    expected = [whole[max(0, 4 * index - side) : 4 * index - side + window] for index in range(num_segments)]
    windows = list(audio_windows(segments, window))
    assert [part.tolist() for part in windows] == [part.tolist() for part in expected]


def test_audio_windows_read_no_further_than_they_reach():
    read = []
    windows = audio_windows((read.append(index) or np.zeros(4) for index in range(100)), 12)
    next(windows)
    assert read == [0, 1]
