"""Losses of the localizer (eq. 17): per segment, of the event attention, and per video under weak supervision; and
CPSP's contrast of the segments of a video.

Which of them a model uses is decided by its [`LabelSpace`]. Shapes: B batch, T segments, C classes (including
background for one label per segment).
"""

from collections.abc import Sequence

import torch
from torch import nn

from .categories import IGNORED_LABEL


def segment_loss(logits: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy over the labelled segments (L_c of eq. 17); 0 if no segment is labelled.

    Args:
        logits (`torch.Tensor` of shape `(batch_size, num_segments, num_labels)`): Class scores.
        labels (`torch.LongTensor` of shape `(batch_size, num_segments)`): Classes; -100 is not counted.
        label_smoothing (`float`): Part of the target that is distributed evenly over all classes (Szegedy et al.
            2016, sec. 7).
    """
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        reduction="sum",
        label_smoothing=label_smoothing,
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
    losses = focal_terms(logits, targets, focal_gamma)
    if class_weights is not None:
        weights = torch.as_tensor(class_weights, dtype=torch.float32, device=logits.device)
        losses = losses * torch.where(targets == 1, weights, torch.ones_like(weights))
    return (losses * counted).sum() / counted.sum().clamp(min=1)


def focal_terms(logits: torch.Tensor, targets: torch.Tensor, gamma: float) -> torch.Tensor:
    """Binary cross-entropy of each score, times `(1 - p) ** gamma` (Lin et al. 2017, eq. 4); of the shape of `logits`.

    Args:
        logits (`torch.Tensor`): Scores before the sigmoid.
        targets (`torch.Tensor` of the same shape): 0 or 1, floating point.
        gamma (`float`): 0 is plain cross-entropy.
    """
    losses = nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if not gamma:
        return losses
    # The sigmoid of the negated logit of the right answer is 1 - p, exact also where p is almost 1.
    return losses * torch.sigmoid(torch.where(targets == 1, -logits, logits)) ** gamma


def event_attention_loss(event_logits: torch.Tensor, is_event: torch.Tensor) -> torch.Tensor:
    """Mean binary cross-entropy of "is an event" over the labelled segments (L_e of eq. 17).

    Args:
        event_logits (`torch.Tensor` of shape `(batch_size, num_segments)`): Scores before the sigmoid.
        is_event (`torch.LongTensor` of shape `(batch_size, num_segments)`): 0 or 1; -100 is not counted.
    """
    return multi_label_loss(event_logits, is_event)


def segment_contrastive_loss(hidden: torch.Tensor, is_event: torch.Tensor, temperature: float) -> torch.Tensor:
    """Contrast between the event and the background segments of each video (CPSP, Zhou et al. 2022: PSA_S).

    For each event segment i of a video with the event segments E and the background segments B, with
    `s_ij = exp(cosine(h_i, h_j) / temperature)`:

        loss_i = -log(positive_i / (positive_i + negative_i)),  positive_i = sum of s_ij over j in E (with i itself),
                                                                negative_i = mean of s_ij over j in B

    The loss of a video is the mean of `loss_i`, and 0 without an event or without background. The mean over the videos
    weighs each by its number of labelled segments, which for videos of equal length is CPSP's mean. As in the other
    losses, the mean over all processes is then that of one process.

    The formula is that of the authors' code (`segment_contrastive_loss`), with the sums over j as intended: that code
    sums over i, where no column has both positives and negatives, so that its loss is constant and has no gradient.

    Args:
        hidden (`torch.Tensor` of shape `(batch_size, num_segments, hidden_size)`): A vector per segment.
        is_event (`torch.LongTensor` of shape `(batch_size, num_segments)`): 0 or 1; -100 is not counted.
        temperature (`float`): Divisor of the cosines.
    """
    hidden = nn.functional.normalize(hidden.float(), dim=-1)
    similarity = hidden @ hidden.transpose(1, 2) / temperature  # (B, T, T)
    events, background = is_event == 1, is_event == 0
    numbers, num_background = events.sum(dim=-1), background.sum(dim=-1)
    # Logarithms, because `exp` overflows at low temperatures; a sum over nothing is far below all others, but finite.
    lowest = torch.finfo(similarity.dtype).min
    positive = similarity.masked_fill(~events.unsqueeze(1), lowest).logsumexp(dim=-1)  # (B, T)
    negative = similarity.masked_fill(~background.unsqueeze(1), lowest).logsumexp(dim=-1)
    negative = negative - num_background.clamp(min=1).log().unsqueeze(-1)
    counted = events & (num_background > 0).unsqueeze(-1)
    # -log(p / (p + n)) = softplus(log n - log p)
    losses = nn.functional.softplus((negative - positive).masked_fill(~counted, 0)) * counted
    per_video = losses.sum(dim=-1) / numbers.clamp(min=1)
    num_labelled = numbers + num_background
    return (per_video * num_labelled).sum() / num_labelled.sum().clamp(min=1)


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
    "focal_terms",
    "multi_label_loss",
    "multi_label_video_loss",
    "segment_contrastive_loss",
    "segment_loss",
    "video_level_loss",
]
