"""Small data sets in AVE's layout, and the real annotation files where they are at hand."""

import os
from pathlib import Path

import datasets
import pytest

from tests.helpers.ave_files import AveFiles, write_ave
from tests.helpers.media import numbered_picture, write_recording

SHARED = Path(os.environ.get("AVE_CLIP_SHARED", Path(__file__).parents[3] / "shared")) / "ave"


@pytest.fixture(autouse=True)
def quiet_and_apart(tmp_path, monkeypatch):
    """Every test has a cache of its own and no progress bars."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets_cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def ave(tmp_path) -> AveFiles:
    """Nine rows of AVE's own categories; the videos are placeholders that cannot be decoded."""
    return write_ave(tmp_path / "AVE_Dataset")


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> dict[str, Path]:
    """Two real recordings: three seconds, and two seconds."""
    folder = tmp_path_factory.mktemp("recordings")
    small = {"frame_rate": 5, "picture": lambda number: numbered_picture(number, height=32, width=40)}
    return {
        "long": write_recording(folder / "long.mp4", 3.0, **small),
        "short": write_recording(folder / "short.mp4", 2.0, **small),
    }


@pytest.fixture(scope="session")
def shared_ave() -> Path:
    """The real annotation files."""
    if not (SHARED / "Annotations.txt").is_file():
        pytest.skip(f"no real annotation files in {SHARED}; set AVE_CLIP_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def real_ave(shared_ave, recordings, tmp_path_factory) -> Path:
    """The real annotation files with one small video under all 4,097 ids."""
    root = tmp_path_factory.mktemp("real") / "AVE_Dataset"
    (root / "AVE").mkdir(parents=True)
    for name in ("Annotations.txt", "trainSet.txt", "valSet.txt", "testSet.txt"):
        (root / name).write_bytes((shared_ave / name).read_bytes())
    for line in (root / "Annotations.txt").read_text().splitlines():
        video = root / "AVE" / f"{line.split('&')[1]}.mp4"
        if not video.exists():
            os.link(recordings["short"], video)
    return root
