"""What else can be given as a video: standard input, dictionaries of `datasets`, one of several sound tracks."""

import io
import sys

import av
import numpy as np
import pytest

from ave_clip.core.video_io import VideoReadError, iter_segments, read_video
from tests.helpers.media import sine, write_recording

RATE = 8000


@pytest.fixture
def clip(tmp_path):
    return write_recording(tmp_path / "clip.mp4", 1)


def test_dictionaries_of_datasets_are_read_from_their_bytes_or_else_their_path(clip):
    expected = read_video(clip)
    for given in ({"path": str(clip), "bytes": None}, {"path": None, "bytes": clip.read_bytes()}, {"path": str(clip)}):
        found = read_video(given)
        np.testing.assert_array_equal(found.frames[0], expected.frames[0])
    assert read_video({"path": "gone.mp4", "bytes": clip.read_bytes()}).name == "gone.mp4"
    with pytest.raises(VideoReadError, match="both None"):
        read_video({"path": None, "bytes": None})


def test_a_dash_is_standard_input(clip, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(clip.read_bytes())))
    np.testing.assert_array_equal(read_video("-").waveforms, read_video(clip).waveforms)


def test_an_audio_track_can_be_chosen(tmp_path):
    path = tmp_path / "tracks.mkv"
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        for stream, frequency in zip(streams, (440.0, 600.0)):
            samples = np.round(sine(RATE, RATE, frequency) * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux([*stream.encode(frame), *stream.encode(None)])
    for track, frequency in enumerate((440.0, 600.0)):
        waveform = read_video(path, sampling_rate=RATE, audio_track=track).waveforms[0]
        np.testing.assert_allclose(waveform, sine(RATE, RATE, frequency), rtol=0, atol=1e-3)
    with pytest.raises(VideoReadError, match=r"track 2 of .*tracks\.mkv: it has 2 audio tracks"):
        read_video(path, audio_track=2)
    with pytest.raises(ValueError, match="audio_track=-1"):
        iter_segments(path, audio_track=-1)
