"""Model cards: every number has a source, the committed ones are what the generator gives, names cannot break them."""

import json
import re
import shutil
import statistics
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from maintenance.project_cards import main, project_cards, summarize_seeds

from ave_clip import AudioCLIPConfig, AudioCLIPModel, AVEClipConfig
from ave_clip.checkpoints.cards import (
    TEMPLATES,
    build_localizer_card,
    count_parameters,
    write_audioclip_card,
    write_localizer_card,
)
from tests.helpers.models import TINY_FOLDER, tiny_audioclip_config, tiny_localizer, tiny_processor

CARDS = Path(__file__).parents[2] / "model_cards"
RESULTS = CARDS / "results"
NAMES = ["ave-clip-tiny.md", "audioclip.md", "ave-clip.md"]
SOURCES = {
    "ave-clip-tiny.md": [RESULTS / f"ave-clip-tiny{part}.json" for part in ("", "-fresh-seed0", "-summary")],
    "audioclip.md": [RESULTS / "audioclip.json"],
    "ave-clip.md": [RESULTS / "ave-clip.json"],
}
# Numbers that are part of a name, a definition or a place, not a fact about a model.
PARTS_OF_NAMES = [
    r"https?://\S+",
    r"```bibtex.*?```",
    r"(?i)apache-2\.0",
    r"F1|R@\d+|f1",
    r"\(tIoU 0\.\d( to 0\.9)?\)",
    r"95 % bootstrap intervals",
    r"ESC-50|UrbanSound8K|VGG19",
    r"Table \d",
    r"^\d\. \*\*",
    r"20261122|\(0, 0, 1\)|fresh-seed0",
]
NUMBER = re.compile(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?")
HEADINGS = [
    *("Description", "Uses", "Bias, risks and limits", "How to use", "Training data", "Training procedure"),
    *("Results", "Exact commands", "Environment", "Licence", "Citation"),
]
METRICS = {
    "segment_accuracy": 0.75,
    "background_recall": 0.5,
    "event_f1": 2 / 3,
    "num_videos": 4,
    "num_segments": 40,
    "class_accuracy": [0.1, None, 0.9, 0.5],
    "baselines": {"all_background": 0.25, "never_background": 0.75},
    "intervals": {"segment_accuracy": [0.7, 0.8]},
}
OUTCOME = {
    "validation": {"merge": {**METRICS, "segment_accuracy": 0.875}},
    "test": {"merge": METRICS, "viterbi": {**METRICS, "segment_accuracy": 0.625}},
    "history": [{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": 0.125}],
    "command": "examples/train_localizer.py --features_dir 'my features'",
    "arguments": {"learning_rate": 0.001, "output_dir": "/home/somebody/secret", "data_dir": None, "seed": 7},
    "versions": {"torch": "2.14.1"},
    "machine": {"threads": 1},
}


def numbers_in(value) -> set[float]:
    """Every number of a JSON file, those in its texts too."""
    if isinstance(value, dict):
        return numbers_in([*value, *value.values()])
    if isinstance(value, (list, tuple)):
        return set().union(*map(numbers_in, value))
    if isinstance(value, str):
        return {float(text.replace(",", "")) for text in NUMBER.findall(value)}
    return {float(value)} if isinstance(value, (int, float)) and not isinstance(value, bool) else set()


def is_written(text: str, known: set[float]) -> bool:
    """Whether `text` is one of the numbers, as it is, as a percentage, or rounded."""
    value, digits = float(text.replace(",", "")), len(text.partition(".")[2])
    forms = (number * scale for number in known for scale in (1, 100))
    return any(abs(value - form) <= 0.5 * 10**-digits + 1e-9 if digits else value == form for form in forms)


def stated_numbers(text: str) -> list[str]:
    for pattern in PARTS_OF_NAMES:
        text = re.sub(pattern, " ", text, flags=re.DOTALL | re.MULTILINE)
    return NUMBER.findall(text)


def facts_of(name: str) -> list:
    """What a card may draw on: its results files, and the configuration and files of the checkpoint."""
    sources = [json.loads(path.read_text()) for path in SOURCES[name]]
    folder = TINY_FOLDER
    if name == "ave-clip-tiny.md":
        config = AVEClipConfig.from_pretrained(folder)
        sources += [json.loads((folder / "processor_config.json").read_text())]
        sources += [(folder / "model.safetensors").stat().st_size]
    else:
        config = AVEClipConfig.paper() if name == "ave-clip.md" else AudioCLIPConfig()
    towers = getattr(config, "audioclip_config", config)
    return [
        *sources,
        config.to_dict(),
        count_parameters(config),
        towers.vision_config.grid_size**2,
        len(config.id2label),
        len(config.id2label) - 1,
    ]


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return project_cards(CARDS)


@pytest.mark.parametrize("name", [*NAMES, "results/ave-clip-tiny-summary.json"])
def test_the_committed_file_is_what_the_generator_gives(name, generated):
    again = "run `python examples/maintenance/project_cards.py`"
    assert (CARDS / name).read_text(encoding="utf-8") == generated[name], again


@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_a_card_is_in_its_results_or_configuration(name):
    known = numbers_in(facts_of(name))
    stated = stated_numbers((CARDS / name).read_text(encoding="utf-8"))
    assert len(stated) >= 20
    assert [number for number in stated if not is_written(number, known)] == []


def test_a_number_of_no_source_is_noticed():
    known = numbers_in({"accuracy": 0.98765, "command": "x --seed 20261122", "count": 1200})
    assert all(is_written(text, known) for text in ("98.8", "0.99", "1,200", "20261122", "98.765"))
    assert not any(is_written(text, known) for text in ("98.7", "98.9", "1,201", "12", "99"))


def test_templates_hold_no_numbers():
    for path in TEMPLATES.glob("*.md"):
        text = re.sub(r"{[{%].*?[}%]}", " ", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert stated_numbers(text) == [], path.name


@pytest.mark.parametrize("name", NAMES)
def test_a_card_has_all_sections_and_valid_metadata(name):
    card = ModelCard((CARDS / name).read_text(encoding="utf-8"))
    assert re.findall(r"^## (.+)$", card.text, flags=re.MULTILINE) == HEADINGS
    data = card.data.to_dict()
    assert data["library_name"] == "ave-clip"
    assert data["pipeline_tag"] in ("video-classification", "feature-extraction")
    assert {"license", "tags", "datasets", "metrics"} <= data.keys()
    assert "```text" in card.text and "```bash" in card.text and "```python" in card.text
    assert "{{" not in card.text and "None" not in card.text


def test_only_measured_results_are_in_the_metadata():
    for name in ("audioclip.md", "ave-clip.md"):
        assert ModelCard((CARDS / name).read_text(encoding="utf-8")).data.eval_results is None
    measured = json.loads((RESULTS / "ave-clip-tiny-fresh-seed0.json").read_text())["decoders"]["merge"]
    results = ModelCard((CARDS / "ave-clip-tiny.md").read_text(encoding="utf-8")).data.eval_results
    assert [(one.metric_type, one.metric_value, one.dataset_split) for one in results] == [
        ("accuracy", round(measured["segment_accuracy"], 4), "test"),
        ("recall", round(measured["background_recall"], 4), "test"),
        ("f1", round(measured["event_f1"], 4), "test"),
    ]


def test_cards_count_parameters_and_not_buffers(tmp_path):
    torch.manual_seed(0)
    model = tiny_localizer()
    model.save_pretrained(tmp_path)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count < sum(value.numel() for value in model.state_dict().values())
    write_localizer_card(tmp_path, {}, model_name="mine", dataset_name="mine")
    assert f"{count:,} parameters" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("name", "count"), [("audioclip", 134_111_910), ("ave-clip", 77_051_122)])
def test_sizes_of_the_full_models(name, count):
    assert f"**Size:** {count:,} parameters" in (CARDS / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        (1, ["learning_rate", "weight_decay", "batch_size", "num_epochs"]),
        (2, ["num_frames_per_segment"]),
        (3, ["learning_rate", "batch_size", "num_epochs", "max_grad_norm"]),
    ],
)
def test_the_recipe_says_what_its_configuration_files_say(stage, names):
    recipe = json.loads((RESULTS / "ave-clip.json").read_text(encoding="utf-8"))
    path = f"examples/configs/ave/stage{stage}{'_paper' if stage == 3 else ''}.yaml"
    assert any(path in command for command in recipe["commands"])
    settings = yaml.safe_load((CARDS.parent / path).read_text(encoding="utf-8"))
    assert {float(settings[name]) for name in names} <= numbers_in(recipe["stages"][stage - 1]["text"])


def test_the_summary_is_mean_and_deviation_over_the_seeds():
    runs = [json.loads((RESULTS / f"ave-clip-tiny-fresh-seed{seed}.json").read_text()) for seed in range(3)]
    values = [run["decoders"]["merge"]["event_f1"] for run in runs]
    summary = summarize_seeds(runs)
    assert summary["count"] == 3
    assert summary["metrics"]["event_f1"]["mean"] == pytest.approx(sum(values) / 3)
    assert summary["metrics"]["event_f1"]["deviation"] == pytest.approx(statistics.stdev(values))


def test_the_command_writes_the_cards_of_a_folder(tmp_path, generated):
    shutil.copytree(RESULTS, tmp_path / "results")
    main([str(tmp_path)])
    assert {name: (tmp_path / name).read_text(encoding="utf-8") for name in generated} == generated


@pytest.fixture(scope="module")
def checkpoint_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("localizer")
    tiny_localizer().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_a_training_run_gets_its_card(checkpoint_folder):
    path = write_localizer_card(
        checkpoint_folder, OUTCOME, model_name="me/bells", dataset_name="My Bells", command="python train.py --x 1"
    )
    card = ModelCard(path.read_text(encoding="utf-8"))
    assert path == checkpoint_folder / "README.md"
    for line in (
        "| segment accuracy | 75.0 % | 70.0 % to 80.0 % |",
        "| event F1 (tIoU 0.5) | 66.7 % |  |",
        "| `viterbi` | 62.5 % | 50.0 % | 66.7 % |",
        "- Least accurate classes (test): Bell 10.0 %, background 50.0 %, Clap 90.0 %.",
        "| `learning_rate` | `0.001` |",
        "2 epochs; the last loss was 0.125.",
        "python train.py --x 1",
        "torch 2.14.1, threads: 1.",
        'model="me/bells")',
    ):
        assert line in card.text
    assert "secret" not in card.text
    assert [(one.dataset_type, one.dataset_split, one.metric_value) for one in card.data.eval_results] == [
        ("my-bells", "test", 0.75),
        ("my-bells", "test", 0.5),
        ("my-bells", "test", 0.6667),
    ]


def test_a_run_without_a_test_split_reports_validation(checkpoint_folder):
    results = {name: value for name, value in OUTCOME.items() if name != "test"}
    text = build_localizer_card(checkpoint_folder, results, model_name="x", dataset_name="y", dataset_id="owner/y")
    data = ModelCard(text).data
    assert data.datasets == ["owner/y"]
    assert (data.eval_results[0].dataset_split, data.eval_results[0].metric_value) == ("validation", 0.875)
    assert f"python {OUTCOME['command']}" in text


def test_a_checkpoint_without_results_says_so(checkpoint_folder):
    text = build_localizer_card(checkpoint_folder, {}, model_name="x", dataset_name="")
    card = ModelCard(text)
    assert "Nothing was measured with these weights." in text and "Not recorded." in text
    assert card.data.eval_results is None and card.data.datasets is None


def test_a_localizer_on_features_of_other_encoders_gets_its_card(tmp_path):
    sizes = {"use_encoders": False, "image_feature_size": 48, "audio_feature_size": 20}
    tiny_localizer(**sizes).save_pretrained(tmp_path)
    text = write_localizer_card(tmp_path, OUTCOME, model_name="m", dataset_name="d").read_text(encoding="utf-8")
    assert "frames (48 numbers per location) and audio\n  (20 numbers)" in text
    assert "locations x 48 features of the frames        1 vector of 20 features of the audio" in text
    assert "image_features=image_features" in text and "pipeline(" not in text


def test_names_stay_text_in_tables_and_metadata(tmp_path):
    labels = {0: "a|b", 1: "<script>x</script>", 2: "line\nbreak `code`", 3: "background"}
    tiny_localizer(id2label=labels).save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    name = 'evil: "name" # <b>'
    card = ModelCard(build_localizer_card(tmp_path, OUTCOME, model_name="m", dataset_name=name))
    assert r"a\|b; \<script\>x\</script\>; line break \`code\`; and background" in card.text
    assert card.data.eval_results[0].dataset_name == name
    assert yaml.safe_load(card.data.to_yaml())["datasets"] == ["evil-name-b"]


def test_stage_1_gets_its_card(tmp_path):
    AudioCLIPModel(tiny_audioclip_config()).save_pretrained(tmp_path)
    history = [
        {"epoch": 0, "loss": 3.0, "score": 0.5, "audio_to_image_r1": 0.25, "image_to_audio_class_r5": 0.75},
        {"epoch": 1, "loss": 2.0, "score": 0.4, "audio_to_image_r1": 0.125, "image_to_audio_class_r5": 0.5},
    ]
    results = {"history": history, "command": "finetune.py", "arguments": {"batch_size": 64}, "versions": {}}
    text = write_audioclip_card(tmp_path, results, model_name="me/towers", dataset_name="AVE").read_text()
    assert "| audio to image R@1 | 25.0 % |" in text
    assert "| image to audio R@5, any of the same class | 75.0 % |" in text
    assert "| `batch_size` | `64` |" in text and "python finetune.py" in text
    assert "28 classes, all from YouTube" in text
    assert ModelCard(text).data.pipeline_tag == "feature-extraction"
