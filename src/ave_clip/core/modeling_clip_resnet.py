"""Image tower of AudioCLIP: the ResNet of CLIP's RN50, with an attention pool instead of average pooling.

Shapes: B batch, P positions of the last feature map, H channels of the last feature map, D size of the embeddings.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_audioclip import AudioCLIPVisionConfig
from .modeling_base import AlignedPreTrainedModel, RecomputableBatchNorm2d

FEATURE_TYPES = ("pooled", "dense", "layer4")


@dataclass
class AudioCLIPVisionOutput(ModelOutput):
    """
    Output of [`AudioCLIPVisionModel`]; only what `feature_types` asks for is set.

    Args:
        image_embeds (`torch.Tensor` of shape `(batch_size, projection_dim)`, *optional*):
            "pooled": one embedding per image, not normalized.
        dense_embeds (`torch.Tensor` of shape `(batch_size, num_positions, projection_dim)`, *optional*):
            "dense": one embedding per position of the feature map, row by row.
        last_hidden_state (`torch.Tensor` of shape `(batch_size, hidden_size, grid_size, grid_size)`, *optional*):
            "layer4": the last feature map.
        hidden_states (`tuple[torch.Tensor, ...]`, *optional*):
            With `output_hidden_states=True`: the output of the stem and of each stage.
        attentions (`tuple[torch.Tensor, ...]`, *optional*):
            With `output_attentions=True` and the eager implementation: the weights
            `(batch_size, num_heads, 1, 1 + num_positions)` of the attention pool's single query.
    """

    image_embeds: torch.Tensor | None = None
    dense_embeds: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes attention without a fused kernel, with softmax in at least float32.

    Returns `(B, queries, heads, head_dim)` and the weights.
    """
    scores = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class AudioCLIPVisionBottleneck(GradientCheckpointingLayer):
    """Bottleneck block that reduces the map by average pooling instead of a strided convolution."""

    def __init__(self, in_channels: int, planes: int, stride: int, eps: float):
        super().__init__()
        out_channels = planes * 4
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = RecomputableBatchNorm2d(planes, eps=eps)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = RecomputableBatchNorm2d(planes, eps=eps)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, out_channels, 1, bias=False)
        self.bn3 = RecomputableBatchNorm2d(out_channels, eps=eps)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            # "0" and "1" are the names in the released weights; the pool before them has no weights.
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), RecomputableBatchNorm2d(out_channels, eps=eps)
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Maps `(B, in_channels, h, w)` to `(B, 4 * planes, h / stride, w / stride)`."""
        shortcut = hidden_states
        hidden_states = self.relu(self.bn1(self.conv1(hidden_states)))
        hidden_states = self.relu(self.bn2(self.conv2(hidden_states)))
        hidden_states = self.bn3(self.conv3(self.avgpool(hidden_states)))
        if self.downsample is not None:
            shortcut = self.downsample(self.avgpool(shortcut))
        return self.relu(hidden_states + shortcut)


class AudioCLIPVisionStage(nn.Sequential):
    """The blocks of one stage. transformers records hidden states by class, so a stage needs its own."""


class AudioCLIPAttentionPool(nn.Module):
    """Pools the last feature map to one embedding (attention from its mean), or projects each position separately."""

    def __init__(self, config: AudioCLIPVisionConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.positional_embedding = nn.Parameter(torch.empty(config.grid_size**2 + 1, config.hidden_size))
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.projection_dim)

    def forward(
        self, feature_map: torch.Tensor, dense: bool = False, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Embeds the whole map or, with `dense`, each position separately.

        Both use `forward`, because accelerate loads offloaded weights in a hook of `forward`.

        Args:
            feature_map (`torch.Tensor` of shape `(batch_size, hidden_size, height, width)`): The last feature map.
            dense (`bool`): Whether to return one embedding per position.

        Returns:
            `(batch_size, projection_dim)` or, with `dense`, `(batch_size, num_positions, projection_dim)`; and the
            attention weights if the attention implementation returns them.
        """
        if dense:
            tokens = feature_map.flatten(2).transpose(1, 2)  # (B, P, H)
            return self.c_proj(self.v_proj(tokens + self.positional_embedding[1:].to(tokens.dtype))), None
        tokens = feature_map.flatten(2).transpose(1, 2)  # (B, P, H)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)  # (B, 1 + P, H)
        tokens = tokens + self.positional_embedding.to(tokens.dtype)
        query = self._split_heads(self.q_proj(tokens[:, :1]))  # (B, heads, 1, head_dim)
        key = self._split_heads(self.k_proj(tokens))  # (B, heads, 1 + P, head_dim)
        value = self._split_heads(self.v_proj(tokens))
        implementation: Any = self.config._attn_implementation  # transformers' declarations of it disagree
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        kwargs.pop("is_causal", None)
        pooled, weights = attention(self, query, key, value, None, scaling=self.scaling, is_causal=False, **kwargs)
        return self.c_proj(pooled.flatten(1)), weights  # (B, D)

    def _split_heads(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


class AudioCLIPVisionModel(AlignedPreTrainedModel):
    """
    CLIP's modified ResNet with attention pool.

    The parameters have the names of the released `visual.*` weights.

    Args:
        config ([`AudioCLIPVisionConfig`]): Sizes of the network.
    """

    config: AudioCLIPVisionConfig
    config_class = AudioCLIPVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["AudioCLIPVisionBottleneck", "AudioCLIPAttentionPool"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": AudioCLIPVisionStage, "attentions": AudioCLIPAttentionPool}
    _input_embed_layer = "conv1"

    def __init__(self, config: AudioCLIPVisionConfig):
        super().__init__(config)
        width, eps = config.width, config.batch_norm_eps
        self.conv1 = nn.Conv2d(config.num_channels, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2, eps=eps)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2, eps=eps)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width, eps=eps)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = self._make_stage(width, width, 1, config.depths[0], eps)
        self.layer2 = self._make_stage(width * 4, width * 2, 2, config.depths[1], eps)
        self.layer3 = self._make_stage(width * 8, width * 4, 2, config.depths[2], eps)
        self.layer4 = self._make_stage(width * 16, width * 8, 2, config.depths[3], eps)
        self.attnpool = AudioCLIPAttentionPool(config)
        self.post_init()

    @staticmethod
    def _make_stage(in_channels: int, planes: int, stride: int, depth: int, eps: float) -> AudioCLIPVisionStage:
        blocks = [AudioCLIPVisionBottleneck(in_channels, planes, stride, eps)]
        blocks += [AudioCLIPVisionBottleneck(planes * 4, planes, 1, eps) for _ in range(1, depth)]
        return AudioCLIPVisionStage(*blocks)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, AudioCLIPAttentionPool):
            std = self.config.hidden_size**-0.5
            init.normal_(module.positional_embedding, std=std)
            for projection in (module.q_proj, module.k_proj, module.v_proj, module.c_proj):
                init.normal_(projection.weight, std=std)

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        feature_types: Iterable[str] = ("pooled",),
        **kwargs: Unpack[TransformersKwargs],
    ) -> AudioCLIPVisionOutput:
        """
        Embeds images; computes only the features in `feature_types`.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, image_size, image_size)`):
                Images, normalized with CLIP's mean and standard deviation.
            feature_types (`Iterable[str]`): Any of "pooled" (one embedding per image), "dense" (one per position)
                and "layer4" (the last feature map).

        Returns:
            [`AudioCLIPVisionOutput`]

        Raises:
            ValueError: If images are missing or of another size, or a feature type is unknown.
        """
        feature_types = self._check_feature_types(feature_types)
        features = self._compute(self._check_pixel_values(pixel_values), feature_types, **kwargs)
        return AudioCLIPVisionOutput(features.get("pooled"), features.get("dense"), features.get("layer4"))

    def _compute(
        self, pixel_values: torch.Tensor, feature_types: tuple[str, ...], **kwargs: Unpack[TransformersKwargs]
    ) -> dict[str, torch.Tensor]:
        """Computes each of `feature_types` for images `(B, 3, side, side)`."""
        feature_map = self._feature_map(pixel_values.to(self.conv1.weight.dtype))  # (B, H, h, w)
        features = {}
        if "pooled" in feature_types:
            features["pooled"] = self.attnpool(feature_map, **kwargs)[0]  # (B, D)
        if "dense" in feature_types:
            features["dense"] = self.attnpool(feature_map, dense=True)[0]  # (B, P, D)
        if "layer4" in feature_types:
            features["layer4"] = feature_map
        return features

    def _feature_map(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.relu(self.bn1(self.conv1(hidden_states)))
        hidden_states = self.relu(self.bn2(self.conv2(hidden_states)))
        hidden_states = self.avgpool(self.relu(self.bn3(self.conv3(hidden_states))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            hidden_states = stage(hidden_states)
        return hidden_states

    @staticmethod
    def _check_feature_types(feature_types: Iterable[str]) -> tuple[str, ...]:
        feature_types = (feature_types,) if isinstance(feature_types, str) else tuple(feature_types)
        unknown = [name for name in feature_types if name not in FEATURE_TYPES]
        if unknown or not feature_types:
            raise ValueError(f"feature_types must contain some of {FEATURE_TYPES}, got {feature_types}.")
        return feature_types

    def _check_pixel_values(self, pixel_values: torch.Tensor | None) -> torch.Tensor:
        side = self.config.image_size
        expected = (self.config.num_channels, side, side)
        if pixel_values is None:
            raise ValueError("pixel_values is missing: pass images as the processor returns them.")
        if pixel_values.dim() != 4 or tuple(pixel_values.shape[1:]) != expected:
            raise ValueError(
                f"pixel_values must have shape (batch_size, {expected[0]}, {side}, {side}), got "
                f"{tuple(pixel_values.shape)}. Resize and crop the images with the checkpoint's processor."
            )
        return pixel_values


__all__ = ["AudioCLIPVisionModel", "AudioCLIPVisionOutput"]
