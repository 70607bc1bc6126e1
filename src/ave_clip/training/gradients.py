"""Gradients of a contrastive batch that is computed in chunks and on several processes.

They equal those of the whole batch in one pass. Three things need care: the gradient of each embedding depends on all
others (`backward_in_chunks`); AudioCLIP's spectrogram divides its gradients by their largest value, which does not
commute with a sum over chunks (`UnscaledSpectrogram`); and batch norm in training mode depends on the whole batch
(`SharedBatchNorm2d`).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from accelerate import Accelerator

from ..core.modeling_base import RecomputableBatchNorm2d
from ..core.modeling_esresnext import FBSP_EPS, AudioCLIPSpectrogram, fbsp_kernel
from .losses import gather_with_gradient

Encode = Callable[[slice], tuple[torch.Tensor, torch.Tensor]]
ContrastiveLoss = Callable[..., torch.Tensor]


def backward_in_chunks(
    accelerator: Accelerator,
    model: torch.nn.Module,
    encode: Encode,
    loss_function: ContrastiveLoss,
    scales: Sequence[torch.Tensor],
    num_segments: int,
    chunk_size: int,
) -> torch.Tensor:
    """Gradient caching: backpropagates the loss of a large batch with the memory of a small one.

    All chunks are encoded without a graph, the loss gives the gradient of each embedding, and each chunk is encoded
    again with a graph, to backpropagate these gradients to the parameters. The embeddings must not depend on chance or
    on other items of the batch: no dropout, and batch norm in evaluation mode. Processes exchange gradients once, with
    the last chunk.

    Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021.

    Args:
        accelerator (`Accelerator`): The accelerator that prepared the model.
        model (`torch.nn.Module`): The prepared model.
        encode (`Callable`): Returns `(audio_embeds, image_embeds)` of a slice of this process's segments, with one
            call of `model`.
        loss_function (`Callable`): Returns the loss of all `(audio_embeds, image_embeds, *scales)`.
        scales (`Sequence[torch.Tensor]`, each of shape `()`): Scale of the similarities, and their bias if the encoder
            has one. They also get gradients.
        num_segments (`int`): Number of segments of this process.
        chunk_size (`int`): Number of segments per chunk.

    Returns:
        `torch.Tensor`: the loss, detached. Gradients are added to the parameters' `grad`.
    """
    parts = [slice(start, start + chunk_size) for start in range(0, num_segments, chunk_size)]
    with torch.no_grad():
        embeds = [torch.cat(chunks) for chunks in zip(*(encode(part) for part in parts))]
    leaves = [tensor.detach().requires_grad_() for tensor in (*embeds, *scales)]
    loss = loss_function(*leaves)
    audio_gradient, image_gradient, *scale_gradients = torch.autograd.grad(loss, leaves)
    gradients = (audio_gradient, image_gradient)
    for part in parts:
        is_last = part is parts[-1]
        with nullcontext() if is_last else accelerator.no_sync(model):
            chunk = encode(part)
            # By the chain rule, the surrogate has the same gradient with respect to the parameters as the loss.
            surrogate = sum((tensor * gradient[part]).sum() for tensor, gradient in zip(chunk, gradients))
            if is_last:
                surrogate = surrogate + sum(scale * gradient for scale, gradient in zip(scales, scale_gradients))
            accelerator.backward(surrogate)
    return loss.detach()


class UnscaledSpectrogram(AudioCLIPSpectrogram):
    """AudioCLIP's spectrogram for training in chunks, which scales its gradients only in `scale_gradients`."""

    def kernel(self, dtype: torch.dtype) -> torch.Tensor:
        """As in the parent class, but without scaling of the gradients in training mode."""
        if not self.training:
            return super().kernel(dtype)
        m, fb, fc = (parameter.to(dtype) for parameter in (self.m, self.fb, self.fc))
        return fbsp_kernel(m, fb, fc, self.config.n_fft, self.config.normalized)

    @torch.no_grad()
    def scale_gradients(self) -> None:
        """Divides each parameter's gradient by its largest absolute value; call it once per step, after all chunks."""
        for parameter in (self.m, self.fb, self.fc):
            if parameter.grad is not None:
                parameter.grad /= parameter.grad.abs().max() + FBSP_EPS


def use_unscaled_spectrogram(model: torch.nn.Module) -> UnscaledSpectrogram | None:
    """Replaces AudioCLIP's spectrogram in a model by an `UnscaledSpectrogram` with the same parameters.

    Returns:
        `UnscaledSpectrogram`, *optional*: the new one; `None` if the model has no such spectrogram.
    """
    for module in list(model.modules()):
        before = getattr(module, "fbsp", None)
        if isinstance(before, AudioCLIPSpectrogram):
            after = UnscaledSpectrogram(before.config)
            for name in ("window", "m", "fb", "fc"):
                setattr(after, name, getattr(before, name))
            module.fbsp = after.train(before.training)
            return after
    return None


class SharedBatchNorm2d(RecomputableBatchNorm2d):
    """Batch norm with the statistics of all processes, on CPU and GPU (`SyncBatchNorm` needs a GPU).

    Its gradients are correct for a loss that each process computes on the whole batch, see `gather_with_gradient`.
    """

    # Always tracked here, with a fixed momentum; in torch's own class each may be `None`.
    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor
    momentum: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normalizes `(B, C, h, w)`; processes may have different numbers of items."""
        if not self.training:
            return super().forward(hidden_states)
        values = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        sizes = values.new_full((1, 1), values.numel() // self.num_features)
        totals = gather_with_gradient(torch.cat([values.sum(dim=(0, 2, 3))[None], sizes], dim=1)).sum(dim=0)
        mean, size = totals[:-1] / totals[-1], totals[-1].detach()
        # Two passes: the difference of mean square and squared mean would lose precision in float32.
        centred = values - mean[:, None, None]
        variance = gather_with_gradient(centred.square().sum(dim=(0, 2, 3))[None]).sum(dim=0) / size  # (C,)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_((variance * size / (size - 1)).to(self.running_var.dtype), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(hidden_states.dtype)


def use_shared_batch_norm(model: torch.nn.Module) -> None:
    """Replaces each `BatchNorm2d` of a model by a `SharedBatchNorm2d` with the same parameters and statistics."""
    for parent in list(model.modules()):
        for name, before in list(parent.named_children()):
            if isinstance(before, torch.nn.BatchNorm2d):
                after = SharedBatchNorm2d(before.num_features, eps=before.eps, momentum=before.momentum)
                for tensor in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                    setattr(after, tensor, getattr(before, tensor))
                setattr(parent, name, after.train(before.training))
