"""The README is true: its Python runs and prints what stands below it, its numbers and links have a source."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARDS = ROOT / "model_cards"


def python_examples() -> list[tuple[str, str]]:
    """Every Python block with the text block that follows it."""
    pattern = r"```python\n(.*?)```\s*(?:prints\s*)?```text\n(.*?)```"
    return re.findall(pattern, README, flags=re.DOTALL)


def comparable(text: str) -> list[str]:
    """Words of an output; scores to one decimal, since processors round differently."""
    return [re.sub(r"^(\d\.\d)\d+$", r"\1", word) for word in text.split()]


@pytest.mark.parametrize(("code", "expected"), python_examples())
def test_python_of_the_readme_prints_what_the_readme_says(code, expected):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert comparable(result.stdout) == comparable(expected)


def test_the_readme_has_both_python_examples_and_both_commands():
    assert len(python_examples()) == 2
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv .venv && ")]
    assert len(commands) == 2 and "ave-clip localize" in commands[0] and "pytest" in commands[1]


def written_numbers(value) -> set[str]:
    """Every number of a results file as a text would write it: a percentage with one decimal."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*map(written_numbers, value))
    return {f"{100 * value:.1f}"} if isinstance(value, float) else set()


@pytest.mark.parametrize("page", ["README.md", "model_cards/ave-clip-tiny.md"])
def test_percentages_come_from_the_results_files(page):
    known = set().union(*(written_numbers(json.loads(path.read_text())) for path in CARDS.glob("results/*.json")))
    stated = re.findall(r"(\d+\.\d) %", (ROOT / page).read_text(encoding="utf-8"))
    of_the_paper = {"83.7"}
    assert len(stated) >= 10
    assert [number for number in stated if number not in known | of_the_paper] == []


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http|#)[^)]+)\)", README))))
def test_links_of_the_readme_lead_somewhere(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("script", sorted(set(re.findall(r"examples/(\w+\.py)", README))))
def test_scripts_of_the_readme_take_the_options_it_shows(script):
    """Every option shown after a script's name is one it has."""
    shown = set()
    for line in README.splitlines():
        if f"examples/{script}" in line:
            shown |= set(re.findall(r"--(\w+)", line.split(f"examples/{script}")[1]))
    source = (ROOT / "examples" / script).read_text() + (ROOT / "src/ave_clip/training/arguments.py").read_text()
    assert [option for option in shown if f'"--{option}"' not in source] == []
