"""The models with accelerate's offloading, attention choices, Auto classes, torch.export, torch.compile, autocast."""

import pytest
import torch
from accelerate import Accelerator, cpu_offload, disk_offload
from accelerate.state import AcceleratorState
from transformers import AutoModel

from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from tests.helpers.models import tiny_localizer


def raw_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 4, 2, 3, 64, 64, generator=generator)
    return {"pixel_values": pixels, "input_values": 3000 * torch.randn(1, 4, 4000, generator=generator)}


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**raw_inputs()).logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("localizer")
    model = tiny_localizer()
    model.save_pretrained(folder)
    return folder, logits_of(model)


def offloaded(folder, way, place):
    if way == "map":
        return AVEClipForLocalization.from_pretrained(folder, device_map={"": "disk"}, offload_folder=place)
    model, options = AVEClipForLocalization.from_pretrained(folder), {"execution_device": torch.device("cpu")}
    return cpu_offload(model, **options) if way == "cpu" else disk_offload(model, place, **options)


@pytest.mark.parametrize("way", ["map", "cpu", "disk"])
def test_offloaded_models_answer_the_same(saved, way, tmp_path):
    folder, expected = saved
    torch.testing.assert_close(logits_of(offloaded(folder, way, tmp_path)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_attention_implementation_reaches_the_image_tower(saved, implementation):
    model = AVEClipForLocalization.from_pretrained(saved[0], attn_implementation=implementation)
    assert model.vision_model.config._attn_implementation == implementation
    torch.testing.assert_close(logits_of(model), saved[1], rtol=1e-5, atol=1e-5)


def test_auto_model_loads_a_localizer(saved):
    model = AutoModel.from_pretrained(saved[0])
    assert type(model) is AVEClipForLocalization
    torch.testing.assert_close(logits_of(model), saved[1], rtol=0, atol=0)


def test_masks_of_ones_change_nothing(saved):
    masks = {"frame_mask": torch.ones(1, 4, 2, dtype=torch.bool), "segment_mask": torch.ones(1, 4, dtype=torch.bool)}
    with torch.no_grad():
        logits = tiny_localizer()(**raw_inputs(), **masks).logits
    torch.testing.assert_close(logits, saved[1], rtol=1e-5, atol=1e-5)


def test_export_from_raw_input(saved):
    program = torch.export.export(tiny_localizer(), (), raw_inputs())
    torch.testing.assert_close(program.module()(**raw_inputs()).logits, saved[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("optimized", [False, True])
def test_compile_from_raw_input_into_one_graph(saved, optimized):
    model = tiny_localizer()
    if optimized:
        model.optimize_for_inference()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(logits_of(compiled), saved[1], rtol=1e-5, atol=1e-5)


class Wrapped(torch.Tensor):
    """A tensor of another class, as quantization makes them."""


def test_weights_of_another_class_are_left_to_torch():
    model = tiny_localizer()
    expected = logits_of(model)
    model.optimize_for_inference()
    for module in (model.vision_model.attnpool.c_proj, model.visual_attention.visual_score):
        weight = module.weight.detach().as_subclass(Wrapped)
        module.weight = torch.nn.Parameter(weight, requires_grad=False)
    assert type(model.visual_attention.visual_score.weight) is Wrapped
    logits = logits_of(model)
    assert model.vision_model.fast_path._current_copy() is None
    torch.testing.assert_close(logits.as_subclass(torch.Tensor), expected, rtol=1e-5, atol=1e-5)


def test_mixed_precision_reaches_the_localizer():
    """Stage 3 trains what `Accelerator.prepare` returns: hidden values are bfloat16, weights and loss float32."""
    features = {
        "image_features": torch.randn(2, 4, 4, 24, generator=torch.Generator().manual_seed(0)),
        "audio_features": torch.randn(2, 4, 24, generator=torch.Generator().manual_seed(1)),
        "labels": torch.tensor([[0, 1, 3, 3], [2, 2, 2, 3]]),
    }
    losses, dtypes = {}, {}
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        model = tiny_localizer(use_encoders=False, image_feature_size=24, audio_feature_size=24).train()
        prepared = Accelerator(mixed_precision=precision, cpu=True).prepare(model)
        dtypes[precision] = hidden = set()
        for layer in (model.visual_attention.visual_projection, model.fusion.projections[0].key[0]):
            layer.register_forward_hook(lambda _, inputs, output, hidden=hidden: hidden.add(output.dtype))
        loss = prepared(**features).loss
        loss.backward()
        losses[precision] = loss.detach()
        assert loss.dtype == torch.float32 and all(weight.dtype == torch.float32 for weight in model.parameters())
    AcceleratorState._reset_state(reset_partial_state=True)
    assert dtypes == {"no": {torch.float32}, "bf16": {torch.bfloat16}}
    assert losses["bf16"] != losses["no"]
    torch.testing.assert_close(losses["bf16"], losses["no"], rtol=0.02, atol=0)
