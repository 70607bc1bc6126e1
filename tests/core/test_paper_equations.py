"""The localizer equals the paper's equations, written down separately: logits, maps, losses and gradients.

The default network, with parts that the paper does not have, is compared in the same way.
"""

import pytest
import torch

from ave_clip import AVEClipConfig
from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from tests.helpers import paper_reference
from tests.helpers.models import tiny_config

IMAGE_WIDTH, AUDIO_WIDTH, LOCATIONS = 6, 5, 2
DEFAULT = {"input_layer_norm": True, "gated_branches": True, "attention_domains": "temporal", "use_refiner": False}
VARIANTS = {
    "all blocks": {},
    "default": DEFAULT,
    "gated windows of both domains": {"gated_branches": True, "share_window_weights": False},
    "normalized input of every kind": {"input_layer_norm": True, "normalize_features": True},
    "paper": {"fusion_residual": False, "refiner_window_sizes": None, "hidden_size": 12},
    "no event attention": {"use_event_attention": False},
    "no refiner": {"use_refiner": False},
    "fusion alone": {"use_refiner": False, "use_event_attention": False},
    "independent windows": {"share_window_weights": False},
    "independent windows without residual": {"share_window_weights": False, "fusion_residual": False},
    "temporal attention": {"attention_domains": "temporal"},
    "feature attention": {"attention_domains": "feature"},
    "one window": {"window_sizes": (10,)},
    "other windows": {"window_sizes": (4, 1, 30)},
    "two windows in the refiner": {"refiner_window_sizes": (10, 5)},
    "a short window in the refiner": {"refiner_window_sizes": (3,), "share_window_weights": False},
    "pooled features": {"visual_feature_type": "pooled"},
    "last convolutional map": {"visual_feature_type": "layer4"},
    "normalized features": {"normalize_features": True},
    "normalized maps": {"normalize_features": True, "visual_feature_type": "layer4"},
    "other sizes": {"hidden_size": 10, "agva_hidden_size": 7, "agva_attention_size": 9, "layer_norm_eps": 0.1},
    "other loss weights": {"event_loss_weight": 1.7, "category_loss_weight": 0.2},
    "unsupervised event attention": {"event_loss_weight": 0.0},
    "two classes": {"id2label": {0: "Bell", 1: "background"}},
    "weak": {"supervision": "weak"},
    "weak without event attention": {"supervision": "weak", "use_event_attention": False},
}


def make_model(changes: dict) -> AVEClipForLocalization:
    """A float64 localizer whose every parameter and statistic is random, so that each of them matters."""
    values = {"hidden_size": 8, "agva_hidden_size": 8, "agva_attention_size": 4, "dropout": 0.3, **changes}
    sizes = {"image_feature_size": IMAGE_WIDTH, "audio_feature_size": AUDIO_WIDTH}
    model = AVEClipForLocalization(tiny_config(use_encoders=False, **sizes, **values)).double().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.4, generator=generator)
        for statistic in model.buffers():
            statistic.uniform_(0.5, 2, generator=generator)
    return model


def make_batch(num_segments: int, num_labels: int, weak: bool) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Features of two videos, their labels (one segment, or video, without) and their lengths if padded."""
    generator = torch.Generator().manual_seed(num_segments)
    options = {"generator": generator, "dtype": torch.float64}
    features = {
        "image_features": torch.randn(2, num_segments, LOCATIONS, IMAGE_WIDTH, **options),
        "audio_features": torch.randn(2, num_segments, AUDIO_WIDTH, **options),
    }
    labels = torch.randint(num_labels, (2,) if weak else (2, num_segments), generator=generator)
    labels[-1] = -100
    if not weak:
        labels[-1] = num_labels - 1
        labels[0, -1] = -100
    lengths = torch.tensor([num_segments, max(1, num_segments - 3)])
    return features, labels, lengths


def assert_close(actual, expected) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_the_variant_of_that_name_is_the_default_network():
    assert {name: getattr(AVEClipConfig(), name) for name in DEFAULT} == DEFAULT


CASES = [(1, False), (7, False), (10, False), (23, False), (10, True)]


@pytest.mark.parametrize(("num_segments", "is_padded"), CASES)
@pytest.mark.parametrize("name", VARIANTS)
def test_localizer_is_the_papers_equations(name, num_segments, is_padded):
    model = make_model(VARIANTS[name])
    config = model.config
    is_weak = config.supervision == "weak"
    features, labels, lengths = make_batch(num_segments, config.num_labels, is_weak)
    lengths = lengths if is_padded else torch.full((2,), num_segments)
    inputs = {key: value.clone().requires_grad_() for key, value in features.items()}
    mask = torch.arange(num_segments) < lengths[:, None] if is_padded else None
    own = model(**inputs, segment_mask=mask, labels=labels)
    own.loss.backward()
    with torch.no_grad():
        maps = model(**features, segment_mask=mask, output_attentions=True)  # computed in another way

    weights = {key: value.detach().clone().requires_grad_() for key, value in model.state_dict().items()}
    copies = {key: value.clone().requires_grad_() for key, value in features.items()}
    outputs = [
        paper_reference.localize(
            weights, config, copies["image_features"][row, :length], copies["audio_features"][row, :length]
        )
        for row, length in enumerate(lengths.tolist())
    ]
    if is_weak:
        losses = paper_reference.weak_loss(outputs, labels.tolist(), config)
    else:
        cut = [row[:length] for row, length in zip(labels.tolist(), lengths.tolist())]
        losses = paper_reference.full_loss(outputs, cut, config)
    losses[0].backward()

    assert (own.event_loss is None) == (losses[1] is None)
    for actual, expected in zip((own.loss, own.event_loss, own.category_loss), losses):
        if expected is not None:
            # The package computes its losses in at least float32.
            torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-6, atol=1e-6)
    for row, (length, expected) in enumerate(zip(lengths.tolist(), outputs)):
        assert_close(own.logits[row, :length], expected.logits)
        assert_close(maps.logits[row, :length], expected.logits)
        assert_close(maps.visual_attentions[row, :length], expected.visual_attention)
        if expected.event_scores is None:
            assert own.event_logits is None
        else:
            assert_close(own.event_logits[row, :length], expected.event_scores)
        assert_maps_are_equal(maps, row, length, expected, config)
    for key, parameter in model.named_parameters():
        assert_gradients_are_equal(key, parameter.grad, weights[key].grad)
    for key in inputs:
        assert_gradients_are_equal(key, inputs[key].grad, copies[key].grad)


def assert_maps_are_equal(maps, row: int, length: int, expected, config) -> None:
    if config.attention_domains == "feature":
        assert maps.temporal_attentions is None
    else:
        for actual, wanted in zip(maps.temporal_attentions, expected.temporal_maps, strict=True):
            assert_close(actual[row, :length, :length], wanted)
            assert not actual[row, length:].any() and not actual[row, :, length:].any()  # padding: neither side
    if config.attention_domains == "temporal":
        assert maps.feature_attentions is None
    else:
        for actual, wanted in zip(maps.feature_attentions, expected.feature_maps, strict=True):
            assert_close(actual[row, : len(wanted)], torch.stack(wanted))


def assert_gradients_are_equal(name: str, actual: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    zeros = torch.zeros_like(actual if expected is None else expected) if actual is None or expected is None else None
    if zeros is not None and actual is None and expected is None:
        return
    # Losses are computed in float32, so their gradients agree to its precision.
    torch.testing.assert_close(
        zeros if actual is None else actual,
        zeros if expected is None else expected,
        rtol=1e-5,
        atol=1e-6,
        msg=lambda text: f"gradient of {name}: {text}",
    )
