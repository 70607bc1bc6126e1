"""A composite encoder: an image tower and an audio tower, each any model of transformers, saved as one folder.

Shapes: N images or windows of audio, P locations of an image, D width of a tower, L texts.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .builtin_checkpoints import resolve_checkpoint
from .configuration_audio_visual_encoder import AudioVisualEncoderConfig, restore_num_labels
from .encoders import check_packages, encoder_class, encoder_for
from .events import HEARD, SEEN
from .modeling_audioclip import AudioCLIPModel
from .modeling_ave_clip_mini import AVEClipMiniForLocalization
from .modeling_base import AlignedPreTrainedModel, align_weights
from .processing_ave_clip import AVEClipProcessor
from .towers import commit_of, concepts_for, measure

# Models of this package. An export runs where they are not registered with `AutoModel`.
OWN_MODELS = {model.config_class.model_type: model for model in (AudioCLIPModel, AVEClipMiniForLocalization)}


@dataclass
class AudioVisualEncoderOutput(ModelOutput):
    """
    Output of [`AudioVisualEncoderModel`]; the fields of a modality that was not given are `None`.

    Args:
        image_embeds (`torch.Tensor` of shape `(num_images, image_feature_size)`): One embedding per image.
        audio_embeds (`torch.Tensor` of shape `(num_windows, audio_feature_size)`): One embedding per window of audio.
        image_logits (`torch.Tensor` of shape `(num_images, num_classes)`): Class scores, if the tower is a classifier.
        audio_logits (`torch.Tensor` of shape `(num_windows, num_classes)`): The same for audio.
    """

    image_embeds: torch.Tensor | None = None
    audio_embeds: torch.Tensor | None = None
    image_logits: torch.Tensor | None = None
    audio_logits: torch.Tensor | None = None


class AudioVisualEncoderModel(AlignedPreTrainedModel):
    """
    An image tower and an audio tower, each any model of transformers. They may have a space with texts, each its own,
    or be classifiers; or one model does both, such as PE-AV.

    ```python
    >>> model = AudioVisualEncoderModel.from_towers("google/siglip2-base-patch16-224", "laion/clap-htsat-unfused")
    >>> processor = AudioVisualEncoderProcessor.from_towers(
    ...     "google/siglip2-base-patch16-224", "laion/clap-htsat-unfused"
    ... )
    >>> model.save_pretrained("my-encoder")
    >>> processor.save_pretrained("my-encoder")
    >>> localizer = pipeline("zero-shot-audio-visual-event-localization", model="my-encoder")
    ```

    Args:
        config ([`AudioVisualEncoderConfig`]): Configuration of the towers.
        vision_model (`PreTrainedModel`, *optional*), audio_model (`PreTrainedModel`, *optional*):
            Towers that exist already; by default they are built from the configuration, with random weights.
    """

    config: AudioVisualEncoderConfig
    config_class = AudioVisualEncoderConfig
    base_model_prefix = "audio_visual_encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image", "audio", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: AudioVisualEncoderConfig,
        vision_model: PreTrainedModel | None = None,
        audio_model: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.vision_model = build_tower(config.vision_config) if vision_model is None else vision_model
        self.audio_model = audio_model
        if audio_model is None and config.audio_config is not None:
            self.audio_model = build_tower(config.audio_config)
        self.post_init()

    @classmethod
    def is_custom_code(cls) -> bool:
        """Returns `False`: the towers initialize their weights by their own rules, see [`AudioCLIPModel`]."""
        return False

    @classmethod
    def from_towers(cls, vision_id: str, audio_id: str | None = None, **kwargs: Any) -> "AudioVisualEncoderModel":
        """Joins two models of the Hub, or wraps one that encodes both images and audio.

        Args:
            vision_id (`str`): Folder, Hub id or built-in name of the image tower.
            audio_id (`str`, *optional*): The same for the audio tower; by default one model does both.
            kwargs: `vision_revision`, `audio_revision`, `audio_window_seconds` (see
                [`AudioVisualEncoderProcessor.from_towers`]), `dtype` and arguments of `from_pretrained`.

        Raises:
            ImportError: If a tower needs a package that is not installed.
            OSError: If there is no such model.
            ValueError: If a model cannot encode what is asked of it.
        """
        from .processing_audio_visual_encoder import AudioVisualEncoderProcessor

        names = ("vision_revision", "audio_revision", "audio_window_seconds")
        reading = {name: kwargs.pop(name) for name in names if name in kwargs}
        towers, facts = [], {}
        for name, source in (("vision", vision_id), ("audio", audio_id)):
            revision = reading.get(f"{name}_revision")
            towers.append(None if source is None else load_tower(source, revision=revision, **kwargs))
            if source is not None:
                facts |= {f"{name}_id": str(source), f"{name}_revision": commit_of(source, revision)}
        processor = AudioVisualEncoderProcessor.from_towers(vision_id, audio_id, **reading)
        vision_model, audio_model = towers
        return cls.from_models(vision_model, audio_model, processor, **facts)

    @classmethod
    def from_models(
        cls,
        vision_model: PreTrainedModel,
        audio_model: PreTrainedModel | None,
        processor: AVEClipProcessor,
        **facts: Any,
    ) -> "AudioVisualEncoderModel":
        """Makes one encoder of two models in memory.

        Args:
            vision_model (`PreTrainedModel`), audio_model (`PreTrainedModel`, *optional*): The towers.
            processor ([`AVEClipProcessor`]): Prepares frames and audio for them.
            facts: Further fields of [`AudioVisualEncoderConfig`].

        Raises:
            ValueError: If a model cannot encode what the processor prepares.
        """
        seen, heard = encoder_for(vision_model), encoder_for(vision_model if audio_model is None else audio_model)
        names = [[] if tower.takes_texts else tower.classes(sense) for tower, sense in ((heard, HEARD), (seen, SEEN))]
        config = AudioVisualEncoderConfig(
            # Copies: a configuration resets the attention implementation of those nested in it.
            vision_config=copy.deepcopy(vision_model.config),
            audio_config=None if audio_model is None else copy.deepcopy(audio_model.config),
            sampling_rate=processor.feature_extractor.sampling_rate,
            audio_window_seconds=processor.window_seconds,
            concepts=concepts_for(*names) if any(names) else (),
            **measure(seen, heard, processor),
            **facts,
        )
        model = cls(config, vision_model, audio_model).eval()
        align_weights(model)  # as after loading one of this package: equal weights then give equal results
        return model

    def get_image_features(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """
        Embeds images.

        Args:
            pixel_values (`torch.Tensor` of shape `(num_images, 3, height, width)`):
                Images, as the tower's own image processor prepares them.

        Returns:
            [`~modeling_outputs.BaseModelOutputWithPooling`]: `pooler_output` `(num_images, image_feature_size)` and
            `last_hidden_state` `(num_images, num_image_locations, image_map_size)`.
        """
        features = encoder_for(self).image(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=features.locations, pooler_output=features.pooled)

    def get_audio_features(self, input_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """
        Embeds windows of audio.

        Args:
            input_values (`torch.Tensor` of shape `(num_windows, ...)`):
                Windows, as the tower's own feature extractor prepares them.

        Returns:
            [`~modeling_outputs.BaseModelOutputWithPooling`]: `pooler_output` `(num_windows, audio_feature_size)`.
        """
        return BaseModelOutputWithPooling(pooler_output=encoder_for(self).audio(input_values).pooled)

    def get_text_features(self, sense: str = SEEN, **tokens: torch.Tensor) -> BaseModelOutputWithPooling:
        """
        Embeds texts into the space of one tower.

        Args:
            sense (`str`): `"seen"` for the space of the image tower, `"heard"` for that of the audio tower.
            tokens (`torch.Tensor`): What the tokenizer of that tower gives: `input_ids` and usually `attention_mask`.

        Returns:
            [`~modeling_outputs.BaseModelOutputWithPooling`]: `pooler_output` `(num_texts, width)`.

        Raises:
            ValueError: If the tower is a classifier, or `sense` is another word.
        """
        if sense not in (SEEN, HEARD):
            raise ValueError(f"`sense` must be {SEEN!r} or {HEARD!r}, got {sense!r}.")
        tower = encoder_for(self).tower(sense)
        if not tower.takes_texts:
            raise ValueError(
                f"The tower for what is {sense} is a classifier ({tower.model.config.model_type}), which takes no "
                "texts. Labels are matched with its classes by `config.concepts`."
            )
        return BaseModelOutputWithPooling(pooler_output=tower.text(tokens, sense))

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor | None = None, input_values: torch.Tensor | None = None, **kwargs: Any
    ) -> AudioVisualEncoderOutput:
        """
        Embeds images, windows of audio, or both.

        Args:
            pixel_values (`torch.Tensor` of shape `(num_images, 3, height, width)`, *optional*): Images.
            input_values (`torch.Tensor` of shape `(num_windows, ...)`, *optional*): Windows of audio.

        Raises:
            ValueError: If neither is given.
        """
        if pixel_values is None and input_values is None:
            raise ValueError("Nothing to encode: pass `pixel_values`, `input_values` or both.")
        encoder = encoder_for(self)
        image = None if pixel_values is None else encoder.image(pixel_values)
        audio = None if input_values is None else encoder.audio(input_values)
        return AudioVisualEncoderOutput(
            image_embeds=None if image is None else image.pooled,
            audio_embeds=None if audio is None else audio.pooled,
            image_logits=None if image is None else image.logits,
            audio_logits=None if audio is None else audio.logits,
        )


def load_tower(source: str, revision: str | None = None, **kwargs: Any) -> PreTrainedModel:
    """Loads one model from a folder, the Hub or a built-in name, by its own class.

    Raises:
        ImportError: If it needs a package that is not installed.
    """
    source = resolve_checkpoint(source)
    config = AutoConfig.from_pretrained(source, revision=revision)
    check_packages(config)
    restore_num_labels(config)
    return tower_class(config).from_pretrained(source, config=config, revision=revision, **kwargs).eval()


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds the model of a configuration, with random weights.

    Raises:
        ImportError: If it needs a package that is not installed.
    """
    check_packages(config)
    model_class = tower_class(config)
    from_config = getattr(model_class, "from_config", None) or model_class._from_config
    # The dtype that `from_pretrained` of a composite was asked for, not those saved in nested configurations.
    dtype = torch.get_default_dtype()
    _set_dtype(config, dtype)
    return from_config(config, dtype=dtype)


def _set_dtype(config: PreTrainedConfig, dtype: torch.dtype) -> None:
    config.dtype = dtype
    for name in config.sub_configs:
        if getattr(config, name) is not None:
            _set_dtype(getattr(config, name), dtype)


def tower_class(config: PreTrainedConfig) -> Any:
    """The class, or Auto class, of the model of a configuration."""
    return OWN_MODELS.get(config.model_type) or encoder_class(config).model_class(config)


__all__ = ["AudioVisualEncoderModel", "AudioVisualEncoderOutput"]
