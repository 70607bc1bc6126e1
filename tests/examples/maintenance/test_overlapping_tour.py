"""The tour of overlapping events runs from making videos to its results file, and its page states what that says."""

import functools
import json

import pytest
import yaml

from ave_clip import AVEClipConfig
from ave_clip.training.arguments import parse_overrides


@pytest.fixture(scope="module")
def tour():
    from maintenance import overlapping_tour

    return overlapping_tour


def test_the_settings_are_those_of_a_localizer_of_several_events(tour):
    settings = yaml.safe_load(tour.CONFIG.read_text(encoding="utf-8"))
    assert AVEClipConfig(**settings["localizer"], id2label={0: "Bark"}).problem_type == "multi_label"
    parsed = tour.train_localizer.parse_args(["--config", str(tour.CONFIG)])
    assert parse_overrides(parsed.localizer, AVEClipConfig) == settings["localizer"]
    assert parsed.num_epochs == settings["num_epochs"]
    with_boundaries = yaml.safe_load(tour.BOUNDARIES_CONFIG.read_text(encoding="utf-8"))
    assert with_boundaries["localizer"].pop("boundary_regression")
    assert with_boundaries == settings  # so that both can be compared


def test_all_its_steps_run(tour, tmp_path, monkeypatch):
    short = functools.partial(tour.generate_overlapping_videos, num_seconds=10, num_workers=0)
    monkeypatch.setattr(tour, "generate_overlapping_videos", short)
    # Trainings with one label per segment are those of other tests.
    monkeypatch.setattr(tour, "LABELS", {"multi_label": tour.LABELS["multi_label"]})
    options = ["--num_videos", "3", "--num_held_out", "1", "--num_epochs", "1", "--seeds", "0", "--boundaries"]
    content = tour.main(["--work_dir", str(tmp_path / "work"), "--output", str(tmp_path / "out.json"), *options])
    assert set(content["held_out"]) == {"multi_label", "boundaries"}
    assert json.loads((tmp_path / "out.json").read_text())["held_out"].keys() == content["held_out"].keys()
    for measured in content["held_out"].values():
        assert all("event_f1" in decoder for decoder in measured.values())
