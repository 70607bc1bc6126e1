"""AudioCLIPModel: logits, losses, subsets of modalities and of towers, saving and loading."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import AutoModel

from ave_clip.core.configuration_audioclip import AudioCLIPConfig
from ave_clip.core.modeling_audioclip import AudioCLIPModel, contrastive_loss
from tests.helpers.models import tiny_audioclip_config

MODALITIES = ("input_ids", "pixel_values", "input_values")


@pytest.fixture
def model() -> AudioCLIPModel:
    torch.manual_seed(0)
    return AudioCLIPModel(tiny_audioclip_config()).eval()


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(0, 97, (3, 7), generator=generator)
    input_ids[:, -1] = 98
    return {
        "input_ids": input_ids,
        "pixel_values": torch.randn(3, 3, 64, 64, generator=generator),
        "input_values": 5000 * torch.randn(3, 3000, generator=generator),
    }


def pair_loss(logits: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    target = torch.arange(len(logits))
    return nn.functional.cross_entropy(logits, target, weight=weights) + nn.functional.cross_entropy(
        logits.t(), target, weight=weights
    )


@torch.no_grad()
def test_logits_are_scaled_cosines_of_the_raw_features(model, batch):
    model.logit_scale.fill_(1.5)
    model.logit_scale_ai.fill_(math.log(200))  # used as 100
    model.logit_scale_at.fill_(-1.0)  # used as 1
    outputs = model(**batch)
    text = model.get_text_features(batch["input_ids"]).pooler_output
    image = model.get_image_features(batch["pixel_values"]).pooler_output
    audio = model.get_audio_features(batch["input_values"]).pooler_output
    for embeds, features in (
        (outputs.text_embeds, text),
        (outputs.image_embeds, image),
        (outputs.audio_embeds, audio),
    ):
        torch.testing.assert_close(embeds, nn.functional.normalize(features))
    expected = {
        "logits_per_image_text": math.exp(1.5) * outputs.image_embeds @ outputs.text_embeds.t(),
        "logits_per_audio_image": 100 * outputs.audio_embeds @ outputs.image_embeds.t(),
        "logits_per_audio_text": outputs.audio_embeds @ outputs.text_embeds.t(),
    }
    for name, logits in expected.items():
        torch.testing.assert_close(outputs[name], logits)


@pytest.mark.parametrize("absent", [*MODALITIES, None])
def test_loss_sums_the_pairs_over_the_factorial_of_their_number(absent, model, batch):
    batch.pop(absent, None)
    with torch.no_grad():
        outputs = model(**batch, return_loss=True)
    logits = (outputs.logits_per_audio_image, outputs.logits_per_audio_text, outputs.logits_per_image_text)
    losses = [pair_loss(matrix) for matrix in logits if matrix is not None]
    assert len(losses) == (1 if absent else 3)
    expected = sum(losses) / (1 if absent else 6)
    if absent != "input_values":
        expected = expected + outputs.loss_ttf
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize("given", MODALITIES)
def test_one_modality_alone_is_embedded(given, model, batch):
    with torch.no_grad():
        together, alone = model(**batch), model(**{given: batch[given]})
    name = {"input_ids": "text_embeds", "pixel_values": "image_embeds", "input_values": "audio_embeds"}[given]
    torch.testing.assert_close(alone[name], together[name], rtol=1e-5, atol=1e-6)
    absent = {"text_embeds", "image_embeds", "audio_embeds"} - {name}
    assert absent.isdisjoint(alone.keys()) and alone.loss is None
    assert (alone.loss_ttf is None) == (given != "input_values")


@pytest.mark.parametrize("given", MODALITIES)
def test_loss_of_one_modality_alone_is_refused(given, model, batch):
    with pytest.raises(ValueError, match=f"return_loss=True needs at least two of .*, got only {given}"):
        model(**{given: batch[given]}, return_loss=True)


def test_batches_of_different_size_give_logits_but_no_loss(model, batch):
    batch["input_ids"] = batch["input_ids"][:2]
    with torch.no_grad():
        assert model(**batch).logits_per_audio_text.shape == (3, 2)
    with pytest.raises(ValueError, match="got 3 and 2"):
        model(**batch, return_loss=True)


def test_sample_weights_weigh_the_items(model, batch):
    weights = torch.tensor([0.5, 1.0, 2.0])
    with torch.no_grad():
        outputs = model(**batch, return_loss=True, sample_weights=weights)
    logits = (outputs.logits_per_audio_image, outputs.logits_per_audio_text, outputs.logits_per_image_text)
    expected = sum(pair_loss(matrix, weights) for matrix in logits) / 6 + outputs.loss_ttf
    torch.testing.assert_close(outputs.loss, expected)
    with pytest.raises(ValueError, match=r"sample_weights must have shape \(3,\), got \(2,\)"):
        model(**batch, return_loss=True, sample_weights=weights[:2])


@pytest.mark.parametrize(
    "weights", [[0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0]]
)
def test_sample_weights_without_a_finite_sum_above_zero_are_refused(weights, model, batch):
    with pytest.raises(ValueError, match="sample_weights must have a finite sum above 0, got"):
        model(**batch, return_loss=True, sample_weights=torch.tensor(weights))


def test_sample_weights_too_small_for_the_dtype_of_the_logits_are_refused():
    logits = torch.eye(2, dtype=torch.float16)
    with pytest.raises(ValueError, match="finite sum above 0, got 0"):
        contrastive_loss(logits, torch.tensor([1e-12, 1e-12]))
    weights = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(contrastive_loss(logits, weights), 2 * torch.log1p(torch.exp(-logits[0, 0])))


def test_contrastive_loss_of_uniform_logits_is_twice_the_entropy():
    assert contrastive_loss(torch.zeros(4, 4)).item() == pytest.approx(2 * math.log(4))


def test_clamped_scale_gets_no_gradient(model, batch):
    nn.init.constant_(model.logit_scale_ai, math.log(101))
    nn.init.constant_(model.logit_scale_at, math.log(20))
    model.train()(**batch, return_loss=True).loss.backward()
    assert model.logit_scale_ai.grad.item() == 0
    assert model.logit_scale_at.grad.item() != 0 and model.logit_scale.grad.item() != 0


def test_every_parameter_gets_a_gradient(model, batch):
    nn.init.constant_(model.logit_scale_ai, 2.0)
    nn.init.constant_(model.logit_scale_at, 2.0)
    model.train()(**batch, return_loss=True).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_initial_scales_are_the_originals(model):
    assert model.logit_scale.item() == 1.0
    assert model.logit_scale_ai.item() == model.logit_scale_at.item() == pytest.approx(math.log(100))


def test_no_modality_is_refused(model):
    with pytest.raises(ValueError, match="Nothing to embed"):
        model()


def test_features_have_the_form_of_clip_models(model, batch):
    with torch.no_grad():
        image = model.get_image_features(batch["pixel_values"])
        audio = model.get_audio_features(batch["input_values"][:, None].expand(-1, 2, -1))
        as_tuple = model.get_image_features(batch["pixel_values"], return_dict=False)
    assert image.last_hidden_state.shape == (3, 4, 256) and image.pooler_output.shape == (3, 24)
    assert audio.last_hidden_state.shape[0] == 3 and audio.last_hidden_state.shape[2] == 256
    assert torch.equal(as_tuple[1], image.pooler_output)
    one_channel = model.get_audio_features(batch["input_values"]).last_hidden_state
    torch.testing.assert_close(audio.last_hidden_state, one_channel.repeat(1, 2, 1), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_tokens_do_not_change_text_embeddings(model, batch):
    padded = nn.functional.pad(batch["input_ids"], (0, 5))
    expected = model(input_ids=batch["input_ids"]).text_embeds
    torch.testing.assert_close(model(input_ids=padded).text_embeds, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("towers", "scales"),
    [
        (("vision", "audio"), {"logit_scale_ai"}),
        (("text", "vision"), {"logit_scale"}),
        (("text", "audio"), {"logit_scale_at"}),
        (("audio",), set()),
    ],
)
def test_model_with_some_towers_refuses_the_other_modalities(towers, scales, batch, tmp_path):
    model = AudioCLIPModel(AudioCLIPConfig(**{**tiny_audioclip_config().to_dict(), "towers": towers})).eval()
    assert {name for name, _ in model.named_parameters(recurse=False)} == scales
    inputs = dict(zip(("text", "vision", "audio"), MODALITIES))
    given = {inputs[tower]: batch[inputs[tower]] for tower in towers}
    model.save_pretrained(tmp_path)
    loaded, info = AudioCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        for key, value in model(**given).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(loaded(**given)[key], value)
    absent = next(tower for tower in inputs if tower not in towers)
    with pytest.raises(ValueError, match=f"has no {absent} tower"):
        model(**{inputs[absent]: batch[inputs[absent]]})


def test_saving_and_loading_is_exact(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    for loaded in (AudioCLIPModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        with torch.no_grad():
            expected, outputs = model(**batch, return_loss=True), loaded(**batch, return_loss=True)
        for name in ("audio_embeds", "image_embeds", "text_embeds", "logits_per_audio_image", "loss"):
            assert torch.equal(outputs[name], expected[name]), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_agree_with_float32(dtype, model, batch):
    with torch.no_grad():
        expected = model(**batch)
        outputs = copy.deepcopy(model).to(dtype)(**batch)
    tolerance = 1e-4 if dtype == torch.float64 else 0.05
    for name in ("audio_embeds", "image_embeds", "text_embeds"):
        assert outputs[name].dtype == dtype
        torch.testing.assert_close(outputs[name].float(), expected[name], rtol=0, atol=tolerance)


def test_training_moves_the_loss_down(model, batch):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    nn.init.constant_(model.logit_scale_ai, 2.0)
    nn.init.constant_(model.logit_scale_at, 2.0)
    losses = []
    for _ in range(6):
        loss = model.train()(**batch, return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
