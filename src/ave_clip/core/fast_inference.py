"""Optional fast inference: fused kernels, and the object that makes a tower use a faster copy of itself.

A copy is faster on CPUs because batch normalization is folded into the convolutions, the weights are in the memory
layout of oneDNN, the convolutions apply activations and residuals themselves, and few items are processed at a time,
so that they stay in the caches. The models do not need this file: without it they give the same results, more slowly.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

INFERENCE_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
# Items per tower call on CPUs, times the bytes per value: ten items in bfloat16, five in float32. The feature maps
# must fit into the last-level cache (a map of AudioCLIP's audio tower takes 3.5 MB per item in float32).
ITEMS_TIMES_BYTES = 20
# MKL sums dot products in runs of this many terms on AMD CPUs (measured on an EPYC). With the same runs, results are
# the same bit by bit.
TERMS_AT_ONCE = 192


@dataclass(frozen=True)
class InferenceOptions:
    """Options of `optimize_for_inference`.

    Args:
        dtype (`torch.dtype`, *optional*): Dtype of the convolutions; by default that of the weights.
        compile (`bool`): Whether to compile the convolutions.
        cuda_graphs (`bool`): Whether to run small batches on a GPU as CUDA graphs.
    """

    dtype: torch.dtype | None = None
    compile: bool = False
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.compile and self.cuda_graphs:
            raise ValueError("compile=True and cuda_graphs=True exclude each other. Choose one of them.")


class HeldCopy:
    """A folded copy, and what shows whether its source has changed. Not a module, so that no parent registers it.

    Changed weights have another tensor, another address, or a higher count of writes. After a move or a cast the
    address can be the same, so the model calls `drop_copy` then.

    Args:
        module (`nn.Module`): The copy.
        source (`nn.Module`): The tower that it was made from.
    """

    def __init__(self, module: nn.Module, source: nn.Module) -> None:
        self.module = module
        # Lists, made once: walking the tree of modules at each call takes a millisecond.
        self._entries = [
            (entries, list(entries.items()))
            for part in source.modules()
            for entries in (part._modules, part._parameters, part._buffers)
        ]
        self._states = [(tensor, _tensor_state(tensor)) for tensor in _tensors_of(source)]

    def is_current(self) -> bool:
        """Whether the source is still what it was when the copy was made."""
        for entries, known in self._entries:
            if len(entries) != len(known) or any(entries.get(name) is not value for name, value in known):
                return False
        return all(_tensor_state(tensor) == state for tensor, state in self._states)


def _tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    return itertools.chain(module.parameters(), module.buffers())


def _tensor_state(tensor: torch.Tensor) -> tuple:
    return 0 if tensor.is_meta else tensor.data_ptr(), None if tensor.is_inference() else tensor._version


class FastPath:
    """Replaces a tower's `_compute`: runs a folded copy if possible, otherwise the tower itself.

    The copy is created from the current weights, and created again when they have changed, moved or been loaded. It is
    not a submodule, so `state_dict`, `parameters` and `modules` of the model do not contain it.

    Args:
        tower ([`HasFastPath`]): Its `fast_path` and `_compute` are set by `install`.
        fold (`Callable`): Creates the copy from the tower, a dtype, and whether to use fused kernels.
        options ([`InferenceOptions`]): Dtype and compilation.
    """

    def __init__(
        self,
        tower: Any,  # importing the classes of the towers would be circular
        fold: Callable[[Any, torch.dtype, bool], Any],
        options: InferenceOptions,
    ) -> None:
        self.tower, self.fold, self.options = tower, fold, options
        self.held_copy: HeldCopy | None = None

    def install(self) -> None:
        """Replaces `_compute`; the copy is created at once, or at the first use if the tower is in training mode."""
        _warn_of_slow_dtype(self.tower.device, self.options.dtype)
        if not self.tower.training:
            self._current_copy()
        self.tower.fast_path = self.tower._compute = self  # hides the method of the class

    def remove(self) -> None:
        """Restores the tower's own `_compute`."""
        del self.tower.fast_path, self.tower._compute

    def drop_copy(self) -> None:
        """Frees the copy; the next use creates another."""
        self.held_copy = None

    def __call__(self, inputs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Returns what the tower's own `_compute` returns."""
        copy = None if self._must_be_plain(inputs, kwargs) else self._current_copy()
        if copy is None:
            return type(self.tower)._compute(self.tower, inputs, *args, **kwargs)
        return copy(inputs, *args)

    def _must_be_plain(self, inputs: torch.Tensor, kwargs: dict[str, Any]) -> bool:
        if self.tower.training or torch.is_grad_enabled() or is_observed(inputs.device.type):
            return True
        return any(kwargs.get(name, getattr(self.tower.config, name, False)) for name in _RECORDED)

    def _current_copy(self) -> nn.Module | None:
        if self.held_copy is None or not self.held_copy.is_current():
            self.held_copy = None  # frees the old copy before the new one is made
            if any(tensor.is_meta or type(tensor) not in _PLAIN_TENSORS for tensor in _tensors_of(self.tower)):
                return None  # offloaded, not loaded yet, or quantized
            with torch.inference_mode(False), torch.no_grad():
                self.held_copy = HeldCopy(self._make_copy(), self.tower)
        return self.held_copy.module

    def _make_copy(self) -> nn.Module:
        dtype = convolution_dtype(self.tower) if self.options.dtype is None else self.options.dtype
        fused = has_fused_convolutions(self.tower.device, dtype) and not self.options.compile
        copy = self.fold(self.tower, dtype, fused).eval()
        if self.options.compile:
            copy.compile_convolutions()
        elif self.options.cuda_graphs:
            copy.record_convolutions()
        return copy

    def __getstate__(self) -> dict:
        return {**self.__dict__, "held_copy": None}


def convolution_dtype(tower: nn.Module) -> torch.dtype:
    """Returns the dtype of a tower's convolutions; other parts (spectrograms) may have another one."""
    return next(module.weight.dtype for module in tower.modules() if isinstance(module, nn.Conv2d))


_RECORDED = ("output_hidden_states", "output_attentions")
_PLAIN_TENSORS = (torch.Tensor, nn.Parameter)


def is_observed(device_type: str) -> bool:
    """Whether a compiler, a tracer or autocast is active, which the fused kernels bypass."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled(device_type)


def has_fused_linear(device: torch.device) -> bool:
    """Whether torch has oneDNN's matrix product for float32 on this device."""
    usable = device.type == "cpu" and torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    return usable and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def has_fused_convolutions(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch has oneDNN's fused convolutions (those that torch.compile uses) for this device and dtype."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    names = ("_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight")
    return dtype in (torch.float32, torch.bfloat16) and all(hasattr(torch.ops.mkldnn, name) for name in names)


class FoldedConvolution(nn.Module):
    """A convolution with the following batch normalization folded in; folding is computed in float64 and rounded once.

    Args:
        convolution (`nn.Conv2d`): Its weights are copied.
        norm (`nn.BatchNorm2d`, *optional*): Normalization with running statistics.
        dtype (`torch.dtype`): Dtype of the computation.
        fused (`bool`): Whether to use oneDNN's fused convolutions, see [`has_fused_convolutions`].
    """

    def __init__(self, convolution: nn.Module, norm: nn.Module | None, dtype: torch.dtype, fused: bool) -> None:
        super().__init__()
        convolution, norm = _checked_layers(convolution, norm)
        weight, bias = _folded_weights(convolution, norm)
        self.stride, self.padding = list(convolution.stride), [int(size) for size in convolution.padding]
        self.groups, self.fused = convolution.groups, fused
        weight = weight.to(convolution.weight.device, dtype).contiguous(memory_format=torch.channels_last)
        self.weight, self.bias = nn.Buffer(weight), nn.Buffer(bias.to(weight))
        self._laid_out_for_one: bool | None = None

    def forward(self, hidden_states: torch.Tensor, activation: str = "none") -> torch.Tensor:
        """Convolves, then applies `activation`: "none", "relu", "relu6" or "sigmoid"."""
        if self.fused:
            name, limits = ("hardtanh", [0.0, 6.0]) if activation == "relu6" else (activation, [])
            return torch.ops.mkldnn._convolution_pointwise(*self._arguments(hidden_states), name, limits, "")
        output = self._convolve(hidden_states)
        if activation == "relu6":
            return nn.functional.hardtanh_(output, 0.0, 6.0)
        return output if activation == "none" else getattr(torch, f"{activation}_")(output)

    def add(self, hidden_states: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Convolves and adds `shortcut`, which is overwritten."""
        return self._add(hidden_states, shortcut, None) if self.fused else self._convolve(hidden_states).add_(shortcut)

    def add_relu(self, hidden_states: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
        """Convolves, adds `shortcut` and applies ReLU. `shortcut` is overwritten."""
        if self.fused:
            return self._add(hidden_states, shortcut, "relu")
        return self._convolve(hidden_states).add_(shortcut).relu_()

    def _add(self, hidden_states: torch.Tensor, shortcut: torch.Tensor, activation: str | None) -> torch.Tensor:
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            shortcut, *self._arguments(hidden_states), "add", None, activation, [], None
        )

    def _convolve(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(
            hidden_states, self.weight, self.bias, self.stride, self.padding, groups=self.groups
        )

    def _arguments(self, hidden_states: torch.Tensor) -> tuple:
        if self._laid_out_for_one is not (len(hidden_states) == 1):
            self._lay_out(hidden_states.shape)
        return hidden_states, self.weight, self.bias, self.padding, self.stride, [1, 1], self.groups

    def _lay_out(self, shape: torch.Size) -> None:
        # oneDNN uses another layout for one item than for several. In the wrong layout it would convert the weights at
        # each call.
        dense = self.weight.to_dense() if self.weight.is_mkldnn else self.weight
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(
            dense, self.padding, self.stride, [1, 1], self.groups, list(shape)
        )
        self._laid_out_for_one = shape[0] == 1


class FoldedSameConvolution(FoldedConvolution):
    """[`FoldedConvolution`] with TensorFlow's "SAME" padding, which depends on the size of the input.

    If an odd number of pixels is missing, the right and bottom get one more. oneDNN pads both sides alike, and making
    a padded copy of the input takes longer than a depthwise convolution. So the kernel gets a row and a column of
    zeros in front, and both sides get the larger number of pixels: the result is the same.
    """

    def __init__(self, convolution: nn.Module, norm: nn.Module | None, dtype: torch.dtype, fused: bool) -> None:
        super().__init__(convolution, norm, dtype, fused)
        self.kernel = nn.Buffer(self.weight)
        self._front: list[int] | None = None  # rows and columns of zeros in front of the kernel

    def _missing(self, hidden_states: torch.Tensor) -> list[int]:
        """Returns how many rows and columns have to be padded."""
        sizes = zip(hidden_states.shape[-2:], self.kernel.shape[-2:], self.stride)
        return [max((-(-size // stride) - 1) * stride + length - size, 0) for size, length, stride in sizes]

    def _arguments(self, hidden_states: torch.Tensor) -> tuple:
        missing = self._missing(hidden_states)
        front, padding = [number % 2 for number in missing], [(number + 1) // 2 for number in missing]
        if (front, padding) != (self._front, self.padding):
            self._front, self.padding, self._laid_out_for_one = front, padding, None
            weight = nn.functional.pad(self.kernel, (front[1], 0, front[0], 0))
            self.weight = nn.Buffer(weight.contiguous(memory_format=torch.channels_last))
        return super()._arguments(hidden_states)

    def _convolve(self, hidden_states: torch.Tensor) -> torch.Tensor:
        rows, columns = self._missing(hidden_states)
        sides = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        padded = nn.functional.pad(hidden_states, sides) if rows or columns else hidden_states
        return nn.functional.conv2d(padded, self.kernel, self.bias, self.stride, groups=self.groups)


def _checked_layers(convolution: nn.Module, norm: nn.Module | None) -> tuple[nn.Conv2d, nn.BatchNorm2d | None]:
    if type(convolution) is nn.Conv2d and set(convolution.dilation) == {1} and isinstance(norm, nn.BatchNorm2d | None):
        return convolution, norm
    raise ValueError(
        f"optimize_for_inference folds nn.Conv2d with nn.BatchNorm2d, got {type(convolution).__name__} with "
        f"{type(norm).__name__}. Merge adapters into the model first, or leave this model as it is."
    )


def _folded_weights(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[torch.Tensor, torch.Tensor]:
    weight = convolution.weight.detach().to("cpu", torch.float64)
    bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.detach().to(weight)
    if norm is None:
        return weight, bias
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError(
            "optimize_for_inference folds batch normalization with running statistics, got a layer without them "
            "(track_running_stats=False). Leave this model as it is."
        )
    scale = norm.weight.detach().to(weight) / (variance.to(weight) + norm.eps).sqrt()
    bias = (bias - mean.to(weight)) * scale + norm.bias.detach().to(weight)
    return weight * scale.view(-1, 1, 1, 1), bias


class BlockedLinear:
    """`x @ weight.T` in float32 on the CPU, by oneDNN, with the terms summed in runs of `TERMS_AT_ONCE`.

    On AMD CPUs twice as fast as MKL, with the same results bit by bit. The order of the terms matters: in silence the
    spectrogram takes logarithms of sums that consist of rounding errors only.

    Args:
        weight (`torch.Tensor` of shape `(out_features, in_features)`): float32, on the CPU.
        first, last (`int`): Inputs before `first` and from `last` on are known to be 0; whole runs of them are
            skipped.
    """

    def __init__(self, weight: torch.Tensor, first: int, last: int) -> None:
        self.start = first // TERMS_AT_ONCE * TERMS_AT_ONCE
        self.num_runs = math.ceil((last - self.start) / TERMS_AT_ONCE)
        self.end = self.start + self.num_runs * TERMS_AT_ONCE  # may be greater than in_features
        used = nn.functional.pad(weight, (0, max(0, self.end - weight.shape[1])))[:, self.start : self.end]
        self._runs = [
            torch.ops.mkldnn._reorder_convolution_weight(
                run.contiguous()[..., None, None], [0, 0], [1, 1], [1, 1], 1, None
            )
            for run in used.split(TERMS_AT_ONCE, dim=1)
        ]

    def __call__(self, runs: torch.Tensor) -> torch.Tensor:
        """Multiplies `(num_runs, rows, TERMS_AT_ONCE)` to `(rows, out_features)`."""
        # A 1x1 convolution is this product, and oneDNN can add its result to a running total.
        images = runs[:, None, None].permute(0, 1, 4, 2, 3)  # (runs, 1, terms, 1, rows)
        arguments = None, [0, 0], [1, 1], [1, 1], 1
        total = torch.ops.mkldnn._convolution_pointwise(images[0], self._runs[0], *arguments, "none", [], "")
        for image, weight in zip(images[1:], self._runs[1:]):
            torch.ops.mkldnn._convolution_pointwise_.binary(
                total, image, weight, *arguments, "add", None, None, [], None
            )
        return total[0, :, 0].t()


class FastLinear(nn.Linear):
    """[`~torch.nn.Linear`] that uses oneDNN in float32 on the CPU if no gradient is needed.

    For matrices of some hundred rows this takes half the time of MKL on AMD CPUs.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps `(..., in_features)` to `(..., out_features)`."""
        # Quantized weights (torchao) are other tensor types, which the kernel cannot read.
        plain = type(self.weight) is nn.Parameter and features.dtype == self.weight.dtype == torch.float32
        if not plain or torch.is_grad_enabled() or is_observed("cpu") or not has_fused_linear(features.device):
            return super().forward(features)
        return torch.ops.mkldnn._linear_pointwise(features, self.weight, self.bias, "none", [], "")


def few_at_a_time(items: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Splits a batch on the CPU into parts of about equal size that fit into the caches; not on other devices.

    Args:
        items (`torch.Tensor` of shape `(number, ...)`): Input of a tower.
        dtype (`torch.dtype`): Dtype that the tower computes in.
    """
    if items.device.type != "cpu":
        return (items,)
    return items.tensor_split(max(1, math.ceil(len(items) * dtype.itemsize / ITEMS_TIMES_BYTES)))


def inference_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Returns the dtype for its name.

    Raises:
        ValueError: If it is not a floating dtype.
    """
    resolved = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if resolved is not None and resolved not in INFERENCE_DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in INFERENCE_DTYPES)
        raise ValueError(f"dtype must be one of {names}, or None for that of the weights; got {dtype!r}.")
    return resolved


def _warn_of_slow_dtype(device: torch.device, dtype: torch.dtype | None) -> None:
    if dtype is None or device.type != "cpu" or dtype.itemsize != 2:
        return
    if not has_fused_convolutions(device, dtype):
        logger.warning_once(
            f"This CPU has no fast convolutions in {dtype}: expect optimize_for_inference(dtype={dtype}) to be slower "
            "than float32."
        )


__all__ = [
    "BlockedLinear",
    "FastLinear",
    "FastPath",
    "FoldedConvolution",
    "FoldedSameConvolution",
    "InferenceOptions",
    "few_at_a_time",
]
