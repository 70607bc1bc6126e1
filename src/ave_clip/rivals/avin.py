"""AVIN: audio-visual interacting network. Bilinear pooling, and attention within and between the modalities.

Ramaswamy: What Makes the Sound?: A Dual-Modality Interacting Network for Audio-Visual Event Localization, ICASSP 2020.
The author's code is not public, and the paper's text was not available to us, only published notes on its method
("Daily Paper 60: AVIN", 2020).

The notes describe: a recurrent network per modality; factorized bilinear pooling of both vectors of a segment, with
dropout, power and L2 normalization; interactions within a modality, in which a softmax over the segments' dot products
with the mean of all segments weighs each segment; interactions between the modalities, computed in the same way with
the mean of the interactions within; a linear layer on the four interactions and the pooled vector; cross-entropy.

Choices of ours: the mean over the locations, because the notes name no attention over them; one BiLSTM layer per
modality; between the modalities, the segments of one are weighed with the mean of the other; the factors and the
dropout of bilinear pooling, from its own paper (Yu et al., ICCV 2017: 5 factors, dropout 0.1), and its width; under
weak supervision, for which the notes give a result but no loss, the mean probability over the segments.
"""

import torch
from torch import nn

from ..core.modeling_layers import AVEClipBidirectionalLSTM
from .base import Rival, RivalConfig, RivalScores, lengths_of, mean_over_segments

_NUM_FACTORS = 5
_TINY = 1e-8


class FactorizedBilinearPooling(nn.Module):
    """Product of both modalities in a larger space, summed in groups of factors (MFB)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.video_projection = nn.Linear(width, width * _NUM_FACTORS, bias=False)
        self.audio_projection = nn.Linear(width, width * _NUM_FACTORS, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, video: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """Returns `(B, T, d)` from two tensors of that shape."""
        product = self.dropout(self.video_projection(video) * self.audio_projection(audio))
        pooled = product.unflatten(-1, (-1, _NUM_FACTORS)).sum(dim=-1)
        # The signed square root (power normalization); without the small number, its gradient at 0 would be infinite.
        rooted = pooled.sign() * (pooled.abs() + _TINY).sqrt()
        return nn.functional.normalize(rooted, dim=-1)


class AVIN(Rival):
    """AVIN. The same network for full and weak supervision."""

    title = "AVIN"

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.video_lstm = AVEClipBidirectionalLSTM(config.image_feature_size, width)
        self.audio_lstm = AVEClipBidirectionalLSTM(config.audio_feature_size, width)
        self.pooling = FactorizedBilinearPooling(width)
        self.classifier = nn.Linear(5 * width, config.num_classes)
        self.post_init()

    def score(self, locations: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> RivalScores:
        lengths = lengths_of(real)
        video, audio = self.video_lstm(locations.mean(dim=2), lengths), self.audio_lstm(audio, lengths)
        within_video = interact(video, mean_over_segments(video, real), real)
        within_audio = interact(audio, mean_over_segments(audio, real), real)
        between_video = interact(video, mean_over_segments(within_audio, real), real)
        between_audio = interact(audio, mean_over_segments(within_video, real), real)
        pooled = self.pooling(video, audio)
        parts = [within_video, within_audio, between_video, between_audio, pooled]
        return RivalScores(self.classifier(torch.cat(parts, dim=-1)))


def interact(features: torch.Tensor, query: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Returns features `(B, T, d)`, each segment times the softmax over the segments of its product with the query."""
    scores = torch.einsum("btd,bd->bt", features, query).masked_fill(~real, float("-inf"))
    return features * scores.softmax(dim=-1).unsqueeze(-1)
