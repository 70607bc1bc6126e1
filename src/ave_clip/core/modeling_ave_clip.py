"""AVE-CLIP: audio-visual event localization with multi-window temporal fusion (Mahmud & Marculescu, sections 3.3-3.6).

The steps of `AVEClipForLocalization.forward`:

    pixel_values, input_values ── encode ──> image_features, audio_features      frames averaged per segment, eq. 2-3
      ── attend ──> one visual vector per segment (AGVA)
      ── BiLSTM each ──> F  ── fusion ──> O                                      eq. 4-12
      ── EGTA ──> O'  ── refiner ──> O_w  ── BiLSTM, W_8 ──> logits              eq. 13-16
      ── boundary head, if configured ──> proposals with exact times             dense methods, not the paper

Shapes: B batch, T segments, K frames per segment, S samples per segment, P frame locations, D feature width,
d hidden size, C classes (including background for one label per segment).
"""

import math
from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils.generic import can_return_tuple

from .categories import check_labels
from .configuration_ave_clip import AVEClipConfig
from .encoders import AudioCLIPEncoder, Encoder, encoder_for
from .encoding import encode_in_chunks, encode_segments, zero_padding
from .label_space import LabelSpace
from .localization_output import AVEClipLocalizationOutput
from .losses import event_attention_loss, segment_contrastive_loss
from .modeling_audio_visual_encoder import AudioVisualEncoderModel
from .modeling_base import AlignedPreTrainedModel
from .modeling_boundaries import AVEClipBoundaryHead, BoundaryMixin
from .modeling_clip_resnet import AudioCLIPVisionModel
from .modeling_esresnext import AudioCLIPAudioModel
from .modeling_fusion import WHOLE_VIDEO, AVEClipMultiWindowTemporalFusion
from .modeling_layers import (
    AVEClipAudioGuidedVisualAttention,
    AVEClipBidirectionalLSTM,
    AVEClipFeatureNorm,
    AVEClipInputDropout,
    AVEClipLSTM,
)
from .modeling_open_vocabulary import AVEClipLabelClassifier, OpenVocabularyMixin


class AVEClipEventGuidedAttention(nn.Module):
    """EGTA: a BiLSTM scores each segment as event or background and attenuates background segments (eq. 13-15)."""

    def __init__(self, config: AVEClipConfig, input_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(input_size, eps=config.layer_norm_eps)
        self.lstm = AVEClipBidirectionalLSTM(input_size, config.hidden_size)
        self.score = nn.Linear(config.hidden_size, 1)

    def forward(self, fused: torch.Tensor, lengths: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        event_logits = self.score(self.lstm(self.norm(fused), lengths)).squeeze(-1)  # (B, T)
        return fused * event_logits.sigmoid().unsqueeze(-1), event_logits


class AVEClipCategoryHead(nn.Module):
    """The last BiLSTM and W_8: one score per segment and class (eq. 16)."""

    def __init__(self, config: AVEClipConfig, input_size: int, visual_size: int, audio_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(input_size, eps=config.layer_norm_eps)
        self.lstm = AVEClipBidirectionalLSTM(input_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.is_open = config.label_embedding_size is not None
        if self.is_open:
            self.classifier = AVEClipLabelClassifier(config, visual_size, audio_size)
        else:
            self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self, refined: torch.Tensor, visual: torch.Tensor, audio: torch.Tensor, lengths: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.lstm(self.norm(refined), lengths)
        inputs = (self.dropout(hidden), visual, audio) if self.is_open else (self.dropout(hidden),)
        return self.classifier(*inputs), hidden


class AVEClipPreTrainedModel(AlignedPreTrainedModel):
    """Weight initialization and loading of AVE-CLIP models."""

    config: AVEClipConfig
    base_model_prefix = "ave_clip"
    main_input_name = "pixel_values"
    input_modalities = ("video", "audio")
    supports_gradient_checkpointing = True
    # Only the image tower contains attention whose implementation can be chosen.
    _supports_sdpa = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, AVEClipMultiWindowTemporalFusion) and module.gates is not None:
            init.zeros_(module.gates)
        elif isinstance(module, AVEClipFeatureNorm):
            init.zeros_(module.mean)
            init.ones_(module.spread)
        elif isinstance(module, AVEClipLabelClassifier | AVEClipBoundaryHead):
            module.init_weights()
        elif isinstance(module, AVEClipLSTM):
            bound = 1 / math.sqrt(module.hidden_size)
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)


class AVEClipForLocalization(OpenVocabularyMixin, BoundaryMixin, AVEClipPreTrainedModel):
    """AVE-CLIP: classifies each segment of a video as one of the audio-visual events or as background."""

    def __init__(self, config: AVEClipConfig) -> None:
        super().__init__(config)
        # One of the two may have been set after the other.
        check_labels(config.id2label, LabelSpace.of(config).problem_type)
        visual_size = config.resolved_image_feature_size
        audio_size = config.resolved_audio_feature_size
        hidden_size = config.hidden_size
        if config.use_encoders:
            if config.is_composite:
                self.encoder = AudioVisualEncoderModel(config.encoder_config)
                encoder_for(self.encoder).drop_text_parts()
            else:
                # Not `_from_config`: the dtype saved in a nested config would override the requested one.
                self.vision_model = AudioCLIPVisionModel(config.encoder_config.vision_config)
                self.audio_model = AudioCLIPAudioModel(config.encoder_config.audio_config)
        self.image_norm = AVEClipFeatureNorm(visual_size) if config.normalize_features else None
        self.audio_norm = AVEClipFeatureNorm(audio_size) if config.normalize_features else None
        self.input_dropout = AVEClipInputDropout(config.input_dropout) if config.input_dropout else None
        self.image_layer_norm = self.audio_layer_norm = None
        if config.input_layer_norm:
            self.image_layer_norm = nn.LayerNorm(visual_size, eps=config.layer_norm_eps)
            self.audio_layer_norm = nn.LayerNorm(audio_size, eps=config.layer_norm_eps)
        self.visual_map_projection = None
        if config.visual_feature_type == "layer4":
            joint_size = config.encoder_config.vision_config.projection_dim
            self.visual_map_projection = nn.Linear(visual_size, joint_size)
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
        fused_size = self.fusion.output_size
        self.event_attention = AVEClipEventGuidedAttention(config, fused_size) if config.use_event_attention else None
        self.refiner = None
        if config.use_refiner:
            refiner_windows = config.refiner_window_sizes or (WHOLE_VIDEO,)
            self.refiner = AVEClipMultiWindowTemporalFusion(config, fused_size, refiner_windows)
            fused_size = self.refiner.output_size
        self.category_head = AVEClipCategoryHead(config, fused_size, visual_size, audio_size)
        # Weights of the segments in the mean over a video, per class (attention pooling of weak supervision).
        self.pooling = None
        if config.video_pooling == "attention":
            self.pooling = nn.Linear(hidden_size, config.num_labels)
        self.boundary_head = AVEClipBoundaryHead(config) if config.boundary_regression else None
        self.encoders_frozen = False
        self.post_init()
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        # Distributed training waits for a gradient of every parameter that requires one, so the parameters that
        # `visual_feature_type` leaves unused must not. `train` repeats this: `from_pretrained` replaces parameters.
        if not self.config.use_encoders:
            return
        if self.config.is_composite:  # only comparisons use these; train with a composite's encoders frozen
            for name, parameter in self.encoder.named_parameters():
                if "logit_" in name:
                    parameter.requires_grad_(False)
            return
        pool = self.vision_model.attnpool
        unused = {"dense": (pool.q_proj, pool.k_proj), "layer4": (pool,), "pooled": ()}
        for module in unused[self.config.visual_feature_type]:
            module.requires_grad_(False)

    def freeze_encoders(self) -> None:
        """Freezes both towers: no gradients and fixed batch norm statistics, also in `train()`."""
        self._require_encoders()
        self.encoders_frozen = True
        for module in self.encoder_modules.values():
            module.requires_grad_(False)
        self.train(self.training)

    @property
    def encoder_modules(self) -> dict[str, nn.Module]:
        """The encoder's modules by attribute: AudioCLIP's two towers, or one composite."""
        names = ("encoder",) if self.config.is_composite else ("vision_model", "audio_model")
        return {name: getattr(self, name) for name in names} if self.config.use_encoders else {}

    @property
    def _encoder(self) -> Encoder:
        return encoder_for(self.encoder) if self.config.is_composite else AudioCLIPEncoder(self)

    def train(self, mode: bool = True) -> "AVEClipForLocalization":
        super().train(mode)
        if mode:
            self._freeze_unused()
        if getattr(self, "encoders_frozen", False):
            for module in self.encoder_modules.values():
                module.eval()
        return self

    def _require_encoders(self) -> None:
        if not self.config.use_encoders:
            raise ValueError(
                "This localizer was created without an encoder (use_encoders=False), so it cannot encode "
                "frames or audio. Pass `image_features` and `audio_features`, or load a checkpoint with towers."
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
        """Encodes frames and audio to the features of stage 2 (sec. 3.3); padding is not computed.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_segments, num_frames, 3, height, width)`):
                Frames, normalized as for CLIP.
            input_values (`torch.Tensor` of shape `(batch_size, num_segments, num_samples)`):
                Waveform of each segment, in the range of int16.
            frame_mask (`torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)`, *optional*):
                `False` where a frame is missing.
            segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*):
                `False` where a segment is padding.
            frame_sources (`torch.LongTensor` of shape `(batch_size, num_segments, num_frames)`, *optional*):
                For each frame, the number of the frame whose encoding it uses, counted over the whole batch; a frame
                that no frame refers to is not encoded. By default each frame is encoded itself.
            prepare_pixels (`Callable`, *optional*):
                Function applied to a few frames `(number, 3, height, width)` at a time before they are encoded: with
                [`AVEClipVideoProcessor.normalize_pixels`] frames can be passed as uint8, a quarter of the bytes.

        Returns:
            `image_features` `(batch_size, num_segments, num_locations, width)`, the mean over the frames of a segment,
            zero if it has none (`(batch_size, num_segments, width)` if `visual_feature_type` is `"pooled"`); and
            `audio_features` `(batch_size, num_segments, width)`.
        """
        self._require_encoders()
        if frame_mask is None and segment_mask is None and frame_sources is None:
            return self._encode_all(pixel_values, input_values, prepare_pixels)
        inputs = (pixel_values, input_values, frame_mask, segment_mask, frame_sources, prepare_pixels)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoders_frozen):
            return encode_segments(self._frame_features, self._audio_features, *inputs)

    def _encode_all(
        self,
        pixel_values: torch.Tensor,
        input_values: torch.Tensor,
        prepare_pixels: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes every frame and segment: no shape depends on values, which `torch.export` cannot follow."""

        def encode_images(frames: torch.Tensor) -> torch.Tensor:
            return self._frame_features(frames if prepare_pixels is None else prepare_pixels(frames))

        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoders_frozen):
            images = encode_in_chunks(encode_images, pixel_values.flatten(0, 2))
            audio = encode_in_chunks(self._audio_features, input_values.flatten(0, 1))
        return images.unflatten(0, pixel_values.shape[:3]).mean(dim=2), audio.unflatten(0, input_values.shape[:2])

    def _frame_features(self, frames: torch.Tensor) -> torch.Tensor:
        return self._encoder.image_features(frames, self.config.visual_feature_type)

    def _audio_features(self, windows: torch.Tensor) -> torch.Tensor:
        return self._encoder.audio(windows).pooled

    def attend(self, image_features: torch.Tensor, audio_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """AGVA: computes one visual vector per segment.

        Args:
            image_features (`torch.Tensor` of shape `(batch_size, num_segments, num_locations, width)`):
                Dense features, or `(batch_size, num_segments, width)`: one location, which AGVA does not change.
            audio_features (`torch.Tensor` of shape `(batch_size, num_segments, width)`): Audio vectors.

        Returns:
            The visual vectors `(batch_size, num_segments, width)` and the weights `(batch_size, num_segments,
            num_locations)`.
        """
        locations = image_features.unsqueeze(2) if image_features.dim() == 3 else image_features
        if self.image_norm is not None:
            locations = self.image_norm(locations)
        if self.image_layer_norm is not None:
            locations = self.image_layer_norm(locations)
        if self.visual_map_projection is not None:
            locations = self.visual_map_projection(locations)
        if self.visual_attention is None or locations.shape[2] == 1:
            return locations.mean(dim=2), locations.new_full(locations.shape[:3], 1 / locations.shape[2])
        return self.visual_attention(locations, self._normalized_audio(audio_features))

    def _normalized_audio(self, audio_features: torch.Tensor) -> torch.Tensor:
        if self.audio_norm is not None:
            audio_features = self.audio_norm(audio_features)
        return audio_features if self.audio_layer_norm is None else self.audio_layer_norm(audio_features)

    def localize(
        self,
        visual: torch.Tensor,
        audio_features: torch.Tensor,
        segment_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> AVEClipLocalizationOutput:
        """Computes class scores from one visual and one audio vector per segment (sec. 3.4-3.5).

        Args:
            visual (`torch.Tensor` of shape `(batch_size, num_segments, width)`): Result of `attend`.
            audio_features (`torch.Tensor` of shape `(batch_size, num_segments, width)`): Audio vectors.
            segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*): `False` at padding.
            output_attentions (`bool`): Whether to return the temporal and feature maps.

        Returns:
            [`AVEClipLocalizationOutput`], without losses and proposals.
        """
        lengths = self._lengths(segment_mask)
        if not torch.compiler.is_compiling():
            self._check_has_labels()
        audio_features = self._normalized_audio(audio_features)
        video = self.dropout(self.video_lstm(visual, lengths))  # (B, T, d)
        audio = self.dropout(self.audio_lstm(audio_features, lengths))
        fused, temporal, feature = self.fusion(torch.cat([video, audio], dim=-1), lengths, output_attentions)
        hidden_states, event_logits = [video, audio], None
        if self.event_attention is not None:
            fused, event_logits = self.event_attention(fused, lengths)
        if self.refiner is not None:
            fused, _, _ = self.refiner(fused, lengths)
            hidden_states.append(fused)
        logits, hidden = self.category_head(fused, visual, audio_features, lengths)
        if logits.shape[-1] != self.config.num_labels:
            raise ValueError(
                f"The model scores {logits.shape[-1]} classes, but its configuration names {self.config.num_labels}. "
                "To train other classes, load the model with `id2label=...` and `ignore_mismatched_sizes=True`."
            )
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
                f"`segment_mask` must be True for the segments of a video, then False for its padding; row {row} is "
                f"{mask[row].tolist()}. Cut the video there, or keep those segments."
            )
        return lengths

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        audio_features: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        segment_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        event_spans: torch.Tensor | None = None,
        event_classes: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | list[int] | None = None,
        **kwargs,
    ) -> AVEClipLocalizationOutput:
        r"""
        Localizes events from raw input (`pixel_values` and `input_values`) or from the cached features of stage 2
        (`image_features` and `audio_features`); the same features give the same logits.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_segments, num_frames, 3, height, width)`):
                Frames of each segment, normalized as for CLIP.
            input_values (`torch.FloatTensor` of shape `(batch_size, num_segments, num_samples)`):
                Waveform of each segment, in the range of int16.
            image_features (`torch.FloatTensor` of shape `(batch_size, num_segments, num_locations, width)`):
                Dense features, also as maps `(batch_size, num_segments, height, width, channels)`; or one embedding
                per segment, `(batch_size, num_segments, width)`.
            audio_features (`torch.FloatTensor` of shape `(batch_size, num_segments, width)`):
                Audio features.
            frame_mask (`torch.BoolTensor` of shape `(batch_size, num_segments, num_frames)`, *optional*):
                `False` where a frame is missing.
            segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*):
                `False` at padding, which does not change the logits of the other segments.
            labels (`torch.LongTensor` of shape `(batch_size, num_segments)` or `(batch_size,)`, *optional*):
                One class per segment (-100 is not counted), or per video if `config.supervision` is `"weak"`. If
                `config.problem_type` is `"multi_label"`, 0 or 1 for each class in one more dimension: `(batch_size,
                num_segments, num_labels)` or `(batch_size, num_labels)`.
            event_spans (`torch.FloatTensor` of shape `(batch_size, num_events, 2)`, *optional*):
                Start and end of the events in segments, not rounded: needed together with `labels` if the model has
                `boundary_regression`.
            event_classes (`torch.LongTensor` of shape `(batch_size, num_events)`, *optional*):
                Class of each event; -100 is padding.
            output_attentions (`bool`, *optional*):
                Whether to return `visual_attentions`, `temporal_attentions` and `feature_attentions`.
            output_hidden_states (`bool` or `list[int]`, *optional*):
                Whether to return `hidden_states`, or the indices of those to return (the others are `None`).

        Raises:
            ValueError: If raw and cached input are mixed or incomplete, features have a wrong width or shape, labels
                have a wrong shape or value, or padding is not at the end.
        """
        if output_attentions is None:
            output_attentions = getattr(self.config, "output_attentions", False)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        image, audio = self._features(
            pixel_values, input_values, image_features, audio_features, frame_mask, segment_mask
        )
        if segment_mask is not None:
            image, audio = zero_padding(image, segment_mask), zero_padding(audio, segment_mask)
        if self.input_dropout is not None:
            image, audio = self.input_dropout(image), self.input_dropout(audio)
        visual, visual_attentions = self.attend(image, audio)
        output = self.localize(visual, audio, segment_mask, output_attentions)
        losses = {} if labels is None else self._losses(output, labels, segment_mask)
        hidden = None if output.hidden_states is None else output.hidden_states[-1]
        if self.boundary_head is not None and hidden is not None:
            output.proposal_logits, output.proposal_spans = self.propose(hidden, segment_mask)
        if labels is not None and self.boundary_head is not None:
            losses |= self._boundary_losses(output, labels, segment_mask, event_spans, event_classes, losses["loss"])
        # A new object, because the entries of a ModelOutput keep the order in which they were set.
        return AVEClipLocalizationOutput(
            **losses,
            logits=output.logits,
            event_logits=output.event_logits,
            proposal_logits=output.proposal_logits,
            proposal_spans=output.proposal_spans,
            visual_attentions=visual_attentions if output_attentions else None,
            temporal_attentions=output.temporal_attentions,
            feature_attentions=output.feature_attentions,
            hidden_states=_chosen(output.hidden_states, output_hidden_states),
        )

    def _features(
        self,
        pixel_values: torch.Tensor | None,
        input_values: torch.Tensor | None,
        image_features: torch.Tensor | None,
        audio_features: torch.Tensor | None,
        frame_mask: torch.Tensor | None,
        segment_mask: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Checks the input of `forward` and returns it as image and audio features."""
        raw = {"pixel_values": pixel_values, "input_values": input_values}
        cached = {"image_features": image_features, "audio_features": audio_features}
        given_raw = [name for name, value in raw.items() if value is not None]
        given_cached = [name for name, value in cached.items() if value is not None]
        if given_raw and given_cached:
            raise ValueError(
                f"Got raw input ({', '.join(given_raw)}) together with cached features ({', '.join(given_cached)}). "
                "Pass either pixel_values and input_values, or image_features and audio_features."
            )
        if pixel_values is not None and input_values is not None:
            self._check_raw(pixel_values, input_values)
            self._check_masks(frame_mask, segment_mask, pixel_values.shape[:3])
            return self._check_features(*self.encode(pixel_values, input_values, frame_mask, segment_mask))
        if image_features is not None and audio_features is not None:
            image, audio = self._check_features(image_features, audio_features)
            self._check_masks(frame_mask, segment_mask, image.shape[:2])
            return image, audio
        raise ValueError(
            "Both video and audio inputs are required: pass pixel_values and input_values, or image_features and "
            f"audio_features. Got {given_raw or given_cached or 'neither'}."
        )

    def _check_raw(self, pixel_values: torch.Tensor, input_values: torch.Tensor) -> None:
        if pixel_values.dim() != 6:
            raise ValueError(
                "`pixel_values` must have the shape (batch, segments, frames, channels, height, width), got "
                f"{tuple(pixel_values.shape)}."
            )
        is_waveform = not self.config.is_composite  # other encoders may take spectrograms
        if (is_waveform and input_values.dim() != 3) or input_values.shape[:2] != pixel_values.shape[:2]:
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
                f"Features are {image.shape[-1]} (image) and {audio.shape[-1]} (audio) wide, but this localizer needs "
                f"{expected[0]} and {expected[1]}. Extract them with its own towers, or train a localizer with "
                f"AVEClipConfig(use_encoders=False, image_feature_size={image.shape[-1]}, "
                f"audio_feature_size={audio.shape[-1]})."
            )
        return image.to(self.dtype), audio.to(self.dtype)

    def _check_masks(
        self, frame_mask: torch.Tensor | None, segment_mask: torch.Tensor | None, shape: tuple[int, ...]
    ) -> None:
        if 0 in shape:
            raise ValueError(f"The input contains no segment or no frame: (batch, segments, ...) is {tuple(shape)}.")
        if segment_mask is not None and segment_mask.shape != shape[:2]:
            raise ValueError(
                f"`segment_mask` must have the shape (batch, segments) = {tuple(shape[:2])}, got "
                f"{tuple(segment_mask.shape)}."
            )
        if frame_mask is not None and len(shape) < 3:
            raise ValueError("`frame_mask` can only be used with `pixel_values`; cached features have no frames.")
        if frame_mask is not None and frame_mask.shape != shape:
            raise ValueError(
                f"`frame_mask` must have the shape (batch, segments, frames) = {tuple(shape)}, got "
                f"{tuple(frame_mask.shape)}."
            )

    def _losses(
        self, output: AVEClipLocalizationOutput, labels: torch.Tensor, segment_mask: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        config, space = self.config, LabelSpace.of(self.config)
        labels = space.check_targets(labels, output.logits, config.supervision)
        real = torch.ones(output.logits.shape[:2], dtype=torch.bool, device=output.logits.device)
        if segment_mask is not None:
            real = segment_mask.bool()
        if config.supervision == "weak":
            pooling_logits = None
            if self.pooling is not None and output.hidden_states is not None:
                pooling_logits = self.pooling(output.hidden_states[-1])
            category_loss = space.video_loss(output.logits, labels, real, pooling_logits)
            return {"loss": config.category_loss_weight * category_loss, "category_loss": category_loss}
        labels = space.mask_targets(labels, real)
        category_loss = space.segment_loss(
            output.logits, labels, config.focal_gamma, config.class_weights, config.label_smoothing
        )
        losses = {"loss": config.category_loss_weight * category_loss, "category_loss": category_loss}
        if output.event_logits is not None:
            losses["event_loss"] = event_attention_loss(output.event_logits, space.event_targets(labels))
            losses["loss"] = losses["loss"] + config.event_loss_weight * losses["event_loss"]
        # As in CPSP, the contrast is that of the fused vectors that the classifier reads.
        fused = None if output.hidden_states is None else output.hidden_states[-1]
        if config.contrastive_loss_weight and fused is not None:
            is_event = space.event_targets(labels)
            losses["contrastive_loss"] = segment_contrastive_loss(fused, is_event, config.contrastive_temperature)
            losses["loss"] = losses["loss"] + config.contrastive_loss_weight * losses["contrastive_loss"]
        return losses


def _chosen(
    hidden_states: tuple[torch.Tensor | None, ...] | None, wanted: bool | list[int] | None
) -> tuple[torch.Tensor | None, ...] | None:
    if hidden_states is None or isinstance(wanted, bool | None):
        return hidden_states if wanted else None
    kept = {index % len(hidden_states) for index in wanted}
    return tuple(state if index in kept else None for index, state in enumerate(hidden_states))


__all__ = ["AVEClipForLocalization", "AVEClipLocalizationOutput", "AVEClipPreTrainedModel"]
