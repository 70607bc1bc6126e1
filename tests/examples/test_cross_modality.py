"""The example of AVEL's second task: from videos and from stage 2's features, with and without its own split."""

import json
from pathlib import Path

import h5py
import pytest
import torch

from ave_clip import AudioCLIPFeatureExtractor, AudioCLIPModel
from ave_clip.data import generate_synthetic_ave, load_ave
from ave_clip.training.features import FeatureStoreError
from tests.helpers.models import tiny_audioclip_config

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def scripts():
    import cross_modality
    import extract_features

    return {"task": cross_modality, "stage2": extract_features}


@pytest.fixture(scope="module")
def work(tmp_path_factory, scripts):
    """Clips in `clips`, AudioCLIP in `model`, its pooled features in `pooled`."""
    folder = tmp_path_factory.mktemp("cross_modality")
    generate_synthetic_ave(folder / "clips", num_videos=8, seed=5, num_workers=0, splits=(0.25, 0.25, 0.5))
    torch.manual_seed(0)
    AudioCLIPModel(tiny_audioclip_config()).save_pretrained(folder / "model")
    AudioCLIPFeatureExtractor(sampling_rate=8000).save_pretrained(folder / "model")
    extract(scripts, folder, "pooled")
    return folder


def extract(scripts, folder, kind, *more):
    options = ["--cpu", "--model", folder / "model", "--data_dir", folder / "clips", "--output_dir", folder / kind]
    options += ["--num_frames_per_segment", "2", "--dtype", "float32", "--visual_feature_type", kind, *more]
    scripts["stage2"].main([*map(str, options), "--num_workers", "0"])


@pytest.fixture(autouse=True)
def work_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(scripts, *options):
    return scripts["task"].main(["--cpu", *map(str, options)])


def run_on_videos(scripts, work, *options):
    frames = ("--num_frames_per_segment", "2")
    return run(scripts, "--model", work / "model", "--data_dir", work / "clips", *frames, *options)


def test_videos_and_pooled_features_give_the_same(scripts, work, tmp_path, capsys):
    from_videos = run_on_videos(scripts, work, "--output", "cross-modality-test.json")
    written = json.loads((tmp_path / "cross-modality-test.json").read_text())
    from_features = run(scripts, "--features_dir", work / "pooled")
    assert from_videos == from_features
    labels = load_ave(work / "clips", split="test")["labels"]
    background = len(load_ave(work / "clips", split="test").features["category"].names)
    assert from_videos["second"]["num_queries"] == sum(sum(x != background for x in row) for row in labels)
    assert (
        written["queries"]["event"]["audio_to_image"]["accuracy"] == from_videos["event"]["audio_to_image"]["accuracy"]
    )
    assert (written["rows"], written["unreadable_rows"]) == ("of the supervised split", {})
    table = capsys.readouterr().out
    assert "event   audio_to_image" in table
    assert f"{100 * from_videos['event']['image_to_audio']['chance']:.2f}" in table


def test_the_tasks_own_split_is_taken_from_its_files(scripts, work, tmp_path):
    rows = [load_ave(work / "clips", split=split)["row"][0] for split in ("train", "test")]
    match = work / "clips" / "test_order_match.h5"
    with h5py.File(match, "w") as file:
        file["order"] = sorted(rows)
    try:
        from_features = run(scripts, "--features_dir", work / "pooled", "--annotations_dir", work / "clips")
        from_videos = run_on_videos(scripts, work)
        own = run_on_videos(scripts, work, "--own_split")
    finally:
        match.unlink()
    assert from_features == from_videos
    assert from_videos["event"]["num_clips"] == 2
    assert own == run(scripts, "--features_dir", work / "pooled")
    assert own["event"]["num_clips"] == 3  # one test clip has no event


def test_feature_maps_are_refused(scripts, work):
    extract(scripts, work, "dense", "--splits", "test")
    with pytest.raises(FeatureStoreError, match="contains 'dense' image features"):
        run(scripts, "--features_dir", work / "dense")


def test_annotations_without_the_tasks_split_are_named(scripts, work):
    with pytest.raises(ValueError, match="no split of the cross-modality task"):
        run(scripts, "--features_dir", work / "pooled", "--annotations_dir", work / "clips")


def test_videos_need_a_model_and_features_none(scripts, work, capsys):
    for options in (("--data_dir", work / "clips"), ("--features_dir", work / "pooled", "--model", "m")):
        with pytest.raises(SystemExit):
            run(scripts, *options)
        assert "--model needs --data" in capsys.readouterr().err
