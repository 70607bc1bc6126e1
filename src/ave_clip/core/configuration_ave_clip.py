"""Configuration of AVE-CLIP: the encoder of images and audio, the localizer on top of it, and its classes."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

from .categories import (
    AVE_CATEGORIES,
    MULTI_LABEL,
    SINGLE_LABEL,
    check_labels,
    check_num_labels,
    check_problem_type,
    labels_with_background,
)
from .configuration_audio_visual_encoder import AudioVisualEncoderConfig
from .configuration_audioclip import AudioCLIPConfig
from .configuration_base import CheckedConfig, SubConfig, strict_config

_CHOICES = {
    "attention_domains": ("both", "temporal", "feature"),
    "visual_feature_type": ("dense", "layer4", "pooled"),
    "supervision": ("full", "weak"),
    "video_pooling": ("mean", "attention"),
}
# Names that transformers gives to the problem types of text classifiers.
_PROBLEM_TYPES = {None: SINGLE_LABEL, "single_label_classification": SINGLE_LABEL}
_PROBLEM_TYPES["multi_label_classification"] = MULTI_LABEL
_LABEL_FIELDS = ("id2label", "label2id", "num_labels")
# Fields of each named configuration, where they differ from the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "paper": {
        "input_dropout": 0.0,
        "input_layer_norm": False,
        "gated_branches": False,
        "fusion_residual": False,
        "attention_domains": "both",
        "hidden_size": 256,
        "agva_hidden_size": 512,
        "dropout": 0.1,
        "use_refiner": True,
        "refiner_window_sizes": None,
    },
}
# Defaults of earlier versions, which saved no `gated_branches`. Configurations without it keep their network.
_EARLIER_DEFAULTS = PRESETS["paper"] | {"fusion_residual": True, "refiner_window_sizes": (10,)}


def _inverted(label2id: Any) -> dict[Any, str]:
    """Returns the `id2label` that corresponds to a `label2id`."""
    if not isinstance(label2id, dict):
        raise ValueError(f"`label2id` must be a dictionary from name to index, got {label2id!r}.")
    id2label = {index: label for label, index in label2id.items()}
    if len(id2label) < len(label2id):
        raise ValueError(f"`label2id` gives the same index to two classes: {label2id}.")
    return id2label


def _with_encoder_config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the same fields, with the encoder's configuration under its present name."""
    return {"encoder_config" if name == "audioclip_config" else name: value for name, value in fields.items()}


@strict_config
class AVEClipConfig(CheckedConfig):
    r"""
    Configuration of [`AVEClipForLocalization`]. The default is a smaller network than the paper's, with normalized
    input and gated branches, which was more accurate on the data that we could measure (docs/models.md);
    [`AVEClipConfig.paper`] gives the exact network of the paper. A value that is not allowed raises `ValueError`.

    Args:
        encoder_config (`dict | AudioCLIPConfig | AudioVisualEncoderConfig`, *optional*):
            Configuration of the encoder: an AudioCLIP, which is the default, or a composite of any two towers. What
            only texts need is not part of a localizer. Checkpoints of earlier versions call it `audioclip_config`,
            a name that is still accepted.
        use_encoders (`bool`):
            Whether the model contains the towers. Without them it accepts cached features only.
        image_feature_size (`int`, *optional*):
            Width of `image_features`; by default the width that the image tower gives for `visual_feature_type`.
        audio_feature_size (`int`, *optional*):
            Width of `audio_features`; by default the projection width of the audio tower.
        visual_feature_type (`str`):
            `"dense"` (every location in the joint space), `"layer4"` (the last convolutional map, then a linear
            layer) or `"pooled"` (one embedding per segment).
        normalize_features (`bool`):
            Whether image and audio features are first standardized to mean 0 and standard deviation 1, with the
            training set's statistics, which are saved with the weights. For features of other encoders, which may
            have any scale.
        input_dropout (`float`):
            Dropout of whole image and audio features: the same ones in all segments and locations of a video.
        input_layer_norm (`bool`):
            Whether image and audio features are layer-normalized (each location, each segment) before anything else.
        gated_branches (`bool`):
            Whether the windows of a fusion are added to a plain path, `relu(W [v; a])`, each multiplied by gates that
            start at zero: the network starts as a plain one, and each window must earn its weight. `False`: the
            outputs of the windows are concatenated, as in the paper (eq. 12).
        agva_hidden_size (`int`), agva_attention_size (`int`):
            Widths of the hidden layers of audio-guided visual attention.
        hidden_size (`int`):
            d of the paper: width of the output of each BiLSTM and of the fusion of each window.
        window_sizes (`list[int]`):
            Segments per block, one entry per window. A window longer than the video is one block.
        share_window_weights (`bool`):
            Whether all windows share one set of fusion weights (Table 5 "shared"). Then another window adds no
            parameters to the fusion, but it does to the layers after it, since the outputs of the windows are
            concatenated (eq. 12).
        attention_domains (`str`):
            `"both"`, `"temporal"` or `"feature"` (Table 4).
        fusion_residual (`bool`):
            Whether each fusion without gated branches has a linear skip connection.
        use_event_attention (`bool`), use_refiner (`bool`):
            Whether the model has these blocks (Table 3).
        refiner_window_sizes (`list[int]`, *optional*):
            Windows of the refiner (Table 6). `None` is one window over all segments, the w = T of sec. 3.5; on AVE,
            where T is 10, that is the same as `[10]`.
        event_loss_weight (`float`), category_loss_weight (`float`):
            Weights of the two losses: lambda_1 and lambda_2 of eq. 17.
        label_smoothing (`float`):
            Part of the target of each segment that is distributed evenly over all classes, for one label per segment.
        contrastive_loss_weight (`float`):
            Weight of a loss that pulls the event segments of a video together and away from its background segments
            (CPSP's; see [`segment_contrastive_loss`]). For full supervision with one label per segment.
        contrastive_temperature (`float`):
            Divisor of the cosines in that loss.
        dropout (`float`):
            Dropout after each BiLSTM and each fusion.
        problem_type (`str`):
            `"single_label"`: each segment has one class, of which the last is background, as in the paper.
            `"multi_label"`: events may overlap; each class has its own sigmoid, and background is not a class.
        focal_gamma (`float`):
            Exponent of the focal loss, for several labels; 0 is plain cross-entropy.
        class_weights (`list[float]`, *optional*):
            Factors of the loss of active classes, one per class, for several labels.
        event_threshold (`float`):
            Probability from which a class is active, for several labels: the default of post-processing.
        min_event_segments (`int`, *optional*):
            Shortest event in segments, W of sec. 3.7: the default of post-processing. By default 3, as in the paper,
            and 1 for several labels.
        label_embedding_size (`int`, *optional*):
            Width of the text embeddings of labels, for an open vocabulary: segments are compared with the embeddings
            of the labels in `id2label`, which [`AVEClipForLocalization.set_labels`] replaces. By default each class
            has its own weights.
        trained_labels (`list[str]`, *optional*):
            Of an open vocabulary, the labels that were trained; all others are unseen.
        max_segments (`int`, *optional*):
            Longest sequence of segments that is processed at once: training draws windows of this length from longer
            videos, and pipelines average over overlapping windows. By default stage 3 draws windows of 64 segments,
            and pipelines use windows of the longest entry of `window_sizes`.
        supervision (`str`):
            `"full"` (labels of each segment) or `"weak"` (labels of whole videos).
        video_pooling (`str`):
            How weak supervision pools the segments of a video: `"mean"` of their probabilities, or `"attention"`, a
            mean with learned weights per class.
        boundary_regression (`bool`):
            Whether a head regresses when events start and end, so that they need not start with a segment. Needs
            several labels and full supervision; it is trained with the exact times of the events.
        boundary_levels (`int`):
            Levels of that head's temporal pyramid, each with half the points of the one before. The first learns
            events whose ends are up to 4 segments away, each further level twice as many, the last all longer ones.
        boundary_loss_weight (`float`):
            Weight of that head's loss, which is added to the others.
        layer_norm_eps (`float`):
            Epsilon of the layer normalizations of the localizer.

    Examples:

    ```python
    >>> from ave_clip import AVEClipConfig, AVEClipForLocalization

    >>> configuration = AVEClipConfig(window_sizes=(10, 5))
    >>> configuration.num_labels
    29
    >>> model = AVEClipForLocalization(configuration)
    ```"""

    model_type = "ave_clip"
    sub_configs_defaults = {"encoder_config": AudioCLIPConfig}
    # transformers' Trainer gathers all other outputs in evaluation: `logits` only.
    keys_to_ignore_at_inference = [
        *("event_logits", "event_loss", "category_loss", "contrastive_loss"),
        *("boundary_loss", "proposal_logits", "proposal_spans"),
        *("visual_attentions", "temporal_attentions", "feature_attentions", "hidden_states"),
    ]

    if TYPE_CHECKING:
        id2label: dict[int, str] = {}  # in transformers also None, which `_set_labels` replaces

    encoder_config: SubConfig[Any] = None  # AudioCLIPConfig or AudioVisualEncoderConfig
    use_encoders: bool = True
    image_feature_size: int | None = None
    audio_feature_size: int | None = None
    visual_feature_type: str = "dense"
    normalize_features: bool = False
    input_dropout: float | int = 0.4
    input_layer_norm: bool = True
    gated_branches: bool = True
    agva_hidden_size: int = 128
    agva_attention_size: int = 49
    hidden_size: int = 128
    window_sizes: list[int] | tuple[int, ...] = (10, 5, 3, 2)
    share_window_weights: bool = True
    attention_domains: str = "temporal"
    fusion_residual: bool = True
    use_event_attention: bool = True
    use_refiner: bool = False
    refiner_window_sizes: list[int] | tuple[int, ...] | None = (10,)
    event_loss_weight: float | int = 0.3
    category_loss_weight: float | int = 0.7
    label_smoothing: float | int = 0.0
    contrastive_loss_weight: float | int = 0.0
    contrastive_temperature: float | int = 0.6
    dropout: float | int = 0.3
    problem_type: str | None = SINGLE_LABEL
    focal_gamma: float | int = 0.0
    class_weights: list[float | int] | tuple[float | int, ...] | None = None
    event_threshold: float = 0.5
    min_event_segments: int | None = None
    label_embedding_size: int | None = None
    trained_labels: list[str] | tuple[str, ...] | None = None
    max_segments: int | None = None
    supervision: str = "full"
    video_pooling: str = "mean"
    boundary_regression: bool = False
    boundary_levels: int = 4
    boundary_loss_weight: float | int = 1.0
    layer_norm_eps: float = 1e-5

    def __post_init__(self, audioclip_config: Any = None, **kwargs: Any) -> None:
        if self.encoder_config is None:
            self.encoder_config = audioclip_config
        if isinstance(self.encoder_config, dict):
            is_composite = self.encoder_config.get("model_type") == AudioVisualEncoderConfig.model_type
            config_class = AudioVisualEncoderConfig if is_composite else AudioCLIPConfig
            self.encoder_config = config_class(**self.encoder_config)
        self.problem_type = _PROBLEM_TYPES.get(self.problem_type, self.problem_type)
        check_problem_type(self.problem_type)
        if self.min_event_segments is None:
            self.min_event_segments = 1 if self.problem_type == MULTI_LABEL else 3
        self._set_labels(self.id2label, self.label2id, kwargs.pop("num_labels", None))
        if self.class_weights is not None:
            self.class_weights = tuple(self.class_weights)
        if self.trained_labels is not None:
            self.trained_labels = tuple(self.trained_labels)
        self.window_sizes = tuple(self.window_sizes)
        if self.refiner_window_sizes is not None:
            self.refiner_window_sizes = tuple(self.refiner_window_sizes)
        super().__post_init__(**kwargs)
        self._check_values()
        self._is_complete = True

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Self:
        """As [`~transformers.PreTrainedConfig.from_dict`]; labels in `kwargs` replace those of `config_dict`."""
        config_dict, kwargs = _with_encoder_config(config_dict), _with_encoder_config(kwargs)
        config_dict.pop("initializer_range", None)  # saved by earlier versions, in which no layer used it
        if "gated_branches" not in config_dict:
            config_dict = {**_EARLIER_DEFAULTS, **config_dict}
        kwargs = {name: value for name, value in kwargs.items() if value is not None or name not in _LABEL_FIELDS}
        saved = config_dict.get("id2label")
        replaced = ()
        if "id2label" in kwargs or "label2id" in kwargs:
            replaced = _LABEL_FIELDS
        elif "num_labels" in kwargs and saved is not None and kwargs["num_labels"] != len(saved):
            replaced = ("id2label", "label2id")
        elif saved is not None:  # earlier versions could save a `label2id` of other labels
            replaced = ("label2id",)
        for name in replaced:
            config_dict.pop(name, None)
        return super().from_dict(config_dict, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        # The dataclass sets the fields one by one; only then does `__post_init__` compare the two.
        if name in ("id2label", "label2id") and self.__dict__.get("_is_complete"):
            if value is None:
                raise ValueError(f"`{name}` cannot be None: a localizer needs the names of its classes.")
            self._set_labels(value if name == "id2label" else _inverted(value), None, None)
        else:
            super().__setattr__(name, value)

    def _set_labels(self, id2label: Any, label2id: Any, num_labels: int | None) -> None:
        """Sets `id2label` and `label2id` to the same labels, from the one that is given; by default to those of AVE.

        `num_labels` includes background where that is a class: 3 gives LABEL_0, LABEL_1 and background.
        """
        problem_type = self.problem_type or SINGLE_LABEL
        is_multi_label = problem_type == MULTI_LABEL
        if num_labels is not None:
            check_num_labels(num_labels, problem_type)
        if id2label is None and label2id is not None:
            id2label = _inverted(label2id)
        if id2label is None:
            number = len(AVE_CATEGORIES) if num_labels is None else num_labels - (not is_multi_label)
            names = AVE_CATEGORIES if num_labels is None else [f"LABEL_{index}" for index in range(number)]
            id2label = dict(enumerate(names)) if is_multi_label else labels_with_background(names)
        id2label = check_labels(id2label, problem_type)
        if label2id is not None and check_labels(_inverted(label2id), problem_type) != id2label:
            raise ValueError(f"`id2label` {id2label} and `label2id` {label2id} disagree. Pass one of them.")
        if num_labels not in (None, len(id2label)):
            raise ValueError(f"`num_labels`={num_labels}, but `id2label` names {len(id2label)} classes.")
        super().__setattr__("id2label", id2label)
        super().__setattr__("label2id", {label: index for index, label in id2label.items()})

    @property
    def num_labels(self) -> int:
        """Number of classes, including background if it is one. Another number gives them placeholder names."""
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, num_labels: int) -> None:
        if num_labels != len(self.id2label):
            self._set_labels(None, None, num_labels)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as they are saved."""
        content = super().to_dict()
        content.pop("_is_complete", None)
        return content

    @classmethod
    def paper(cls, **overrides: Any) -> Self:
        """Returns the paper's network, with its best settings.

        Args:
            overrides:
                Fields to change, as in the constructor (for example for one of the paper's ablations).
        """
        return cls(**{**PRESETS["paper"], **overrides})

    @property
    def background_label_id(self) -> int:
        """Index of the background class, which is the last of a single-label localizer.

        Raises:
            ValueError: If events may overlap, where background is not a class.
        """
        if self.problem_type == MULTI_LABEL:
            raise ValueError('A localizer with problem_type="multi_label" has no background class.')
        return self.num_labels - 1

    @property
    def resolved_image_feature_size(self) -> int:
        """Width of `image_features` that the model expects."""
        if self.image_feature_size is not None:
            return self.image_feature_size
        return self.encoder_config.feature_sizes(self.visual_feature_type)[0]

    @property
    def resolved_audio_feature_size(self) -> int:
        """Width of `audio_features` that the model expects."""
        return self.audio_feature_size or self.encoder_config.feature_sizes(self.visual_feature_type)[1]

    @property
    def audioclip_config(self) -> AudioCLIPConfig:
        """The `encoder_config` of a localizer on AudioCLIP, under the name of earlier versions."""
        if self.is_composite:
            raise AttributeError("This localizer has no AudioCLIP; its encoder is in `encoder_config`.")
        return self.encoder_config

    @property
    def is_composite(self) -> bool:
        """Whether the encoder is a composite of two towers, not an AudioCLIP."""
        return self.encoder_config.model_type == AudioVisualEncoderConfig.model_type

    def _check_values(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {list(choices)}, got {getattr(self, name)!r}.")
        self._check_sizes()
        self._check_multi_label()
        self._check_open_vocabulary()
        self._check_windows("window_sizes")
        if self.refiner_window_sizes is not None:
            self._check_windows("refiner_window_sizes")
        self._check_feature_sizes()
        self.check_size()

    def _check_sizes(self) -> None:
        sizes = ("hidden_size", "agva_hidden_size", "agva_attention_size", "min_event_segments", "boundary_levels")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % 2:
            raise ValueError(
                f"`hidden_size` is split over two LSTM directions and must be even, got {self.hidden_size}."
            )
        for name in ("dropout", "input_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be in [0, 1), got {getattr(self, name)}.")
        for name in ("event_loss_weight", "category_loss_weight", "contrastive_loss_weight", "boundary_loss_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if not 0 < self.contrastive_temperature < float("inf"):
            raise ValueError(f"`contrastive_temperature` must be above 0, got {self.contrastive_temperature}.")
        for name in ("label_smoothing", "contrastive_loss_weight"):
            if getattr(self, name) and (self.problem_type == MULTI_LABEL or self.supervision == "weak"):
                raise ValueError(
                    f"`{name}`={getattr(self, name)} needs one label of each segment, got "
                    f"problem_type={self.problem_type!r} and supervision={self.supervision!r}. Leave it out."
                )
        if self.layer_norm_eps <= 0:
            raise ValueError(f"`layer_norm_eps` must be above 0, got {self.layer_norm_eps}.")

    def _check_multi_label(self) -> None:
        if not 0 < self.event_threshold < 1:
            raise ValueError(f"`event_threshold` must be above 0 and below 1, got {self.event_threshold}.")
        if not 0 <= self.focal_gamma < float("inf"):
            raise ValueError(f"`focal_gamma` must be 0 or more, got {self.focal_gamma}.")
        for name, default in (("focal_gamma", 0), ("class_weights", None)):
            if self.problem_type != MULTI_LABEL and getattr(self, name) != default:
                raise ValueError(f"`{name}`={getattr(self, name)} needs problem_type='multi_label'.")
        if self.video_pooling == "attention" and self.supervision != "weak":
            raise ValueError("`video_pooling`='attention' needs supervision='weak': only then videos are pooled.")
        for name, needed in (("problem_type", MULTI_LABEL), ("supervision", "full")):
            if self.boundary_regression and getattr(self, name) != needed:
                raise ValueError(
                    f"`boundary_regression`=True needs {name}={needed!r}, got {getattr(self, name)!r}: the head "
                    "learns the exact times of events that may overlap."
                )
        if self.max_segments is not None and self.max_segments < 1:
            raise ValueError(f"`max_segments` must be at least 1, got {self.max_segments}.")
        weights = self.class_weights
        if weights is not None and (
            len(weights) != self.num_labels or not all(0 < weight < float("inf") for weight in weights)
        ):
            raise ValueError(
                f"`class_weights` must be {self.num_labels} numbers above 0, one per class, got {weights!r}."
            )

    def _check_open_vocabulary(self) -> None:
        if self.label_embedding_size is None:
            return
        if self.label_embedding_size < 1:
            raise ValueError(f"`label_embedding_size` must be at least 1, got {self.label_embedding_size}.")
        for name, is_fixed in (
            ("class_weights", self.class_weights is not None),
            ("video_pooling", self.video_pooling == "attention"),
            ("boundary_regression", self.boundary_regression),
        ):
            if is_fixed:
                raise ValueError(
                    f"`{name}`={getattr(self, name)!r} has weights of fixed classes. Leave it out, or leave out "
                    "`label_embedding_size`, which makes the vocabulary open."
                )

    def _check_windows(self, name: str) -> None:
        windows = getattr(self, name)
        if not windows:
            raise ValueError(f"`{name}` must contain at least one window, for example (10, 5, 3, 2); got {windows!r}.")
        if any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in windows):
            raise ValueError(f"Every entry of `{name}` must be a whole number of segments >= 1; got {windows!r}.")
        if len(set(windows)) < len(windows):
            raise ValueError(f"`{name}` contains a window twice: {windows!r}. Give each window once.")

    def count_weights(self) -> int:
        """Returns the approximate number of weights, computed from the sizes alone."""
        visual, audio, hidden = self.resolved_image_feature_size, self.resolved_audio_feature_size, self.hidden_size
        windows, refiner_windows = len(self.window_sizes), len(self.refiner_window_sizes or (None,))
        if self.gated_branches:  # the outputs of the windows are added
            windows = refiner_windows = 1
        copies, refiner_copies = (1, 1) if self.share_window_weights else (windows, refiner_windows)
        fused, refined = hidden * windows, hidden * refiner_windows
        attention = self.agva_hidden_size * (visual + audio + 2 * self.agva_attention_size)
        lstms = 4 * hidden * (visual + audio + fused + refined + 2 * hidden)
        fusions = hidden * (copies * (8 * hidden + 3 * hidden) + refiner_copies * (4 * fused + 3 * hidden))
        towers = self.encoder_config.count_weights() if self.use_encoders else 0
        boundaries = 3 * hidden * ((self.boundary_levels + 1) * hidden + 3 * self.num_labels)
        boundaries = boundaries if self.boundary_regression else 0
        classifier = hidden * self.num_labels
        if self.label_embedding_size is not None:
            classifier = self.label_embedding_size * (visual + audio + hidden + self.num_labels)
        return towers + attention + lstms + fusions + boundaries + classifier

    def _check_feature_sizes(self) -> None:
        sizes = {name: getattr(self, name) for name in ("image_feature_size", "audio_feature_size")}
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise ValueError(f"`{name}` must be at least 1, got {size}.")
        if not self.use_encoders:
            return
        if self.is_composite and self.visual_feature_type == "layer4":
            raise ValueError(
                "visual_feature_type='layer4' is a map of AudioCLIP. Use 'dense', the last hidden states at all "
                "locations, or 'pooled', one embedding per frame."
            )
        expected = dict(zip(sizes, self.encoder_config.feature_sizes(self.visual_feature_type)))
        for name, size in sizes.items():
            if size is not None and size != expected[name]:
                raise ValueError(
                    f"`{name}`={size}, but the model's own tower gives {expected[name]} for "
                    f"visual_feature_type={self.visual_feature_type!r}. Leave the field out, or set "
                    "use_encoders=False for a localizer on other cached features."
                )


@strict_config
class AVEClipOnnxConfig(AVEClipConfig):
    """[`AVEClipConfig`] of a localizer exported to ONNX."""

    model_type = "ave_clip_onnx"


__all__ = ["AVEClipConfig", "AVEClipOnnxConfig"]
