"""Memory is bounded by the size of one picture: frames are resized while a file is read, however many are wanted."""

import numpy as np
import pytest

from ave_clip.core import recording, video_decoding
from ave_clip.core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ave_clip.core.processing_ave_clip import AVEClipProcessor
from ave_clip.core.streaming import open_source
from ave_clip.core.video_io import VideoReadError, clip_from_arrays, iter_segments, probe_video, read_video
from ave_clip.core.video_processing_ave_clip import AVEClipVideoProcessor
from tests.helpers.media import numbered_picture, write_recording

SIZE = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


def large_picture(number):
    return numbered_picture(number, 480, 640)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_recording(tmp_path_factory.mktemp("large") / "clip.mp4", 2, picture=large_picture)


@pytest.fixture
def processor():
    return AVEClipProcessor(AudioCLIPFeatureExtractor(), AVEClipVideoProcessor(num_frames_per_segment=4, **SIZE))


@pytest.fixture
def waiting(monkeypatch):
    """Counts pictures of native size that are alive at the same time, and returns the largest number so far."""
    alive, most = set(), [0]
    original = video_decoding.VideoTrack._to_rgb

    class Picture(np.ndarray):
        def __array_finalize__(self, _):
            if self.base is None or not isinstance(self.base, Picture):
                alive.add(id(self))
                most[0] = max(most[0], len(alive))

        def __del__(self):
            alive.discard(id(self))

    monkeypatch.setattr(
        video_decoding.VideoTrack, "_to_rgb", lambda *arguments: original(*arguments).copy().view(Picture)
    )
    return most


@pytest.mark.parametrize("count", [1, 4, 16, 25])
def test_segments_of_the_pipeline_hold_resized_frames(clip, processor, count):
    for segment in open_source(clip, processor, count, 1.0):
        assert segment.frames.shape == (count, 32, 32, 3)


def test_one_frame_of_native_size_is_alive_at_a_time(clip, processor, waiting):
    assert processor(videos=clip, num_frames_per_segment=16)["pixel_values"].shape == (1, 2, 16, 3, 32, 32)
    assert 1 <= waiting[0] <= 2


@pytest.mark.parametrize("options", [{}, {"do_center_crop": False}, {"do_resize": False, "do_center_crop": False}])
def test_resizing_while_reading_changes_no_pixel(clip, processor, options):
    """Files, arrays and clips go through the same steps as whole segments of native size do."""
    native = read_video(clip, num_frames_per_segment=4)
    expected = processor.video_processor.preprocess_segments([native.frames], **options)
    for given in (clip, native):
        np.testing.assert_array_equal(processor(videos=given, **options)["pixel_values"], expected["pixel_values"])
    np.testing.assert_array_equal(
        processor.video_processor(str(clip), **options)["pixel_values"], expected["pixel_values"]
    )


def test_a_transform_sees_each_frame_of_native_size_once(clip):
    shapes = []

    def transform(frame):
        shapes.append(frame.shape)
        return frame[:1, :2]

    segments = list(iter_segments(clip, num_frames_per_segment=3, frame_transform=transform))
    assert [segment.frames.shape for segment in segments] == [(3, 1, 2, 3)] * 2
    assert shapes == [(480, 640, 3)] * 6
    arrays = clip_from_arrays(np.zeros((4, 8, 8, 3), np.uint8), frame_rate=2, frame_transform=lambda frame: frame[:2])
    assert [frames.shape for frames in arrays.frames] == [(2, 2, 8, 3)] * 2


@pytest.mark.parametrize("read", [read_video, probe_video])
def test_frames_above_64_megapixels_are_refused_by_name(tmp_path, monkeypatch, read):
    assert recording.MAX_FRAME_PIXELS == 64_000_000
    path = write_recording(tmp_path / "huge.mkv", 1, picture=lambda number: numbered_picture(number, 1200, 900))
    read(path)
    monkeypatch.setattr(recording, "MAX_FRAME_PIXELS", 1_000_000)
    with pytest.raises(VideoReadError, match=r"huge\.mkv: its frames are 900x1200 pixels.* 1 megapixels"):
        read(path)


def test_arrays_follow_the_rules_of_files(processor):
    """110 frames at 10 per second and 8 s of sound are 11 segments, in a file as well."""
    frames, sound = np.zeros((110, 8, 8, 3), np.uint8), np.zeros(8 * 44100, np.float32)
    given = {"frames": frames, "frame_rate": 10, "audio": sound, "sampling_rate": 44100}
    source = open_source(given, processor, 4, 1.0)
    assert (len(list(source)), source.duration) == (11, 11.0)
    inputs = processor(videos=frames, audio=sound, frame_rate=10, sampling_rate=44100)
    assert inputs["segment_mask"].shape == (1, 11)
    long_sound = processor(videos=frames[:30], audio=sound, frame_rate=10, sampling_rate=44100)
    assert long_sound["frame_mask"].sum(dim=-1).tolist() == [[4] * 3 + [0] * 5]
