"""Pushed to a Hub and pulled from it in new processes, with this package and without it."""

import json
import os
import re
import shlex
from importlib.metadata import requires
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from packaging.requirements import Requirement
from transformers import AutoModel, pipeline

from ave_clip import AVEClipForLocalization, AVEClipProcessor
from ave_clip.checkpoints.cards import write_localizer_card
from ave_clip.checkpoints.hub_export import export_for_hub
from ave_clip.checkpoints.push import checkpoint_files
from tests.core.test_pipeline_zero_shot import save_tiny_audioclip
from tests.helpers.fake_hub import TOKEN, FakeHub
from tests.helpers.fresh import run_fresh
from tests.helpers.media import write_recording
from tests.helpers.models import tiny_localizer, tiny_processor

ROOT = Path(__file__).parents[2]
WITHOUT_PACKAGE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ave_clip":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
PUSH = """
import json, sys
from pathlib import Path
from datasets import load_dataset
from huggingface_hub import ModelCard
from transformers import pipeline
import ave_clip
from ave_clip import AudioCLIPModel, AudioCLIPProcessor, AVEClipForLocalization, AVEClipProcessor
from ave_clip.data import load_ave, to_parquet
from ave_clip.cli import app
from ave_clip.checkpoints.push import PushError, push_folder
from typer.testing import CliRunner

folder = Path(sys.argv[1])
AVEClipForLocalization.from_pretrained(folder / "localizer").push_to_hub("tester/localizer")
AVEClipProcessor.from_pretrained(folder / "localizer").push_to_hub("tester/localizer")
ModelCard.load(folder / "localizer" / "README.md").push_to_hub("tester/localizer")
pipeline("audio-visual-event-localization", model=str(folder / "localizer")).push_to_hub("tester/pipeline")
AudioCLIPModel.from_pretrained(folder / "audioclip").push_to_hub("tester/audioclip")
AudioCLIPProcessor.from_pretrained(folder / "audioclip").push_to_hub("tester/audioclip")
urls = {
    name: push_folder(folder / name, f"tester/{name}") for name in ("exported", "exported-audioclip")
}
urls["later"] = push_folder(folder / "later", "tester/exported", commit_message="Other weights")
urls["branch"] = push_folder(folder / "exported", "tester/exported", revision="first")
push_folder(folder / "localizer", "tester/secret", private=True)
clips = load_ave(folder / "clips")
clips.push_to_hub("tester/clips")
arguments = ["export", str(folder / "localizer"), str(folder / "by cli"), "--push-to-hub", "tester/by-cli"]
by_cli = CliRunner().invoke(app, [*arguments, "--private", "--revision", "v1"])
urls["cli"] = by_cli.stdout.splitlines()[-1]
errors = {}
try:
    push_folder(folder / "localizer", "somebody/else")
except PushError as error:
    errors["forbidden"] = str(error)
print(json.dumps({"urls": urls, "errors": errors}))
"""
LOAD = """
import json, sys, torch
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForVideoClassification, AutoProcessor, AutoVideoProcessor,
    pipeline,
)
first, video, out = sys.argv[1:]
trusted = {"trust_remote_code": True}
classes = (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForVideoClassification, AutoProcessor)
loaded = {one.__name__: one.from_pretrained("tester/exported", **trusted) for one in (*classes, AutoVideoProcessor)}
names = {auto: type(one).__name__ for auto, one in loaded.items()}
pinned = AutoModelForVideoClassification.from_pretrained("tester/exported", revision=first, **trusted)
branch = AutoModelForVideoClassification.from_pretrained("tester/exported", revision="first", **trusted)
weights = {"main": loaded["AutoModelForVideoClassification"], "pinned": pinned, "branch": branch}
torch.save({name: model.state_dict() for name, model in weights.items()}, out)
localizer = pipeline(model="tester/exported", revision=first, device="cpu", **trusted)
zero_shot = pipeline(model="tester/exported-audioclip", device="cpu", **trusted)
results = {
    "localizer": localizer(video),
    "zero-shot": zero_shot(video, candidate_labels=["dog", "bell"], num_frames_per_segment=2),
}
errors = {}
for name, options in {
    "missing repository": {"pretrained_model_name_or_path": "tester/nothing", **trusted},
    "private repository": {"pretrained_model_name_or_path": "tester/secret", "token": False, **trusted},
    "missing revision": {"pretrained_model_name_or_path": "tester/exported", "revision": "never", **trusted},
    "untrusted": {"pretrained_model_name_or_path": "tester/exported", "trust_remote_code": False},
}.items():
    try:
        AutoModelForVideoClassification.from_pretrained(**options)
    except (OSError, ValueError) as error:
        errors[name] = f"{type(error).__name__}: {error}"
print(json.dumps({
    "names": names,
    "modules": sorted(name for name in sys.modules if name.partition(".")[0] == "ave_clip"),
    "results": results,
    "pipelines": [type(localizer).__name__, type(zero_shot).__name__],
    "errors": errors,
}))
"""
LOAD_WITH_PACKAGE = """
import json, sys, torch
from datasets import Video, load_dataset
from transformers import pipeline
import ave_clip
from ave_clip import AVEClipForLocalization
from ave_clip.cli import app
from typer.testing import CliRunner

video, out = sys.argv[1:]
names = ("tester/localizer", "tester/pipeline", "tester/secret")
weights = {name: AVEClipForLocalization.from_pretrained(name).state_dict() for name in names}
torch.save(weights, out)
clips = load_dataset("tester/clips").cast_column("video", Video(decode=False))
plain = pipeline("audio-visual-event-localization", model="tester/localizer", device="cpu")(video)
from_cli = CliRunner().invoke(app, ["localize", "--model", "tester/exported", "--format", "jsonl", video])
zero_shot = pipeline("zero-shot-audio-visual-event-localization", model="tester/audioclip", device="cpu")
print(json.dumps({
    "plain": plain,
    "cli": json.loads(from_cli.stdout),
    "zero-shot": zero_shot(video, candidate_labels=["dog", "bell"], num_frames_per_segment=2),
    "clips": {split: [[row["video_id"], len(row["video"]["bytes"]), row["labels"]] for row in rows]
              for split, rows in clips.items()},
}))
"""


def run(code: str, hub: FakeHub, home: Path, *arguments: object, token: str | None = TOKEN) -> dict:
    """The JSON that a new process prints in the end."""
    environment = {**os.environ, **hub.environment(home, token)}
    result = run_fresh(code, *arguments, environment=environment, cwd=home)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A localizer, an AudioCLIP, their exports, and a small data set."""
    from tests.helpers.ave_files import write_ave

    folder = tmp_path_factory.mktemp("checkpoints")
    for name, seed in (("localizer", 0), ("other", 1)):
        tiny_localizer(seed=seed).save_pretrained(folder / name)
        tiny_processor().save_pretrained(folder / name)
    results = {"command": "train.py", "history": []}
    write_localizer_card(folder / "localizer", results, model_name="tester/localizer", dataset_name="Three events")
    save_tiny_audioclip(folder / "audioclip")
    export_for_hub(folder / "localizer", folder / "exported", repo_id="tester/exported")
    export_for_hub(folder / "other", folder / "later")
    export_for_hub(folder / "audioclip", folder / "exported-audioclip")
    (folder / "localizer" / "state").mkdir()
    (folder / "localizer" / "state" / "optimizer.bin").write_bytes(b"x")
    (folder / "localizer" / "metrics.jsonl").write_text("{}\n")
    write_ave(folder / "clips")
    write_recording(folder / "a clip.mp4", 4.0)
    return folder


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def pushed(hub, folder, tmp_path_factory) -> dict:
    return run(PUSH, hub, tmp_path_factory.mktemp("pusher"), folder)


@pytest.fixture(scope="module")
def stranger(hub, folder, pushed, tmp_path_factory) -> dict:
    """What somebody gets who has transformers and not this package."""
    home = tmp_path_factory.mktemp("stranger")
    first = pushed["urls"]["exported"].rpartition("/")[2]
    report = run(WITHOUT_PACKAGE + LOAD, hub, home, first, folder / "a clip.mp4", home / "weights.pt")
    return {**report, "weights": torch.load(home / "weights.pt", weights_only=True)}


@pytest.fixture(scope="module")
def colleague(hub, folder, pushed, tmp_path_factory) -> dict:
    """What somebody gets who has this package."""
    home = tmp_path_factory.mktemp("colleague")
    report = run(LOAD_WITH_PACKAGE, hub, home, folder / "a clip.mp4", home / "weights.pt")
    return {**report, "weights": torch.load(home / "weights.pt", weights_only=True)}


def assert_same_weights(loaded: dict[str, torch.Tensor], seed: int) -> None:
    expected = tiny_localizer(seed=seed).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def assert_same_result(result: dict, expected: dict) -> None:
    assert [one["label"] for one in result["segments"]] == [one["label"] for one in expected["segments"]]
    scores = [one["score"] for one in result["segments"]]
    assert scores == pytest.approx([one["score"] for one in expected["segments"]], abs=1e-5)


def test_a_push_sends_the_checkpoint_and_nothing_of_the_training_run(hub, pushed):
    names = set(hub.repositories["model", "tester/secret"].files())
    assert names == {".gitattributes", "README.md", "config.json", "model.safetensors", "processor_config.json"}
    assert hub.repositories["model", "tester/secret"].private
    assert not hub.repositories["model", "tester/exported"].private


def test_the_command_line_exports_and_pushes_at_once(hub, pushed):
    repository = hub.repositories["model", "tester/by-cli"]
    assert pushed["urls"]["cli"].endswith(f"/tester/by-cli/commit/{repository.branches['v1']}")
    files = repository.files("v1")
    assert repository.private and "modeling_ave_clip.py" in files
    assert b'pipeline(model="tester/by-cli", trust_remote_code=True)' in files["README.md"]
    assert list(repository.files("main")) == [".gitattributes"]


def test_weights_and_videos_go_by_lfs(hub, folder, pushed):
    weights = (folder / "exported" / "model.safetensors").read_bytes()
    assert hub.repositories["model", "tester/exported"].files("first")["model.safetensors"] == weights
    assert weights in hub.large_files.values()
    (data,) = [name for name in hub.repositories["dataset", "tester/clips"].files() if name.startswith("data/train")]
    assert data.endswith(".parquet")


def test_ordinary_pushes_hold_no_code(hub, pushed):
    for name in ("localizer", "pipeline", "audioclip"):
        files = hub.repositories["model", f"tester/{name}"].files()
        assert not [file for file in files if file.endswith(".py")]
        assert "auto_map" not in json.loads(files["config.json"])
        assert "custom_pipelines" not in json.loads(files["config.json"])
        assert b"auto_map" not in files["processor_config.json"]


def test_the_card_is_pushed_with_its_metadata(hub, pushed):
    text = hub.repositories["model", "tester/localizer"].files()["README.md"].decode()
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.datasets) == (
        "ave-clip",
        "video-classification",
        ["three-events"],
    )


def test_a_refused_push_says_what_to_do(pushed):
    message = pushed["errors"]["forbidden"]
    assert "somebody/else" in message and "hf auth login" in message and "rights" in message


def test_auto_classes_load_an_export_without_this_package(stranger):
    assert stranger["modules"] == []
    assert stranger["names"] == {
        "AutoConfig": "AVEClipConfig",
        "AutoFeatureExtractor": "AudioCLIPFeatureExtractor",
        "AutoModel": "AVEClipForLocalization",
        "AutoModelForVideoClassification": "AVEClipForLocalization",
        "AutoProcessor": "AVEClipProcessor",
        "AutoVideoProcessor": "AVEClipVideoProcessor",
    }
    assert stranger["pipelines"] == [
        "AudioVisualEventLocalizationPipeline",
        "ZeroShotAudioVisualEventLocalizationPipeline",
    ]


def test_a_revision_pins_the_weights(stranger):
    assert_same_weights(stranger["weights"]["main"], seed=1)
    assert_same_weights(stranger["weights"]["pinned"], seed=0)
    assert_same_weights(stranger["weights"]["branch"], seed=0)


def test_both_pipelines_give_the_same_with_and_without_this_package(folder, stranger, colleague):
    video = str(folder / "a clip.mp4")
    localizer = pipeline("audio-visual-event-localization", model=str(folder / "localizer"), device="cpu")
    expected = localizer(video)
    assert len(expected["segments"]) == 4
    assert_same_result(stranger["results"]["localizer"], expected)
    assert_same_result(colleague["plain"], expected)
    assert_same_result(stranger["results"]["zero-shot"], colleague["zero-shot"])
    later = pipeline("audio-visual-event-localization", model=str(folder / "other"), device="cpu")
    assert_same_result(colleague["cli"], later(video))


def test_what_is_missing_private_or_untrusted_is_said(stranger):
    errors = stranger["errors"]
    assert errors["missing repository"].startswith("OSError") and "tester/nothing" in errors["missing repository"]
    assert errors["private repository"].startswith("OSError") and "private" in errors["private repository"]
    assert "never" in errors["missing revision"]
    assert errors["untrusted"].startswith("ValueError") and "trust_remote_code" in errors["untrusted"]


def test_ordinary_and_private_repositories_load_with_this_package(colleague):
    assert len(colleague["weights"]) == 3
    for weights in colleague["weights"].values():
        assert_same_weights(weights, seed=0)


def test_a_pushed_data_set_loads_with_its_videos(folder, colleague):
    from ave_clip.data import load_ave

    source = load_ave(folder / "clips")
    assert colleague["clips"].keys() == source.keys()
    for split, rows in source.items():
        sizes = [(folder / "clips" / "AVE" / f"{name}.mp4").stat().st_size for name in rows["video_id"]]
        expected = [[name, size, labels] for name, size, labels in zip(rows["video_id"], sizes, rows["labels"])]
        assert colleague["clips"][split] == expected


def test_saving_after_an_export_writes_no_code(folder, tmp_path):
    tiny_localizer().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "processor_config.json",
    ]
    assert "auto_map" not in (tmp_path / "config.json").read_text() + (tmp_path / "processor_config.json").read_text()


def test_an_export_that_is_loaded_and_saved_is_ordinary_again(folder, tmp_path):
    localizer = AVEClipForLocalization.from_pretrained(folder / "exported")
    localizer.save_pretrained(tmp_path)
    AVEClipProcessor.from_pretrained(folder / "exported").save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    for name in ("config.json", "processor_config.json"):
        saved = (tmp_path / name).read_text()
        assert "auto_map" not in saved and "custom_pipelines" not in saved
    assert_same_weights(AVEClipForLocalization.from_pretrained(tmp_path).state_dict(), seed=0)


def test_an_export_of_an_export_is_the_same(folder, tmp_path):
    again = export_for_hub(folder / "exported", tmp_path / "again", repo_id="tester/exported")
    names = sorted(path.name for path in again.iterdir())
    assert names == sorted(path.name for path in (folder / "exported").iterdir())
    for name in names:
        assert (again / name).read_bytes() == (folder / "exported" / name).read_bytes(), name


def test_the_card_of_an_export_says_how_to_load_it(folder):
    card = ModelCard((folder / "exported" / "README.md").read_text())
    assert card.data.library_name == "transformers" and "custom_code" in card.data.tags
    assert 'pipeline(model="tester/exported", trust_remote_code=True)' in card.text
    assert card.text.index("## Use without ave-clip") < card.text.index("## Training data")
    assert "Nothing was measured with these weights." in (folder / "later" / "README.md").read_text()


def test_the_card_of_an_export_states_the_bounds_of_the_package(folder):
    lines = (folder / "exported" / "README.md").read_text().splitlines()
    command = next(line for line in lines if "pip install" in line and "torchvision" in line)
    stated = {Requirement(word) for word in shlex.split(command)[2:]}
    declared = {entry for entry in map(Requirement, requires("ave-clip")) if entry.marker is None}
    assert {entry.name for entry in stated} == {"torch", "torchvision", "torchaudio", "transformers", "av"}
    assert stated <= declared and all(entry.specifier for entry in stated)


def test_exported_code_is_what_the_model_needs_and_runs_without_ave_clip(folder):
    files = {path.stem for path in (folder / "exported").glob("*.py")}
    assert files >= {
        "modeling_ave_clip",
        "pipeline_ave_clip",
        "processing_ave_clip",
        "video_io",
        "configuration_ave_clip",
    }
    assert not files & {"cli", "__init__", "registration", "files", "hub_export", "formats"}
    for path in (folder / "exported").glob("*.py"):
        assert re.findall(r"^\s*(?:from|import) ave_clip.*", path.read_text(), flags=re.MULTILINE) == [], path.name


def test_a_localizer_without_encoders_is_exported_without_a_pipeline(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    sizes = {"use_encoders": False, "image_feature_size": 48, "audio_feature_size": 20}
    tiny_localizer(**sizes).save_pretrained(tmp_path / "features")
    folder = export_for_hub(tmp_path / "features", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert "custom_pipelines" not in config and "AutoModel" in config["auto_map"]
    assert 'AutoModel.from_pretrained("out", trust_remote_code=True)' in (folder / "README.md").read_text()
    loaded = AutoModel.from_pretrained(folder, trust_remote_code=True)
    expected = tiny_localizer(**sizes).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())


def test_other_models_and_used_folders_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="of type 'bert'"):
        export_for_hub(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="not an empty folder"):
        export_for_hub(folder / "localizer", folder / "exported")


def test_a_folder_without_weights_is_no_checkpoint(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"contains config\.json"):
        checkpoint_files(tmp_path)


def test_code_is_pushed_only_with_a_checkpoint_that_names_it(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / "localizer" / name).read_bytes())
    (tmp_path / "my_notes.py").write_text("secret = 1\n")
    assert checkpoint_files(tmp_path) == ["config.json", "model.safetensors"]
    assert "modeling_ave_clip.py" in checkpoint_files(folder / "exported")
