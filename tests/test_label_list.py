"""`ave-clip labels`: what is listed, found, and said where nothing is found."""

import json
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from ave_clip.cli import app
from ave_clip.core.concepts import ConceptTable, read_concepts
from ave_clip.label_list import as_json, as_text, known_labels
from tests.helpers.models import MINI_FOLDER


def labels(*arguments: str):
    return CliRunner().invoke(app, ["labels", *arguments])


def test_each_concept_is_one_line_with_how_it_can_be_known():
    lines = labels().stdout.splitlines()
    names = [row["name"] for row in read_concepts(MINI_FOLDER / "concepts.csv")]
    assert [line.split("  ")[0] for line in lines] == sorted(names, key=str.casefold)
    columns = {label: rest for label, *rest in (re.split(" {2,}", line) for line in lines)}
    assert columns["Cough"] == ["heard only", "coughing, person coughing, throat clearing"]
    assert columns["Bark"][0] == "heard and seen" and columns["Theremin"] == ["heard only", "theremin playing"]


def test_search_looks_in_names_and_synonyms_whatever_the_case():
    assert [line.split("  ")[0] for line in labels("--search", "PUPPY").stdout.splitlines()] == ["Bark"]
    found = {line.split("  ")[0] for line in labels("-s", "horn").stdout.splitlines()}
    assert {"Car horn", "Train horn", "Shofar"} <= found and "Cough" not in found


def test_json_is_for_programs():
    (entry,) = json.loads(labels("--format", "json", "--search", "coughing").stdout)
    assert entry == {
        "label": "Cough",
        "synonyms": ["coughing", "person coughing", "throat clearing"],
        "heard": True,
        "seen": False,
    }
    assert len(json.loads(labels("-f", "json").stdout)) == len(read_concepts(MINI_FOLDER / "concepts.csv"))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("hyena", "'hyena' is in no name or synonym, but a class of that name exists (seen only)."),
        ("loud dogs barking", "as a label it means 'Bark' (heard and seen)"),
        ("dog brak", "Similar names: 'dog bark'"),
    ],
)
def test_a_word_without_results_is_explained_on_stderr(word, said):
    result = labels("--search", word)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("ave-clip: ") and said in result.stderr
    assert labels("--search", word, "--format", "json").stdout == "[]\n"


def test_a_label_without_an_audio_class_is_seen_only():
    rows = [
        {"name": "Hyena", "synonyms": "", "audio_tags": "", "image_classes": "hyena"},
        {"name": "bark", "synonyms": "dog|puppy", "audio_tags": "Bark", "image_classes": "beagle"},
    ]
    found = known_labels(ConceptTable(rows, ["Bark"], ["hyena", "beagle"]))
    assert as_text(found) == "bark   heard and seen  dog, puppy\nHyena  seen only"
    assert [entry["heard"] for entry in json.loads(as_json(found))] == [True, False]


def test_an_unknown_label_is_refused_with_the_name_of_the_command():
    result = CliRunner().invoke(app, ["localize", "a.mp4", "--device", "cpu", "--labels", "qqqq"])
    text = " ".join(result.stderr.replace("│", " ").split())
    assert result.exit_code == 2 and "`ave-clip labels` lists those of the default model" in text


def test_the_command_does_not_import_torch():
    command = [sys.executable, "-X", "importtime", "-m", "ave_clip", "labels", "--search", "puppy"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert result.stdout.startswith("Bark ") and "ave_clip.label_list" in imported and "torch" not in imported
