"""The paper's equations 2-17 for one video, in plain Python loops, with the weights of a localizer.

It is written from the paper and from the decisions that the configuration documents where the paper leaves something
open; it shares no code with the package and is as slow as it looks. A change of the model that alters a value, a
gradient or a loss therefore shows up as a difference.

T segments, P locations, D feature width, d hidden size. Everything is one video without padding.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass
class PaperOutput:
    """What the equations give for one video."""

    logits: Tensor  # (T, C), eq. 16 before the softmax
    event_scores: Tensor | None  # (T,), eq. 14 before the sigmoid
    visual_attention: Tensor  # (T, P)
    temporal_maps: list[Tensor]  # one (T, T) per window, zero between blocks
    feature_maps: list[list[Tensor]]  # one (d, d) per window and block


def localize(weights: Weights, config, image_features: Tensor, audio_features: Tensor) -> PaperOutput:
    """Scores of one video.

    Args:
        weights (`dict[str, Tensor]`): State dict of the localizer.
        config (`AVEClipConfig`): Which variant of the network.
        image_features (`Tensor` of shape `(T, P, D)`): Locations of each segment.
        audio_features (`Tensor` of shape `(T, D')`): Audio of each segment.
    """
    if config.normalize_features:
        image_features = (image_features - weights["image_norm.mean"]) / weights["image_norm.spread"]
        audio_features = (audio_features - weights["audio_norm.mean"]) / weights["audio_norm.spread"]
    if config.input_layer_norm:
        image_features = torch.stack(
            [norm(weights, "image_layer_norm", config, locations) for locations in image_features]
        )
        audio_features = norm(weights, "audio_layer_norm", config, audio_features)
    visual, visual_attention = attend_locations(weights, config, image_features, audio_features)
    video = bilstm(weights, "video_lstm.lstm", visual)
    audio = bilstm(weights, "audio_lstm.lstm", audio_features)
    features = torch.cat([video, audio], dim=1)  # F
    fused, temporal_maps, feature_maps = fuse(weights, "fusion", config, config.window_sizes, features)  # O
    event_scores = None
    if config.use_event_attention:
        gamma = bilstm(
            weights, "event_attention.lstm.lstm", norm(weights, "event_attention.norm", config, fused)
        )  # 13
        event_scores = linear(weights, "event_attention.score", gamma)[:, 0]
        alpha = 1 / (1 + torch.exp(-event_scores))  # eq. 14
        fused = torch.stack([alpha[t] * fused[t] for t in range(len(fused))])  # eq. 15
    if config.use_refiner:
        fused, _, _ = fuse(weights, "refiner", config, config.refiner_window_sizes or (len(fused),), fused)  # O_w
    hidden = bilstm(weights, "category_head.lstm.lstm", norm(weights, "category_head.norm", config, fused))
    logits = linear(weights, "category_head.classifier", hidden)  # eq. 16
    return PaperOutput(logits, event_scores, visual_attention, temporal_maps, feature_maps)


def full_loss(outputs: list[PaperOutput], labels: list[list[int]], config) -> tuple[Tensor, Tensor | None, Tensor]:
    """Total, event and category loss of eq. 17 over all labelled segments of a batch; -100 is not labelled."""
    category, event, count = torch.zeros(()), torch.zeros(()), 0
    for output, row in zip(outputs, labels):
        for t, label in enumerate(row):
            if label == -100:
                continue
            count += 1
            probabilities = softmax(output.logits[t])
            category = category - torch.log(probabilities[label])
            if output.event_scores is not None:
                alpha = 1 / (1 + torch.exp(-output.event_scores[t]))
                event = event - torch.log(1 - alpha if label == config.num_labels - 1 else alpha)
    category = category / max(count, 1)
    if outputs[0].event_scores is None:
        return config.category_loss_weight * category, None, category
    event = event / max(count, 1)
    return config.event_loss_weight * event + config.category_loss_weight * category, event, category


def weak_loss(outputs: list[PaperOutput], labels: list[int], config) -> tuple[Tensor, None, Tensor]:
    """One label per video: the mean of its segments' probabilities must name the class."""
    terms = []
    for output, label in zip(outputs, labels):
        if label != -100:
            mean = sum(softmax(scores) for scores in output.logits) / len(output.logits)
            terms.append(-torch.log(mean[label]))
    category = sum(terms) / max(len(terms), 1)
    return config.category_loss_weight * category, None, category


# ── the parts ──


def softmax(scores: Tensor) -> Tensor:
    """Softmax of a vector."""
    powers = torch.exp(scores - scores.detach().max())
    return powers / powers.sum()


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """`W x + b` for each row of `x`; `b` is optional."""
    result = x @ weights[f"{name}.weight"].T
    return result + weights[f"{name}.bias"] if f"{name}.bias" in weights else result


def norm(weights: Weights, name: str, config, x: Tensor) -> Tensor:
    """LayerNorm of each row."""
    rows = []
    for row in x:
        centred = row - row.sum() / len(row)
        variance = (centred * centred).sum() / len(row)
        rows.append(centred / torch.sqrt(variance + config.layer_norm_eps))
    return torch.stack(rows) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def lstm(weights: Weights, name: str, suffix: str, steps: list[Tensor]) -> list[Tensor]:
    """One direction of an LSTM over the given steps, in the given order."""
    w_input, w_hidden = weights[f"{name}.weight_ih_l0{suffix}"], weights[f"{name}.weight_hh_l0{suffix}"]
    bias = weights[f"{name}.bias_ih_l0{suffix}"] + weights[f"{name}.bias_hh_l0{suffix}"]
    hidden = cell = torch.zeros(w_hidden.shape[1], dtype=bias.dtype)
    outputs = []
    for step in steps:
        enter, forget, candidate, leave = (w_input @ step + w_hidden @ hidden + bias).chunk(4)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(candidate)
        hidden = torch.sigmoid(leave) * torch.tanh(cell)
        outputs.append(hidden)
    return outputs


def bilstm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Both directions side by side."""
    forward = lstm(weights, name, "", list(x))
    backward = lstm(weights, name, "_reverse", list(x)[::-1])[::-1]
    return torch.stack([torch.cat(pair) for pair in zip(forward, backward)])


def attend_locations(weights: Weights, config, image: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """AGVA (AVEL's module): the audio of each segment weighs its locations."""
    if config.visual_feature_type == "layer4":
        image = linear(weights, "visual_map_projection", image)
    num_locations = image.shape[1]
    if config.visual_feature_type == "pooled":
        return image.sum(dim=1) / num_locations, torch.full(image.shape[:2], 1 / num_locations, dtype=image.dtype)
    visual, attention = [], []
    for t in range(len(image)):
        guide = linear(weights, "visual_attention.audio_projection", audio[t]).clamp(min=0)
        guide = linear(weights, "visual_attention.audio_score", guide)
        scores = []
        for location in image[t]:
            hidden = linear(weights, "visual_attention.visual_projection", location).clamp(min=0)
            hidden = torch.tanh(linear(weights, "visual_attention.visual_score", hidden) + guide)
            scores.append(linear(weights, "visual_attention.score", hidden)[0])
        shares = softmax(torch.stack(scores))
        visual.append(sum(share * location for share, location in zip(shares, image[t])))
        attention.append(shares)
    return torch.stack(visual), torch.stack(attention)


def blocks(num_segments: int, window: int) -> list[tuple[int, int]]:
    """The blocks of one window as `(start, end)`; the remainder joins the last one (T = 10 and window 3: 3, 3, 4)."""
    number = max(1, num_segments // window)
    return [(k * window, (k + 1) * window if k < number - 1 else num_segments) for k in range(number)]


def fuse(weights: Weights, name: str, config, windows, features: Tensor) -> tuple[Tensor, list, list]:
    """Multi-window fusion (eq. 4-12): the outputs of all windows side by side, and the maps of each."""
    outputs, temporal_maps, feature_maps = [], [], []
    for i, window in enumerate(windows):
        copy = 0 if config.share_window_weights else i
        parts, whole_map, maps = [], torch.zeros(len(features), len(features), dtype=features.dtype), []
        for start, end in blocks(len(features), window):
            block = features[start:end]  # eq. 4
            fused, temporal, feature = fuse_block(weights, f"{name}.projections.{copy}", config, block)
            if config.fusion_residual and not config.gated_branches:
                fused = fused + linear(weights, f"{name}.residuals.{copy}", block)
            parts.append(fused)
            if temporal is not None:
                whole_map[start:end, start:end] = temporal.detach()
            if feature is not None:
                maps.append(feature.detach())
        output = torch.cat(parts)  # eq. 11
        outputs.append(output * weights[f"{name}.gates"][i] if config.gated_branches else output)
        temporal_maps.append(whole_map)
        feature_maps.append(maps)
    if not config.gated_branches:
        return torch.cat(outputs, dim=1), temporal_maps, feature_maps  # eq. 12
    plain = features
    if features.shape[1] != config.hidden_size:
        plain = linear(weights, f"{name}.plain_path.0", features).clamp(min=0)
    return plain + sum(outputs), temporal_maps, feature_maps


def fuse_block(weights: Weights, name: str, config, block: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Multi-domain attention over one block (eq. 5-10)."""
    normed = norm(weights, f"{name}.norm", config, block)
    query = linear(weights, f"{name}.query.2", torch.tanh(linear(weights, f"{name}.query.0", normed)))  # eq. 5
    key = linear(weights, f"{name}.key.2", torch.tanh(linear(weights, f"{name}.key.0", normed)))  # eq. 6
    value = linear(weights, f"{name}.value.2", linear(weights, f"{name}.value.0", normed).clamp(min=0))  # eq. 7
    size, width = query.shape
    temporal = feature = None
    if config.attention_domains != "feature":
        scores = query @ key.T / width**0.5  # eq. 8
        temporal = torch.stack([softmax(scores[row]) for row in range(size)])
    if config.attention_domains != "temporal":
        # Eq. 9 writes K Q^T, which is w x w; only K^T Q has the d x d shape that the text states.
        scores = key.T @ query / size**0.5
        feature = torch.stack([softmax(scores[:, column]) for column in range(width)], dim=1)
    attended = value if feature is None else value @ feature
    return attended if temporal is None else temporal @ attended, temporal, feature  # eq. 10
