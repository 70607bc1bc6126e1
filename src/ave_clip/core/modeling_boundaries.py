"""Dense boundaries: an anchor-free head that regresses when events start and end, on a temporal pyramid.

After ActionFormer (Zhang et al. 2022, sec. 3.2 to 3.4). As in UnAV-100's own network (Geng et al. 2023, sec. 4.4) the
distances depend on the class, because events of several classes overlap at one point. Each level halves the number of
segments of the one before it, and its points propose events of about its own scale.

Shapes: B batch, T segments, d hidden size, P points of all levels together, C classes, E events.
"""

import math

import torch
from torch import nn
from transformers import initialization as init

from .boundary_loss import boundary_loss, checked_events, point_centers
from .categories import IGNORED_LABEL
from .configuration_ave_clip import AVEClipConfig
from .localization_output import AVEClipLocalizationOutput

# Initial bias of the class scores: each point starts with the probability 0.01 (Lin et al. 2017, sec. 3.3).
PRIOR_LOGIT = math.log(0.01 / 0.99)
EXCLUDED = -1e4  # logit of points in padding: probability 0, finite also in float16


class AVEClipBoundaryBranch(nn.Module):
    """A convolution over the points of one level, normalization, and the convolution that gives the outputs."""

    def __init__(self, config: AVEClipConfig, output_size: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(config.hidden_size, config.hidden_size, kernel_size=3, padding=1)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.output = nn.Conv1d(config.hidden_size, output_size, kernel_size=3, padding=1)

    def forward(self, level: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = _along_time(self.convolution, level)
        hidden = self.norm(hidden).relu() * mask.unsqueeze(-1)  # a convolution must not see what padding became
        return _along_time(self.output, hidden)


class AVEClipBoundaryHead(nn.Module):
    """Proposes one event per class at each point of a temporal pyramid.

    Level l has a point for each 2^l segments. All levels share the weights that score and regress.
    """

    def __init__(self, config: AVEClipConfig) -> None:
        super().__init__()
        self.num_classes = config.num_labels
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)
        self.reductions = nn.ModuleList(
            nn.Conv1d(config.hidden_size, config.hidden_size, kernel_size=3, stride=2, padding=1)
            for _ in range(config.boundary_levels - 1)
        )
        self.scores = AVEClipBoundaryBranch(config, config.num_labels)
        self.distances = AVEClipBoundaryBranch(config, 2 * config.num_labels)
        self.scales = nn.Parameter(torch.ones(config.boundary_levels))

    def forward(
        self, hidden: torch.Tensor, segment_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the proposals of all points.

        Args:
            hidden (`torch.Tensor` of shape `(batch_size, num_segments, hidden_size)`): One vector per segment.
            segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*): `False` at padding,
                which does not change the proposals of the other points.

        Returns:
            Class scores before the sigmoid `(batch_size, num_points, num_labels)`, and start and end of each proposal
            in segments `(batch_size, num_points, num_labels, 2)`. The points of padding have the score -10000.
        """
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
        if segment_mask is not None:
            mask = segment_mask.bool()
        level = self.dropout(self.norm(hidden)) * mask.unsqueeze(-1)  # (B, T, d)
        logits, spans = [], []
        for number, scale in enumerate(self.scales):
            if number:
                mask = mask[:, ::2]  # a point exists if the first of its segments does
                level = _along_time(self.reductions[number - 1], level).relu() * mask.unsqueeze(-1)
            centers, stride = point_centers(level.shape[1], number, level.device), 2**number
            distances = self.distances(level, mask).unflatten(-1, (self.num_classes, 2)).float()
            distances = nn.functional.softplus(scale * distances) * stride  # to the onset and to the offset
            centers = centers[:, None]  # the same for all classes
            spans.append(torch.stack([centers - distances[..., 0], centers + distances[..., 1]], dim=-1))
            logits.append(self.scores(level, mask).float().masked_fill(~mask.unsqueeze(-1), EXCLUDED))
        return torch.cat(logits, dim=1), torch.cat(spans, dim=1)

    def init_weights(self) -> None:
        """Initializes the weights; called by the model, which marks those that were loaded."""
        for module in self.modules():
            if isinstance(module, nn.Conv1d):
                init.xavier_uniform_(module.weight)
                init.zeros_(module.get_parameter("bias"))
        init.constant_(self.scores.output.get_parameter("bias"), PRIOR_LOGIT)
        init.ones_(self.scales)


class BoundaryMixin:
    """The part of [`AVEClipForLocalization`] that proposes events with exact times, and learns to.

    A class of its own, so that the class of the localizer contains the steps of the paper only.
    """

    config: AVEClipConfig
    boundary_head: AVEClipBoundaryHead | None

    def propose(
        self, hidden: torch.Tensor, segment_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the proposals of the boundary head.

        The head sees any number of segments at once, so the vectors of a long video can come from several windows.

        Args:
            hidden (`torch.Tensor` of shape `(batch_size, num_segments, hidden_size)`): The last of `hidden_states`.
            segment_mask (`torch.BoolTensor` of shape `(batch_size, num_segments)`, *optional*): `False` at padding.

        Returns:
            `proposal_logits` and `proposal_spans` of [`AVEClipLocalizationOutput`].

        Raises:
            ValueError: If the model has no `boundary_regression`.
        """
        if self.boundary_head is None:
            raise ValueError("This localizer proposes no exact times: it has boundary_regression=False.")
        return self.boundary_head(hidden, segment_mask)

    def _boundary_losses(
        self,
        output: AVEClipLocalizationOutput,
        labels: torch.Tensor,
        segment_mask: torch.Tensor | None,
        event_spans: torch.Tensor | None,
        event_classes: torch.Tensor | None,
        loss: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Returns the loss of the boundary head, and its sum with that of the other heads."""
        events = checked_events(event_spans, event_classes, len(labels))
        assert output.proposal_logits is not None and output.proposal_spans is not None
        labels = labels.to(output.logits.device, torch.long)
        if segment_mask is not None:
            labels = labels.masked_fill(~segment_mask.bool().unsqueeze(-1), IGNORED_LABEL)
        levels = self.config.boundary_levels
        own = boundary_loss(output.proposal_logits, output.proposal_spans, *events, labels, levels)
        return {"loss": loss + self.config.boundary_loss_weight * own, "boundary_loss": own}


def _along_time(convolution: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Applies a convolution to values `(B, T, d)`."""
    return convolution(values.transpose(1, 2)).transpose(1, 2)


__all__ = ["AVEClipBoundaryHead", "BoundaryMixin"]
