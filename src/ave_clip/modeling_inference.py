"""The switch for fast inference: towers answer from a private copy with folded normalisation, their weights untouched.

`model.optimize_for_inference(dtype=..., compile=...)` is offered by the towers and by every model that holds them.
What makes the copy fast on CPUs: batch normalisation folded into the convolutions, weights laid out once for oneDNN,
activations and residuals added by the convolutions themselves, few items at a time so that they stay in the caches.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import logging

from .modeling_base import AlignedPreTrainedModel

logger = logging.get_logger(__name__)

INFERENCE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# Memory of the numbers that ten items have in bfloat16 and five in float32: what goes through a tower at once on CPUs.
# The feature maps must fit into the last cache (a map of AudioCLIP's audio tower takes 3.5 MB a float32 item).
ITEMS_TIMES_BYTES = 20
# MKL sums dot products in runs of this many terms on AMD's CPUs (measured on an EPYC): equal runs, equal bits.
TERMS_AT_ONCE = 192


@dataclass(frozen=True)
class InferenceOptions:
    """What `optimize_for_inference` was asked for.

    Args:
        dtype (`torch.dtype`, *optional*): Dtype of the convolutions; the weights' own by default.
        compile (`bool`): Whether to compile them.
    """

    dtype: torch.dtype | None = None
    compile: bool = False


@dataclass
class HeldCopy:
    """A folded copy and the state of the weights it was made from. Not a module, so that no parent registers it."""

    module: nn.Module
    state: tuple


def is_observed(device_type: str) -> bool:
    """Whether something stands between the code and torch's kernels: a compiler, a tracer or autocast."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled(device_type)


def has_fused_linear(device: torch.device) -> bool:
    """Whether torch has oneDNN's matrix product for float32 here."""
    usable = device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
    return usable and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def has_fused_convolutions(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN's convolutions that add and activate (torch.compile uses them) for this dtype here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")
    return dtype in (torch.float32, torch.bfloat16) and all(hasattr(torch.ops.mkldnn, name) for name in names)


class FoldedConvolution(nn.Module):
    """A convolution with the batch normalisation that follows it folded in; computed in float64, rounded once.

    Args:
        convolution (`nn.Conv2d`): Its weights are copied.
        norm (`nn.BatchNorm2d`, *optional*): Normalisation by running statistics.
        dtype (`torch.dtype`): Dtype to compute in.
        fused (`bool`): Whether to use oneDNN's fused convolutions, see [`has_fused_convolutions`].
    """

    def __init__(self, convolution: nn.Conv2d, norm: nn.BatchNorm2d | None, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        weight, bias = _folded_weights(convolution, norm)
        self.stride, self.padding = list(convolution.stride), list(convolution.padding)
        self.groups, self.fused = convolution.groups, fused
        weight = weight.to(convolution.weight.device, dtype).contiguous(memory_format=torch.channels_last)
        self.weight, self.bias = nn.Buffer(weight), nn.Buffer(bias.to(weight))
        self._laid_out_for_one: bool | None = None

    def forward(self, hidden_states: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """Convolve, then apply `activation`: "none", "relu" or "sigmoid"."""
        if self.fused:
            return torch.ops.mkldnn._convolution_pointwise(*self._arguments(hidden_states), activation, [], "")
        output = self._convolve(hidden_states)
        return output if activation == "none" else getattr(torch, f"{activation}_")(output)

    def add_relu(self, hidden_states: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Convolve, add `shortcut`, apply ReLU. `shortcut` is overwritten."""
        if self.fused:
            return torch.ops.mkldnn._convolution_pointwise_.binary(
                shortcut, *self._arguments(hidden_states), "add", None, "relu", [], None
            )
        return self._convolve(hidden_states).add_(shortcut).relu_()

    def _convolve(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(
            hidden_states, self.weight, self.bias, self.stride, self.padding, groups=self.groups
        )

    def _arguments(self, hidden_states: torch.Tensor) -> tuple:
        if self._laid_out_for_one is not (len(hidden_states) == 1):
            self._lay_out(hidden_states.shape)
        return hidden_states, self.weight, self.bias, self.padding, self.stride, [1, 1], self.groups

    def _lay_out(self, shape: torch.Size) -> None:
        # oneDNN wants another layout for one item than for several, and would convert the weights at each call.
        dense = self.weight.to_dense() if self.weight.is_mkldnn else self.weight
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            dense, self.padding, self.stride, [1, 1], self.groups, list(shape)
        )
        self._laid_out_for_one = shape[0] == 1


def _folded_weights(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[torch.Tensor, torch.Tensor]:
    plain = type(convolution) is nn.Conv2d and set(convolution.dilation) == {1}
    if not plain or not isinstance(norm, nn.BatchNorm2d | None):
        raise ValueError(
            f"optimize_for_inference folds nn.Conv2d with nn.BatchNorm2d, got {type(convolution).__name__} with "
            f"{type(norm).__name__}. Merge adapters into the model first, or leave this model as it is."
        )
    weight = convolution.weight.detach().to("cpu", torch.float64)
    bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.detach().to(weight)
    if norm is None:
        return weight, bias
    scale = norm.weight.detach().to(weight) / (norm.running_var.to(weight) + norm.eps).sqrt()
    bias = (bias - norm.running_mean.to(weight)) * scale + norm.bias.detach().to(weight)
    return weight * scale.view(-1, 1, 1, 1), bias


class BlockedLinear:
    """`x @ weight.T` in float32 on the CPU, by oneDNN, with the terms summed in runs of `TERMS_AT_ONCE`.

    On AMD's CPUs twice as fast as MKL and equal to it bit by bit. The order of the terms matters: the spectrogram
    takes logarithms of sums that are nothing but rounding errors where it is silent.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): float32, on the CPU.
        first, last (`int`): Inputs before `first` and from `last` on are known to be 0; whole runs of them are left
            out.
    """

    def __init__(self, weight: torch.Tensor, first: int, last: int) -> None:
        self.start = first // TERMS_AT_ONCE * TERMS_AT_ONCE
        self.num_runs = math.ceil((last - self.start) / TERMS_AT_ONCE)
        self.end = self.start + self.num_runs * TERMS_AT_ONCE  # may lie beyond the last input
        used = nn.functional.pad(weight, (0, max(0, self.end - weight.shape[1])))[:, self.start : self.end]
        self._runs = [
            torch.ops.mkldnn._reorder_convolution_weight(
                run.contiguous()[..., None, None], [0, 0], [1, 1], [1, 1], 1, None
            )
            for run in used.split(TERMS_AT_ONCE, dim=1)
        ]

    def __call__(self, runs: torch.Tensor) -> torch.Tensor:
        """Multiply `(num_runs, rows, TERMS_AT_ONCE)` to `(rows, out_features)`."""
        pictures = runs[:, None, None].permute(0, 1, 4, 2, 3)  # (runs, 1, terms, 1, rows)
        arguments = None, [0, 0], [1, 1], [1, 1], 1
        total = torch.ops.mkldnn._convolution_pointwise(pictures[0], self._runs[0], *arguments, "none", [], "")
        for picture, weight in zip(pictures[1:], self._runs[1:]):
            torch.ops.mkldnn._convolution_pointwise_.binary(
                total, picture, weight, *arguments, "add", None, None, [], None
            )
        return total[0, :, 0].t()


class InferenceLinear(nn.Linear):
    """[`~torch.nn.Linear`] that uses oneDNN in float32 on the CPU where no gradient is wanted.

    For matrices of some hundred rows this takes half the time of MKL on AMD's CPUs.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        same = features.dtype == self.weight.dtype == torch.float32
        if not same or torch.is_grad_enabled() or is_observed("cpu") or not has_fused_linear(features.device):
            return super().forward(features)
        return torch.ops.mkldnn._linear_pointwise(features, self.weight, self.bias, "none", [], "")


class InferenceSwitch(AlignedPreTrainedModel):
    """`optimize_for_inference` and its undoing, for a tower or for a model that holds towers."""

    def optimize_for_inference(
        self, dtype: torch.dtype | str | None = None, compile: bool = False
    ) -> "InferenceSwitch":
        """
        Make the image and audio towers faster in evaluation mode without gradients; the weights stay as they are.

        Each tower then answers from a private copy of its convolutions with batch normalisation folded in, in
        channels-last memory. `state_dict`, `save_pretrained`, `parameters` and copies of the model never see it. It is
        made at once (in training mode: at the first use), dropped by `train()` and whenever weights change, move or
        are loaded, and made again at the next use; only after writing into a `.data` call this again, as torch keeps
        no record of that. Training, gradients, autocast, `output_hidden_states`,
        `output_attentions`, `torch.compile` and `torch.export` of the model itself use the plain form. Forward hooks
        within a tower are not called.

        Costs the memory of one more copy of the convolutions (0.2 GB in float32, 0.1 GB in bfloat16 for AudioCLIP).
        Text tower and localizer are unaffected.

        Args:
            dtype (`torch.dtype` or `str`, *optional*): Dtype of the convolutions, for example `"bfloat16"`; by default
                that of the weights, whose results differ by rounding only. The spectrogram is computed in float32
                anyway, and the outputs keep their dtype.
            compile (`bool`): Whether to compile the convolutions with `torch.compile` too: needs a C++ compiler and
                half a minute for each new kind of input. On CPUs the fused kernels used without it are as fast.

        Returns:
            The model itself.

        Raises:
            ValueError: if the dtype is not a floating one, or if layers were replaced (by adapters, for example).
        """
        options = InferenceOptions(_inference_dtype(dtype), bool(compile))
        try:
            for tower in self._foldable_towers():
                tower._set_inference(options)
        except Exception:
            self.undo_inference_optimization()
            raise
        return self

    def undo_inference_optimization(self) -> "InferenceSwitch":
        """Go back to the plain form and free the copies. Returns the model itself."""
        for tower in self._foldable_towers():
            tower._set_inference(None)
        return self

    @property
    def is_optimized_for_inference(self) -> bool:
        """Whether `optimize_for_inference` was called and not undone."""
        return any(tower._inference_options is not None for tower in self._foldable_towers())

    def _foldable_towers(self) -> Iterator["FoldableTower"]:
        return (module for module in self.modules() if isinstance(module, FoldableTower))


class FoldableTower(InferenceSwitch):
    """A tower that can answer from a folded copy of itself; subclasses say how to make it."""

    _inference_options: InferenceOptions | None = None
    _held_copy: HeldCopy | None = None

    def _fold(self, dtype: torch.dtype, fused: bool) -> nn.Module:
        """Make the copy."""
        raise NotImplementedError  # each tower has its own

    def _set_inference(self, options: InferenceOptions | None) -> None:
        self._held_copy = None
        self._inference_options = options
        if options is not None:
            _warn_of_slow_dtype(self.device, options.dtype)
            if not self.training:
                self._current_copy()

    def _folded(self, inputs: torch.Tensor, **kwargs) -> nn.Module | None:
        """The copy, if it is wanted and may answer for this call."""
        if self._inference_options is None or self.training or torch.is_grad_enabled():
            return None
        return None if self._must_be_plain(inputs, kwargs) else self._current_copy()

    def _current_copy(self) -> nn.Module | None:
        state = self._weights_state()
        if self._held_copy is None or self._held_copy.state != state:
            self._held_copy = None  # free the old one first
            if any(tensor.is_meta for tensor in self._tensors()):  # offloaded, or not loaded yet
                return None
            with torch.inference_mode(False), torch.no_grad():
                self._held_copy = HeldCopy(self._make_copy(self._inference_options), state)
        return self._held_copy.module

    def _must_be_plain(self, inputs: torch.Tensor, kwargs: dict) -> bool:
        if is_observed(inputs.device.type):
            return True
        wanted = (kwargs.get(name, getattr(self.config, name, False)) for name in _RECORDED)
        return any(wanted)

    def _tensors(self) -> Iterator[torch.Tensor]:
        return itertools.chain(self.parameters(), self.buffers())

    def _make_copy(self, options: InferenceOptions) -> nn.Module:
        dtype = self.conv1.weight.dtype if options.dtype is None else options.dtype
        fused = has_fused_convolutions(self.device, dtype) and not options.compile
        copy = self._fold(dtype, fused).eval()
        if options.compile:
            copy.compile_convolutions()
        return copy

    def _weights_state(self) -> tuple:
        return tuple(
            (
                id(tensor),
                0 if tensor.is_meta else tensor.data_ptr(),
                None if tensor.is_inference() else tensor._version,
            )
            for tensor in self._tensors()
        )

    def train(self, mode: bool = True) -> "FoldableTower":
        """Switch modes; training drops the folded copy."""
        if mode:
            self._held_copy = None
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        self._held_copy = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_held_copy": None}


_RECORDED = ("output_hidden_states", "output_attentions")


def few_at_a_time(items: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Cut a batch on the CPU into about equal parts, few enough for the caches; elsewhere leave it whole.

    Args:
        items (`torch.Tensor`, first dimension the items): What a tower takes.
        dtype (`torch.dtype`): What the tower computes in.
    """
    if items.device.type != "cpu":
        return (items,)
    return items.tensor_split(max(1, math.ceil(len(items) * dtype.itemsize / ITEMS_TIMES_BYTES)))


def _inference_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    resolved = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if resolved is not None and resolved not in INFERENCE_DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in INFERENCE_DTYPES)
        raise ValueError(f"dtype must be one of {names}, or None for that of the weights; got {dtype!r}.")
    return resolved


def _warn_of_slow_dtype(device: torch.device, dtype: torch.dtype | None) -> None:
    half = dtype in (torch.bfloat16, torch.float16)
    if device.type == "cpu" and half and not has_fused_convolutions(device, dtype):
        logger.warning_once(
            f"This CPU has no fast convolutions in {dtype}: expect optimize_for_inference(dtype={dtype}) to be slower "
            "than float32."
        )


__all__ = ["FoldableTower", "InferenceLinear", "InferenceSwitch"]
