"""The paper's tables: their files, what is measured of predictions, and a run that survives being killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from ave_clip import AVEClipConfig, AVEClipForLocalization
from ave_clip.core.configuration_ave_clip import PRESETS
from ave_clip.data import generate_synthetic_ave
from ave_clip.training.arguments import parse_overrides, write_json
from ave_clip.training.features import FeatureStoreError
from tests.helpers.ave_files import SPLITS, write_array, write_ave, write_orders
from tests.helpers.models import TINY_FOLDER, tiny_localizer, tiny_processor

EXAMPLES = Path(__file__).parents[2] / "examples"
CARDS = Path(__file__).parents[2] / "model_cards"
# The accuracies of the paper, in the order in which it prints them.
PAPER = {
    2: [81.1, 83.7, 79.3],
    3: [77.8, 76.8, 82.0, 82.5, 83.2, 83.7],
    4: [78.1, 79.3, 81.2, 79.4, 78.5, 79.1, 81.6, 79.2, 79.0, 79.8, 81.6, 79.7],
    5: [81.6, 82.4, 82.7, 82.1, 82.5, 80.6, 81.2, 83.2, 82.8, 82.9, 83.0, 83.7, 83.3],
    6: [83.7, 83.1, 83.7, 83.2, 83.6],
    7: [83.2, 83.5, 83.7, 82.9, 82.3],
}
STAGES = {
    "stage1": ("finetune_audioclip", ["--model", "m", "--data_dir", "d", "--output_dir", "o"]),
    "stage2": ("extract_features", ["--model", "m", "--data_dir", "d", "--output_dir", "o"]),
    "stage3": ("train_localizer", ["--features_dir", "f"]),
    "stage3_paper": ("train_localizer", ["--features_dir", "f"]),
    "stage3_weak": ("train_localizer", ["--features_dir", "f"]),
}
A, B, NOTHING = 0, 1, 2


@pytest.fixture(scope="module")
def ablations():
    import run_ablations

    return run_ablations


@pytest.fixture(scope="module")
def tables():
    from maintenance import ablation_tables

    return ablation_tables


# ── the files ──


@pytest.mark.parametrize("number", PAPER)
def test_a_table_contains_every_number_of_the_paper(tables, number):
    table = tables.load_table(number)
    assert table.number == number
    assert [row.paper for row in table.rows] == PAPER[number]


@pytest.mark.parametrize("number", PAPER)
def test_every_row_is_a_network_that_can_be_built(tables, number):
    for row in tables.load_table(number).rows:
        config = AVEClipConfig(**row.localizer)
        assert {name: getattr(config, name) for name in row.localizer} == {
            name: tuple(value) if isinstance(value, list) else value for name, value in row.localizer.items()
        }


@pytest.mark.parametrize("number", PAPER)
def test_every_finding_is_what_the_paper_measured(tables, number):
    table = tables.load_table(number)
    paper = {row.id: row.paper for row in table.rows}
    assert all(paper[finding.better] > paper[finding.worse] for finding in table.findings)


def test_only_two_rows_are_never_run(tables):
    rows = [row for number in PAPER for row in tables.load_table(number).rows]
    assert [row.id for row in rows if row.not_run] == ["psp", "av-transformer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"localizer": {"window_size": [3]}}, r"'x' sets \['window_size'\]"),
        ({"features": "vgg"}, "features 'vgg'"),
        ({"name": ""}, "needs a `name`"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_a_row_that_means_nothing_is_refused(tables, change, message):
    with pytest.raises(ValueError, match=message):
        tables.Row(**{"id": "x", "name": "X", "paper": 1.0, **change})


def test_a_table_file_with_an_unknown_word_or_row_is_refused(tables, tmp_path):
    content = yaml.safe_load((EXAMPLES / "configs" / "table7.yaml").read_text())
    (tmp_path / "table7.yaml").write_text(yaml.safe_dump({**content, "reference": "w9"}))
    with pytest.raises(ValueError, match=r"names the rows \['w9'\]"):
        tables.load_table(7, tmp_path)
    (tmp_path / "table7.yaml").write_text(yaml.safe_dump({**content, "colour": "red"}))
    with pytest.raises(ValueError, match=r"is no table: .*colour"):
        tables.load_table(7, tmp_path)


@pytest.mark.parametrize("name", STAGES)
def test_the_settings_for_ave_are_taken_by_their_script(name):
    module, arguments = STAGES[name]
    path = EXAMPLES / "configs" / "ave" / f"{name}.yaml"
    parsed = __import__(module).parse_args(["--config", str(path), *arguments])
    file = yaml.safe_load(path.read_text())
    for key in file.keys() - {"localizer"}:
        assert getattr(parsed, key) == file[key]
    if "localizer" in file:
        assert parse_overrides(parsed.localizer, AVEClipConfig) == file["localizer"]


def test_the_paper_preset_and_its_file_are_the_same_network():
    file = yaml.safe_load((EXAMPLES / "configs" / "ave" / "stage3_paper.yaml").read_text())
    assert AVEClipConfig(**PRESETS[file["preset"]], **file["localizer"]).to_dict() == AVEClipConfig.paper().to_dict()


# ── from predictions to numbers ──


def sure_of(*labels: int) -> np.ndarray:
    return np.eye(3)[list(labels)] * 0.97 + 0.01


def one_seed(*clips: list[int], true: list[list[int]]):
    return [sure_of(*clip) for clip in clips], [np.array(clip) for clip in true], list(range(len(true)))


def test_a_row_is_decoded_with_its_own_window_and_measured_over_its_seeds(tables):
    true = [[A, A, A, A], [NOTHING, B, B, B]]
    runs = [
        one_seed([A, A, B, A], [NOTHING, B, B, B], true=true),
        one_seed([A, A, A, A], [NOTHING, B, B, A], true=true),
    ]
    plain, merged = (tables.measure(tables.count_seeds(runs, window)) for window in (1, 2))
    assert plain["per_seed"] == [7 / 8, 7 / 8]
    assert merged["per_seed"] == [7 / 8, 7 / 8]  # the lone B and A go, and so does the lone background
    assert merged["mean"]["background_recall"] == 0.0
    assert plain["mean"]["background_recall"] == 1.0
    assert plain["deviation"]["segment_accuracy"] == 0.0
    assert plain["interval"] == [7 / 8, 7 / 8]  # over both seeds, each video has one wrong of eight


def test_the_deviation_is_that_of_a_sample_and_missing_for_one_seed(tables):
    true = [[A, A, A, A]]
    runs = [one_seed([A, A, A, A], true=true), one_seed([A, A, A, B], true=true)]
    assert tables.measure(tables.count_seeds(runs, 1))["deviation"]["segment_accuracy"] == pytest.approx(
        0.25 / np.sqrt(2)
    )
    assert tables.measure(tables.count_seeds(runs[:1], 1))["deviation"]["segment_accuracy"] is None


def test_seeds_measured_on_different_clips_are_refused(tables):
    runs = [one_seed([A, A], true=[[A, A]]), one_seed([A, A], [B, B], true=[[A, A], [B, B]])]
    with pytest.raises(ValueError, match=r"different clips \(1 and 2\)"):
        tables.count_seeds(runs, 1)


def test_a_difference_is_paired_by_video(tables):
    true = [[A, A]] * 40
    better = tables.count_seeds([one_seed(*[[A, A]] * 40, true=true)], 1)
    worse = tables.count_seeds([one_seed(*[[A, B]] * 40, true=true)], 1)
    compared = tables.difference(better, worse)
    # It is the same in each video, so it has no spread.
    assert compared == {"mean": 0.5, "interval": [0.5, 0.5], "per_seed": [0.5], "num_videos": 40}
    assert tables.difference(worse, better)["mean"] == -0.5


def test_rows_are_compared_on_the_videos_they_share(tables):
    first = tables.count_seeds([([sure_of(A), sure_of(B)], [np.array([A]), np.array([A])], [4, 7])], 1)
    second = tables.count_seeds([([sure_of(B), sure_of(B)], [np.array([A]), np.array([A])], [7, 9])], 1)
    assert tables.difference(first, second)["mean"] == 0.0  # both are wrong on video 7
    assert tables.difference(first, second)["num_videos"] == 1
    with pytest.raises(ValueError, match="no test video in common"):
        tables.difference(first, tables.Counts(np.array([1, 2]), second.values))


@pytest.mark.parametrize(
    ("interval", "per_seed", "verdict"),
    [
        ([0.01, 0.03], [0.01, 0.03], "holds"),
        ([-0.03, -0.01], [-0.02, -0.02], "reversed"),
        ([-0.01, 0.03], [0.01, 0.01], "not told apart"),
        ([0.01, 0.03], [0.06, -0.01], "not told apart"),
    ],
)
def test_a_difference_counts_only_beyond_its_interval_and_with_one_sign(tables, interval, per_seed, verdict):
    assert tables.judge({"interval": interval, "per_seed": per_seed}) == verdict


@pytest.fixture(scope="module")
def measured_table(tables):
    true = [[NOTHING, A, A, A, A, NOTHING], [B, B, B, B, NOTHING, B]] * 10
    runs = [one_seed(*[[NOTHING, A, A, B, A, NOTHING], [B, B, B, B, NOTHING, B]] * 10, true=true)]
    table = tables.load_table(7)
    return tables.measure_table(table, {row.id: runs for row in table.rows if row.id != "w5"} | {"w5": "no data"})


def test_post_processing_rows_decode_the_same_predictions(measured_table):
    rows = {row["id"]: row for row in measured_table["rows"]}
    accuracy = {name: row["measured"]["mean"]["segment_accuracy"] for name, row in rows.items() if name != "w5"}
    assert accuracy["w1"] == 11 / 12
    assert accuracy["w2"] == pytest.approx(9 / 12)  # the lone B goes, and so do the lone seconds of background
    assert all(rows[name]["before_post_processing"]["mean"]["segment_accuracy"] == 11 / 12 for name in accuracy)
    assert rows["w1"]["difference"]["mean"] == pytest.approx(accuracy["w1"] - accuracy["w3"])
    assert rows["w5"]["reason"] == "no data"


def test_the_table_says_what_perfect_labels_would_reach(measured_table):
    clips = measured_table["test_clips"]
    assert clips["num_videos"] == 20
    assert clips["ceilings"]["1"] == 1.0
    assert clips["ceilings"]["2"] == pytest.approx(9 / 12)
    assert clips["baselines"]["all_background"] == pytest.approx(3 / 12)


def test_the_card_shows_what_was_run_and_says_what_was_not(tables, measured_table):
    about = {"data": {"data": "made-up clips"}, "seeds": 1, "command": "x.py"}
    about |= {"settings": {"num_epochs": 2}, "about_settings": "Few epochs."}
    card = tables.render_card([{**measured_table, **about, "versions": {"torch": "2"}, "machine": {"threads": 1}}])
    assert "| W = 1s | 83.2 | 91.7 |" in card
    assert "| W = 5s | 82.3 | not run: no data |" in card
    assert "- W = 3 is better than W = 5. (Table 7; the paper: +1.4)" in card.split("**Was not run here**")[1]
    assert "- made-up clips.\n\nFew epochs.\n" in card
    assert "num_epochs: 2" in card


def test_a_measure_that_is_undefined_is_shown_as_such(tables, measured_table, tmp_path):
    true = [[A, A, A, A]]  # no background, so there is no recall of it
    runs = [one_seed([A, A, A, B], true=true)]
    table = tables.load_table(7)
    write_json(tmp_path / "table7.json", tables.measure_table(table, {row.id: runs for row in table.rows}))
    text = tables.render_table(json.loads((tmp_path / "table7.json").read_text()))
    assert "| W = 1s | 83.2 | 75.0 |" in text
    assert text.splitlines()[4].endswith("| 75.0 | - | - | 66.7 |")


def test_a_table_with_columns_is_shown_as_the_paper_prints_it(tables):
    table = tables.load_table(5)
    content = tables.measure_table(table, {row.id: "nothing was trained" for row in table.rows})
    text = tables.render_table(content)
    assert "| paper / ours | shared weights | independent weights |" in text
    assert "| 10s | - | 81.6 / not run |" in text
    assert "| 10s + 5s | 82.4 / not run | 82.7 / not run |" in text


@pytest.mark.skipif(not (CARDS / "results" / "ablations").exists(), reason="no ablations have been run")
def test_the_committed_card_is_made_from_the_committed_results(ablations):
    expected = ablations.card_text(CARDS / "results" / "ablations")
    assert (CARDS / "ablations.md").read_text(encoding="utf-8") == expected


def test_remarks_on_the_results_go_into_their_card(ablations, tables, measured_table, tmp_path):
    about = {
        "data": {},
        "seeds": 1,
        "settings": {},
        "about_settings": "",
        "command": "",
        "versions": {},
        "machine": {},
    }
    write_json(tmp_path / "table7.json", {**measured_table, **about})
    plain = ablations.card_text(tmp_path)
    (tmp_path / "remarks.md").write_text("Few clips.\n")
    with_remarks = ablations.card_text(tmp_path)
    assert "Remarks" not in plain
    assert with_remarks.replace("## Remarks\n\nFew clips.\n\n", "") == plain


# ── which trainings there are ──


def plan(ablations, *arguments: str, fingerprint: str = "f"):
    args = ablations.parse_args(["--seeds", "1", *arguments])
    source = ablations.Source({"model": "m", "features_dir": "d"}, fingerprint, "clips")
    tables = [ablations.load_table(number) for number in args.table]
    return ablations.plan_tables(args, tables, {"data": source, "frozen": "none", "h5": "none"})


def test_a_network_that_is_in_several_tables_is_trained_once(ablations):
    plans = plan(ablations)
    folders = {place: one[0].folder for place, one in plans.items() if not isinstance(one, str)}
    complete = [(2, "fine-tuned"), (3, "complete"), (3, "egta"), (5, "10-5-3-2-shared"), (6, "supervised")]
    complete += [(6, "refiner-10"), *((7, f"w{window}") for window in range(1, 6))]
    assert len({folders[place] for place in complete}) == 1
    assert folders[4, "both-10"] == folders[5, "10-independent"]
    assert len(set(folders.values())) == 29
    assert plans[2, "vgg"] == "none"
    assert plans[3, "psp"].startswith("another paper's network")


def test_other_features_or_settings_are_other_trainings(ablations, tmp_path):
    (tmp_path / "other.yaml").write_text("num_epochs: 3\nlocalizer: {hidden_size: 64}\n")
    arguments = [["--table", "7"], ["--table", "7", "--stage3_config", str(tmp_path / "other.yaml")]]
    plans = [plan(ablations, *one)[7, "w1"][0] for one in arguments]
    plans.append(plan(ablations, "--table", "7", fingerprint="g")[7, "w1"][0])
    assert len({one.folder for one in plans}) == 3
    assert plans[1].settings["localizer"] == {"hidden_size": 64}
    assert plans[0].settings["features_dir"] == "d"


def test_each_seed_is_a_training_of_its_own(ablations):
    trainings = plan(ablations, "--table", "7", "--seeds", "3", "--seed", "4")[7, "w1"]
    assert [one.seed for one in trainings] == [4, 5, 6]
    assert [one.folder.name for one in trainings] == ["seed-4", "seed-5", "seed-6"]


@pytest.mark.parametrize(
    "arguments", [["--seeds", "0"], ["--processes", "0"], ["--frozen_features", "f"], ["--table", "8"]]
)
def test_arguments_that_cannot_be_meant_are_refused(ablations, arguments, capsys):
    with pytest.raises(SystemExit):
        ablations.parse_args(arguments)
    assert arguments[0] in capsys.readouterr().err


# ── a run ──


@pytest.fixture(scope="module")
def run_arguments(tmp_path_factory) -> list[str]:
    """A command that trains four tiny networks for two epochs on made-up clips, in AVE's layout."""
    folder = tmp_path_factory.mktemp("ablations")
    generate_synthetic_ave(folder / "clips", num_videos=8, seed=5, num_workers=0, splits=(0.5, 0.25, 0.25))
    tiny_localizer().save_pretrained(folder / "model")
    tiny_processor().feature_extractor.save_pretrained(folder / "model")
    localizer = {"hidden_size": 8, "agva_hidden_size": 8, "agva_attention_size": 4}
    (folder / "stage3.yaml").write_text(
        yaml.safe_dump({"preset": "paper", "localizer": localizer, "num_epochs": 2, "batch_size": 4})
    )
    options = {"data": "clips", "model": "model", "stage3_config": "stage3.yaml", "output_dir": "out"}
    paths = [text for name, value in options.items() for text in (f"--{name}", str(folder / value))]
    return [*paths, "--table", "3", "7", "--seeds", "2", "--processes", "1", "--cpu"]


def start(arguments: list[str]) -> subprocess.Popen:
    command = [sys.executable, str(EXAMPLES / "run_ablations.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def children(pid: int) -> list[int]:
    listing = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [int(line) for line in listing.split()]


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for(condition, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc to see processes end")
def test_a_killed_run_leaves_no_process_and_goes_on_without_training_a_finished_row_again(run_arguments, ablations):
    output = Path(ablations.parse_args(run_arguments).output_dir)
    process = start(run_arguments)
    assert wait_for(lambda: list(output.glob("runs/*/seed-*/results.json")) or process.poll() is not None)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert workers
    assert wait_for(lambda: not any(map(is_alive, workers)), 20)
    finished = {path: path.stat().st_mtime_ns for path in output.glob("runs/*/seed-*/results.json")}
    assert 1 <= len(finished) < 6
    assert not (output / "table3.json").exists()

    again = start(run_arguments)
    log = again.communicate()[1]
    assert again.returncode == 0, log
    assert f"6 trainings, {len(finished)} of them finished already" in log
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    trained = sorted(output.glob("runs/*/seed-*"))
    assert len(trained) == 6
    for folder in trained:
        assert sorted(path.name for path in folder.iterdir()) == [
            "predictions.safetensors",
            "results.json",
            "settings.yaml",
        ]
    check_results(output)


def check_results(output: Path) -> None:
    """The tables say what the trainings measured on their test split."""
    table = json.loads((output / "table3.json").read_text())
    rows = {row["id"]: row for row in table["rows"]}
    assert table["test_clips"]["num_videos"] == 2
    for name, decoder in (("egta", "none"), ("complete", "merge")):
        wanted = []
        for path in sorted(output.glob("runs/*/seed-*/results.json")):
            settings = yaml.safe_load((path.parent / "settings.yaml").read_text())
            if "use_event_attention" not in settings["localizer"]:
                wanted.append(json.loads(path.read_text())["test"][decoder]["segment_accuracy"])
        assert rows[name]["measured"]["per_seed"] == pytest.approx(wanted)
    assert "| W = 3s | 83.7 |" in (output / "ablations.md").read_text()


@pytest.mark.parametrize("killed_before_deletion", [True, False])
def test_weights_of_a_finished_training_are_deleted_only_if_they_were_not_to_be_kept(
    run_arguments, ablations, tmp_path, killed_before_deletion
):
    finished = ablations.Training(tmp_path / "seed-0", {}, 0, (), False)
    (finished.folder / "state").mkdir(parents=True)
    for name in ("model.safetensors", ablations.SETTINGS, ablations.RESULTS, ablations.PREDICTIONS):
        (finished.folder / name).touch()
    if killed_before_deletion:
        (finished.folder / ablations.DELETE_CHECKPOINT).touch()
    assert ablations.train_all(ablations.parse_args(run_arguments), [finished]) == {}
    kept = {ablations.SETTINGS, ablations.RESULTS, ablations.PREDICTIONS}
    kept |= set() if killed_before_deletion else {"state", "model.safetensors"}
    assert {path.name for path in finished.folder.iterdir()} == kept


def test_a_row_that_fails_is_shown_and_does_not_stop_the_others(run_arguments, ablations, tmp_path):
    arguments = [*run_arguments, "--output_dir", str(tmp_path), "--seeds", "1", "--table", "7"]
    args = ablations.parse_args(arguments)
    sources = ablations.open_sources(args, [ablations.load_table(7)])
    plans = ablations.plan_tables(args, [ablations.load_table(7)], sources)
    good = plans[7, "w1"][0]
    bad = ablations.Training(tmp_path / "runs" / "bad", {**good.settings, "num_epochs": 0}, 0, good.options, False)
    failures = ablations.train_all(args, [bad, good])
    assert list(failures) == [bad.folder]
    assert good.is_finished
    assert not bad.is_finished
    content = ablations.collect(ablations.load_table(7), {**plans, (7, "w2"): [bad]}, failures)
    assert content["w2"].startswith("failed: ")
    assert len(content["w1"]) == 1


def write_h5(folder: Path) -> Path:
    """Small features and orders of nine rows of AVE, in the peers' layout."""
    write_ave(folder)
    write_orders(folder)
    draw = np.random.default_rng(0)
    write_array(folder / "visual_feature.h5", draw.normal(size=(9, 10, 2, 2, 6)))
    write_array(folder / "audio_feature.h5", draw.normal(size=(9, 10, 4)))
    return folder


def test_files_of_previous_work_serve_as_data_and_as_their_row_of_table_2(ablations, tables, tmp_path):
    folder = str(write_h5(tmp_path / "h5"))
    (tmp_path / "stage3.yaml").write_text("num_epochs: 1\nlocalizer: {hidden_size: 8, agva_hidden_size: 8}\n")
    arguments = ["--table", "2", "--data", folder, "--h5_dir", folder, "--seeds", "1", "--cpu"]
    arguments += ["--stage3_config", str(tmp_path / "stage3.yaml"), "--output_dir", str(tmp_path / "out")]
    args = ablations.parse_args(arguments)
    sources = ablations.open_sources(args, [tables.load_table(2)])
    assert sources["data"] == sources["h5"]
    plans = ablations.plan_tables(args, [tables.load_table(2)], sources)
    assert plans[2, "frozen"] == "no --frozen_features were given"
    assert plans[2, "vgg"] == plans[2, "fine-tuned"]
    training = plans[2, "vgg"][0]
    ablations.train(training)
    probabilities, labels, rows = tables.read_predictions(training.folder / "predictions.safetensors")
    assert rows == sorted(SPLITS["test"])
    assert probabilities[0].shape == (10, 29)
    assert all(clip.shape == (10,) for clip in labels)
    with pytest.raises(ValueError, match="has no train predictions"):
        tables.read_predictions(training.folder / "predictions.safetensors", "train")


def test_data_without_a_test_split_or_of_another_encoder_is_refused_before_anything_is_trained(
    ablations, run_arguments, tmp_path
):
    args = ablations.parse_args([*run_arguments, "--output_dir", str(tmp_path / "out")])
    features = Path(ablations.open_data(args).arguments["features_dir"])
    with pytest.raises(FeatureStoreError, match="made by another encoder"):
        ablations.feature_source(TINY_FOLDER, features, "")
    (features / "test").rename(features / "taken-away")
    with pytest.raises(FeatureStoreError, match="contains no manifest"):
        ablations.feature_source(args.model, features, "")
    folder = write_h5(tmp_path / "h5")
    for name in ("test_order.h5", "testSet.txt"):
        (folder / name).unlink()
    with pytest.raises(ValueError, match=r"has no test split|no test"):
        ablations.h5_source(str(folder), None)


def test_an_encoder_that_was_moved_trains_nothing_again(ablations, run_arguments, tmp_path):
    args = ablations.parse_args([*run_arguments, "--output_dir", str(tmp_path / "out")])
    before = ablations.open_data(args)
    args.model = shutil.copytree(args.model, tmp_path / "moved")
    after = ablations.open_data(args)
    assert after.arguments["model"] != before.arguments["model"]
    assert after.fingerprint == before.fingerprint


def test_untrained_towers_are_the_same_each_time_and_fit_stage_2(ablations, tmp_path):
    folders = []
    for name in ("first", "second"):
        args = ablations.parse_args(["--synthetic_dir", str(tmp_path / name)])
        folders.append(ablations.make_untrained_towers(args))
    fingerprints = {ablations.towers_fingerprint(ablations.load_encoder(folder)) for folder in folders}
    assert len(fingerprints) == 1
    shipped = AVEClipForLocalization.from_pretrained(TINY_FOLDER)
    config = ablations.load_encoder(folders[0]).config
    assert config.vision_config.to_dict() == shipped.config.audioclip_config.vision_config.to_dict()
    assert fingerprints != {ablations.towers_fingerprint(shipped)}
