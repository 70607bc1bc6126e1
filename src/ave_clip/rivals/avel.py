"""AVEL: audio-guided visual attention, one BiLSTM per modality, then concatenation or residual fusion.

Tian, Shi, Li, Duan, Xu: Audio-Visual Event Localization in Unconstrained Videos, ECCV 2018. The authors' code,
YapengTian/AVE-ECCV18, was read and compared with; the losses are those of the code.
"""

import torch
from torch import nn

from ..core.modeling_layers import AVEClipAudioGuidedVisualAttention, AVEClipBidirectionalLSTM
from .base import Rival, RivalConfig, RivalScores, lengths_of, mask_padding, soft_margin_loss, xavier

_ATTENTION_SIZE = 49


class LocationGuidedAttention(AVEClipAudioGuidedVisualAttention):
    """Audio-guided visual attention as AVEL's and PSP's code computes it.

    Its audio term has one number per location, where equation 4 of the paper, and AVE-CLIP, have one per hidden unit.
    The number of locations is therefore fixed.
    """

    def __init__(self, visual_size: int, audio_size: int, hidden_size: int, num_locations: int) -> None:
        super().__init__(visual_size, audio_size, hidden_size, _ATTENTION_SIZE)
        self.audio_score = nn.Linear(hidden_size, num_locations, bias=False)
        xavier(self.visual_projection, self.audio_projection, self.visual_score, self.audio_score, self.score)

    def forward(self, locations: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the weighted sum of the locations `(B, T, D)` and the weights `(B, T, P)`."""
        if locations.shape[2] != self.audio_score.out_features:
            raise ValueError(
                f"Got features with {locations.shape[2]} locations, but this network was built for "
                f"{self.audio_score.out_features}: set `num_locations` of its configuration."
            )
        visual = self.visual_score(self.visual_projection(locations).relu())  # (B, T, P, attention)
        guide = self.audio_score(self.audio_projection(audio).relu()).unsqueeze(-1)  # (B, T, P, 1)
        weights = self.score(torch.tanh(visual + guide)).squeeze(-1).softmax(dim=-1)
        return torch.matmul(weights.unsqueeze(2), locations).squeeze(2), weights


class _AVEL(Rival):
    """Attention, both BiLSTMs and the losses, which both versions share."""

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.attention = LocationGuidedAttention(
            config.image_feature_size, config.audio_feature_size, 2 * width, config.num_locations
        )
        self.video_lstm = AVEClipBidirectionalLSTM(config.image_feature_size, width)
        self.audio_lstm = AVEClipBidirectionalLSTM(config.audio_feature_size, width)

    def fuse(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Returns class scores `(B, T, C)` from the outputs of the BiLSTMs, `(B, T, d)` each."""
        raise NotImplementedError  # the fusions below differ in it

    def score(self, locations: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> RivalScores:
        visual, weights = self.attention(locations, audio)
        lengths = lengths_of(real)
        logits = self.fuse(self.video_lstm(visual, lengths), self.audio_lstm(audio, lengths))
        return RivalScores(logits, visual_attentions=weights)

    def full_loss(self, scores: RivalScores, labels: torch.Tensor) -> torch.Tensor:
        return soft_margin_loss(scores.logits.float().softmax(dim=-1), labels)

    def weak_loss(self, scores: RivalScores, labels: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        # As in models_weakly.py: the maximum of each class's score over the segments, then a softmax over classes.
        video = mask_padding(scores.logits.float(), real).amax(dim=1)
        return soft_margin_loss(video.softmax(dim=-1), labels)


class AVELAttention(_AVEL):
    """A+V-att of the paper: the outputs of both BiLSTMs are concatenated."""

    title = "AVEL (A+V-att)"

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        self.hidden = nn.Linear(2 * config.hidden_size, 64)
        self.classifier = nn.Linear(64, config.num_classes)
        xavier(self.hidden, self.classifier)
        self.post_init()

    def fuse(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        both = torch.cat([audio, video], dim=-1).relu()  # (B, T, 2d)
        return self.classifier(self.hidden(both).relu())


class AVEL(_AVEL):
    """AVEL with the dual multimodal residual network (DMRN) as fusion, one block.

    The authors start it from a trained A+V-att network; here it is trained from scratch like the others.
    """

    title = "AVEL (DMRN)"

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.video_update = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.audio_update = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
        self.classifier = nn.Linear(width, config.num_classes)
        xavier(self.classifier)
        self.post_init()

    def fuse(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        merged = (self.video_update(video) + self.audio_update(audio)) / 2
        return self.classifier((torch.tanh(audio + merged) + torch.tanh(video + merged)) / 2)
