"""The interface to encoders: what the pipelines and localizers ask of a model, and transformers' own answer to it.

Shapes: N images or windows, P locations, D width, L texts, C classes of a classifier.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import AutoModel, PreTrainedConfig

from .events import HEARD, SEEN
from .similarity import SharedSpace, Similarity


@dataclass(kw_only=True)
class Features:
    """What an encoder says about images or windows of audio.

    Args:
        pooled (`torch.Tensor` of shape `(N, D)`): One embedding each.
        logits (`torch.Tensor` of shape `(N, C)`, *optional*): Class scores of a classifier.
    """

    pooled: torch.Tensor
    logits: torch.Tensor | None = None

    @property
    def evidence(self) -> torch.Tensor:
        """What labels are compared with: class scores, or embeddings where there are no classes."""
        return self.pooled if self.logits is None else self.logits


@dataclass(kw_only=True)
class ImageFeatures(Features):
    """What an encoder says about images.

    Args:
        locations (`torch.Tensor` of shape `(N, P, D)`): Embeddings of the locations of an image.
    """

    locations: torch.Tensor


class Encoder:
    """A model with transformers' own interface, such as CLIP and SigLIP, and the base of those that differ.

    Args:
        model (`PreTrainedModel`): The model to use.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    # Length of audio that the model needs to recognize a sound; `None`: a segment is enough.
    window_seconds: ClassVar[float | None] = None
    # Arguments of the tokenizer.
    text_options: ClassVar[Mapping[str, Any]] = {"padding": True, "truncation": True}
    # The sentence around a label that the model was trained on.
    templates: ClassVar[Mapping[str, str]] = {SEEN: "a photo of {}", HEARD: "the sound of {}"}
    # Modules that only texts and labels need; dots lead to nested ones. A localizer drops them.
    text_parts: ClassVar[tuple[str, ...]] = ("text_model", "text_projection")
    # Python packages that the model needs in addition to transformers.
    packages: ClassVar[tuple[str, ...]] = ()
    # Whether labels are texts to the model, for which it has a tokenizer. If not, they are matched with its classes.
    takes_texts: ClassVar[bool] = True
    # Whether images and audio are compared with the same embeddings of texts.
    has_one_text_space: ClassVar[bool] = False

    def __init__(self, model: Any) -> None:  # each subclass uses methods of other models
        self.model = model

    def tower(self, sense: str) -> "Encoder":
        """The encoder of what is `"seen"` or `"heard"`; for a single model, this one."""
        return self

    @classmethod
    def model_class(cls, config: PreTrainedConfig) -> Any:
        """The (Auto) class that loads and builds the model, unless it is one of this package."""
        return AutoModel

    @classmethod
    def extractor_options(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """Arguments of the feature extractor, which are saved with the processor."""
        return {}

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights, to which inputs are converted."""
        return self.model.dtype

    def image(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """Encodes images `(N, 3, height, width)`."""
        output = self.model.get_image_features(pixel_values=pixel_values.to(self.dtype))
        return ImageFeatures(pooled=output.pooler_output, locations=as_locations(output.last_hidden_state))

    def image_features(self, pixel_values: torch.Tensor, visual_feature_type: str) -> torch.Tensor:
        """The features of images for a localizer: `(N, D)` if `"pooled"`, else `(N, P, D)`."""
        features = self.image(pixel_values)
        return features.pooled if visual_feature_type == "pooled" else features.locations

    def audio(self, input_values: torch.Tensor) -> Features:
        """Encodes windows of audio `(N, ...)`, as the model's feature extractor gives them."""
        return Features(pooled=self.model.get_audio_features(input_values.to(self.dtype)).pooler_output)

    @property
    def is_joint(self) -> bool:
        """Whether the model also embeds frames and audio of a segment together, with `embed_jointly`."""
        return False

    def embed_jointly(
        self, pixel_values: torch.Tensor, frame_mask: torch.Tensor, input_values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Embeds segments: their audio, their frames, and both together.

        Args:
            pixel_values (`torch.Tensor` of shape `(N, num_frames, 3, height, width)`): Frames of each segment.
            frame_mask (`torch.BoolTensor` of shape `(N, num_frames)`): `False` where a frame is missing.
            input_values (`torch.Tensor` of shape `(N, ...)`): Windows, as the model's feature extractor gives them.

        Returns:
            `dict[str, torch.Tensor]`: `"heard"`, `"seen"` and `"both"`, each `(N, D)`; the last two are zero where a
            segment has no frame.
        """
        raise NotImplementedError(f"A model of the type {self.model.config.model_type!r} has no joint embedding.")

    def text(self, tokens: Mapping[str, torch.Tensor], sense: str) -> torch.Tensor:
        """Embeds texts for the comparison with what is `"seen"`, `"heard"` or, if joint, `"both"`: `(L, D)`."""
        return self.model.get_text_features(**tokens).pooler_output

    def similarity(self, sense: str) -> Similarity:
        """How texts are compared with what is `"seen"`, `"heard"` or, if joint, `"both"`."""
        bias = getattr(self.model, "logit_bias", None)
        return Similarity(self.model.logit_scale.float().exp().item(), None if bias is None else bias.float().item())

    @classmethod
    def shared_space(cls, config: PreTrainedConfig) -> SharedSpace | None:
        """The space that images and audio share in models of a configuration; `None` if there is none."""
        return None

    def agreement(self) -> Similarity | None:
        """How images are compared with audio; `None` without a shared space."""
        space = self.shared_space(self.model.config)
        return None if space is None else space.similarity(self.model)

    def classes(self, sense: str) -> list[str]:
        """Names of the classes of a classifier."""
        return []

    def is_multi_label(self, sense: str) -> bool:
        """Whether several classes of a classifier can be present at once."""
        return False

    def text_names(self) -> list[str]:
        """Names of the modules that only texts and labels need."""
        modules = dict(self.model.named_modules())
        return [name for name in self.text_parts if name in modules]

    def drop_text_parts(self) -> None:
        """Removes what only texts and labels need, for localizers."""
        for name in self.text_names():
            owner, _, attribute = name.rpartition(".")
            setattr(self.model.get_submodule(owner), attribute, None)


def as_locations(states: torch.Tensor) -> torch.Tensor:
    """The locations of an image among hidden states `(N, tokens, D)`: without class and register tokens in front."""
    number = math.isqrt(states.shape[1]) ** 2
    return states[:, states.shape[1] - number :]


__all__ = ["Encoder", "Features", "ImageFeatures", "as_locations"]
