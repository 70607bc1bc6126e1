import contextlib
import gc
import http.server
import io
import os
import threading
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest

from ave_clip.core import orientation, recording, video_decoding, video_io
from ave_clip.core.segments import frame_times, select_frames
from ave_clip.core.video_io import VideoReadError, clip_from_arrays, iter_segments, probe_video, read_video
from tests.helpers.media import (
    CODECS,
    add_cover_art,
    click_times,
    clicks,
    corner_picture,
    cut_off,
    frame_number,
    numbered_picture,
    sine,
    write_recording,
)

RATE = 44100


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("recordings")


@pytest.fixture(scope="module")
def clip(folder) -> Path:
    """Three seconds of h264 and aac."""
    return write_recording(folder / "clip.mp4", 3, sound=clicks([0.5, 1.25, 2.9]))


def numbers(video: video_io.VideoClip) -> list[list[int]]:
    return [[frame_number(picture) for picture in frames] for frames in video.frames]


def heard(video: video_io.VideoClip) -> list[float]:
    return click_times(video.waveforms.reshape(-1), video.sampling_rate)


def sweep(num_samples: int, rate: int) -> np.ndarray:
    """A tone that rises steadily, so that no two places sound the same."""
    time = np.arange(num_samples) / rate
    return (0.5 * np.sin(2 * np.pi * (300 + 200 * time) * time)).astype(np.float32)


def noise(num_samples: int, rate: int) -> np.ndarray:
    return np.clip(0.3 * np.random.default_rng(0).standard_normal(num_samples), -1, 1).astype(np.float32)


# --- the right frames and samples ---


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".webm", ".mkv", ".avi"])
def test_the_frames_on_display_and_the_clicks_land_in_their_segments(folder, suffix):
    path = write_recording(folder / f"plain{suffix}", 3, sound=clicks([0.5, 1.25, 2.9]))
    video = read_video(path, num_frames_per_segment=5)
    # Wanted at 0.1, 0.3, ...: at 25 frames a second that is 2.5, 7.5, ...
    assert numbers(video) == [[2, 7, 12, 17, 22], [27, 32, 37, 42, 47], [52, 57, 62, 67, 72]]
    np.testing.assert_allclose(np.concatenate(video.frame_times), np.arange(2, 75, 5) / 25, rtol=0, atol=1e-9)
    np.testing.assert_allclose(heard(video), [0.5, 1.25, 2.9], rtol=0, atol=1e-3)
    assert (video.has_video, video.has_audio, video.truncated, video.num_segments) == (True, True, False, 3)
    assert video.waveforms.shape == (3, RATE)
    assert video.waveforms.dtype == np.float32
    assert video.frames[0].shape == (5, 48, 80, 3)


def test_b_frames_in_avi_come_in_the_order_of_display(folder):
    path = write_recording(folder / "b.avi", 3, codecs=("libx264", "libmp3lame"))
    assert numbers(read_video(path, num_frames_per_segment=5))[1] == [27, 32, 37, 42, 47]


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_uncompressed_audio_comes_back_to_the_sample(folder, rate):
    path = write_recording(folder / f"pcm{rate}.wav", 2.0, sound=noise, sampling_rate=rate)
    waveforms = read_video(path, sampling_rate=rate).waveforms
    np.testing.assert_allclose(waveforms.reshape(-1), noise(2 * rate, rate), rtol=0, atol=2 / 32768)


def test_resampling_moves_nothing(folder):
    path = write_recording(folder / "tone.wav", 2.0, sampling_rate=48000)
    waveforms = read_video(path, sampling_rate=22050).waveforms.reshape(-1)
    np.testing.assert_allclose(waveforms[500:-500], sine(2 * 22050, 22050)[500:-500], rtol=0, atol=1e-3)


# Matroska and MPEG keep the time at which a recording starts; mp4 always begins at 0.
@pytest.mark.parametrize(("suffix", "start"), [(".mp4", 0.0), (".webm", 3.0), (".mkv", 3.0), (".ts", 3.0)])
def test_video_that_starts_late_has_no_frames_before(folder, suffix, start):
    path = write_recording(
        folder / f"late{suffix}", 3, sound=clicks([0.5, 2.9]), video_start=start + 0.63, audio_start=start
    )
    video = read_video(path, num_frames_per_segment=5)
    # MPEG cannot say that the encoder's first 1024 samples are not to be played.
    padding = 1024 / RATE if suffix == ".ts" else 0
    np.testing.assert_allclose(heard(video), np.array([0.5, 2.9]) + padding, rtol=0, atol=1.5e-3)
    assert video.frame_times[0][0] == pytest.approx(0.67 + padding, abs=1.5e-3)  # frame 1
    assert numbers(video) == [[1, 6], [11, 16, 21, 26, 31], [36, 41, 46, 51, 56], [61, 66, 71]]


@pytest.mark.parametrize(("suffix", "start"), [(".mp4", 0.0), (".webm", 3.0), (".mkv", 3.0), (".ts", 3.0)])
def test_audio_that_starts_late_is_preceded_by_zeros(folder, suffix, start):
    path = write_recording(
        folder / f"early{suffix}", 2, sound=clicks([0.5, 1.9]), video_start=start, audio_start=start + 0.25
    )
    video = read_video(path, num_frames_per_segment=5)
    assert numbers(video) == [[2, 7, 12, 17, 22], [27, 32, 37, 42, 47]]
    np.testing.assert_allclose(heard(video), [0.75], rtol=0, atol=1.5e-3)  # the other one lies at 2.15
    np.testing.assert_array_equal(video.waveforms[0, : int(0.2 * RATE)], 0)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_variable_frame_rate_gives_the_frame_on_display_and_each_once(folder, suffix):
    times = [0, 0.04, 0.3, 0.35, 0.9, 1.7, 1.71, 2.48, 2.6]
    path = write_recording(folder / f"variable{suffix}", 3, frame_times=times)
    video = read_video(path, num_frames_per_segment=5)
    assert numbers(video)[:2] == [[1, 2, 3, 4], [4, 5, 6]]
    np.testing.assert_allclose(video.frame_times[1], [0.9, 1.7, 1.71], rtol=0, atol=1e-9)
    assert numbers(video)[2][:2] == [6, 7]


def test_reading_a_file_agrees_with_the_same_frames_as_arrays(folder, clip):
    """One rule for both: `iter_segments` streams, `clip_from_arrays` uses `select_frames`."""
    with av.open(str(clip)) as container:
        decoded = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    times, frames = np.array([time for time, _ in decoded]), np.stack([frame for _, frame in decoded])
    for num_frames in (1, 3, 16, 25, 40):
        from_file = read_video(clip, num_frames_per_segment=num_frames, read_audio=False)
        from_arrays = clip_from_arrays(frames, display_times=times, num_frames_per_segment=num_frames)
        assert from_file.num_segments == from_arrays.num_segments == 3
        for index in range(3):
            np.testing.assert_array_equal(from_file.frame_times[index], from_arrays.frame_times[index])
            assert numbers(from_file)[index] == numbers(from_arrays)[index]
            chosen = select_frames(times, frame_times(index, num_frames), end=3.0)
            assert numbers(from_file)[index] == chosen.tolist()


def test_a_low_frame_rate_gives_fewer_frames_than_wanted(folder):
    path = write_recording(folder / "slow.mp4", 2, frame_rate=4)
    assert numbers(read_video(path, num_frames_per_segment=16)) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_other_segment_lengths_and_spans(clip):
    video = read_video(clip, num_frames_per_segment=2, segment_seconds=0.5, start_seconds=1.0, end_seconds=2.2)
    # 1.2 s are two and a bit segments of 0.5 s; wanted at 1.125, 1.375, 1.625, 1.875.
    assert numbers(video) == [[28, 34], [40, 46]]
    assert video.waveforms.shape == (2, 22050)
    np.testing.assert_allclose(heard(video), [0.25], rtol=0, atol=1e-3)
    assert video.duration_seconds == pytest.approx(1.2)
    assert not video.truncated


def test_nothing_after_end_seconds_comes_out(folder):
    path = write_recording(folder / "steady.mp4", 3)
    video = read_video(path, num_frames_per_segment=5, end_seconds=1.6)
    assert numbers(video)[1] == [27, 32, 37]
    assert np.abs(video.waveforms[1, : int(0.59 * RATE)]).max() > 0.4
    np.testing.assert_array_equal(video.waveforms[1, int(0.6 * RATE) :], 0)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".ts", ".avi", ".m4a", ".mp3"])
def test_starting_inside_gives_what_reading_from_the_beginning_gives(folder, suffix):
    path = write_recording(folder / f"long{suffix}", 9, sound=sweep)
    whole = read_video(path, num_frames_per_segment=7)
    part = read_video(path, num_frames_per_segment=7, start_seconds=5.0)
    assert part.num_segments == whole.num_segments - 5
    for index in range(part.num_segments):
        np.testing.assert_array_equal(part.frames[index], whole.frames[index + 5])
        np.testing.assert_allclose(part.frame_times[index], whole.frame_times[index + 5], rtol=0, atol=1e-9)
    if suffix in (".webm", ".mkv"):  # their time stamps are rounded to 1 ms
        match = np.correlate(whole.waveforms[6, 100:-100], part.waveforms[1, 200:-200], mode="valid")
        assert abs(int(match.argmax()) - 100) <= RATE / 1000
    else:
        np.testing.assert_allclose(part.waveforms, whole.waveforms[5:], rtol=0, atol=1e-4)


def test_starting_far_inside_does_not_decode_from_the_beginning(folder, monkeypatch):
    path = write_recording(folder / "far.mp4", 30)
    decoded = []
    decode = video_decoding.VideoTrack._decode_next

    def count(self):
        decoded.append(1)
        return decode(self)

    monkeypatch.setattr(video_decoding.VideoTrack, "_decode_next", count)
    assert numbers(read_video(path, num_frames_per_segment=1, start_seconds=28)) == [[712], [737]]
    # 2 s from the start, 1 s of margin and at most 1 s back to a key frame.
    assert len(decoded) <= 4 * 25 + 2


# --- sound levels ---


def test_mono_and_equal_stereo_keep_their_level(folder):
    for layout in ("mono", "stereo"):
        path = write_recording(folder / f"{layout}.wav", 1.0, layout=layout)
        waveform = read_video(path).waveforms[0]
        np.testing.assert_allclose(waveform, sine(RATE, RATE), rtol=0, atol=1 / 32768)


def test_stereo_is_the_mean_of_both_channels(folder):
    path = write_recording(
        folder / "left.wav",
        1.0,
        layout="stereo",
        sound=lambda count, rate: np.stack([sine(count, rate), np.zeros(count)]),
    )
    np.testing.assert_allclose(read_video(path).waveforms[0], sine(RATE, RATE) / 2, rtol=0, atol=1 / 32768)


@pytest.mark.parametrize(("channel", "weight"), [(0, 0.207), (1, 0.207), (2, 0.293), (4, 0.146), (5, 0.146)])
def test_surround_audio_is_mixed_down_with_the_documented_weights(folder, channel, weight):
    def one_channel(count, rate):
        samples = np.zeros((6, count), np.float32)
        samples[channel] = sine(count, rate)
        return samples

    path = write_recording(folder / f"surround{channel}.wav", 1.0, layout="5.1", sound=one_channel)
    np.testing.assert_allclose(read_video(path).waveforms[0], weight * sine(RATE, RATE), rtol=0, atol=5e-4)


def test_full_scale_surround_audio_does_not_clip(folder):
    path = write_recording(
        folder / "loud.wav", 1.0, layout="5.1", sound=lambda count, rate: sine(count, rate, amplitude=0.999)
    )
    waveform = read_video(path).waveforms[0]
    np.testing.assert_allclose(waveform, sine(RATE, RATE, amplitude=0.999), rtol=0, atol=1e-3)


# --- gaps, jitter, joins ---


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_a_gap_in_the_audio_is_silence_and_shifts_nothing(folder, suffix):
    path = write_recording(
        folder / f"gap{suffix}",
        4,
        sound=clicks([0.5, 1.5, 3.5]),
        drop=lambda kind, time: kind == "audio" and 1.1 <= time < 2.0,
    )
    video = read_video(path)
    np.testing.assert_allclose(heard(video), [0.5, 3.5], rtol=0, atol=1.5e-3)
    np.testing.assert_allclose(video.waveforms[1, int(0.2 * RATE) : int(0.9 * RATE)], 0, rtol=0, atol=1e-3)


def test_rounded_time_stamps_do_not_break_the_audio(folder):
    """Packets of 1024 / 44100 s get whole milliseconds in Matroska: no click, no drift."""
    path = write_recording(folder / "rounded.mkv", 5, sound=noise)
    np.testing.assert_allclose(read_video(path).waveforms.reshape(-1), noise(5 * RATE, RATE), rtol=0, atol=2 / 32768)


def test_recordings_joined_end_to_end_are_read_one_after_the_other(folder):
    path = write_recording(folder / "part.ts", 7, sound=clicks([0.5]))
    joined = folder / "joined.ts"
    joined.write_bytes(path.read_bytes() * 3)
    video = read_video(joined, num_frames_per_segment=1)
    assert video.num_segments == 21
    # A recording's sound is up to 0.1 s longer than its picture, so the next one begins that much later.
    np.testing.assert_allclose(np.concatenate(numbers(video)), [*range(12, 175, 25)] * 3, rtol=0, atol=5)
    np.testing.assert_allclose(np.diff(heard(video)), [7.0, 7.0], rtol=0, atol=0.1)


# --- what a file may lack ---


def test_without_audio_the_waveforms_are_zero(folder):
    path = write_recording(folder / "silent.mp4", 2, sound=None)
    video = read_video(path, num_frames_per_segment=2)
    assert (video.has_video, video.has_audio) == (True, False)
    np.testing.assert_array_equal(video.waveforms, np.zeros((2, RATE)))
    assert numbers(video) == [[6, 18], [31, 43]]


@pytest.mark.parametrize("suffix", [".ts", ".mkv"])
def test_an_empty_audio_track_is_silent(folder, suffix):
    """Its start is unknown, so it must not decide on time zero."""
    path = write_recording(
        folder / f"hollow{suffix}", 2, video_start=1000.0, audio_start=1000.0, drop=lambda kind, _: kind == "audio"
    )
    video = read_video(path, num_frames_per_segment=2)
    assert numbers(video) == [[6, 18], [31, 43]]
    np.testing.assert_array_equal(video.waveforms, np.zeros((2, RATE)))
    assert (video.has_audio, video.truncated) == (True, False)
    assert probe_video(path).duration_seconds == pytest.approx(2.0)


@pytest.mark.parametrize("suffix", [".webm", ".mkv"])
def test_a_live_stream_that_declares_nothing_is_read_and_can_be_started_inside(folder, suffix):
    path = write_recording(folder / f"live{suffix}", 7, options={"live": "1"})
    assert probe_video(path).duration_seconds == 0.0
    assert read_video(path, num_frames_per_segment=1).num_segments == 7
    part = read_video(path, num_frames_per_segment=1, start_seconds=5.0)
    assert numbers(part) == [[137], [162]]
    assert not part.truncated


@pytest.mark.parametrize("suffix", [".m4a", ".mp3", ".wav", ".flac", ".ogg"])
def test_without_video_there_are_no_frames(folder, suffix):
    path = write_recording(folder / f"sound{suffix}", 2, sound=clicks([0.5, 1.25]))
    video = read_video(path)
    assert (video.has_video, video.has_audio) == (False, True)
    assert [frames.shape for frames in video.frames] == [(0, 0, 0, 3)] * 2
    np.testing.assert_allclose(heard(video), [0.5, 1.25], rtol=0, atol=1.5e-3)
    assert video.frame_times[0].shape == (0,)


def test_cover_art_is_not_a_video(folder):
    path = add_cover_art(write_recording(folder / "song.mp3", 2))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1  # so the picture is really there
    assert not read_video(path).has_video
    assert not probe_video(path).has_video


def test_a_part_that_is_not_wanted_is_not_read(clip):
    video = read_video(clip, read_audio=False)
    np.testing.assert_array_equal(video.waveforms, 0)
    assert video.num_segments == 3
    assert [frames.shape[0] for frames in read_video(clip, read_video=False).frames] == [0, 0, 0]


def test_only_the_image_of_an_audio_file_gives_empty_segments_of_its_declared_length(folder):
    path = write_recording(folder / "only.m4a", 2)
    video = read_video(path, read_audio=False)
    assert [frames.shape for frames in video.frames] == [(0, 0, 0, 3)] * 2
    np.testing.assert_array_equal(video.waveforms, np.zeros((2, RATE)))


def test_shorter_than_a_segment_gives_one_padded_segment(folder):
    path = write_recording(folder / "short.mp4", 0.32, audio_start=0)
    video = read_video(path, num_frames_per_segment=5)
    assert numbers(video) == [[2, 7]]
    assert np.abs(video.waveforms[0, : int(0.3 * RATE)]).max() > 0.4
    np.testing.assert_array_equal(video.waveforms[0, int(0.36 * RATE) :], 0)


def test_the_longer_of_video_and_audio_counts(folder):
    longer_sound = read_video(write_recording(folder / "a.mkv", 2, sound_seconds=4), num_frames_per_segment=2)
    assert [len(frames) for frames in longer_sound.frames] == [2, 2, 0, 0]
    assert (np.abs(longer_sound.waveforms).max(axis=1) > 0.4).all()
    longer_picture = read_video(write_recording(folder / "b.mkv", 4, sound_seconds=2), num_frames_per_segment=2)
    assert [len(frames) for frames in longer_picture.frames] == [2, 2, 2, 2]
    assert (np.abs(longer_picture.waveforms).max(axis=1) > 0.4).tolist() == [True, True, False, False]
    assert not longer_picture.truncated


@pytest.mark.parametrize(("seconds", "expected"), [(2.4, 2), (2.6, 3), (12.0, 12)])
def test_number_of_segments_follows_the_duration(folder, seconds, expected):
    path = write_recording(folder / f"of{seconds}.mkv", seconds)
    video = read_video(path, num_frames_per_segment=1)
    assert video.num_segments == expected
    assert video.duration_seconds == pytest.approx(seconds, abs=0.02)


# --- geometry ---


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotated_recordings_come_out_upright(folder, rotation):
    upright = corner_picture(0) if rotation in (0, 180) else corner_picture(0, height=80, width=48)
    stored = np.rot90(upright, k=rotation // 90)  # turning it clockwise by `rotation` gives `upright`
    path = write_recording(folder / f"turned{rotation}.mov", 1, picture=lambda _: stored.copy(), rotation=rotation)
    info = probe_video(path)
    assert (info.rotation, info.height, info.width) == (rotation, *upright.shape[:2])
    frame = read_video(path, num_frames_per_segment=1).frames[0][0]
    assert frame.shape == upright.shape
    inner = np.s_[4:-4:8, 4:-4:8]  # away from the edges, which the codec blurs
    assert np.abs(frame[inner].astype(int) - upright[inner]).mean() < 12
    small = read_video(path, num_frames_per_segment=1, size=(20, 30)).frames[0][0]
    assert small.shape == (20, 30, 3)
    assert small[3, 3].argmax() == 0  # red at the top left
    assert small[3, -4].argmax() == 1


def test_mirrored_recordings_are_mirrored_back(folder):
    """Front cameras may write a display matrix that mirrors."""
    picture = corner_picture(0)
    matrices = {
        (-1, 0, 0, 1): picture[:, ::-1],
        (1, 0, 0, -1): picture[::-1],
        (0, 1, 1, 0): picture.swapaxes(0, 1),
        (0, -1, -1, 0): picture[::-1, ::-1].swapaxes(0, 1),
    }
    for matrix, expected in matrices.items():
        np.testing.assert_array_equal(orientation.turn_upright(picture, matrix), expected)
    assert orientation.clockwise_degrees((-1, 0, 0, 1)) == 0
    assert orientation.clockwise_degrees((1, 0, 0, -1)) == 180


def test_size_resizes_and_keeps_the_content(clip):
    video = read_video(clip, num_frames_per_segment=3, size=(24, 160))
    assert video.frames[0].shape == (3, 24, 160, 3)
    assert numbers(video) == numbers(read_video(clip, num_frames_per_segment=3))


def test_frames_keep_the_first_size_when_it_changes_in_the_middle(folder):
    small = write_recording(folder / "small.ts", 2, sound=None)
    large = write_recording(
        folder / "large.ts", 2, sound=None, picture=lambda i: numbered_picture(500 + i, height=96, width=160)
    )
    joined = folder / "sizes.ts"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    video = read_video(joined, num_frames_per_segment=1)
    assert {frames.shape for frames in video.frames} == {(1, 48, 80, 3)}
    assert [shown[0] >= 500 for shown in numbers(video)] == [False, False, True, True]


def test_colours_follow_matrix_and_range(folder):
    """The same colour stored as BT.601 or BT.709, limited or full range, comes out the same."""
    red, green, blue = 0.8, 0.3, 0.1
    for space, (red_weight, blue_weight) in {1: (0.2126, 0.0722), 6: (0.299, 0.114)}.items():
        for full in (False, True):
            luma = red_weight * red + (1 - red_weight - blue_weight) * green + blue_weight * blue
            chroma = (blue - luma) / (2 - 2 * blue_weight), (red - luma) / (2 - 2 * red_weight)
            levels = [255 * luma if full else 16 + 219 * luma, *(128 + (255 if full else 224) * c for c in chroma)]
            path = _write_plain_colour(folder / f"colour{space}{full}.mp4", levels, space, 2 if full else 1)
            pixel = read_video(path, num_frames_per_segment=1).frames[0][0][20, 20].astype(int)
            np.testing.assert_allclose(pixel, [204, 76.5, 25.5], rtol=0, atol=3)


def _write_plain_colour(path: Path, levels: list[float], space: int, colour_range: int) -> Path:
    planes = [np.full((48, 64), round(levels[0]))] + [np.full((12, 64), round(level)) for level in levels[1:]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, colour_range
        for index in range(25):
            frame = av.VideoFrame.from_ndarray(np.concatenate(planes).astype(np.uint8), format="yuv420p")
            frame.colorspace, frame.color_range, frame.pts = space, colour_range, index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


# --- cut off and damaged ---


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv", ".avi"])
def test_a_recording_that_stops_in_the_middle_gives_what_is_there(folder, suffix, caplog):
    options = {"movflags": "faststart"} if suffix == ".mp4" else {}
    path = cut_off(write_recording(folder / f"whole{suffix}", 6, options=options), 0.6)
    video = read_video(path, num_frames_per_segment=5)
    assert video.truncated
    assert 1 <= video.num_segments <= 5
    assert numbers(video)[0] == [2, 7, 12, 17, 22]
    assert video.waveforms[0].std() == pytest.approx(0.5 / np.sqrt(2), abs=0.02)
    message = caplog.messages[0]
    assert str(path) in message
    assert f"stops at {video.duration_seconds:.2f} s of 6.0" in message


def test_a_fragmented_mp4_that_stops_within_a_packet_counts_as_truncated(folder):
    path = write_recording(folder / "fragments.mp4", 6, options={"movflags": "frag_keyframe+empty_moov"})
    assert not read_video(path, num_frames_per_segment=1).truncated
    video = read_video(cut_off(path, 0.6), num_frames_per_segment=1)
    assert video.truncated
    assert 2 <= video.num_segments <= 5


def test_an_mp4_cut_off_before_its_index_is_refused(folder, clip):
    with pytest.raises(VideoReadError, match=r"cut_clip\.mp4.*cut off before its index"):
        read_video(cut_off(clip, 0.5))


def test_a_span_that_was_read_completely_is_not_truncated(folder):
    path = cut_off(write_recording(folder / "head.mkv", 6), 0.6)
    assert not read_video(path, num_frames_per_segment=1, end_seconds=2).truncated


def test_damage_in_the_middle_costs_only_what_is_damaged(folder, caplog):
    path = write_recording(folder / "fine.mkv", 6)
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.pos and 2.0 < packet.pts / 1000 < 3.0]
        spans = [(packet.pos + 8, max(0, packet.size - 8)) for packet in packets]
    for position, size in spans:
        content[position : position + size] = bytes(size)
    damaged = folder / "damaged.mkv"
    damaged.write_bytes(content)
    video = read_video(damaged, num_frames_per_segment=5)
    assert video.num_segments == 6
    for index in (0, 1, 4, 5):
        assert numbers(video)[index] == [25 * index + offset for offset in (2, 7, 12, 17, 22)]
    assert not video.truncated
    assert any("could not be decoded" in message and "damaged.mkv" in message for message in caplog.messages)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi", ".flac"])
def test_damaged_files_are_read_or_refused_but_nothing_else_happens(folder, suffix):
    content = write_recording(folder / f"victim{suffix}", 1.5).read_bytes()
    generator = np.random.default_rng(0)
    outcomes = set()
    for _ in range(40):
        damaged = bytearray(content)
        for position in generator.integers(0, len(content), generator.integers(1, 40)):
            damaged[position] = generator.integers(256)
        if generator.random() < 0.3:
            del damaged[generator.integers(1, len(content)) :]
        try:
            segments = list(iter_segments(bytes(damaged), num_frames_per_segment=2, end_seconds=20.0))
            assert all(segment.waveform.shape == (RATE,) for segment in segments)
            outcomes.add("read")
        except VideoReadError as error:
            assert "Cannot read <bytes>" in str(error)
            outcomes.add("refused")
    assert "read" in outcomes


# --- what cannot be read ---


def test_what_is_not_a_recording_is_refused_by_name(folder):
    (folder / "text.mp4").write_text("This is a shopping list.\n" * 50)
    (folder / "notes.txt").write_text("This is a shopping list.\n" * 50)
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    (folder / "zeros.mp4").write_bytes(bytes(50_000))
    (folder / "words.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello\n")
    av.VideoFrame.from_ndarray(corner_picture(0)).save(str(folder / "picture.png"))
    for name in ("text.mp4", "notes.txt", "random.mp4", "zeros.mp4", "words.srt", "picture.png"):
        for read in (read_video, probe_video, lambda source: next(iter_segments(source))):
            with pytest.raises(VideoReadError, match=f"Cannot read .*{name}"):
                read(folder / name)


def test_an_empty_file_a_directory_and_a_missing_file_are_named(folder):
    (folder / "empty.mp4").touch()
    with pytest.raises(VideoReadError, match=r"empty\.mp4: it is empty"):
        read_video(folder / "empty.mp4")
    with pytest.raises(VideoReadError, match="it is a directory"):
        read_video(folder)
    with pytest.raises(VideoReadError, match=r"nowhere\.mp4: there is no such file"):
        read_video(str(folder / "nowhere.mp4"))
    with pytest.raises(VideoReadError, match="<bytes>: it is empty"):
        read_video(b"")


def test_playlists_cannot_make_the_reader_open_other_files(folder, clip):
    part = write_recording(folder / "secret.ts", 1)
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile {part.name}\n")
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{part.name}\n#EXT-X-ENDLIST\n"
    (folder / "list.m3u8").write_text(hls)
    (folder / "hls.ts").write_text(hls)
    for name in ("list.mp4", "list.m3u8", "hls.ts"):
        with pytest.raises(VideoReadError, match=name):
            read_video(folder / name)


def test_an_encrypted_file_is_refused(folder):
    key = "00112233445566778899aabbccddeeff"
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    path = write_recording(folder / "protected.mp4", 2, options=options)
    with pytest.raises(VideoReadError, match=r"protected\.mp4: it is encrypted"):
        read_video(path)


def test_a_recording_whose_packets_are_all_broken_is_refused(folder):
    path = write_recording(folder / "hollow.mp4", 1, sound=None, options={"movflags": "faststart"})
    content = path.read_bytes()
    start = content.index(b"mdat") + 4
    path.write_bytes(content[:start] + bytes(len(content) - start))
    with pytest.raises(VideoReadError, match=r"hollow\.mp4: nothing in it could be decoded"):
        read_video(path)


def test_absurd_frame_sizes_are_refused(clip, monkeypatch):
    monkeypatch.setattr(recording, "MAX_SIDE_PIXELS", 64)
    with pytest.raises(VideoReadError, match=r"clip\.mp4.*80x48 pixels"):
        read_video(clip)


def test_absurd_durations_are_refused(clip, monkeypatch):
    monkeypatch.setattr(recording, "MAX_DURATION_SECONDS", 2.0)
    with pytest.raises(VideoReadError, match=r"clip\.mp4: it declares 3 seconds"):
        read_video(clip)


def test_a_clip_too_large_for_memory_is_refused_before_decoding(clip, monkeypatch):
    one_segment = 16 * 48 * 80 * 3 + 4 * RATE
    monkeypatch.setattr(video_io, "MAX_CLIP_BYTES", int(2.5 * one_segment))
    monkeypatch.setattr(video_io.SegmentReader, "_read", None)  # nothing may be decoded
    with pytest.raises(VideoReadError, match=r"clip\.mp4 at once.*iter_segments"):
        read_video(clip)


def test_a_clip_that_declares_too_little_is_stopped_while_reading(folder, monkeypatch):
    path = write_recording(folder / "undeclared.ts", 1)
    joined = folder / "undeclared_long.ts"
    joined.write_bytes(path.read_bytes() * 6)
    monkeypatch.setattr(video_io, "MAX_CLIP_BYTES", 4 * 4 * RATE)
    with pytest.raises(VideoReadError, match=r"undeclared_long\.ts at once"):
        read_video(joined, read_video=False)
    assert len(list(iter_segments(joined, read_video=False))) == 6


def test_starting_after_the_end_is_refused(clip):
    for start in (3.5, 100.0):
        with pytest.raises(VideoReadError, match=rf"start_seconds={start}: it ends at 3\.0"):
            read_video(clip, start_seconds=start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames_per_segment": 0}, "num_frames_per_segment=0"),
        ({"num_frames_per_segment": 1001}, "from 1 to 1000"),
        ({"num_frames_per_segment": 2.5}, "num_frames_per_segment=2.5"),
        ({"sampling_rate": -1}, "sampling_rate=-1"),
        ({"sampling_rate": 0}, "sampling_rate=0"),
        ({"segment_seconds": 0}, "segment_seconds=0"),
        ({"segment_seconds": float("nan")}, "segment_seconds=nan"),
        ({"segment_seconds": 1e-6}, "contain 0 samples"),
        ({"segment_seconds": 1e6}, "contain 44100000000 samples"),
        ({"start_seconds": -1.0}, "start_seconds=-1.0"),
        ({"start_seconds": float("inf")}, "start_seconds=inf"),
        ({"start_seconds": 2.0, "end_seconds": 2.0}, "end_seconds=2.0"),
        ({"end_seconds": 1e12}, "end_seconds=1000000000000.0"),
        ({"size": 224}, "size=224"),
        ({"size": (0, 10)}, "height.=0"),
        ({"size": (10, 10**6)}, "width.=1000000"),
        ({"read_video": False, "read_audio": False}, "nothing to read"),
    ],
)
def test_impossible_options_are_refused_at_once(clip, options, message):
    for read in (read_video, iter_segments):
        with pytest.raises(ValueError, match=message):
            read(clip, **options)


# --- sources ---


def test_paths_bytes_and_file_objects_give_the_same(clip):
    expected = read_video(clip, num_frames_per_segment=2)
    content = clip.read_bytes()
    buffer = io.BytesIO(content)
    buffer.seek(1000)
    with open(clip, "rb") as file:
        for source in (str(clip), content, bytearray(content), buffer, file):
            video = read_video(source, num_frames_per_segment=2)
            np.testing.assert_array_equal(np.concatenate(video.frames), np.concatenate(expected.frames))
            np.testing.assert_array_equal(video.waveforms, expected.waveforms)
        assert not file.closed
        assert file.tell() == 0
    assert buffer.tell() == 1000


def test_names_say_where_a_video_came_from(clip):
    assert read_video(clip, num_frames_per_segment=1).name == str(clip)
    assert probe_video(clip.read_bytes()).name == "<bytes>"
    assert probe_video(io.BytesIO(clip.read_bytes())).name == "<BytesIO>"
    with open(clip, "rb") as file:
        assert probe_video(file).name == str(clip)


def test_a_pipe_is_read_although_it_cannot_seek(clip):
    reader, writer = os.pipe()
    content = clip.read_bytes()

    def feed():
        with open(writer, "wb") as pipe:
            pipe.write(content)

    thread = threading.Thread(target=feed)
    thread.start()
    with open(reader, "rb") as pipe:
        video = read_video(pipe, num_frames_per_segment=5)
        assert not pipe.closed
    thread.join()
    assert numbers(video)[0] == [2, 7, 12, 17, 22]


def test_text_files_and_other_objects_are_refused(clip):
    with open(clip, encoding="latin-1") as file, pytest.raises(VideoReadError, match="text mode"):
        read_video(file)
    with pytest.raises(TypeError, match="Got a int as video"):
        read_video(3)


def test_odd_file_names_are_only_names(clip, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("-clip.mp4", "a:b.mp4", "concat:x.mp4", "file:clip.mp4", "100%d.mp4", "clip ünï.mp4"):
        (tmp_path / name).write_bytes(clip.read_bytes())
        assert probe_video(name).num_frames == 75


@pytest.mark.parametrize("url", ["ftp://host/clip.mp4", "rtsp://host/x", "subfile://x"])
def test_other_schemes_are_refused(url):
    with pytest.raises(VideoReadError, match=r"scheme .* is not supported"):
        read_video(url)


@pytest.mark.parametrize(
    "name", ["concat:a.mp4|b.mp4", "data:video/mp4;base64,AAAA", "subfile,,start,0,end,9,,:a.mp4"]
)
def test_protocols_of_ffmpeg_are_taken_for_file_names(name):
    with pytest.raises(VideoReadError, match="there is no such file"):
        read_video(name)


@contextlib.contextmanager
def http_server(folder: Path, ranges: bool, redirect: str | None = None):
    """Serves a folder on 127.0.0.1, with or without pieces of files (`Range`); or sends everybody elsewhere."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

        def do_GET(self):
            requests.append(self.headers.get("Range"))
            path = Path(self.translate_path(self.path))
            if redirect is not None and not self.path.endswith("clip.mp4"):
                self.send_response(302)
                self.send_header("Location", redirect)
                self.end_headers()
                return None
            if not ranges or not path.is_file() or self.headers.get("Range") is None:
                return super().do_GET()
            content = path.read_bytes()
            start, _, end = self.headers["Range"].removeprefix("bytes=").partition("-")
            last = min(int(end or len(content)), len(content) - 1)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            self.send_header("Content-Length", str(last + 1 - int(start)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content[int(start) : last + 1])

    requests = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_url_is_read_whether_or_not_the_server_serves_pieces(clip, ranges):
    with http_server(clip.parent, ranges) as (url, requests):
        video = read_video(f"{url}/clip.mp4", num_frames_per_segment=5)
        assert video.name == f"{url}/clip.mp4"
        assert numbers(video)[2] == [52, 57, 62, 67, 72]
        np.testing.assert_allclose(heard(video), [0.5, 1.25, 2.9], rtol=0, atol=1e-3)
        assert requests == ["bytes=0-"]  # one is enough for a small file


def test_a_url_that_does_not_answer_with_a_video_is_refused(clip, folder):
    (folder / "page.mp4").write_text("<html>Sorry</html>\n" * 50)
    with http_server(folder, ranges=False) as (url, _):
        with pytest.raises(VideoReadError, match=r"missing\.mp4: the server answered 404"):
            read_video(f"{url}/missing.mp4")
        with pytest.raises(VideoReadError, match=r"page\.mp4: no video or audio recording"):
            read_video(f"{url}/page.mp4")
    with pytest.raises(VideoReadError, match="Check the address and the connection"):
        read_video(f"{url}/clip.mp4")


def test_redirects_are_followed_within_http_only(clip):
    with http_server(clip.parent, ranges=True, redirect="/clip.mp4") as (url, _):
        assert read_video(f"{url}/moved.mp4", num_frames_per_segment=1).num_segments == 3
    for target in ("file:///etc/passwd", "ftp://127.0.0.1:1/clip.mp4"):
        server = http_server(clip.parent, ranges=True, redirect=target)
        with server as (url, _), pytest.raises(VideoReadError, match=r"Cannot read http://127\.0\.0\.1"):
            read_video(f"{url}/moved.mp4")


# --- streaming ---


def test_segments_come_in_order_and_equal_the_complete_clip(clip):
    video = read_video(clip, num_frames_per_segment=3)
    segments = list(iter_segments(clip, num_frames_per_segment=3))
    assert [segment.index for segment in segments] == [0, 1, 2]
    for segment, frames, waveform in zip(segments, video.frames, video.waveforms):
        np.testing.assert_array_equal(segment.frames, frames)
        np.testing.assert_array_equal(segment.waveform, waveform)


def test_closing_the_iterator_early_closes_the_file(clip):
    opened = open(clip, "rb")  # noqa: SIM115
    opened.seek(7)
    segments = iter_segments(opened)
    next(segments)
    assert opened.tell() != 7
    segments.close()
    assert opened.tell() == 7
    opened.close()
    before = len(os.listdir("/proc/self/fd"))
    segments = iter_segments(clip)
    next(segments)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    segments.close()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("suffix", [".webm", ".mkv"])
def test_badly_interleaved_packets_lose_nothing(folder, suffix):
    options = {"max_interleave_delta": "1"}
    path = write_recording(
        folder / f"apart{suffix}", 14, sound=clicks([0.5, 13.5]), interleaved=False, options=options
    )
    with av.open(str(path)) as container:
        kinds = [packet.stream.type for packet in container.demux() if packet.size]
    assert kinds.index("audio") > 13 * 25  # so the sound is really stored after the picture
    video = read_video(path, num_frames_per_segment=1)
    assert [shown[0] for shown in numbers(video)] == list(range(12, 350, 25))
    np.testing.assert_allclose(heard(video), [0.5, 13.5], rtol=0, atol=1.5e-3)


def test_audio_that_ends_early_does_not_make_the_video_pile_up(folder, monkeypatch):
    path = write_recording(folder / "ends_early.mp4", 40, sound_seconds=2)
    most = 0
    keep = video_decoding.Demuxer._keep

    def measure(self, packet):
        nonlocal most
        keep(self, packet)
        most = max(most, *map(len, self._waiting.values()))

    monkeypatch.setattr(video_decoding.Demuxer, "_keep", measure)
    video = read_video(path, num_frames_per_segment=1)
    assert [shown[0] for shown in numbers(video)] == list(range(12, 1000, 25))
    assert most <= 14 * 25  # 10 s of waiting, and 2 s ahead


def test_memory_stays_bounded_however_long_the_video(folder):
    path = write_recording(folder / "minutes.mp4", 40, picture=lambda i: numbered_picture(i, 240, 320), frame_rate=5)
    tracemalloc.start()
    count = sum(1 for _ in iter_segments(path, num_frames_per_segment=5))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 40
    one_segment = 5 * 240 * 320 * 3 + 4 * RATE
    assert peak < 6 * one_segment


def test_decoded_frames_are_freed_without_the_garbage_collector(clip):
    gc.collect()
    gc.disable()
    try:
        for _ in iter_segments(clip, num_frames_per_segment=5):
            assert sum(type(thing) is av.VideoFrame for thing in gc.get_objects()) <= 10
    finally:
        gc.enable()


# --- probe and arrays ---


def test_probe_describes_the_file(clip, folder):
    info = probe_video(clip)
    assert info == video_io.VideoInfo(
        name=str(clip),
        duration_seconds=3.0,
        width=80,
        height=48,
        frame_rate=25.0,
        num_frames=75,
        has_video=True,
        has_audio=True,
        audio_sampling_rate=44100,
        rotation=0,
    )
    sound = probe_video(write_recording(folder / "probe.ogg", 2))
    assert (sound.has_video, sound.has_audio, sound.audio_sampling_rate) == (False, True, 48000)
    assert (sound.width, sound.height, sound.frame_rate, sound.num_frames) == (0, 0, 0.0, None)
    assert sound.duration_seconds == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_probe_and_decoding_agree_on_the_duration(folder, suffix):
    path = write_recording(folder / f"agree{suffix}", 2)
    video = read_video(path, num_frames_per_segment=1)
    assert video.duration_seconds == pytest.approx(probe_video(path).duration_seconds, abs=0.05)
    assert not video.truncated


def test_arrays_are_cut_by_the_same_rules_as_files():
    frames = np.stack([numbered_picture(i) for i in range(26)])
    video = clip_from_arrays(frames, frame_rate=10, waveform=sine(RATE, RATE), num_frames_per_segment=2)
    assert numbers(video) == [[2, 7], [12, 17], [22]]
    np.testing.assert_array_equal(video.waveforms[0], sine(RATE, RATE))
    np.testing.assert_array_equal(video.waveforms[1:], 0)
    assert (video.has_video, video.has_audio, video.duration_seconds) == (True, True, 2.6)


@pytest.mark.parametrize(
    ("times", "shown_in_the_end"), [([0.0], 1), ([0.0, 0.4, 2.5], 1), ([0, 0.1, 0.2, 0.3, 0.4, 0.5], 0)]
)
def test_the_last_frame_of_arrays_stays_where_that_of_a_file_does(folder, times, shown_in_the_end):
    codecs = ("libx264", "pcm_s16le")
    path = write_recording(folder / "last.mkv", 5, frame_times=times, picture=numbered_picture, codecs=codecs)
    from_file = read_video(path, sampling_rate=8000, num_frames_per_segment=4)
    frames = np.stack([numbered_picture(i) for i in range(len(times))])
    options = {"waveform": sine(5 * 8000, 8000), "sampling_rate": 8000, "num_frames_per_segment": 4}
    from_arrays = clip_from_arrays(frames, display_times=times, **options)
    assert numbers(from_arrays) == numbers(from_file)
    assert len(from_arrays.frames[-1]) == shown_in_the_end
    at_an_end = clip_from_arrays(frames, display_times=times, end_seconds=3.0, **options)
    assert [len(part) for part in at_an_end.frames[3:]] == [0, 0]


def test_arrays_may_be_only_audio_or_only_frames():
    sound = clip_from_arrays(waveform=sine(RATE * 2, RATE))
    assert (sound.has_video, sound.has_audio, sound.num_segments) == (False, True, 2)
    assert [frames.shape for frames in sound.frames] == [(0, 0, 0, 3)] * 2
    frames = clip_from_arrays(np.zeros((3, 4, 4, 3), np.uint8), display_times=[0.0, 0.5, 1.0])
    assert (frames.has_video, frames.has_audio, frames.duration_seconds) == (True, False, 1.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "neither frames nor a waveform"),
        ({"frames": np.zeros((2, 4, 4, 3))}, "type float64"),
        ({"frames": np.zeros((2, 3, 4, 4), np.uint8), "frame_rate": 5}, r"shape \(2, 3, 4, 4\)"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8)}, "either frame_rate or display_times"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8), "frame_rate": 0}, "frame_rate=0"),
        ({"frames": np.zeros((2, 4, 4, 3), np.uint8), "display_times": [1.0, 0.5]}, "ascending"),
        ({"waveform": np.zeros((2, 100))}, r"waveform of shape \(2, 100\)"),
        ({"waveform": np.array([0.0, np.nan])}, "NaN"),
        ({"waveform": np.zeros(100), "num_frames_per_segment": 0}, "num_frames_per_segment=0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        clip_from_arrays(**arguments)
