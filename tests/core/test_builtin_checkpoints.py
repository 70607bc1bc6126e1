"""Built-in checkpoints load by name everywhere a folder or Hub id is taken, without the network."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForVideoClassification,
    AutoProcessor,
    AutoVideoProcessor,
    pipeline,
)

import ave_clip
from ave_clip.checkpoints.hub_export import export_for_hub
from ave_clip.core.builtin_checkpoints import builtin_checkpoints, find_checkpoint, resolve_checkpoint
from ave_clip.core.configuration_ave_clip_mini import AVEClipMiniConfig
from ave_clip.core.modeling_ave_clip_mini import AVEClipMiniForLocalization
from ave_clip.training.checkpoints import load_encoder, load_shared_encoder
from tests.helpers.models import TINY_FOLDER

NAME = "ave-clip-tiny"
CLASSES = [
    ave_clip.AVEClipConfig,
    ave_clip.AVEClipForLocalization,
    ave_clip.AVEClipProcessor,
    ave_clip.AVEClipVideoProcessor,
    ave_clip.AudioCLIPFeatureExtractor,
]
MINI_CLASSES = [AVEClipMiniConfig, AVEClipMiniForLocalization, *CLASSES[2:]]
AUTO_CLASSES = {
    AutoConfig: ave_clip.AVEClipConfig,
    AutoModelForVideoClassification: ave_clip.AVEClipForLocalization,
    AutoProcessor: ave_clip.AVEClipProcessor,
    AutoFeatureExtractor: ave_clip.AudioCLIPFeatureExtractor,
    AutoVideoProcessor: ave_clip.AVEClipVideoProcessor,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"asked the network for {arguments}")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize(
    ("loader", "name"),
    [*((loader, NAME) for loader in CLASSES), *((loader, "ave-clip-mini") for loader in MINI_CLASSES)],
)
def test_our_classes_load_by_name(loader, name):
    assert name in builtin_checkpoints()
    assert type(loader.from_pretrained(name)) is loader
    assert type(loader.from_pretrained(pretrained_model_name_or_path=name)) is loader


@pytest.mark.parametrize("loader", AUTO_CLASSES, ids=lambda loader: loader.__name__)
def test_auto_classes_load_by_name(loader):
    assert type(loader.from_pretrained(NAME)) is AUTO_CLASSES[loader]


@pytest.mark.parametrize("arguments", [(None, NAME), ("audio-visual-event-localization", NAME)])
def test_a_pipeline_takes_the_name_with_and_without_a_task(arguments):
    localizer = pipeline(*arguments)
    assert isinstance(localizer, ave_clip.AudioVisualEventLocalizationPipeline)
    assert localizer.model.config.num_labels == 17


def test_a_folder_of_that_name_comes_first(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / NAME)
    monkeypatch.chdir(tmp_path)
    mine = json.loads((tmp_path / NAME / "config.json").read_text())
    assert mine["hidden_size"] != ave_clip.AVEClipConfig.from_pretrained(TINY_FOLDER).hidden_size
    for loader in (ave_clip.AVEClipConfig, AutoConfig):
        assert loader.from_pretrained(NAME).hidden_size == mine["hidden_size"]
    assert pipeline("audio-visual-event-localization", NAME).model.config.hidden_size == mine["hidden_size"]


@pytest.mark.parametrize("other", ["someone/ave-clip-tiny", "./ave-clip-tiny", Path("x") / NAME, None, b"x"])
def test_anything_else_is_left_as_it_is(other):
    assert resolve_checkpoint(other) == other


@pytest.mark.parametrize("name", ["missing_folder", "./missing", "a/b/c", "~/missing", "/missing", "missing/"])
def test_what_can_be_neither_a_folder_nor_a_hub_id_is_refused_without_the_network(name):
    with pytest.raises(OSError, match=rf"cannot load the model {name}: there is no such folder.*owner/name.*{NAME}"):
        find_checkpoint(name)


def test_hub_ids_built_in_names_and_folders_are_found(tmp_path):
    assert find_checkpoint("owner/name-2.0") == "owner/name-2.0"
    assert find_checkpoint(NAME) == str(TINY_FOLDER)
    assert find_checkpoint(tmp_path) == tmp_path
    (tmp_path / "weights.pt").touch()
    with pytest.raises(OSError, match="it is a file"):
        find_checkpoint(tmp_path / "weights.pt")


def test_programs_refuse_a_missing_model_at_once(tmp_path):
    import evaluate_localizer

    for load in (load_encoder, load_shared_encoder, evaluate_localizer.load_localizer):
        with pytest.raises(OSError, match="there is no such folder"):
            load("missing_folder")
    with pytest.raises(OSError, match="there is no such folder"):
        export_for_hub("missing_folder", tmp_path / "out")
