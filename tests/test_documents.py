"""The README and the guides are true: commands and snippets run and print what is shown, numbers have a source.

The commands of a page run in one folder, with small stand-ins for the files they name: synthetic clips for AVE and for
people's own videos, tiny random towers for AudioCLIP. `SHORTER` makes trainings short. What cannot run here says so on
the page by a comment that begins with "needs"; its arguments are parsed all the same.
"""

import configparser
import contextlib
import importlib
import io
import itertools
import json
import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from ave_clip.cli import app
from ave_clip.core.events import DECODERS
from ave_clip.data import generate_synthetic_ave
from ave_clip.outputs.formats import FORMATS
from tests.core.test_pipeline_zero_shot import save_tiny_audioclip
from tests.helpers.encoders import SAVERS
from tests.helpers.media import write_recording

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CARDS = ROOT / "model_cards"
SETUP = configparser.ConfigParser(interpolation=None)
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
REPOSITORY = SETUP["metadata"]["url"]
SHARED = Path(os.environ.get("AVE_CLIP_SHARED", ROOT.parent / "shared"))
PAGES = sorted(["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
SHORTER = {
    "finetune_audioclip": "--cpu --num_epochs 1 --max_steps 1 --batch_size 4 --num_frames_per_segment 1",
    "extract_features": "--cpu --num_frames_per_segment 1",
    "train_localizer": "--cpu --num_epochs 1 --max_steps 1 --batch_size 2",
    "evaluate_localizer": "--cpu --max_clips 1 --num_resamples 10",
    "cross_modality": "--cpu --num_frames_per_segment 1 --num_resamples 10",
    "localize_corpus": "--cpu",
    "retrieve": "--device cpu",
}
STAND_INS = {"https://example.org/zoo.webm": "zoo.webm"}


@dataclass
class Block:
    """A fenced block: what follows it as its output, if anything does."""

    language: str
    text: str
    output: str | None = None


def read_blocks(page: str) -> list[Block]:
    """The fenced blocks of a page. Text right behind code, or announced by one short word, is what the code prints."""
    content = (ROOT / page).read_text(encoding="utf-8")
    blocks = [
        Block(*match.groups()) for match in re.finditer(r"^```(\w*)\n(.*?)^```$", content, re.DOTALL | re.MULTILINE)
    ]
    for code, text in itertools.pairwise(blocks):
        between = content.split(code.text, 1)[1].split(text.text, 1)[0]
        words = re.sub(r"```\w*", "", between).strip()
        if code.language in ("python", "bash") and text.language == "text" and words in ("", "prints", "It ends with"):
            code.output = text.text
    return blocks


BLOCKS = {page: read_blocks(page) for page in PAGES}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """A folder with everything that the README's commands name and do not make themselves."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("examples", "src", "model_cards"):
        (folder / name).symlink_to(ROOT / name)
    generate_synthetic_ave(folder / "AVE_Dataset", num_videos=8, seed=5, num_workers=0, splits=(0.5, 0.25, 0.25))
    clips = sorted((folder / "AVE_Dataset" / "AVE").iterdir())
    for name in ("videos", "dogs", "media"):
        (folder / name).mkdir()
    for place, clip in zip(("clip.mp4", "holiday.mp4", "dogs/one.mp4", "quiet.mp4", "videos/one.mp4"), clips):
        shutil.copy(clip, folder / place)
    write_recording(folder / "zoo.webm", 2.0)
    write_recording(folder / "media" / "bell.wav", 1.0, picture=None)
    Image.fromarray(np.full((80, 90, 3), 200, np.uint8)).save(folder / "media" / "cat.jpg")
    save_tiny_audioclip(folder / "audioclip")
    for name in ("siglip", "clap"):
        SAVERS[name](folder / name)
    (folder / "ave-clip").symlink_to(ROOT / "src" / "ave_clip" / "assets" / "ave-clip-tiny")
    write_h5(folder / "h5", num_rows=len(clips))
    table = next(block.text for block in BLOCKS["docs/own_data.md"] if block.text.startswith("path,label"))
    (folder / "annotations.csv").write_text(table)
    return folder


@pytest.fixture
def world(files, tmp_path, monkeypatch) -> Path:
    """A copy of these files, as the current folder."""
    tmp_path = shutil.copytree(files, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return tmp_path


def write_h5(folder: Path, num_rows: int) -> None:
    """Features of other encoders in AVE's layout."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed (extra train)")
    folder.mkdir()
    draw = np.random.default_rng(0)
    for name, shape in {"visual_feature": (2, 2, 6), "audio_feature": (4,)}.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["avadataset"] = draw.normal(size=(num_rows, 10, *shape))


def run_python(code: str) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<snippet>", "exec"), {"__name__": "__main__"})
    return printed.getvalue()


def run_line(line: str) -> str:
    """One line of a bash block; returns what it printed."""
    line, _, comment = line.partition("   # ")
    only_parse = comment.startswith("needs")
    assert only_parse or comment in ("", "zero-shot"), f"a comment that is neither 'needs ...' nor known: {comment}"
    if line.startswith("python3 -m venv"):  # .ci/run runs these two as they stand
        line = line.rsplit(" && ", 1)[1].replace(".venv/bin/", "")
        only_parse = "pytest" in line
    line, _, target = line.partition(" > ")
    printed = "".join(run_command(command, only_parse) for command in line.split(" && "))
    if target:
        Path(target).write_text(printed)
    return printed


def run_command(command: str, only_parse: bool) -> str:
    words = [word for part in shlex.split(command) for word in expand(part)]
    name, arguments = words[0], words[1:]
    if name == "ave-clip":
        return run_cli(arguments, only_parse)
    if name == "pip":
        check_extras(arguments)
        return ""
    scripts = [word for word in words if word.startswith("examples/")]
    if not scripts or "space" in scripts[0]:
        assert only_parse
        return ""
    place = words.index(scripts[0])
    check_launcher(words[:place])
    return run_script(Path(scripts[0]).stem, words[place + 1 :], only_parse)


def expand(word: str) -> list[str]:
    """Files for a pattern, stand-ins for addresses."""
    return sorted(map(str, Path().glob(word))) if "*" in word else [STAND_INS.get(word, word)]


def run_cli(arguments: list[str], only_parse: bool) -> str:
    if only_parse:
        command = typer.main.get_command(app).commands[arguments[0]]
        command.make_context(arguments[0], arguments[1:])
        return ""
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{arguments}: {result.output} {result.exception!r}"
    return result.stdout


def run_script(name: str, arguments: list[str], only_parse: bool) -> str:
    module = importlib.import_module(name)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if only_parse:
            module.parse_args(arguments)
        elif name == "retrieve":  # files come last there
            module.main([*SHORTER[name].split(), *arguments])
        else:
            module.main([*arguments, *SHORTER[name].split()])
    return printed.getvalue()


def check_launcher(words: list[str]) -> None:
    """Launchers take these options; whether they start processes is tested where the scripts are."""
    known = {"python", "accelerate", "launch", "torchrun", "--multi_gpu", "--num_processes", "--nproc_per_node"}
    assert [word for word in words if word not in known and not word.isdigit()] == []


def check_extras(words: list[str]) -> None:
    assert any(EXTRA.search(word) for word in words) or "ave-clip" in words


def comparable(text: str) -> list[str]:
    """Words of an output; scores to one decimal, since processors round differently."""
    return [re.sub(r"^(\d\.\d)\d+$", r"\1", word) for word in text.split()]


RUNNABLE = ("bash", "python")


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.language in RUNNABLE for block in BLOCKS[page])])
def test_commands_and_snippets_run_and_print_what_the_page_shows(world, page, request, monkeypatch):
    if page == "docs/train.md":
        (world / "ave-clip").unlink()  # this page makes it
    if page == "docs/share.md":
        tiny_onnx = request.getfixturevalue("tiny_onnx")

        def copy_export(model, folder, **options):  # exporting takes long, and tests/checkpoints/test_onnx.py does it
            assert model == "ave-clip-tiny"
            shutil.copytree(tiny_onnx, folder)

        monkeypatch.setattr("ave_clip.checkpoints.onnx_export.export_onnx", copy_export)
    for block in BLOCKS[page]:
        if block.language not in RUNNABLE:
            continue
        printed = (
            run_python(block.text) if block.language == "python" else "".join(map(run_line, block.text.splitlines()))
        )
        if block.output is not None:
            assert comparable(printed) == comparable(block.output), block.text


def test_pages_show_outputs_to_compare_with():
    assert sum(block.output is not None for blocks in BLOCKS.values() for block in blocks) >= 6


def test_the_stages_of_the_readme_are_those_of_the_guide():
    commands = [line for block in BLOCKS["docs/train.md"] for line in block.text.splitlines()]
    stages = re.findall(r"^\| [^|]* \| `([^`]*examples/[^`]*)` \|", README, flags=re.MULTILINE)
    assert len(stages) == 4 and set(stages) <= set(commands)


def test_one_command_installs_and_localizes_and_one_tests():
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv .venv && ")]
    assert len(commands) == 2 and "ave-clip localize" in commands[0] and "pytest" in commands[1]
    assert next(line for line in README.splitlines() if "pytest" in line) == commands[1]  # what .ci/run looks for


EXTRA = re.compile(r"(?:\.|ave-clip)\[([\w,]+)\]")


@pytest.mark.parametrize("page", PAGES)
def test_extras_that_a_page_names_exist(page):
    named = {extra for match in EXTRA.findall((ROOT / page).read_text(encoding="utf-8")) for extra in match.split(",")}
    assert named <= set(SETUP["options.extras_require"])


@pytest.fixture
def tables(world):
    """The script that fills the tables of the documents, as a module."""
    return importlib.import_module("maintenance.document_tables")


def test_tables_of_results_are_those_of_the_results_files(world, tables):
    pages = {"--models_page": Path("docs", "models.md"), "--benchmarks_page": Path("docs", "benchmarks.md")}
    copies = {option: shutil.copy(ROOT / page, world / f"{option}.md") for option, page in pages.items()}
    importlib.import_module("maintenance.document_tables").main(
        [str(word) for pair in copies.items() for word in pair]
    )
    for option, page in pages.items():
        found, expected = (path.read_text(encoding="utf-8") for path in (Path(copies[option]), ROOT / page))
        assert found == expected, "run python examples/maintenance/document_tables.py"


def test_a_block_without_markers_is_refused(tables):
    assert tables.replace_block("a <!-- x: begin -->old<!-- x: end --> b", "x", "new") == (
        "a <!-- x: begin -->\nnew\n<!-- x: end --> b"
    )
    with pytest.raises(ValueError, match="Found 0 blocks"):
        tables.replace_block("no markers", "x", "new")


def test_benchmarks_become_tables_that_name_command_and_machine(world, tables):
    rows = [
        {"row": "audio batch 10", "milliseconds": 12.345, "ratio": 2.5, "max_difference": 1e-6, "clips": 3},
        {"row": "import", "ratio": 1.0},
    ]
    content = {"rows": rows, "command": "examples/benchmarks/x.py", "versions": {"torch": "2.14"}}
    (world / "x.json").write_text(json.dumps({**content, "machine": {"processor": "x86_64", "threads": 2}}))
    first, second, where = tables.speed_tables(world / "x.json").split("\n\n")
    assert first.splitlines()[0] == "| what | ms | times as fast | largest difference | clips |"
    assert first.splitlines()[2:] == ["| audio batch 10 | 12.35 | 2.5 | 1e-06 | 3 |"]
    assert second.splitlines()[2:] == ["| import | 1 |"]
    assert where == "`python examples/benchmarks/x.py` on x86_64, 2 threads, torch 2.14."


def written_numbers(value) -> set[str]:
    """Every number of a results file as a text would write it: a percentage with one decimal."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return set().union(*map(written_numbers, value))
    return {f"{100 * value:.1f}"} if isinstance(value, float) else set()


@pytest.mark.parametrize("page", ["docs/models.md", "docs/overlapping.md", "model_cards/ave-clip-tiny.md"])
def test_percentages_come_from_the_results_files(page):
    known = set().union(*(written_numbers(json.loads(path.read_text())) for path in CARDS.glob("results/*.json")))
    stated = re.findall(r"(\d+\.\d) %", (ROOT / page).read_text(encoding="utf-8"))
    of_the_paper = {"83.7"}
    assert len(stated) >= 10
    assert [number for number in stated if number not in known | of_the_paper] == []


def test_accuracies_of_others_are_those_that_were_looked_up():
    notes = SHARED / "design" / "peers.md"
    if not notes.is_file():
        pytest.skip(f"AVE_CLIP_SHARED holds no notes about other code: no {notes}")
    known = notes.read_text(encoding="utf-8").splitlines()
    table = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[?([\w-]+).*\| (\d+\.\d+)[^|]*\| ([^|]*)\|$", table, flags=re.MULTILINE)
    assert len(rows) == 7
    for name, accuracy, source in rows:
        assert source.strip(), f"{name}: no source for {accuracy}"
        assert any(line.startswith("|") and name in line.split("|")[1] and accuracy in line for line in known), name


TARGETS = sorted(set(re.findall(r'(?:\]\(|src="|srcset=")([^)"#][^)"]*)[)"]', README)))


def test_links_and_images_of_the_readme_work_outside_the_repository():
    """On PyPI a relative link leads nowhere, and a picture is shown only from an address of its bytes."""
    assert [target for target in TARGETS if not target.startswith("https://")] == []
    pictures = [target for target in TARGETS if target.endswith((".png", ".jpg", ".svg"))]
    assert pictures and all(target.startswith(f"{REPOSITORY}/raw/main/") for target in pictures)


@pytest.mark.parametrize("target", [target for target in TARGETS if target.startswith(REPOSITORY)])
def test_links_into_the_repository_lead_to_a_file(target):
    path = re.fullmatch(rf"{re.escape(REPOSITORY)}/(?:raw|blob|tree)/main/([^#]+)(#.*)?", target).group(1)
    assert (ROOT / path).exists()


def test_documents_agree_on_the_address_of_the_repository():
    for path in ("CITATION.cff", "docs/benchmarks.md"):
        found = set(re.findall(r"https://github\.com/[\w-]+/ave-clip\b", (ROOT / path).read_text(encoding="utf-8")))
        assert found == {REPOSITORY}


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([\w-]+)\)", README))))
def test_links_within_the_readme_lead_to_a_heading(anchor):
    headings = re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
    assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_images_are_drawn_by_the_script_beside_them(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra viz)")
    importlib.import_module("maintenance.draw_pictures").main(["--output_dir", str(tmp_path)])
    committed = sorted((ROOT / "examples" / "pictures").glob("*.png"))
    assert [path.name for path in committed] == sorted(path.name for path in tmp_path.iterdir())
    for path in committed:
        with Image.open(path) as old, Image.open(tmp_path / path.name) as new:
            assert old.size == new.size and old.mode == new.mode
            difference = np.abs(np.asarray(old, float) - np.asarray(new, float)).mean()
        assert difference < 8, f"{path.name} shows something else: run python examples/maintenance/draw_pictures.py"


def test_the_guide_lists_every_format_and_decoder():
    guide = (ROOT / "docs" / "localize.md").read_text(encoding="utf-8")
    formats, decoders = (
        re.findall(r"(?m)^\| `(.+)", guide.split(f"### {title}\n")[1].split("\n###")[0])
        for title in ("Formats", "Decoders")
    )
    assert formats[1:] == [f"{name}` | `{entry.suffix}` | {entry.use} |" for name, entry in FORMATS.items()]
    assert decoders == [f"{name}` | {entry.summary} |" for name, entry in DECODERS.items()]


def test_the_quick_start_finds_the_event_and_draws_it(world, capsys):
    events = importlib.import_module("quickstart").main(["--plot", "my.html"])
    assert [(event["start"], event["end"], event["label"]) for event in events] == [(2.0, 7.0, "Bark")]
    assert "2.0 to 7.0 s: Bark" in capsys.readouterr().out
    assert "Bark" in Path("my.html").read_text(encoding="utf-8")
