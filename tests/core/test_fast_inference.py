"""`optimize_for_inference`: the same answers, and weights that nobody can tell were ever optimised."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ave_clip.core.configuration_audioclip import AudioCLIPAudioConfig
from ave_clip.core.cuda_graphs import GraphedCalls
from ave_clip.core.fast_inference import (
    BlockedLinear,
    FastLinear,
    FoldedConvolution,
    few_at_a_time,
    has_fused_convolutions,
)
from ave_clip.core.fast_towers import FoldedSpectrogram
from ave_clip.core.modeling_audioclip import AudioCLIPModel
from ave_clip.core.modeling_ave_clip import AVEClipForLocalization
from ave_clip.core.modeling_esresnext import AudioCLIPSpectrogram
from tests.helpers.models import TINY_AUDIO, tiny_audioclip_config, tiny_localizer

CPU = torch.device("cpu")
needs_fused = pytest.mark.skipif(
    not has_fused_convolutions(CPU, torch.float32), reason="this torch has no fused oneDNN convolutions"
)


def sounds(number: int = 3, seed: int = 0) -> torch.Tensor:
    return 3000 * torch.randn(number, 4000, generator=torch.Generator().manual_seed(seed))


def images(number: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def calibrated(model: nn.Module) -> nn.Module:
    """Batch normalisations with statistics, scales and offsets of their own, so that folding has something to do."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(0.3 * torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(0.5 + torch.rand(module.num_features, generator=generator))
            module.weight.data.copy_(0.5 + 0.5 * torch.rand(module.num_features, generator=generator))
            module.bias.data.copy_(0.2 * torch.randn(module.num_features, generator=generator))
    return model.eval()


@pytest.fixture
def model() -> AudioCLIPModel:
    torch.manual_seed(0)
    model = calibrated(AudioCLIPModel(tiny_audioclip_config()))
    model.audio_model.bn1.running_mean.fill_(20.0)
    model.audio_model.bn1.running_var.fill_(400.0)
    return model


@torch.no_grad()
def embeddings(model: AudioCLIPModel, number: int = 3) -> dict[str, torch.Tensor]:
    audio = model.audio_model(sounds(number))
    image = model.vision_model(images(number), feature_types=("pooled", "dense", "layer4"))
    return {
        "audio": audio.audio_embeds,
        "audio map": audio.last_hidden_state,
        "loss": audio.loss_ttf,
        "image": image.image_embeds,
        "dense": image.dense_embeds,
        "image map": image.last_hidden_state,
    }


def assert_close(own: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5) -> None:
    for name, value in expected.items():
        assert own[name].dtype == value.dtype, name
        torch.testing.assert_close(own[name], value, rtol=tolerance, atol=tolerance * value.abs().max().item())


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(own: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(own) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(own[name], value, rtol=0, atol=0)


def is_optimized(model: AudioCLIPModel) -> bool:
    paths = (model.audio_model.fast_path, model.vision_model.fast_path)
    return all(path is not None and path.held_copy is not None for path in paths)


# --- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 3, 13])
def test_optimized_towers_answer_as_before_for_any_batch(model, number):
    expected = embeddings(model, number)
    assert_close(embeddings(model.optimize_for_inference(), number), expected)
    assert is_optimized(model)


def test_batches_of_one_and_more_may_alternate(model):
    expected = [embeddings(model, number) for number in (3, 1)]
    model.optimize_for_inference()
    for _ in range(2):
        for number, values in zip((3, 1), expected):
            assert_close(embeddings(model, number), values)


def test_the_plain_convolutions_answer_as_the_fused_ones(model, monkeypatch):
    monkeypatch.setattr("ave_clip.core.fast_inference.has_fused_convolutions", lambda device, dtype: False)
    monkeypatch.setattr("ave_clip.core.fast_towers.has_fused_convolutions", lambda device, dtype: False)
    expected = embeddings(model)
    assert_close(embeddings(model.optimize_for_inference()), expected)


def test_float64_models_are_optimized_in_float64(model):
    model.double()
    expected = embeddings(model)
    assert_close(embeddings(model.optimize_for_inference()), expected, tolerance=1e-12)


def test_bfloat16_trunk_keeps_dtype_direction_and_the_exact_filter_loss(model):
    expected = embeddings(model)
    own = embeddings(model.optimize_for_inference(dtype="bfloat16"))
    for name, value in expected.items():
        assert own[name].dtype == torch.float32
        if name != "loss":
            cosine = nn.functional.cosine_similarity(own[name].flatten(1), value.flatten(1))
            assert cosine.min() > 0.999, name
            assert not torch.equal(own[name], value), name
    torch.testing.assert_close(own["loss"], expected["loss"], rtol=0, atol=0)


def test_several_audio_channels_are_summed(model):
    stereo = sounds(4).unflatten(0, (2, 2))
    with torch.no_grad():
        expected = model.audio_model(stereo).audio_embeds
        own = model.optimize_for_inference().audio_model(stereo).audio_embeds
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


def test_a_localizer_gives_the_same_logits():
    localizer = calibrated(tiny_localizer())
    inputs = {"pixel_values": images(8).view(1, 4, 2, 3, 64, 64), "input_values": sounds(4).unsqueeze(0)}
    with torch.no_grad():
        expected = localizer(**inputs).logits
        own = localizer.optimize_for_inference()(**inputs).logits
    assert localizer.vision_model.fast_path.held_copy is not None
    assert type(localizer.visual_attention.visual_score) is FastLinear
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


def test_what_is_recorded_on_the_way_is_still_returned(model):
    model.optimize_for_inference()
    with torch.no_grad():
        assert len(model.audio_model(sounds(), output_hidden_states=True).hidden_states) == 5
        assert len(model.vision_model(images(), output_hidden_states=True).hidden_states) == 5


def test_gradients_flow_as_without_the_switch(model):
    def gradient() -> torch.Tensor:
        model.zero_grad()
        model.vision_model(images()).image_embeds.sum().backward()
        return model.vision_model.conv1.weight.grad.clone()

    expected = gradient()
    model.optimize_for_inference("bfloat16")
    torch.testing.assert_close(gradient(), expected, rtol=0, atol=0)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_twice_optimized_then_trained_then_saved_weights_equal_those_of_a_model_never_optimized(model, tmp_path):
    plain = copy.deepcopy(model)
    model.optimize_for_inference()
    embeddings(model)
    model.optimize_for_inference(dtype="bfloat16")
    embeddings(model)
    assert_same_state(state(model), state(plain))
    for trained in (model, plain):
        trained.train()
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
        (
            trained.audio_model(sounds()).audio_embeds.sum() + trained.vision_model(images()).image_embeds.sum()
        ).backward()
        optimizer.step()
        trained.eval()
    embeddings(model)
    assert_same_state(state(model), state(plain))
    model.save_pretrained(tmp_path)
    assert_same_state(state(AudioCLIPModel.from_pretrained(tmp_path)), state(plain))


def test_modules_and_parameters_are_those_of_the_plain_model(model):
    modules, parameters = [name for name, _ in model.named_modules()], list(model.parameters())
    model.optimize_for_inference()
    embeddings(model)
    assert [name for name, _ in model.named_modules()] == modules
    assert all(own is other for own, other in zip(model.parameters(), parameters))


def test_training_drops_the_copy_and_evaluation_makes_it_again(model):
    model.optimize_for_inference().train()
    assert not is_optimized(model)
    model.eval()
    embeddings(model)
    assert is_optimized(model)


def change_in_place(model: AudioCLIPModel) -> None:
    with torch.no_grad():
        model.audio_model.layer1[0].conv2.weight.mul_(-1)
        model.vision_model.bn1.running_mean.add_(1)


def load_others(model: AudioCLIPModel, **options) -> None:
    other = state(model)
    for name in ("audio_model.layer1.0.conv2.weight", "vision_model.conv2.weight"):
        other[name].mul_(-1)
    model.load_state_dict(other, **options)


def replace_data(model: AudioCLIPModel) -> None:
    for tower in (model.audio_model, model.vision_model):
        tower.conv1.weight.data = -tower.conv1.weight.data


@pytest.mark.parametrize(
    "change",
    [change_in_place, load_others, lambda model: load_others(model, assign=True), replace_data],
    ids=["in place", "load_state_dict", "load_state_dict assign", "data"],
)
def test_changed_weights_are_noticed(model, change):
    before = embeddings(model.optimize_for_inference())
    change(model)
    after = embeddings(model)
    assert not torch.allclose(after["audio"], before["audio"]) and not torch.allclose(after["image"], before["image"])
    assert_close(after, embeddings(model.undo_inference_optimization()))


def test_undoing_gives_the_plain_answers_bit_by_bit(model):
    expected = embeddings(model)
    model.optimize_for_inference()
    embeddings(model)
    own = embeddings(model.undo_inference_optimization())
    assert not is_optimized(model)
    assert_close(own, expected, tolerance=0)


def test_casting_an_optimized_model_answers_in_the_new_dtype(model):
    model.optimize_for_inference().double()
    own = embeddings(model)
    assert own["audio"].dtype == own["image"].dtype == torch.float64
    assert_close(own, embeddings(model.undo_inference_optimization()), tolerance=1e-12)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_leave_the_folded_weights_out_but_stay_optimized(model, duplicate):
    expected = embeddings(model.optimize_for_inference())
    twin = duplicate(model)
    assert not is_optimized(twin)
    assert_close(embeddings(twin), expected, tolerance=0)
    assert is_optimized(twin)


def test_a_copy_made_in_inference_mode_serves_without_it(model):
    expected = embeddings(model)
    with torch.inference_mode():
        model.optimize_for_inference()
        model.audio_model(sounds())
    assert_close(embeddings(model), expected)


# --- errors and parts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["int8", torch.int64, "half a float", 16])
def test_other_dtypes_are_refused(model, dtype):
    with pytest.raises(ValueError, match="dtype must be one of bfloat16, float16, float32, float64"):
        model.optimize_for_inference(dtype)
    assert not is_optimized(model)


def test_replaced_layers_are_refused_and_the_model_stays_as_it_is(model):
    model.audio_model.layer1[0].conv1 = nn.Sequential(model.audio_model.layer1[0].conv1)
    with pytest.raises(ValueError, match="got Sequential with"):
        model.optimize_for_inference()
    assert not is_optimized(model)
    embeddings(model)


def test_normalization_without_running_statistics_is_refused(model):
    norm = model.audio_model.layer1[0].bn1
    model.audio_model.layer1[0].bn1 = nn.BatchNorm2d(norm.num_features, track_running_stats=False)
    with pytest.raises(ValueError, match="with running statistics"):
        model.optimize_for_inference()
    assert not is_optimized(model)


@pytest.mark.parametrize("name", ["q_proj", "c_proj"])
def test_adapters_on_the_attention_pool_are_refused_and_the_model_stays_as_it_is(model, name):
    pool = model.vision_model.attnpool
    setattr(pool, name, nn.Sequential(getattr(pool, name)))
    with pytest.raises(ValueError, match=r"takes nn\.Linear in the attention pool, got Sequential"):
        model.optimize_for_inference()
    assert not is_optimized(model) and not model.is_optimized_for_inference


def test_asking_again_notices_weights_written_behind_torchs_back(model):
    model.optimize_for_inference()
    before = embeddings(model)
    for parameter in model.parameters():
        parameter.data.mul_(0.9)
    changed = embeddings(model.optimize_for_inference())
    plain = embeddings(model.undo_inference_optimization())
    for name in before:
        torch.testing.assert_close(changed[name], plain[name], rtol=1e-4, atol=1e-4)
        assert (changed[name] - before[name]).abs().max() > 1e-3


def test_models_without_towers_accept_the_switch():
    localizer = tiny_localizer(use_encoders=False)
    assert localizer.optimize_for_inference("bfloat16") is localizer
    assert isinstance(localizer.undo_inference_optimization(), AVEClipForLocalization)


def test_batches_are_cut_into_about_equal_parts():
    assert [len(part) for part in few_at_a_time(torch.zeros(11, 2), torch.bfloat16)] == [6, 5]
    assert [len(part) for part in few_at_a_time(torch.zeros(11, 2), torch.float32)] == [4, 4, 3]
    assert [len(part) for part in few_at_a_time(torch.zeros(1, 2), torch.float64)] == [1]
    assert [len(part) for part in few_at_a_time(torch.zeros(21, 2), torch.float32)] == [5, 4, 4, 4, 4]


@needs_fused
@pytest.mark.parametrize(("inputs", "first", "last"), [(128, 0, 128), (500, 200, 450), (400, 385, 400)])
def test_blocked_linear_equals_a_linear_layer_where_the_rest_is_zero(inputs, first, last):
    generator = torch.Generator().manual_seed(0)
    weight, rows = torch.randn(7, inputs, generator=generator), torch.randn(5, inputs, generator=generator)
    rows[:, :first], rows[:, last:] = 0, 0
    linear = BlockedLinear(weight, first, last)
    padded = nn.functional.pad(rows, (0, max(0, linear.end - inputs)))[:, linear.start : linear.end]
    runs = padded.unflatten(1, (linear.num_runs, -1)).transpose(0, 1).contiguous()
    torch.testing.assert_close(linear(runs), rows @ weight.T, rtol=1e-5, atol=1e-5)


@needs_fused
@pytest.mark.parametrize("num_samples", [1, 100, 4000])
def test_folded_spectrogram_equals_the_spectrogram(num_samples):
    config = AudioCLIPAudioConfig(**{**TINY_AUDIO, "n_fft": 512, "win_length": 300})
    spectrogram = AudioCLIPSpectrogram(config).eval().requires_grad_(False)
    spectrogram.m.fill_(0.5), spectrogram.fb.fill_(1.0), spectrogram.fc.copy_(torch.arange(257))
    waveform = sounds(2)[:, :num_samples]
    (own, own_loss), (image, loss) = FoldedSpectrogram(spectrogram)(waveform), spectrogram(waveform)
    torch.testing.assert_close(own, image, rtol=0, atol=1e-3)  # decibels
    torch.testing.assert_close(own_loss, loss, rtol=0, atol=0)


@pytest.mark.parametrize("fused", [False, pytest.param(True, marks=needs_fused)])
def test_folded_convolution_equals_convolution_normalisation_and_activation(fused):
    torch.manual_seed(0)
    convolution, norm = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4), nn.BatchNorm2d(8)
    calibrated(norm)
    folded = FoldedConvolution(convolution, norm, torch.float32, fused)
    inputs = torch.randn(2, 8, 9, 7).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        plain = norm(convolution(inputs))
        torch.testing.assert_close(folded(inputs), plain, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(folded(inputs, "relu"), plain.relu(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(folded(inputs, "sigmoid"), plain.sigmoid(), rtol=1e-5, atol=1e-5)
        shortcut = torch.randn_like(plain)
        expected = (plain + shortcut).relu()
        torch.testing.assert_close(folded.add_relu(inputs, shortcut), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_compiled_towers_answer_as_before(model):
    expected = [embeddings(model, number) for number in (3, 4, 2)]
    model.optimize_for_inference(compile=True)
    for number, values in zip((3, 4, 2), expected):
        assert_close(embeddings(model, number), values)


def test_small_batches_run_as_graphs_with_the_same_answers(model, monkeypatch):
    """On a GPU a graph is recorded; here it is a call that writes to the same memory, as a graph does."""
    recorded = []

    def record(self, batch):
        recorded.append(len(batch))
        outputs = self.function(batch)

        def replay() -> None:
            fresh = self.function(batch)
            pairs = [(outputs, fresh)] if isinstance(outputs, torch.Tensor) else zip(outputs, fresh)
            for output, value in pairs:
                output.copy_(value)

        return outputs, replay

    expected = [embeddings(model, number) for number in (3, 12, 2)]
    model.optimize_for_inference(cuda_graphs=True)
    assert_close(embeddings(model, 3), expected[0])  # on the CPU nothing is recorded
    monkeypatch.setattr(GraphedCalls, "_is_recordable", lambda *_: True)
    monkeypatch.setattr(GraphedCalls, "_record", record)
    monkeypatch.setattr("ave_clip.core.fast_towers.few_at_a_time", lambda items, dtype: (items,))
    for number, values in zip((3, 12, 2), expected):
        assert_close(embeddings(model, number), values)
    assert sorted(set(recorded)) == [10, 20] and len(recorded) == len(set(recorded)) * 2  # of two towers
    with pytest.raises(ValueError, match="exclude each other"):
        model.optimize_for_inference(compile=True, cuda_graphs=True)


def test_inference_linear_equals_a_linear_layer_and_keeps_its_gradients():
    torch.manual_seed(0)
    layer, features = FastLinear(40, 24), torch.randn(2, 3, 5, 40)
    expected = nn.functional.linear(features, layer.weight, layer.bias)
    torch.testing.assert_close(layer(features), expected, rtol=0, atol=0)
    assert layer(features).requires_grad
    with torch.no_grad():
        torch.testing.assert_close(layer(features), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.double()(features.double()), expected.double(), rtol=1e-5, atol=1e-5)
