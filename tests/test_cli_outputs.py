"""Where the command line writes what: files of other tools, one a video, pictures, odd names, devices, exports."""

import json
import re
import shutil
import sys
import types
from pathlib import Path

import av
import pympi
import pytest
import srt
import webvtt
from typer.testing import CliRunner, Result

from ave_clip.cli import app
from ave_clip.outputs.writers import WrongOutputError, check_targets, format_of, plan_files
from tests.core.test_pipeline_zero_shot import save_tiny_audioclip
from tests.helpers.media import write_recording

ODD_NAMES = ["a clip.mp4", "-dash.mp4", "say \"hi\" & 'bye'.mp4", "<b>[red]鐘 звон.mp4", "100%{name}.mp4"]


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> bytes:
    return write_recording(tmp_path_factory.mktemp("recording") / "clip.mp4", 3.0).read_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def clip(folder, recording) -> str:
    (folder / "clip.mp4").write_bytes(recording)
    return "clip.mp4"


@pytest.fixture(scope="module")
def localize(checkpoint):
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["localize", "--model", checkpoint, "--device", "cpu", *arguments])

    return call


@pytest.fixture
def recorder(monkeypatch) -> dict[str, list]:
    """Stands in for the pictures: what they are asked for."""
    calls: dict[str, list] = {"plot": [], "overlay": []}
    timeline, overlay = types.ModuleType("timeline"), types.ModuleType("overlay")

    def plot_timeline(results, output, **options):
        calls["plot"].append((results, output, options))

    def write_overlay(video, result, output, **options):
        if "broken" in video:
            raise ValueError("no such codec")
        calls["overlay"].append((video, result, output, options))

    timeline.plot_timeline, overlay.write_overlay = plot_timeline, write_overlay
    monkeypatch.setitem(sys.modules, "ave_clip.outputs.timeline", timeline)
    monkeypatch.setitem(sys.modules, "ave_clip.outputs.overlay", overlay)
    return calls


def events_of(localize, *videos: str) -> dict[str, list[dict]]:
    lines = localize("--format", "jsonl", *videos).stdout.splitlines()
    return {record["video"]: record["events"] for record in map(json.loads, lines)}


def test_the_suffix_chooses_the_format_and_each_is_read_back(localize, clip, folder):
    (events,) = events_of(localize, clip).values()
    assert len(events) >= 1
    for name in ("out.srt", "out.vtt", "out.eaf"):
        result = localize(clip, "--output", name)
        assert (result.exit_code, result.stdout) == (0, ""), result.output
    labels = [event["label"] for event in events]
    assert [one.content for one in srt.parse(Path("out.srt").read_text())] == labels
    assert [one.text for one in webvtt.read("out.vtt")] == labels
    eaf = pympi.Eaf("out.eaf")
    assert [label for *_, label in sorted(eaf.get_annotation_data_for_tier("events"))] == labels
    assert eaf.media_descriptors[0]["RELATIVE_MEDIA_URL"] == "./clip.mp4"
    audacity = localize(clip, "--format", "audacity").stdout
    assert [line.split("\t")[2] for line in audacity.splitlines()] == labels


@pytest.mark.parametrize("place", ["subtitles", "subtitles/", "subtitles/{name}.srt", "there"])
def test_several_videos_get_a_file_each_in_the_folder(place, localize, folder, recording):
    (folder / "there").mkdir()
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "clip.mp4").write_bytes(recording)
    (folder / "two" / "clip.webm").write_bytes(recording)
    result = localize("one/clip.mp4", "two/clip.mp4", "two/clip.webm", "--format", "srt", "--output", place)
    assert result.exit_code == 0, result.output
    target = folder / place.split("/")[0]
    assert sorted(path.name for path in target.iterdir()) == ["clip.webm.srt", "one-clip.mp4.srt", "two-clip.mp4.srt"]
    assert all(list(srt.parse(path.read_text())) for path in target.iterdir())
    assert f"wrote {target.name}/two-clip.mp4.srt (from two/clip.mp4)" in result.stderr


def test_annotations_in_a_folder_link_to_their_videos(localize, clip, folder):
    assert localize(clip, "--format", "elan", "--output", "labels/").exit_code == 0
    assert pympi.Eaf("labels/clip.eaf").media_descriptors[0]["RELATIVE_MEDIA_URL"] == "../clip.mp4"


def test_a_single_file_for_several_videos_is_refused_before_anything_is_read(localize):
    several = localize("a.mp4", "b.mp4", "--output", "out.srt")
    assert several.exit_code == 2 and "{name}" in several.output and not Path("out.srt").exists()
    no_output = localize("a.mp4", "b.mp4", "--format", "elan")
    assert no_output.exit_code == 2 and "--output FOLDER" in no_output.output


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_file_names_work_as_input_and_output(name, localize, folder, recording):
    (folder / name).write_bytes(recording)
    stem = name.removesuffix(".mp4")
    for output in ("-x {name}.srt", "-x {name}.jsonl", "-x {name}.eaf"):
        assert localize("--output", output, "--", name).exit_code == 0
    assert list(srt.parse((folder / f"-x {stem}.srt").read_text()))
    assert json.loads((folder / f"-x {stem}.jsonl").read_text())["video"] == name
    assert pympi.Eaf(folder / f"-x {stem}.eaf").media_descriptors[0]["RELATIVE_MEDIA_URL"] == f"./{name}"
    assert name in localize("--", name).stdout.replace("\n", "")


def test_a_table_or_list_of_all_videos_is_one_file(localize, clip, folder):
    (folder / "there").mkdir()
    for place in ("new/", "there"):
        result = localize(clip, "--output", place)
        assert result.exit_code == 2 and "is a folder" in result.output
    assert localize(clip, "--format", "json", "--output", "there").exit_code == 0
    assert [path.name for path in (folder / "there").iterdir()] == ["clip.json"]


def test_a_failed_video_leaves_no_file_and_the_others_are_written(localize, clip, folder):
    (folder / "bad.mp4").write_text("no video")
    result = localize("bad.mp4", clip, "--format", "vtt", "--output", "out")
    assert result.exit_code == 1 and "1 of 2 videos failed" in result.output
    assert [path.name for path in (folder / "out").iterdir()] == ["clip.vtt"]


def test_outputs_that_would_replace_something_are_refused(localize, clip, folder, recording):
    before = Path(clip).read_bytes()
    (folder / "other.srt").write_bytes(recording)
    for arguments in (
        (clip, "--output", clip),
        (clip, "--overlay", clip),
        (clip, "--overlay", "./{name}.mp4"),
        ("other.srt", "--format", "srt", "--output", "."),
        (clip, "--output", "x.srt", "--overlay", "nowhere/x.mp4"),
        (clip, "--format", "json", "--output", "x.html", "--plot", "x.html"),
        (clip, "--plot", "x.pdf"),
        (clip, "--overlay", "x.avi"),
    ):
        result = localize(*arguments)
        assert result.exit_code == 2, (arguments, result.output)
    assert Path(clip).read_bytes() == before and (folder / "other.srt").read_bytes() == recording


def test_images_get_all_results_and_each_video_its_overlay(localize, clip, folder, recording, recorder):
    (folder / "broken.mp4").write_bytes(recording)
    result = localize(
        clip, "broken.mp4", "--plot", "all.svg", "--theme", "dark", "--overlay", "films", "--format", "jsonl"
    )
    assert result.exit_code == 1 and "cannot write films/broken.mp4: no such codec" in result.output
    ((results, output, options),) = recorder["plot"]
    assert [video for video, _ in results] == [clip]
    assert set(results[0][1]) == {"segments", "events"} and len(results[0][1]["segments"]) == 3
    assert (output, options) == (Path("all.svg"), {"theme": "dark"})
    ((video, drawn, path, options),) = recorder["overlay"]
    assert (video, path, len(drawn["segments"])) == (clip, Path("films/clip.mp4"), 3)
    assert options["heatmaps"].shape[0] == 3 and options["progress"] is False
    assert options["video_processor"].size == {"shortest_edge": 64}
    assert "heatmaps" not in json.loads(result.stdout.splitlines()[0])


def test_an_overlay_is_a_film_as_long_as_its_video(localize, clip, folder):
    assert localize(clip, "--overlay", "my film.mp4").exit_code == 0
    with av.open("my film.mp4") as film:
        assert film.duration / av.time_base == pytest.approx(3.0, abs=0.2)
        assert {stream.type for stream in film.streams} == {"video", "audio"}


def test_a_plot_of_nothing_is_not_drawn(localize, folder, recorder):
    Path("bad.mp4").write_text("no video")
    result = localize("bad.mp4", "--plot", "all.png")
    assert result.exit_code == 1 and "nothing to show" in result.output and recorder["plot"] == []


def test_zero_shot_results_have_overlays_without_heat_maps(clip, tmp_path_factory, recorder):
    model = tmp_path_factory.mktemp("audioclip")
    save_tiny_audioclip(model)
    arguments = [
        "--model",
        str(model),
        "--labels",
        "dog,bell",
        "--overlay",
        "film.mp4",
        "--num-frames-per-segment",
        "2",
    ]
    result = CliRunner().invoke(app, ["localize", clip, *arguments])
    assert result.exit_code == 0, result.output
    assert [options["heatmaps"] for *_, options in recorder["overlay"]] == [None]


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "cpu:x", ""])
def test_a_device_that_is_not_there_is_said_in_one_sentence(device, checkpoint, clip):
    result = CliRunner().invoke(app, ["localize", clip, "--model", checkpoint, "--device", device])
    assert result.exit_code == 2
    message = " ".join(result.output.replace("│", " ").split())
    assert "cannot be used here" in message and f"--device {device}".strip() in message
    assert "PyTorch sees cpu" in message


def test_a_foreign_suffix_is_warned_of(localize, clip):
    result = localize(clip, "--format", "srt", "--output", "out.csv")
    assert result.exit_code == 0 and "warning: writing srt into out.csv" in result.output


def test_export_makes_a_folder_and_does_not_overwrite(checkpoint, folder):
    first = CliRunner().invoke(app, ["export", checkpoint, "out dir", "--format", "hub"])
    assert first.exit_code == 0, first.output
    assert {"config.json", "modeling_ave_clip.py", "README.md"} <= {path.name for path in Path("out dir").iterdir()}
    again = CliRunner().invoke(app, ["export", checkpoint, "out dir"])
    assert again.exit_code == 1 and "not an empty folder" in again.output
    assert CliRunner().invoke(app, ["export", checkpoint, "out dir", "--overwrite"]).exit_code == 0
    arguments = ["export", checkpoint, "graphs", "--format", "onnx", "--push-to-hub", "me/x"]
    assert CliRunner().invoke(app, arguments).exit_code == 2 and not Path("graphs").exists()
    missing = CliRunner().invoke(app, ["export", "no/such/model", "other"])
    assert missing.exit_code == 1 and "no/such/model" in missing.output and not Path("other").exists()


@pytest.mark.parametrize("format", ["hub", "onnx"])
def test_export_replaces_nothing_but_an_earlier_checkpoint(checkpoint, folder, format):
    shutil.copytree(checkpoint, "models/mine")
    Path("notes").mkdir()
    Path("notes/thesis.txt").write_text("years of work")
    for out, reason in (
        ("notes", "contains no config.json"),
        (".", "which would be deleted with it"),
        ("models/mine", "which would be deleted with it"),
        ("models", "which would be deleted with it"),
        ("notes/thesis.txt", "is a file"),
    ):
        result = CliRunner().invoke(app, ["export", "models/mine", out, "--format", format, "--overwrite"])
        assert result.exit_code == 1 and reason in " ".join(result.output.split()), result.output
    assert Path("notes/thesis.txt").read_text() == "years of work" and Path("models/mine/config.json").is_file()


def test_an_exported_folder_is_a_model_for_localize(checkpoint, clip, localize):
    assert CliRunner().invoke(app, ["export", checkpoint, "exported"]).exit_code == 0
    result = CliRunner().invoke(app, ["localize", clip, "--model", "exported", "--format", "json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout[result.stdout.index("[") :])[0]["events"] == events_of(localize, clip)[clip]


@pytest.mark.parametrize(
    ("videos", "names"),
    [
        (["v/a.mov", "v/a.mp4", "v/sub/a.mp4"], ["a.mov", "a.mp4", "sub-a.mp4"]),
        (["a/x.mp4", "b/X.mp4", "b/x-2.mp4", "a/x.mp4"], ["a-x.mp4", "b-X.mp4", "x-2"]),
        (["a.mov.mp4", "a.mov", "a.mp4"], ["a.mov.mp4", "a.mov", "a.mp4"]),
        (["https://e.org/d/x%20y.webm?k=1#t", "https://e.org/"], ["x y", "video"]),
        (["https://u:p@e.org/1/a.mp4", "https://e.org/2/a.mp4"], ["1-a.mp4", "2-a.mp4"]),
        (["https://u:p@e.org/a.mp4", "https://f.org/a.mp4"], ["e.org-a.mp4", "f.org-a.mp4"]),
        (["https://e.org/a.mp4?k=1", "https://e.org/a.mp4?k=2"], ["a.mp4", "a.mp4-2"]),
    ],
)
def test_equal_stems_keep_suffix_then_folder_and_only_then_get_numbers(videos, names):
    planned = plan_files(videos, "out/", ".srt", "--output")
    assert [path.as_posix() for path in planned.values()] == [f"out/{name}.srt" for name in names]


def test_names_do_not_depend_on_videos_of_other_stems():
    few, more = ["v/a.mov", "v/sub/a.mp4"], ["b.mp4", "v/a.mov", "c.mp4", "v/sub/a.mp4", "x/y/c.mp4"]
    plans = [plan_files(videos, "out/", ".srt", "--output") for videos in (few, more)]
    assert all(plans[0][video] == plans[1][video] for video in few)


def test_a_single_video_may_go_to_a_file_of_any_name():
    assert plan_files(["a.mp4"], "subs", ".srt", "--output") == {"a.mp4": Path("subs")}
    with pytest.raises(WrongOutputError, match="is one file"):
        plan_files(["a.mp4", "b.mp4"], "subs.srt", ".srt", "--output")


def test_a_folder_of_outputs_may_be_new_but_not_its_parent(tmp_path):
    check_targets([("--output", tmp_path / "new" / "a.srt")], [], new_folders=True)
    for path, new_folders in ((tmp_path / "new" / "a.srt", False), (tmp_path / "x" / "y" / "a.srt", True)):
        with pytest.raises(WrongOutputError, match="there is no folder"):
            check_targets([("--output", path)], [], new_folders)


def test_suffixes_choose_formats():
    suffixes = {"a.EAF": "elan", "b.vtt": "vtt", "c.txt": "table", None: "table", "d.jsonl": "jsonl", "e": "table"}
    assert {name: format_of(name) for name in suffixes} == suffixes


@pytest.mark.parametrize(
    "output, way_out",
    [
        *[(f"x{suffix}", "--overlay x.mp4") for suffix in (".mp4", ".MKV", ".webm", ".avi")],
        *[(f"x{suffix}", "--plot") for suffix in (".png", ".svg", ".html", ".jpg")],
        *[(f"x{suffix}", "--format") for suffix in (".xyz", ".tsv", ".xlsx", ".json.gz", ".mp3")],
        ("{name}.mp4", "--overlay {name}.mp4"),
    ],
)
def test_an_output_whose_suffix_is_no_format_is_refused_with_the_way_out(output, way_out, folder):
    result = CliRunner().invoke(app, ["localize", "clip.mp4", "-o", output], env={"COLUMNS": "300"})
    assert result.exit_code == 2 and way_out in result.output and not Path(output).exists()


def test_text_is_not_written_to_an_image_or_video_even_with_a_format(folder):
    for output in ("x.mp4", "x.png"):
        assert CliRunner().invoke(app, ["localize", "clip.mp4", "-f", "json", "-o", output]).exit_code == 2


def test_what_was_written_is_said_on_stderr(localize, clip, folder):
    result = localize(clip, "-f", "json", "-o", "any.name", "--plot", "x.html")
    assert result.exit_code == 0 and result.stdout == ""
    assert [line for line in result.stderr.splitlines() if "wrote" in line] == [
        "ave-clip: wrote any.name",
        "ave-clip: wrote x.html",
    ]
    assert "ave-clip: wrote labels/clip.eaf" in localize(clip, "-f", "elan", "-o", "labels/").stderr
    assert "wrote" not in localize(clip, "-o", "-").stderr and not Path("-").exists()


def test_folders_stand_for_their_videos_in_natural_order(localize, folder, recording):
    Path("videos/deeper").mkdir(parents=True)
    Path("videos/.hidden").mkdir()
    for name in ("clip10.mp4", "clip2.MP4", "clip.mp4", "deeper/clip1.webm", ".hidden/clip0.mp4", ".clip.mp4"):
        Path("videos", name).write_bytes(recording)
    Path("videos/notes.txt").write_text("no video")
    Path("empty").mkdir()
    result = localize("videos", "-f", "jsonl")
    videos = [json.loads(line)["video"] for line in result.stdout.splitlines()]
    assert videos == [f"videos/{name}" for name in ("clip.mp4", "clip2.MP4", "clip10.mp4", "deeper/clip1.webm")]
    assert "videos: 4 videos; other files left out: 1." in result.stderr
    assert localize("empty").exit_code == 2


def test_the_notice_about_the_default_model_spares_only_what_programs_read(clip):
    for format, is_told in (("table", True), ("srt", True), ("json", False), ("csv", False)):
        result = CliRunner().invoke(app, ["localize", clip, "-f", format, "--device", "cpu"])
        assert result.exit_code == 0 and ("looks for 28 events" in result.stderr) is is_told, result.output


def test_a_built_in_name_is_a_model_and_a_wrong_one_names_those(clip, folder):
    result = CliRunner().invoke(app, ["localize", clip, "-m", "ave-clip-tiny", "-f", "json", "--device", "cpu"])
    assert result.exit_code == 0 and json.loads(result.stdout)
    wrong = CliRunner().invoke(app, ["localize", clip, "-m", "ave-clip-tini"])
    assert wrong.exit_code == 1 and re.search("built-in names are: .*ave-clip-tiny", wrong.stderr)
    assert CliRunner().invoke(app, ["export", "ave-clip-tiny", "out"]).exit_code == 0


def test_top_k_labels_and_overlap_reach_the_pipeline(localize, clip):
    (video,) = json.loads(localize(clip, "-f", "json", "--top-k", "2", "--overlap", "0.75").stdout)
    assert [len(segment["top_k"]) for segment in video["segments"]] == [2, 2, 2]
    table = localize(clip, "--top-k", "2").stdout
    assert table.count(video["segments"][0]["top_k"][1]["label"]) >= 1 and "labels" in table
    assert localize(clip, "--top-k", "2", "-f", "srt").exit_code == 2
    assert localize(clip, "--overlap", "1").exit_code == 2


def test_help_and_version_have_short_forms():
    for arguments in (["-h"], ["localize", "-h"], ["export", "-h"], ["synthesize", "-h"], ["convert", "-h"]):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    assert CliRunner().invoke(app, ["-V"]).stdout == CliRunner().invoke(app, ["--version"]).stdout
    assert "--install-completion" in CliRunner().invoke(app, ["-h"]).stdout
