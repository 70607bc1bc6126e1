"""What all rivals share: configuration, checks of the input, label handling, and the losses that several papers use.

Shapes: B batch, T segments, P frame locations, D image width, A audio width, d hidden size, C classes (background
last).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils.generic import can_return_tuple

from ..core.categories import (
    AVE_CATEGORIES,
    IGNORED_LABEL,
    MULTI_LABEL,
    SINGLE_LABEL,
    check_labels,
    labels_with_background,
)
from ..core.configuration_base import strict_config
from ..core.encoding import zero_padding
from ..core.label_space import LabelSpace
from ..core.localization_output import AVEClipLocalizationOutput
from ..core.losses import event_attention_loss, multi_label_loss, segment_loss
from ..core.modeling_base import AlignedPreTrainedModel

SUPERVISION = ("full", "weak")


@strict_config
class RivalConfig(PreTrainedConfig):
    """Configuration of a rival. Everything else is fixed by its paper. The classes are those of AVE by default.

    Args:
        image_feature_size (`int`), audio_feature_size (`int`):
            Widths of the features.
        supervision (`str`):
            `"full"` (labels of each segment) or `"weak"` (labels of whole videos).
        num_locations (`int`):
            Number of locations of the image features, which AVEL and PSP need to know; 1 for pooled features.
        hidden_size (`int`):
            Width of a modality after its first recurrent or attention layer. 256 gives the networks of all papers.
        max_segments (`int`, *optional*):
            Longest sequence that stage 3 trains on at once. RFJC has weights for this many segments.
    """

    model_type = "ave_clip_rival"

    if TYPE_CHECKING:
        id2label: dict[int, str] = {}

    image_feature_size: int = 512
    audio_feature_size: int = 128
    num_locations: int = 49
    supervision: str = "full"
    hidden_size: int = 256
    # Read by stage 3. A rival has no towers, finds no boundaries within segments and, as in the papers, has no
    # post-processing.
    use_encoders: bool = False
    boundary_regression: bool = False
    min_event_segments: int = 1
    max_segments: int | None = None

    def __post_init__(self, **kwargs) -> None:
        if self.problem_type == MULTI_LABEL:
            raise ValueError("The rivals give each segment one class; there is no version of them for several labels.")
        if not self.id2label and "num_labels" not in kwargs:
            self.id2label = labels_with_background(AVE_CATEGORIES)
        super().__post_init__(**kwargs)
        check_labels(self.id2label, SINGLE_LABEL)

    def validate_rival(self) -> None:
        if self.supervision not in SUPERVISION:
            raise ValueError(f"`supervision` must be one of {SUPERVISION}, got {self.supervision!r}.")
        for name in ("image_feature_size", "audio_feature_size", "num_locations"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size < 4 or self.hidden_size % 4:
            raise ValueError(f"`hidden_size` must be a multiple of 4 (the attention heads), got {self.hidden_size}.")

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.id2label)

    @property
    def resolved_image_feature_size(self) -> int:
        """Width of `image_features`, under the name that [`AVEClipConfig`] uses."""
        return self.image_feature_size

    @property
    def resolved_audio_feature_size(self) -> int:
        """Width of `audio_features`, under the name that [`AVEClipConfig`] uses."""
        return self.audio_feature_size


@dataclass
class RivalScores:
    """What a rival computes before any loss.

    Attributes:
        logits (`torch.Tensor` of shape `(B, T, C)`): Their argmax is the decision that the paper defines.
        event_logits (`torch.Tensor` of shape `(B, T)`, *optional*): Score of "an event" before the sigmoid.
        class_logits (`torch.Tensor`, *optional*): Class scores of the whole video.
        gate (`torch.Tensor` of shape `(B, T)`, *optional*): CMBS: how far both modalities agree on an event.
        agreement_logits (`torch.Tensor`, *optional*): CMBS: class scores of the modalities on their own.
        similarity (`torch.Tensor` of shape `(B, T)`, *optional*): PSP: cosine of both modalities.
        visual_attentions (`torch.Tensor` of shape `(B, T, P)`, *optional*): Weights of the locations.
    """

    logits: torch.Tensor
    event_logits: torch.Tensor | None = None
    class_logits: torch.Tensor | None = None
    gate: torch.Tensor | None = None
    agreement_logits: torch.Tensor | None = None
    similarity: torch.Tensor | None = None
    visual_attentions: torch.Tensor | None = None


class Rival(AlignedPreTrainedModel):
    """A network of previous work on features: `score`, `full_loss` and `weak_loss` follow its paper.

    The class attribute `title` is its name in tables; `settings` are the kinds of supervision that it is defined for.
    The module of each rival names its paper and code.

    Raises:
        ValueError: If it is not defined for the supervision of the configuration.
    """

    config: RivalConfig
    config_class = RivalConfig
    base_model_prefix = "rival"
    main_input_name = "image_features"
    title: ClassVar[str]
    settings: ClassVar[tuple[str, ...]] = SUPERVISION
    # Whether some weights belong to the first, second, ... segment, so that `max_segments` must be known.
    has_segment_weights: ClassVar[bool] = False

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        if config.supervision not in self.settings:
            raise ValueError(
                f"{self.title} is not defined for supervision={config.supervision!r}, only for "
                f"{' and '.join(map(repr, self.settings))}. Choose another network."
            )

    def _init_weights(self, module: nn.Module) -> None:
        """Keeps the weights that the constructors of the layers set, which the authors' code uses."""

    def score(self, locations: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> RivalScores:
        """Computes the scores.

        Args:
            locations (`torch.Tensor` of shape `(B, T, P, D)`): Image features, zero at padding.
            audio (`torch.Tensor` of shape `(B, T, A)`): Audio features, zero at padding.
            real (`torch.BoolTensor` of shape `(B, T)`): `False` at padding; the first segment is always `True`.
        """
        raise NotImplementedError  # each rival has its own

    def full_loss(self, scores: RivalScores, labels: torch.Tensor) -> torch.Tensor:
        """Returns the loss for labels `(B, T)` of segments; -100 is not counted. By default cross-entropy."""
        return self.space.segment_loss(scores.logits, labels)

    def weak_loss(self, scores: RivalScores, labels: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Returns the loss for labels `(B,)` of videos. By default that of the mean probability over segments."""
        return self.space.video_loss(scores.logits, labels, real)

    def event_and_class_losses(self, scores: RivalScores, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the losses of "an event" in each segment, and of the event of each video, for labels `(B, T)`."""
        assert scores.event_logits is not None
        assert scores.class_logits is not None
        video = event_class(labels, self.config.num_classes)
        event_loss = event_attention_loss(scores.event_logits, self.space.event_targets(labels))
        return event_loss, segment_loss(scores.class_logits.unsqueeze(1), video.unsqueeze(1))

    @property
    def space(self) -> LabelSpace:
        """The classes."""
        return LabelSpace.of(self.config)

    @can_return_tuple
    def forward(
        self,
        image_features: torch.Tensor,
        audio_features: torch.Tensor,
        segment_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> AVEClipLocalizationOutput:
        """Localizes events from features, as [`AVEClipForLocalization`] does.

        Args:
            image_features (`torch.Tensor`):
                `(B, T, D)`, `(B, T, P, D)` or `(B, T, height, width, D)`.
            audio_features (`torch.Tensor` of shape `(B, T, A)`):
                Audio features.
            segment_mask (`torch.BoolTensor` of shape `(B, T)`, *optional*):
                `False` at padding, which does not change the logits of the other segments.
            labels (`torch.LongTensor` of shape `(B, T)`, or `(B,)` under weak supervision, *optional*):
                Classes; -100 is not counted.

        Raises:
            ValueError: If features, mask or labels have a wrong shape, or padding is not at the end.
        """
        locations, audio = self._check_features(image_features, audio_features)
        real = _check_mask(segment_mask, audio)
        locations, audio = zero_padding(locations, real), zero_padding(audio, real)
        attended = real.clone()
        attended[:, 0] = True  # a video of padding only: attention over nothing would give NaN
        scores = self.score(locations, audio, attended)
        loss = None
        if labels is not None:
            labels = self.space.check_targets(labels, scores.logits, self.config.supervision)
            if self.config.supervision == "weak":
                loss = self.weak_loss(scores, labels.masked_fill(~real.any(dim=1), IGNORED_LABEL), attended)
            else:
                loss = self.full_loss(scores, self.space.mask_targets(labels, real))
        return AVEClipLocalizationOutput(
            loss=loss,
            logits=scores.logits,
            event_logits=scores.event_logits,
            visual_attentions=scores.visual_attentions,
        )

    def _check_features(self, image: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given = tuple(image.shape), tuple(audio.shape)
        if image.dim() == 5:
            image = image.flatten(2, 3)
        elif image.dim() == 3:
            image = image.unsqueeze(2)
        sizes = self.config.image_feature_size, self.config.audio_feature_size
        is_wrong = image.dim() != 4 or audio.dim() != 3 or image.shape[:2] != audio.shape[:2] or 0 in image.shape
        if is_wrong or (image.shape[-1], audio.shape[-1]) != sizes:
            raise ValueError(
                f"{type(self).__name__} needs image_features (batch, segments, [locations,] {sizes[0]}) and "
                f"audio_features (batch, segments, {sizes[1]}) over the same segments, got {given[0]} and {given[1]}. "
                "Build it with the widths of your features."
            )
        return image.to(self.dtype), audio.to(self.dtype)


def _check_mask(segment_mask: torch.Tensor | None, audio: torch.Tensor) -> torch.Tensor:
    """Returns the mask of real segments `(B, T)`."""
    if segment_mask is None:
        return torch.ones(audio.shape[:2], dtype=torch.bool, device=audio.device)
    mask = segment_mask.bool()
    if mask.shape != audio.shape[:2]:
        raise ValueError(
            f"`segment_mask` must have the shape (batch, segments) = {tuple(audio.shape[:2])}, got "
            f"{tuple(mask.shape)}."
        )
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError("`segment_mask` must be True for the segments of a video, then False for its padding.")
    return mask


def lengths_of(real: torch.Tensor) -> torch.Tensor | None:
    """Returns the numbers of real segments for a BiLSTM; `None` if there is no padding."""
    return None if real.all() else real.sum(dim=1)


def mask_padding(values: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Returns values `(B, T, ...)` with the lowest number at padding, for a maximum over segments."""
    padding = ~real.view(*real.shape, *[1] * (values.dim() - 2))
    return values.masked_fill(padding, torch.finfo(values.dtype).min)


def mean_over_segments(features: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Returns the mean `(B, d)` of the real segments of features `(B, T, d)`, which are zero at padding."""
    return features.sum(dim=1) / real.sum(dim=1, keepdim=True)


def mean_of_highest(values: torch.Tensor, real: torch.Tensor, number: int) -> torch.Tensor:
    """Returns the mean `(B, C)` of the `number` highest values `(B, T, C)` of the real segments of each class."""
    number = min(number, values.shape[1])
    highest = mask_padding(values, real).topk(number, dim=1).values  # (B, number, C)
    counted = (torch.arange(number, device=real.device) < real.sum(dim=1, keepdim=True)).unsqueeze(-1)
    return highest.masked_fill(~counted, 0).sum(dim=1) / counted.sum(dim=1)


def soft_margin_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Multi-label soft margin loss of a softmax, with which AVEL and CMBS are trained.

    Both train on `MultiLabelSoftMarginLoss()(softmax(scores), labels)`: a sigmoid of each probability.

    Args:
        probabilities (`torch.Tensor` of shape `(..., C)`): Softmax of the scores.
        labels (`torch.LongTensor` of shape `(...)`): Classes; -100 is not counted.
    """
    return multi_label_loss(probabilities, one_hot(labels, probabilities.shape[-1]))


def one_hot(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Returns labels `(...)` as 0 and 1 for each class `(..., C)`; -100 in all classes where the label is -100."""
    flags = nn.functional.one_hot(labels.clamp(min=0), num_labels)
    return flags.masked_fill((labels == IGNORED_LABEL).unsqueeze(-1), IGNORED_LABEL)


def event_class(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Returns the most frequent event `(B,)` of labels `(B, T)` of segments; -100 for a video without one."""
    counts = one_hot(labels, num_labels).clamp(min=0)[..., :-1].sum(dim=1)  # (B, C - 1)
    return counts.argmax(dim=1).masked_fill(~counts.any(dim=1), IGNORED_LABEL)


def joint_logits(event_logits: torch.Tensor, class_logits: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Combines "is there an event" of each segment with the class of the video to logits per segment.

    Their argmax is the decision of CMRAN and CMBS: background where the event score is at most 0 or background is the
    most probable class; otherwise the most probable class of the video.

    Args:
        event_logits (`torch.Tensor` of shape `(B, T)`): Score of "an event" before the sigmoid.
        class_logits (`torch.Tensor` of shape `(B, C - 1)` or `(B, C)`): Scores of the events, or also of background.
        num_labels (`int`): C.

    Returns:
        `torch.Tensor` of shape `(B, T, C)`.
    """
    relative = class_logits - class_logits.amax(dim=-1, keepdim=True)
    scores = event_logits.unsqueeze(-1) + relative.unsqueeze(1)  # (B, T, C - 1) or (B, T, C)
    background = torch.zeros_like(event_logits)
    if class_logits.shape[-1] == num_labels:
        background = scores[..., -1].clamp(min=0)
    return torch.cat([scores[..., : num_labels - 1], background.unsqueeze(-1)], dim=-1)


def xavier(*layers: nn.Linear) -> None:
    """Initializes the weights of the layers as the authors do; biases keep torch's default."""
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
