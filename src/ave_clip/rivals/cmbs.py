"""CMBS: cross-modal background suppression.

Xia and Zhao: Cross-modal Background Suppression for Audio-Visual Event Localization, CVPR 2022. The authors' code,
marmot-xy/CMBS, was read and compared with. The two settings are two networks there, and here.
"""

import torch
from torch import nn

from ..core.losses import event_attention_loss, segment_loss
from ..core.modeling_layers import AVEClipBidirectionalLSTM
from .base import (
    Rival,
    RivalConfig,
    RivalScores,
    event_class,
    joint_logits,
    lengths_of,
    mask_padding,
    mean_of_highest,
    soft_margin_loss,
)
from .relation import AudioVideoInteraction, CrossRelation, InternalRelation, SpatialChannelAttention

# Number of segments whose class scores are averaged to those of the video.
_HIGHEST = 4


class SuppressedAttention(nn.Module):
    """Audio-guided attention of CMRAN next to one that the image computes from itself.

    Args:
        visual_size (`int`), audio_size (`int`), hidden_size (`int`): Widths.
        self_weight (`float`): Weight of the image's own attention (`beta` of the code).
    """

    def __init__(self, visual_size: int, audio_size: int, hidden_size: int, self_weight: float) -> None:
        super().__init__()
        self.guided = SpatialChannelAttention(visual_size, audio_size, hidden_size)
        self.query = nn.Linear(visual_size, visual_size // 4)
        self.key = nn.Linear(visual_size, visual_size // 4)
        self.value = nn.Linear(visual_size, visual_size)
        self.dropout = nn.Dropout(0.2)
        self.norm = nn.LayerNorm(visual_size)
        self.mean_projection = nn.Linear(visual_size, hidden_size)
        self.location_projection = nn.Linear(visual_size, hidden_size)
        self.location_score = nn.Linear(hidden_size, 1)
        self.self_weight = self_weight

    def forward(self, locations: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the attended vectors `(B, T, D)` and the weights of the locations `(B, T, P)`."""
        # Without the usual division by the root of the width, as in the code.
        attention = (self.query(locations) @ self.key(locations).transpose(-1, -2)).softmax(dim=-1)  # (B, T, P, P)
        related = self.norm(locations + self.dropout(attention @ self.value(locations)))
        mean = self.mean_projection(related.mean(dim=2)).relu().unsqueeze(2)
        scores = torch.tanh(self.location_score(self.location_projection(related).relu() * mean)).squeeze(-1)
        own = torch.matmul(scores.softmax(dim=-1).unsqueeze(2), related).squeeze(2)  # (B, T, D)
        visual, weights = self.guided(locations, audio, channel_query=related)
        return visual + self.self_weight * own.sigmoid() * visual, weights


class CMBS(Rival):
    """CMBS; `supervision` chooses the network.

    With labels of segments, each segment is scored as event or background and the video as one of the events. Under
    weak supervision the score of background competes with those of the events, scaled by the gate; the scale does not
    change which is highest, so that all segments of a video get one class. The authors' code decides in the same way:
    its test `sigmoid(gate) > 0.5` is true for every gate, because a gate is positive.
    """

    title = "CMBS"
    # alpha, beta and gamma of configs/main.json and configs/weak.json.
    gate_weights = {"full": 0.1, "weak": 0.2}
    self_weights = {"full": 0.4, "weak": 0.5}
    agreement_weights = {"full": 0.3, "weak": 0.5}

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        width, setting = config.hidden_size, config.supervision
        is_full = setting == "full"
        visual, audio, num_classes = 2 * width, config.audio_feature_size, config.num_classes - is_full
        self.gate_weight, self.agreement_weight = self.gate_weights[setting], self.agreement_weights[setting]
        self.visual_projection = nn.Linear(config.image_feature_size, visual)
        self.dropout = nn.Dropout(0.2 if is_full else 0.1)
        self.attention = SuppressedAttention(visual, audio, width, self.self_weights[setting])
        self.audio_lstm = self.video_lstm = None
        if is_full:
            self.audio_lstm = AVEClipBidirectionalLSTM(audio, width)
            self.video_lstm = AVEClipBidirectionalLSTM(visual, visual)
            audio = width
        internal = 1024 if is_full else 2048
        self.video_internal = InternalRelation(visual, width, internal)
        self.video_cross = CrossRelation(visual, width, 1024)
        self.audio_internal = InternalRelation(audio, width, internal)
        self.audio_cross = CrossRelation(audio, width, 1024)
        self.audio_gate = nn.Linear(width, 1)
        self.video_gate = nn.Linear(width, 1)
        self.audio_classes = nn.Linear(width, num_classes)
        self.video_classes = nn.Linear(width, num_classes)
        self.video_interaction = AudioVideoInteraction(width, 4 if is_full else 2, 0.2)
        self.audio_interaction = AudioVideoInteraction(width, 4 if is_full else 2, 0.2)
        self.event_score = nn.Linear(width, 1) if is_full else None
        self.classifier = nn.Linear(width, num_classes, bias=is_full)
        self.post_init()

    def score(self, locations: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> RivalScores:
        locations = self.dropout(self.visual_projection(locations).relu())
        visual, weights = self.attention(locations, audio)
        if self.audio_lstm is not None and self.video_lstm is not None:
            lengths = lengths_of(real)
            visual, audio = self.video_lstm(visual, lengths), self.audio_lstm(audio, lengths)
        video_memory, audio_memory = self.video_internal(visual, real), self.audio_internal(audio, real)
        audio_query = self.audio_cross(audio, video_memory, real)
        video_query = self.video_cross(visual, audio_memory, real)
        compute = self._score_weak if self.event_score is None else self._score_full
        scores = compute(video_query, audio_query, video_memory, audio_memory, real)
        scores.visual_attentions = weights
        return scores

    def _fuse(self, video: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        video = self.video_interaction(video, audio, real)
        return (video + self.audio_interaction(audio, video, real)) / 2

    def _score_full(
        self,
        video: torch.Tensor,
        audio: torch.Tensor,
        video_memory: torch.Tensor,
        audio_memory: torch.Tensor,
        real: torch.Tensor,
    ) -> RivalScores:
        assert self.event_score is not None
        audio_gate, video_gate = self.audio_gate(audio_memory).sigmoid(), self.video_gate(video_memory).sigmoid()
        # Time level: each modality is raised where the other one finds an event.
        video = video + audio_gate * video * self.gate_weight
        audio = audio + video_gate * audio * self.gate_weight
        # Event level: classes that both modalities find in the video are raised.
        video_class = mean_of_highest(self.video_classes(video), real, _HIGHEST)
        audio_class = mean_of_highest(self.audio_classes(audio), real, _HIGHEST)
        agreement = (video_class + audio_class) / 2
        fused = self._fuse(video, audio, real)
        event_logits = self.event_score(fused).squeeze(-1)
        class_logits = self.classifier(mask_padding(fused, real).amax(dim=1)) + self.agreement_weight * agreement
        logits = joint_logits(event_logits, class_logits, self.config.num_classes)
        gate = (audio_gate * video_gate).squeeze(-1)
        return RivalScores(logits, event_logits, class_logits, gate, agreement)

    def _score_weak(
        self,
        video: torch.Tensor,
        audio: torch.Tensor,
        video_memory: torch.Tensor,
        audio_memory: torch.Tensor,
        real: torch.Tensor,
    ) -> RivalScores:
        # In this network the code names the gates after the other modality.
        audio_gate, video_gate = self.audio_gate(video_memory).sigmoid(), self.video_gate(audio_memory).sigmoid()
        weight, gate = self.gate_weight, ((audio_gate + video_gate) / 2).squeeze(-1)
        video = (1 - weight) * video + audio_gate * video * weight
        audio = (1 - weight) * audio + video_gate * audio * weight
        agreement = self.video_classes(video).sigmoid() + self.audio_classes(audio).sigmoid()  # (B, T, C)
        classes = self.agreement_weight * agreement * self.classifier(self._fuse(video, audio, real))
        class_logits = mean_of_highest(classes, real, _HIGHEST)
        return RivalScores(gate.unsqueeze(-1) * class_logits.unsqueeze(1), class_logits=class_logits, gate=gate)

    def full_loss(self, scores: RivalScores, labels: torch.Tensor) -> torch.Tensor:
        assert scores.event_logits is not None
        assert scores.class_logits is not None
        assert scores.gate is not None
        assert scores.agreement_logits is not None
        video, is_event = event_class(labels, self.config.num_classes).unsqueeze(1), self.space.event_targets(labels)
        # The code passes the gate, a probability, to a loss of logits.
        losses = [event_attention_loss(scores.event_logits, is_event), event_attention_loss(scores.gate, is_event)]
        losses += [
            segment_loss(logits.unsqueeze(1), video) for logits in (scores.class_logits, scores.agreement_logits)
        ]
        return torch.stack(losses).sum()

    def weak_loss(self, scores: RivalScores, labels: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        return soft_margin_loss(mask_padding(scores.logits.float(), real).amax(dim=1).softmax(dim=-1), labels)
