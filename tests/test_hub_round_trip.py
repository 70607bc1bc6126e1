"""A saved checkpoint in a fresh process, through transformers' Auto classes."""

import os
import subprocess
import sys

import torch

from .conftest import tiny_localizer

LOAD = """
import sys, torch
import ave_clip
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModelForVideoClassification, AutoProcessor, AutoVideoProcessor, pipeline
)
folder = sys.argv[1]
model = AutoModelForVideoClassification.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
print(type(AutoConfig.from_pretrained(folder)).__name__, type(model).__name__, type(processor).__name__)
print(type(AutoFeatureExtractor.from_pretrained(folder)).__name__)
print(type(AutoVideoProcessor.from_pretrained(folder)).__name__)
print(type(pipeline("audio-visual-event-localization", model=folder, device="cpu")).__name__)
torch.save({name: value for name, value in model.state_dict().items()}, sys.argv[2])
"""


def test_auto_classes_load_the_checkpoint_bit_exactly(checkpoint, tmp_path):
    command = [sys.executable, "-c", LOAD, checkpoint, str(tmp_path / "state.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [
        "AVEClipConfig",
        "AVEClipForLocalization",
        "AVEClipProcessor",
        "AudioCLIPFeatureExtractor",
        "AVEClipVideoProcessor",
        "AudioVisualEventLocalizationPipeline",
    ]
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    expected = tiny_localizer().state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())
