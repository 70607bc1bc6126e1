"""Where results go: names that file systems take, whatever the videos are called."""

import os

import pytest

from ave_clip.data.custom import load_videos
from ave_clip.outputs.formats import FORMATS
from ave_clip.outputs.writers import open_writer, plan_files
from tests.helpers.media import write_recording

RESULT = {
    "segments": [{"start": 0.0, "end": 1.0, "label": "Bark", "score": 0.9}],
    "events": [{"start": 0.0, "end": 1.0, "label": "Bark", "score": 0.9}],
}
LONG = ["n" * 251 + ".mp4", "n" * 250 + "m.mp4", "鐘" * 83 + "ab.mp4", "🔔" * 62 + "abc.mp4"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("pattern", ["", "events-of-{name}-here"])
def test_names_of_255_bytes_work_with_every_format(tmp_path, name, pattern):
    assert {len(os.fsencode(video)) for video in LONG} == {255}
    output = f"{tmp_path}/{pattern + FORMATS[name].suffix if pattern else ''}"
    files = plan_files(LONG, output, FORMATS[name].suffix, "--output")
    with open_writer(name, output, files) as writer:
        for video in LONG:
            writer.add(video, RESULT)
    assert len({path.name for path in files.values()}) == len(LONG)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in files.values())
    assert all(path.name.endswith(FORMATS[name].suffix) for path in files.values())


def test_short_names_stay_as_they_are():
    files = plan_files(["a clip.mp4", "b\x1b[1m\u202e.mkv", "x/a clip.mp4"], "out/", ".json", "--output")
    assert [path.name for path in files.values()] == ["a clip.mp4.json", "b_[1m_.json", "x-a clip.mp4.json"]


def test_a_table_says_how_an_event_is_known_if_the_model_does(capsys):
    event = {"start": 1.0, "end": 3.0, "label": "thunder", "score": 0.9}
    with open_writer("table", None, None) as writer:
        writer.add("plain.mp4", {"events": [event], "segments": []})
        writer.add("mini.mp4", {"events": [{**event, "heard": 0.93, "seen": None, "both": None}], "segments": []})
    plain, mini = capsys.readouterr().out.split("mini.mp4")
    assert "heard" not in plain
    assert [cell.strip() for cell in mini.splitlines()[2].strip("┃").split("┃")][3:] == ["score", "heard", "seen"]
    assert [cell.strip() for cell in mini.splitlines()[4].strip("│").split("│")][3:] == ["90 %", "93 %", "cannot tell"]


def test_a_csv_of_several_videos_has_the_columns_of_the_model_and_is_read_as_annotations(tmp_path):
    event = {"start": 1.0, "end": 3.0, "label": "thunder", "score": 0.9, "heard": 0.93, "seen": None, "both": None}
    segment = {**event, "end": 2.0}
    results = {
        "empty.mp4": {"segments": [], "events": []},
        "quiet.mp4": {"segments": [segment], "events": []},
        "storm.mp4": {"segments": [segment], "events": [event]},
        "later.mp4": {"segments": [segment], "events": [{**event, "seen": 0.5, "both": 0.25}]},
    }
    with open_writer("csv", str(tmp_path / "out.csv"), None) as writer:
        for video, result in results.items():
            writer.add(video, result)
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "video,start,end,label,score,heard,seen,both",
        "storm.mp4,1,3,thunder,0.9000,0.9300,,",
        "later.mp4,1,3,thunder,0.9000,0.9300,0.5000,0.2500",
    ]
    for video in ("storm.mp4", "later.mp4"):
        write_recording(tmp_path / video, 4.0)
    data = load_videos(str(tmp_path / "out.csv"), split="train", cache_dir=tmp_path / "cache")
    assert [len(row["events"]) for row in data] == [1, 1]
    assert [(row["events"][0]["start"], row["events"][0]["end"]) for row in data] == [(1.0, 3.0)] * 2


def test_a_csv_without_results_has_a_header(capsys):
    with open_writer("csv", None, None):
        pass
    assert capsys.readouterr().out == "video,start,end,label,score\n"


def test_one_segment_is_singular(capsys):
    with open_writer("table", None, None) as writer:
        writer.add("a.mp4", {**RESULT, "events": []})
    assert "no audio-visual event in 1 segment\n" in capsys.readouterr().out
