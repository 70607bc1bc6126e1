"""Feature attention of the fusion: a d x d softmax for every block, without keeping the d x d maps.

The scores are of low rank (m segments, 2 to 10), their exponentials are not: all d x d of them have to be computed.
What can be saved is memory traffic. Measured on the shapes of the paper (d = 256, batch 64, forward and backward):

- all maps at once, kept for the gradient (the plain form): baseline; 11 blocks a video cost 2.9 MB of maps each way;
- a few maps at a time, computed again for the gradient: 4 times as fast over many blocks of 2 segments, 1.3 to 1.5
  times as fast over one block of 10, and nothing is kept. Used on CPUs;
- attention over d positions with heads of m numbers, which is the same thing transposed, by torch's fused attention:
  on CPUs 1.1 to 2.7 times as fast as the plain form with heads padded to 16, slower than it unpadded. Used on GPUs,
  whose fused kernels never write the maps either, with heads padded to a multiple of 8 (not measured: none was here).

Legend: B batch, c blocks, m segments of a block, d hidden size.
"""

import torch
from torch import nn

# Computed together on CPUs: 4 to 16 maps of 256 x 256 float32 (1 to 4 MB) are equally fast, fewer or more are slower.
ELEMENTS_AT_ONCE = 8 * 256 * 256
HEAD_MULTIPLE = 8


def feature_map(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The maps `(B, c, d, d)` of queries and scaled keys `(B, c, m, d)`; columns sum to 1 (eq. 9)."""
    return torch.matmul(key.transpose(-1, -2), query).softmax(dim=-2)


def feature_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """`value @ feature_map(query, key)` without the maps.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch_size, blocks, m, d)`): The keys are scaled already, and zero
            beyond a block's end.

    Returns:
        `torch.Tensor` of shape `(batch_size, blocks, m, d)`.
    """
    if query.device.type == "cpu":
        if _is_traced() or torch.is_autocast_enabled("cpu"):
            return torch.matmul(value, feature_map(query, key))
        flat = (tensor.flatten(0, 1) for tensor in (query, key, value))
        return _FewMapsAtOnce.apply(*flat).view_as(value)
    return _transposed_attention(query, key, value)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


def _transposed_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    padding = -query.shape[-2] % HEAD_MULTIPLE
    heads = (nn.functional.pad(tensor.transpose(-1, -2), (0, padding)) for tensor in (query, key, value))
    attended = nn.functional.scaled_dot_product_attention(*heads, scale=1.0)  # (B, c, d, m + padding)
    return attended[..., : query.shape[-2]].transpose(-1, -2)


class _FewMapsAtOnce(torch.autograd.Function):
    """Feature attention over blocks `(n, m, d)`; the backward pass computes the maps again."""

    @staticmethod
    def forward(ctx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(query, key, value)
        attended = torch.empty_like(value, memory_format=torch.contiguous_format)
        for part in _parts(query):
            torch.bmm(value[part], _map_of(query[part], key[part]).transpose(1, 2), out=attended[part])
        return attended

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value = ctx.saved_tensors
        gradients = tuple(torch.empty_like(query, memory_format=torch.contiguous_format) for _ in range(3))
        for part in _parts(query):
            weights = _map_of(query[part], key[part])
            torch.bmm(gradient[part], weights, out=gradients[2][part])
            above = torch.bmm(gradient[part].transpose(1, 2), value[part])  # of the maps
            mean = (above * weights).sum(dim=-1, keepdim=True)
            scores = above.sub_(mean).mul_(weights)
            torch.bmm(key[part], scores.transpose(1, 2), out=gradients[0][part])
            torch.bmm(query[part], scores, out=gradients[1][part])
        return gradients


def _map_of(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Transposed maps `(n, d, d)`, rows summing to 1: the softmax runs over neighbours in memory."""
    return torch.bmm(query.transpose(1, 2), key).softmax(dim=-1)


def _parts(blocks: torch.Tensor) -> list[slice]:
    size = max(1, ELEMENTS_AT_ONCE // blocks.shape[-1] ** 2)
    return [slice(start, start + size) for start in range(0, len(blocks), size)]


__all__ = ["feature_attention", "feature_map"]
