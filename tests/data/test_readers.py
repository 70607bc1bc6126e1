"""The registry of readers: what each one recognizes, and that adding one requires a single module."""

import json
import zipfile

import pytest

from ave_clip.data import AnnotationError, load_videos, readers
from ave_clip.data.readers import all_readers, find_reader
from ave_clip.data.readers.base import AnnotationReader, DataSetReader
from tests.data.test_benchmarks import OV_LABELS, UNAV

NEW_READER = """
from ave_clip.data.readers.base import AnnotationReader, NamedSpan, VideoAnnotation, has_suffix

def read(path, options):
    start, end, label = path.read_text().split()
    return [VideoAnnotation(path.stem, "train", (NamedSpan(label, float(start), float(end)),))], None

READER = AnnotationReader("htk", ".lab: one event", has_suffix(".lab"), read, videos_by="file")
"""


def test_each_reader_recognizes_its_data_sets_and_no_other(ave, tmp_path):
    (tmp_path / "features").mkdir()
    for name in ("audio_feature.h5", "visual_feature.h5"):
        (tmp_path / "features" / name).touch()
    with zipfile.ZipFile(tmp_path / "ave.zip", "w") as archive:
        archive.write(ave.root / "Annotations.txt", "AVE_Dataset/Annotations.txt")
    (tmp_path / "unav.json").write_text(json.dumps(UNAV))
    (tmp_path / "ov.json").write_text(json.dumps(OV_LABELS))
    (tmp_path / "exported" / "data").mkdir(parents=True)
    for name in ("README.md", "data/train-00000-of-00001.parquet"):
        (tmp_path / "exported" / name).touch()
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "train.csv").touch()
    examples = {
        "ave": [ave.root, ave.root.parent, tmp_path / "ave.zip"],
        "ave_features": [tmp_path / "features"],
        "table": [tmp_path / "a.csv", tmp_path / "a.TSV", tmp_path / "a.jsonl", tmp_path / "tables"],
        "audacity": [tmp_path / "a.txt"],
        "elan": [tmp_path / "a.eaf"],
        "exported": [tmp_path / "exported"],
        "unav100": [tmp_path / "unav.json"],
        "ov_avebench": [tmp_path / "ov.json"],
    }
    assert examples.keys() == all_readers().keys()
    for name, paths in examples.items():
        for path in paths:
            assert [one.name for one in all_readers().values() if one.recognizes(path)] == [name], path
            assert find_reader(path).name == name
    (tmp_path / "other.json").write_text("{}")
    nothing = [tmp_path / "categories.txt", tmp_path / "other.json", tmp_path / "a.mp4", tmp_path / "features" / "x"]
    assert [find_reader(path) for path in nothing] == [None] * len(nothing)


def test_every_reader_has_a_summary_and_either_reads_or_loads():
    for name, reader in all_readers().items():
        assert reader.name == name and reader.summary
        assert isinstance(reader, AnnotationReader) != isinstance(reader, DataSetReader)


def test_a_data_set_with_rows_of_its_own_is_loaded_by_its_reader(ave):
    assert find_reader(ave.root).load(ave.root, "test", on_missing="skip").num_rows > 0


def test_a_reader_in_a_module_of_its_own_is_found_and_used(tmp_path, recordings, monkeypatch):
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "htk.py").write_text(NEW_READER)
    labels = tmp_path / "a.lab"
    labels.write_text("0.5 2 Bark")
    (tmp_path / "a.mp4").write_bytes(recordings["long"].read_bytes())
    with pytest.raises(AnnotationError, match=r"the suffix is '\.lab'\. Wanted: \.txt: Audacity.*\.csv, \.tsv"):
        load_videos(labels)
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path / "plugin")])
    all_readers.cache_clear()
    try:
        assert find_reader(labels).name == "htk"
        for path in (labels, tmp_path):  # the file, and the folder of label files
            assert load_videos(path, split="train")[0]["labels"] == [0, 0, 1]
    finally:
        all_readers.cache_clear()
