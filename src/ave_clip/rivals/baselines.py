"""Baselines without a paper of their own: one modality alone, or both concatenated, through a BiLSTM.

Audio only and video only are rows of Table 1 of the AVE-CLIP paper; the BiLSTM is that of AVEL.
"""

import torch
from torch import nn

from ..core.modeling_layers import AVEClipBidirectionalLSTM
from .base import Rival, RivalConfig, RivalScores, lengths_of


class _LSTMRival(Rival):
    """A BiLSTM and a linear layer on one vector per segment."""

    def _build(self, input_size: int) -> None:
        self.lstm = AVEClipBidirectionalLSTM(input_size, self.config.hidden_size)
        self.classifier = nn.Linear(self.config.hidden_size, self.config.num_classes)
        self.post_init()

    def _score(self, features: torch.Tensor, real: torch.Tensor) -> RivalScores:
        return RivalScores(self.classifier(self.lstm(features, lengths_of(real))))


class AudioOnly(_LSTMRival):
    """A BiLSTM on the audio features."""

    title = "audio only"

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        self._build(config.audio_feature_size)

    def score(self, locations: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> RivalScores:
        return self._score(audio, real)


class VideoOnly(_LSTMRival):
    """A BiLSTM on the image features, averaged over the locations."""

    title = "video only"

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        self._build(config.image_feature_size)

    def score(self, locations: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> RivalScores:
        return self._score(locations.mean(dim=2), real)


class ConcatenatedBiLSTM(_LSTMRival):
    """A BiLSTM on both features, concatenated; image features are averaged over the locations."""

    title = "BiLSTM"

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        self._build(config.image_feature_size + config.audio_feature_size)

    def score(self, locations: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> RivalScores:
        return self._score(torch.cat([locations.mean(dim=2), audio], dim=-1), real)
