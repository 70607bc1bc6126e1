"""`train_tiny.py`: the recipe is what the scripts take, and one command makes, measures and repeats the checkpoint."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from maintenance.project_cards import FRESH_SEED

from ave_clip import AVEClipConfig, AVEClipForLocalization
from ave_clip.core.categories import labels_with_background
from ave_clip.data import generate_synthetic_ave
from ave_clip.training.arguments import parse_overrides
from ave_clip.training.checkpoints import build_localizer, load_audioclip

EXAMPLES = Path(__file__).parents[3] / "examples"
STAGES = {1: "finetune_audioclip", 2: "extract_features", 3: "train_localizer"}


@pytest.fixture(scope="module")
def tiny():
    """The script as a module; those that it runs are its attributes."""
    from maintenance import train_tiny

    return train_tiny


def parse_stage(tiny, stage: int, *arguments: str):
    args = tiny.parse_args(["--output_dir", "x", *arguments])
    paths = {"model": "m", "data_dir": "d"} if stage < 3 else {"model": "m", "features_dir": "f"}
    script = getattr(tiny, STAGES[stage])
    return script.parse_args(tiny.stage_arguments(args, stage, output_dir="o", **paths))


@pytest.mark.parametrize("stage", STAGES)
def test_every_setting_of_the_recipe_reaches_its_stage_which_goes_on_where_it_stopped(tiny, stage):
    parsed = parse_stage(tiny, stage)
    file = yaml.safe_load((EXAMPLES / "configs" / "tiny" / f"stage{stage}.yaml").read_text())
    for key in file.keys() - {"localizer"}:
        assert getattr(parsed, key) == file[key]
    if stage == 3:
        assert parse_overrides(parsed.localizer, AVEClipConfig) == file["localizer"]
    assert parsed.resume


def test_the_checkpoint_of_the_recipe_has_less_than_8_megabytes(tiny):
    encoder = load_audioclip(EXAMPLES / "configs" / "tiny" / "audioclip.json")
    overrides = parse_overrides(parse_stage(tiny, 3).localizer, AVEClipConfig)
    localizer = build_localizer(encoder, labels_with_background(map(str, range(16))), overrides)
    assert sum(tensor.numel() * tensor.element_size() for tensor in localizer.state_dict().values()) <= 8_000_000


def test_other_clips_or_another_seed_have_another_work_folder(tiny):
    choices = [[], ["--num_videos", "24"], ["--data_seed", "1"], ["--seed", "1"]]
    folders = [tiny.work_folder(tiny.parse_args(["--output_dir", "x", *choice])) for choice in choices]
    assert folders[0] == Path("x-work/clips-1900-seed-0-training-seed-0")
    assert len(set(folders)) == 4


def test_clips_of_another_seed_or_number_are_refused(tiny, tmp_path):
    generate_synthetic_ave(tmp_path / "clips", num_videos=1, seed=3, num_workers=0, splits=(0, 0, 1))
    tiny.make_clips(tmp_path / "clips", 1, 3, (0, 0, 1))
    with pytest.raises(ValueError, match=r"contains 1 clips of seed 3.*but 1 of seed 4"):
        tiny.make_clips(tmp_path / "clips", 1, 4, (0, 0, 1))
    with pytest.raises(ValueError, match="but 2 of seed 3"):
        tiny.make_clips(tmp_path / "clips", 2, 3, (0, 0, 1))


@pytest.mark.parametrize(
    "arguments", [["--seeds", "0"], ["--num_fresh", "0"], ["--data_seed", str(FRESH_SEED)]], ids=lambda one: one[0]
)
def test_what_cannot_give_a_measured_checkpoint_is_refused(tiny, arguments, capsys):
    with pytest.raises(SystemExit):
        tiny.parse_args(["--output_dir", "x", *arguments])
    assert arguments[0] in capsys.readouterr().err


def test_a_results_file_names_the_script_that_made_it(tiny):
    before = sys.argv[0]
    with tiny.called_as(tiny.evaluate_localizer):
        assert sys.argv[0] == "examples/evaluate_localizer.py"
    assert sys.argv[0] == before


@pytest.mark.slow
def test_the_tiny_checkpoint_comes_out_of_one_command_and_a_second_run_repeats_nothing(tiny, tmp_path):
    output = tmp_path / "tiny"
    sizes = ["--num_videos", "24", "--num_fresh", "3", "--num_epochs", "1", "--max_steps", "1", "--seeds", "2"]
    arguments = ["--output_dir", str(output), *sizes, "--cpu"]
    results = tiny.main(arguments)
    files = ["config.json", "model.safetensors", "processor_config.json", "results", "results.json"]
    assert sorted(path.name for path in output.iterdir()) == files
    assert sorted(path.name for path in (output / "results").iterdir()) == [
        "tiny-fresh-seed0.json",
        "tiny-fresh-seed1.json",
        "tiny.json",
    ]
    written = json.loads((output / "results.json").read_text())["results"]
    assert set(written) == {
        *("stage1", "stage3", "stage3_seed1", "no_audio", "no_video"),
        *("test", "fresh", "fresh_summary"),
    }
    fresh = [results["fresh"][seed]["merge"]["segment_accuracy"] for seed in (0, 1)]
    assert results["fresh"][0]["merge"]["num_videos"] == 3
    assert written["fresh_summary"]["metrics"]["merge"]["segment_accuracy"]["mean"] == pytest.approx(sum(fresh) / 2)
    measured = json.loads((output / "results" / "tiny-fresh-seed1.json").read_text())
    assert measured["command"].startswith("examples/evaluate_localizer.py --model")
    assert measured["decoders"]["merge"]["segment_accuracy"] == fresh[1]
    assert str(tmp_path) not in (output / "config.json").read_text()
    assert AVEClipForLocalization.from_pretrained(output).config.min_event_segments == 1
    work = tiny.work_folder(tiny.parse_args(arguments))
    kept = {path: path.stat().st_mtime_ns for path in work.rglob("*.safetensors") if path.is_file()}
    again = tiny.main(arguments)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert again["fresh"][1]["merge"]["segment_accuracy"] == fresh[1]
