"""The comparison with previous work: folds, one table from a tiny feature set, and a run that resumes."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ave_clip.training.clip_windows import truth_of
from ave_clip.training.features import FeatureWriter
from ave_clip.training.folds import FoldSplits, groups_of_test
from ave_clip.training.networks import build_network, network_title, parse_network
from ave_clip.training.splits import FeatureSplits, SplitError

NUM_CLIPS = {"train": 12, "validation": 6, "test": 6}
NUM_SEGMENTS, NAMES = 6, {"0": "Bell", "1": "Bark", "2": "background"}
CARDS = Path(__file__).parents[2] / "model_cards"


@pytest.fixture(scope="module")
def comparison():
    import run_comparison

    return run_comparison


@pytest.fixture(scope="module")
def tables():
    from maintenance import comparison_tables

    return comparison_tables


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """Features of 24 clips, from which the event can be read in the first number of both modalities."""
    folder = tmp_path_factory.mktemp("comparison") / "features"
    settings = {"encoder_fingerprint": "x", "visual_feature_type": "dense", "num_frames_per_segment": 1}
    settings |= {"segment_seconds": 1.0, "dtype": "float32", "id2label": NAMES, "problem_type": "single_label"}
    settings |= {"image_feature_size": 8, "audio_feature_size": 5}
    generator = torch.Generator().manual_seed(0)
    for split, number in NUM_CLIPS.items():
        writer = FeatureWriter(folder / split, settings, {row: f"{split}{row}" for row in range(number)})
        clips = []
        for row in range(number):
            label, labels = row % 2, torch.full((NUM_SEGMENTS,), 2)
            labels[1:4] = label
            image = torch.randn(NUM_SEGMENTS, 4, 8, generator=generator)
            audio = torch.randn(NUM_SEGMENTS, 5, generator=generator)
            image[1:4, :, 0] += 6 * label - 3
            audio[1:4, 0] += 4
            clip = {"row": torch.tensor(row), "labels": labels, "image_features": image, "audio_features": audio}
            events = [{"label": label, "start": 1.0, "end": 4.0}]
            mask = torch.ones(NUM_SEGMENTS, dtype=torch.bool)
            clips.append({**clip, "segment_mask": mask, "events": events, "duration": 6.0})
        writer.write(0, clips)
        writer.finish(split)
    return folder


@pytest.fixture(scope="module")
def groups(store) -> Path:
    """Clips of one class in twos: fourteen groups."""
    path = store.parent / "groups.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "row", "group"])
        for split, number in NUM_CLIPS.items():
            writer.writerows([split, row, f"{split} {row // 4} {row % 2}"] for row in range(number))
    return path


# ── folds ──


def test_over_the_folds_each_clip_is_tested_once_and_no_group_is_divided(store, groups):
    folds = [FoldSplits(store, f"{number}/3", groups) for number in (1, 2, 3)]
    parts = [{split: fold.open(split) for split in NUM_CLIPS} for fold in folds]
    assert sorted(number for part in parts for number in part["test"].numbers) == list(range(24))
    group_of = folds[0].group_of
    for part in parts:
        owners = {split: {group_of[number] for number in clips.numbers} for split, clips in part.items()}
        assert sum(len(clips) for clips in part.values()) == 24
        assert not owners["train"] & owners["validation"]
        assert not owners["test"] & (owners["train"] | owners["validation"])
        # Dealt out class by class: each part contains both.
        assert all(len({clips[index]["video_label"] for index in range(len(clips))}) == 2 for clips in part.values())
    assert len({fold.fingerprint for fold in folds} | {FeatureSplits(store).fingerprint}) == 4


def test_a_clip_of_a_fold_is_that_of_the_store_under_another_number(store):
    clips = FoldSplits(store, "2/4").open("train")
    number = next(number for number in clips.numbers if number >= NUM_CLIPS["train"])  # of the validation split
    found = clips[clips.numbers.index(number)]
    wanted = FeatureSplits(store).open("validation")[number - NUM_CLIPS["train"]]
    assert int(found["row"]) == number
    assert all(torch.equal(found[name], wanted[name]) for name in ("image_features", "audio_features", "labels"))
    assert truth_of(clips)[number]["events"][0]["label"] == wanted["video_label"]
    assert clips.window(0, 2, 3)["labels"].tolist() == clips[0]["labels"][2:5].tolist()
    assert clips.labels_of(clips.numbers.index(number)).tolist() == found["labels"].tolist()
    assert clips.lengths == [NUM_SEGMENTS] * len(clips)


def test_folds_and_groups_that_cannot_be_meant_are_refused(store, groups, tmp_path):
    for text in ("0/4", "5/4", "1/2", "1", "a/4"):
        with pytest.raises(ValueError, match="such as 1/4"):
            FoldSplits(store, text)
    lines = groups.read_text().splitlines()
    (tmp_path / "some.csv").write_text("\n".join(lines[:-2]))
    with pytest.raises(SplitError, match="no group for 2 of 24 clips, such as split test, row 4"):
        FoldSplits(store, "1/3", tmp_path / "some.csv").open("train")
    with pytest.raises(SplitError, match="no group for row 4 of the test split"):
        groups_of_test(store, tmp_path / "some.csv")
    (tmp_path / "other.csv").write_text("clip,source\n1,2\n")
    with pytest.raises(ValueError, match="needs split, row and group"):
        FoldSplits(store, "1/3", tmp_path / "other.csv").open("train")
    with pytest.raises(SplitError, match="14 groups of clips, too few for 15 folds"):
        FoldSplits(store, "1/15", groups).open("train")


# ── from counts to numbers ──


def counts_of(tables, *right: list[int]):
    """Counts of groups with ten segments each and no events, of which some are right; one list per seed."""
    from ave_clip.training.metrics import COUNT_NAMES

    values = np.zeros((len(right), len(right[0]), len(COUNT_NAMES)), dtype=np.int64)
    values[..., COUNT_NAMES.index("segments")] = 10
    values[..., COUNT_NAMES.index("right")] = right
    return tables.Counts(np.arange(len(right[0])), values)


def test_the_interval_of_a_difference_is_paired(tables):
    # The groups differ widely from each other, but the network is one segment better in each.
    hard = [0, 9, 0, 9, 0, 9]
    better, reference = counts_of(tables, [one + 1 for one in hard], hard), counts_of(tables, hard, hard)
    found = tables.differences(better, reference)["segment_accuracy"]
    assert found["per_seed"] == pytest.approx([0.1, 0.0])
    assert found["mean"] == pytest.approx(0.05)
    assert found["interval"] == pytest.approx([0.05, 0.05])


def test_counts_of_a_group_are_added_up(comparison, tables):
    counts = counts_of(tables, [1, 2, 4, 8])
    grouped = comparison.by_group(counts, [7, 3, 7, 3])
    assert grouped.rows.tolist() == [3, 7]
    assert grouped.values[0, :, :2].tolist() == [[20, 10], [20, 5]]


# ── a run ──


@pytest.fixture(scope="module")
def arguments(store, groups) -> list[str]:
    settings = store.parent / "settings.yaml"
    settings.write_text("localizer: {hidden_size: 8}\nnum_epochs: 1\nbatch_size: 8\nlearning_rate: 0.01\n")
    output = ["--output_dir", str(store.parent / "out"), "--stage3_config", str(settings)]
    return ["--data", str(store), *output, "--seeds", "1", "--rounds", "1", "--processes", "1", "--cpu"]


@pytest.fixture
def train_here(comparison, monkeypatch):
    """Trains in this process, which saves the start of others; returns the names of the networks that were trained."""
    import run_ablations

    trained = []

    def train_all(args, trainings):
        failures = {}
        for training in trainings:
            if not training.is_finished:
                trained.append((training.settings["network"], training.settings.get("fold")))
                try:
                    run_ablations.train(training)
                except Exception as error:
                    failures[training.folder] = str(error)
        return failures

    monkeypatch.setattr(comparison, "train_all", train_all)
    return trained


def test_one_command_gives_one_table_and_trains_only_what_is_missing(comparison, arguments, groups, train_here):
    folds = ["--folds", "3", "--groups", str(groups)]
    first = comparison.main([*arguments, *folds, "--models", "ave-clip"])
    assert train_here == [("ave-clip", f"{fold}/3") for fold in (1, 2, 3)]
    train_here.clear()
    content = comparison.main([*arguments, *folds, "--models", "bilstm"])
    assert train_here == [("bilstm", f"{fold}/3") for fold in (1, 2, 3)]
    assert content["rows"][0]["measured"] == first["rows"][0]["measured"]
    assert content["test_clips"]["num_videos"] == 24
    assert content["num_groups"] == 14
    folder = Path(comparison.parse_args(arguments).output_dir)
    rows = {row["name"]: row for row in json.loads((folder / "comparison.json").read_text())["rows"]}
    assert list(rows) == ["ave-clip", "bilstm"]
    assert "difference" not in rows["ave-clip"]
    accuracy = {name: row["measured"]["mean"]["segment_accuracy"] for name, row in rows.items()}
    assert rows["bilstm"]["difference"]["segment_accuracy"]["mean"] == pytest.approx(
        accuracy["bilstm"] - accuracy["ave-clip"]
    )
    assert rows["bilstm"]["costs"]["parameters"] == 4 * 8 // 2 * (13 + 4 + 2) * 2 + 8 * 3 + 3
    assert rows["bilstm"]["costs"]["training_megabytes"] > 0
    text = (folder / "comparison.md").read_text()
    assert "in each of 3 folds" in text
    assert f"| BiLSTM | {100 * accuracy['bilstm']:.1f} [" in text
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_folds_need_no_test_split(comparison, arguments, store, train_here, tmp_path):
    shutil.copytree(store / "train", tmp_path / "features" / "train")
    (tmp_path / "groups.csv").write_text(
        "split,row,group\n" + "".join(f"train,{row},{row % 3}\n" for row in range(12))
    )
    data = ["--data", str(tmp_path / "features"), "--groups", str(tmp_path / "groups.csv"), "--folds", "3"]
    content = comparison.main([*arguments, *data, "--models", "bilstm", "--output_dir", str(tmp_path / "out")])
    assert (content["test_clips"]["num_videos"], content["num_groups"]) == (12, 3)


def test_a_network_that_fails_is_listed_and_the_others_are_measured(comparison, arguments, train_here, tmp_path):
    settings = tmp_path / "settings.yaml"
    # A field that only AVE-CLIP has: the rival is refused with its name.
    settings.write_text("localizer: {hidden_size: 8, use_refiner: false}\nnum_epochs: 1\nbatch_size: 8\n")
    options = [
        *arguments,
        "--models",
        "bilstm",
        "--stage3_config",
        str(settings),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    with pytest.raises(RuntimeError, match=r"1 of 2 trainings failed.*use_refiner.*RivalConfig"):
        comparison.main(options)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| AVE-CLIP, default |" in text
    assert "- BiLSTM: failed: " in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--folds", "2"], "--folds must be at least 3"),
        (["--models", "bert"], "no network 'bert'"),
        (["--models", "psp:dropouts=1"], "'dropouts=1'"),
        (["--models", "psp:ema=1"], "`ema` must be at least 0 and below 1, got 1"),
        (["--models", "psp:feature_noise=nan"], "noise of features must be 0 or more, got nan"),
        (["--models", "dam", "--supervision", "weak"], "dam is not defined for --supervision weak"),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(comparison, options, message, capsys):
    with pytest.raises(SystemExit):
        comparison.parse_args(options)
    assert message in capsys.readouterr().err


def test_all_networks_that_are_defined_for_the_supervision_are_compared_by_default(comparison):
    full, weak = comparison.parse_args([]).models, comparison.parse_args(["--supervision", "weak"]).models
    assert set(full) - set(weak) == {"dam", "rfjc"}
    assert {"ave-clip", "avin", "cmbs"} <= set(weak) <= set(full)


def test_features_without_a_split_are_refused_before_any_training(comparison, arguments, store, tmp_path):
    (tmp_path / "train").symlink_to(store / "train")
    with pytest.raises(ValueError, match=r"no validation and no test split. Extract it, or pass --folds 4"):
        comparison.main([*arguments, "--data", str(tmp_path)])


def test_features_with_several_labels_per_segment_are_refused(comparison, arguments, store, tmp_path):
    shutil.copytree(store, tmp_path / "features")
    manifest = tmp_path / "features" / "train" / "manifest.json"
    content = {**json.loads(manifest.read_text()), "problem_type": "multi_label"}
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="several labels per segment"):
        comparison.main([*arguments, "--data", str(tmp_path / "features")])


@pytest.mark.parametrize(
    ("card", "results"),
    [("comparison", "comparison.json"), ("comparison_synthetic", "synthetic/comparison.json")],
)
def test_the_committed_cards_are_made_from_the_committed_results(tables, card, results):
    content = json.loads((CARDS / "results" / results).read_text(encoding="utf-8"))
    assert (CARDS / f"{card}.md").read_text(encoding="utf-8") == tables.render(content, f"{card}.png")


def test_fields_behind_a_name_change_the_network():
    name = "ave-clip:input_dropout=0:window_sizes=[4, 2]"
    assert parse_network(name) == ("ave-clip", {"input_dropout": 0, "window_sizes": [4, 2]})
    assert network_title(name) == "AVE-CLIP, default, input_dropout=0, window_sizes=[4, 2]"
    model = build_network(name, TwoClips())
    assert (model.config.input_dropout, model.config.window_sizes) == (0, (4, 2))
    assert build_network("psp:hidden_size=8", TwoClips()).config.hidden_size == 8


def test_a_row_can_have_its_own_training(comparison):
    network, training = comparison.split_name("ave-clip:dropout=0.5:feature_noise=0.3")
    assert (network, training) == ("ave-clip:dropout=0.5", {"feature_noise": 0.3})
    assert comparison.row_title("ave-clip:dropout=0.5:ema=0.99") == "AVE-CLIP, default, dropout=0.5, ema=0.99"
    with pytest.raises(ValueError, match="'ema=high' of ave-clip:ema=high needs a number"):
        comparison.split_name("ave-clip:ema=high")


def test_a_network_with_weights_of_segments_is_built_for_the_longest_training_clip(store):
    assert build_network("rfjc:hidden_size=8", FeatureSplits(store)).config.max_segments == NUM_SEGMENTS
    assert build_network("rfjc:hidden_size=8", TwoClips()).config.max_segments == 3
    assert build_network("rfjc:hidden_size=8:max_segments=7", FeatureSplits(store)).config.max_segments == 7
    assert build_network("psp:hidden_size=8", FeatureSplits(store)).config.max_segments is None


class TwoClips:
    """The least that a network must know of its features."""

    id2label = {0: "Bell", 1: "background"}
    overrides = {"visual_feature_type": "pooled"}

    def open(self, split):
        return [{"image_features": torch.zeros(3, 6), "audio_features": torch.zeros(3, 5)}]
