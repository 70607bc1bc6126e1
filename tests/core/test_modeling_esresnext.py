"""The audio tower: scaling, framing, fbsp filters and their cache, dtypes, gates."""

import copy
import pickle

import numpy as np
import pytest
import torch
from scipy.signal import get_window
from torch import nn
from torchvision.models import resnext50_32x4d

from ave_clip.core.configuration_audioclip import AudioCLIPAudioConfig
from ave_clip.core.modeling_esresnext import (
    AudioCLIPAudioModel,
    AudioCLIPSpectrogram,
    blackman_harris_window,
    fbsp_kernel,
    num_frames_for,
)

TINY = {
    "sampling_rate": 22050,
    "n_fft": 512,
    "hop_length": 128,
    "win_length": 400,
    "width": 16,
    "depths": (1, 1, 1, 1),
    "groups": 4,
    "projection_dim": 16,
}


@pytest.fixture
def config() -> AudioCLIPAudioConfig:
    return AudioCLIPAudioConfig(**TINY)


def make_model(seed: int = 0, **overrides) -> AudioCLIPAudioModel:
    torch.manual_seed(seed)
    model = AudioCLIPAudioModel(AudioCLIPAudioConfig(**{**TINY, **overrides}))
    with torch.no_grad():
        model.fbsp.m.copy_(0.3 * torch.rand_like(model.fbsp.m))
        model.fbsp.fb.add_(0.1 * torch.rand_like(model.fbsp.fb))
        model.fbsp.fc.add_(0.3 * torch.randn_like(model.fbsp.fc))
        model.bn1.running_mean.fill_(-40)
        model.bn1.running_var.fill_(60)
    return model.eval()


@pytest.fixture
def model() -> AudioCLIPAudioModel:
    return make_model()


def noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return 5000 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def waveforms() -> torch.Tensor:
    return noise(2, 6000)


def count_kernels(monkeypatch) -> list[int]:
    calls = []

    def counting(*args):
        calls.append(1)
        return fbsp_kernel(*args)

    monkeypatch.setattr("ave_clip.core.modeling_esresnext.fbsp_kernel", counting)
    return calls


# --- spectrogram -----------------------------------------------------------------------------------------------------


def test_window_is_scipys_periodic_blackman_harris():
    np.testing.assert_allclose(blackman_harris_window(1654), get_window("blackmanharris", 1654), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("num_samples", "expected"), [(1, 1), (1654, 1), (1655, 2), (44100, 77), (220500, 392)])
def test_number_of_frames(num_samples, expected):
    assert num_frames_for(num_samples, 1654, 561) == expected


def test_frames_are_scaled_padded_on_both_sides_and_windowed(model):
    fbsp, waveform = model.fbsp, noise(1, 1000)
    frames = fbsp.frames(waveform)[0]
    scaled = ((waveform[0] + 32768) * 2) / 65535 - 1
    padding = 5 * 128 + 400 - 1000  # 6 frames
    padded = nn.functional.pad(scaled, (padding // 2, padding - padding // 2))
    assert frames.shape == (6, 512)
    for index in range(6):
        expected = padded[index * 128 : index * 128 + 400] * fbsp.window
        torch.testing.assert_close(frames[index, 56:456], expected, rtol=0, atol=0)
    assert not frames[:, :56].any() and not frames[:, 456:].any()


def test_digital_silence_is_not_zero_after_scaling(model):
    frames = model.fbsp.frames(torch.zeros(1, 400))
    torch.testing.assert_close(frames[0, 0, 56:456], model.fbsp.window * (1 / 65535), rtol=1e-2, atol=0)


def test_untrained_filters_are_cosines_and_sines_of_norm_one():
    spectrogram = AudioCLIPAudioModel(AudioCLIPAudioConfig(**TINY)).double().eval().fbsp
    kernel = spectrogram.kernel(torch.float64).detach()
    time = torch.pi * torch.linspace(-1, 1, 512, dtype=torch.float64)
    frequency = torch.arange(257, dtype=torch.float64)[:, None]
    expected = torch.stack([torch.cos(frequency * time), -torch.sin(frequency * time)]) / 512**0.5
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        spectrogram.filter_loss(kernel), torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_filters_equal_the_complex_formula():
    order = torch.tensor([0.3, 1.0, 2.5, -0.05], dtype=torch.float64)
    bandwidth = torch.tensor([0.9, 1.1, 1.0, 1.3], dtype=torch.float64)
    centre = torch.tensor([0.0, 3.2, 7.0, 11.5], dtype=torch.float64)
    actual = fbsp_kernel(order, bandwidth, centre, 64, normalized=False)
    time = np.pi * np.linspace(-1, 1, 64) + 1e-8
    m, fb, fc = (values.numpy()[:, None] for values in (order, bandwidth, centre))
    window = np.sinc(fb * time / (m + 1e-8) / np.pi).astype(complex) ** m
    expected = np.sqrt(fb) * window * np.exp(-1j * fc * time)
    torch.testing.assert_close(torch.complex(actual[0], actual[1]), torch.from_numpy(expected), rtol=1e-6, atol=1e-9)


def test_image_has_three_thirds_of_the_bins_in_decibels(model):
    waveform = noise(1, 3000).double()
    fbsp = copy.deepcopy(model).double().fbsp
    with torch.no_grad():
        image, _ = fbsp(waveform)
        kernel = fbsp.kernel(torch.float64)
        spectrum = torch.einsum("nl,ckl->ckn", fbsp.frames(waveform)[0], kernel)
    decibels = 10 * torch.log10(spectrum.square().sum(dim=0))  # (257, frames)
    assert image.shape == (1, 3, 85, decibels.shape[1])
    torch.testing.assert_close(image[0].reshape(255, -1), decibels[:255], rtol=0, atol=1e-9)


def test_no_power_at_all_becomes_minus_180_decibels(model):
    with torch.no_grad():
        model.fbsp.window.zero_()
        image, _ = model.fbsp(noise(1, 1000))
    torch.testing.assert_close(image, torch.full_like(image, -180.0), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("n_fft", "win_length", "hop_length"), [(511, 511, 100), (33, 7, 3), (512, 1, 1), (128, 128, 300)]
)
def test_any_frame_sizes_work(n_fft, win_length, hop_length):
    model = make_model(n_fft=n_fft, win_length=win_length, hop_length=hop_length)
    with torch.no_grad():
        outputs = model(noise(2, 700))
    assert outputs.audio_embeds.shape == (2, 16) and bool(outputs.audio_embeds.isfinite().all())


@pytest.mark.parametrize("num_samples", [1, 399, 400, 401])
def test_clips_of_about_one_frame_work(num_samples, model):
    with torch.no_grad():
        assert bool(model(noise(1, num_samples)).audio_embeds.isfinite().all())


# --- the cached filters ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_eval_builds_the_filters_once_and_bit_identical(model, waveforms, monkeypatch):
    expected = copy.deepcopy(model)(waveforms).audio_embeds
    calls = count_kernels(monkeypatch)
    outputs = [model(waveforms).audio_embeds for _ in range(3)]
    assert len(calls) == 1
    assert all(torch.equal(output, expected) for output in outputs)


def test_training_builds_the_filters_each_time_and_keeps_none(model, waveforms, monkeypatch):
    with torch.no_grad():
        model(waveforms)
    calls = count_kernels(monkeypatch)
    model.train()
    for _ in range(2):
        model(waveforms)
    assert len(calls) == 2 and model.fbsp._cache is None


@torch.no_grad()
def change_in_place(model):
    model.fbsp.m.mul_(1.5)


def change_behind_autograd(model):
    model.fbsp.fb.data.mul_(1.1)


def load_other_weights(model):
    model.load_state_dict(make_model(seed=5).state_dict())


def replace_parameter(model):
    model.fbsp.fc = nn.Parameter(model.fbsp.fc.detach() + 0.5)


def train_one_step(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model.train()
    model(noise(4, 3000)).audio_embeds.square().sum().backward()
    optimizer.step()
    model.eval()


@pytest.mark.parametrize(
    "change", [change_in_place, change_behind_autograd, load_other_weights, replace_parameter, train_one_step]
)
def test_changed_parameters_give_new_filters(change, model, waveforms):
    with torch.no_grad():
        before = model(waveforms).audio_embeds
        with torch.enable_grad():
            change(model)
        fresh = copy.deepcopy(model)  # copies have no cache
        after = model(waveforms).audio_embeds
    assert fresh.fbsp._cache is None
    with torch.no_grad():
        assert torch.equal(after, fresh(waveforms).audio_embeds)
    assert not torch.equal(after, before)


def test_moving_to_double_and_back_gives_new_filters(model, waveforms):
    with torch.no_grad():
        single = model(waveforms).audio_embeds
        double = model.double()(waveforms.double()).audio_embeds
        assert double.dtype == torch.float64
        assert model.fbsp._cache[1].dtype == torch.float64
        assert torch.equal(model.float()(waveforms).audio_embeds, single)


def test_two_models_used_alternately_do_not_disturb_each_other(waveforms):
    models = [make_model(seed=3), make_model(seed=4)]
    with torch.no_grad():
        expected = [copy.deepcopy(model)(waveforms) for model in models]
        for _ in range(2):
            for model, reference in zip(models, expected):
                outputs = model(waveforms)
                assert torch.equal(outputs.audio_embeds, reference.audio_embeds)
                assert torch.equal(outputs.loss_ttf, reference.loss_ttf)
    assert not torch.equal(expected[0].loss_ttf, expected[1].loss_ttf)


def test_state_dict_and_pickle_leave_the_cache_out(model, waveforms):
    names = set(model.state_dict())
    size = len(pickle.dumps(model))
    with torch.no_grad():
        expected = model(waveforms).audio_embeds
        copied = pickle.loads(pickle.dumps(model))
        assert set(model.state_dict()) == names
        assert len(pickle.dumps(model)) < size + 1000 and copied.fbsp._cache is None
        assert torch.equal(copied(waveforms).audio_embeds, expected)


def test_cache_made_in_inference_mode_serves_other_modes(model, waveforms):
    with torch.inference_mode():
        expected = model(waveforms).audio_embeds.clone()
    model(waveforms).audio_embeds.sum().backward()
    assert model.fbsp.fc.grad is not None
    with torch.no_grad():
        assert torch.equal(model(waveforms).audio_embeds, expected)


def test_gradients_through_the_cached_filters_equal_those_without(model, waveforms, monkeypatch):
    model = model.double()
    waveforms = waveforms.double()
    with torch.no_grad():
        model(waveforms)
    calls = count_kernels(monkeypatch)
    outputs = model(waveforms)
    assert not calls  # eval mode with gradients: values from the cache
    (outputs.audio_embeds.square().sum() + outputs.loss_ttf).backward()
    cached = [parameter.grad.clone() for parameter in (model.fbsp.m, model.fbsp.fb, model.fbsp.fc)]
    model.zero_grad()
    monkeypatch.setattr(AudioCLIPSpectrogram, "_cached_kernel", None)
    model.fbsp.training = True  # the filters alone: no batch statistics
    outputs = model(waveforms)
    (outputs.audio_embeds.square().sum() + outputs.loss_ttf).backward()
    for gradient, parameter in zip(cached, (model.fbsp.m, model.fbsp.fb, model.fbsp.fc)):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-12)


# --- gradients -------------------------------------------------------------------------------------------------------


def fbsp_gradients(model: AudioCLIPAudioModel, waveforms: torch.Tensor, factor: float = 1.0) -> list[torch.Tensor]:
    model.zero_grad()
    (factor * model(waveforms).audio_embeds.square().sum()).backward()
    return [model.fbsp.m.grad, model.fbsp.fb.grad, model.fbsp.fc.grad]


def test_filter_gradients_are_scaled_to_a_largest_value_of_one(model, waveforms):
    for gradient in fbsp_gradients(model, waveforms):
        assert gradient.abs().max().item() == pytest.approx(1, abs=1e-5)


def test_filter_gradients_do_not_depend_on_the_scale_of_the_loss(model, waveforms):
    model = model.double()
    once = [gradient.clone() for gradient in fbsp_gradients(model, waveforms)]
    for first, second in zip(once, fbsp_gradients(model, waveforms, factor=1000)):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-8)


def test_gradient_scaling_survives_saving_and_loading(model, waveforms, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AudioCLIPAudioModel.from_pretrained(tmp_path).train()
    for gradient in fbsp_gradients(loaded, waveforms):
        assert gradient.abs().max().item() == pytest.approx(1, abs=1e-5)


def test_no_gradient_reaches_the_waveform(model, waveforms):
    waveforms.requires_grad_()
    model(waveforms).audio_embeds.sum().backward()
    assert waveforms.grad is None


# --- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_leaves_the_spectrogram_at_float32(dtype, model, waveforms):
    with torch.no_grad():
        image, _ = model.fbsp(waveforms)
        half = copy.deepcopy(model).to(dtype)
        half_image, _ = half.fbsp(waveforms)
        outputs = half(waveforms)
    assert half.dtype == dtype and outputs.audio_embeds.dtype == dtype
    assert {tensor.dtype for tensor in half.fbsp.state_dict().values()} == {torch.float32}
    assert torch.equal(half_image, image)


def test_double_then_half_leaves_float32(model):
    assert model.double().half().fbsp.m.dtype == torch.float32


def test_autocast_leaves_the_spectrogram_at_float32(model, waveforms, monkeypatch):
    images = []
    forward = model.fbsp.forward

    def record(waveform):
        image, loss = forward(waveform)
        images.append(image)
        return image, loss

    monkeypatch.setattr(model.fbsp, "forward", record)
    with torch.no_grad():
        expected = model(waveforms).audio_embeds
        with torch.autocast("cpu", dtype=torch.bfloat16):
            embeds = model(waveforms).audio_embeds
    assert embeds.dtype == torch.bfloat16 and images[1].dtype == torch.float32
    assert torch.equal(images[0], images[1])
    assert torch.cosine_similarity(embeds.float(), expected).min() > 0.999


def test_loading_in_bfloat16_keeps_the_spectrogram_in_float32(model, waveforms, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AudioCLIPAudioModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.conv1.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.fbsp.fc, model.fbsp.fc) and torch.equal(loaded.fbsp.window, model.fbsp.window)


def test_model_made_under_a_half_precision_default_keeps_float32_filters(config):
    model = AudioCLIPAudioModel._from_config(config, dtype=torch.bfloat16)
    assert (model.conv1.weight.dtype, model.fbsp.fc.dtype) == (torch.bfloat16, torch.float32)
    assert model.fbsp.fc.tolist() == list(range(257))


def test_double_precision_is_used_all_the_way(model, waveforms):
    with torch.no_grad():
        single = model(waveforms).audio_embeds
        double = model.double()(waveforms).audio_embeds
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=1e-3, atol=1e-3)


# --- trunk -----------------------------------------------------------------------------------------------------------


def test_trunk_has_the_names_and_shapes_of_torchvisions_resnext():
    with torch.device("meta"):
        model, reference = AudioCLIPAudioModel(AudioCLIPAudioConfig()), resnext50_32x4d()
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, tensor in reference.state_dict().items():
        if not name.startswith("fc."):
            assert shapes[name] == tensor.shape, name


@torch.no_grad()
def test_ungated_trunk_equals_torchvisions_resnext():
    torch.manual_seed(0)
    reference = resnext50_32x4d(num_classes=16).eval()
    model = AudioCLIPAudioModel(AudioCLIPAudioConfig(projection_dim=16, n_fft=512, win_length=512)).eval()
    model.load_state_dict(reference.state_dict(), strict=False)  # spectrogram and gates are not in torchvision's
    for gate in (model.att1, model.att2, model.att3, model.att4, model.att5):
        gate.bn.weight.zero_()
        gate.bn.bias.fill_(100.0)  # sigmoid(100) is 1
    waveform = noise(1, 20000)
    image, _ = model.fbsp(waveform)
    torch.testing.assert_close(model(waveform).audio_embeds, reference(image), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_channels_of_a_clip_are_summed_before_the_last_layer(model):
    clip = noise(2, 3, 4000)
    bias = model.fc.bias
    each = [model(clip[:, channel]).audio_embeds - bias for channel in range(3)]
    torch.testing.assert_close(model(clip).audio_embeds, sum(each) + bias, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_one_channel_may_be_given_without_its_axis(model, waveforms):
    assert torch.equal(model(waveforms).audio_embeds, model(waveforms[:, None]).audio_embeds)


@torch.no_grad()
def test_a_batch_gives_the_same_as_its_clips_one_by_one(model, waveforms):
    single = torch.cat([model(waveform[None]).audio_embeds for waveform in waveforms])
    torch.testing.assert_close(model(waveforms).audio_embeds, single, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_hidden_states_are_the_gated_stages(model, waveforms):
    outputs = model(waveforms, output_hidden_states=True)
    assert [state.shape[1] for state in outputs.hidden_states] == [16, 64, 128, 256, 512]
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    gate = model.att1.gate(outputs.hidden_states[0], outputs.hidden_states[1].shape[-2:])
    torch.testing.assert_close(outputs.hidden_states[1], model.layer1(outputs.hidden_states[0]) * gate)


def test_unit_range_waveforms_are_noticed_once(model, monkeypatch):
    warnings = []
    monkeypatch.setattr("ave_clip.core.modeling_esresnext.logger.warning_once", warnings.append)
    with torch.no_grad():
        model(torch.zeros(1, 1000))  # silence may be meant
        model(noise(1, 1000))
        assert warnings == []
        model(noise(1, 1000) / 32768)
    assert len(warnings) == 1 and "expects the range of int16" in warnings[0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_waveforms_with_nan_or_infinity_are_refused(value, dtype, model, waveforms):
    waveforms[1, 3000] = value
    with pytest.raises(ValueError, match="input_values contain NaN or infinite samples"):
        model(waveforms.to(dtype))


@torch.no_grad()
def test_nan_that_nothing_looks_at_shows_in_the_embeddings_of_its_clip(model, waveforms, monkeypatch):
    expected = model(waveforms).audio_embeds
    waveforms[1, 3000] = float("nan")
    monkeypatch.setattr("ave_clip.core.modeling_esresnext.torch.compiler.is_compiling", lambda: True)
    embeds = model(waveforms).audio_embeds
    torch.testing.assert_close(embeds[0], expected[0], rtol=1e-4, atol=1e-4)
    assert embeds[1].isnan().all()


@pytest.mark.parametrize("shape", [(10,), (0, 10), (2, 0), (2, 0, 10), (2, 1, 1, 10)])
def test_waveforms_of_another_shape_are_refused(shape, model):
    with pytest.raises(ValueError, match=r"input_values must have shape .* got"):
        model(torch.zeros(shape))


def test_missing_waveforms_are_refused(model):
    with pytest.raises(ValueError, match="input_values is missing"):
        model()


def test_initial_weights_are_kaiming_and_filters_untrained(config):
    torch.manual_seed(0)
    model = AudioCLIPAudioModel(AudioCLIPAudioConfig(n_fft=512, win_length=512, depths=(1, 1, 1, 1)))
    fan_out = 64 * 7 * 7
    assert model.conv1.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert (model.fbsp.m == 0).all() and (model.fbsp.fb == 1).all()
    assert model.att1.bn.bias.abs().max() == 0


def test_saving_and_loading_is_exact(model, waveforms, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AudioCLIPAudioModel.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(waveforms).audio_embeds, model(waveforms).audio_embeds)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients_and_statistics(reentrant, waveforms):
    gradients, buffers = [], []
    for checkpointing in (False, True):
        model = make_model().train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(waveforms).audio_embeds.square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
        buffers.append(dict(model.named_buffers()))
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-4)
    for name, buffer in buffers[0].items():
        torch.testing.assert_close(buffers[1][name], buffer, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_exported_program_gives_the_same(model, waveforms):
    program = torch.export.export(model, (waveforms,), strict=False)  # traced, the default of torch.export
    torch.testing.assert_close(
        program.module()(waveforms).audio_embeds, model(waveforms).audio_embeds, rtol=1e-4, atol=1e-4
    )
