"""Sound of every channel layout comes out as mono that can be heard, whatever order and kind of channels it has."""

import logging
import struct

import av
import numpy as np
import pytest

from ave_clip.core.video_io import VideoReadError, probe_video, read_video
from tests.helpers.media import sine, write_recording

RATE = 8000
LAYOUTS = (
    *("mono", "stereo", "2.1", "3.0", "3.0(back)", "4.0", "quad", "quad(side)", "3.1", "5.0", "5.0(side)", "4.1"),
    *("5.1", "5.1(side)", "6.0", "6.0(front)", "3.1.2", "hexagonal", "6.1", "6.1(back)", "6.1(front)", "7.0"),
    *("7.0(front)", "7.1", "7.1(wide)", "7.1(wide-side)", "5.1.2", "5.1.2(back)", "octagonal", "cube", "5.1.4"),
    *("7.1.2", "7.1.4", "7.2.3", "9.1.4", "9.1.6", "hexadecagonal", "downmix", "22.2", "FL+FR+LFE+TFL"),
)
# Tags of Core Audio's layouts, and the place of the centre channel and its weight in FFmpeg's mix.
CHANNEL_TAGS = {
    "MPEG_5_1_A": (121 << 16 | 6, 2, 0.293),
    "MPEG_5_1_B": (122 << 16 | 6, 4, 0.293),
    "MPEG_5_1_C": (123 << 16 | 6, 1, 0.293),
    "MPEG_5_1_D": (124 << 16 | 6, 0, 0.293),
    "MPEG_7_1_A": (126 << 16 | 8, 2, 0.207),
    "MPEG_7_1_B": (127 << 16 | 8, 0, 0.207),
    "MPEG_7_1_C": (128 << 16 | 8, 2, 0.227),
}


def write_sound(path, layout, sound=sine, seconds=1.0, codec="pcm_s16le"):
    return write_recording(path, seconds, layout=layout, sound=sound, codecs=(None, codec), sampling_rate=RATE)


def only(channels: dict[int, float], num_channels: int):
    """Sound with a tone of the given gain in some channels."""

    def make(count, rate):
        samples = np.zeros((num_channels, count), np.float32)
        for channel, gain in channels.items():
            samples[channel] = gain * sine(count, rate)
        return samples

    return make


def heard_gain(path) -> float:
    """Gain of the tone in what is read, with its sign."""
    waveform = read_video(path, sampling_rate=RATE).waveforms[0, 500:-500]
    tone = sine(RATE, RATE)[500:-500]
    return float(waveform @ tone / (tone @ tone))


def num_channels(layout: str) -> int:
    return av.AudioLayout(layout).nb_channels


@pytest.mark.parametrize("suffix", [".mov", ".caf", ".wav"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_audio_in_all_channels_keeps_its_level(tmp_path, layout, suffix):
    """Also where the container lists its channels in an order of its own, which killed the process (PyAV 18)."""
    path = write_sound(tmp_path / f"sound{suffix}", layout)
    assert probe_video(path).has_audio
    assert heard_gain(path) == pytest.approx(1.0, abs=2e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_channel_is_lost(tmp_path, layout):
    count = num_channels(layout)
    for channel in {0, count // 2, count - 2, count - 1} & set(range(count)):
        sound = only({channel: 1.0}, count)
        path = write_sound(tmp_path / f"{channel}.wav", layout, sound)
        assert heard_gain(path) > 0.03


@pytest.mark.parametrize("suffix", [".mov", ".caf"])
@pytest.mark.parametrize("tag", CHANNEL_TAGS)
def test_channels_in_custom_order_are_mixed_by_their_names(tmp_path, tag, suffix):
    number, centre, weight = CHANNEL_TAGS[tag]
    count = number & 0xFFFF
    sound, layout = only({centre: 1.0}, count), "5.1" if count == 6 else "7.1"
    path = write_sound(tmp_path / f"sound{suffix}", layout, sound)
    content = bytearray(path.read_bytes())
    place = content.index(b"chan") + (8 if suffix == ".mov" else 12)
    content[place : place + 4] = struct.pack(">I", number)
    path.write_bytes(content)
    assert heard_gain(path) == pytest.approx(weight, abs=1e-3)


@pytest.mark.parametrize("count", [3, 6, 9, 12, 24])
def test_channels_of_unknown_position_are_all_heard(tmp_path, count):
    sound = only({count - 1: 1.0}, count)
    path = write_sound(tmp_path / "sound.wav", f"{count} channels", sound)
    assert heard_gain(path) == pytest.approx(1 / count, abs=1e-3)


def test_more_channels_than_can_be_converted_are_refused_by_name(tmp_path):
    content = write_sound(tmp_path / "sound.wav", "8 channels").read_bytes()
    place = content.index(b"fmt ") + 10
    many = content[:place] + struct.pack("<H", 100) + content[place + 2 :]
    many = many[: place + 10] + struct.pack("<H", 200) + many[place + 12 :]
    (tmp_path / "many.wav").write_bytes(many)
    with pytest.raises(VideoReadError, match=r"many\.wav: its audio has 100 channels, but at most 64"):
        read_video(tmp_path / "many.wav")


@pytest.mark.parametrize(("channel", "gain"), [(0, 1.0), (1, 0.0), (3, 0.0)])
def test_ambisonic_audio_is_its_omnidirectional_channel(tmp_path, channel, gain):
    path = ambisonic(tmp_path / "ambisonic.mkv", "ambisonic 1", only({0: 1e-2, channel: 1.0}, 4))
    assert heard_gain(path) == pytest.approx(max(gain, 1e-2), abs=2e-3)


def test_ambisonic_audio_with_a_stereo_pair_keeps_both(tmp_path):
    path = ambisonic(tmp_path / "ambisonic.mkv", "ambisonic 1+stereo", only({0: 1.0, 4: 0.4, 5: 0.4}, 6))
    assert heard_gain(path) == pytest.approx(0.7, abs=2e-3)


def ambisonic(path, layout, sound):
    """Opus with mapping family 2, which is how ambisonic sound is stored; its header is written by hand."""
    rate, count = 48000, num_channels(layout)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=rate, options={"mapping_family": "255"})
        stream.layout = f"{count} channels"
        samples = np.ascontiguousarray(sound(rate, rate).T).reshape(1, -1)
        resampler = av.AudioResampler("flt", stream.layout, rate, frame_size=960)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=f"{count} channels")
        frame.sample_rate = rate
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in stream.encode(part):
                container.mux(packet)
    content = bytearray(path.read_bytes())
    place = content.index(b"OpusHead") + 18
    assert content[place] == 255
    content[place] = 2
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("layout", "gains"),
    [
        ("stereo", {0: 1.0, 1: -1.0}),
        ("stereo", {0: -0.95, 1: 1.0}),
        ("5.1", {0: 1.0, 1: -1.0}),
        ("5.1", {4: 1.0, 5: -1.0}),
        ("5.1", {3: 1.0}),
        ("4 channels", {0: 1.0, 1: -1.0}),
    ],
)
def test_channels_that_cancel_out_are_replaced_by_the_loudest_with_a_warning(tmp_path, caplog, layout, gains):
    sound = only(gains, num_channels(layout))
    path = write_sound(tmp_path / "inverted.wav", layout, sound)
    with caplog.at_level(logging.WARNING):
        assert abs(heard_gain(path)) == pytest.approx(1.0, abs=1e-3)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "inverted.wav" in message and "cancel each other out" in message


def test_only_the_part_that_cancels_out_is_replaced(tmp_path):
    def half_inverted(count, rate):
        tone = sine(count, rate)
        return np.stack([tone, np.where(np.arange(count) < count // 2, tone, -tone)])

    path = write_sound(tmp_path / "half.wav", "stereo", half_inverted, seconds=4.0)
    waveform = read_video(path, sampling_rate=RATE).waveforms.reshape(-1)
    is_decided = np.abs(np.arange(4 * RATE) / RATE - 2) > 0.5  # blocks of half a second
    np.testing.assert_allclose(waveform[is_decided], sine(4 * RATE, RATE)[is_decided], rtol=0, atol=2e-3)


def test_low_frequencies_are_left_out_beside_other_audio(tmp_path):
    path = write_sound(tmp_path / "bass.wav", "5.1", only({2: 0.1, 3: 1.0}, 6))
    assert heard_gain(path) == pytest.approx(0.0293, abs=1e-3)


def test_wide_stereo_is_the_mean_and_warns_of_nothing(tmp_path, caplog):
    def wide(count, rate):
        middle, side = sine(count, rate, 440.0, 0.1), sine(count, rate, 567.0, 0.7)  # the middle 17 dB below
        return np.stack([middle + side, middle - side])

    path = write_sound(tmp_path / "wide.wav", "stereo", wide)
    with caplog.at_level(logging.WARNING):
        waveform = read_video(path, sampling_rate=RATE).waveforms[0]
    np.testing.assert_allclose(waveform, sine(RATE, RATE, 440.0, 0.1), rtol=0, atol=1e-4)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "codec", "layout"),
    [("a.nut", "pcm_s64le", "stereo"), ("b.wav", "pcm_f64le", "22.2"), ("c.mkv", "wavpack", "hexadecagonal")],
)
def test_samples_of_eight_bytes_and_of_many_planes_are_read(tmp_path, name, codec, layout):
    """PyAV cannot turn the first into arrays, and reads past the end of a list of more than 8 planes."""
    assert heard_gain(write_sound(tmp_path / name, layout, codec=codec)) == pytest.approx(1.0, abs=1e-3)
