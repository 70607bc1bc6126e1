"""Feature extractor of AudioCLIP: converts waveforms in [-1, 1] to the sample values that its audio tower expects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import PaddingStrategy, TensorType, logging

from .builtin_checkpoints import LoadsBuiltinNames

logger = logging.get_logger(__name__)

INT16_SCALE = 32768.0
MAX_UNIT_PEAK = 32.0  # float audio may exceed 1; int16 audio with a peak this low would be inaudible
MAX_SAMPLING_RATE = 10_000_000  # a higher value comes from a damaged file
AMPLITUDES = ("int16", "unit")


class AudioCLIPFeatureExtractor(LoadsBuiltinNames, SequenceFeatureExtractor):
    r"""
    Converts waveforms in [-1, 1] to AudioCLIP's `input_values`.

    Clips of different lengths are padded with zeros on the right. The audio tower has no mask, so padding is digital
    silence to it; the original implementation pads in the same value range.

    Args:
        feature_size (`int`, *optional*, defaults to 1):
            Number of values per sample and channel, always 1.
        sampling_rate (`int`, *optional*, defaults to 44100):
            Samples per second that the waveforms must have.
        padding_value (`float`, *optional*, defaults to 0.0):
            Value of the padding, in the range of `input_values`.
        amplitude (`str`, *optional*, defaults to `"int16"`):
            `"int16"` multiplies by 32768 and rounds to whole numbers, which gives the values of the 16-bit files that
            the released weights were trained on. The rounding noise sets a floor for the log spectrogram: decoders of
            lossy codecs leave whole bands empty, whose logarithm would otherwise be 70 dB lower than that of any
            recording. `"unit"` leaves the values in [-1, 1], as the authors' public notebook does; to the audio tower
            this is almost silence.
        return_attention_mask (`bool`, *optional*, defaults to `False`):
            Whether to return an `attention_mask` with 0 at padded samples.
    """

    model_input_names = ["input_values"]

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 44100,
        padding_value: float = 0.0,
        amplitude: str = "int16",
        return_attention_mask: bool = False,
        **kwargs,
    ):
        super().__init__(
            feature_size=feature_size,
            sampling_rate=sampling_rate,
            padding_value=padding_value,
            return_attention_mask=return_attention_mask,
            **kwargs,
        )
        if not isinstance(sampling_rate, (int, np.integer)) or not 1 <= sampling_rate <= MAX_SAMPLING_RATE:
            raise ValueError(
                f"sampling_rate must be a whole number from 1 to {MAX_SAMPLING_RATE}, got {sampling_rate!r}."
            )
        if amplitude not in AMPLITUDES:
            raise ValueError(f"amplitude must be one of {AMPLITUDES}, got {amplitude!r}.")
        self.amplitude = amplitude

    def scale(self, waveform: np.ndarray, dtype: DTypeLike = np.float32) -> np.ndarray:
        """Checks a waveform in [-1, 1] and scales it to the amplitude that the model expects.

        Args:
            waveform (`np.ndarray` of any shape, samples last): For example segments `(num_segments, num_samples)`.
            dtype (`np.dtype`, *optional*): Floating dtype of the result.

        Returns:
            `np.ndarray`: A new array of the same shape.

        Raises:
            ValueError: If the waveform is empty, contains integers, NaN or infinity, or is evidently in int16 range.
        """
        waveform = np.asarray(waveform)
        if not np.issubdtype(waveform.dtype, np.floating):
            raise ValueError(
                f"Got {waveform.dtype} audio, expected floats in [-1, 1]. Divide int16 samples by 32768 first."
            )
        if waveform.size == 0:
            raise ValueError(f"Got an empty waveform of shape {waveform.shape}, expected at least one sample.")
        peak = max(abs(float(waveform.max())), abs(float(waveform.min())))
        if not np.isfinite(peak):
            raise ValueError("The waveform contains NaN or infinite samples. Repair or drop the clip.")
        if peak > MAX_UNIT_PEAK:
            raise ValueError(
                f"The waveform peaks at {peak:g}, expected floats in [-1, 1]. If these are int16 values, divide them "
                "by 32768 first."
            )
        if self.amplitude == "unit":
            return waveform.astype(dtype)
        scaled = np.multiply(waveform, INT16_SCALE, dtype=dtype)
        return np.rint(scaled, out=scaled)

    def __call__(
        self,
        raw_speech: np.ndarray | torch.Tensor | Sequence[Any],
        sampling_rate: int | None = None,
        padding: bool | str | PaddingStrategy = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | TensorType | None = None,
        dtype: DTypeLike = np.float32,
        **kwargs,
    ) -> BatchFeature:
        """
        Prepares one clip or a batch.

        Args:
            raw_speech (`np.ndarray`, `torch.Tensor`, `list[float]` or a list of these):
                One clip of shape `(num_samples,)`, mono, or `(channels, num_samples)`; or a list of clips. Tensors may
                have any floating dtype and may require gradients.
            sampling_rate (`int`, *optional*):
                Samples per second of the clips; pass it so that a mismatch is detected.
            padding (`bool`, `str` or [`~utils.PaddingStrategy`], *optional*, defaults to `True`):
                As in [`SequenceFeatureExtractor.pad`]: to the longest clip, to `max_length`, or not at all.
            max_length (`int`, *optional*):
                Length in samples for `padding="max_length"` and for `truncation`.
            truncation (`bool`, *optional*, defaults to `False`):
                Whether to cut clips longer than `max_length` samples.
            pad_to_multiple_of (`int`, *optional*):
                Rounds padded and truncated lengths up to a multiple of this number.
            return_attention_mask (`bool`, *optional*):
                Whether to return `attention_mask`; defaults to the attribute of the same name.
            return_tensors (`str`, *optional*):
                `"pt"` or `"np"`.
            dtype (`np.dtype`, *optional*):
                Floating dtype of `input_values`, for example `np.float64`.

        Returns:
            [`BatchFeature`] with `input_values` of shape `(batch_size, num_samples)` for mono clips or
            `(batch_size, channels, num_samples)`, in the range of int16 (unless `amplitude="unit"`).

        Raises:
            ValueError: If the sampling rate is not the expected one, the clips differ in their number of channels, or
                [`~AudioCLIPFeatureExtractor.scale`] refuses the values.
        """
        self._check_sampling_rate(sampling_rate)
        clips = [self.scale(clip, dtype) for clip in self._as_clips(raw_speech)]
        if len({clip.shape[:-1] for clip in clips}) > 1:
            raise ValueError(f"Clips of one batch need equal channels, got shapes {[clip.shape for clip in clips]}.")
        strategy = self._get_padding_strategies(padding=padding, max_length=max_length)
        if truncation:
            if max_length is None:
                raise ValueError("truncation=True needs max_length, the number of samples to keep.")
            clips = [clip[..., : _round_up(max_length, pad_to_multiple_of)] for clip in clips]
        lengths = [clip.shape[-1] for clip in clips]
        if strategy == PaddingStrategy.LONGEST:
            max_length = max(lengths)
        if strategy != PaddingStrategy.DO_NOT_PAD and max_length is not None:  # never None: the strategy needs it
            clips = [self._pad_right(clip, _round_up(max_length, pad_to_multiple_of)) for clip in clips]
        features = {"input_values": clips}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            features["attention_mask"] = [
                (np.arange(clip.shape[-1]) < length).astype(np.int32) for clip, length in zip(clips, lengths)
            ]
        return BatchFeature(features, tensor_type=return_tensors)

    def to_dict(self) -> dict[str, Any]:
        """Returns what is saved, with the location of custom code only in a class that has custom code itself."""
        content = super().to_dict()
        if self._auto_class is None:
            content.pop("auto_map", None)
        return content

    def _check_sampling_rate(self, sampling_rate: int | None) -> None:
        if sampling_rate is None:
            logger.warning_once(
                f"Pass `sampling_rate` with the audio: this checkpoint expects {self.sampling_rate} Hz, and another "
                "rate would not be detected."
            )
        elif sampling_rate != self.sampling_rate:
            raise ValueError(
                f"Got audio at {sampling_rate} Hz, but this checkpoint expects {self.sampling_rate} Hz. Resample it "
                f"first, for example with `torchaudio.functional.resample(waveform, {sampling_rate}, "
                f"{self.sampling_rate})`."
            )

    def _pad_right(self, clip: np.ndarray, length: int) -> np.ndarray:
        missing = length - clip.shape[-1]
        if missing <= 0:
            return clip
        widths = [(0, 0)] * (clip.ndim - 1) + [(0, missing)]
        return np.pad(clip, widths, constant_values=self.padding_value)

    @staticmethod
    def _as_clips(raw_speech: np.ndarray | torch.Tensor | Sequence[Any]) -> list[np.ndarray]:
        """Splits the input into clips of shape `(num_samples,)` or `(channels, num_samples)`."""
        if isinstance(raw_speech, torch.Tensor):
            raw_speech = _as_array(raw_speech)
        if np.isscalar(raw_speech):
            clips = [np.asarray(raw_speech)]
        elif isinstance(raw_speech, np.ndarray):
            clips = list(raw_speech) if raw_speech.ndim == 3 else [raw_speech]
        elif len(raw_speech) and np.isscalar(raw_speech[0]):
            clips = [np.asarray(raw_speech)]
        else:
            clips = [_as_array(clip) for clip in raw_speech]
        if not clips or any(clip.ndim not in (1, 2) for clip in clips):
            raise ValueError(
                "Audio must be one clip of shape (num_samples,) or (channels, num_samples), or a list of such clips; "
                f"got shapes {[clip.shape for clip in clips]}."
            )
        return clips


def _as_array(clip: np.ndarray | torch.Tensor | Sequence[Any]) -> np.ndarray:
    """Returns a clip as an array; tensors are detached, and half precision becomes float32 (numpy has no bfloat16)."""
    if isinstance(clip, torch.Tensor):
        clip = clip.detach().cpu()
        clip = clip.float() if clip.is_floating_point() and clip.dtype.itemsize < 4 else clip
        return clip.numpy()
    return np.asarray(clip)


def _round_up(length: int, multiple: int | None) -> int:
    return length if multiple is None else -(-length // multiple) * multiple


__all__ = ["AudioCLIPFeatureExtractor"]
