"""Layers that CMRAN and CMBS share: relations within and between modalities, and audio-guided attention on locations.

Xu, Zeng, Wu, Tan, Gan: Cross-Modal Relation-Aware Networks for Audio-Visual Event Localization, ACM MM 2020.
"""

import torch
from torch import nn

NUM_HEADS = 4
DROPOUT = 0.1


class InternalRelation(nn.Module):
    """A linear layer and two transformer layers over the segments of one modality."""

    def __init__(self, input_size: int, width: int, feedforward_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(input_size, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, NUM_HEADS, feedforward_size, DROPOUT, batch_first=True) for _ in range(2)
        )

    def forward(self, features: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Returns `(B, T, d)` from features `(B, T, input_size)`."""
        features = self.projection(features)
        for layer in self.layers:
            features = layer(features, src_key_padding_mask=~real)
        return features


class CrossRelation(nn.Module):
    """Cross-modal relation attention: the segments of one modality attend to those of both modalities."""

    def __init__(self, input_size: int, width: int, feedforward_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(input_size, width)
        self.attention = nn.MultiheadAttention(width, NUM_HEADS, DROPOUT, batch_first=True)
        self.attention_norm = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward_size), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(feedforward_size, width)
        )
        self.feedforward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, query: torch.Tensor, memory: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Returns `(B, T, d)`.

        Args:
            query (`torch.Tensor` of shape `(B, T, input_size)`): Features of the modality that asks.
            memory (`torch.Tensor` of shape `(B, T, d)`): The other modality after `InternalRelation`.
            real (`torch.BoolTensor` of shape `(B, T)`): `False` at padding.
        """
        query = self.projection(query)
        both = torch.cat([memory, query], dim=1)  # (B, 2T, d)
        padding = ~torch.cat([real, real], dim=1)
        query = self.attention_norm(
            query + self.dropout(self.attention(query, both, both, padding, need_weights=False)[0])
        )
        return self.feedforward_norm(query + self.dropout(self.feedforward(query)))


class AudioVideoInteraction(nn.Module):
    """The product of both modalities attends to the segments of both."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, num_heads, dropout, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.norm = nn.LayerNorm(width)

    def forward(self, video: torch.Tensor, audio: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Returns `(B, T, d)` from two tensors of that shape."""
        product, both = video * audio, torch.cat([audio, video], dim=1)
        padding = ~torch.cat([real, real], dim=1)
        attended = self.attention(product, both, both, padding, need_weights=False)[0]
        return self.norm(product + self.dropout(attended))


class SpatialChannelAttention(nn.Module):
    """The audio weighs the channels, then the locations of the frames (AGSCA)."""

    def __init__(self, visual_size: int, audio_size: int, hidden_size: int) -> None:
        super().__init__()
        self.channel_visual = nn.Linear(visual_size, visual_size)
        self.channel_audio = nn.Linear(audio_size, visual_size)
        self.channel_bottleneck = nn.Linear(visual_size, hidden_size)
        self.channel_score = nn.Linear(hidden_size, visual_size)
        self.location_visual = nn.Linear(visual_size, hidden_size)
        self.location_audio = nn.Linear(audio_size, hidden_size)
        self.location_score = nn.Linear(hidden_size, 1)

    def forward(
        self, locations: torch.Tensor, audio: torch.Tensor, channel_query: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the attended vectors `(B, T, D)` and the weights of the locations `(B, T, P)`.

        Args:
            locations (`torch.Tensor` of shape `(B, T, P, D)`): Location vectors.
            audio (`torch.Tensor` of shape `(B, T, A)`): Audio vectors.
            channel_query (`torch.Tensor` of shape `(B, T, P, D)`, *optional*): What the weights of the channels are
                computed from. Default: `locations`.
        """
        query = locations if channel_query is None else channel_query
        channels = self.channel_audio(audio).relu().unsqueeze(2) * self.channel_visual(query).relu()  # (B, T, P, D)
        channels = self.channel_score(self.channel_bottleneck(channels.mean(dim=2)).relu()).sigmoid()  # (B, T, D)
        locations = locations * (channels.unsqueeze(2) + 1)
        guided = self.location_visual(locations).relu() * self.location_audio(audio).relu().unsqueeze(2)
        weights = torch.tanh(self.location_score(guided)).squeeze(-1).softmax(dim=-1)  # (B, T, P)
        return torch.matmul(weights.unsqueeze(2), locations).squeeze(2), weights
