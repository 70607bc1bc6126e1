"""Configuration of a composite encoder: an image tower and an audio tower, each any model of transformers."""

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_audioclip import AudioCLIPConfig
from .configuration_ave_clip_mini import AVEClipMiniConfig
from .configuration_base import CheckedConfig, SubConfig, check_whole_numbers, strict_config

# Configurations of this package. An export runs where they are not registered with `AutoConfig`.
OWN_CONFIGS = {config.model_type: config for config in (AudioCLIPConfig, AVEClipMiniConfig)}


@strict_config
class AudioVisualEncoderConfig(CheckedConfig):
    r"""
    Configuration of [`AudioVisualEncoderModel`]. [`AudioVisualEncoderModel.from_towers`] makes one from two ids.

    Args:
        vision_config (`dict | PreTrainedConfig`, *optional*):
            Configuration of the image tower; a CLIP by default.
        audio_config (`dict | PreTrainedConfig`, *optional*):
            Configuration of the audio tower. `None`: the image tower is a model for both, such as PE-AV.
        vision_id (`str`, *optional*), vision_revision (`str`, *optional*):
            Folder or Hub id that the image tower came from, and its commit.
        audio_id (`str`, *optional*), audio_revision (`str`, *optional*):
            The same for the audio tower.
        sampling_rate (`int`):
            Samples per second of the audio that the audio tower expects.
        audio_window_seconds (`float`):
            Length of the audio that is encoded for each segment. The segment is in its middle.
        image_feature_size (`int`), image_map_size (`int`):
            Width of one embedding per image, and of the vectors at the locations of an image.
        num_image_locations (`int`):
            Number of locations of an image.
        audio_feature_size (`int`):
            Width of one embedding per audio window.
        concepts (`list[dict[str, str]]`):
            Rows of [`ConceptTable`], which connect labels with the classes of towers that are classifiers.
    """

    model_type = "audio_visual_encoder"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(AutoConfig, model_type="clip"),
        "audio_config": SubConfigSpec(AutoConfig, model_type="clap", optional=True),
    }

    vision_config: SubConfig[PreTrainedConfig] = None
    audio_config: SubConfig[PreTrainedConfig] = None
    vision_id: str | None = None
    vision_revision: str | None = None
    audio_id: str | None = None
    audio_revision: str | None = None
    sampling_rate: int = 48000
    audio_window_seconds: float | int = 1.0
    image_feature_size: int = 512
    image_map_size: int = 768
    num_image_locations: int = 49
    audio_feature_size: int = 512
    concepts: list[dict[str, str]] | tuple[dict[str, str], ...] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("vision_config", "audio_config"):
            value = getattr(self, name)
            if isinstance(value, dict) and value.get("model_type") in OWN_CONFIGS:
                setattr(self, name, OWN_CONFIGS[value["model_type"]](**value))
        super().__post_init__(**kwargs)
        for config in filter(None, (self.vision_config, self.audio_config)):
            restore_num_labels(config)

    def validate_sizes(self) -> None:
        """Checks the sampling rate, the window and the widths."""
        sizes = ("sampling_rate", "image_feature_size", "image_map_size", "num_image_locations", "audio_feature_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if not 0 < self.audio_window_seconds <= 3600:
            raise ValueError(f"`audio_window_seconds` must be in (0, 3600], got {self.audio_window_seconds}.")
        check_whole_numbers(self)

    @property
    def heard_config(self) -> PreTrainedConfig:
        """Configuration of the tower that encodes the audio."""
        return self.vision_config if self.audio_config is None else self.audio_config

    def feature_sizes(self, visual_feature_type: str) -> tuple[int, int]:
        """Widths of the image features of that type and of the audio features."""
        return self.image_feature_size if visual_feature_type == "pooled" else self.image_map_size, (
            self.audio_feature_size
        )

    def count_weights(self) -> int:
        """Returns 0: the towers' own classes define how many weights their sizes mean."""
        return 0


def restore_num_labels(config: PreTrainedConfig) -> None:
    """Sets the number of outputs of PE-AV's image tower, which transformers 5.24 saves but does not load.

    The configuration of a timm model is saved with `num_classes` instead of `num_labels`, and only its `from_dict`
    reads that name, not the constructor that reads nested configurations. The tower would have 2 outputs.
    """
    if config.model_type == "pe_audio_video":
        vision = config.audio_video_config.video_config.vision_config
        number = getattr(vision, "num_classes", None)
        if number is not None and number != vision.num_labels:
            vision.num_labels = number


__all__ = ["OWN_CONFIGS", "AudioVisualEncoderConfig", "restore_num_labels"]
