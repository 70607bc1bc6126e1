"""The image tower: shapes, feature types, equality with CLIP's own formula."""

import pytest
import torch
from torch import nn

from ave_clip.core.configuration_audioclip import AudioCLIPVisionConfig
from ave_clip.core.modeling_clip_resnet import AudioCLIPVisionModel


@pytest.fixture
def config() -> AudioCLIPVisionConfig:
    return AudioCLIPVisionConfig(image_size=96, width=4, depths=(2, 1, 1, 1), num_attention_heads=4, projection_dim=16)


@pytest.fixture
def model(config) -> AudioCLIPVisionModel:
    torch.manual_seed(0)
    model = AudioCLIPVisionModel(config)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.2 * torch.rand_like(buffer))
    return model.eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def attention_pool_of_all_tokens(model: AudioCLIPVisionModel, feature_map: torch.Tensor) -> torch.Tensor:
    """CLIP's attention pool as published: every token attends, the first is kept."""
    pool = model.attnpool
    tokens = feature_map.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(dim=0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    attended, _ = nn.functional.multi_head_attention_forward(
        query=tokens,
        key=tokens,
        value=tokens,
        embed_dim_to_check=tokens.shape[-1],
        num_heads=pool.num_heads,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
        in_proj_weight=None,
        in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None,
        bias_v=None,
        add_zero_attn=False,
        dropout_p=0.0,
        out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias,
        use_separate_proj_weight=True,
        training=False,
        need_weights=False,
    )
    return attended[0]


@torch.no_grad()
def test_pooled_embedding_equals_clips_full_attention(model, images):
    outputs = model(images, feature_types=("pooled", "layer4"))
    expected = attention_pool_of_all_tokens(model, outputs.last_hidden_state)
    torch.testing.assert_close(outputs.image_embeds, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_dense_embeddings_are_the_projected_value_of_each_position(model, images):
    outputs = model(images, feature_types=("dense", "layer4"))
    pool, feature_map = model.attnpool, outputs.last_hidden_state
    for index, (row, column) in enumerate(((0, 0), (0, 1), (0, 2), (1, 0))):
        token = feature_map[:, :, row, column] + pool.positional_embedding[1 + index]
        expected = pool.c_proj(pool.v_proj(token))
        torch.testing.assert_close(outputs.dense_embeds[:, index], expected, rtol=1e-5, atol=1e-5)
    assert outputs.dense_embeds.shape == (2, 9, 16)


@torch.no_grad()
def test_one_pass_gives_the_same_as_one_for_each_feature_type(model, images):
    together = model(images, feature_types=("pooled", "dense", "layer4"))
    assert torch.equal(together.image_embeds, model(images).image_embeds)
    assert torch.equal(together.dense_embeds, model(images, feature_types="dense").dense_embeds)
    assert torch.equal(together.last_hidden_state, model(images, feature_types=["layer4"]).last_hidden_state)


@torch.no_grad()
def test_only_what_is_asked_is_computed(model, images, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("not asked for")

    monkeypatch.setattr(model.attnpool.q_proj, "forward", fail)
    assert list(model(images, feature_types=("dense",)).keys()) == ["dense_embeds"]
    monkeypatch.setattr(model.attnpool.v_proj, "forward", fail)
    assert list(model(images, feature_types=("layer4",)).keys()) == ["last_hidden_state"]


def test_pooling_needs_a_single_query(model, images):
    seen = []
    model.attnpool.q_proj.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    model(images)
    assert seen == [(2, 1, 128)]


@torch.no_grad()
def test_eager_and_sdpa_agree(config, model, images):
    eager = AudioCLIPVisionModel._from_config(config, attn_implementation="eager").eval()
    eager.load_state_dict(model.state_dict())
    outputs = eager(images, output_attentions=True)
    torch.testing.assert_close(outputs.image_embeds, model(images).image_embeds, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 4, 1))


@torch.no_grad()
def test_stride_is_taken_by_pooling_not_by_convolutions(model):
    strides = {name: layer.stride for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    assert {name for name, stride in strides.items() if stride != (1, 1)} == {"conv1"}


@torch.no_grad()
def test_a_batch_gives_the_same_as_its_images_one_by_one(model, images):
    single = torch.cat([model(image[None]).image_embeds for image in images])
    torch.testing.assert_close(model(images).image_embeds, single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (2, 1, 96, 96), (3, 96, 96)])
def test_images_of_another_shape_are_refused(shape, model):
    with pytest.raises(ValueError, match=r"must have shape \(batch_size, 3, 96, 96\), got"):
        model(torch.zeros(shape))


def test_unknown_feature_types_and_missing_images_are_refused(model, images):
    with pytest.raises(ValueError, match=r"feature_types must contain some of.*layer3"):
        model(images, feature_types=("layer3",))
    with pytest.raises(ValueError, match="feature_types must contain some of"):
        model(images, feature_types=())
    with pytest.raises(ValueError, match="pixel_values is missing"):
        model()


def test_saving_and_loading_is_exact(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AudioCLIPVisionModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images).image_embeds, model(images).image_embeds)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_and_statistics(reentrant, config, images):
    gradients, buffers = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = AudioCLIPVisionModel(config).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(images).image_embeds.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        buffers.append(dict(model.named_buffers()))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)
    for name, buffer in buffers[0].items():
        torch.testing.assert_close(buffers[1][name], buffer, rtol=1e-6, atol=1e-7)


@torch.no_grad()
def test_exported_program_gives_the_same(model, images):
    program = torch.export.export(model, (images,), strict=False)  # traced, which is how torch.export works by default
    torch.testing.assert_close(program.module()(images).image_embeds, model(images).image_embeds, rtol=1e-5, atol=1e-5)
