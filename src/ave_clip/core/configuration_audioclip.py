"""Configuration of AudioCLIP: an image, an audio and a text tower with a shared embedding space."""

import math

from transformers import CLIPTextConfig, PreTrainedConfig

from .configuration_base import CheckedConfig, SubConfig, check_whole_numbers, strict_config

NUM_STAGES = 4
STAGE_EXPANSION = 4
TOWERS = ("text", "vision", "audio")
MAX_IMAGE_SIZE = 4096  # pixels per side; a larger image would take more memory than the network
MAX_DEPTH = 1000  # blocks or layers; each takes time and memory as an object, however few weights it has
STEM_REDUCTION = 32  # side of the image divided by the side of the last feature map


def _check_positive(config: PreTrainedConfig, *names: str) -> None:
    """Raises `ValueError` unless every named field of `config` is above zero."""
    for name in names:
        value = getattr(config, name)
        if value <= 0:
            raise ValueError(f"{type(config).__name__}.{name} must be above 0, got {value}.")


def _check_depths(config: PreTrainedConfig) -> None:
    """Raises `ValueError` unless `config.depths` contains one block count within the limits for each stage."""
    if len(config.depths) != NUM_STAGES or any(not 1 <= depth <= MAX_DEPTH for depth in config.depths):
        raise ValueError(
            f"{type(config).__name__}.depths must be {NUM_STAGES} counts of at least 1 and at most {MAX_DEPTH} "
            f"(blocks per stage), got {config.depths}."
        )


@strict_config
class AudioCLIPVisionConfig(CheckedConfig):
    r"""
    Configuration of [`AudioCLIPVisionModel`], the ResNet with attention pool of CLIP's RN50.

    Args:
        image_size (`int`, *optional*, defaults to 224):
            Side of the square input image in pixels, a multiple of 32.
        num_channels (`int`, *optional*, defaults to 3):
            Number of channels of the input image.
        width (`int`, *optional*, defaults to 64):
            Number of channels after the stem, an even number. The four stages have 4, 8, 16 and 32 times as many.
        depths (`tuple[int, ...]`, *optional*, defaults to `(3, 4, 6, 3)`):
            Number of bottleneck blocks in each of the four stages.
        num_attention_heads (`int`, *optional*, defaults to 32):
            Number of heads of the attention pool; divides `hidden_size`.
        projection_dim (`int`, *optional*, defaults to 1024):
            Size of the embeddings.
        batch_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the batch normalizations.
    """

    model_type = "audioclip_vision_model"
    base_config_key = "vision_config"

    image_size: int = 224
    num_channels: int = 3
    width: int = 64
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    num_attention_heads: int = 32
    projection_dim: int = 1024
    batch_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs):
        self.depths = tuple(self.depths)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Number of channels of the last feature map and of the attention pool."""
        return self.width * STAGE_EXPANSION * 2 ** (NUM_STAGES - 1)

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages, which is the number of hidden states."""
        return len(self.depths)

    @property
    def grid_size(self) -> int:
        """Side of the last feature map."""
        return self.image_size // STEM_REDUCTION

    def validate_architecture(self):
        """Checks sizes, depths and heads."""
        _check_positive(self, "image_size", "num_channels", "width", "num_attention_heads", "projection_dim")
        _check_positive(self, "batch_norm_eps")
        _check_depths(self)
        if self.image_size > MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be at most {MAX_IMAGE_SIZE} pixels, got {self.image_size}.")
        if self.image_size % STEM_REDUCTION:
            raise ValueError(
                f"image_size must be a multiple of {STEM_REDUCTION}, the network's stride, got {self.image_size}."
            )
        if self.width % 2:
            raise ValueError(f"width must be even (the stem starts with half of it), got {self.width}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must divide the hidden size, which is "
                f"32 * width = {self.hidden_size}."
            )
        self.check_size()

    def count_weights(self) -> int:
        """Returns the approximate number of weights, computed from the sizes alone."""
        planes = [self.width * 2**stage for stage in range(NUM_STAGES)]
        blocks = sum(
            17 * depth * plane**2 for depth, plane in zip(self.depths, planes)
        )  # 4 + 9 + 4: the convolutions of a block
        pool = self.hidden_size * (3 * self.hidden_size + self.projection_dim + self.grid_size**2)
        return blocks + pool


@strict_config
class AudioCLIPAudioConfig(CheckedConfig):
    r"""
    Configuration of [`AudioCLIPAudioModel`], ESResNeXt-50 on a learned fbsp spectrogram.

    Args:
        sampling_rate (`int`, *optional*, defaults to 44100):
            Samples per second of the audio that the tower was trained on.
        n_fft (`int`, *optional*, defaults to 2048):
            Number of samples of a zero-padded frame; the spectrogram has `n_fft // 2 + 1` frequency bins.
        hop_length (`int`, *optional*, defaults to 561):
            Samples from the start of one frame to the start of the next.
        win_length (`int`, *optional*, defaults to 1654):
            Number of samples of a frame before zero-padding; at most `n_fft`.
        normalized (`bool`, *optional*, defaults to `True`):
            Whether the filters are divided by `sqrt(n_fft)`.
        width (`int`, *optional*, defaults to 64):
            Number of channels after the stem. The four stages have 4, 8, 16 and 32 times as many.
        depths (`tuple[int, ...]`, *optional*, defaults to `(3, 4, 6, 3)`):
            Number of bottleneck blocks in each of the four stages.
        groups (`int`, *optional*, defaults to 32):
            Number of groups of the 3x3 convolutions.
        width_per_group (`int`, *optional*, defaults to 4):
            Channels of each group in the first stage of a network of `width` 64; scales with `width` and doubles
            with each stage.
        projection_dim (`int`, *optional*, defaults to 1024):
            Size of the embeddings.
        batch_norm_eps (`float`, *optional*, defaults to 1e-05):
            Epsilon of the batch normalizations.
    """

    model_type = "audioclip_audio_model"
    base_config_key = "audio_config"

    sampling_rate: int = 44100
    n_fft: int = 2048
    hop_length: int = 561
    win_length: int = 1654
    normalized: bool = True
    width: int = 64
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 3)
    groups: int = 32
    width_per_group: int = 4
    projection_dim: int = 1024
    batch_norm_eps: float = 1e-5

    def __post_init__(self, **kwargs):
        self.depths = tuple(self.depths)
        super().__post_init__(**kwargs)

    @property
    def hidden_size(self) -> int:
        """Number of channels of the last feature map."""
        return self.width * STAGE_EXPANSION * 2 ** (NUM_STAGES - 1)

    @property
    def num_hidden_layers(self) -> int:
        """Number of stages, which is the number of hidden states."""
        return len(self.depths)

    @property
    def stage_inner_widths(self) -> tuple[int, ...]:
        """Channels of the grouped convolutions per stage, by torchvision's rule (at least one per group)."""
        planes = [self.width * 2**stage for stage in range(NUM_STAGES)]
        return tuple(max(1, plane * self.width_per_group // 64) * self.groups for plane in planes)

    @property
    def num_frequency_bins(self) -> int:
        """Number of learned filters."""
        return self.n_fft // 2 + 1

    @property
    def num_image_rows(self) -> int:
        """Rows of the three-channel spectrogram image: a third of the bins, without the highest bins that remain."""
        return self.num_frequency_bins // 3

    def validate_architecture(self):
        """Checks the sizes of the frames and of the network."""
        _check_positive(self, "sampling_rate", "n_fft", "hop_length", "win_length", "width", "groups")
        _check_positive(self, "width_per_group", "projection_dim", "batch_norm_eps")
        _check_depths(self)
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length={self.win_length} must not exceed n_fft={self.n_fft}.")
        if self.num_image_rows < 1:
            raise ValueError(
                f"n_fft={self.n_fft} gives {self.num_frequency_bins} frequency bins, at least 3 are needed."
            )
        self.check_size()

    def count_weights(self) -> int:
        """Returns the approximate number of weights and filter values, computed from the sizes alone."""
        blocks = 0
        for stage, (depth, inner) in enumerate(zip(self.depths, self.stage_inner_widths)):
            out_channels = self.width * STAGE_EXPANSION * 2**stage
            blocks += depth * inner * (2 * out_channels + 9 * inner // self.groups)
        filters = 2 * self.num_frequency_bins * self.n_fft
        return blocks + self.hidden_size * (self.hidden_size + self.projection_dim) + filters


@strict_config
class AudioCLIPConfig(CheckedConfig):
    r"""
    Configuration of [`AudioCLIPModel`].

    Args:
        text_config (`dict` or [`~transformers.CLIPTextConfig`], *optional*):
            Text tower.
        vision_config (`dict` or [`AudioCLIPVisionConfig`], *optional*):
            Image tower.
        audio_config (`dict` or [`AudioCLIPAudioConfig`], *optional*):
            Audio tower.
        projection_dim (`int`, *optional*):
            Size of the shared embedding space, also set as `projection_dim` of the three towers. Defaults to that of
            the image tower (1024).
        towers (`tuple[str, ...]`, *optional*, defaults to `("text", "vision", "audio")`):
            Towers of the model. Fewer for a checkpoint that was converted without its text tower, or from a file with
            two towers only.
        logit_scale_init_value (`float`, *optional*, defaults to 1.0):
            Initial logarithm of the image-text scale.
        audio_logit_scale_init_value (`float`, *optional*, defaults to `log(100)`):
            Initial logarithm of the audio-image and audio-text scales.

    Examples:

    ```python
    >>> from ave_clip import AudioCLIPConfig, AudioCLIPModel

    >>> config = AudioCLIPConfig(audio_config={"depths": (1, 1, 1, 1)}, projection_dim=512)
    >>> config.text_config.projection_dim
    512
    ```"""

    model_type = "audioclip"
    sub_configs_defaults = {
        "text_config": CLIPTextConfig,
        "vision_config": AudioCLIPVisionConfig,
        "audio_config": AudioCLIPAudioConfig,
    }

    text_config: SubConfig[CLIPTextConfig] = None
    vision_config: SubConfig[AudioCLIPVisionConfig] = None
    audio_config: SubConfig[AudioCLIPAudioConfig] = None
    projection_dim: int | None = None
    towers: list[str] | tuple[str, ...] = TOWERS
    logit_scale_init_value: float | int = 1.0
    audio_logit_scale_init_value: float | int = math.log(100)

    def __post_init__(self, **kwargs):
        self.towers = tuple(self.towers)
        super().__post_init__(**kwargs)
        if self.projection_dim is None:
            self.projection_dim = self.vision_config.projection_dim
        for tower_config in (self.text_config, self.vision_config, self.audio_config):
            tower_config.projection_dim = self.projection_dim

    def validate_towers(self):
        """Checks the names of the towers."""
        unknown = [name for name in self.towers if name not in TOWERS]
        if unknown or not self.towers or len(set(self.towers)) < len(self.towers):
            raise ValueError(f"towers must contain some of {TOWERS}, each once, got {self.towers}.")

    def validate_projection(self):
        """Checks the size of the shared space."""
        if self.projection_dim is not None and self.projection_dim <= 0:
            raise ValueError(f"projection_dim must be above 0, got {self.projection_dim}.")

    def validate_size(self):
        """Checks that the model is not implausibly large."""
        check_whole_numbers(self.text_config)
        if self.text_config.num_hidden_layers > MAX_DEPTH:
            raise ValueError(f"num_hidden_layers={self.text_config.num_hidden_layers} is more than {MAX_DEPTH}.")
        self.check_size()

    def feature_sizes(self, visual_feature_type: str) -> tuple[int, int]:
        """Widths of the image features of that type and of the audio features."""
        is_map = visual_feature_type == "layer4"
        image = self.vision_config.hidden_size if is_map else self.vision_config.projection_dim
        return image, self.audio_config.projection_dim

    def count_weights(self) -> int:
        """Returns the approximate number of weights of all three towers, computed from the sizes alone."""
        text = self.text_config
        layer = text.hidden_size * (4 * text.hidden_size + 2 * text.intermediate_size)
        tokens = text.vocab_size + text.max_position_embeddings + self.vision_config.projection_dim
        towers = self.vision_config.count_weights() + self.audio_config.count_weights()
        return towers + text.num_hidden_layers * layer + tokens * text.hidden_size


__all__ = ["AudioCLIPAudioConfig", "AudioCLIPConfig", "AudioCLIPVisionConfig"]
