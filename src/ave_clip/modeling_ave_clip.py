"""AVE-CLIP: audio-visual event localization with multi-window temporal fusion (Mahmud & Marculescu, sections 3.3-3.6).

One video goes through `AVEClipForLocalization.forward` as a list of named steps:

    pixel_values, input_values ── encode ──> image_features, audio_features      frames averaged per segment, eq. 2-3
      ── attend ──> one visual vector a segment (AGVA)
      ── BiLSTM each ──> F  ── fusion ──> O                                      eq. 4-12
      ── EGTA ──> O'  ── refiner ──> O_w  ── BiLSTM, W_8 ──> logits              eq. 13-16

Shapes: B batch, T segments, K frames per segment, S samples per segment, P picture locations, D feature width,
d hidden size, C categories with background, N windows, c blocks of a window, m segments of a block.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_ave_clip import AVEClipConfig
from .modeling_clip_resnet import AudioCLIPVisionModel
from .modeling_esresnext import AudioCLIPAudioModel
from .modeling_feature_attention import feature_attention, feature_map
from .modeling_inference import InferenceLinear, InferenceSwitch

IGNORED_LABEL = -100
# Frames or seconds per tower call in inference: larger chunks are slower per item on CPUs (memory bound).
ENCODER_CHUNK_SIZE = 32


@dataclass
class AVEClipLocalizationOutput(ModelOutput):
    """Output of [`AVEClipForLocalization`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            Hybrid loss of eq. 17: `event_loss_weight * event_loss + category_loss_weight * category_loss`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_segments, num_labels)`):
            Class scores before softmax, background last.
        event_logits (`torch.FloatTensor` of shape `(batch_size, num_segments)`, *optional*):
            Event-or-background score of EGTA before its sigmoid; `None` without event attention.
        event_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Binary cross-entropy of `event_logits`; `None` under weak supervision or without event attention.
        category_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Cross-entropy of `logits`.
        visual_attentions (`torch.FloatTensor` of shape `(batch_size, num_segments, num_locations)`, *optional*):
            AGVA weights over the locations of the picture, each segment summing to 1.
        temporal_attentions (`tuple` of `torch.FloatTensor` of shape `(batch_size, num_segments, num_segments)`):
            One map a window, block-diagonal, rows summing to 1 (padded rows: 0). `None` with feature attention only.
        feature_attentions (`tuple` of `torch.FloatTensor` of shape `(batch_size, num_blocks, d, d)`, *optional*):
            One map a window and block, columns summing to 1. `None` with temporal attention only.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(batch_size, num_segments, hidden_size)`, *optional*):
            The video BiLSTM, the audio BiLSTM, the refiner (if used) and the last BiLSTM.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    event_logits: torch.FloatTensor | None = None
    event_loss: torch.FloatTensor | None = None
    category_loss: torch.FloatTensor | None = None
    visual_attentions: torch.FloatTensor | None = None
    temporal_attentions: tuple[torch.FloatTensor, ...] | None = None
    feature_attentions: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class AVEClipFeatureNorm(nn.Module):
    """Features minus their mean, divided by their spread over the training clips, one of each a feature.

    Does nothing until the training fills both in.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.spread


class AVEClipBidirectionalLSTM(nn.Module):
    """One-layer BiLSTM whose two directions together are `output_size` wide; padding at the end is skipped."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(input_size, output_size // 2, batch_first=True, bidirectional=True)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Run over the first `lengths` segments of each row.

        Args:
            features (`torch.Tensor` of shape `(batch_size, num_segments, input_size)`): One vector a segment.
            lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Real segments a row; all by default.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_segments, output_size)`: zero under the padding.
        """
        if lengths is None:
            return self.lstm(features)[0]
        packed = nn.utils.rnn.pack_padded_sequence(
            features, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False
        )
        outputs, _ = nn.utils.rnn.pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=features.shape[1]
        )
        return outputs


class AVEClipAudioGuidedVisualAttention(nn.Module):
    """AGVA: the sound of a segment weighs the locations of its picture.

    `softmax(w_h tanh(W_v relu(U_v V) + W_g relu(U_a a)))`, as in AVEL (Tian et al. 2018, eq. 3-4); the values are
    the location vectors themselves, so that one location is returned unchanged.
    """

    def __init__(self, visual_size: int, audio_size: int, hidden_size: int, attention_size: int) -> None:
        super().__init__()
        self.visual_projection = InferenceLinear(visual_size, hidden_size)
        self.audio_projection = nn.Linear(audio_size, hidden_size)
        self.visual_score = InferenceLinear(hidden_size, attention_size, bias=False)
        self.audio_score = nn.Linear(hidden_size, attention_size, bias=False)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def forward(self, locations: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weigh and sum the locations.

        Args:
            locations (`torch.Tensor` of shape `(batch_size, num_segments, num_locations, visual_size)`): Picture.
            audio (`torch.Tensor` of shape `(batch_size, num_segments, audio_size)`): Sound.

        Returns:
            The weighted sum `(batch_size, num_segments, visual_size)` and the weights
            `(batch_size, num_segments, num_locations)`, which sum to 1.
        """
        visual = self.visual_score(self.visual_projection(locations).relu())  # (B, T, P, attention)
        guide = self.audio_score(self.audio_projection(audio).relu())  # (B, T, attention)
        scores = self.score(torch.tanh(visual + guide.unsqueeze(2))).squeeze(-1)  # (B, T, P)
        weights = scores.softmax(dim=-1)
        return torch.matmul(weights.unsqueeze(2), locations).squeeze(2), weights


class BlockLayout:
    """How `num_segments` segments fall into the blocks of one window, for a whole batch at once.

    floor(T / window) blocks, the remainder joining the last one: window 3 over 10 segments gives 3, 3, 4. T is each
    row's own length, so that padding a row never moves its blocks. All blocks are cut and merged by one indexing
    (a plain reshape where they are equally long).
    """

    def __init__(self, num_segments: int, window: int, lengths: torch.Tensor | None, device: torch.device) -> None:
        # `sym_max`, and no comparison while exporting, so that an exported graph takes any number of segments.
        self.num_blocks = torch.sym_max(1, num_segments // window)
        remainder_size = num_segments - window * (self.num_blocks - 1)
        self.block_size = remainder_size if lengths is None else torch.sym_min(2 * window - 1, num_segments)
        is_known = lengths is None and not torch.compiler.is_exporting()
        self.is_regular = is_known and self.num_blocks * self.block_size == num_segments
        row_lengths = torch.full((1,), num_segments, device=device) if lengths is None else lengths.to(device)
        row_blocks = (row_lengths // window).clamp(min=1).unsqueeze(-1)  # (B or 1, 1)
        position = torch.arange(num_segments, device=device)
        self.block_of = torch.minimum(position // window, row_blocks - 1)  # (B or 1, T)
        self.offset_of = position - self.block_of * window
        self.is_real = position < row_lengths.unsqueeze(-1)
        self._place_slots(num_segments, window, row_lengths.unsqueeze(-1), row_blocks)

    def _place_slots(self, num_segments: int, window: int, lengths: torch.Tensor, blocks: torch.Tensor) -> None:
        number = torch.arange(self.num_blocks, device=lengths.device)
        start = number * window  # (c,)
        end = torch.where(number < blocks - 1, start + window, torch.where(number < blocks, lengths, start))
        slots = start.unsqueeze(-1) + torch.arange(self.block_size, device=lengths.device)  # (c, m)
        self.slot_is_real = slots < end.unsqueeze(-1)  # (B or 1, c, m)
        self.slots = slots.clamp(max=num_segments - 1).flatten()  # (c * m,)
        self.sizes = self.slot_is_real.sum(dim=-1).clamp(min=1)  # (B or 1, c)

    def split(self, features: torch.Tensor) -> torch.Tensor:
        """(B, T, d) -> (B, c, m, d); slots beyond a block's end repeat some segment and must be masked."""
        if not self.is_regular:
            features = features[:, self.slots]
        return features.reshape(features.shape[0], self.num_blocks, self.block_size, -1)

    def merge(self, blocks: torch.Tensor) -> torch.Tensor:
        """(B, c, m, d) -> (B, T, d), the inverse of `split` (eq. 11)."""
        flat = blocks.flatten(1, 2)
        if self.is_regular:
            return flat
        index = self.block_of * self.block_size + self.offset_of  # (B or 1, T)
        return flat.gather(1, index.unsqueeze(-1).expand(flat.shape[0], -1, flat.shape[-1]))

    def block_diagonal(self, maps: torch.Tensor) -> torch.Tensor:
        """(B, c, m, m) -> (B, T, T): each block's map in its place, zero between blocks and under the padding."""
        rows = self.merge(maps)  # (B, T, m)
        columns = self.offset_of.unsqueeze(1).expand(rows.shape[0], rows.shape[1], -1)  # (B, T, T)
        inside = (self.block_of.unsqueeze(1) == self.block_of.unsqueeze(2)) & self.is_real.unsqueeze(1)
        inside = inside & self.is_real.unsqueeze(2)
        return rows.gather(2, columns.clamp(max=self.block_size - 1)) * inside


class AVEClipFusionProjections(nn.Module):
    """Query, key and value of a fusion: two linear layers each around tanh, tanh and ReLU (eq. 5-7)."""

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
    """Temporal and feature attention over every block of one window (eq. 8-10).

    Args:
        query, key, value (`torch.Tensor` of shape `(batch_size, num_segments, d)`): Projected features.
        layout (`BlockLayout`): The window's blocks.
        domains (`str`): `"both"`, `"temporal"` or `"feature"`.
        need_feature_maps (`bool`): Whether to return the feature maps, which takes more time and memory.

    Returns:
        The attended features `(batch_size, num_segments, d)`, the temporal maps `(batch_size, blocks, m, m)` (rows
        sum to 1) and the feature maps `(batch_size, blocks, d, d)` (columns sum to 1) if needed; `None` for an unused
        domain.
    """
    query, key, attended = layout.split(query), layout.split(key), layout.split(value)  # (B, c, m, d)
    temporal = feature = None
    if domains != "temporal":
        real_key = key if layout.is_regular else key * layout.slot_is_real.unsqueeze(-1)
        scaled_key = real_key * layout.sizes.to(key.dtype).rsqrt()[..., None, None]
        # Softmax over the rows' index: each output feature is a convex mix of the value's features.
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


class AVEClipMultiWindowTemporalFusion(nn.Module):
    """MWTF: the same features seen through several windows, side by side (eq. 4-12).

    With shared weights the projections are computed once for all windows, since they work on single segments.
    """

    def __init__(self, config: AVEClipConfig, input_size: int, window_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.window_sizes = tuple(window_sizes)
        self.attention_domains = config.attention_domains
        copies = 1 if config.share_window_weights else len(self.window_sizes)
        self.projections = nn.ModuleList(
            AVEClipFusionProjections(input_size, config.hidden_size, config.layer_norm_eps) for _ in range(copies)
        )
        skips = copies if config.fusion_residual else 0
        self.residuals = nn.ModuleList(nn.Linear(input_size, config.hidden_size, bias=False) for _ in range(skips))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor | None = None, output_attentions: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None, tuple[torch.Tensor, ...] | None]:
        """Fuse over every window.

        Args:
            features (`torch.Tensor` of shape `(batch_size, num_segments, input_size)`): One vector a segment.
            lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Real segments a row; all by default.
            output_attentions (`bool`): Whether to keep the maps.

        Returns:
            `(batch_size, num_segments, num_windows * d)`, then the temporal maps `(batch_size, T, T)` and the feature
            maps `(batch_size, blocks, d, d)`, one a window, `None` where not asked for or not computed.
        """
        projected = [projection(features) for projection in self.projections]
        skipped = [residual(features) for residual in self.residuals]
        outputs, temporal_maps, feature_maps = [], [], []
        for number, window in enumerate(self.window_sizes):
            copy = number % len(projected)
            layout = BlockLayout(features.shape[1], window, lengths, features.device)
            fused, temporal, feature = multi_domain_attention(
                *projected[copy], layout, self.attention_domains, output_attentions
            )
            outputs.append(fused + skipped[copy] if skipped else fused)
            if output_attentions and temporal is not None:
                temporal_maps.append(layout.block_diagonal(temporal))
            if feature is not None:
                feature_maps.append(feature)
        fused = self.dropout(torch.cat(outputs, dim=-1))  # (B, T, N * d)
        return fused, tuple(temporal_maps) or None, tuple(feature_maps) or None


class AVEClipEventGuidedAttention(nn.Module):
    """EGTA: a BiLSTM scores each segment as event or background and fades the background (eq. 13-15)."""

    def __init__(self, config: AVEClipConfig, input_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(input_size, eps=config.layer_norm_eps)
        self.lstm = AVEClipBidirectionalLSTM(input_size, config.hidden_size)
        self.score = nn.Linear(config.hidden_size, 1)

    def forward(self, fused: torch.Tensor, lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        event_logits = self.score(self.lstm(self.norm(fused), lengths)).squeeze(-1)  # (B, T)
        return fused * event_logits.sigmoid().unsqueeze(-1), event_logits


class AVEClipCategoryHead(nn.Module):
    """The last BiLSTM and W_8: one score a segment and class (eq. 16)."""

    def __init__(self, config: AVEClipConfig, input_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(input_size, eps=config.layer_norm_eps)
        self.lstm = AVEClipBidirectionalLSTM(input_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, refined: torch.Tensor, lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.lstm(self.norm(refined), lengths)
        return self.classifier(self.dropout(hidden)), hidden


class AVEClipPreTrainedModel(InferenceSwitch):
    """Weight initialisation and loading of AVE-CLIP models."""

    config: AVEClipConfig
    base_model_prefix = "ave_clip"
    main_input_name = "pixel_values"
    input_modalities = ("video", "audio")
    supports_gradient_checkpointing = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, AVEClipFeatureNorm):
            init.zeros_(module.mean)
            init.ones_(module.spread)
        elif isinstance(module, nn.LSTM):
            bound = 1 / math.sqrt(module.hidden_size)
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)


class AVEClipForLocalization(AVEClipPreTrainedModel):
    """AVE-CLIP: for every segment of a video, the audio-visual event in it, or background."""

    def __init__(self, config: AVEClipConfig) -> None:
        super().__init__(config)
        visual_size = config.resolved_image_feature_size
        audio_size = config.resolved_audio_feature_size
        hidden_size = config.hidden_size
        if config.use_encoders:
            # Not `_from_config`: the dtype saved with a nested config would override the asked one.
            self.vision_model = AudioCLIPVisionModel(config.audioclip_config.vision_config)
            self.audio_model = AudioCLIPAudioModel(config.audioclip_config.audio_config)
        self.image_norm = AVEClipFeatureNorm(visual_size) if config.normalize_features else None
        self.audio_norm = AVEClipFeatureNorm(audio_size) if config.normalize_features else None
        self.visual_map_projection = None
        if config.visual_feature_type == "layer4":
            joint_size = config.audioclip_config.vision_config.projection_dim
            self.visual_map_projection = InferenceLinear(visual_size, joint_size)
            visual_size = joint_size
        self.visual_attention = None
        if config.visual_feature_type != "pooled":
            self.visual_attention = AVEClipAudioGuidedVisualAttention(
                visual_size, audio_size, config.agva_hidden_size, config.agva_attention_size
            )
        self.video_lstm = AVEClipBidirectionalLSTM(visual_size, hidden_size)
        self.audio_lstm = AVEClipBidirectionalLSTM(audio_size, hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.fusion = AVEClipMultiWindowTemporalFusion(config, 2 * hidden_size, config.window_sizes)
        fused_size = hidden_size * len(config.window_sizes)
        self.event_attention = AVEClipEventGuidedAttention(config, fused_size) if config.use_event_attention else None
        self.refiner = None
        if config.use_refiner:
            self.refiner = AVEClipMultiWindowTemporalFusion(config, fused_size, config.refiner_window_sizes)
            fused_size = hidden_size * len(config.refiner_window_sizes)
        self.category_head = AVEClipCategoryHead(config, fused_size)
        self.encoders_frozen = False
        self.post_init()
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        # Without this, distributed training waits for gradients that never come. Done again by `train`, since
        # `from_pretrained` makes new parameters.
        if not self.config.use_encoders:
            return
        pool = self.vision_model.attnpool
        unused = {"dense": (pool.q_proj, pool.k_proj), "layer4": (pool,), "pooled": ()}
        for module in unused[self.config.visual_feature_type]:
            module.requires_grad_(False)

    def freeze_encoders(self) -> None:
        """Keep both towers as they are: no gradients, BatchNorm statistics fixed, also in `train()`."""
        self._require_encoders()
        self.encoders_frozen = True
        for tower in (self.vision_model, self.audio_model):
            tower.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "AVEClipForLocalization":
        super().train(mode)
        if mode:
            self._freeze_unused()
        if getattr(self, "encoders_frozen", False):
            self.vision_model.eval()
            self.audio_model.eval()
        return self

    def _require_encoders(self) -> None:
        if not self.config.use_encoders:
            raise ValueError(
                "This localizer was made without AudioCLIP's towers (use_encoders=False), so it cannot read pixels or "
                "sound. Pass `image_features` and `audio_features`, or load a checkpoint that has the towers."
            )

    def encode(
        self,
        pixel_values: torch.Tensor,
        input_values: torch.Tensor,
        frame_mask: torch.Tensor | None = None,
        segment_mask: torch.Tensor | None = None,
        frame_sources: torch.Tensor | None = None,
        prepare_pixels: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Frames and sound to the features of stage 2 (sec. 3.3); padding is not computed.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_segments, num_frames, 3, height, width)`):
                Frames, normalised as CLIP's.
            input_values (`torch.Tensor` of shape `(batch_size, num_segments, num_samples)`):
                Sound of each segment, in int16 range.
            frame_mask (`torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)`, *optional*):
                `False` where a frame lacks.
            segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*):
                `False` where a segment is padding.
            frame_sources (`torch.LongTensor` of shape `(batch_size, num_segments, num_frames)`, *optional*):
                For each frame, the number of the frame whose encoding it takes, counted over the whole batch; a frame
                that no other refers to is not encoded. Each its own without it.
            prepare_pixels (`Callable`, *optional*):
                What frames `(number, 3, height, width)` go through first, few at a time: with
                [`AVEClipVideoProcessor.normalize_pixels`] they may come as uint8, a quarter of the bytes.

        Returns:
            `image_features` `(batch_size, num_segments, num_locations, width)`, the mean over a segment's frames and
            zero without any (`(batch_size, num_segments, width)` when `visual_feature_type` is `"pooled"`), and
            `audio_features` `(batch_size, num_segments, width)`.
        """
        self._require_encoders()
        frames, segments = real_items(pixel_values, frame_mask, segment_mask)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoders_frozen):
            image_features = encode_frames(self._frame_features, pixel_values, frames, frame_sources, prepare_pixels)
            audio_features = self._encode_audio(input_values, segments)
        return image_features, audio_features

    def _frame_features(self, frames: torch.Tensor) -> torch.Tensor:
        kind = self.config.visual_feature_type
        output = self.vision_model(frames, feature_types=(kind,))
        if kind == "dense":
            return output.dense_embeds
        if kind == "pooled":
            return output.image_embeds
        return output.last_hidden_state.flatten(2).transpose(1, 2)  # (frames, P, width)

    def _encode_audio(self, input_values: torch.Tensor, segment_mask: torch.Tensor) -> torch.Tensor:
        embeds = encode_in_chunks(lambda sound: self.audio_model(sound).audio_embeds, input_values[segment_mask])
        return place_segments(embeds, segment_mask)

    def attend(self, image_features: torch.Tensor, audio_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """AGVA: one visual vector a segment.

        Args:
            image_features (`torch.Tensor` of shape `(batch_size, num_segments, num_locations, width)`):
                Dense features; `(batch_size, num_segments, width)` counts as one location, which AGVA leaves as it is.
            audio_features (`torch.Tensor` of shape `(batch_size, num_segments, width)`): Sound.

        Returns:
            `(batch_size, num_segments, width)` and the weights `(batch_size, num_segments, num_locations)`.
        """
        locations = image_features.unsqueeze(2) if image_features.dim() == 3 else image_features
        if self.image_norm is not None:
            locations, audio_features = self.image_norm(locations), self.audio_norm(audio_features)
        if self.visual_map_projection is not None:
            locations = self.visual_map_projection(locations)
        if self.visual_attention is None or locations.shape[2] == 1:
            return locations.mean(dim=2), locations.new_full(locations.shape[:3], 1 / locations.shape[2])
        return self.visual_attention(locations, audio_features)

    def localize(
        self,
        visual: torch.Tensor,
        audio_features: torch.Tensor,
        segment_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> AVEClipLocalizationOutput:
        """From one visual and one audio vector a segment to its class scores (sec. 3.4-3.5).

        Args:
            visual (`torch.Tensor` of shape `(batch_size, num_segments, width)`): Result of `attend`.
            audio_features (`torch.Tensor` of shape `(batch_size, num_segments, width)`): Sound.
            segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*): Padding at the end.
            output_attentions (`bool`): Whether to return the temporal and feature maps.

        Returns:
            [`AVEClipLocalizationOutput`] without losses.
        """
        lengths = self._lengths(segment_mask)
        if self.audio_norm is not None:
            audio_features = self.audio_norm(audio_features)
        video = self.dropout(self.video_lstm(visual, lengths))  # (B, T, d)
        audio = self.dropout(self.audio_lstm(audio_features, lengths))
        fused, temporal, feature = self.fusion(torch.cat([video, audio], dim=-1), lengths, output_attentions)
        hidden_states, event_logits = [video, audio], None
        if self.event_attention is not None:
            fused, event_logits = self.event_attention(fused, lengths)
        if self.refiner is not None:
            fused, _, _ = self.refiner(fused, lengths)
            hidden_states.append(fused)
        logits, hidden = self.category_head(fused, lengths)
        return AVEClipLocalizationOutput(
            logits=logits,
            event_logits=event_logits,
            temporal_attentions=temporal,
            feature_attentions=feature,
            hidden_states=(*hidden_states, hidden),
        )

    def _lengths(self, segment_mask: torch.Tensor | None) -> torch.Tensor | None:
        if segment_mask is None:
            return None
        mask = segment_mask.bool()
        lengths = mask.sum(dim=-1)
        if torch.compiler.is_compiling():
            return lengths
        if mask.all():
            return None
        expected = torch.arange(mask.shape[1], device=mask.device) < lengths.unsqueeze(-1)
        if not torch.equal(mask, expected):
            row = int((mask != expected).any(dim=-1).nonzero()[0])
            raise ValueError(
                f"`segment_mask` must be True for a video's segments and then False for its padding; row {row} is "
                f"{mask[row].tolist()}. Cut the video there, or leave those segments in."
            )
        return lengths

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        audio_features: torch.FloatTensor | None = None,
        frame_mask: torch.BoolTensor | None = None,
        segment_mask: torch.BoolTensor | None = None,
        labels: torch.LongTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        **kwargs,
    ) -> AVEClipLocalizationOutput:
        r"""
        Localize from raw input (`pixel_values` and `input_values`) or from the cached features of stage 2
        (`image_features` and `audio_features`); the same features give the same logits.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_segments, num_frames, 3, height, width)`):
                Frames of each segment, CLIP-normalised.
            input_values (`torch.FloatTensor` of shape `(batch_size, num_segments, num_samples)`):
                Sound of each segment, in int16 range.
            image_features (`torch.FloatTensor` of shape `(batch_size, num_segments, num_locations, width)`):
                Dense features, also as `(batch_size, num_segments, height, width, channels)` maps; or one embedding a
                segment, `(batch_size, num_segments, width)`.
            audio_features (`torch.FloatTensor` of shape `(batch_size, num_segments, width)`):
                Audio features.
            frame_mask (`torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)`, *optional*):
                `False` where a frame lacks.
            segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*):
                `False` where a row is padded; never changes the other segments' logits.
            labels (`torch.LongTensor` of shape `(batch_size, num_segments)` or `(batch_size,)`, *optional*):
                A class a segment (-100: not counted), or a class a video when `config.supervision` is `"weak"`.
            output_attentions (`bool`, *optional*):
                Whether to return `visual_attentions`, `temporal_attentions` and `feature_attentions`.
            output_hidden_states (`bool` or `list[int]`, *optional*):
                Whether to return `hidden_states`, or which of them (the others are `None`).

        Raises:
            ValueError: Raw and cached input together or incomplete, features of a wrong width or shape, labels of a
                wrong shape or out of range, padding that is not at the end.
        """
        if output_attentions is None:
            output_attentions = getattr(self.config, "output_attentions", False)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        is_raw = self._check_inputs(pixel_values, input_values, image_features, audio_features)
        if is_raw:
            self._check_masks(frame_mask, segment_mask, pixel_values.shape[:3])
            image_features, audio_features = self.encode(pixel_values, input_values, frame_mask, segment_mask)
        image_features, audio_features = self._check_features(image_features, audio_features)
        if not is_raw:
            self._check_masks(frame_mask, segment_mask, image_features.shape[:2])
        if segment_mask is not None:  # whatever lies under the padding must not reach the gradients either
            padding = ~segment_mask.bool().to(audio_features.device)
            audio_features = audio_features.masked_fill(padding.unsqueeze(-1), 0)
            image_features = image_features.masked_fill(
                padding.view(*padding.shape, *[1] * (image_features.dim() - 2)), 0
            )
        visual, visual_attentions = self.attend(image_features, audio_features)
        output = self.localize(visual, audio_features, segment_mask, output_attentions)
        losses = {} if labels is None else self._losses(output, labels, segment_mask)
        # Made anew, since a ModelOutput keeps the order in which its entries were set.
        return AVEClipLocalizationOutput(
            **losses,
            logits=output.logits,
            event_logits=output.event_logits,
            visual_attentions=visual_attentions if output_attentions else None,
            temporal_attentions=output.temporal_attentions,
            feature_attentions=output.feature_attentions,
            hidden_states=_chosen(output.hidden_states, output_hidden_states),
        )

    def _check_inputs(self, pixel_values, input_values, image_features, audio_features) -> bool:
        raw = {"pixel_values": pixel_values, "input_values": input_values}
        cached = {"image_features": image_features, "audio_features": audio_features}
        given_raw = [name for name, value in raw.items() if value is not None]
        given_cached = [name for name, value in cached.items() if value is not None]
        if given_raw and given_cached:
            raise ValueError(
                f"Got raw input ({', '.join(given_raw)}) together with cached features ({', '.join(given_cached)}). "
                "Pass pixel_values and input_values, or image_features and audio_features, not a mixture."
            )
        needed, given = (raw, given_raw) if given_raw else (cached, given_cached)
        if len(given) < len(needed):
            raise ValueError(
                f"Sight and sound are both needed: pass pixel_values and input_values, or image_features and "
                f"audio_features. Got {given or 'neither'}."
            )
        if given_raw:
            self._check_raw(pixel_values, input_values)
        return bool(given_raw)

    def _check_raw(self, pixel_values: torch.Tensor, input_values: torch.Tensor) -> None:
        if pixel_values.dim() != 6:
            raise ValueError(
                "`pixel_values` must have the shape (batch, segments, frames, channels, height, width), got "
                f"{tuple(pixel_values.shape)}."
            )
        if input_values.dim() != 3 or input_values.shape[:2] != pixel_values.shape[:2]:
            raise ValueError(
                f"`input_values` must have the shape (batch, segments, samples) with the batch and segments of "
                f"`pixel_values` {tuple(pixel_values.shape[:2])}, got {tuple(input_values.shape)}."
            )

    def _check_features(self, image: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if image.dim() == 5:
            image = image.flatten(2, 3)  # (B, T, height * width, D)
        if image.dim() not in (3, 4) or audio.dim() != 3 or image.shape[:2] != audio.shape[:2] or 0 in image.shape:
            raise ValueError(
                "Cached features must be image_features (batch, segments, locations, width) or (batch, segments, "
                "width) and audio_features (batch, segments, width) over the same segments, got "
                f"{tuple(image.shape)} and {tuple(audio.shape)}."
            )
        expected = (self.config.resolved_image_feature_size, self.config.resolved_audio_feature_size)
        if (image.shape[-1], audio.shape[-1]) != expected:
            raise ValueError(
                f"Features are {image.shape[-1]} (image) and {audio.shape[-1]} (audio) wide, but this localizer takes "
                f"{expected[0]} and {expected[1]}. Extract them with its own towers, or train a localizer with "
                f"AVEClipConfig(use_encoders=False, image_feature_size={image.shape[-1]}, "
                f"audio_feature_size={audio.shape[-1]})."
            )
        return image.to(self.dtype), audio.to(self.dtype)

    def _check_masks(
        self, frame_mask: torch.Tensor | None, segment_mask: torch.Tensor | None, shape: tuple[int, ...]
    ) -> None:
        if 0 in shape:
            raise ValueError(f"The input holds no segment or no frame: (batch, segments, ...) is {tuple(shape)}.")
        if segment_mask is not None and segment_mask.shape != shape[:2]:
            raise ValueError(
                f"`segment_mask` must have the shape (batch, segments) = {tuple(shape[:2])}, got "
                f"{tuple(segment_mask.shape)}."
            )
        if frame_mask is not None and len(shape) < 3:
            raise ValueError("`frame_mask` goes with `pixel_values`; cached features have no frames any more.")
        if frame_mask is not None and frame_mask.shape != shape:
            raise ValueError(
                f"`frame_mask` must have the shape (batch, segments, frames) = {tuple(shape)}, got "
                f"{tuple(frame_mask.shape)}."
            )

    def _losses(
        self, output: AVEClipLocalizationOutput, labels: torch.Tensor, segment_mask: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        labels = self._check_labels(labels, output.logits)
        real = torch.ones(output.logits.shape[:2], dtype=torch.bool, device=output.logits.device)
        if segment_mask is not None:
            real = segment_mask.bool()
        if self.config.supervision == "weak":
            category_loss = video_level_loss(output.logits, labels, real)
            return {"loss": self.config.category_loss_weight * category_loss, "category_loss": category_loss}
        labels = labels.masked_fill(~real, IGNORED_LABEL)
        category_loss = segment_loss(output.logits, labels)
        loss = self.config.category_loss_weight * category_loss
        if output.event_logits is None:
            return {"loss": loss, "category_loss": category_loss}
        event_loss = event_attention_loss(output.event_logits, labels, self.config.background_label_id)
        loss = loss + self.config.event_loss_weight * event_loss
        return {"loss": loss, "event_loss": event_loss, "category_loss": category_loss}

    def _check_labels(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        wanted = logits.shape[:1] if self.config.supervision == "weak" else logits.shape[:2]
        if labels.shape != wanted:
            raise ValueError(
                f"`labels` must have the shape {tuple(wanted)} under {self.config.supervision!r} supervision, got "
                f"{tuple(labels.shape)}. The other kind is AVEClipConfig(supervision='full' or 'weak')."
            )
        if labels.is_floating_point():
            raise ValueError(f"`labels` must be class indices (torch.long), got {labels.dtype}.")
        if not torch.compiler.is_compiling():
            wrong = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= self.config.num_labels))]
            if wrong.numel():
                raise ValueError(
                    f"`labels` holds {int(wrong[0])}, but classes go from 0 to {self.config.num_labels - 1} "
                    f"(background) and {IGNORED_LABEL} marks segments to leave out."
                )
        return labels.to(logits.device, torch.long)


def encode_in_chunks(encode: Callable[[torch.Tensor], torch.Tensor], items: torch.Tensor) -> torch.Tensor:
    """Encode many frames or sounds, a bounded number at a time where no gradient is wanted.

    Args:
        encode (`Callable`): A tower, from `(number, ...)` to `(number, ...)`.
        items (`torch.Tensor`, first dimension the items): May be empty.
    """
    if len(items) == 0:  # nothing real: blank items tell the shape; two, as towers are laid out for several
        return encode(items.new_zeros(2, *items.shape[1:]))[:0]
    if torch.is_grad_enabled() or len(items) <= ENCODER_CHUNK_SIZE:
        return encode(items)
    chunks = items.tensor_split(math.ceil(len(items) / ENCODER_CHUNK_SIZE))  # about equal: none of one item
    return torch.cat([encode(chunk) for chunk in chunks])


def real_items(
    pixel_values: torch.Tensor, frame_mask: torch.Tensor | None, segment_mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which frames and segments are there, none of the frames in padded segments.

    Args:
        pixel_values (`torch.Tensor` of shape `(batch_size, num_segments, num_frames, ...)`): Frames.
        frame_mask (`torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)`, *optional*): All by default.
        segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*): All by default.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)` and of shape `(batch_size, num_segments)`.
    """
    segments = torch.ones(pixel_values.shape[:2], dtype=torch.bool, device=pixel_values.device)
    if segment_mask is not None:
        segments = segment_mask.to(segments.device, torch.bool)
    frames = segments.unsqueeze(-1).expand(pixel_values.shape[:3])
    if frame_mask is not None:
        frames = frames & frame_mask.to(segments.device, torch.bool)
    return frames, segments


def encode_frames(
    encode: Callable[[torch.Tensor], torch.Tensor],
    pixel_values: torch.Tensor,
    frame_mask: torch.Tensor,
    frame_sources: torch.Tensor | None = None,
    prepare_pixels: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Encode the real frames of each segment and average them (sec. 3.3).

    Args:
        encode (`Callable`): A tower, from `(number, 3, height, width)` to `(number, ...)`.
        pixel_values (`torch.Tensor` of shape `(batch_size, num_segments, num_frames, 3, height, width)`): Frames.
        frame_mask (`torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)`): Which frames are real.
        frame_sources (`torch.LongTensor`, like `frame_mask`, *optional*): See [`AVEClipForLocalization.encode`].
        prepare_pixels (`Callable`, *optional*): See there.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_segments, ...)`: zero where a segment has no frame at all.
    """

    def prepare_and_encode(frames: torch.Tensor) -> torch.Tensor:
        return encode(frames if prepare_pixels is None else prepare_pixels(frames))

    if frame_sources is None:
        return mean_over_frames(encode_in_chunks(prepare_and_encode, pixel_values[frame_mask]), frame_mask)
    encoded, places = frame_sources.to(frame_mask.device)[frame_mask].unique(return_inverse=True)
    embeds = encode_in_chunks(prepare_and_encode, pixel_values.flatten(0, 2)[encoded])
    return mean_over_frames(embeds[places], frame_mask)


def mean_over_frames(embeds: torch.Tensor, frame_mask: torch.Tensor) -> torch.Tensor:
    """Average the real frames of each segment (sec. 3.3).

    Args:
        embeds (`torch.Tensor` of shape `(number of True in frame_mask, ...)`): One entry a real frame, in order.
        frame_mask (`torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)`): Which frames are real.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_segments, ...)`: zero where a segment has no frame at all.
    """
    segment_of_frame = frame_mask.flatten(0, 1).nonzero()[:, 0]  # (number of real frames,)
    counts = frame_mask.flatten(0, 1).sum(dim=-1).clamp(min=1).to(embeds.dtype)  # (B * T,)
    totals = embeds.new_zeros(counts.shape[0], *embeds.shape[1:]).index_add(0, segment_of_frame, embeds)
    means = totals / counts.view(-1, *[1] * (embeds.dim() - 1))
    return means.unflatten(0, frame_mask.shape[:2])


def place_segments(embeds: torch.Tensor, segment_mask: torch.Tensor) -> torch.Tensor:
    """Put one vector a real segment in its place: `(number of True, D)` to `(B, T, D)`, zero under the padding."""
    features = embeds.new_zeros(*segment_mask.shape, embeds.shape[-1])
    return features.masked_scatter(segment_mask.unsqueeze(-1), embeds)


def _chosen(hidden_states: tuple[torch.Tensor, ...], wanted: bool | list[int]) -> tuple | None:
    if isinstance(wanted, bool):
        return hidden_states if wanted else None
    kept = {index % len(hidden_states) for index in wanted}
    return tuple(state if index in kept else None for index, state in enumerate(hidden_states))


def segment_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the labelled segments (L_c of eq. 17); 0 when none is labelled.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_segments, num_labels)`): Class scores.
        labels (`torch.LongTensor` of shape `(batch_size, num_segments)`): Classes; -100 is not counted.
    """
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total / (labels != IGNORED_LABEL).sum().clamp(min=1)


def event_attention_loss(event_logits: torch.Tensor, labels: torch.Tensor, background: int) -> torch.Tensor:
    """Mean binary cross-entropy of "is an event" over the labelled segments (L_e of eq. 17).

    Args:
        event_logits (`torch.Tensor` of shape `(batch_size, num_segments)`): Scores before the sigmoid.
        labels (`torch.LongTensor` of shape `(batch_size, num_segments)`): Classes; -100 is not counted.
        background (`int`): Index of the background class.
    """
    counted = (labels != IGNORED_LABEL).to(torch.float32)
    is_event = (labels != background).to(torch.float32)
    losses = nn.functional.binary_cross_entropy_with_logits(event_logits.float(), is_event, reduction="none")
    return (losses * counted).sum() / counted.sum().clamp(min=1)


def video_level_loss(logits: torch.Tensor, labels: torch.Tensor, segment_mask: torch.Tensor) -> torch.Tensor:
    """Weak supervision as in AVEL: the mean of the segments' probabilities must name the video's class.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_segments, num_labels)`): Class scores.
        labels (`torch.LongTensor` of shape `(batch_size,)`): One class a video; -100 is not counted.
        segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`): `False` marks padding.
    """
    labels = labels.masked_fill(~segment_mask.any(dim=-1), IGNORED_LABEL)  # nothing is left of such a video
    log_probabilities = logits.float().log_softmax(dim=-1)
    lowest = torch.finfo(log_probabilities.dtype).min / 2  # not -inf, whose gradient is NaN where all is padding
    log_probabilities = log_probabilities.masked_fill(~segment_mask.unsqueeze(-1), lowest)
    counts = segment_mask.sum(dim=-1, keepdim=True).clamp(min=1)
    video = torch.logsumexp(log_probabilities, dim=1) - counts.log()  # (B, C)
    total = nn.functional.nll_loss(video, labels, ignore_index=IGNORED_LABEL, reduction="sum")
    return total / (labels != IGNORED_LABEL).sum().clamp(min=1)


__all__ = ["AVEClipForLocalization", "AVEClipLocalizationOutput", "AVEClipPreTrainedModel"]
