"""The output that every localizer returns."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput

from .modeling_base import ALWAYS_SET


@dataclass
class AVEClipLocalizationOutput(ModelOutput):
    """Output of [`AVEClipForLocalization`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            Hybrid loss of eq. 17: `event_loss_weight * event_loss + category_loss_weight * category_loss`; plus
            `contrastive_loss_weight * contrastive_loss`, if that weight is above 0; plus
            `boundary_loss_weight * boundary_loss`, if the model has `boundary_regression`.
        logits (`torch.FloatTensor` of shape `(batch_size, num_segments, num_labels)`):
            Class scores before softmax, background last; or before the sigmoid of each class if events may overlap.
        event_logits (`torch.FloatTensor` of shape `(batch_size, num_segments)`, *optional*):
            Event-or-background score of EGTA before its sigmoid; `None` without event attention.
        event_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Binary cross-entropy of `event_logits`; `None` under weak supervision or without event attention.
        category_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Cross-entropy of `logits`.
        contrastive_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Contrast of event and background segments, if `contrastive_loss_weight` is above 0.
        boundary_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Loss of the proposals, if the model has `boundary_regression`.
        proposal_logits (`torch.FloatTensor` of shape `(batch_size, num_points, num_labels)`, *optional*):
            With `boundary_regression`: score before the sigmoid of the event that each point of the temporal pyramid
            proposes for each class; the points of the first level come first.
        proposal_spans (`torch.FloatTensor` of shape `(batch_size, num_points, num_labels, 2)`, *optional*):
            Start and end of these events in segments, not rounded; they may reach beyond the video.
        visual_attentions (`torch.FloatTensor` of shape `(batch_size, num_segments, num_locations)`, *optional*):
            AGVA weights over the locations of the frames; they sum to 1 per segment.
        temporal_attentions (`tuple` of `torch.FloatTensor` of shape `(batch_size, num_segments, num_segments)`):
            One block-diagonal map per window; rows sum to 1 (padded rows: 0). `None` with feature attention only.
        feature_attentions (`tuple` of `torch.FloatTensor` of shape `(batch_size, num_blocks, d, d)`, *optional*):
            One map per window and block; columns sum to 1. `None` with temporal attention only.
        hidden_states (`tuple` of `torch.FloatTensor` of shape `(batch_size, num_segments, hidden_size)`, *optional*):
            Outputs of the video BiLSTM, the audio BiLSTM, the refiner (if used) and the last BiLSTM.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor = ALWAYS_SET
    event_logits: torch.Tensor | None = None
    event_loss: torch.Tensor | None = None
    category_loss: torch.Tensor | None = None
    contrastive_loss: torch.Tensor | None = None
    boundary_loss: torch.Tensor | None = None
    proposal_logits: torch.Tensor | None = None
    proposal_spans: torch.Tensor | None = None
    visual_attentions: torch.Tensor | None = None
    temporal_attentions: tuple[torch.Tensor, ...] | None = None
    feature_attentions: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor | None, ...] | None = None


__all__ = ["AVEClipLocalizationOutput"]
