"""Copies of clips with quieter and re-encoded sound: what changes, and what does not."""

import av
import numpy as np
import pytest
from maintenance import poor_recordings
from maintenance.poor_recordings import CODECS, change_sound, make_poor_recordings

from ave_clip.data import generate_synthetic_ave


def read(path):
    """Frames and waveform of a file, and the name of its audio codec."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray() for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        codec = container.streams.audio[0].codec_context.name
        sound = np.concatenate([frame.to_ndarray().mean(0) for frame in container.decode(audio=0)])
    if sound.dtype != np.float32:
        sound = sound / 2.0**15
    return frames, sound, codec


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "clips"
    generate_synthetic_ave(folder, num_videos=4, seed=1, num_workers=0, splits=(0.5, 0.25, 0.25))
    return folder


@pytest.mark.parametrize(("codec", "bit_rate"), CODECS)
def test_the_audio_gets_quieter_by_the_gain_and_the_frames_stay(clips, tmp_path, codec, bit_rate):
    source = sorted((clips / "AVE").glob("*.mp4"))[0]
    change_sound(source, tmp_path / "poor.mp4", -20.0, codec, bit_rate)
    before, after = read(source), read(tmp_path / "poor.mp4")
    np.testing.assert_array_equal(after[0], before[0])
    assert after[1].std() / before[1].std() == pytest.approx(0.1, rel=0.1)
    assert len(after[1]) == pytest.approx(len(before[1]), abs=5000)
    assert after[2] == {"libmp3lame": "mp3float"}.get(codec, codec)  # encoder and decoder of MP3 have other names


def test_splits_for_the_test_and_the_lists_stay(clips, tmp_path, monkeypatch):
    monkeypatch.setattr(poor_recordings, "POOR_SHARE", 1.0)
    make_poor_recordings(clips, tmp_path / "poor", seed=0)
    held_out = (clips / "testSet.txt").read_text().split("&")[1]
    files = sorted(path.relative_to(clips) for path in clips.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "poor") for path in (tmp_path / "poor").rglob("*.*"))
    for file in files:
        is_same = (clips / file).read_bytes() == (tmp_path / "poor" / file).read_bytes()
        assert is_same is (file.suffix != ".mp4" or file.stem == held_out)
