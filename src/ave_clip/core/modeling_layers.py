"""Layers of the localizer: feature standardization, BiLSTM and audio-guided visual attention.

Shapes: B batch, T segments, P frame locations.
"""

import torch
from torch import nn


class AVEClipFeatureNorm(nn.Module):
    """Standardizes each feature with the training set's mean and standard deviation.

    Until training sets these statistics, features are not changed.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))  # standard deviation, under the name in saved checkpoints

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean) / self.spread


class AVEClipInputDropout(nn.Module):
    """Dropout of whole features: one that is zero is so at every location of every segment of a video.

    Dropout of single values would hardly matter, since locations are averaged and neighbouring segments are alike.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(probability)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return features
        mask = self.dropout(features.new_ones(features.shape[0], features.shape[-1]))
        return features * mask.view(len(mask), *[1] * (features.dim() - 2), -1)


class AVEClipLSTM(nn.RNNBase):
    """One-layer bidirectional LSTM with the weight names of [`~torch.nn.LSTM`].

    It does not derive from `nn.LSTM`, which `torch.compile(fullgraph=True)` refuses.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__("LSTM", input_size, hidden_size, batch_first=True, bidirectional=True)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        state = features.new_zeros(2, features.shape[0], self.hidden_size)  # initial state of both directions
        # Not `self._flat_weights`: it can be stale after weights are replaced, by offloading for example.
        weights = [getattr(self, name) for name in self._flat_weights_names]
        has_biases, num_layers, dropout, bidirectional = True, 1, 0.0, True
        options = (has_biases, num_layers, dropout, self.training, bidirectional)
        self._join(weights)
        if lengths is None:
            return torch.lstm(features, (state, state), weights, *options, self.batch_first)[0]
        packed = nn.utils.rnn.pack_padded_sequence(features, lengths.cpu(), batch_first=True, enforce_sorted=False)
        outputs = torch.lstm(packed.data, packed.batch_sizes, (state, state), weights, *options)[0]
        return nn.utils.rnn.pad_packed_sequence(
            packed._replace(data=outputs), batch_first=True, total_length=features.shape[1]
        )[0]

    def _join(self, weights: list[torch.Tensor]) -> None:
        """Puts the weights into one piece of memory on a GPU; cuDNN would otherwise warn and do so at each call.

        torch does it after a move or a cast, but not when a checkpoint is loaded directly to a GPU or in a half type.
        """
        if not weights[0].is_cuda or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return
        if len({weight.untyped_storage().data_ptr() for weight in weights}) > 1:
            self._flat_weights: list[torch.Tensor | None] = [*weights]
            with torch.inference_mode(False):
                self.flatten_parameters()


class AVEClipBidirectionalLSTM(nn.Module):
    """One-layer BiLSTM of width `output_size`, half of it per direction; padding at the end is skipped."""

    def __init__(self, input_size: int, output_size: int) -> None:
        super().__init__()
        self.lstm = AVEClipLSTM(input_size, output_size // 2)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """Processes the first `lengths` segments of each row.

        Args:
            features (`torch.Tensor` of shape `(batch_size, num_segments, input_size)`): One vector per segment.
            lengths (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Number of real segments
                per row; all by default.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_segments, output_size)`: zero at padding.
        """
        return self.lstm(features, None if lengths is None else lengths.clamp(min=1))


class AVEClipAudioGuidedVisualAttention(nn.Module):
    """AGVA: the audio of a segment weighs the locations of its frames.

    The weights are `softmax(w_h tanh(W_v relu(U_v V) + W_g relu(U_a a)))`, as in AVEL (Tian et al. 2018, eq. 3-4). The
    location vectors themselves are averaged, so a single location is returned unchanged.
    """

    def __init__(self, visual_size: int, audio_size: int, hidden_size: int, attention_size: int) -> None:
        super().__init__()
        self.visual_projection = nn.Linear(visual_size, hidden_size)
        self.audio_projection = nn.Linear(audio_size, hidden_size)
        self.visual_score = nn.Linear(hidden_size, attention_size, bias=False)
        self.audio_score = nn.Linear(hidden_size, attention_size, bias=False)
        self.score = nn.Linear(attention_size, 1, bias=False)

    def forward(self, locations: torch.Tensor, audio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the weighted sum of the locations.

        Args:
            locations (`torch.Tensor` of shape `(batch_size, num_segments, num_locations, visual_size)`): Location
                vectors.
            audio (`torch.Tensor` of shape `(batch_size, num_segments, audio_size)`): Audio vectors.

        Returns:
            The weighted sum `(batch_size, num_segments, visual_size)` and the weights
            `(batch_size, num_segments, num_locations)`, which sum to 1.
        """
        visual = self.visual_score(self.visual_projection(locations).relu())  # (B, T, P, attention)
        guide = self.audio_score(self.audio_projection(audio).relu())  # (B, T, attention)
        scores = self.score(torch.tanh(visual + guide.unsqueeze(2))).squeeze(-1)  # (B, T, P)
        weights = scores.softmax(dim=-1)
        return torch.matmul(weights.unsqueeze(2), locations).squeeze(2), weights


__all__ = [
    "AVEClipAudioGuidedVisualAttention",
    "AVEClipBidirectionalLSTM",
    "AVEClipFeatureNorm",
    "AVEClipInputDropout",
    "AVEClipLSTM",
]
