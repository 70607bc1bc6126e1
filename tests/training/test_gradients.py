"""A batch computed in chunks and over processes has the gradient of the batch in one pass."""

import os
import socket

import pytest
import torch
import torch.multiprocessing
from accelerate import Accelerator

from ave_clip import AudioCLIPModel
from ave_clip.training.gradients import backward_in_chunks, use_shared_batch_norm, use_unscaled_spectrogram
from ave_clip.training.losses import audio_image_contrastive_loss, gather_segments, gather_with_gradient
from tests.helpers.models import tiny_audioclip_config

NUM_PAIRS, NUM_SEGMENTS = 6, 8  # the last two are unpaired
# What each of two processes has: 4 pairs and 2 unpaired segments, and 2 pairs.
PARTS = ([0, 1, 2, 3, 6, 7], [4, 5])


def build_model():
    """A small AudioCLIP as stage 1 trains it, in float64: the spectrogram's gradients are ill-conditioned."""
    torch.manual_seed(0)
    model = AudioCLIPModel(tiny_audioclip_config()).eval()
    with torch.no_grad():
        model.audio_model.fbsp.m.uniform_(2, 3)
        model.logit_scale_ai.fill_(2.0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (name.startswith("text_model") or name in ("logit_scale", "logit_scale_at")))
    use_unscaled_spectrogram(model).train()
    return model.double()


def build_batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "pixel_values": torch.randn(NUM_SEGMENTS, 3, 64, 64, generator=generator).double(),
        "input_values": 3000 * torch.randn(NUM_SEGMENTS, 2000, generator=generator).double(),
        "class_ids": torch.tensor([0, 1, 0, 2, 3, 4, 9, 9]),
        "video_ids": torch.tensor([0, 1, 2, 3, 4, 4, 0, 1]),
    }


def backward(accelerator, model, batch, num_pairs, chunk_size):
    """Stage 1's step in small; returns the loss, the number of segments of each encoding, and all gradients."""
    audioclip, encoded = accelerator.unwrap_model(model), []
    class_ids, video_ids = (gather_segments(batch[name], num_pairs) for name in ("class_ids", "video_ids"))

    def encode(part):
        output = model(pixel_values=batch["pixel_values"][part], input_values=batch["input_values"][part])
        encoded.append(len(output.audio_embeds))
        return output.audio_embeds, output.image_embeds

    def loss_function(audio, image, logit_scale):
        embeds = (gather_segments(tensor, num_pairs) for tensor in (audio, image))
        return audio_image_contrastive_loss(*embeds, logit_scale, class_ids, video_ids, num_pairs=NUM_PAIRS)

    logit_scale = audioclip.logit_scale_ai.exp()
    if chunk_size is None:
        loss = loss_function(*encode(slice(None)), logit_scale)
        accelerator.backward(loss)
    else:
        chunks = (len(batch["class_ids"]), chunk_size)
        loss = backward_in_chunks(accelerator, model, encode, loss_function, [logit_scale], *chunks)
    named = audioclip.named_parameters()
    return loss.detach(), encoded, {name: value.grad for name, value in named if value.requires_grad}


def assert_same_gradients(gradients, expected):
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        # The attention pool's key bias has no effect: its gradient is rounding noise around zero.
        bound = max(1e-5 * gradient.abs().max().item(), 1e-8)
        difference = (gradients[name] - gradient).abs().max().item()
        assert difference <= bound, name


@pytest.fixture(scope="module")
def whole():
    return backward(Accelerator(cpu=True), build_model(), build_batch(), NUM_PAIRS, None)


@pytest.mark.parametrize(("chunk_size", "sizes"), [(1, [1] * 8), (3, [3, 3, 2]), (100, [8])])
def test_chunks_have_the_gradient_of_the_whole_batch(whole, chunk_size, sizes):
    loss, encoded, gradients = backward(Accelerator(cpu=True), build_model(), build_batch(), NUM_PAIRS, chunk_size)
    torch.testing.assert_close(loss, whole[0], rtol=1e-6, atol=0)
    assert encoded == sizes + sizes
    assert gradients["logit_scale_ai"] != 0
    assert_same_gradients(gradients, whole[2])


@pytest.fixture(scope="module")
def unused_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def normalize_batch(segments):
    """Batch normalisation of some of eight items, under a loss over all of them."""
    torch.manual_seed(2)
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
    items, weights = torch.randn(NUM_SEGMENTS, 3, 4, 4) * 5 + 7, torch.randn(NUM_SEGMENTS, 3, 4, 4)
    use_shared_batch_norm(model)
    values = items[segments].requires_grad_()
    outputs, weights = gather_with_gradient(model(values)), gather_with_gradient(weights[segments])
    (outputs * weights).square().sum().backward()
    statistics = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}
    return values.grad, model[0][0].weight.grad, statistics, model.eval()(items)


def run_process(rank, folder, port):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    accelerator = Accelerator(cpu=True)
    batch = {name: tensor[PARTS[rank]] for name, tensor in build_batch().items()}
    results = [
        backward(accelerator, accelerator.prepare(build_model()), batch, (4, 2)[rank], size) for size in (None, 2)
    ]
    torch.save((accelerator.num_processes, results, normalize_batch(PARTS[rank])), f"{folder}/{rank}.pt")
    accelerator.end_training()


@pytest.fixture(scope="module")
def processes(tmp_path_factory, unused_port):
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(run_process, (str(folder), unused_port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_two_processes_with_unequal_parts_have_the_gradient_of_one(whole, processes):
    for rank, sizes in enumerate(([2] * 3, [2])):
        num_processes, (one_pass, chunked), _ = processes[rank]
        assert num_processes == 2
        assert chunked[1] == sizes + sizes
        for loss, _, gradients in (one_pass, chunked):
            torch.testing.assert_close(loss, whole[0], rtol=1e-6, atol=0)
            assert_same_gradients(gradients, whole[2])


def test_a_shared_batch_norm_does_what_torchs_does_with_the_whole_batch():
    everything = list(range(NUM_SEGMENTS))
    gradient, weight_gradient, statistics, evaluated = normalize_batch(everything)
    torch.manual_seed(2)
    model = torch.nn.BatchNorm2d(3)
    items, weights = torch.randn(NUM_SEGMENTS, 3, 4, 4) * 5 + 7, torch.randn(NUM_SEGMENTS, 3, 4, 4)
    values = items.clone().requires_grad_()
    (model(values) * weights).square().sum().backward()
    torch.testing.assert_close(gradient, values.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight_gradient, model.weight.grad)
    for name, tensor in statistics.items():
        torch.testing.assert_close(tensor, getattr(model, name.rpartition(".")[2]))
    torch.testing.assert_close(evaluated, model.eval()(items))


def test_a_shared_batch_norm_over_two_processes_does_what_it_does_in_one(processes):
    gradient, weight_gradient, statistics, evaluated = normalize_batch(list(range(NUM_SEGMENTS)))
    for segments, (*_, found) in zip(PARTS, processes):
        # Both processes' losses add up; DDP's mean halves them.
        torch.testing.assert_close(found[0] / 2, gradient[segments], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[2], statistics)
        torch.testing.assert_close(found[3], evaluated)
    torch.testing.assert_close(sum(found[1] for *_, found in processes) / 2, weight_gradient)


def test_the_gradient_scaled_afterwards_is_the_one_that_the_model_scales_itself():
    torch.manual_seed(0)
    original = AudioCLIPModel(tiny_audioclip_config())
    with torch.no_grad():
        original.audio_model.fbsp.m.uniform_(2, 3)
    waveform = 3000 * torch.randn(2, 2000)
    original.audio_model.fbsp.train()(waveform)[0].square().mean().backward()
    expected = {name: value.grad.clone() for name, value in original.audio_model.fbsp.named_parameters()}
    original.zero_grad()
    spectrogram = use_unscaled_spectrogram(original)
    image = spectrogram(waveform)[0]
    (0.5 * image.square().mean()).backward()
    (0.5 * spectrogram(waveform)[0].square().mean()).backward()
    spectrogram.scale_gradients()
    for name, parameter in original.audio_model.fbsp.named_parameters():
        assert parameter.grad.abs().max() == pytest.approx(1)
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


def test_the_spectrogram_that_is_put_in_shares_parameters_and_gives_the_same_image():
    torch.manual_seed(0)
    model = AudioCLIPModel(tiny_audioclip_config()).eval()
    before = dict(model.audio_model.named_parameters())
    waveform = 3000 * torch.randn(2, 2000)
    expected = model.audio_model.fbsp(waveform)[0]
    spectrogram = use_unscaled_spectrogram(model)
    assert not spectrogram.training
    assert all(before[name] is parameter for name, parameter in model.audio_model.named_parameters())
    for _ in range(2):
        torch.testing.assert_close(spectrogram(waveform)[0], expected, rtol=0, atol=0)
        spectrogram.train()
