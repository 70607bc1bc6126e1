"""Stage 1's loss: InfoNCE between the sound and the picture of the same event segment (eq. 1), both ways.

N pairs (over all processes), M unpaired segments that only serve as negatives, D embedding width.
"""

from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F

FalseNegativeMask = Literal["none", "video", "class"]
FALSE_NEGATIVE_MASKS: tuple[FalseNegativeMask, ...] = ("none", "video", "class")


class _GatherWithGradient(torch.autograd.Function):
    """Concatenate every process's tensor; the gradients of all processes' losses add up at its owner."""

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
    """Concatenate a tensor over all processes along its first dimension, differentiably.

    With the same loss computed in every process on the result, and gradients averaged over processes as DDP does, the
    parameters get exactly the gradient of one process with the whole batch, however it is divided.

    Args:
        tensor (`torch.Tensor` of shape `(batch_size, ...)`): This process's part; each may bring another number of
            rows, also none.

    Returns:
        `torch.Tensor` of shape `(sum of all batch sizes, ...)`: in the order of the ranks.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return tensor
    sizes = _gather(torch.tensor([len(tensor)], device=tensor.device), [1] * dist.get_world_size()).tolist()
    return _GatherWithGradient.apply(tensor, sizes) if tensor.is_floating_point() else _gather(tensor, sizes)


def gather_segments(tensor: torch.Tensor, num_pairs: int) -> torch.Tensor:
    """Concatenate over all processes as `gather_with_gradient` does: first every pair, then every unpaired segment.

    Args:
        tensor (`torch.Tensor` of shape `(num_segments, ...)`): Of this process's segments.
        num_pairs (`int`): How many of these are pairs; they come first.
    """
    return torch.cat([gather_with_gradient(tensor[:num_pairs]), gather_with_gradient(tensor[num_pairs:])])


def false_negatives(
    class_ids: torch.Tensor, video_ids: torch.Tensor, mask: FalseNegativeMask, num_pairs: int | None = None
) -> torch.Tensor:
    """Mark the pairs of segments that must not be told apart, the pairs of a segment with itself excepted.

    Args:
        class_ids (`torch.Tensor` of shape `(num_segments,)`): Event class of each segment's video.
        video_ids (`torch.Tensor` of shape `(num_segments,)`): Which video each segment comes from.
        mask (`str`): `"none"` marks nothing, `"video"` segments of one video, `"class"` also those of one class.
        num_pairs (`int`, *optional*): Rows to return: the first so many segments; all when not given. The segments
            after them (background) match nothing, so they are negatives of every pair, also of their own video's.

    Returns:
        `torch.BoolTensor` of shape `(num_pairs, num_segments)`.

    Raises:
        ValueError: for another `mask`.
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
    """InfoNCE both ways: each sound must find its picture and each picture its sound, `L_A + L_I`.

    Args:
        audio_embeds (`torch.Tensor` of shape `(num_segments, hidden_size)`): Sound of each segment, any length.
        image_embeds (`torch.Tensor` of shape `(num_segments, hidden_size)`): Picture of each segment, any length.
        logit_scale (`torch.Tensor` or `float`): Factor of the cosine similarities (1 / temperature), already positive.
        class_ids (`torch.Tensor` of shape `(num_segments,)`): Event class of each segment's video.
        video_ids (`torch.Tensor` of shape `(num_segments,)`): Which video each segment comes from.
        mask (`str`): Which off-diagonal pairs are no negatives, see `false_negatives`.
        num_pairs (`int`, *optional*): The first so many segments are positive pairs; the rest (background segments)
            are only negatives of the others. All are pairs when not given.

    Returns:
        `torch.Tensor`: scalar, the mean over the pairs of both cross entropies, summed.

    Raises:
        ValueError: where the first dimensions differ or no segment is a pair.
    """
    sizes = [len(tensor) for tensor in (audio_embeds, image_embeds, class_ids, video_ids)]
    num_pairs = sizes[0] if num_pairs is None else num_pairs
    if len(set(sizes)) > 1 or not 0 < num_pairs <= sizes[0]:
        raise ValueError(
            f"Got {sizes[0]} sounds, {sizes[1]} pictures, {sizes[2]} class ids and {sizes[3]} video ids with "
            f"num_pairs={num_pairs}: all must count the same segments, of which at least one is a pair."
        )
    audio_embeds, image_embeds = F.normalize(audio_embeds.float(), dim=-1), F.normalize(image_embeds.float(), dim=-1)
    ignored = false_negatives(class_ids, video_ids, mask, num_pairs)  # (N, N + M)
    targets = torch.arange(num_pairs, device=audio_embeds.device)
    losses = []
    for anchors, others in ((audio_embeds, image_embeds), (image_embeds, audio_embeds)):
        logits = logit_scale * anchors[:num_pairs] @ others.T  # (N, N + M)
        losses.append(F.cross_entropy(logits.masked_fill(ignored, -torch.inf), targets))
    return losses[0] + losses[1]


def _gather(tensor: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    if max(sizes) == 0:
        return tensor.clone()
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])  # collectives want equal shapes
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes)])
