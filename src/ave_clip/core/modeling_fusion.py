"""Multi-window temporal fusion of AVE-CLIP (sec. 3.4, eq. 4-12): attention over time and features in blocks.

Shapes: B batch, T segments, d hidden size, N windows, c blocks per window, m segments per block.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_ave_clip import AVEClipConfig

# Size of the maps computed together on CPUs: 4 to 16 maps of 256 x 256 float32 values (1 to 4 MB) are equally fast,
# fewer or more are slower.
ELEMENTS_AT_ONCE = 8 * 256 * 256
HEAD_MULTIPLE = 8  # fused attention kernels on GPUs need head sizes that are multiples of this
# A window longer than any video: its only block contains all segments.
WHOLE_VIDEO = 2**30


class BlockLayout:
    """Division of `num_segments` segments into the blocks of one window, for a whole batch at once.

    There are floor(T / window) blocks, and the last one includes the remainder: window 3 over 10 segments gives blocks
    of 3, 3 and 4. T is the length of each row, so padding a row does not change its blocks. One indexing operation
    cuts or merges all blocks (a reshape if they have the same length).
    """

    def __init__(self, num_segments: int, window: int, lengths: torch.Tensor | None, device: torch.device) -> None:
        # `sym_max` instead of `max`, and no comparison during export: otherwise torch would fix the exported graph to
        # the number of segments of its example.
        self.num_blocks: Any = torch.sym_max(1, num_segments // window)  # `int`, or `torch.SymInt` during export
        # The last block is shorter than two windows: a remainder of a whole window would be a block of its own.
        remainder_size = num_segments - window * (self.num_blocks - 1)
        self.block_size: Any = remainder_size if lengths is None else torch.sym_min(2 * window - 1, num_segments)
        is_known = lengths is None and not torch.compiler.is_exporting()
        self.is_regular = is_known and self.num_blocks * self.block_size == num_segments
        row_lengths = torch.full((1,), num_segments, device=device) if lengths is None else lengths.to(device)
        row_blocks = (row_lengths // window).clamp(min=1).unsqueeze(-1)  # (B or 1, 1)
        position = torch.arange(num_segments, device=device)
        self.block_of = torch.minimum(position // window, row_blocks - 1)  # (B or 1, T)
        self.offset_of = position - self.block_of * window
        self.is_real = position < row_lengths.unsqueeze(-1)
        # Slots are the positions within blocks, all padded to the longest block. The last block of a row ends with the
        # row; blocks after it, which only longer rows have, are empty.
        number = torch.arange(self.num_blocks, device=device)
        start = number * window  # (c,)
        end = torch.where(number < row_blocks, row_lengths.unsqueeze(-1), start)  # (B or 1, c)
        end = torch.where(number < row_blocks - 1, start + window, end)
        slots = start.unsqueeze(-1) + torch.arange(self.block_size, device=device)  # (c, m)
        self.slot_is_real = slots < end.unsqueeze(-1)  # (B or 1, c, m)
        self.slots = slots.clamp(max=num_segments - 1).flatten()  # (c * m,)
        self.sizes = self.slot_is_real.sum(dim=-1).clamp(min=1)  # (B or 1, c)

    def split(self, features: torch.Tensor) -> torch.Tensor:
        """(B, T, d) -> (B, c, m, d); slots after the end of a block contain other segments and must be masked."""
        if not self.is_regular:
            features = features[:, self.slots]
        return features.reshape(features.shape[0], self.num_blocks, self.block_size, -1)

    def merge(self, blocks: torch.Tensor) -> torch.Tensor:
        """(B, c, m, d) -> (B, T, d): the inverse of `split` (eq. 11)."""
        flat = blocks.flatten(1, 2)
        if self.is_regular:
            return flat
        index = self.block_of * self.block_size + self.offset_of  # (B or 1, T)
        return flat.gather(1, index.unsqueeze(-1).expand(flat.shape[0], -1, flat.shape[-1]))

    def block_diagonal(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, c, m, m) -> (B, T, T): the maps of all blocks in one, zero between blocks and at padding."""
        rows = self.merge(maps)  # (B, T, m)
        columns = self.offset_of.unsqueeze(1).expand(rows.shape[0], rows.shape[1], -1)  # (B, T, T)
        inside = (self.block_of.unsqueeze(1) == self.block_of.unsqueeze(2)) & self.is_real.unsqueeze(1)
        inside = inside & self.is_real.unsqueeze(2)
        return rows.gather(2, columns.clamp(max=self.block_size - 1)) * inside


def block_layout(num_segments: int, window: int, lengths: torch.Tensor | None, device: torch.device) -> BlockLayout:
    """Returns the layout of one window; without padding, the same one for the same number of segments."""
    # New tensors are of another type inside a mode such as `FakeTensorMode`, and must not be used outside of it.
    if lengths is not None or _is_traced() or type(torch.empty(0)) is not torch.Tensor:
        return BlockLayout(num_segments, window, lengths, device)
    return _layout_without_padding(num_segments, window, device)


@lru_cache(maxsize=64)
def _layout_without_padding(num_segments: int, window: int, device: torch.device) -> BlockLayout:
    with torch.inference_mode(False):  # tensors made in inference mode could not be used in a later training step
        return BlockLayout(num_segments, window, None, device)


def _is_traced() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.onnx.is_in_onnx_export()


class AVEClipFusionProjections(nn.Module):
    """Query, key and value of a fusion: two linear layers each, around tanh, tanh and ReLU (eq. 5-7)."""

    def __init__(self, input_size: int, hidden_size: int, layer_norm_eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(input_size, eps=layer_norm_eps)
        self.query = nn.Sequential(nn.Linear(input_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, hidden_size))
        self.key = nn.Sequential(nn.Linear(input_size, hidden_size), nn.Tanh(), nn.Linear(hidden_size, hidden_size))
        self.value = nn.Sequential(nn.Linear(input_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        normed = self.norm(features)
        return self.query(normed), self.key(normed), self.value(normed)


def multi_domain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: BlockLayout,
    domains: str,
    need_feature_maps: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Computes temporal and feature attention in every block of one window (eq. 8-10).

    Args:
        query, key, value (`torch.Tensor` of shape `(batch_size, num_segments, d)`): Projected features.
        layout (`BlockLayout`): The window's blocks.
        domains (`str`): `"both"`, `"temporal"` or `"feature"`.
        need_feature_maps (`bool`): Whether to return the feature maps, which costs time and memory.

    Returns:
        The attended features `(batch_size, num_segments, d)`, the temporal maps `(batch_size, blocks, m, m)` (rows
        sum to 1) and the feature maps `(batch_size, blocks, d, d)` (columns sum to 1) if requested;
        `None` for an unused domain.
    """
    query, key, attended = layout.split(query), layout.split(key), layout.split(value)  # (B, c, m, d)
    temporal = feature = None
    if domains != "temporal":
        real_key = key if layout.is_regular else key * layout.slot_is_real.unsqueeze(-1)
        scaled_key = real_key * layout.sizes.to(key.dtype).rsqrt()[..., None, None]
        # The softmax runs over the rows of a map: each output feature is a weighted mean of the value's features.
        if need_feature_maps:
            feature = feature_map(query, scaled_key)  # (B, c, d, d)
            attended = torch.matmul(attended, feature)
        else:
            attended = feature_attention(query, scaled_key, attended)
    if domains != "feature":
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.shape[-1])  # (B, c, m, m)
        if not layout.is_regular:
            scores = scores.masked_fill(~layout.slot_is_real.unsqueeze(-2), torch.finfo(scores.dtype).min)
        temporal = scores.softmax(dim=-1)
        attended = torch.matmul(temporal, attended)
    return layout.merge(attended), temporal, feature


class AVEClipMultiWindowTemporalFusion(GradientCheckpointingLayer):
    """MWTF: attention within the blocks of each window; the outputs of the windows are concatenated (eq. 4-12).

    With shared weights the projections are computed once for all windows, since each uses a single segment only.

    With `config.gated_branches` the windows are instead added to a plain path, each multiplied by gates that start at
    zero (as ReZero, Bachlechner et al. 2021, per feature). The plain path is the input or, where that is wider than d,
    `relu(W x)` of it.
    """

    def __init__(self, config: AVEClipConfig, input_size: int, window_sizes: Sequence[int]) -> None:
        super().__init__()
        self.window_sizes = tuple(window_sizes)
        self.attention_domains = config.attention_domains
        copies = 1 if config.share_window_weights else len(self.window_sizes)
        self.projections = nn.ModuleList(
            AVEClipFusionProjections(input_size, config.hidden_size, config.layer_norm_eps) for _ in range(copies)
        )
        self.output_size = config.hidden_size * (1 if config.gated_branches else len(self.window_sizes))
        self.gates = self.plain_path = None
        skips = copies if config.fusion_residual else 0
        if config.gated_branches:
            skips = 0
            self.gates = nn.Parameter(torch.zeros(len(self.window_sizes), config.hidden_size))
            if input_size != config.hidden_size:
                self.plain_path = nn.Sequential(nn.Linear(input_size, config.hidden_size), nn.ReLU())
        self.residuals = nn.ModuleList(nn.Linear(input_size, config.hidden_size, bias=False) for _ in range(skips))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor | None = None, output_attentions: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        """Applies the attention of every window.

        Args:
            features (`torch.Tensor` of shape `(batch_size, num_segments, input_size)`): One vector per segment.
            lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Number of real segments per row;
                all by default.
            output_attentions (`bool`): Whether to return the maps.

        Returns:
            `(batch_size, num_segments, num_windows * d)`, or `(batch_size, num_segments, d)` with gates; then the
            temporal maps `(batch_size, T, T)` and the feature
            maps `(batch_size, blocks, d, d)`, one per window; `None` if not requested or not used.
        """
        projected = [projection(features) for projection in self.projections]
        skipped = [residual(features) for residual in self.residuals]
        outputs, temporal_maps, feature_maps = [], [], []
        for number, window in enumerate(self.window_sizes):
            copy = number % len(projected)
            layout = block_layout(features.shape[1], window, lengths, features.device)
            query, key, value = projected[copy]
            fused, temporal, feature = multi_domain_attention(
                query, key, value, layout, self.attention_domains, output_attentions
            )
            outputs.append(fused + skipped[copy] if skipped else fused)
            if output_attentions and temporal is not None:
                temporal_maps.append(layout.block_diagonal(temporal))
            if feature is not None:
                feature_maps.append(feature)
        if self.gates is None:
            fused = torch.cat(outputs, dim=-1)  # (B, T, N * d)
        else:
            fused = features if self.plain_path is None else self.plain_path(features)
            for gate, output in zip(self.gates, outputs):
                fused = fused + gate * output  # (B, T, d)
        return self.dropout(fused), tuple(temporal_maps) or None, tuple(feature_maps) or None


# Feature attention: a d x d softmax for every block, without storing the d x d maps.
#
# The scores have low rank (m segments, 2 to 10), but their exponentials do not, so all d x d values must be computed.
# Only memory traffic can be saved. Measured on the shapes of the paper (d = 256, batch 64, forward and backward):
#
# - all maps at once, stored for the gradient: baseline; 11 blocks per video take 2.9 MB of maps in each direction;
# - a few maps at a time, recomputed for the gradient: 4 times as fast for many blocks of 2 segments, 1.3 to 1.5 times
#   as fast for one block of 10, and no map is stored. Used on CPUs;
# - torch's fused attention over d positions with heads of m values, which is the same computation transposed: on CPUs
#   1.1 to 2.7 times as fast as the baseline with heads padded to 16, slower without padding. Used on GPUs, where the
#   fused kernels do not store the maps either, with heads padded to a multiple of 8 (not measured).


def feature_map(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Returns the maps `(B, c, d, d)` of queries and scaled keys `(B, c, m, d)`; columns sum to 1 (eq. 9)."""
    return torch.matmul(key.transpose(-1, -2), query).softmax(dim=-2)


def feature_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Computes `value @ feature_map(query, key)` without storing the maps.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch_size, blocks, m, d)`): The keys are already scaled, and zero
            after the end of a block.

    Returns:
        `torch.Tensor` of shape `(batch_size, blocks, m, d)`.
    """
    if query.device.type == "cpu":
        if _is_traced() or torch.is_autocast_enabled("cpu"):
            return torch.matmul(value, feature_map(query, key))
        flat = (tensor.flatten(0, 1) for tensor in (query, key, value))
        return _FewMapsAtOnce.apply(*flat).view_as(value)
    return _transposed_attention(query, key, value)


def _transposed_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    # d positions attend to each other, with heads of m values.
    padding = -query.shape[-2] % HEAD_MULTIPLE
    num_values = query.shape[-2]
    query, key, value = (nn.functional.pad(part.transpose(-1, -2), (0, padding)) for part in (query, key, value))
    attended = nn.functional.scaled_dot_product_attention(query, key, value, scale=1.0)  # (B, c, d, m + padding)
    return attended[..., :num_values].transpose(-1, -2)


class _FewMapsAtOnce(torch.autograd.Function):
    """Feature attention over blocks `(n, m, d)`; the backward pass recomputes the maps."""

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
            above = torch.bmm(gradient[part].transpose(1, 2), value[part])  # gradient of the maps
            # Gradient of a softmax: weights * (above - their weighted mean).
            mean = (above * weights).sum(dim=-1, keepdim=True)
            scores = above.sub_(mean).mul_(weights)
            torch.bmm(key[part], scores.transpose(1, 2), out=gradients[0][part])
            torch.bmm(query[part], scores, out=gradients[1][part])
        return gradients


def _map_of(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Returns transposed maps `(n, d, d)`, so that the softmax runs over contiguous memory; rows sum to 1."""
    return torch.bmm(query.transpose(1, 2), key).softmax(dim=-1)


def _parts(blocks: torch.Tensor) -> list[slice]:
    size = max(1, ELEMENTS_AT_ONCE // blocks.shape[-1] ** 2)
    return [slice(start, start + size) for start in range(0, len(blocks), size)]


__all__ = ["AVEClipMultiWindowTemporalFusion", "BlockLayout", "multi_domain_attention"]
