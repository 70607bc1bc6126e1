"""AudioCLIP: image, audio and text towers with a shared embedding space, compared pair by pair.

Shapes: B batch, P positions, H channels of a tower, D size of the embeddings.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextModelWithProjection, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .configuration_audioclip import AudioCLIPConfig
from .modeling_base import AlignedPreTrainedModel
from .modeling_clip_resnet import AudioCLIPVisionModel
from .modeling_esresnext import AudioCLIPAudioModel, AudioCLIPAudioOutput

MIN_LOGIT_SCALE, MAX_LOGIT_SCALE = 1.0, 100.0


@dataclass
class AudioCLIPAudioFeatures(BaseModelOutputWithPooling):
    """
    Output of [`AudioCLIPModel.get_audio_features`]: the fields of `BaseModelOutputWithPooling` and `loss_ttf`.

    Args:
        loss_ttf (`torch.Tensor` of shape `()`):
            Mean squared deviation of the spectrogram's filters from their target norm.
    """

    loss_ttf: torch.Tensor | None = None


@dataclass
class AudioCLIPOutput(ModelOutput):
    """
    Output of [`AudioCLIPModel`]; the fields of a modality that was not given are `None`.

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*, returned with `return_loss=True`):
            Contrastive loss over the given pairs of modalities, plus `loss_ttf` if audio is given.
        logits_per_audio_image (`torch.Tensor` of shape `(audio_batch_size, image_batch_size)`):
            Scaled cosine similarities.
        logits_per_audio_text (`torch.Tensor` of shape `(audio_batch_size, text_batch_size)`):
            Scaled cosine similarities.
        logits_per_image_text (`torch.Tensor` of shape `(image_batch_size, text_batch_size)`):
            Scaled cosine similarities.
        audio_embeds (`torch.Tensor` of shape `(audio_batch_size, projection_dim)`):
            Embeddings of length 1.
        image_embeds (`torch.Tensor` of shape `(image_batch_size, projection_dim)`):
            Embeddings of length 1.
        text_embeds (`torch.Tensor` of shape `(text_batch_size, projection_dim)`):
            Embeddings of length 1.
        loss_ttf (`torch.Tensor` of shape `()`):
            Regularizer of the spectrogram's filters.
        text_model_output (`BaseModelOutputWithPooling`): Output of the text tower.
        vision_model_output (`BaseModelOutputWithPooling`): Output of the image tower.
        audio_model_output ([`AudioCLIPAudioFeatures`]): Output of the audio tower.
    """

    loss: torch.Tensor | None = None
    logits_per_audio_image: torch.Tensor | None = None
    logits_per_audio_text: torch.Tensor | None = None
    logits_per_image_text: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    loss_ttf: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None
    audio_model_output: AudioCLIPAudioFeatures | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """Returns the values that are not `None`, with nested outputs as tuples."""
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in self.values())


def contrastive_loss(logits: torch.Tensor, sample_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Cross-entropy over the rows plus cross-entropy over the columns; matching pairs are on the diagonal.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, batch_size)`): Scaled similarities.
        sample_weights (`torch.Tensor` of shape `(batch_size,)`, *optional*): Weight of each pair.

    Returns:
        `torch.Tensor` of shape `()`.

    Raises:
        ValueError: If the matrix is not square, or the weights are not one per pair with a finite sum above 0 (the
            sum is not checked in compiled code).
    """
    if logits.shape[0] != logits.shape[1]:
        raise ValueError(f"The loss needs batches of the same size, got {logits.shape[0]} and {logits.shape[1]}.")
    if sample_weights is not None:
        if sample_weights.shape != logits.shape[:1]:
            raise ValueError(
                f"sample_weights must have shape ({logits.shape[0]},), got {tuple(sample_weights.shape)}."
            )
        sample_weights = sample_weights.to(logits)
        _check_sum(sample_weights)
    target = torch.arange(logits.shape[0], device=logits.device)
    rows = nn.functional.cross_entropy(logits, target, weight=sample_weights)
    columns = nn.functional.cross_entropy(logits.t(), target, weight=sample_weights)
    return rows + columns


def _check_sum(sample_weights: torch.Tensor) -> None:
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    total = sample_weights.detach().sum(dtype=torch.float32).item()
    if not 0 < total < math.inf:
        raise ValueError(
            f"sample_weights must have a finite sum above 0, got {total:g}; the loss is divided by this sum. Give at "
            "least one pair a weight above 0, or skip this batch."
        )


def _normalize(embeds: torch.Tensor) -> torch.Tensor:
    return embeds / embeds.norm(dim=-1, keepdim=True)


class AudioCLIPModel(AlignedPreTrainedModel):
    """
    AudioCLIP: CLIP's ResNet-50 and text transformer, and ESResNeXt for audio.

    Args:
        config ([`AudioCLIPConfig`]): Configuration of the three towers.
    """

    config: AudioCLIPConfig
    config_class = AudioCLIPConfig
    base_model_prefix = "audioclip"
    main_input_name = "input_ids"
    input_modalities = ("audio", "image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "AudioCLIPVisionBottleneck",
        "AudioCLIPAttentionPool",
        "AudioCLIPAudioBottleneck",
        "AudioCLIPSpectrogram",
        "CLIPTextEmbeddings",
        "CLIPEncoderLayer",
    ]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: AudioCLIPConfig):
        super().__init__(config)
        towers = set(config.towers)
        if "text" in towers:
            self.text_model = CLIPTextModelWithProjection._from_config(config.text_config)
        if "vision" in towers:
            self.vision_model = AudioCLIPVisionModel._from_config(config.vision_config)
        if "audio" in towers:
            self.audio_model = AudioCLIPAudioModel._from_config(config.audio_config)
        if towers >= {"vision", "text"}:
            self.logit_scale = nn.Parameter(torch.empty(()))
        if towers >= {"audio", "vision"}:
            self.logit_scale_ai = nn.Parameter(torch.empty(()))
        if towers >= {"audio", "text"}:
            self.logit_scale_at = nn.Parameter(torch.empty(()))
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """Returns `False`, so that transformers initializes all modules by their own rules.

        For a class outside transformers it would skip modules without own parameters, and with them the rules of
        CLIP's text transformer. This is meant for code that overwrites loaded weights; the functions of
        `transformers.initialization`, which are used here, never do.
        """
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, AudioCLIPModel):
            for name, logit_scale in module.named_parameters(recurse=False):
                audio = name != "logit_scale"
                value = self.config.audio_logit_scale_init_value if audio else self.config.logit_scale_init_value
                init.constant_(logit_scale, value)

    def get_input_embeddings(self) -> nn.Module:
        """Returns the token embedding of the text tower."""
        if "text" not in self.config.towers:
            # transformers catches this error for models without a token embedding.
            raise NotImplementedError("This checkpoint has no text tower and therefore no token embedding.")
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the token embedding of the text tower."""
        self._tower("text").set_input_embeddings(value)

    def _tower(self, name: str) -> PreTrainedModel:
        if name not in self.config.towers:
            raise ValueError(f"This checkpoint has no {name} tower, only {', '.join(self.config.towers)}.")
        return getattr(self, f"{name}_model")

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """
        Embeds texts.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`): Token ids.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 0 at padding.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*): Positions.

        Returns:
            [`~modeling_outputs.BaseModelOutputWithPooling`]: `pooler_output` of shape `(batch_size, projection_dim)`
            is the embedding before normalization.
        """
        outputs = self._tower("text")(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            return_dict=True,
            **kwargs,
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=outputs.text_embeds,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """
        Embeds images.

        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, image_size, image_size)`):
                Images, normalized with CLIP's mean and standard deviation.

        Returns:
            [`~modeling_outputs.BaseModelOutputWithPooling`]: `pooler_output` of shape `(batch_size, projection_dim)`
            is the embedding before normalization, `last_hidden_state` of shape
            `(batch_size, num_positions, hidden_size)` is the last feature map.
        """
        outputs = self._tower("vision")(
            pixel_values=pixel_values, feature_types=("pooled", "layer4"), return_dict=True, **kwargs
        )
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state.flatten(2).transpose(1, 2),  # (B, P, H)
            pooler_output=outputs.image_embeds,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    @can_return_tuple
    def get_audio_features(
        self, input_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> AudioCLIPAudioFeatures:
        """
        Embeds waveforms.

        Args:
            input_values (`torch.Tensor` of shape `(batch_size, [channels,] num_samples)`):
                Samples in the range of int16, see [`AudioCLIPFeatureExtractor`].

        Returns:
            [`AudioCLIPAudioFeatures`]: `pooler_output` of shape `(batch_size, projection_dim)` is the embedding
            before normalization, `last_hidden_state` of shape `(batch_size, num_positions, hidden_size)` is the last
            feature map (the maps of several channels are concatenated).
        """
        outputs: AudioCLIPAudioOutput = self._tower("audio")(input_values=input_values, return_dict=True, **kwargs)
        feature_map = outputs.last_hidden_state.unflatten(0, (outputs.audio_embeds.shape[0], -1))  # (B, A, H, h, w)
        return AudioCLIPAudioFeatures(
            last_hidden_state=feature_map.transpose(1, 2).flatten(2).transpose(1, 2),  # (B, P, H)
            pooler_output=outputs.audio_embeds,
            hidden_states=outputs.hidden_states,
            loss_ttf=outputs.loss_ttf,
        )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_loss: bool | None = None,
        sample_weights: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> AudioCLIPOutput:
        """
        Embeds texts, images and waveforms, or any of them, and compares those that are given.

        Args:
            input_ids (`torch.LongTensor` of shape `(text_batch_size, sequence_length)`, *optional*): Token ids.
            pixel_values (`torch.Tensor` of shape `(image_batch_size, num_channels, height, width)`, *optional*):
                Normalized images.
            input_values (`torch.Tensor` of shape `(audio_batch_size, [channels,] num_samples)`, *optional*):
                Samples in the range of int16.
            attention_mask (`torch.Tensor` of shape `(text_batch_size, sequence_length)`, *optional*):
                0 at padded tokens.
            position_ids (`torch.LongTensor` of shape `(text_batch_size, sequence_length)`, *optional*):
                Positions of the tokens.
            return_loss (`bool`, *optional*):
                Whether to compute the contrastive loss; requires two or more modalities with equal batch sizes.
            sample_weights (`torch.Tensor` of shape `(batch_size,)`, *optional*):
                Weight of each item in the contrastive loss.

        Returns:
            [`AudioCLIPOutput`]

        Raises:
            ValueError: If no modality is given, or the loss is requested for a single modality, for batches of
                different sizes, or with weights whose sum is not above 0.
        """
        inputs = {"input_ids": input_ids, "pixel_values": pixel_values, "input_values": input_values}
        given = [name for name, value in inputs.items() if value is not None]
        if not given:
            raise ValueError("Nothing to embed: pass at least one of input_ids, pixel_values and input_values.")
        if return_loss and len(given) == 1:
            raise ValueError(
                f"return_loss=True needs at least two of {', '.join(inputs)}, got only {given[0]}. Pass another "
                "modality, or leave return_loss out."
            )
        audio = image = text = None
        if input_values is not None:
            audio = self.get_audio_features(input_values, return_dict=True, **kwargs)
        if pixel_values is not None:
            image = self.get_image_features(pixel_values, return_dict=True, **kwargs)
        if input_ids is not None:
            text = self.get_text_features(input_ids, attention_mask, position_ids, return_dict=True, **kwargs)
        outputs = AudioCLIPOutput(
            audio_embeds=None if audio is None else _normalize(audio.pooler_output),
            image_embeds=None if image is None else _normalize(image.pooler_output),
            text_embeds=None if text is None else _normalize(text.pooler_output),
            loss_ttf=None if audio is None else audio.loss_ttf,
            text_model_output=text,
            vision_model_output=image,
            audio_model_output=audio,
        )
        self._compare(outputs)
        if return_loss:
            outputs.loss = self._loss(outputs, sample_weights)
        return outputs

    def _compare(self, outputs: AudioCLIPOutput) -> None:
        """Sets the logits of all pairs of the given modalities."""
        audio, image, text = outputs.audio_embeds, outputs.image_embeds, outputs.text_embeds
        outputs.logits_per_audio_image = self._logits("logit_scale_ai", audio, image)
        outputs.logits_per_audio_text = self._logits("logit_scale_at", audio, text)
        outputs.logits_per_image_text = self._logits("logit_scale", image, text)

    def _logits(self, scale_name: str, rows: torch.Tensor | None, columns: torch.Tensor | None) -> torch.Tensor | None:
        if rows is None or columns is None:
            return None
        scale = getattr(self, scale_name).exp().clamp(MIN_LOGIT_SCALE, MAX_LOGIT_SCALE).to(rows.device)
        return scale * rows @ columns.t().to(rows.device)

    @staticmethod
    def _loss(outputs: AudioCLIPOutput, sample_weights: torch.Tensor | None) -> torch.Tensor:
        """Sum of the contrastive losses of all pairs, divided by the factorial of their number, plus `loss_ttf`.

        The original implementation divides by the factorial; kept because the released weights were trained with it.
        """
        pairs = (outputs.logits_per_audio_image, outputs.logits_per_audio_text, outputs.logits_per_image_text)
        losses = [contrastive_loss(logits, sample_weights) for logits in pairs if logits is not None]
        loss = sum(losses[1:], start=losses[0]) / math.factorial(len(losses))
        return loss if outputs.loss_ttf is None else loss + outputs.loss_ttf


__all__ = ["AudioCLIPAudioFeatures", "AudioCLIPModel", "AudioCLIPOutput"]
