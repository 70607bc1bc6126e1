"""What the models share: weights laid out alike after loading, batch normalisation that is counted once."""

import itertools

import torch
from torch import nn
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


class RecomputableBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose running statistics leave out the second run of gradient checkpointing."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalise `(B, C, h, w)` as [`~torch.nn.BatchNorm2d`] does."""
        # torch has no public way to tell that a backward pass is running; torch.utils.checkpoint asks in this way too.
        if self.training and not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            # The statistics are handed over all the same, since checkpointing counts what is saved for the gradient.
            statistics = (self.running_mean, self.running_var)
            return nn.functional.batch_norm(
                hidden_states, *statistics, self.weight, self.bias, training=True, momentum=0.0, eps=self.eps
            )
        return super().forward(hidden_states)


def align_weights(model: nn.Module) -> None:
    """Copy the parameters and buffers on the CPU that do not begin at a multiple of 64 bytes."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        plain = type(tensor.data) is torch.Tensor and tensor.device.type == "cpu"
        if plain and tensor.data_ptr() % ALIGNMENT_BYTES:
            tensor.data = tensor.data.clone()


__all__ = ["AlignedPreTrainedModel", "RecomputableBatchNorm2d", "align_weights"]
