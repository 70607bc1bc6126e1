"""The localizer exported to ONNX gives what torch gives, on any number of segments and through the pipeline."""

import subprocess
import sys

import pytest
import torch
from packaging.version import Version
from transformers import AutoModelForVideoClassification, pipeline

from ave_clip import AVEClipForLocalization, AVEClipProcessor
from tests.helpers.models import SYNTHETIC_SAMPLE, TINY_FOLDER, tiny_localizer, tiny_processor

pytest.importorskip("onnx", reason="onnx is not installed (extra onnx)")
pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra onnx)")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra onnx)")

from ave_clip.checkpoints.onnx_export import MINIMUM_TORCH, export_onnx
from ave_clip.checkpoints.onnx_model import ALIASES, AVEClipOnnxForLocalization

if Version(torch.__version__) < Version(MINIMUM_TORCH):
    pytest.skip(f"exporting needs torch {MINIMUM_TORCH} (extra onnx)", allow_module_level=True)
BACKENDS = ["onnxruntime", "openvino"]
SAMPLE = str(SYNTHETIC_SAMPLE)


@pytest.fixture(scope="module")
def embedded(tiny_onnx) -> str:
    return str(tiny_onnx)


@pytest.fixture(scope="module")
def model() -> AVEClipForLocalization:
    return AVEClipForLocalization.from_pretrained(TINY_FOLDER)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_graph_gives_what_torch_gives_for_any_batch_and_length(embedded, model, backend):
    pytest.importorskip(backend)
    exported = AVEClipOnnxForLocalization.from_pretrained(embedded, backend=backend)
    side = model.config.audioclip_config.vision_config.image_size
    samples = model.config.audioclip_config.audio_config.sampling_rate
    torch.manual_seed(0)
    for batch, segments in ((1, 1), (2, 3), (3, 10), (1, 23)):
        pixels, sound = torch.randn(batch, segments, 1, 3, side, side), 3000 * torch.randn(batch, segments, samples)
        with torch.no_grad():
            image, audio = model.encode(pixels, sound)
            visual, weights = model.attend(image, audio)
            expected = model.localize(visual, audio)
        for found, wanted in zip(exported.encode(pixels, sound), (image, audio), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        for found, wanted in zip(exported.attend(image, audio), (visual, weights), strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        found = exported.localize(visual, audio)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found.event_logits, expected.event_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", [*BACKENDS, *ALIASES])
def test_the_pipeline_runs_an_export(embedded, backend):
    pytest.importorskip(ALIASES.get(backend, backend))
    exported = pipeline("audio-visual-event-localization", model=embedded, backend=backend)
    localizer = pipeline("audio-visual-event-localization", model="ave-clip-tiny", device="cpu")
    expected = localizer(SAMPLE, return_heatmaps=True)
    result = exported(SAMPLE, return_heatmaps=True)
    assert [s["label"] for s in result["segments"]] == [s["label"] for s in expected["segments"]]
    assert [s["score"] for s in result["segments"]] == pytest.approx(
        [s["score"] for s in expected["segments"]], abs=1e-3
    )
    assert result["heatmaps"] == pytest.approx(expected["heatmaps"], abs=1e-3)


def test_a_network_of_other_parts_and_shorter_segments_is_exported_too(tmp_path):
    processor = tiny_processor()
    processor.video_processor.segment_seconds = 0.5
    model = tiny_localizer(visual_feature_type="layer4", use_event_attention=False).eval()
    folder = export_onnx(model, tmp_path / "out", processor)
    exported = AutoModelForVideoClassification.from_pretrained(folder)
    side = model.config.audioclip_config.vision_config.image_size
    pixels, sound = torch.randn(2, 4, 2, 3, side, side), 3000 * torch.randn(2, 4, 4000)
    with torch.no_grad():
        features, expected = model.encode(pixels, sound), model(pixel_values=pixels, input_values=sound).logits
    for found, wanted in zip(exported.encode(pixels, sound), features, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    found = exported(pixel_values=pixels, input_values=sound)
    torch.testing.assert_close(found.logits, expected, rtol=1e-4, atol=1e-4)
    assert found.event_logits is None
    assert AVEClipProcessor.from_pretrained(folder).to_dict() == processor.to_dict()


POOLED = {"visual_feature_type": "pooled", "use_encoders": False, "image_feature_size": 6, "audio_feature_size": 5}
SMALL = {"window_sizes": (2,), "attention_domains": "temporal", "use_refiner": False}  # fewer operators to export


def assert_same_logits(folder, model):
    features = {"image_features": torch.randn(2, 7, 6), "audio_features": torch.randn(2, 7, 5)}
    with torch.no_grad():
        expected = model(**features).logits
    exported = AutoModelForVideoClassification.from_pretrained(folder)
    torch.testing.assert_close(exported(**features).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_localizer_of_pooled_features_is_one_graph(tmp_path):
    model = tiny_localizer(**POOLED, **SMALL).eval()
    folder = export_onnx(model, tmp_path / "out")
    assert [path.name for path in folder.glob("*.onnx")] == ["temporal.onnx"]
    assert_same_logits(folder, model)


def test_pooled_features_are_normalised_and_no_processor_is_needed(tmp_path):
    model = tiny_localizer(**POOLED, **SMALL, normalize_features=True).eval()
    for norm, width in ((model.image_norm, 6), (model.audio_norm, 5)):
        for buffer in norm.buffers():
            if buffer.shape == (width,):
                buffer.copy_(torch.rand(width) + 0.5)
    model.save_pretrained(tmp_path / "model")
    assert_same_logits(export_onnx(tmp_path / "model", tmp_path / "out"), model)


def test_what_the_processor_gives_is_taken_unless_it_is_padded(embedded, model):
    exported = AVEClipOnnxForLocalization.from_pretrained(embedded)
    inputs = AVEClipProcessor.from_pretrained(embedded)(videos=SAMPLE, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(exported(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-3)
    with pytest.raises(ValueError, match="Both video and audio inputs are required"):
        exported(pixel_values=inputs["pixel_values"])
    inputs["segment_mask"][0, -1] = False
    with pytest.raises(ValueError, match="do not support padding"):
        exported(**inputs)


def test_one_backend_does_without_the_other_and_a_missing_one_is_named(embedded, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    localize = pipeline("audio-visual-event-localization", model=embedded, backend="openvino")
    assert localize.model.backend == "openvino"
    with pytest.raises(ImportError, match=r"pip install 'ave-clip\[onnx\]'"):
        pipeline("audio-visual-event-localization", model=embedded)
    with pytest.raises(ValueError, match="compile=True needs torch weights"):
        pipeline("audio-visual-event-localization", model=embedded, backend="openvino", compile=True)


def test_signals_are_handled_after_a_model_is_freed_in_another_thread(embedded):
    """OpenVINO's plugin once took the stack of the signal handlers along, and the next child that ended killed us."""
    pytest.importorskip("openvino")
    program = f"""
import signal, subprocess, threading, torch, ave_clip
from transformers import pipeline
signal.signal(signal.SIGCHLD, lambda *_: None)  # as DataLoader does for its workers
localize = pipeline("audio-visual-event-localization", model={embedded!r}, backend="openvino")
localize({SAMPLE!r})
holder = [localize]
del localize
thread = threading.Thread(target=holder.clear)
thread.start()
thread.join()
subprocess.run(["true"], check=True)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_wrong_backends_dtypes_and_models_are_named(embedded, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="got backend='tensorrt'"):
        AVEClipOnnxForLocalization.from_pretrained(embedded, backend="tensorrt")
    with pytest.raises(ValueError, match="ave-clip export"):
        pipeline("audio-visual-event-localization", model=checkpoint, backend="onnxruntime")
    with pytest.raises(ValueError, match="float32"):
        AVEClipOnnxForLocalization.from_pretrained(embedded, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="float32"):
        export_onnx(tiny_localizer().to(torch.bfloat16), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_torch_export_takes_any_batch(model):
    batch = torch.export.Dim("batch", min=1, max=1024)
    width = model.config.resolved_audio_feature_size
    image, audio = torch.randn(2, 10, 9, width), torch.randn(2, 10, width)
    inputs = {"image_features": image, "audio_features": audio}
    shapes = {name: {0: batch} for name in inputs}
    program = torch.export.export(model, (), inputs, dynamic_shapes=shapes)
    image, audio = torch.randn(5, 10, 9, width), torch.randn(5, 10, width)
    with torch.no_grad():
        expected = model(image_features=image, audio_features=audio).logits
        found = program.module()(image_features=image, audio_features=audio)["logits"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
