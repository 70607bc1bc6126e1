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
RESULTS = ROOT / "src/ave_clip/assets/ave-clip-tiny/results.json"


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


def test_numbers_of_the_results_table_are_those_of_the_results_file():
    results = json.loads(RESULTS.read_text())
    table = README.split("## What ave-clip-tiny reaches")[1].split("## ")[0]
    numbers = re.findall(r"\d+\.\d(?= %)|0\.\d\d\d", table)
    assert numbers
    flat = set()

    def collect(value) -> None:
        if isinstance(value, dict):
            for entry in value.values():
                collect(entry)
        elif isinstance(value, list):
            for entry in value:
                collect(entry)
        elif isinstance(value, float):
            flat.update({f"{100 * value:.1f}", f"{value:.3f}"})

    collect(results)
    assert [number for number in numbers if number not in flat] == []


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
