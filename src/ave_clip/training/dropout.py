"""Dropout whose masks are a function of the data, not of the state of a random number generator.

A mask depends on the seed, the epoch, the clip's row, the layer, the number of earlier calls of the layer in this
step, and the element. A clip therefore gets the same masks in any process, batch and position in the batch, after a
resume, and on CPU and GPU.
"""

import torch
from torch import nn

_INT32_RANGE = 1 << 32


class KeyedDropout:
    """State that the keyed dropout layers of one model share; created by [`use_keyed_dropout`].

    Attributes:
        keys (`torch.Tensor` of shape `(batch_size,)`, int32, *optional*): One per clip of the batch; see `set`.
        calls (`dict[int, int]`): Number of calls of each layer since then.
    """

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        self.calls: dict[int, int] = {}

    def set(self, seed: int, epoch: int, rows: torch.Tensor) -> None:
        """Selects the masks of the next forward pass.

        Args:
            seed (`int`): Seed of the training run.
            epoch (`int`): Number of the epoch.
            rows (`torch.LongTensor` of shape `(batch_size,)`): Row numbers of the clips in the batch.
        """
        keys = mix(_as_int32(rows.flatten()))
        for part in (seed, epoch):
            keys = mix(keys ^ _as_int32(torch.full_like(keys, 0, dtype=torch.int64) + part))
        self.keys, self.calls = keys, {}

    def mask(self, features: torch.Tensor, probability: float, layer: int) -> torch.Tensor:
        """Returns the mask of one layer, with `True` for elements to keep.

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
        keys = mix(mix(self.keys.to(features.device) ^ (layer + 1)) ^ (call + 1))
        elements = torch.arange(features[0].numel(), dtype=torch.int32, device=features.device)
        values = mix(mix(elements) ^ keys.unsqueeze(-1))  # (B, elements of a clip), uniform over all of int32
        # The hash is uniform over the int32 range, so this fraction of it is below `lowest`.
        lowest = round(probability * _INT32_RANGE) - _INT32_RANGE // 2
        return (values >= lowest).view(features.shape)


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
        mask = self.shared.mask(features, self.probability, self.number)
        return features * mask.to(features.dtype) / (1 - self.probability)

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


def _as_int32(numbers: torch.Tensor) -> torch.Tensor:
    """Folds int64 numbers to int32; small numbers stay different."""
    folded = (numbers ^ (numbers >> 32)) & 0xFFFFFFFF
    return torch.where(folded >= _INT32_RANGE // 2, folded - _INT32_RANGE, folded).to(torch.int32)
