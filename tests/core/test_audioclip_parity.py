"""Outputs, losses and gradients equal those of the original AudioCLIP under pseudo-weights.

Needs the fixtures `audioclip/` of the shared folder (see its README for inputs, keys and tolerances). Float64 is the
strict test: 1e-6 on any CPU. Float32 has rounding noise of its own, which the logarithm of silent bins enlarges and
which differs between CPUs in the original as well: it may be as far from the float64 references as a small multiple of
what the original's own float32 is.
"""

import importlib.util
import json
import os
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from ave_clip.checkpoints.convert import original_name
from ave_clip.core.configuration_audioclip import AudioCLIPConfig
from ave_clip.core.feature_extraction_audioclip import AudioCLIPFeatureExtractor
from ave_clip.core.modeling_audioclip import AudioCLIPModel, contrastive_loss

SHARED = Path(os.environ.get("AVE_CLIP_SHARED", Path(__file__).parents[3] / "shared"))
FIXTURES = SHARED / "fixtures" / "audioclip"
SEED = 1234
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-6}
NOISE_FACTOR = 4  # maxima of rounding noise of the same size over the same number of values, on another CPU
OUTPUTS = {
    "loss_all": "loss",
    "loss_ttf": "loss_ttf",
    "logits_audio_image": "logits_per_audio_image",
    "logits_audio_text": "logits_per_audio_text",
    "logits_image_text": "logits_per_image_text",
}
CLIPS = [
    "audio_1s",
    "audio_full",
    "audio_1s_unit",
    "audio_stereo",
    "audio_silence_1s",
    *(f"audio_chirp0_first{n}" for n in (1000, 1654, 1655, 30000)),
]

pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason=f"AVE_CLIP_SHARED holds no fixtures: no {FIXTURES}")


def fixture_module(name: str):
    spec = importlib.util.spec_from_file_location(f"audioclip_fixture_{name}", FIXTURES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def inputs():
    return fixture_module("inputs")


@pytest.fixture(scope="module")
def meta() -> dict:
    return json.loads((FIXTURES / "meta.json").read_text())


@pytest.fixture(scope="module")
def outputs():
    return np.load(FIXTURES / "outputs.npz")


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    filler = fixture_module("filler")
    spec = json.loads((FIXTURES / "state_dict_spec.json").read_text())
    return {name: torch.from_numpy(filler.fill(name, entry["shape"], SEED)) for name, entry in spec.items()}


def make_model(original: dict[str, torch.Tensor]) -> AudioCLIPModel:
    with torch.device("meta"):
        model = AudioCLIPModel(AudioCLIPConfig())
    state = {}
    for name in model.state_dict():
        source, part = original_name(name)
        tensor = original[source] if part is None else original[source].chunk(3)[part]
        state[name] = (tensor.t() if source == "text_projection" else tensor).clone()
    model.load_state_dict(state, assign=True)
    for module in model.modules():  # not in the state dict, so still on the meta device
        if "position_ids" in module._buffers:
            module.position_ids = torch.arange(module.position_ids.shape[-1]).unsqueeze(0)
    return model.requires_grad_().eval()


@pytest.fixture(scope="module")
def models(original) -> dict[torch.dtype, AudioCLIPModel]:
    model = make_model(original)
    return {torch.float32: model, torch.float64: make_model(original).double()}


def read_wav(path: Path) -> np.ndarray:
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")


@pytest.fixture(scope="module")
def clips(inputs) -> dict[str, torch.Tensor]:
    """Waveforms in the range of int16, `(batch_size, channels, num_samples)`."""
    wavs = [read_wav(path) for path in sorted((FIXTURES / "demo").glob("*.wav"))]
    chirps = [inputs.chirp(*arguments) for arguments in fixture_chirps()]
    one = np.stack([wav[22050:66150] for wav in wavs] + chirps)[:, None].astype(np.float32)
    clips = {
        "audio_1s": one,
        "audio_full": np.stack([wav[:220500] for wav in wavs])[:, None].astype(np.float32),
        "audio_1s_unit": one / np.float32(32768),
        "audio_stereo": np.stack([[chirps[0], chirps[1]], [chirps[2], chirps[0]]]).astype(np.float32),
        "audio_silence_1s": np.zeros((1, 1, 44100), dtype=np.float32),
    }
    for count in (1000, 1654, 1655, 30000):
        clips[f"audio_chirp0_first{count}"] = chirps[0][None, None, :count].astype(np.float32)
    return {name: torch.from_numpy(clip) for name, clip in clips.items()}


def fixture_chirps() -> list[list[float]]:
    return [[200, 8000, 0.3, 0.01, 1], [9000, 300, 0.1, 0.001, 2], [440, 440, 0.5, 0.05, 3]]


@pytest.fixture(scope="module")
def pictures(inputs) -> dict[str, torch.Tensor]:
    photos = [Image.open(path) for path in sorted((FIXTURES / "demo").glob("*.jpg"))]
    patterns = np.stack([inputs.pattern_image(seed) for seed in (1, 2, 3, 4)])
    return {
        "image_jpg": torch.from_numpy(inputs.normalise(np.stack([clip_crop(photo) for photo in photos]))),
        "image_pattern": torch.from_numpy(inputs.normalise(patterns)),
    }


def clip_crop(photo: Image.Image) -> np.ndarray:
    """CLIP's resize and centre crop, by PIL."""
    photo = photo.convert("RGB")
    width, height = photo.size
    scale = 224 / min(width, height)
    size = (224, int(height * scale)) if width <= height else (int(width * scale), 224)
    photo = photo.resize(size, Image.Resampling.BICUBIC)
    left, top = round((size[0] - 224) / 2), round((size[1] - 224) / 2)
    return np.asarray(photo.crop((left, top, left + 224, top + 224)))


@pytest.fixture(scope="module")
def tokens(outputs) -> torch.Tensor:
    return torch.from_numpy(outputs["tokens"]).long()


def own_noise(references, name: str) -> float:
    """How far the original's float32 is from its float64."""
    return float(np.abs(references[name].astype(np.float64) - references[f"{name}_f64"]).max())


def assert_equal(actual: torch.Tensor, references, name: str, noise: float | None = None) -> None:
    """Compare with the float64 reference `name`: within 1e-6, or in float32 within the original's own noise."""
    expected = torch.from_numpy(np.asarray(references[f"{name}_f64"]))
    tolerance = TOLERANCES[actual.dtype]
    if actual.dtype == torch.float32:
        noise = own_noise(references, name) if noise is None else noise
        tolerance = max(tolerance, NOISE_FACTOR * noise)
    torch.testing.assert_close(actual.detach().double(), expected, rtol=0, atol=tolerance)


def assert_same_direction(
    actual: torch.Tensor, references, name: str, rows=slice(None), least: float = 0.9999
) -> None:
    """Cosines with the float64 reference: at least `least`, less only where the original's own float32 has less."""
    expected = torch.from_numpy(references[f"{name}_f64"])[rows]
    original = torch.from_numpy(references[name]).double()[rows]
    own = 1 - torch.cosine_similarity(original, expected)
    allowed = torch.clamp(NOISE_FACTOR**2 * own, min=1 - least)  # 1 - cosine grows with the square of the noise
    assert (1 - torch.cosine_similarity(actual.detach().double(), expected) <= allowed).all()


DTYPE = pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, id="float32"), pytest.param(torch.float64, id="float64")]
)


DTYPE_SLOW = pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, id="float32"), pytest.param(torch.float64, id="float64", marks=pytest.mark.slow)],
)


@DTYPE
@pytest.mark.parametrize("name", CLIPS)
def test_audio_embeddings(name, dtype, models, clips, outputs):
    with torch.no_grad():
        features = models[dtype].get_audio_features(clips[name])
    assert_equal(features.pooler_output, outputs, name)
    assert_same_direction(features.pooler_output, outputs, name)


@DTYPE_SLOW
@pytest.mark.parametrize("name", ["image_jpg", "image_pattern"])
def test_image_embeddings(name, dtype, models, pictures, outputs):
    with torch.no_grad():
        features = models[dtype].get_image_features(pictures[name])
    assert_equal(features.pooler_output, outputs, name)


@DTYPE
def test_text_embeddings(dtype, models, tokens, outputs):
    with torch.no_grad():
        features = models[dtype].get_text_features(tokens)
    assert_equal(features.pooler_output, outputs, "text")


@DTYPE_SLOW
def test_logits_and_losses_of_three_modalities(dtype, models, clips, pictures, tokens, outputs):
    batch = {
        "input_ids": tokens[:8],
        "pixel_values": pictures["image_jpg"][:8],
        "input_values": clips["audio_1s"],
        "return_loss": True,
    }
    with torch.no_grad():
        result = models[dtype](**batch)
    for key, field in OUTPUTS.items():
        assert_equal(result[field], outputs, key, loss_noise(outputs) if field == "loss" else None)
    weights = torch.linspace(0.5, 1.5, 8)
    logits = (result.logits_per_audio_image, result.logits_per_audio_text, result.logits_per_image_text)
    weighted = sum(contrastive_loss(matrix, weights) for matrix in logits) / 6
    assert_equal(weighted, outputs, "loss_all_weighted_without_ttf", loss_noise(outputs))
    for field, name in (("audio_embeds", "audio_1s"), ("image_embeds", "image_jpg"), ("text_embeds", "text")):
        norms = torch.linalg.vector_norm(result[field].double(), dim=-1)
        torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)
        assert_same_direction(result[field], outputs, name, slice(8))


def loss_noise(outputs) -> float:
    """A loss moves by at most twice as much as its logits; its own float32 may be close to float64 by chance."""
    return 2 * max(own_noise(outputs, name) for name in OUTPUTS if name.startswith("logits"))


@pytest.mark.parametrize("pair", ["audio_image", "audio_text", "image_text"])
def test_losses_of_two_modalities(pair, models, clips, pictures, tokens, outputs):
    everything = {
        "text": {"input_ids": tokens[:8]},
        "image": {"pixel_values": pictures["image_jpg"][:8]},
        "audio": {"input_values": clips["audio_1s"]},
    }
    first, second = pair.split("_")
    with torch.no_grad():
        result = models[torch.float32](**everything[first], **everything[second], return_loss=True)
    assert_equal(result.loss, outputs, f"loss_{pair}", loss_noise(outputs))


@DTYPE
def test_filters_and_decibel_images(dtype, models, clips):
    expected = np.load(FIXTURES / "intermediates.npz")
    fbsp = models[dtype].audio_model.fbsp
    with torch.no_grad():
        kernel = fbsp.kernel(dtype)
        chirp = fbsp(clips["audio_1s"][5].to(dtype))[0][0]
    rows = expected["fbsp_rows"]
    assert_equal(kernel[:, rows].permute(1, 2, 0), expected, "fbsp_kernel")
    assert_equal(torch.linalg.vector_norm(kernel, dim=(0, 2)), expected, "fbsp_norms")
    if dtype == torch.float64:
        assert_equal(chirp[:, ::16], expected, "x_db_chirp0")
    else:  # rounding noise is of one size in all bins before the logarithm
        amplitudes = [10 ** (image.double() / 20) for image in (chirp, torch.from_numpy(expected["x_db_chirp0"]))]
        torch.testing.assert_close(*amplitudes, rtol=0, atol=1e-6 * amplitudes[1].max().item())


def test_stock_image_processor_prepares_images_as_the_original(models, pictures, outputs):
    photos = [Image.open(path) for path in sorted((FIXTURES / "demo").glob("*.jpg"))]
    pixel_values = CLIPImageProcessor()(photos, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        embeds = models[torch.float32].get_image_features(pixel_values).pooler_output
    # torchvision's bicubic resize rounds differently from PIL's
    assert_same_direction(embeds, outputs, "image_jpg", least=0.999)


def test_feature_extractor_gives_the_training_and_the_notebook_amplitude(clips):
    waveforms = list(clips["audio_1s_unit"].squeeze(1).numpy())
    for amplitude, name in (("int16", "audio_1s"), ("unit", "audio_1s_unit")):
        extractor = AudioCLIPFeatureExtractor(amplitude=amplitude)
        input_values = extractor(waveforms, sampling_rate=44100, return_tensors="pt")["input_values"]
        torch.testing.assert_close(input_values, clips[name].squeeze(1), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_half_precision_trunk_keeps_the_direction_of_audible_clips(dtype, original, clips, outputs):
    model = make_model(original).to(dtype)
    chosen = slice(None) if dtype == torch.bfloat16 else slice(4, 6)  # float16 is slow on a CPU
    with torch.no_grad():
        embeds = model.get_audio_features(clips["audio_1s"][chosen]).pooler_output
    assert embeds.dtype == dtype
    assert_same_direction(embeds, outputs, "audio_1s", chosen, least=0.999)


@pytest.fixture(scope="module")
def train_batch(inputs, tokens) -> dict[str, torch.Tensor]:
    chirps = [(200, 8000, 0.3, 0.02, 101), (9000, 300, 0.2, 0.05, 102), (440, 440, 0.4, 0.03, 103)]
    chirps.append((1000, 15000, 0.1, 0.1, 104))
    waveforms = np.stack([inputs.chirp(*arguments) for arguments in chirps])[:, None].astype(np.float32)
    patterns = np.stack([inputs.pattern_image(seed) for seed in (101, 102, 103, 104)])
    bell = torch.zeros_like(tokens[0])  # "a photo of a church bell", from two texts of the fixtures
    bell[:8] = torch.cat([tokens[6, :5], tokens[7, 1:3], tokens[6, 6:7]])
    return {
        "input_ids": torch.stack([tokens[0], tokens[1], tokens[5], bell]),
        "pixel_values": torch.from_numpy(inputs.normalise(patterns)),
        "input_values": torch.from_numpy(waveforms),
        "return_loss": True,
    }


def original_gradients(model: AudioCLIPModel) -> dict[str, torch.Tensor]:
    gradients, thirds = {}, {}
    for name, parameter in model.named_parameters():
        source, part = original_name(name)
        if part is not None:
            thirds.setdefault(source, {})[part] = parameter.grad
        else:
            gradients[source] = parameter.grad.t() if source == "text_projection" else parameter.grad
    return gradients | {name: torch.cat([parts[0], parts[1], parts[2]]) for name, parts in thirds.items()}


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["public", "benign"])
def test_training_step_in_float64(variant, original, train_batch):
    model = make_model(original).double().train()
    if variant == "benign":
        order = model.audio_model.fbsp.m.data
        order.copy_(order.abs() + 1.5)
    reference = np.load(FIXTURES / "train_step.npz")
    result = model(**train_batch)
    result.loss.backward()
    gradients, state = original_gradients(model), model.state_dict()
    names = {original_name(name)[0]: name for name in state}
    assert_equal(result.loss, reference, f"{variant}/loss")
    assert_equal(result.loss_ttf, reference, f"{variant}/loss_ttf")
    for name, norm in zip(reference["grad_names"], reference[f"{variant}/grad_norms_f64"]):
        assert gradients[name].norm().item() == pytest.approx(norm, rel=1e-6, abs=1e-6), name
    for key in reference.files:
        kind, _, name = key.removeprefix(f"{variant}/").removesuffix("_f64").partition(".")
        if key.startswith(variant) and key.endswith("_f64") and kind in ("grad", "after"):
            actual = gradients[name] if kind == "grad" else state[names[name]]
            assert_equal(actual, reference, key.removesuffix("_f64"))
    assert set(gradients) == {*reference["grad_names"].tolist()}


@pytest.mark.slow
def test_training_step_in_float32(original, train_batch):
    model = make_model(original).train()
    reference = np.load(FIXTURES / "train_step.npz")
    result = model(**train_batch)
    result.loss.backward()
    gradients, state = original_gradients(model), model.state_dict()
    names = {original_name(name)[0]: name for name in state}
    logits_noise = max(own_noise(reference, f"public/logits_{pair}") for pair in ("audio_image", "audio_text"))
    assert_equal(result.loss, reference, "public/loss", 2 * logits_noise)
    for key in reference.files:
        kind, _, name = key.removeprefix("public/").partition(".")
        if not key.startswith("public/") or key.endswith("_f64") or "fbsp" in name:
            continue  # the gradients of m, fb and fc are ill-conditioned in float32
        if kind in ("grad", "after"):
            actual = gradients[name] if kind == "grad" else state[names[name]]
            largest = float(np.abs(reference[key]).max())
            assert_equal(actual, reference, key, max(own_noise(reference, key), 1e-3 * largest))
