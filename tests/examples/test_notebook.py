"""The tour runs from top to bottom in a fresh kernel, and what it shows committed is what it gives."""

import copy
import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (extra test)")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra test)")
pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra test)")
pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra viz)")

TOUR = Path(__file__).parents[2] / "examples" / "ave_clip_tour.ipynb"
MAX_BYTES = 400_000


def printed(notebook) -> list[str]:
    """What each cell prints; a kernel may send it in several pieces."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    texts = ["".join(output["text"] for output in outputs if output.get("name") == "stdout") for outputs in cells]
    return [text for text in texts if text]


def beginnings(notebook) -> list[str]:
    """How each printed line begins: the numbers that follow differ a little between processors."""
    return [line[:20] for text in printed(notebook) for line in text.splitlines()]


@pytest.fixture(scope="module")
def tour():
    return nbformat.read(TOUR, as_version=4)


@pytest.fixture(scope="module")
def executed(tour, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tour")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    resources = {"metadata": {"path": str(folder)}}
    notebook = copy.deepcopy(tour)
    return nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()


def test_the_tour_runs_and_finds_what_it_says(executed):
    found = printed(executed)
    assert found[0] == "2 to 7 s: Bark (0.99)\n"
    assert "\ndog {'heard'" in found[1]
    assert "viterbi       [(2.0, 7.0, 'Mossy frog')]" in found[3]
    assert "00:00:02,000 --> 00:00:07,000\nBark" in found[4]


def test_the_tour_measures_training_test_and_reference(executed):
    *models, reference = printed(executed)[5].splitlines()
    assert [line.split("  ")[0].split(" accuracy")[0].strip() for line in models] == [
        "mine, training clips",
        "mine, test clips",
        "ave-clip-tiny, test clips",
    ]
    assert reference.startswith("For comparison, localising nothing scores")


def test_the_tour_draws_every_image(executed):
    pictures = [
        cell
        for cell in executed.cells
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
    ]
    assert len(pictures) == 4


def test_the_committed_outputs_are_small_and_of_this_notebook(tour, executed):
    assert TOUR.stat().st_size < MAX_BYTES
    assert beginnings(tour) == beginnings(executed)


def test_the_committed_notebook_is_valid_and_without_traces_of_its_writer(tour):
    nbformat.validate(tour)
    text = TOUR.read_text(encoding="utf-8")
    assert "/tmp/" not in text and "/home/" not in text and "Traceback" not in text
