"""Thumbnails and the sound's envelope."""

import numpy as np
import pytest

from ave_clip.core.video_io import VideoReadError
from ave_clip.outputs.video_preview import MAX_PEAKS, read_preview
from tests.helpers.media import clicks, corner_picture, frame_number, write_recording


def test_thumbnails_show_the_middle_of_equal_parts(tmp_path):
    clip = write_recording(tmp_path / "clip.mp4", 4.0)
    preview = read_preview(clip, 4.0, height=48, max_thumbnails=4)
    assert preview.thumbnail_times == [0.5, 1.5, 2.5, 3.5]
    assert [frame_number(picture) for picture in preview.thumbnails] == [12, 37, 62, 87]
    assert preview.thumbnails[0].shape == (48, 80, 3)


def test_of_a_long_video_the_keyframe_before_is_shown(tmp_path):
    clip = write_recording(tmp_path / "clip.mp4", 150.0, frame_rate=5, sound=None)
    preview = read_preview(clip, 150.0, height=48, max_thumbnails=3)
    late = np.subtract([125, 375, 625], [frame_number(picture) for picture in preview.thumbnails])
    assert (late >= 0).all() and (late < 25).all() and late.any()  # a keyframe at least every 25 frames


def test_thumbnails_are_upright(tmp_path):
    clip = write_recording(tmp_path / "clip.mp4", 1.0, picture=corner_picture, rotation=90)
    (picture,) = read_preview(clip, 1.0, height=80, max_thumbnails=1).thumbnails
    assert picture.shape == (80, 48, 3)
    assert picture[10, 40].argmax() == 0 and picture[10, 40, 0] > 200  # red: top left turned to top right


def test_thumbnails_after_the_last_frame_repeat_it(tmp_path):
    clip = write_recording(tmp_path / "clip.mp4", 1.0, sound_seconds=4.0)
    pictures = read_preview(clip, 4.0, height=48, max_thumbnails=4).thumbnails
    assert [frame_number(picture) for picture in pictures[1:]] == [frame_number(pictures[0])] * 3


def test_peaks_are_where_the_audio_is(tmp_path):
    clip = write_recording(tmp_path / "clip.mp4", 4.0, sound=clicks([0.51, 2.51]))
    preview = read_preview(clip, 4.0)
    loud = np.flatnonzero(preview.peaks > 0.2) * preview.peaks_seconds / len(preview.peaks)
    assert preview.peaks_seconds == 4.0
    assert {float(time) for time in np.round(loud, 1)} == {0.5, 2.5}


def test_peaks_of_long_audio_are_few(tmp_path):
    clip = write_recording(tmp_path / "clip.wav", 100.0, sampling_rate=8000)
    preview = read_preview(clip, 100.0)
    assert len(preview.peaks) <= MAX_PEAKS and preview.thumbnails == []
    assert preview.peaks_seconds == pytest.approx(100, abs=0.1)


def test_a_video_without_audio_has_no_peaks(tmp_path):
    preview = read_preview(write_recording(tmp_path / "clip.mp4", 2.0, sound=None), 2.0)
    assert len(preview.peaks) == 0 and len(preview.thumbnails) == 9


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(VideoReadError, match=r"nothing\.mp4: there is no such file"):
        read_preview(tmp_path / "nothing.mp4", 1.0)
