"""A saved checkpoint in a fresh process, through transformers' Auto classes."""

import subprocess
import sys

import pytest
import torch

import ave_clip
from tests.helpers.fresh import run_fresh
from tests.helpers.models import TINY_FOLDER, tiny_localizer

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
    result = run_fresh(LOAD, checkpoint, tmp_path / "state.pt", cwd=tmp_path)
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


ORDERS = {
    "package first": "import ave_clip; from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline",
    "transformers first": "from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline; import ave_clip",
    "half loaded": "from transformers import AutoConfig; import ave_clip; from transformers import pipeline",
    "deep import": "import transformers.pipelines.base; import ave_clip; from transformers import pipeline",
    "a configuration": "import ave_clip.core.configuration_audioclip; from transformers import pipeline",
    "a pipeline": "import ave_clip.core.pipeline_ave_clip; from transformers import pipeline",
}
LOAD_PIPELINE = """
import sys
print(type(pipeline("audio-visual-event-localization", model=sys.argv[1])).__name__)
"""


@pytest.mark.parametrize("order", ORDERS)
def test_the_order_of_imports_does_not_matter(order, checkpoint):
    result = run_fresh(ORDERS[order] + LOAD_PIPELINE, checkpoint)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "AudioVisualEventLocalizationPipeline"


def test_a_built_in_name_works_where_transformers_was_imported_first():
    code = "from transformers import pipeline; import ave_clip; print(pipeline(model='ave-clip-tiny').task)"
    result = run_fresh(code)
    assert result.stdout.strip() == "audio-visual-event-localization", result.stderr


def loaded_by(arguments: list[str]) -> list[str]:
    """Those of the slow libraries that a command line loads."""
    command = [sys.executable, "-X", "importtime", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "ave_clip.registration" in imported
    return sorted(imported & {"torch", "transformers", "av", "datasets", "matplotlib"})


@pytest.mark.parametrize("arguments", [["--help"], ["localize", "--help"]])
def test_help_loads_neither_torch_nor_transformers(arguments, tmp_path):
    assert loaded_by(["-m", "ave_clip", *arguments]) == []
    script = tmp_path / "ave-clip"  # as the installer writes it
    script.write_text("import sys\nfrom ave_clip.cli import main\nsys.exit(main())\n")
    assert loaded_by([str(script), *arguments]) == []


def test_other_programs_register_even_if_their_names_are_similar(tmp_path):
    program = "import ave_clip\nfrom transformers import pipeline\n" + LOAD_PIPELINE
    (tmp_path / "ave-clip-server").write_text(program)
    (tmp_path / "ave_clip_server.py").write_text(program)
    for start in ([str(tmp_path / "ave-clip-server")], ["-m", "ave_clip_server"]):
        command = [sys.executable, *start, TINY_FOLDER]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300)
        assert result.stdout.strip() == "AudioVisualEventLocalizationPipeline", result.stderr


def test_every_public_name_can_be_imported():
    for name in ave_clip.__all__:
        assert getattr(ave_clip, name) is not None
    assert set(ave_clip.__all__) <= set(dir(ave_clip))
    with pytest.raises(AttributeError, match="AVEKlip"):
        _ = ave_clip.AVEKlip
