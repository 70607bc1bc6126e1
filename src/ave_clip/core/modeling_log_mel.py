"""YAMNet's front end: log-mel patches of waveforms at 16 kHz, following `tensorflow/models` `audioset/yamnet`.

Legend: N waveforms, S samples, P patches, F frames per patch, M mel bands.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

SAMPLING_RATE = 16000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SIZE = 512
MEL_BANDS = 64
LOWEST_HZ, HIGHEST_HZ = 125.0, 7500.0
LOG_OFFSET = 0.001
PATCH_FRAMES = 96
PATCH_SAMPLES = (PATCH_FRAMES - 1) * HOP_SAMPLES + WINDOW_SAMPLES  # 15,600: 0.975 s


class LogMelPatches(nn.Module):
    """Cuts waveforms into patches of 96 frames of 10 ms, and computes the logarithm of their 64 mel bands."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES, periodic=True), persistent=False)
        self.register_buffer("mel_weights", mel_weights(), persistent=False)

    def init_buffers(self) -> None:
        """Computes the buffers, which are not saved and which `from_pretrained` leaves empty."""
        init.copy_(self.window, torch.hann_window(WINDOW_SAMPLES, periodic=True))
        init.copy_(self.mel_weights, mel_weights())

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Computes the complete patches of each waveform.

        One second gives one patch. A shorter waveform is padded with silence to one patch.

        Args:
            waveforms (`torch.Tensor` of shape `(number, num_samples)`): Mono at 16 kHz, in [-1, 1].

        Returns:
            `torch.Tensor` of shape `(number, num_patches, num_frames, num_bands)`, float32.
        """
        waveforms = nn.functional.pad(waveforms.float(), (0, max(0, PATCH_SAMPLES - waveforms.shape[-1])))
        frames = waveforms.unfold(-1, WINDOW_SAMPLES, HOP_SAMPLES)  # (N, frames, 400)
        count = frames.shape[1] // PATCH_FRAMES
        frames = frames[:, : count * PATCH_FRAMES].unflatten(1, (count, PATCH_FRAMES))  # (N, P, F, 400)
        # The spectrum is always float32: half-precision types overflow.
        spectrum = self.magnitudes(frames * self.window.float())
        return (spectrum @ self.mel_weights.float() + LOG_OFFSET).log()

    def magnitudes(self, frames: torch.Tensor) -> torch.Tensor:
        """Returns the magnitudes of the spectrum of windowed frames: `(..., 400)` to `(..., 257)`."""
        return torch.fft.rfft(frames, FFT_SIZE).abs()


def mel_weights() -> torch.Tensor:
    """Triangles of height 1, evenly spaced in HTK mel: `(num_frequencies, num_bands)`, as in `tf.signal`."""

    def mel(hertz: torch.Tensor) -> torch.Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    frequencies = mel(torch.linspace(0, SAMPLING_RATE / 2, FFT_SIZE // 2 + 1, dtype=torch.float64))[1:]
    lowest, highest = (1127.0 * math.log1p(hertz / 700.0) for hertz in (LOWEST_HZ, HIGHEST_HZ))
    edges = torch.linspace(lowest, highest, MEL_BANDS + 2, dtype=torch.float64)
    lower, center, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (frequencies[:, None] - lower) / (center - lower)
    falling = (upper - frequencies[:, None]) / (upper - center)
    weights = torch.minimum(rising, falling).clamp(min=0)
    return nn.functional.pad(weights, (0, 0, 1, 0)).float()  # the constant component is in no band


__all__ = ["FFT_SIZE", "WINDOW_SAMPLES", "LogMelPatches"]
