"""Configurations of `ave-clip-mini`: its image classifier, and the localizer with an audio and an image classifier."""

from typing import TYPE_CHECKING, Any, ClassVar

from transformers import MobileNetV1Config, PreTrainedConfig

from .builtin_checkpoints import LoadsBuiltinNames
from .categories import AVE_CATEGORIES, BACKGROUND_LABEL, labels_with_background
from .configuration_base import SubConfig, strict_config
from .events import DECODERS

# EfficientNet-lite0: repeats, kernel size, stride of the first, expansion, width.
_LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


@strict_config
class EfficientNetLiteConfig(PreTrainedConfig):
    r"""
    Configuration of [`EfficientNetLiteForImageClassification`]. The defaults are EfficientNet-lite0's.

    Args:
        num_channels (`int`), image_size (`int`):
            Channels and side length of the images.
        stem_size (`int`):
            Channels after the first convolution.
        stages (`list[list[int]]`):
            Per stage: number of blocks, kernel size, stride of the first block, expansion, channels.
        hidden_size (`int`):
            Channels of the last feature map.
        batch_norm_eps (`float`):
            Epsilon of batch normalization.
    """

    model_type = "efficientnet_lite"

    if TYPE_CHECKING:
        id2label: dict[int, str] = {}  # in transformers also None, which its `__post_init__` replaces

    num_channels: int = 3
    image_size: int = 224
    stem_size: int = 32
    stages: list[list[int]] | tuple[tuple[int, ...], ...] = _LITE0_STAGES
    hidden_size: int = 1280
    batch_norm_eps: float = 1e-3

    def __post_init__(self, **kwargs: Any) -> None:
        self.stages = tuple(tuple(stage) for stage in self.stages)  # JSON contains lists
        super().__post_init__(**kwargs)

    def validate_stages(self) -> None:
        if not self.stages or any(len(stage) != 5 or min(stage) < 1 for stage in self.stages):
            raise ValueError(
                "`stages` needs five whole numbers >= 1 per stage (blocks, kernel size, stride, expansion, "
                f"channels), got {self.stages!r}."
            )


@strict_config
class AVEClipMiniConfig(LoadsBuiltinNames, PreTrainedConfig):
    r"""
    Configuration of [`AVEClipMiniForLocalization`]: two classifiers, the concepts that connect their classes, and the
    event head. `id2label` contains the labels to find, background last; AVE's categories by default.

    Args:
        audio_config (`dict | MobileNetV1Config`, *optional*):
            The audio classifier, which takes log-mel patches as images with one channel. Its `id2label` names the
            classes that the concepts refer to.
        image_config (`dict | EfficientNetLiteConfig`, *optional*):
            The image classifier, whose `id2label` is used in the same way.
        concepts (`list[dict[str, str]]`):
            Rows of [`ConceptTable`]. Labels that it does not match cannot be set.
        event_hidden_size (`int`):
            Width of the event head.
        num_segments (`int`):
            Number of segments of the windows into which longer videos are cut. The event head was trained on this
            length.
        decoder (`str`):
            Decoder of pipelines, a name of `DECODERS`. `"viterbi"` keeps the ends of events where the default decoder,
            `"merge"`, would join a single second of background to them.
        min_event_segments (`int`):
            Length of the shortest event after post-processing.
        initializer_range (`float`):
            Standard deviation of the initial weights of the event head.
    """

    model_type = "ave_clip_mini"
    sub_configs_defaults: ClassVar[dict[str, Any]] = {
        "audio_config": MobileNetV1Config,
        "image_config": EfficientNetLiteConfig,
    }

    if TYPE_CHECKING:
        id2label: dict[int, str] = {}  # in transformers also None, which `__post_init__` replaces

    audio_config: SubConfig[MobileNetV1Config] = None
    image_config: SubConfig[EfficientNetLiteConfig] = None
    concepts: list[dict[str, str]] | tuple[dict[str, str], ...] = ()
    event_hidden_size: int = 32
    num_segments: int = 10
    decoder: str = "viterbi"
    min_event_segments: int = 1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is None and kwargs.get("num_labels") is None:
            self.id2label = labels_with_background(AVE_CATEGORIES)
        if self.id2label is not None and self.label2id is None:
            self.label2id = {label: int(index) for index, label in self.id2label.items()}
        super().__post_init__(**kwargs)

    def validate_sizes(self) -> None:
        for name in ("event_hidden_size", "num_segments", "min_event_segments"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def validate_decoder(self) -> None:
        if self.decoder not in DECODERS:
            raise ValueError(f"`decoder` must be one of {list(DECODERS)}, got {self.decoder!r}.")

    def validate_labels(self) -> None:
        names = [self.id2label.get(index) for index in range(len(self.id2label))]
        if len(names) < 2 or names[-1] != BACKGROUND_LABEL:
            raise ValueError(
                f"`id2label` needs at least one label and {BACKGROUND_LABEL!r} as the last, with the keys 0, 1, ...; "
                f"got {self.id2label}. `labels_with_background(labels)` makes one."
            )
        if len(set(names)) < len(names):
            raise ValueError(f"`id2label` names a label twice: {self.id2label}.")

    @property
    def background_label_id(self) -> int:
        """Index of the background class: always the last one."""
        return len(self.id2label) - 1

    @property
    def window_sizes(self) -> tuple[int, ...]:
        """The single window size; the pipeline reads this property of every localizer."""
        return (self.num_segments,)


@strict_config
class AVEClipMiniOnnxConfig(AVEClipMiniConfig):
    """[`AVEClipMiniConfig`] of a localizer exported to ONNX, with the labels that it was exported with."""

    model_type = "ave_clip_mini_onnx"


__all__ = ["AVEClipMiniConfig", "AVEClipMiniOnnxConfig", "EfficientNetLiteConfig"]
