"""Audio tower of AudioCLIP: a learned fbsp spectrogram and ESResNeXt-50, a ResNeXt with attention gates.

Shapes: B batch, A audio channels, S samples, N frames, W samples per frame, L padded frame length (n_fft),
K frequency bins, H channels of the last feature map, D size of the embeddings.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_audioclip import AudioCLIPAudioConfig
from .modeling_base import ALWAYS_SET, AlignedPreTrainedModel, RecomputableBatchNorm2d

logger = logging.get_logger(__name__)

INT16_MIN, INT16_RANGE = -32768, 65535
FBSP_EPS = 1e-8
MIN_POWER = 1e-18


@dataclass
class AudioCLIPAudioOutput(ModelOutput):
    """
    Output of [`AudioCLIPAudioModel`].

    Args:
        audio_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`):
            One embedding per clip, not normalized.
        loss_ttf (`torch.Tensor` of shape `()`):
            Mean squared deviation of the filters' norms from their target, a regularizer of the learned transform.
        last_hidden_state (`torch.Tensor` of shape `(batch_size * audio_channels, hidden_size, rows, columns)`):
            The last feature map after its gate; rows are ordered by frequency, columns by time.
        hidden_states (`tuple[torch.Tensor, ...]`, *optional*):
            With `output_hidden_states=True`: the output of the stem and of each gated stage.
    """

    audio_embeds: torch.Tensor = ALWAYS_SET
    loss_ttf: torch.Tensor = ALWAYS_SET
    last_hidden_state: torch.Tensor = ALWAYS_SET
    hidden_states: tuple[torch.Tensor, ...] | None = None


def blackman_harris_window(length: int) -> np.ndarray:
    """Returns the periodic four-term Blackman-Harris window of `length` samples, in float64."""
    phase = 2.0 * np.pi * np.arange(length) / length
    return 0.35875 - 0.48829 * np.cos(phase) + 0.14128 * np.cos(2 * phase) - 0.01168 * np.cos(3 * phase)


def num_frames_for(num_samples: int, win_length: int, hop_length: int) -> int:
    """Returns the number of frames of a waveform; the last one may be padded."""
    return 1 if num_samples <= win_length else 1 + math.ceil((num_samples - win_length) / hop_length)


def _check_values(input_values: torch.Tensor) -> None:
    """Refuses NaN and infinity, warns of floats in [-1, 1]; only on the CPU, where the test takes almost no time."""
    if input_values.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    peak = input_values.detach().abs().max().item()  # the maximum is NaN if any sample is
    if not math.isfinite(peak):
        raise ValueError("input_values contain NaN or infinite samples. Repair or drop the clips that contain them.")
    if 0 < peak <= 1:
        logger.warning_once(
            "input_values are within [-1, 1], but AudioCLIP expects the range of int16: use "
            "AudioCLIPFeatureExtractor, or multiply by 32768. Ignore this if the unit amplitude of the authors' "
            "notebook is intended."
        )


class _ScaledGradient(torch.autograd.Function):
    """Identity whose gradient is divided by its largest absolute value.

    The original implementation uses tensor hooks. Those are lost when `from_pretrained` replaces the parameters, so
    here the gradient is scaled where a parameter is used.
    """

    @staticmethod
    def forward(ctx, parameter: torch.Tensor) -> torch.Tensor:
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        return gradient / (gradient.abs().max() + FBSP_EPS)


def fbsp_kernel(
    order: torch.Tensor, bandwidth: torch.Tensor, center: torch.Tensor, length: int, normalized: bool
) -> torch.Tensor:
    """Computes frequency B-spline wavelets, one complex filter per frequency bin.

    Args:
        order (`torch.Tensor` of shape `(num_bins,)`): Exponent of the window, `m`.
        bandwidth (`torch.Tensor` of shape `(num_bins,)`): `fb`, above 0.
        center (`torch.Tensor` of shape `(num_bins,)`): Center frequency `fc` in cycles per padded frame.
        length (`int`): Number of samples of a padded frame.
        normalized (`bool`): Whether to divide by `sqrt(length)`.

    Returns:
        `torch.Tensor` of shape `(2, num_bins, length)`: real and imaginary parts.
    """
    order, bandwidth, center = (parameter.unsqueeze(-1) for parameter in (order, bandwidth, center))  # (K, 1)
    time = math.pi * torch.linspace(-1.0, 1.0, length, dtype=order.dtype, device=order.device) + FBSP_EPS
    argument = bandwidth * time / (order + FBSP_EPS)  # (K, L)
    sinc = torch.where(argument == 0, torch.ones_like(argument), torch.sin(argument) / argument)
    # The complex power sinc^m: magnitude |sinc|^m, phase m * pi where sinc is negative.
    magnitude = sinc.square().sqrt().square().pow(order / 2)
    phase = order * (sinc.detach() < 0).to(order.dtype) * math.pi
    window_real, window_imag = magnitude * torch.cos(phase), magnitude * torch.sin(phase)
    carrier_real, carrier_imag = torch.cos(center * time), -torch.sin(center * time)
    scale = torch.sqrt(bandwidth)
    real = scale * (window_real * carrier_real - window_imag * carrier_imag)
    imag = scale * (window_real * carrier_imag + window_imag * carrier_real)
    kernel = torch.stack([real, imag])  # (2, K, L)
    return kernel / math.sqrt(length) if normalized else kernel


class _CachedKernel(torch.autograd.Function):
    """Returns a cached kernel with the gradient of `fbsp_kernel`, which only the backward pass recomputes."""

    @staticmethod
    def forward(ctx, order, bandwidth, center, kernel, length: int, normalized: bool) -> torch.Tensor:
        ctx.save_for_backward(order, bandwidth, center)
        ctx.length, ctx.normalized = length, normalized
        return kernel.view_as(kernel)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        with torch.enable_grad():
            parameters = [parameter.detach().requires_grad_() for parameter in ctx.saved_tensors]
            order, bandwidth, center = parameters
            kernel = fbsp_kernel(order, bandwidth, center, ctx.length, ctx.normalized)
        return (*torch.autograd.grad(kernel, parameters, gradient), None, None, None)


class AudioCLIPSpectrogram(nn.Module):
    """Framing and the learned fbsp transform, always computed in at least float32.

    Converting the model to half precision does not convert this module: in bfloat16 the center frequencies of many
    adjacent bins would be equal.

    In evaluation mode the filters are cached with a copy of the parameter values; they are recomputed when the values,
    the dtype or the device change. Copies, pickles and state dicts do not contain them.
    """

    def __init__(self, config: AudioCLIPAudioConfig):
        super().__init__()
        self.config = config
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.window = nn.Buffer(torch.tensor(blackman_harris_window(config.win_length), dtype=torch.float32).to(dtype))
        self.m = nn.Parameter(torch.empty(config.num_frequency_bins, dtype=dtype))
        self.fb = nn.Parameter(torch.empty(config.num_frequency_bins, dtype=dtype))
        self.fc = nn.Parameter(torch.empty(config.num_frequency_bins, dtype=dtype))
        self._cache: tuple[torch.Tensor, torch.Tensor] | None = None  # parameter values and kernel

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_cache": None}

    def train(self, mode: bool = True) -> "AudioCLIPSpectrogram":
        """Switches modes; training mode drops the cached filters."""
        if mode:
            self._cache = None
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self._cache = None

        def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            if result.is_floating_point() and result.dtype.itemsize < 4:
                return tensor.to(device=result.device, dtype=torch.float32)
            return result

        return super()._apply(at_least_float32, recurse)

    def kernel(self, dtype: torch.dtype) -> torch.Tensor:
        """Returns the filters, real and imaginary parts.

        Args:
            dtype (`torch.dtype`): Dtype to compute in, float32 or float64.

        Returns:
            `torch.Tensor` of shape `(2, num_bins, n_fft)`.
        """
        options = self.config.n_fft, self.config.normalized
        parameters = [_ScaledGradient.apply(parameter).to(dtype) for parameter in (self.m, self.fb, self.fc)]
        if self.training or torch.compiler.is_compiling() or self.m.is_meta:
            order, bandwidth, center = parameters
            return fbsp_kernel(order, bandwidth, center, *options)
        with torch.inference_mode(False), torch.no_grad():
            kernel = self._cached_kernel(torch.stack([parameter.detach() for parameter in parameters]))
        if any(parameter.requires_grad for parameter in parameters):
            return _CachedKernel.apply(*parameters, kernel, *options)
        return kernel

    def _cached_kernel(self, values: torch.Tensor) -> torch.Tensor:
        cache = self._cache
        if cache is not None:
            same_kind = cache[0].dtype == values.dtype and cache[0].device == values.device
            if same_kind and torch.equal(cache[0], values):
                return cache[1]
        order, bandwidth, center = values
        kernel = fbsp_kernel(order, bandwidth, center, self.config.n_fft, self.config.normalized)
        self._cache = (values, kernel)
        return kernel

    def filter_loss(self, kernel: torch.Tensor) -> torch.Tensor:
        """Returns the mean squared deviation of the filters' norms from 1 (from `sqrt(n_fft)` if not normalized)."""
        target = 1.0 if self.config.normalized else math.sqrt(self.config.n_fft)
        norms = torch.linalg.vector_norm(kernel, dim=(0, 2))  # (K,)
        return (norms - target).square().mean()

    @torch.no_grad()
    def frames(self, waveform: torch.Tensor) -> torch.Tensor:
        """Scales samples from the range of int16 to [-1, 1], pads and cuts frames: `(B, S)` to `(B, N, L)`."""
        config = self.config
        frames = self.padded(waveform).unfold(-1, config.win_length, config.hop_length)  # (B, N, W)
        margin = config.n_fft - config.win_length
        frames = frames * self.window.to(frames.dtype)
        return nn.functional.pad(frames, (margin // 2, margin - margin // 2))  # (B, N, L)

    @torch.no_grad()
    def padded(self, waveform: torch.Tensor, before: int = 0, after: int = 0) -> torch.Tensor:
        """Scales samples from the range of int16 to [-1, 1], pads to whole frames, adds `before` and `after` zeros."""
        config = self.config
        # The order of these operations determines the rounding noise in silent bins: do not simplify.
        waveform = ((waveform - INT16_MIN) * 2) / INT16_RANGE + (-1)
        num_frames = num_frames_for(waveform.shape[-1], config.win_length, config.hop_length)
        padding = (num_frames - 1) * config.hop_length + config.win_length - waveform.shape[-1]
        return nn.functional.pad(waveform, (padding // 2 + before, padding - padding // 2 + after))

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the three-channel decibel image of a waveform.

        Args:
            waveform (`torch.Tensor` of shape `(batch_size, num_samples)`): Samples in the range of int16, in the
                dtype to compute in.

        Returns:
            `(image, loss)`: the image `(batch_size, 3, rows, num_frames)`, whose channels contain the low, middle and
            high third of the bins, and the filter loss.
        """
        kernel = self.kernel(waveform.dtype)
        spectrum = nn.functional.linear(self.frames(waveform), kernel.flatten(0, 1))  # (B, N, 2 * K)
        return self.decibels(spectrum), self.filter_loss(kernel)

    def decibels(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Returns the three-channel image `(B, 3, rows, N)` of a spectrum `(B, N, 2 * K)`."""
        real, imag = spectrum.transpose(1, 2).chunk(2, dim=1)  # (B, K, N)
        rows = self.config.num_image_rows
        power = (real.square() + imag.square())[:, : 3 * rows]
        power = torch.where(power <= 0, MIN_POWER, power)  # NaN stays NaN instead of becoming silence
        return 10 * torch.log10(power.unflatten(1, (3, rows)))


class AudioCLIPAudioBottleneck(GradientCheckpointingLayer):
    """Bottleneck block of ResNeXt: the grouped 3x3 convolution has the stride."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int, config: AudioCLIPAudioConfig):
        super().__init__()
        eps = config.batch_norm_eps
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.bn1 = RecomputableBatchNorm2d(inner, eps=eps)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=config.groups, bias=False)
        self.bn2 = RecomputableBatchNorm2d(inner, eps=eps)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.bn3 = RecomputableBatchNorm2d(out_channels, eps=eps)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False),
                RecomputableBatchNorm2d(out_channels, eps=eps),
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps `(B, in_channels, h, w)` to `(B, out_channels, h / stride, w / stride)`."""
        shortcut = hidden_states if self.downsample is None else self.downsample(hidden_states)
        hidden_states = self.relu(self.bn1(self.conv1(hidden_states)))
        hidden_states = self.relu(self.bn2(self.conv2(hidden_states)))
        hidden_states = self.bn3(self.conv3(hidden_states))
        return self.relu(hidden_states + shortcut)


class AudioCLIPAudioGate(nn.Module):
    """Gate in (0, 1) for each channel and position of a stage's output, computed from the stage's input."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], eps: float):
        super().__init__()
        padding = (kernel_size[0] // 2, kernel_size[1] // 2)
        self.conv_depth = nn.Conv2d(in_channels, in_channels, kernel_size, padding=padding, groups=in_channels)
        self.conv_point = nn.Conv2d(in_channels, out_channels, 1)
        self.bn = nn.BatchNorm2d(out_channels, eps=eps)

    def gate(self, stage_input: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Maps `(B, in_channels, h, w)` to `(B, out_channels, *size)`."""
        pooled = nn.functional.adaptive_max_pool2d(stage_input, size)
        return torch.sigmoid(self.bn(self.conv_point(self.conv_depth(pooled))))

    def forward(self, stage_input: torch.Tensor, stage_output: torch.Tensor) -> torch.Tensor:
        """Returns `stage_output` times its gate."""
        height, width = stage_output.shape[-2:]
        return stage_output * self.gate(stage_input, (height, width))


class AudioCLIPAudioStageGate(AudioCLIPAudioGate):
    """Gate of a stage. transformers records hidden states by class, so these gates need their own."""


class AudioCLIPAudioModel(AlignedPreTrainedModel):
    """
    ESResNeXt-50 on a learned fbsp spectrogram.

    The parameters have the names of torchvision's `resnext50_32x4d` and of the released `audio.*` weights.

    Args:
        config ([`AudioCLIPAudioConfig`]): Sizes of the spectrogram and of the network.
    """

    config: AudioCLIPAudioConfig
    config_class = AudioCLIPAudioConfig
    base_model_prefix = "audio_model"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["AudioCLIPAudioBottleneck", "AudioCLIPSpectrogram"]
    _keep_in_fp32_modules_strict = ["fbsp"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": AudioCLIPAudioStageGate}
    _input_embed_layer = "conv1"

    def __init__(self, config: AudioCLIPAudioConfig):
        super().__init__(config)
        width, eps = config.width, config.batch_norm_eps
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=eps)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = self._make_stage(0, width)
        self.att1 = AudioCLIPAudioStageGate(width, width * 4, (3, 1), eps)
        self.layer2 = self._make_stage(1, width * 4)
        self.att2 = AudioCLIPAudioStageGate(width * 4, width * 8, (1, 5), eps)
        self.layer3 = self._make_stage(2, width * 8)
        self.att3 = AudioCLIPAudioStageGate(width * 8, width * 16, (3, 1), eps)
        self.layer4 = self._make_stage(3, width * 16)
        self.att4 = AudioCLIPAudioStageGate(width * 16, width * 32, (1, 5), eps)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.att5 = AudioCLIPAudioGate(width * 32, width * 32, (3, 5), eps)
        self.fc = nn.Linear(config.hidden_size, config.projection_dim)
        self.fbsp = AudioCLIPSpectrogram(config)
        self.post_init()

    def _make_stage(self, stage: int, in_channels: int) -> nn.Sequential:
        config = self.config
        inner, out_channels = config.stage_inner_widths[stage], config.width * 4 * 2**stage
        blocks = [AudioCLIPAudioBottleneck(in_channels, inner, out_channels, 1 if stage == 0 else 2, config)]
        for _ in range(1, config.depths[stage]):
            blocks.append(AudioCLIPAudioBottleneck(out_channels, inner, out_channels, 1, config))
        return nn.Sequential(*blocks)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, AudioCLIPSpectrogram):
            init.copy_(
                module.window, torch.tensor(blackman_harris_window(self.config.win_length), dtype=torch.float32)
            )
            init.zeros_(module.m)
            init.ones_(module.fb)
            init.copy_(module.fc, torch.arange(module.fc.shape[0], dtype=torch.float32))

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, input_values: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> AudioCLIPAudioOutput:
        """
        Embeds waveforms.

        Args:
            input_values (`torch.Tensor` of shape `(batch_size, [channels,] num_samples)`):
                Samples in the range of int16 (see [`AudioCLIPFeatureExtractor`]). The channels of a clip are encoded
                separately and their pooled vectors summed.

        Returns:
            [`AudioCLIPAudioOutput`]

        Raises:
            ValueError: If the waveforms are missing, empty, of another shape, or contain NaN or infinity. Values are
                checked on the CPU only, and not in compiled code; elsewhere NaN gives NaN embeddings.
        """
        waveform, num_channels = self._flat_waveform(input_values)  # (B * A, S)
        pooled, feature_map, loss_ttf = self._compute(waveform, **kwargs)
        dtype = self.conv1.weight.dtype
        pooled = pooled.to(dtype).unflatten(0, (-1, num_channels)).sum(dim=1)  # (B, H)
        return AudioCLIPAudioOutput(
            audio_embeds=self.fc(pooled), loss_ttf=loss_ttf, last_hidden_state=feature_map.to(dtype)
        )

    def _compute(
        self, waveform: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Computes the network up to the last projection: pooled vectors, last feature map and filter loss."""
        # Autocast would compute the filters in half precision.
        with torch.autocast(device_type=waveform.device.type, enabled=False):
            image, loss_ttf = self.fbsp(waveform)  # (B * A, 3, rows, N)
        stage_input = self.maxpool(self.relu(self.bn1(self.conv1(image.to(self.conv1.weight.dtype)))))
        for index in range(1, 5):
            layer, gate = getattr(self, f"layer{index}"), getattr(self, f"att{index}")
            stage_input = gate(stage_input, layer(stage_input))
        pooled = (self.avgpool(stage_input) * self.att5.gate(stage_input, (1, 1))).flatten(1)  # (B * A, H)
        return pooled, stage_input, loss_ttf

    def _flat_waveform(self, input_values: torch.Tensor | None) -> tuple[torch.Tensor, int]:
        if input_values is None:
            raise ValueError("input_values is missing: pass waveforms as the feature extractor returns them.")
        if input_values.dim() not in (2, 3) or input_values.numel() == 0:
            raise ValueError(
                "input_values must have shape (batch_size, num_samples) or (batch_size, channels, num_samples) with "
                f"at least one sample, got {tuple(input_values.shape)}."
            )
        _check_values(input_values)
        num_channels = input_values.shape[1] if input_values.dim() == 3 else 1
        dtype = torch.promote_types(self.fbsp.m.dtype, self.conv1.weight.dtype)
        dtype = torch.promote_types(dtype, torch.float32)
        return input_values.reshape(-1, input_values.shape[-1]).to(dtype), num_channels


__all__ = ["AudioCLIPAudioModel", "AudioCLIPAudioOutput"]
