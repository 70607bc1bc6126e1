"""Feature attention without its maps equals the plain form, in values and gradients."""

import pytest
import torch

from ave_clip.core import modeling_fusion
from ave_clip.core.modeling_fusion import _transposed_attention, feature_attention, feature_map
from tests.helpers.models import tiny_localizer


def blocks(batch: int = 3, number: int = 4, size: int = 5, width: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, number, size, width)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def with_gradients(attention, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    output = attention(*inputs)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return (output, *torch.autograd.grad((output * direction).sum(), inputs))


def plain(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return value @ (key.transpose(-1, -2) @ query).softmax(dim=-2)


@pytest.mark.parametrize("attention", [feature_attention, _transposed_attention])
@pytest.mark.parametrize("size", [1, 2, 5, 10])
def test_values_and_gradients_equal_the_plain_form(attention, size, monkeypatch):
    monkeypatch.setattr(modeling_fusion, "ELEMENTS_AT_ONCE", 5 * 16 * 16)  # 12 blocks: parts of 5, 5, 2
    inputs = blocks(size=size)
    for own, expected in zip(with_gradients(attention, inputs), with_gradients(plain, inputs)):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-10)


def test_gradients_pass_the_numerical_check():
    assert torch.autograd.gradcheck(feature_attention, blocks(batch=2, number=2, size=2, width=4))


def test_columns_of_the_map_sum_to_one():
    query, key, _ = blocks()
    weights = feature_map(query, key)
    torch.testing.assert_close(weights.sum(dim=-2), torch.ones(3, 4, 16, dtype=torch.float64))


def test_inputs_that_are_not_contiguous_are_welcome():
    inputs = [tensor.detach().transpose(0, 1).requires_grad_() for tensor in blocks()]
    for own, expected in zip(with_gradients(feature_attention, inputs), with_gradients(plain, inputs)):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-10)


def test_maps_are_not_kept_for_the_gradient():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor.numel()) or tensor, lambda t: t):
        feature_attention(*blocks(width=64))
    assert sum(saved) == 3 * 3 * 4 * 5 * 64


def test_autocast_computes_as_the_plain_form_does():
    inputs = [tensor.detach().float() for tensor in blocks()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(feature_attention(*inputs), plain(*inputs), rtol=0, atol=0)


@pytest.mark.parametrize("num_segments", [3, 10])
def test_localizer_gives_the_same_logits_with_and_without_maps(num_segments):
    localizer = tiny_localizer(visual_feature_type="pooled").double()
    generator = torch.Generator().manual_seed(0)
    features = {
        name: torch.randn(2, num_segments, 24, generator=generator, dtype=torch.float64)
        for name in ("image_features", "audio_features")
    }
    features["segment_mask"] = torch.arange(num_segments) < torch.tensor([[num_segments], [num_segments - 1]])
    without, with_maps = localizer(**features), localizer(**features, output_attentions=True)
    torch.testing.assert_close(without.logits, with_maps.logits, rtol=1e-10, atol=1e-10)
    assert without.feature_attentions is None
    assert [weights.shape[-2:] for weights in with_maps.feature_attentions] == [(16, 16)] * 4
