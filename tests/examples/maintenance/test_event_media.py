"""The packages that `ave-clip-mini`'s event head is trained on."""

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "examples" / "maintenance"))

import event_media


def test_interrupted_download_leaves_no_folder_that_counts_as_complete(tmp_path, monkeypatch) -> None:
    (tmp_path / "event_packages.csv").write_text("package,version,registry\n@set/icons,1,npm\n")
    (tmp_path / "icons.json").write_text("{}")
    monkeypatch.setattr(event_media, "HERE", tmp_path)
    exit_codes = [1, 0]

    def download(command, cwd, check) -> None:
        with tarfile.open(cwd / "icons.tgz", "w:gz") as archive:
            archive.add(tmp_path / "icons.json", "package/icons.json")
        if exit_codes.pop(0):
            raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "run", download)
    media = tmp_path / "media"
    with pytest.raises(subprocess.CalledProcessError):
        event_media.fetch_packages(media)
    assert not (media / "@set+icons").exists()
    event_media.fetch_packages(media)
    assert [path.name for path in media.iterdir()] == ["@set+icons"]
    assert [path.name for path in (media / "@set+icons").iterdir()] == ["package"]
    event_media.fetch_packages(media)  # complete: nothing is downloaded
