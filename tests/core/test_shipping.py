"""`core/` ships with every checkpoint: whole, flat, and with models that work without the optional files."""

import inspect
import shutil
from pathlib import Path

import torch
from transformers.dynamic_module_utils import get_relative_import_files

import ave_clip
from ave_clip.core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
from tests.helpers.fresh import run_fresh
from tests.helpers.models import tiny_localizer

CORE = Path(inspect.getfile(AudioVisualEventLocalizationPipeline)).parent
SAVED_CLASSES = (
    "AVEClipForLocalization",
    "AVEClipMiniForLocalization",
    "AVEClipProcessor",
    "AVEClipVideoProcessor",
    "AudioCLIPFeatureExtractor",
    "AudioCLIPModel",
    "AudioCLIPProcessor",
    "AudioVisualEncoderModel",
    "AudioVisualEncoderProcessor",
    "AudioVisualEventLocalizationPipeline",
    "ZeroShotAudioVisualEventLocalizationPipeline",
)
OPTIONAL = ("fast_inference.py", "fast_towers.py")


def test_what_the_saved_classes_import_is_the_folder_core():
    files = {inspect.getfile(getattr(ave_clip, name)) for name in SAVED_CLASSES}
    imported = {path for file in files for path in get_relative_import_files(file)}
    assert {Path(path) for path in files | imported} == set(CORE.glob("*.py")) - {CORE / "__init__.py"}


def test_models_compute_without_the_files_of_fast_inference(tmp_path):
    package = tmp_path / "plain_core"
    shutil.copytree(CORE, package, ignore=shutil.ignore_patterns(*OPTIONAL, "__pycache__"))
    model = tiny_localizer()
    model.save_pretrained(tmp_path / "model")
    code = f"""
import sys, torch
sys.modules["ave_clip"] = None  # whoever imports it fails
sys.path.insert(0, {str(tmp_path)!r})
from plain_core.modeling_ave_clip import AVEClipForLocalization
from plain_core.pipeline_ave_clip import AudioVisualEventLocalizationPipeline
model = AVEClipForLocalization.from_pretrained({str(tmp_path / "model")!r})
with torch.no_grad():
    output = model(pixel_values=torch.ones(1, 4, 2, 3, 64, 64), input_values=torch.ones(1, 4, 4000))
assert not model.undo_inference_optimization().is_optimized_for_inference
torch.save(output.logits, {str(tmp_path / "logits.pt")!r})
"""
    result = run_fresh(code)
    assert result.returncode == 0, result.stderr
    with torch.no_grad():
        expected = model(pixel_values=torch.ones(1, 4, 2, 3, 64, 64), input_values=torch.ones(1, 4, 4000)).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected, rtol=0, atol=0)
