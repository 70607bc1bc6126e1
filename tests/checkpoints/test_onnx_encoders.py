"""`ave-clip-mini`, and localizers on composite encoders, exported to ONNX give what torch gives."""

import importlib.util

import pytest
import torch
from packaging.version import Version
from transformers import pipeline

from ave_clip.core.modeling_audio_visual_encoder import AudioVisualEncoderModel
from ave_clip.core.processing_audio_visual_encoder import AudioVisualEncoderProcessor
from ave_clip.training.checkpoints import build_localizer, load_processor
from tests.helpers.encoders import SAVERS
from tests.helpers.models import ASSETS, TINY_LOCALIZER, tiny_config

pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")

from ave_clip.checkpoints import onnx_export, onnx_model
from ave_clip.checkpoints.onnx_export import MINIMUM_TORCH, export_onnx
from ave_clip.checkpoints.onnx_model import BACKENDS, AVEClipOnnxForLocalization

if Version(torch.__version__) < Version(MINIMUM_TORCH):
    pytest.skip(f"exporting needs torch {MINIMUM_TORCH} (extra onnx)", allow_module_level=True)
SAMPLE = str(ASSETS / "sample.mp4")


# One test, because the export takes longer than all the rest, and workers of pytest-xdist share no fixture.
def test_the_default_model_gives_the_same_events_senses_and_heat_maps(tmp_path):
    localizer = pipeline("audio-visual-event-localization", model="ave-clip-mini", device="cpu")
    labels = ["dog bark", "thunder"]  # thunder has no image class
    expected = localizer(SAMPLE, candidate_labels=labels, return_heatmaps=True)
    localizer.model.set_labels(labels)
    mini = str(export_onnx(localizer.model, tmp_path / "mini", localizer.processor))
    for backend in BACKENDS:
        if importlib.util.find_spec(backend) is None:
            continue
        exported = pipeline("audio-visual-event-localization", model=mini, backend=backend)
        result = exported(SAMPLE, return_heatmaps=True)
        assert [event["label"] for event in result["events"]] == ["dog bark"]
        for found, wanted in zip(result["segments"], expected["segments"], strict=True):
            assert found["label"] == wanted["label"]
            for name in ("score", "heard", "seen", "both"):
                assert found[name] == pytest.approx(wanted[name], abs=1e-3)
        assert result["heatmaps"] == pytest.approx(expected["heatmaps"], abs=1e-3)
        with pytest.raises(ValueError, match="this one has fixed labels of its own"):
            exported(SAMPLE, candidate_labels=["cat"])


def localizer_on(towers: tuple[str, ...], folder):
    """An untrained localizer on a composite of tiny towers, and its processor."""
    sources = [SAVERS[name](folder / name) for name in towers]
    encoder = AudioVisualEncoderModel.from_towers(*sources)
    for part in (encoder, AudioVisualEncoderProcessor.from_towers(*sources)):
        part.save_pretrained(folder / "encoder")
    torch.manual_seed(0)
    model = build_localizer(encoder, tiny_config().id2label, TINY_LOCALIZER).eval()
    return model, load_processor(folder / "encoder", encoder, 1, localizer=model.config)


def export(model, processor, folder) -> AVEClipOnnxForLocalization:
    for part in (model, processor):
        part.save_pretrained(folder / "model")
    return AVEClipOnnxForLocalization.from_pretrained(export_onnx(folder / "model", folder / "out"))


def random_inputs(model, processor, segments: int) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, windows = onnx_export._tower_inputs(model, processor)
    return torch.randn(1, segments, 1, *pixels.shape[1:]), torch.randn(1, segments, *windows.shape[1:])


def assert_same_features(exported: AVEClipOnnxForLocalization, model, inputs: tuple[torch.Tensor, torch.Tensor]):
    with torch.no_grad():
        features = model.encode(*inputs)
    for own, wanted in zip(exported.encode(*inputs), features, strict=True):
        # Features of untrained classifiers are small, so that the bound is a part of their size.
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def test_a_localizer_on_a_composite_gives_the_same_logits_for_any_length(tmp_path):
    # The code of CLAP fixes the number of windows, so that they run one by one.
    model, processor = localizer_on(("clip", "clap"), tmp_path)
    exported = export(model, processor, tmp_path)
    for segments in (1, 3):
        pixels, windows = random_inputs(model, processor, segments)
        assert_same_features(exported, model, (pixels, windows))
        with torch.no_grad():
            expected = model(pixel_values=pixels, input_values=windows)
        found = exported(pixel_values=pixels, input_values=windows)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)


OTHER_TOWERS = [("siglip2", "pe-a-frame"), ("vit", "ast")]
OTHER_TOWERS += [("pe-av",)] if importlib.util.find_spec("timm") is not None else []


@pytest.mark.slow
@pytest.mark.parametrize("towers", OTHER_TOWERS, ids=str)
def test_other_towers_give_the_same_features_for_any_length(towers, tmp_path, monkeypatch):
    for module in (onnx_export, onnx_model):  # the other two graphs are those of the test above
        monkeypatch.setattr(module, "graph_names", lambda config: ["vision", "audio"])
    model, processor = localizer_on(towers, tmp_path)
    exported = export(model, processor, tmp_path)
    for segments in (1, 3):
        assert_same_features(exported, model, random_inputs(model, processor, segments))


def test_what_cannot_be_exported_is_named(tmp_path, monkeypatch):
    model, processor = localizer_on(("clip", "clap"), tmp_path)
    with pytest.raises(ValueError, match="Pass `processor`, too"):
        export_onnx(model, tmp_path / "out")

    def fail(*args, **options):
        raise torch.onnx.errors.OnnxExporterError("an operator is not known")

    monkeypatch.setattr(onnx_export, "graph_names", lambda config: ["audio"])
    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ValueError, match="The encoder 'clap' cannot be exported to ONNX"):
        export_onnx(model, tmp_path / "out", processor)
    assert not (tmp_path / "out").exists()
