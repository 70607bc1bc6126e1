"""Dropout whose masks are a function of the data, not of the state of a random number generator.

A mask depends on the seed, the epoch, the clip's row, the layer, the number of earlier calls of the layer in this
step, and the element. A clip therefore gets the same masks in any process, batch and position in the batch, after a
resume, and on CPU and GPU.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

_INT32_RANGE = 1 << 32


@dataclass(frozen=True)
class MaskRequest:
    """One call of one dropout layer in a step.

    Attributes:
        layer (`int`): Number of the layer in the model.
        call (`int`): Number of the call of this layer in the step.
        size (`int`): Elements per clip.
        probability (`float`): Fraction of elements set to zero.
    """

    layer: int
    call: int
    size: int
    probability: float


class KeyedDropout:
    """State that the keyed dropout layers of one model share; created by [`use_keyed_dropout`].

    A hash takes some ten operations, and on a GPU the number of operations decides how long a step takes. So the masks
    of all layers are computed together: the first layer of a step computes those that the step before asked for.

    Attributes:
        keys (`torch.Tensor` of shape `(batch_size,)`, int32, *optional*): One per clip of the batch; see `set`.
    """

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        self.calls: dict[int, int] = {}  # of each layer in this step
        self.expected: list[MaskRequest] = []  # those of the step before, which this step most likely repeats
        self.asked: list[MaskRequest] = []  # those of this step so far
        self.scales: dict[MaskRequest, torch.Tensor] = {}  # computed in this step

    def set(self, seed: int, epoch: int, rows: torch.Tensor) -> None:
        """Selects the masks of the next forward pass.

        Args:
            seed (`int`): Seed of the training run.
            epoch (`int`): Number of the epoch.
            rows (`torch.LongTensor` of shape `(batch_size,)`): Row numbers of the clips in the batch.
        """
        keys = mix(_folded(rows.flatten()).to(torch.int32))
        for part in (seed, epoch):
            keys = mix(keys ^ _folded(part))
        self.keys, self.calls, self.scales = keys, {}, {}
        self.expected, self.asked = self.asked or self.expected, []

    def scale(self, features: torch.Tensor, probability: float, layer: int) -> torch.Tensor:
        """Returns what one layer multiplies its input by: zero, or `1 / (1 - probability)` for elements to keep.

        Args:
            features (`torch.Tensor` of shape `(batch_size, ...)`): Input of the layer.
            probability (`float`): Fraction of elements set to zero.
            layer (`int`): Number of the layer.

        Raises:
            ValueError: if `set` was not called for this batch.
        """
        if self.keys is None or len(self.keys) != len(features):
            known = 0 if self.keys is None else len(self.keys)
            raise ValueError(
                f"Keyed dropout got {len(features)} clips, but `set` was called with {known} rows. Call "
                "`KeyedDropout.set(seed, epoch, rows)` before each forward pass in training."
            )
        call = self.calls.get(layer, 0)
        self.calls[layer] = call + 1
        request = MaskRequest(layer, call, features[0].numel(), probability)
        self.asked.append(request)
        if request not in self.scales:
            # Later requests differ from those of the step before if its clips had another number of segments.
            requests = self.expected if request in self.expected and not self.scales else [request]
            computed = compute_scales(self.keys.to(features.device), tuple(requests))
            self.scales |= dict(zip(requests, computed))
        return self.scales[request].view(features.shape).to(features.dtype)


def compute_scales(keys: torch.Tensor, requests: tuple[MaskRequest, ...]) -> Sequence[torch.Tensor]:
    """Computes the scales `(batch_size, size)` of several requests, float32, with one hash of all elements.

    Args:
        keys (`torch.Tensor` of shape `(batch_size,)`, int32): One per clip.
        requests (`tuple[MaskRequest, ...]`): The requests.
    """
    layers, calls, elements, owner, lowest, kept = _tables(requests, keys.device)
    layer_keys = mix(mix(keys.unsqueeze(-1) ^ layers) ^ calls)  # (B, requests)
    values = mix(elements ^ layer_keys[:, owner])  # (B, elements of all requests), uniform over all of int32
    return ((values >= lowest) * kept).split([request.size for request in requests], dim=1)


@lru_cache(maxsize=16)  # batches whose clips have other numbers of segments have other tables
def _tables(requests: tuple[MaskRequest, ...], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Returns the parts of the scales that are the same in all steps.

    Per request: the number of its layer and that of its call. Per element: its hash, the index of its request, the
    lowest hash with which it is kept, and its scale if it is kept.
    """

    def per_request(values: Iterable[int], dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.tensor(list(values), dtype=dtype, device=device)

    sizes = per_request((request.size for request in requests), torch.int64)
    owner = torch.arange(len(requests), device=device).repeat_interleave(sizes)
    elements = [torch.arange(request.size, dtype=torch.int32, device=device) for request in requests]
    # The hash is uniform over the int32 range, so this fraction of it is below `lowest`.
    lowest = per_request(round(request.probability * _INT32_RANGE) - _INT32_RANGE // 2 for request in requests)
    kept = torch.tensor([1 / (1 - request.probability) for request in requests], device=device)
    layers = per_request(request.layer + 1 for request in requests)
    calls = per_request(request.call + 1 for request in requests)
    return layers, calls, mix(torch.cat(elements)), owner, lowest[owner], kept[owner]


class KeyedDropoutLayer(nn.Module):
    """A dropout layer with keyed masks; like `nn.Dropout` it does nothing in evaluation mode.

    Args:
        probability (`float`): Fraction of elements set to zero.
        shared (`KeyedDropout`): State with the clips of the batch.
        number (`int`): Number of this layer in the model.
    """

    def __init__(self, probability: float, shared: KeyedDropout, number: int) -> None:
        super().__init__()
        self.probability, self.shared, self.number = probability, shared, number

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training or self.probability == 0:
            return features
        return features * self.shared.scale(features, self.probability, self.number)

    def extra_repr(self) -> str:
        return f"probability={self.probability}"


def use_keyed_dropout(model: nn.Module) -> KeyedDropout:
    """Replaces each `nn.Dropout` of a model in place; weights and names do not change.

    Args:
        model (`nn.Module`): A model whose dropout layers get tensors with the clips in the first dimension.

    Returns:
        `KeyedDropout`: call `set` on it before each training step.
    """
    shared, layers = KeyedDropout(), {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                layers.setdefault(child, KeyedDropoutLayer(child.p, shared, len(layers)).train(child.training))
                setattr(parent, name, layers[child])
    return shared


def mix(values: torch.Tensor) -> torch.Tensor:
    """Hashes int32 numbers bijectively, so that each output bit depends on each input bit.

    Source: the lowbias32 function of Chris Wellons, "Prospecting for Hash Functions", 2018.

    Args:
        values (`torch.Tensor` of int32): Numbers of any shape.
    """
    values = values ^ ((values >> 16) & 0xFFFF)  # shifts of int32 copy the sign bit; the mask removes it
    values = values * 0x7FEB352D
    values ^= (values >> 15) & 0x1FFFF
    values *= 0x846CA68B - _INT32_RANGE
    values ^= (values >> 16) & 0xFFFF
    return values


def _folded(numbers: Any) -> Any:
    """Folds a tensor of int64 numbers, or one number, to the range of int32; small numbers stay different."""
    half = _INT32_RANGE // 2
    return ((numbers ^ (numbers >> 32)) + half) % _INT32_RANGE - half
