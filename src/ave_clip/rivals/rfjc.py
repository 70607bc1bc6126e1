"""RFJC: recursive fusion by joint co-attention.

Duan, Tang, Wang, Zong, Yang, Yan: Audio-Visual Event Localization via Recursive Fusion by Joint Co-Attention, WACV
2021. The authors' code, tuffr5/Recursive-joint-co-attention, was read and compared with; the loss is that of the code.
Of the paper itself, we could read the abstract only.

The keys of the code's attention are linear layers over the segments, so that the number of segments is fixed, to AVE's
ten. Here shorter videos use the weights of the first segments. The four units of the code do not share weights.
"""

import math

import torch
from torch import nn

from .avel import LocationGuidedAttention
from .base import Rival, RivalConfig, RivalScores, lengths_of, soft_margin_loss, xavier

_NUM_UNITS = 4
_NUM_SEGMENTS = 10
_DROPOUT = 0.3


class ResidualLSTM(nn.Module):
    """Two bidirectional layers with trained initial states; a linear layer joins input and output to a unit vector."""

    def __init__(self, input_size: int, output_size: int, dropout: float) -> None:
        super().__init__()
        half = output_size // 2
        self.lstm = nn.LSTM(input_size, half, num_layers=2, dropout=dropout, bidirectional=True, batch_first=True)
        self.projection = nn.Linear(input_size + output_size, output_size)
        # Hidden states of two layers and two directions, then their cell states.
        self.initial_states = nn.Parameter(nn.init.xavier_uniform_(torch.empty(8, half)))
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """Returns `(B, T, output_size)` from features `(B, T, input_size)`."""
        hidden, cell = self.initial_states.unsqueeze(1).expand(-1, len(features), -1).contiguous().chunk(2)
        if lengths is None:
            outputs = self.lstm(features, (hidden, cell))[0]
        else:
            packed = nn.utils.rnn.pack_padded_sequence(features, lengths.cpu(), batch_first=True, enforce_sorted=False)
            outputs = nn.utils.rnn.pad_packed_sequence(
                self.lstm(packed, (hidden, cell))[0], batch_first=True, total_length=features.shape[1]
            )[0]
        joined = self.projection(self.dropout(torch.cat([features, outputs], dim=-1)))
        return nn.functional.normalize(joined, dim=-1)


class JointCoAttention(nn.Module):
    """Each modality attends to the features, not the segments, of both modalities joined."""

    def __init__(self, width: int, num_segments: int) -> None:
        super().__init__()
        self.query = nn.Linear(2 * width, 2 * width)
        self.video_key = nn.Linear(num_segments, num_segments)
        self.audio_key = nn.Linear(num_segments, num_segments)
        self.video_value = nn.Linear(width, width)
        self.audio_value = nn.Linear(width, width)
        self.video_output = nn.Linear(2 * width, width)
        self.audio_output = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(_DROPOUT)

    def forward(self, video: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Returns the new video and audio vectors `(B, T, d)`."""
        query = self.query(torch.cat([video, audio], dim=-1))  # (B, T, 2d)
        video_joint = self._attend(query, _mix_segments(self.video_key, video, real), self.video_value(video))
        audio_joint = self._attend(query, _mix_segments(self.audio_key, audio, real), self.audio_value(audio))
        video = video + self.dropout(self.video_output(video_joint).relu())
        return video, audio + self.dropout(self.audio_output(audio_joint).relu())

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        key = key.transpose(1, 2) / math.sqrt(query.shape[-1])  # before the product, whose result is large
        scores = torch.tanh(key @ query)  # (B, d, 2d)
        return torch.tanh(value @ self.dropout(scores)).relu()  # (B, T, 2d)


def _mix_segments(layer: nn.Linear, features: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Applies a linear layer over the segments of features `(B, T, d)`; the result is zero at padding."""
    length = features.shape[1]
    features = features.masked_fill(~real.unsqueeze(-1), 0)
    mixed = layer.weight[:length, :length] @ features + layer.bias[:length].unsqueeze(-1)
    return mixed.masked_fill(~real.unsqueeze(-1), 0)


class RFJC(Rival):
    """RFJC. There is no weak supervision in the authors' code.

    `max_segments` of its configuration is the number of segments that it has weights for, 10 by default. Stage 3 sets
    it to the length of the longest training clip, and divides clips that are longer into windows of that length.
    """

    title = "RFJC"
    settings = ("full",)
    has_segment_weights = True

    def __init__(self, config: RivalConfig) -> None:
        super().__init__(config)
        if config.max_segments is None:
            config.max_segments = _NUM_SEGMENTS
        width = 2 * config.hidden_size
        self.audio_lstm = ResidualLSTM(config.audio_feature_size, width, dropout=0.1)
        self.attention = LocationGuidedAttention(config.image_feature_size, width, width, config.num_locations)
        self.visual_projection = nn.Linear(config.image_feature_size, width)
        self.video_lstm = ResidualLSTM(width, width, dropout=0.1)
        self.units = nn.ModuleList(JointCoAttention(width, config.max_segments) for _ in range(_NUM_UNITS))
        self.joint_lstm = ResidualLSTM(2 * width, width, dropout=0.0)
        self.hidden = nn.Linear(width, width // 4)
        self.dropout = nn.Dropout(_DROPOUT)
        self.classifier = nn.Linear(width // 4, config.num_classes)
        linear_layers = [module for module in self.modules() if isinstance(module, nn.Linear)]
        xavier(*linear_layers)
        for layer in linear_layers:
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        self.post_init()

    def score(self, locations: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> RivalScores:
        limit = self.config.max_segments
        if limit is not None and audio.shape[1] > limit:
            raise ValueError(
                f"Got {audio.shape[1]} segments, but this network has weights for {limit}: set `max_segments` of its "
                "configuration."
            )
        normalize, lengths = nn.functional.normalize, lengths_of(real)
        audio = self.audio_lstm(normalize(audio, dim=-1), lengths)
        visual, weights = self.attention(normalize(locations, dim=-1), audio)
        video = self.video_lstm(self.visual_projection(visual), lengths)
        for unit in self.units:
            video, audio = unit(video, audio, real)
        joint = self.joint_lstm(torch.cat([video, audio], dim=-1), lengths)
        logits = self.classifier(self.dropout(self.hidden(joint).relu()))
        return RivalScores(logits, visual_attentions=weights)

    def full_loss(self, scores: RivalScores, labels: torch.Tensor) -> torch.Tensor:
        return soft_margin_loss(scores.logits.float().softmax(dim=-1), labels)
