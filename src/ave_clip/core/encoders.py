"""Encoders: one interface to the models that turn images, audio and label texts into embeddings or class scores.

The interface is that of transformers: `get_image_features`, `get_audio_features` and `get_text_features` with
`pooler_output` (and `last_hidden_state` for maps), or classifiers with `logits` and `id2label`. [`Encoder`] uses it as
it is, and [`ClassifierEncoder`] does so for classifiers, so a model that follows it needs no code at all. A model that
differs needs one subclass of [`Encoder`] in this file, with its `model_types`; [`encoder_for`] finds it by them.

Shapes: as in `encoder_interface.py`.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from .categories import class_names
from .encoder_interface import Encoder, Features, ImageFeatures, as_locations
from .events import BOTH, HEARD, SEEN
from .modeling_audioclip import MAX_LOGIT_SCALE, MIN_LOGIT_SCALE
from .similarity import SharedSpace, Similarity


class AudioCLIPEncoder(Encoder):
    """AudioCLIP, and localizers on its towers, which have the same attributes `vision_model` and `audio_model`."""

    model_types = ("audioclip",)
    templates = {SEEN: "{}", HEARD: "{}"}  # trained on labels without a sentence
    has_one_text_space = True

    def image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        output = self.model.vision_model(pixel_values, feature_types=("pooled", "dense"))
        return ImageFeatures(pooled=output.image_embeds, locations=output.dense_embeds)

    def image_features(self, pixel_values: torch.Tensor, visual_feature_type: str) -> torch.Tensor:
        output = self.model.vision_model(pixel_values, feature_types=(visual_feature_type,))
        if visual_feature_type == "dense":
            return output.dense_embeds
        if visual_feature_type == "pooled":
            return output.image_embeds
        return output.last_hidden_state.flatten(2).transpose(1, 2)  # (N, P, D)

    def audio(self, input_values: torch.Tensor) -> Features:
        # Not converted: the spectrogram needs float32 even if the weights are bfloat16.
        return Features(pooled=self.model.audio_model(input_values).audio_embeds)

    def similarity(self, sense: str) -> Similarity:
        logit_scale = self.model.logit_scale_at if sense == HEARD else self.model.logit_scale
        return Similarity(logit_scale.float().exp().clamp(MIN_LOGIT_SCALE, MAX_LOGIT_SCALE).item())

    @classmethod
    def shared_space(cls, config: PreTrainedConfig) -> SharedSpace:
        return SharedSpace(
            image=("vision_model",),
            audio=("audio_model",),
            heads=("vision_model.attnpool", "audio_model.fc"),
            scale="logit_scale_ai",
        )


class SiglipEncoder(Encoder):
    """SigLIP, and the checkpoints of SigLIP2 with a fixed size, which are of the same type."""

    model_types = ("siglip",)
    text_options = {"padding": "max_length", "max_length": 64, "truncation": True}  # as trained: the padding counts
    templates = {SEEN: "this is a photo of {}", HEARD: "{}"}


class Siglip2Encoder(SiglipEncoder):
    """SigLIP2 for images of any shape ("naflex"). It takes patches; the frames here are square."""

    model_types = ("siglip2",)

    def image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        side = self.model.config.vision_config.patch_size
        rows, columns = pixel_values.shape[-2] // side, pixel_values.shape[-1] // side
        patches = pixel_values[..., : rows * side, : columns * side].to(self.dtype)
        patches = patches.unflatten(-2, (rows, side)).unflatten(-1, (columns, side))  # (N, 3, rows, s, columns, s)
        patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(1, 2).flatten(2)  # (N, P, s * s * 3)
        shapes = torch.tensor([[rows, columns]], device=patches.device).expand(len(patches), 2)
        mask = torch.ones(patches.shape[:2], dtype=torch.long, device=patches.device)
        output = self.model.get_image_features(pixel_values=patches, pixel_attention_mask=mask, spatial_shapes=shapes)
        return ImageFeatures(pooled=output.pooler_output, locations=output.last_hidden_state)


class ClapEncoder(Encoder):
    """CLAP. It fills 10 s with whatever audio it gets, so a segment alone is often too short to be recognized."""

    model_types = ("clap",)
    window_seconds = 3.0

    @classmethod
    def extractor_options(cls, config: PreTrainedConfig) -> dict[str, Any]:
        # The default, "fusion", marks a random item of each batch as longer than the others. Only models that were
        # trained with fusion have filters that need it; `audio` below says that no item is longer.
        return {"truncation": "fusion" if config.audio_config.enable_fusion else "rand_trunc"}

    def audio(self, input_values: torch.Tensor) -> Features:
        is_longer = torch.zeros(len(input_values), 1, dtype=torch.bool, device=input_values.device)
        output = self.model.get_audio_features(input_features=input_values.to(self.dtype), is_longer=is_longer)
        return Features(pooled=output.pooler_output)

    def similarity(self, sense: str) -> Similarity:
        return Similarity(self.model.logit_scale_a.float().exp().item())


class PeAudioEncoder(Encoder):
    """PE-Audio, and PE-A-Frame, whose embedding of a window is the mean over its frames."""

    model_types = ("pe_audio",)
    templates = {SEEN: "{}", HEARD: "{}"}
    text_parts = ("text_model", "text_audio_head")

    @classmethod
    def model_class(cls, config: PreTrainedConfig) -> Any:
        from transformers import PeAudioFrameLevelModel

        # Both have one model type, for which AutoModel builds the model for whole windows.
        is_frame_level = any("FrameLevel" in name for name in config.architectures or ())
        return PeAudioFrameLevelModel if is_frame_level else AutoModel

    def audio(self, input_values: torch.Tensor) -> Features:
        embeds = self.model.get_audio_embeds(input_values.to(self.dtype))
        return Features(pooled=embeds if embeds.dim() == 2 else embeds.mean(dim=1))

    def text(self, tokens: Mapping[str, torch.Tensor], sense: str) -> torch.Tensor:
        # `get_text_audio_embeds` asks the text model for no hidden states and fails without them (transformers 5.24).
        return self.model.text_audio_head(_first_token(self.model.text_model, tokens))

    def similarity(self, sense: str) -> Similarity:
        return _pe_similarity(self.model.text_audio_logit_scale, self.model.text_audio_logit_bias)


class PeAudioVideoEncoder(Encoder):
    """PE-AV: images and audio by one model. Its own `forward` and several `get_*_embeds` fail in transformers 5.24."""

    model_types = ("pe_audio_video",)
    templates = {SEEN: "{}", HEARD: "{}", BOTH: "{}"}
    text_parts = ()  # its towers share the text model
    packages = ("timm",)

    def image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        tower = self.model.video_model
        # Each image is a video of one frame.
        output = tower.video_encoder(pixel_values_videos=pixel_values.to(self.dtype).unsqueeze(1))
        pooled, locations = tower.video_head(output.pooler_output), tower.video_head(output.last_hidden_state)
        return ImageFeatures(pooled=pooled, locations=locations)

    def audio(self, input_values: torch.Tensor) -> Features:
        return Features(pooled=self.model.audio_model.get_audio_embeds(input_values.to(self.dtype)))

    @property
    def is_joint(self) -> bool:
        return True

    def embed_jointly(
        self, pixel_values: torch.Tensor, frame_mask: torch.Tensor, input_values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        # The joint head was trained on whole windows of audio and video. A segment is such a window, of 1 s by
        # default, and its frames are one video.
        has_frames = frame_mask.any(dim=-1)
        # A mask makes the model align audio and frames item by item. Attention needs at least one frame.
        mask = None if frame_mask.all() else frame_mask | ~has_frames.unsqueeze(-1)
        embeds = self.model.get_audio_video_embeds(
            input_values=input_values.to(self.dtype),
            pixel_values_videos=pixel_values.to(self.dtype),
            padding_mask_videos=mask,
            return_audio_embeds=True,
            return_video_embeds=True,
        )
        seen, both = (
            part.masked_fill(~has_frames.unsqueeze(-1), 0) for part in (embeds.video_embeds, embeds.audio_video_embeds)
        )
        return {HEARD: embeds.audio_embeds, SEEN: seen, BOTH: both}

    def text(self, tokens: Mapping[str, torch.Tensor], sense: str) -> torch.Tensor:
        heads = {
            HEARD: self.model.audio_model.text_audio_head,
            SEEN: self.model.video_model.text_video_head,
            BOTH: self.model.text_audio_video_head,
        }
        return heads[sense](_first_token(self.model.text_model, tokens))

    def similarity(self, sense: str) -> Similarity:
        audio, video = self.model.audio_model, self.model.video_model
        if sense == HEARD:
            return _pe_similarity(audio.text_audio_logit_scale, audio.text_audio_logit_bias)
        if sense == BOTH:
            return _pe_similarity(self.model.text_audio_video_logit_scale, self.model.text_audio_video_logit_bias)
        return _pe_similarity(video.text_video_logit_scale, video.text_video_logit_bias)

    @classmethod
    def shared_space(cls, config: PreTrainedConfig) -> SharedSpace:
        return SharedSpace(
            image=("video_model.video_encoder", "video_model.video_head"),
            audio=("audio_model.audio_encoder", "audio_model.audio_head"),
            heads=("video_model.video_head", "audio_model.audio_head"),
            scale="audio_video_logit_scale",
            bias="audio_video_logit_bias",
            fixed=tuple(f"audio_model.audio_encoder.embedder.{name}" for name in ("dac_encoder", "bottleneck")),
        )


class ClassifierEncoder(Encoder):
    """Any classifier of images or audio. Labels are matched with its classes by the table of concepts."""

    text_parts = ()
    takes_texts = False

    @classmethod
    def model_class(cls, config: PreTrainedConfig) -> Any:
        is_audio = is_audio_classifier(config)
        return AutoModelForAudioClassification if is_audio else AutoModelForImageClassification

    def image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        return self._features(pixel_values)

    def audio(self, input_values: torch.Tensor) -> Features:
        return self._features(input_values)

    def _features(self, inputs: torch.Tensor) -> ImageFeatures:
        output = self.model(inputs.to(self.dtype), output_hidden_states=True)
        states = output.get("hidden_states")
        states = output.last_hidden_state if states is None else states[-1]
        states = states.flatten(2).transpose(1, 2) if states.dim() == 4 else states  # (N, P, D)
        return ImageFeatures(pooled=states.mean(dim=1), locations=as_locations(states), logits=output.logits)

    def classes(self, sense: str) -> list[str]:
        return class_names(self.model.config)

    def is_multi_label(self, sense: str) -> bool:
        # Most audio classifiers are trained on AudioSet, where sounds overlap, and do not say so.
        problem = self.model.config.problem_type
        return problem == "multi_label_classification" or (problem is None and sense == HEARD)


class ASTEncoder(ClassifierEncoder):
    """Audio Spectrogram Transformer, which was trained on 10 s."""

    model_types = ("audio-spectrogram-transformer",)
    window_seconds = 3.0


class AVEClipMiniEncoder(Encoder):
    """The two classifiers of `ave-clip-mini`: YAMNet for audio, and EfficientNet-lite0 for images.

    The features of a localizer are those before the last layers, which it therefore drops: the map of an image, and
    the embedding of a window.
    """

    model_types = ("ave_clip_mini",)
    text_parts = ("event_head", "label_classifier", "image_model.classifier", "audio_model.classifier")
    takes_texts = False

    def image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        locations = self.model._frame_features(pixel_values)
        pooled, classifier = locations.mean(dim=1), self.model.image_model.classifier
        logits = None if classifier is None else classifier(pooled)
        return ImageFeatures(pooled=pooled, locations=locations, logits=logits)

    def audio(self, input_values: torch.Tensor) -> Features:
        pooled, classifier = self.model._audio_features(input_values.float()), self.model.audio_model.classifier
        return Features(pooled=pooled, logits=None if classifier is None else classifier(pooled))

    def classes(self, sense: str) -> list[str]:
        config = self.model.config
        return class_names(config.audio_config if sense == HEARD else config.image_config)

    def is_multi_label(self, sense: str) -> bool:
        return sense == HEARD


class TwoTowersEncoder(Encoder):
    """[`AudioVisualEncoderModel`]: one encoder for images, one for audio."""

    model_types = ("audio_visual_encoder",)
    text_parts = ()

    def tower(self, sense: str) -> Encoder:
        is_second = sense == HEARD and self.model.audio_model is not None
        return encoder_for(self.model.audio_model if is_second else self.model.vision_model)

    def image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        return self.tower(SEEN).image(pixel_values)

    def audio(self, input_values: torch.Tensor) -> Features:
        return self.tower(HEARD).audio(input_values)

    @property
    def is_joint(self) -> bool:
        return self.model.audio_model is None and self.tower(SEEN).is_joint

    def embed_jointly(
        self, pixel_values: torch.Tensor, frame_mask: torch.Tensor, input_values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return self.tower(SEEN).embed_jointly(pixel_values, frame_mask, input_values)

    def text(self, tokens: Mapping[str, torch.Tensor], sense: str) -> torch.Tensor:
        return self.tower(sense).text(tokens, sense)

    def similarity(self, sense: str) -> Similarity:
        return self.tower(sense).similarity(sense)

    @classmethod
    def shared_space(cls, config: Any) -> SharedSpace | None:
        if config.audio_config is not None:
            return None  # two models, each with its own space
        space = encoder_class(config.vision_config).shared_space(config.vision_config)
        return None if space is None else space.inside("vision_model")

    def text_names(self) -> list[str]:
        names = [f"vision_model.{name}" for name in self.tower(SEEN).text_names()]
        if self.model.audio_model is not None:
            names += [f"audio_model.{name}" for name in self.tower(HEARD).text_names()]
        return names

    def drop_text_parts(self) -> None:
        self.tower(SEEN).drop_text_parts()
        self.tower(HEARD).drop_text_parts()


ENCODERS: dict[str, type[Encoder]] = {
    model_type: encoder
    for encoder in (
        *(AudioCLIPEncoder, SiglipEncoder, Siglip2Encoder, ClapEncoder, PeAudioEncoder, PeAudioVideoEncoder),
        *(ASTEncoder, AVEClipMiniEncoder, TwoTowersEncoder),
    )
    for model_type in encoder.model_types
}


def encoder_class(config: PreTrainedConfig) -> type[Encoder]:
    """The encoder for models of a configuration: by its `model_type`, else by the kind of its architecture."""
    if config.model_type in ENCODERS:
        return ENCODERS[config.model_type]
    is_classifier = any(name.endswith("Classification") for name in config.architectures or ())
    return ClassifierEncoder if is_classifier else Encoder


def encoder_for(model: PreTrainedModel) -> Encoder:
    """The interface to a model."""
    return encoder_class(model.config)(model)


def shared_space_of(config: PreTrainedConfig, name: str) -> SharedSpace:
    """The space that images and audio share in models of a configuration.

    Args:
        config (`PreTrainedConfig`): Configuration of an encoder.
        name (`str`): What the user calls the model, for the error.

    Raises:
        ValueError: If there is none.
    """
    space = encoder_class(config).shared_space(config)
    if space is not None:
        return space
    what = f"is of the type {config.model_type!r}"
    if config.model_type in TwoTowersEncoder.model_types:
        parts: Any = config
        image, audio = parts.vision_config.model_type, parts.heard_config.model_type
        what = f"contains {image!r} for images and {audio!r} for audio"
    raise ValueError(
        f"{name} {what}: there is no embedding space that images and audio share, so they cannot be compared with "
        "each other. Pass an encoder that has one, such as AudioCLIP or PE-AV (docs/encoders.md). Stages 2 and 3, the "
        "evaluation and the zero-shot pipeline need none."
    )


def check_packages(config: PreTrainedConfig) -> None:
    """Raises `ImportError` if a model of this configuration needs a package that is not installed."""
    missing = [name for name in encoder_class(config).packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"A model of the type {config.model_type!r} needs {', '.join(missing)}, which is not installed: "
            f"pip install {' '.join(missing)}."
        )


def is_audio_classifier(config: PreTrainedConfig) -> bool:
    """Whether the architecture named in a configuration classifies audio."""
    if config.model_type == "audio-spectrogram-transformer":
        return True
    return any("Audio" in name or "Sequence" in name for name in config.architectures or ())


def _first_token(text_model: PreTrainedModel, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return text_model(**tokens).last_hidden_state[:, 0]


def _pe_similarity(scale: torch.Tensor, bias: torch.Tensor) -> Similarity:
    return Similarity(scale.float().item(), bias.float().item(), is_cosine=False)


__all__ = [
    "ENCODERS",
    "Encoder",
    "Features",
    "ImageFeatures",
    "encoder_class",
    "encoder_for",
    "shared_space_of",
]
