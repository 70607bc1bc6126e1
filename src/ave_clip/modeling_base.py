"""Base class of the models: weights that give the same bits after loading as before saving."""

import itertools

import torch
from transformers import PreTrainedModel

ALIGNMENT_BYTES = 64  # of what torch allocates on the CPU


class AlignedPreTrainedModel(PreTrainedModel):
    """[`PreTrainedModel`] whose `from_pretrained` lays the weights out in memory as a new model's are.

    Loaded weights are views into the mapped file and begin at odd addresses. Matrix products choose their kernels by
    the address, so that the same weights would give results that differ in the last bit.
    """

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """As [`~transformers.PreTrainedModel.from_pretrained`]; copies weights that begin at an odd address."""
        loaded = super().from_pretrained(*args, **kwargs)
        align_weights(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded


def align_weights(model: torch.nn.Module) -> None:
    """Copy the parameters and buffers on the CPU that do not begin at a multiple of 64 bytes."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        plain = type(tensor.data) is torch.Tensor and tensor.device.type == "cpu"
        if plain and tensor.data_ptr() % ALIGNMENT_BYTES:
            tensor.data = tensor.data.clone()


__all__ = ["AlignedPreTrainedModel", "align_weights"]
