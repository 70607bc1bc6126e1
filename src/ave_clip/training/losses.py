"""The losses of stage 1 between audio and image of the same event segment: symmetric InfoNCE (eq. 1), and the pairwise
sigmoid loss for encoders that were trained with one.

N pairs (over all processes), M unpaired segments that are only negatives, D embedding width.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F

FalseNegativeMask = Literal["none", "video", "class"]
FALSE_NEGATIVE_MASKS: tuple[FalseNegativeMask, ...] = ("none", "video", "class")


class _GatherWithGradient(torch.autograd.Function):
    """Concatenates the tensors of all processes; backward gives each process the sum of all gradients of its part."""

    @staticmethod
    def forward(context, tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        context.sizes = sizes
        return _gather(tensor, sizes)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.split(context.sizes)[dist.get_rank()], None


def gather_with_gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenates a tensor over all processes along its first dimension, differentiably.

    If each process computes the same loss on the result, and gradients are averaged over processes as in DDP, the
    parameters get exactly the gradient of one process with the whole batch, for any division of the batch.

    Args:
        tensor (`torch.Tensor` of shape `(batch_size, ...)`): The part of this process; the numbers of rows may differ,
            and may be zero.

    Returns:
        `torch.Tensor` of shape `(sum of all batch sizes, ...)`: in the order of the ranks.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    sizes = _gather(torch.tensor([len(tensor)], device=tensor.device), [1] * dist.get_world_size()).tolist()
    return _GatherWithGradient.apply(tensor, sizes) if tensor.is_floating_point() else _gather(tensor, sizes)


def gather_segments(tensor: torch.Tensor, num_pairs: int) -> torch.Tensor:
    """Concatenates segments over all processes: first all pairs, then all unpaired segments.

    Args:
        tensor (`torch.Tensor` of shape `(num_segments, ...)`): Values for this process's segments, pairs first.
        num_pairs (`int`): Number of pairs.
    """
    return torch.cat([gather_with_gradient(tensor[:num_pairs]), gather_with_gradient(tensor[num_pairs:])])


def false_negatives(
    class_ids: torch.Tensor, video_ids: torch.Tensor, mask: FalseNegativeMask, num_pairs: int | None = None
) -> torch.Tensor:
    """Marks the combinations of segments that must not be used as negatives, except each segment with itself.

    Args:
        class_ids (`torch.Tensor` of shape `(num_segments,)`): Event class of each segment's video.
        video_ids (`torch.Tensor` of shape `(num_segments,)`): Which video each segment comes from.
        mask (`str`): `"none"` marks nothing, `"video"` segments of the same video, `"class"` also of the same class.
        num_pairs (`int`, *optional*): Number of rows to return. Default: all. The segments after them
            (background) are negatives of all pairs, including those of their own video.

    Returns:
        `torch.BoolTensor` of shape `(num_pairs, num_segments)`.

    Raises:
        ValueError: if `mask` is something else.
    """
    if mask not in FALSE_NEGATIVE_MASKS:
        raise ValueError(f"Got false-negative mask {mask!r}: choose one of {', '.join(FALSE_NEGATIVE_MASKS)}.")
    same = torch.zeros(len(video_ids), len(video_ids), dtype=torch.bool, device=video_ids.device)
    if mask != "none":
        same |= video_ids[:, None] == video_ids[None, :]
    if mask == "class":
        same |= class_ids[:, None] == class_ids[None, :]
    if num_pairs is not None:
        same[:, num_pairs:] = False
    return same.fill_diagonal_(False)[:num_pairs]


def audio_image_contrastive_loss(
    audio_embeds: torch.Tensor,
    image_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    class_ids: torch.Tensor,
    video_ids: torch.Tensor,
    mask: FalseNegativeMask = "class",
    num_pairs: int | None = None,
) -> torch.Tensor:
    """Symmetric InfoNCE, `L_A + L_I`: audio to image and image to audio.

    Args:
        audio_embeds (`torch.Tensor` of shape `(num_segments, hidden_size)`): Audio embeddings, not normalized.
        image_embeds (`torch.Tensor` of shape `(num_segments, hidden_size)`): Image embeddings, not normalized.
        logit_scale (`torch.Tensor` or `float`): Factor of the cosine similarities (1 / temperature), positive.
        class_ids (`torch.Tensor` of shape `(num_segments,)`): Event class of each segment's video.
        video_ids (`torch.Tensor` of shape `(num_segments,)`): Which video each segment comes from.
        mask (`str`): Which combinations are not used as negatives, see `false_negatives`.
        num_pairs (`int`, *optional*): Number of positive pairs, which come first; the other segments (background)
            are only negatives. Default: all segments are pairs.

    Returns:
        `torch.Tensor`: scalar, the sum of both cross entropies, each averaged over the pairs.

    Raises:
        ValueError: if the first dimensions differ, or there is no pair.
    """
    num_pairs = _check_pairs(audio_embeds, image_embeds, class_ids, video_ids, num_pairs)
    audio_embeds, image_embeds = F.normalize(audio_embeds.float(), dim=-1), F.normalize(image_embeds.float(), dim=-1)
    ignored = false_negatives(class_ids, video_ids, mask, num_pairs)  # (N, N + M)
    targets = torch.arange(num_pairs, device=audio_embeds.device)
    losses = []
    for anchors, others in ((audio_embeds, image_embeds), (image_embeds, audio_embeds)):
        logits = logit_scale * anchors[:num_pairs] @ others.T  # (N, N + M)
        losses.append(F.cross_entropy(logits.masked_fill(ignored, -torch.inf), targets))
    return losses[0] + losses[1]


def audio_image_sigmoid_loss(
    audio_embeds: torch.Tensor,
    image_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float,
    class_ids: torch.Tensor,
    video_ids: torch.Tensor,
    mask: FalseNegativeMask = "class",
    num_pairs: int | None = None,
) -> torch.Tensor:
    """Pairwise sigmoid loss: each combination of audio and image is judged by itself, as partners or not.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023. In transformers 5.24, the loss of
    `PeAudioVideoModel` has targets of 0 instead of -1, so that negatives have no effect there.

    Args:
        audio_embeds (`torch.Tensor` of shape `(num_segments, hidden_size)`): Audio embeddings, used as they are.
        image_embeds (`torch.Tensor` of shape `(num_segments, hidden_size)`): Image embeddings, used as they are.
        logit_scale (`torch.Tensor` or `float`): Factor of their products.
        logit_bias (`torch.Tensor` or `float`): Added to the scaled products.
        class_ids, video_ids, mask, num_pairs: As in `audio_image_contrastive_loss`.

    Returns:
        `torch.Tensor`: scalar, the sum over all combinations except those of two unpaired segments, divided by the
        number of pairs.

    Raises:
        ValueError: as in `audio_image_contrastive_loss`.
    """
    num_pairs = _check_pairs(audio_embeds, image_embeds, class_ids, video_ids, num_pairs)
    logits = logit_scale * audio_embeds.float() @ image_embeds.float().T + logit_bias  # (N + M, N + M)
    ignored = torch.zeros_like(logits, dtype=torch.bool)
    ignored[:num_pairs] = false_negatives(class_ids, video_ids, mask, num_pairs)
    ignored[num_pairs:, num_pairs:] = True  # two unpaired segments
    targets = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(targets * logits).masked_fill(ignored, 0.0).sum() / num_pairs


def _check_pairs(
    audio_embeds: torch.Tensor,
    image_embeds: torch.Tensor,
    class_ids: torch.Tensor,
    video_ids: torch.Tensor,
    num_pairs: int | None,
) -> int:
    """Checks the numbers of segments; returns the number of pairs."""
    sizes = [len(tensor) for tensor in (audio_embeds, image_embeds, class_ids, video_ids)]
    num_pairs = sizes[0] if num_pairs is None else num_pairs
    if len(set(sizes)) > 1 or not 0 < num_pairs <= sizes[0]:
        raise ValueError(
            f"Got {sizes[0]} audio embeddings, {sizes[1]} image embeddings, {sizes[2]} class ids and {sizes[3]} video "
            f"ids with num_pairs={num_pairs}: wanted equally many of each, and num_pairs from 1 to that number."
        )
    return num_pairs


def _gather(tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    if max(sizes) == 0:
        return tensor.clone()
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])  # all_gather needs equal shapes
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])
