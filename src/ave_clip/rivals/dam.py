"""DAM: dual attention matching. The whole of one modality is compared with each segment of the other.

Wu, Zhu, Yan, Yang: Dual Attention Matching for Audio-Visual Event Localization, ICCV 2019. The authors' code is not
public. The paper's text was not available to us either, only its abstract, the caption of its figure 2, published
notes on its method ("Daily Paper 59: DAM", 2020), and the code of others (tonymisic/zero-shot-cml), with which this
network was not compared.

These sources say: AVEL's audio-guided attention averages the locations of the images. Self-attention over all segments
and their mean give each modality one global vector, and both together give the class of the video. The dot product of
a global vector with a segment of the other modality, through a sigmoid and averaged over both directions, is the
probability of an event; below 0.5 the segment is background. The loss weighs cross-entropy of the class and binary
cross-entropy of the event by lambda, best at 0.5.

Choices of ours: one linear layer per modality to the common width that the dot product needs; one head of
self-attention, without biases or a residual; the two global vectors are concatenated and classified by two linear
layers, among the events without background; the loss is `lambda * class + (1 - lambda) * event`; no dropout.
"""

import math

import torch
from torch import nn

from .avel import LocationGuidedAttention
from .base import Rival, RivalConfig, RivalScores, joint_logits, mean_over_segments


class GlobalVector(nn.Module):
    """Self-attention over the segments of one modality, then their mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)

    def forward(self, local: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Returns `(B, d)` from the vectors of the segments `(B, T, d)`."""
        scores = self.query(local) @ self.key(local).transpose(1, 2) / math.sqrt(local.shape[-1])  # (B, T, T)
        weights = scores.masked_fill(~real.unsqueeze(1), float("-inf")).softmax(dim=-1)
        attended = (weights @ self.value(local)).masked_fill(~real.unsqueeze(-1), 0)
        return mean_over_segments(attended, real)


class DAM(Rival):
    """DAM. The paper defines no weak supervision."""

    title = "DAM"
    settings = ("full",)
    class_loss_weight = 0.5

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        width, image, audio = config.hidden_size, config.image_feature_size, config.audio_feature_size
        self.attention = LocationGuidedAttention(image, audio, 2 * width, config.num_locations)
        self.video_projection = nn.Linear(image, width)
        self.audio_projection = nn.Linear(audio, width)
        self.video_global = GlobalVector(width)
        self.audio_global = GlobalVector(width)
        self.hidden = nn.Linear(2 * width, width)
        self.classifier = nn.Linear(width, config.num_classes - 1)
        self.post_init()

    def score(self, locations: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> RivalScores:
        visual, weights = self.attention(locations, audio)
        video, audio = self.video_projection(visual), self.audio_projection(audio)
        whole_video, whole_audio = self.video_global(video, real), self.audio_global(audio, real)  # (B, d)
        class_logits = self.classifier(self.hidden(torch.cat([whole_video, whole_audio], dim=-1)).relu())
        event_logits = logit_of_mean(
            torch.einsum("btd,bd->bt", audio, whole_video), torch.einsum("btd,bd->bt", video, whole_audio)
        )
        logits = joint_logits(event_logits, class_logits, self.config.num_classes)
        return RivalScores(logits, event_logits, class_logits, visual_attentions=weights)

    def full_loss(self, scores: RivalScores, labels: torch.Tensor) -> torch.Tensor:
        event_loss, class_loss = self.event_and_class_losses(scores, labels)
        return self.class_loss_weight * class_loss + (1 - self.class_loss_weight) * event_loss


def logit_of_mean(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns the logit of `(sigmoid(first) + sigmoid(second)) / 2`, also where that rounds to 0 or 1."""
    log_sigmoid = nn.functional.logsigmoid
    positive = torch.logaddexp(log_sigmoid(first), log_sigmoid(second))
    return positive - torch.logaddexp(log_sigmoid(-first), log_sigmoid(-second))
