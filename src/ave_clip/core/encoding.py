"""Encoding of batches of segments: runs the towers on real frames and audio only, without padding.

Shapes: B batch, T segments, K frames per segment, D feature width.
"""

import math
from collections.abc import Callable

import torch

# Frames or waveforms per tower call in inference. Larger chunks are slower per item on CPUs (memory bound); GPUs need
# larger ones, limited by the bytes of the input: 222 pictures of 224 x 224 pixels in float32.
CPU_CHUNK_SIZE = 32
MAX_CHUNK_SIZE, MAX_CHUNK_BYTES = 256, 2**27


def chunk_size(items: torch.Tensor) -> int:
    """Returns how many items `(number, ...)` a tower encodes at once on their device."""
    if items.device.type == "cpu":
        return CPU_CHUNK_SIZE
    return max(1, min(MAX_CHUNK_SIZE, MAX_CHUNK_BYTES // (4 * max(1, items.shape[1:].numel()))))


def encode_in_chunks(encode: Callable[[torch.Tensor], torch.Tensor], items: torch.Tensor) -> torch.Tensor:
    """Encodes many frames or waveforms, a limited number at a time if no gradient is needed.

    Args:
        encode (`Callable`): A tower: maps `(number, ...)` to `(number, ...)`.
        items (`torch.Tensor` of shape `(number, ...)`): May be empty.
    """
    if len(items) == 0:  # run blank items to get the shape; two, as oneDNN uses another layout for one
        return encode(items.new_zeros(2, *items.shape[1:]))[:0]
    size = chunk_size(items)
    if torch.is_grad_enabled() or len(items) <= size:
        return encode(items)
    chunks = items.tensor_split(math.ceil(len(items) / size))  # of about equal size, so that none has one item
    return torch.cat([encode(chunk) for chunk in chunks])


def real_items(
    pixel_values: torch.Tensor, frame_mask: torch.Tensor | None, segment_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns masks of the real frames and segments; frames in padded segments are not real.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, num_segments, num_frames, ...)`): Frames.
        frame_mask (`torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)`, *optional*): All by default.
        segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*): All by default.

    Returns:
        Two `torch.BoolTensor`s: frames `(batch_size, num_segments, num_frames)` and segments `(batch_size,
        num_segments)`.
    """
    segments = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
    if segment_mask is not None:
        segments = segment_mask.to(segments.device, torch.bool)
    frames = segments.unsqueeze(-1).expand(pixel_values.shape[:3])
    if frame_mask is not None:
        frames = frames & frame_mask.to(segments.device, torch.bool)
    return frames, segments


def encode_segments(
    encode_image: Callable[[torch.Tensor], torch.Tensor],
    encode_audio: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    input_values: torch.Tensor,
    frame_mask: torch.Tensor | None = None,
    segment_mask: torch.Tensor | None = None,
    frame_sources: torch.Tensor | None = None,
    prepare_pixels: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encodes the real frames and the audio of the real segments of a batch.

    Args:
        encode_image (`Callable`): The image tower: maps `(number, 3, height, width)` to `(number, ...)`.
        encode_audio (`Callable`): The audio tower: maps `(number, num_samples)` to `(number, width)`.
        pixel_values, input_values, frame_mask, segment_mask, frame_sources, prepare_pixels:
            See [`AVEClipForLocalization.encode`].

    Returns:
        `image_features` `(batch_size, num_segments, ...)` and `audio_features` `(batch_size, num_segments, width)`.
    """
    frames, segments = real_items(pixel_values, frame_mask, segment_mask)
    image_features = encode_frames(encode_image, pixel_values, frames, frame_sources, prepare_pixels)
    audio_features = place_segments(encode_in_chunks(encode_audio, input_values[segments]), segments)
    return image_features, audio_features


def encode_frames(
    encode: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    frame_mask: torch.Tensor,
    frame_sources: torch.Tensor | None = None,
    prepare_pixels: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Encodes the real frames of each segment and averages them (sec. 3.3).

    Args:
        encode (`Callable`): A tower: maps `(number, 3, height, width)` to `(number, ...)`.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_segments, num_frames, 3, height, width)`): Frames.
        frame_mask (`torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)`): Which frames are real.
        frame_sources (`torch.LongTensor`, like `frame_mask`, *optional*): See [`AVEClipForLocalization.encode`].
        prepare_pixels (`Callable`, *optional*): As in that method.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_segments, ...)`: zero where a segment has no frame.
    """

    def prepare_and_encode(frames: torch.Tensor) -> torch.Tensor:
        return encode(frames if prepare_pixels is None else prepare_pixels(frames))

    if frame_sources is None:
        return mean_over_frames(encode_in_chunks(prepare_and_encode, pixel_values[frame_mask]), frame_mask)
    encoded, positions = frame_sources.to(frame_mask.device)[frame_mask].unique(return_inverse=True)
    embeds = encode_in_chunks(prepare_and_encode, pixel_values.flatten(0, 2)[encoded])
    return mean_over_frames(embeds[positions], frame_mask)


def mean_over_frames(embeds: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    """Averages the real frames of each segment (sec. 3.3).

    Args:
        embeds (`torch.Tensor` of shape `(number of True in frame_mask, ...)`): One entry per real frame, in order.
        frame_mask (`torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)`): Which frames are real.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_segments, ...)`: zero where a segment has no frame.
    """
    segment_of_frame = frame_mask.flatten(0, 1).nonzero()[:, 0]  # (number of real frames,)
    counts = frame_mask.flatten(0, 1).sum(dim=-1).clamp(min=1).to(embeds.dtype)  # (B * T,)
    totals = embeds.new_zeros(counts.shape[0], *embeds.shape[1:]).index_add(0, segment_of_frame, embeds)
    means = totals / counts.view(-1, *[1] * (embeds.dim() - 1))
    return means.unflatten(0, frame_mask.shape[:2])


def zero_padding(features: torch.Tensor, segment_mask: torch.Tensor) -> torch.Tensor:
    """Replaces values at padding by zero, so that they reach neither a mean nor the gradients.

    Args:
        features (`torch.Tensor` of shape `(batch_size, num_segments, ...)`): Features of segments.
        segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`): `False` marks padding.
    """
    padding = ~segment_mask.bool().to(features.device)
    return features.masked_fill(padding.view(*padding.shape, *[1] * (features.dim() - 2)), 0)


def place_segments(embeds: torch.Tensor, segment_mask: torch.Tensor) -> torch.Tensor:
    """Puts the vectors `(number of True, D)` of the real segments in their positions: `(B, T, D)`, zero at padding."""
    features = embeds.new_zeros(*segment_mask.shape, embeds.shape[-1])
    return features.masked_scatter(segment_mask.unsqueeze(-1), embeds)


__all__ = [
    "chunk_size",
    "encode_frames",
    "encode_in_chunks",
    "encode_segments",
    "mean_over_frames",
    "place_segments",
    "real_items",
    "zero_padding",
]
