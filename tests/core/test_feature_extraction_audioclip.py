"""The feature extractor: amplitude, padding, truncation, refusals."""

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from ave_clip.core.feature_extraction_audioclip import AudioCLIPFeatureExtractor


@pytest.fixture
def extractor() -> AudioCLIPFeatureExtractor:
    return AudioCLIPFeatureExtractor(sampling_rate=8000)


def tone(num_samples: int, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(np.arange(num_samples) / 7)).astype(np.float32)


def as_int16(waveform: np.ndarray) -> np.ndarray:
    """The values of a 16-bit file of this waveform, as floats."""
    return np.array([[round(sample * 32768) for sample in row] for row in np.atleast_2d(waveform).tolist()]).reshape(
        np.shape(waveform)
    )


def test_unit_waveforms_are_scaled_to_int16_range(extractor):
    input_values = extractor(tone(100), sampling_rate=8000, return_tensors="pt")["input_values"]
    assert input_values.shape == (1, 100) and input_values.dtype == torch.float32
    np.testing.assert_array_equal(input_values[0].numpy(), as_int16(tone(100)))


def test_a_band_that_a_decoder_left_empty_keeps_the_floor_of_a_16_bit_file(extractor):
    """Lossy decoders give floats whose empty bands are tens of decibels below the rounding noise of any file."""
    audible = np.sin(np.arange(4096) / 7) / 3 + 1e-9 * np.random.default_rng(0).standard_normal(4096)
    floats = audible.astype(np.float64)
    input_values = extractor(floats, sampling_rate=8000, dtype=np.float64, return_tensors="np")["input_values"][0]
    window = np.blackman(4096)
    empty = slice(1500, 2000)  # far above the tone
    levels = [np.abs(np.fft.rfft(window * values)[empty]) for values in (input_values, floats * 32768)]
    assert 20 * np.log10(levels[0].mean() / levels[1].mean()) > 60
    np.testing.assert_array_equal(input_values, np.round(floats * 32768))


def test_int16_recordings_divided_by_32768_come_back_exactly(extractor):
    samples = np.arange(-32768, 32768, dtype=np.int16)
    input_values = extractor(samples.astype(np.float32) / 32768, sampling_rate=8000, return_tensors="np")[
        "input_values"
    ]
    np.testing.assert_array_equal(input_values[0], samples)


def test_unit_amplitude_leaves_the_values():
    extractor = AudioCLIPFeatureExtractor(amplitude="unit")
    input_values = extractor(tone(10), sampling_rate=44100, return_tensors="np")["input_values"]
    np.testing.assert_array_equal(input_values[0], tone(10))


def test_shorter_clips_are_padded_with_zeros_on_the_right(extractor):
    features = extractor(
        [tone(5), tone(8), tone(3)], sampling_rate=8000, return_attention_mask=True, return_tensors="np"
    )
    assert features["input_values"].shape == (3, 8)
    np.testing.assert_array_equal(features["attention_mask"].sum(axis=1), [5, 8, 3])
    assert not features["input_values"][0, 5:].any() and not features["input_values"][2, 3:].any()
    np.testing.assert_array_equal(features["input_values"][2, :3], as_int16(tone(3)))


def test_no_attention_mask_by_default_since_the_tower_has_none(extractor):
    assert list(extractor(tone(5), sampling_rate=8000)) == ["input_values"]


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"padding": False}, [5, 9]),
        ({"padding": "max_length", "max_length": 12}, [12, 12]),
        ({"padding": "max_length", "max_length": 7}, [7, 9]),
        ({"padding": "max_length", "max_length": 7, "truncation": True}, [7, 7]),
        ({"padding": True, "truncation": True, "max_length": 4}, [4, 4]),
        ({"padding": True, "pad_to_multiple_of": 4}, [12, 12]),
        ({"padding": False, "truncation": True, "max_length": 6, "pad_to_multiple_of": 4}, [5, 8]),
    ],
)
def test_padding_and_truncation_options(options, lengths, extractor):
    clips = extractor([tone(5), tone(9)], sampling_rate=8000, **options)["input_values"]
    assert [len(clip) for clip in clips] == lengths
    for clip, count in zip(clips, (5, 9)):
        kept = min(count, len(clip))
        np.testing.assert_array_equal(clip[:kept], as_int16(tone(count)[:kept]))


def test_stereo_clips_keep_their_channels(extractor):
    stereo = np.stack([tone(6), -tone(6)])
    features = extractor([stereo, stereo[:, :4]], sampling_rate=8000, return_tensors="pt")
    assert features["input_values"].shape == (2, 2, 6)
    assert not features["input_values"][1, :, 4:].any()
    np.testing.assert_array_equal(features["input_values"][0], as_int16(stereo))


@pytest.mark.parametrize(
    "audio",
    [
        tone(6)[None],
        torch.from_numpy(tone(6)),
        tone(6).tolist(),
        [torch.from_numpy(tone(6))],
        [tone(6).tolist()],
        tone(6).astype(np.float64),
    ],
)
def test_arrays_tensors_and_lists_are_read_alike(audio, extractor):
    input_values = extractor(audio, sampling_rate=8000, return_tensors="np")["input_values"]
    np.testing.assert_allclose(np.squeeze(input_values), as_int16(tone(6)), rtol=1e-6)
    assert input_values.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_tensors_of_any_floating_dtype_and_with_gradients_are_read(dtype, extractor):
    clip = torch.from_numpy(tone(6)).to(dtype).requires_grad_()
    for audio in (clip, [clip], clip[None]):
        input_values = extractor(audio, sampling_rate=8000, return_tensors="np")["input_values"]
        np.testing.assert_array_equal(np.squeeze(input_values), as_int16(clip.detach().float().numpy()))
        assert input_values.dtype == np.float32
    assert clip.requires_grad


def test_float64_is_kept_when_asked(extractor):
    clip = np.sin(np.arange(5)) / 3
    features = extractor([clip, clip[:3]], sampling_rate=8000, dtype=np.float64, return_tensors="pt")
    assert features["input_values"].dtype == torch.float64
    np.testing.assert_array_equal(features["input_values"][0], as_int16(clip))


def test_segments_are_scaled_in_one_new_array(extractor):
    segments = np.stack([tone(8), tone(8, amplitude=0.1)])
    scaled = extractor.scale(segments)
    assert scaled.shape == (2, 8) and scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled, as_int16(segments))
    assert not np.shares_memory(scaled, segments) and np.array_equal(segments[0], tone(8))


def test_another_sampling_rate_is_refused_naming_both(extractor):
    with pytest.raises(ValueError, match=r"Got audio at 44100 Hz.*expects 8000 Hz"):
        extractor(tone(5), sampling_rate=44100)


def test_missing_sampling_rate_is_warned_of(extractor, monkeypatch):
    warnings = []
    monkeypatch.setattr("ave_clip.core.feature_extraction_audioclip.logger.warning_once", warnings.append)
    extractor(tone(5))
    assert len(warnings) == 1 and "8000 Hz" in warnings[0]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.array([0.1, np.nan], dtype=np.float32), "NaN or infinite"),
        (np.array([0.1, -np.inf], dtype=np.float32), "NaN or infinite"),
        (np.array([100, -200], dtype=np.int16), "Got int16 audio.*Divide int16 samples by 32768"),
        (torch.tensor([100, -200], dtype=torch.int16), "Got int16 audio"),
        ([1, 2, 3], "Got int64 audio"),
        (np.array([100.0, -2000.0]), "peaks at 2000, expected floats in"),
        (np.zeros((2, 0), dtype=np.float32), "empty waveform"),
        ([], "must be one clip"),
        (np.float32(0.5), "must be one clip"),
        (np.zeros((1, 1, 1, 3)), "must be one clip"),
        ([np.zeros(4), np.zeros((2, 4))], "equal channels"),
    ],
)
def test_audio_that_cannot_be_right_is_refused(audio, message, extractor):
    with pytest.raises(ValueError, match=message):
        extractor(audio, sampling_rate=8000)


def test_impossible_options_are_refused(extractor):
    with pytest.raises(ValueError, match="truncation=True needs max_length"):
        extractor(tone(5), sampling_rate=8000, truncation=True)
    with pytest.raises(ValueError, match="max_length"):
        extractor(tone(5), sampling_rate=8000, padding="max_length")
    with pytest.raises(ValueError, match=r"amplitude must be one of.*'loud'"):
        AudioCLIPFeatureExtractor(amplitude="loud")


def test_saving_and_loading_keeps_the_amplitude(tmp_path):
    AudioCLIPFeatureExtractor(amplitude="unit", sampling_rate=22050).save_pretrained(tmp_path)
    for loaded in (
        AudioCLIPFeatureExtractor.from_pretrained(tmp_path),
        AutoFeatureExtractor.from_pretrained(tmp_path),
    ):
        assert (loaded.amplitude, loaded.sampling_rate, type(loaded)) == ("unit", 22050, AudioCLIPFeatureExtractor)
