"""PSP: positive sample propagation between the segments of both modalities.

Zhou, Zheng, Zhong, Hao, Wang: Positive Sample Propagation along the Audio-Visual Event Line, CVPR 2021. The authors'
code, jasongief/PSP_CVPR_2021, was read and compared with. The two settings are two networks there, and here.
"""

import torch
from torch import nn

from ..core.categories import IGNORED_LABEL
from ..core.modeling_layers import AVEClipBidirectionalLSTM
from .avel import LocationGuidedAttention
from .base import Rival, RivalConfig, RivalScores, lengths_of, mean_over_segments, one_hot, xavier

_TINY = 1e-8


class PositiveSamplePropagation(nn.Module):
    """Adds to each segment the segments of the other modality that are similar enough (equations 3 to 6).

    Args:
        width (`int`): Width of both modalities.
        has_output_layer (`bool`): Whether a linear layer follows and the kept weights are normalized again, as in the
            network for full supervision.
        threshold (`float`): Connections below this weight are cut, for ten segments.
    """

    def __init__(self, width: int, has_output_layer: bool, threshold: float) -> None:
        super().__init__()
        self.video_key = nn.Linear(width, width, bias=False)
        self.video_query = nn.Linear(width, width, bias=False)
        self.audio_key = nn.Linear(width, width, bias=False)
        self.audio_query = nn.Linear(width, width, bias=False)
        xavier(self.video_key, self.video_query, self.audio_key, self.audio_query)
        self.video_output = self.audio_output = None
        if has_output_layer:
            self.video_output = nn.Linear(width, width, bias=False)
            self.audio_output = nn.Linear(width, width, bias=False)
            xavier(self.video_output, self.audio_output)
        self.dropout = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.threshold = threshold

    def forward(self, audio: torch.Tensor, video: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the video and the audio vectors `(B, T, d)` after propagation."""
        video_key = self.dropout(self.video_key(video).relu())
        video_query = self.dropout(self.video_query(video).relu())
        audio_key = self.dropout(self.audio_key(audio).relu())
        audio_query = self.dropout(self.audio_query(audio).relu())
        similarity = (video_query @ audio_key.transpose(1, 2) / video.shape[-1] ** 0.5).relu()  # (B, T video, T audio)
        similarity = similarity * real.unsqueeze(1) * real.unsqueeze(2)
        # The paper's threshold is for ten segments, whose weights are 1/10 on average.
        threshold = (self.threshold * 10 / real.sum(dim=1)).view(-1, 1, 1)
        video_new = video + self._prune(similarity, threshold) @ audio_query
        audio_new = audio + self._prune(similarity.transpose(1, 2), threshold) @ video_key
        if self.video_output is not None and self.audio_output is not None:
            video_new = self.dropout(self.video_output(video_new).relu())
            audio_new = self.dropout(self.audio_output(audio_new).relu())
        return self.norm(video_new), self.norm(audio_new)

    def _prune(self, similarity: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
        weights = similarity / (similarity.sum(dim=-1, keepdim=True) + _TINY)
        kept = weights * (weights > threshold)
        # Only the code for full supervision normalizes what is left.
        return kept if self.video_output is None else kept / (kept.sum(dim=-1, keepdim=True) + _TINY)


class PSP(Rival):
    """PSP; `supervision` chooses the network.

    Under weak supervision the authors train on the fraction of segments of each class, which needs labels of segments.
    Here the target is the class of the video.
    """

    title = "PSP"
    pair_loss_weight = 100.0
    # Defaults of the two training scripts.
    thresholds = {"full": 0.099, "weak": 0.095}

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        is_full = config.supervision == "full"
        width, half = config.hidden_size, config.hidden_size // 2
        image, audio = config.image_feature_size, config.audio_feature_size
        self.audio_projection = None
        if is_full:
            self.audio_projection = nn.Sequential(
                nn.Linear(audio, width, bias=False), nn.Linear(width, half, bias=False)
            )
            self.video_projection = nn.Sequential(
                nn.Linear(image, width, bias=False), nn.Linear(width, half, bias=False)
            )
            audio = half
        else:
            self.video_projection = nn.Linear(image, half)
        self.attention = LocationGuidedAttention(image, audio, 2 * width, config.num_locations)
        self.audio_lstm = AVEClipBidirectionalLSTM(audio, width)
        self.video_lstm = AVEClipBidirectionalLSTM(half, width)
        self.propagation = PositiveSamplePropagation(width, is_full, self.thresholds[config.supervision])
        self.hidden = nn.Linear(width, 64, bias=False)
        self.classifier = nn.Linear(64, config.num_classes, bias=False)
        self.segment_weight = None if is_full else nn.Linear(config.num_classes, 1, bias=False)
        xavier(self.hidden, self.classifier)
        self.post_init()

    def score(self, locations: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> RivalScores:
        lengths = lengths_of(real)
        if self.audio_projection is not None:
            audio = self.audio_projection(audio)
        visual, weights = self.attention(locations, audio)
        video = self.video_lstm(self.video_projection(visual), lengths)
        video, audio = self.propagation(self.audio_lstm(audio, lengths), video, real)
        logits = self.classifier(self.hidden((video + audio) / 2).relu())
        if self.segment_weight is not None:
            logits = logits * self.segment_weight(logits).relu().sigmoid()
        similarity = nn.functional.cosine_similarity(video, audio, dim=-1)
        return RivalScores(logits, similarity=similarity, visual_attentions=weights)

    def full_loss(self, scores: RivalScores, labels: torch.Tensor) -> torch.Tensor:
        assert scores.similarity is not None
        # Audio-visual pair similarity loss (equations 8 and 9).
        is_event = ((labels != IGNORED_LABEL) & (labels != self.config.num_classes - 1)).float()
        target = is_event / is_event.sum(dim=1, keepdim=True).clamp(min=1)
        similar = scores.similarity.float().relu() * (labels != IGNORED_LABEL)
        found = similar / (similar.sum(dim=1, keepdim=True) + _TINY)
        errors = ((found - target) ** 2).masked_select(labels != IGNORED_LABEL)
        pair_loss = errors.sum() / max(1, len(errors))
        return super().full_loss(scores, labels) + self.pair_loss_weight * pair_loss

    def weak_loss(self, scores: RivalScores, labels: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        logits = scores.logits.float() * real.unsqueeze(-1)
        video = mean_over_segments(logits, real).softmax(dim=-1)  # (B, C)
        targets = one_hot(labels, video.shape[-1])
        losses = nn.functional.binary_cross_entropy(video, targets.clamp(min=0).float(), reduction="none")
        counted = targets != IGNORED_LABEL
        return (losses * counted).sum() / counted.sum().clamp(min=1)
