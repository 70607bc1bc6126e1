"""CMRAN: cross-modal relation-aware network.

Xu, Zeng, Wu, Tan, Gan: Cross-Modal Relation-Aware Networks for Audio-Visual Event Localization, ACM MM 2020. The
authors' code, FloretCat/CMRAN, was read and compared with.
"""

import torch
from torch import nn

from .base import Rival, RivalConfig, RivalScores, joint_logits, mask_padding, soft_margin_loss
from .relation import AudioVideoInteraction, CrossRelation, InternalRelation, SpatialChannelAttention

_FEEDFORWARD_SIZE = 2048


class CMRAN(Rival):
    """CMRAN: each segment is scored as event or background, the whole video as one of the events.

    Under weak supervision background is one of the classes of the video.
    """

    title = "CMRAN"

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        width, is_full = config.hidden_size, config.supervision == "full"
        visual, audio = 2 * width, config.audio_feature_size
        self.visual_projection = nn.Linear(config.image_feature_size, visual)
        self.dropout = nn.Dropout(0.2)
        self.attention = SpatialChannelAttention(visual, audio, width)
        self.video_internal = InternalRelation(visual, width, _FEEDFORWARD_SIZE)
        self.video_cross = CrossRelation(visual, width, _FEEDFORWARD_SIZE)
        self.audio_internal = InternalRelation(audio, width, _FEEDFORWARD_SIZE)
        self.audio_cross = CrossRelation(audio, width, _FEEDFORWARD_SIZE)
        self.interaction = AudioVideoInteraction(width, 4 if is_full else 2, 0.1)
        self.event_score = nn.Linear(width, 1)
        self.classifier = nn.Linear(width, config.num_classes - is_full)
        self.post_init()

    def score(self, locations: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> RivalScores:
        locations = self.dropout(self.visual_projection(locations).relu())
        visual, weights = self.attention(locations, audio)
        audio_query = self.audio_cross(audio, self.video_internal(visual, real), real)
        video_query = self.video_cross(visual, self.audio_internal(audio, real), real)
        fused = self.interaction(video_query, audio_query, real)  # (B, T, d)
        event_logits = self.event_score(fused).squeeze(-1)
        class_logits = self.classifier(mask_padding(fused, real).amax(dim=1))
        logits = joint_logits(event_logits, class_logits, self.config.num_classes)
        return RivalScores(logits, event_logits, class_logits, visual_attentions=weights)

    def full_loss(self, scores: RivalScores, labels: torch.Tensor) -> torch.Tensor:
        event_loss, class_loss = self.event_and_class_losses(scores, labels)
        return event_loss + class_loss

    def weak_loss(self, scores: RivalScores, labels: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        assert scores.event_logits is not None
        assert scores.class_logits is not None
        fused = scores.event_logits.float().sigmoid().unsqueeze(-1) * scores.class_logits.float().unsqueeze(1)
        return soft_margin_loss(mask_padding(fused, real).amax(dim=1).softmax(dim=-1), labels)
