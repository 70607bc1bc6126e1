"""`optimize_for_inference` of `ave-clip-mini`: same features, segments and events, and unmodified weights."""

import copy

import pytest
import torch
from torch import nn
from transformers import pipeline

from ave_clip.core.fast_inference import FoldedSameConvolution
from ave_clip.core.modeling_ave_clip_mini import AVEClipMiniForLocalization
from ave_clip.core.modeling_efficientnet_lite import EfficientNetLiteConvolution
from tests.core.test_fast_inference import assert_same_state, calibrated, needs_fused, state
from tests.core.test_modeling_ave_clip_mini import tiny_config, tiny_mini
from tests.helpers.models import ASSETS, MINI_FOLDER

SCORES = ("score", "heard", "seen", "both")


@pytest.fixture
def model() -> AVEClipMiniForLocalization:
    model = calibrated(tiny_mini())
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # weights of a new MobileNetV1 are so small that nothing reaches the end
            nn.init.normal_(module.weight, std=2 * module.weight[0].numel() ** -0.5)
    return model


@torch.no_grad()
def features(model: AVEClipMiniForLocalization, number: int = 3, side: int = 32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(number)
    pixel_values = torch.randn(1, number, 1, 3, side, side, generator=generator)
    input_values = torch.rand(1, number, 16000, generator=generator) * 2 - 1
    return model.encode(pixel_values, input_values)


def is_optimized(model: AVEClipMiniForLocalization) -> bool:
    paths = (model.image_model.fast_path, model.audio_model.fast_path)
    return all(path is not None and path.held_copy is not None for path in paths)


def assert_close(own: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...], tolerance: float = 1e-5) -> None:
    for value, wanted in zip(own, expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=needs_fused)])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
@torch.no_grad()
def test_same_padding_equals_the_padded_copy_for_inputs_of_any_size(kernel, stride, fused):
    torch.manual_seed(0)
    layer = EfficientNetLiteConvolution(6, 6, kernel, stride, 6, 1e-3)
    calibrated(layer)
    bare = EfficientNetLiteConvolution(6, 6, kernel, stride, 6, 1e-3, activation=False).eval()
    bare.load_state_dict(layer.state_dict())
    folded = FoldedSameConvolution(layer.convolution, layer.normalization, torch.float32, fused)
    for size in ((2, 6, 8, 8), (1, 6, 8, 8), (2, 6, 9, 8), (2, 6, 8, 7), (3, 6, 9, 11), (2, 6, 8, 8)):
        inputs = 20 * torch.randn(size).contiguous(memory_format=torch.channels_last)
        expected = layer(inputs.clone())
        assert (expected == 6).any() and (expected == 0).any()  # both limits of ReLU6 occur
        torch.testing.assert_close(folded(inputs, "relu6"), expected, rtol=1e-5, atol=1e-5)
        shortcut = torch.randn_like(expected)
        torch.testing.assert_close(folded.add(inputs, shortcut.clone()), bare(inputs) + shortcut, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("number", [1, 3, 13])
@pytest.mark.parametrize("side", [32, 33])
def test_features_are_equal_for_any_number_and_size(model, number, side):
    expected = features(model, number, side)
    assert_close(features(model.optimize_for_inference(), number, side), expected)
    assert is_optimized(model)


def test_plain_convolutions_give_the_features_of_the_fused_ones(model, monkeypatch):
    monkeypatch.setattr("ave_clip.core.fast_inference.has_fused_convolutions", lambda device, dtype: False)
    expected = features(model)
    assert_close(features(model.optimize_for_inference()), expected)
    assert is_optimized(model)


def test_float64_stays_float64(model):
    expected = features(model.double())
    own = features(model.optimize_for_inference())
    assert own[0].dtype == own[1].dtype == torch.float64
    assert_close(own, expected, tolerance=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_of_weights_or_of_convolutions_keep_dtype_and_direction(model, dtype):
    expected = features(model)
    convolutions = features(model.optimize_for_inference(dtype))
    assert is_optimized(model)
    weights = features(model.optimize_for_inference().to(dtype))
    assert is_optimized(model)
    for own, wanted in ((convolutions, torch.float32), (weights, dtype)):
        for value, exact in zip(own, expected):
            assert value.dtype == wanted and not torch.equal(value.float(), exact)
            assert nn.functional.cosine_similarity(value.float(), exact, dim=-1).min() > 0.99


def test_weights_and_modules_are_not_modified_and_save_and_load(model, tmp_path):
    before, modules = state(model), [name for name, _ in model.named_modules()]
    expected = features(model.optimize_for_inference())
    assert_same_state(state(model), before)
    assert [name for name, _ in model.named_modules()] == modules
    model.save_pretrained(tmp_path)
    loaded = AVEClipMiniForLocalization.from_pretrained(tmp_path).eval()
    assert_same_state(state(loaded), before)
    assert_close(features(loaded.optimize_for_inference()), expected, tolerance=0)
    twin = copy.deepcopy(model)
    assert not is_optimized(twin)
    assert_close(features(twin), expected, tolerance=0)


def test_training_drops_the_copy_and_changed_weights_are_noticed(model):
    before = features(model.optimize_for_inference())
    model.train()
    assert not is_optimized(model)
    model.eval()
    with torch.no_grad():
        model.image_model.blocks[0].project.convolution.weight.mul_(-1)
        model.audio_model.mobilenet_v1.conv_stem.normalization.bias.add_(1)
    after = features(model)
    assert is_optimized(model)
    assert not any(torch.allclose(own, other) for own, other in zip(after, before))
    assert_close(after, features(model.undo_inference_optimization()))
    assert not is_optimized(model)


def test_gradients_use_the_original_layers(model):
    model.optimize_for_inference().image_model(torch.randn(2, 3, 32, 32)).logits.sum().backward()
    assert model.image_model.stem.convolution.weight.grad.abs().sum() > 0


def test_other_activations_are_refused_and_the_model_stays_as_it_is():
    config = tiny_config()
    config.audio_config.hidden_act = "gelu"
    model = AVEClipMiniForLocalization(config).eval()
    with pytest.raises(ValueError, match="takes ReLU and ReLU6 here, got GELU"):
        model.optimize_for_inference()
    assert not model.is_optimized_for_inference
    assert features(model)[1].isfinite().all()


def test_the_sample_has_the_segments_and_events_of_the_plain_model():
    localize = pipeline("audio-visual-event-localization", model=str(MINI_FOLDER), device="cpu")
    assert is_optimized(localize.model)
    own, with_maps = localize(str(ASSETS / "sample.mp4")), localize(str(ASSETS / "sample.mp4"), return_heatmaps=True)
    assert with_maps.pop("heatmaps").shape == (10, 7, 7)
    assert with_maps == own  # maps are computed only if they are wanted, and nothing depends on them
    localize.model.undo_inference_optimization()
    plain = localize(str(ASSETS / "sample.mp4"))
    assert [event["label"] for event in own["events"]] == ["Bark"]
    for name in ("segments", "events"):
        for found, wanted in zip(own[name], plain[name], strict=True):
            scores = {score: (found.pop(score), wanted.pop(score)) for score in SCORES if score in found}
            assert found == wanted
            for score, (value, exact) in scores.items():
                assert value == pytest.approx(exact, abs=1e-4), score  # rounding of the convolutions only
