"""Losses of the localizer (eq. 17): per segment, of the event attention, and per video under weak supervision.

Which of them a model uses is decided by its [`LabelSpace`]. Shapes: B batch, T segments, C classes (including
background for one label per segment).
"""

from collections.abc import Sequence

import torch
from torch import nn

from .categories import IGNORED_LABEL


def segment_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy over the labelled segments (L_c of eq. 17); 0 if no segment is labelled.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_segments, num_labels)`): Class scores.
        labels (`torch.LongTensor` of shape `(batch_size, num_segments)`): Classes; -100 is not counted.
    """
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
    )
    return total / (labels != IGNORED_LABEL).sum().clamp(min=1)


def multi_label_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    focal_gamma: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """Mean binary cross-entropy over all classes of the labelled segments; 0 if nothing is labelled.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_segments, num_labels)`): Class scores before the sigmoid.
        labels (`torch.LongTensor` of shape `(batch_size, num_segments, num_labels)`): 0 or 1; -100 is not counted.
        focal_gamma (`float`): Exponent of the focal loss (Lin et al. 2017, eq. 4): each term is multiplied by
            `(1 - p) ** focal_gamma`, where p is the probability of the right answer. 0 is plain cross-entropy.
        class_weights (`Sequence[float]` of length `num_labels`, *optional*): Factors of the terms of active classes,
            for classes that are rarely active.
    """
    counted = (labels != IGNORED_LABEL).to(torch.float32)
    targets = (labels == 1).to(torch.float32)
    logits = logits.float()
    losses = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if focal_gamma:
        # The sigmoid of the negated logit of the right answer is 1 - p, exact also where p is almost 1.
        losses = losses * torch.sigmoid(torch.where(targets == 1, -logits, logits)) ** focal_gamma
    if class_weights is not None:
        weights = torch.as_tensor(class_weights, dtype=torch.float32, device=logits.device)
        losses = losses * torch.where(targets == 1, weights, torch.ones_like(weights))
    return (losses * counted).sum() / counted.sum().clamp(min=1)


def event_attention_loss(event_logits: torch.Tensor, is_event: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of "is an event" over the labelled segments (L_e of eq. 17).

    Args:
        event_logits (`torch.Tensor` of shape `(batch_size, num_segments)`): Scores before the sigmoid.
        is_event (`torch.LongTensor` of shape `(batch_size, num_segments)`): 0 or 1; -100 is not counted.
    """
    return multi_label_loss(event_logits, is_event)


def video_level_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    segment_mask: torch.Tensor,
    pooling_logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Loss for weak supervision as in AVEL: negative log of the segments' mean probability of the video's class.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_segments, num_labels)`): Class scores.
        labels (`torch.LongTensor` of shape `(batch_size,)`): One class per video; -100 is not counted.
        segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`): `False` marks padding.
        pooling_logits (`torch.Tensor` of shape `(batch_size, num_segments, num_labels)`, *optional*): Scores of the
            segments' weights in the mean, before the softmax over segments; by default all weights are equal.
    """
    labels = labels.masked_fill(~segment_mask.any(dim=-1), IGNORED_LABEL)  # a video of padding only
    log_probabilities = logits.float().log_softmax(dim=-1)
    video = _pooled_logarithm(log_probabilities, segment_mask, pooling_logits)
    total = nn.functional.nll_loss(video, labels, ignore_index=IGNORED_LABEL, reduction="sum")
    return total / (labels != IGNORED_LABEL).sum().clamp(min=1)


def multi_label_video_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    segment_mask: torch.Tensor,
    pooling_logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiple-instance loss for weak supervision with several labels: binary cross-entropy of pooled probabilities.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_segments, num_labels)`): Class scores before the sigmoid.
        labels (`torch.LongTensor` of shape `(batch_size, num_labels)`): 0 or 1 per video; -100 is not counted.
        segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`): `False` marks padding.
        pooling_logits (`torch.Tensor` of shape `(batch_size, num_segments, num_labels)`, *optional*): As in
            [`video_level_loss`].
    """
    labels = labels.masked_fill(~segment_mask.any(dim=-1, keepdim=True), IGNORED_LABEL)
    counted = (labels != IGNORED_LABEL).to(torch.float32)
    logits = logits.float()
    active = _pooled_logarithm(nn.functional.logsigmoid(logits), segment_mask, pooling_logits)  # log of mean p
    inactive = _pooled_logarithm(nn.functional.logsigmoid(-logits), segment_mask, pooling_logits)  # log of 1 - mean p
    losses = -torch.where(labels == 1, active, inactive)
    return (losses * counted).sum() / counted.sum().clamp(min=1)


def _pooled_logarithm(
    log_probabilities: torch.Tensor, segment_mask: torch.Tensor, pooling_logits: torch.Tensor | None
) -> torch.Tensor:
    """Returns the logarithm `(B, C)` of the weighted mean of probabilities over the real segments."""
    real = segment_mask.unsqueeze(-1)
    lowest = torch.finfo(log_probabilities.dtype).min / 2  # not -inf: its gradient is NaN for a video of padding only
    if pooling_logits is None:
        counts = segment_mask.sum(dim=-1, keepdim=True).clamp(min=1)
        return torch.logsumexp(log_probabilities.masked_fill(~real, lowest), dim=1) - counts.log()
    weights = pooling_logits.float().masked_fill(~real, lowest).log_softmax(dim=1)
    return torch.logsumexp((log_probabilities + weights).masked_fill(~real, lowest), dim=1)


__all__ = [
    "IGNORED_LABEL",
    "event_attention_loss",
    "multi_label_loss",
    "multi_label_video_loss",
    "segment_loss",
    "video_level_loss",
]
