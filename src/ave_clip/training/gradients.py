"""Gradients of a contrastive batch that is computed in parts, over chunks that fit the memory and over processes.

They equal those of the whole batch in one pass. Two things stand in the way: each embedding's gradient depends on all
others (`backward_in_chunks`), and AudioCLIP's spectrogram scales its gradients by their largest value, which for a sum
of parts is not the sum of the scaled parts (`UnscaledSpectrogram`).
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from accelerate import Accelerator

from ..modeling_audioclip import AudioCLIPModel
from ..modeling_esresnext import FBSP_EPS, AudioCLIPSpectrogram, fbsp_kernel

Encode = Callable[[slice], tuple[torch.Tensor, torch.Tensor]]
ContrastiveLoss = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def backward_in_chunks(
    accelerator: Accelerator,
    model: torch.nn.Module,
    encode: Encode,
    loss_function: ContrastiveLoss,
    logit_scale: torch.Tensor,
    num_segments: int,
    chunk_size: int,
) -> torch.Tensor:
    """Gradient caching: back-propagate the loss over a large batch with the memory of a small one.

    All chunks are encoded without a graph, the loss gives a gradient for each embedding, and each chunk is encoded
    again, with a graph, to carry these gradients into the parameters. Needs an encoder whose embeddings do not depend
    on the other items of the batch or on chance: no dropout, and BatchNorm in eval mode. Processes exchange gradients
    once, with the last chunk.

    Source: Gao et al., Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021.

    Args:
        accelerator (`Accelerator`): That prepared the model.
        model (`torch.nn.Module`): The prepared model.
        encode (`Callable`): Gives the `(audio_embeds, image_embeds)` of a slice of this process's segments, by one
            call of `model`.
        loss_function (`Callable`): Gives the loss of all `(audio_embeds, image_embeds)` and `logit_scale`.
        logit_scale (`torch.Tensor` of shape `()`): Factor of the similarities; the gradient goes through it, too.
        num_segments (`int`): Segments of this process.
        chunk_size (`int`): Segments to encode at a time.

    Returns:
        `torch.Tensor`: the loss, detached. Gradients are added to the parameters' `grad`.
    """
    parts = [slice(start, start + chunk_size) for start in range(0, num_segments, chunk_size)]
    with torch.no_grad():
        embeds = [torch.cat(chunks) for chunks in zip(*(encode(part) for part in parts))]
    leaves = [tensor.detach().requires_grad_() for tensor in (*embeds, logit_scale)]
    loss = loss_function(*leaves)
    *gradients, scale_gradient = torch.autograd.grad(loss, leaves)
    for part in parts:
        is_last = part is parts[-1]
        with nullcontext() if is_last else accelerator.no_sync(model):
            chunk = encode(part)
            # Its gradient is that of the loss, by the chain rule.
            surrogate = sum((tensor * gradient[part]).sum() for tensor, gradient in zip(chunk, gradients))
            if is_last:
                surrogate = surrogate + logit_scale * scale_gradient
            accelerator.backward(surrogate)
    return loss.detach()


class UnscaledSpectrogram(AudioCLIPSpectrogram):
    """AudioCLIP's spectrogram for training in parts: its gradients are plain until `scale_gradients` is called."""

    def kernel(self, dtype: torch.dtype) -> torch.Tensor:
        """As in the parent class, but without the scaling of gradients while training."""
        if not self.training:
            return super().kernel(dtype)
        parameters = (parameter.to(dtype) for parameter in (self.m, self.fb, self.fc))
        return fbsp_kernel(*parameters, self.config.n_fft, self.config.normalized)

    @torch.no_grad()
    def scale_gradients(self) -> None:
        """Divide each parameter's gradient by its largest absolute value; once per step, when it is complete."""
        for parameter in (self.m, self.fb, self.fc):
            if parameter.grad is not None:
                parameter.grad /= parameter.grad.abs().max() + FBSP_EPS


def use_unscaled_spectrogram(model: AudioCLIPModel) -> UnscaledSpectrogram:
    """Put an `UnscaledSpectrogram` with the same parameters in the place of a model's spectrogram."""
    before = model.audio_model.fbsp
    after = UnscaledSpectrogram(before.config)
    for name in ("window", "m", "fb", "fc"):
        setattr(after, name, getattr(before, name))
    model.audio_model.fbsp = after.train(before.training)
    return after
