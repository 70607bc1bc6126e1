"""Every script of the examples says what it reads, writes and takes."""

import importlib
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PATHS = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("maintenance/*.py")]
SCRIPTS = sorted(
    ".".join(path.relative_to(EXAMPLES).with_suffix("").parts)
    for path in PATHS
    if "argparse" in path.read_text(encoding="utf-8")
)


def test_the_stages_are_among_the_scripts():
    assert {"finetune_audioclip", "extract_features", "train_localizer", "evaluate_localizer"} <= set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_explains_itself(name, capsys):
    script = importlib.import_module(name)
    with pytest.raises(SystemExit) as stopped:
        script.main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert script.__doc__.split(".")[0].replace("\n", " ")[:40] in text
    assert "--help" in text and name in sys.modules
