"""Configuration of AVE-CLIP: the two AudioCLIP towers, the localizer on top of them, and its categories."""

from typing import Any

from transformers import PreTrainedConfig

from .categories import AVE_CATEGORIES, BACKGROUND_LABEL, labels_with_background
from .configuration_audioclip import AudioCLIPConfig
from .configuration_base import strict_config

_CHOICES = {
    "attention_domains": ("both", "temporal", "feature"),
    "visual_feature_type": ("dense", "layer4", "pooled"),
    "supervision": ("full", "weak"),
}


@strict_config
class AVEClipConfig(PreTrainedConfig):
    r"""
    Configuration of [`AVEClipForLocalization`]. Defaults follow the paper where `paper_decisions` leaves it alone;
    [`AVEClipConfig.paper`] gives the paper's network to the letter. A value outside its choices is a `ValueError`.

    Args:
        audioclip_config (`dict | AudioCLIPConfig`, *optional*):
            The two towers (its text tower is not used for localization).
        use_encoders (`bool`):
            Whether the model holds the towers. Without them it takes cached features only.
        image_feature_size (`int`, *optional*):
            Width of `image_features`; by default what the image tower gives for `visual_feature_type`.
        audio_feature_size (`int`, *optional*):
            Width of `audio_features`; by default the projection width of the audio tower.
        visual_feature_type (`str`):
            `"dense"` (every location in the joint space), `"layer4"` (the last convolutional map, then a linear
            layer) or `"pooled"` (one embedding a segment).
        normalize_features (`bool`):
            Whether image and audio features are brought to mean 0 and spread 1 first, by statistics of the training
            clips that are kept with the weights. For features of other encoders, whose scale may be anything.
        agva_hidden_size (`int`), agva_attention_size (`int`):
            Widths inside audio-guided visual attention.
        hidden_size (`int`):
            d of the paper: width of every BiLSTM's output and of each window's fusion.
        window_sizes (`list[int]`):
            Segments per block, one entry a window. A window longer than the video is one block.
        share_window_weights (`bool`):
            One set of fusion weights for all windows (Table 5 "shared"), or one each. Another window then costs no
            parameter in the fusion; what follows it grows, since the windows' outputs stand side by side (eq. 12).
        attention_domains (`str`):
            `"both"`, `"temporal"` or `"feature"` (Table 4).
        fusion_residual (`bool`):
            Whether a linear skip connection goes around each fusion.
        use_event_attention (`bool`), use_refiner (`bool`):
            The blocks of Table 3.
        refiner_window_sizes (`list[int]`):
            Windows of the refiner (Table 6).
        event_loss_weight (`float`), category_loss_weight (`float`):
            lambda_1 and lambda_2 of eq. 17.
        dropout (`float`):
            Dropout after each BiLSTM and each fusion.
        min_event_segments (`int`):
            W of sec. 3.7: the default of post-processing.
        supervision (`str`):
            `"full"` (one label a segment) or `"weak"` (one label a video).
        layer_norm_eps (`float`), initializer_range (`float`):
            Of the localizer's own layers.

    Example:

    ```python
    >>> from ave_clip import AVEClipConfig, AVEClipForLocalization

    >>> configuration = AVEClipConfig(window_sizes=(10, 5))
    >>> configuration.num_labels
    29
    >>> model = AVEClipForLocalization(configuration)
    ```"""

    model_type = "ave_clip"
    sub_configs_defaults = {"audioclip_config": AudioCLIPConfig}

    audioclip_config: dict | PreTrainedConfig | None = None
    use_encoders: bool = True
    image_feature_size: int | None = None
    audio_feature_size: int | None = None
    visual_feature_type: str = "dense"
    normalize_features: bool = False
    agva_hidden_size: int = 512
    agva_attention_size: int = 49
    hidden_size: int = 256
    window_sizes: list[int] | tuple[int, ...] = (10, 5, 3, 2)
    share_window_weights: bool = True
    attention_domains: str = "both"
    fusion_residual: bool = True
    use_event_attention: bool = True
    use_refiner: bool = True
    refiner_window_sizes: list[int] | tuple[int, ...] = (10,)
    event_loss_weight: float | int = 0.3
    category_loss_weight: float | int = 0.7
    dropout: float | int = 0.1
    min_event_segments: int = 3
    supervision: str = "full"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        if self.id2label is not None and not isinstance(self.id2label, dict):
            raise ValueError(
                f"`id2label` must be a dictionary from index to name, got {self.id2label!r}. "
                "`labels_with_background(categories)` makes one."
            )
        if self.id2label is not None and kwargs.get("num_labels") not in (None, len(self.id2label)):
            raise ValueError(
                f"`num_labels`={kwargs['num_labels']}, but `id2label` names {len(self.id2label)} classes."
            )
        if self.id2label is None and kwargs.get("num_labels") is None:
            self.id2label = labels_with_background(AVE_CATEGORIES)
        if self.id2label is not None and self.label2id is None:
            self.label2id = {label: int(index) for index, label in self.id2label.items()}
        self.window_sizes = tuple(self.window_sizes)
        self.refiner_window_sizes = tuple(self.refiner_window_sizes)
        super().__post_init__(**kwargs)
        self._check_values()

    @classmethod
    def paper(cls, **overrides: Any) -> "AVEClipConfig":
        """The network of the paper: its best rows, no residual around the fusion, 28 AVE categories and background.

        Args:
            overrides:
                Fields to change, as in the constructor (for a row of the paper's ablations).
        """
        return cls(**{"fusion_residual": False, **overrides})

    @property
    def background_label_id(self) -> int:
        """Index of the background class: always the last one."""
        return self.num_labels - 1

    @property
    def resolved_image_feature_size(self) -> int:
        """Width of `image_features` as the model expects them."""
        if self.image_feature_size is not None:
            return self.image_feature_size
        vision = self.audioclip_config.vision_config
        return vision.hidden_size if self.visual_feature_type == "layer4" else vision.projection_dim

    @property
    def resolved_audio_feature_size(self) -> int:
        """Width of `audio_features` as the model expects them."""
        return self.audio_feature_size or self.audioclip_config.audio_config.projection_dim

    def _check_values(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(self, name)!r}.")
        self._check_sizes()
        self._check_windows("window_sizes")
        self._check_windows("refiner_window_sizes")
        self._check_labels()
        self._check_feature_sizes()

    def _check_sizes(self) -> None:
        for name in ("hidden_size", "agva_hidden_size", "agva_attention_size", "min_event_segments"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % 2:
            raise ValueError(
                f"`hidden_size` is split over two LSTM directions and must be even, got {self.hidden_size}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"`dropout` must be in [0, 1), got {self.dropout}.")
        for name in ("event_loss_weight", "category_loss_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if self.layer_norm_eps <= 0:
            raise ValueError(f"`layer_norm_eps` must be above 0, got {self.layer_norm_eps}.")

    def _check_windows(self, name: str) -> None:
        windows = getattr(self, name)
        if not windows:
            raise ValueError(f"`{name}` must name at least one window, for example (10, 5, 3, 2); got {windows!r}.")
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in windows):
            raise ValueError(f"Every entry of `{name}` is a whole number of segments >= 1; got {windows!r}.")
        if len(set(windows)) < len(windows):
            raise ValueError(f"`{name}` holds a window twice: {windows!r}. Name each window once.")

    def _check_labels(self) -> None:
        if self.num_labels < 2:
            raise ValueError(
                f"A localizer needs at least one event class and background; got id2label {self.id2label}."
            )
        if sorted(self.id2label) != list(range(self.num_labels)):
            raise ValueError(f"`id2label` must have the keys 0..{self.num_labels - 1}, got {sorted(self.id2label)}.")
        names = [str(self.id2label[index]).lower() for index in range(self.num_labels)]
        if len(set(names)) < len(names):
            raise ValueError(f"`id2label` names a class twice: {self.id2label}.")
        if BACKGROUND_LABEL in names[:-1]:
            raise ValueError(
                f"Background must be the last class, but `id2label` has it at index {names.index(BACKGROUND_LABEL)} "
                f"of {self.num_labels}. Use `labels_with_background(categories)`."
            )

    def _check_feature_sizes(self) -> None:
        sizes = {name: getattr(self, name) for name in ("image_feature_size", "audio_feature_size")}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"`{name}` must be at least 1, got {size}.")
        if not self.use_encoders:
            return
        towers = self.audioclip_config
        is_map = self.visual_feature_type == "layer4"
        image_width = towers.vision_config.hidden_size if is_map else towers.vision_config.projection_dim
        expected = {"image_feature_size": image_width, "audio_feature_size": towers.audio_config.projection_dim}
        for name, size in sizes.items():
            if size is not None and size != expected[name]:
                raise ValueError(
                    f"`{name}`={size}, but the model's own tower gives {expected[name]} for "
                    f"visual_feature_type={self.visual_feature_type!r}. Leave the field out, or set "
                    "use_encoders=False for a localizer on other cached features."
                )


@strict_config
class AVEClipOnnxConfig(AVEClipConfig):
    """[`AVEClipConfig`] of a localizer whose weights are ONNX graphs."""

    model_type = "ave_clip_onnx"


__all__ = ["AVEClipConfig", "AVEClipOnnxConfig"]
