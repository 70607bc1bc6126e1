"""Dropout whose masks follow from what is trained on, not from a stream of random numbers.

A mask depends on the seed, the epoch, the clip's row, the layer, how often the layer ran before in this step, and the
element. So a clip meets the same masks in whatever process, batch or place of a batch it comes, also after a run was
killed and resumed, on CPU as on GPU.
"""

import torch
from torch import nn

_INT32_RANGE = 1 << 32


class KeyedDropout:
    """What the keyed dropout layers of one model share; made by [`use_keyed_dropout`].

    Attributes:
        keys (`torch.Tensor` of shape `(batch_size,)`, int32, *optional*): One a clip of the batch; see `set`.
        calls (`dict[int, int]`): How often each layer ran since.
    """

    def __init__(self) -> None:
        self.keys: torch.Tensor | None = None
        self.calls: dict[int, int] = {}

    def set(self, seed: int, epoch: int, rows: torch.Tensor) -> None:
        """Choose the masks of the next forward pass.

        Args:
            seed (`int`): Seed of the run.
            epoch (`int`): Number of the epoch.
            rows (`torch.LongTensor` of shape `(batch_size,)`): Row numbers of the clips in the batch.
        """
        keys = mix(_as_int32(rows.flatten()))
        for part in (seed, epoch):
            keys = mix(keys ^ _as_int32(torch.full_like(keys, 0, dtype=torch.int64) + part))
        self.keys, self.calls = keys, {}

    def mask(self, features: torch.Tensor, probability: float, layer: int) -> torch.Tensor:
        """Make the mask of one layer: `True` is kept. First dimension of `features`: the clips.

        Raises:
            ValueError: where `set` was not called, or for another batch.
        """
        if self.keys is None or len(self.keys) != len(features):
            known = "none" if self.keys is None else len(self.keys)
            raise ValueError(
                f"Keyed dropout got {len(features)} clips, but knows the rows of {known}. Call "
                "`KeyedDropout.set(seed, epoch, rows)` before each forward pass in training."
            )
        call = self.calls.get(layer, 0)
        self.calls[layer] = call + 1
        keys = mix(mix(self.keys.to(features.device) ^ (layer + 1)) ^ (call + 1))
        elements = torch.arange(features[0].numel(), dtype=torch.int32, device=features.device)
        values = mix(mix(elements) ^ keys.unsqueeze(-1))  # (B, elements of a clip), uniform over all of int32
        lowest = round(probability * _INT32_RANGE) - _INT32_RANGE // 2
        return (values >= lowest).view(features.shape)


class KeyedDropoutLayer(nn.Module):
    """One dropout layer with keyed masks; does nothing in evaluation, as usual.

    Args:
        probability (`float`): Share of elements set to zero.
        shared (`KeyedDropout`): Knows the clips of the batch.
        number (`int`): Which layer of the model this is.
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
    """Replace every `nn.Dropout` of a model, in place; weights and names stay.

    Args:
        model (`nn.Module`): Its dropout layers see tensors whose first dimension is the clips.

    Returns:
        `KeyedDropout`: to be told the clips of each batch.
    """
    shared, layers = KeyedDropout(), {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                layers.setdefault(child, KeyedDropoutLayer(child.p, shared, len(layers)).train(child.training))
                setattr(parent, name, layers[child])
    return shared


def mix(values: torch.Tensor) -> torch.Tensor:
    """Hash int32 numbers one to one so that every bit depends on every other (Wellons' lowbias32).

    Args:
        values (`torch.Tensor` of int32): Any shape.
    """
    values = values ^ ((values >> 16) & 0xFFFF)  # int32 shifts copy the sign, which the mask takes away
    values = values * 0x7FEB352D
    values ^= (values >> 15) & 0x1FFFF
    values *= 0x846CA68B - _INT32_RANGE
    values ^= (values >> 16) & 0xFFFF
    return values


def _as_int32(numbers: torch.Tensor) -> torch.Tensor:
    """Fold int64 numbers to int32, keeping small ones apart."""
    folded = (numbers ^ (numbers >> 32)) & 0xFFFFFFFF
    return torch.where(folded >= _INT32_RANGE // 2, folded - _INT32_RANGE, folded).to(torch.int32)
