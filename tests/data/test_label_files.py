"""Labels that people already have: Audacity's and ELAN's files, data frames, and tables with other column names."""

import pandas
import pytest

from ave_clip.data import AnnotationError, load_videos
from ave_clip.outputs.formats import format_audacity, format_elan

RESULT = {
    "events": [
        {"start": 0.5, "end": 2.0, "label": "Bark", "score": 0.9},
        {"start": 2.0, "end": 3.0, "label": "Whine & growl", "score": 0.8},
    ],
    "segments": [{"start": 0.0, "end": 3.0, "label": "background", "score": 0.7}],
}
SPANS = [(event["label"], event["start"], event["end"]) for event in RESULT["events"]]
FRAME = pandas.DataFrame(
    [("a.mp4", "Bark", 0.5, 2.0), ("a.mp4", "Whine & growl", 2.0, 3.0), ("sub/b.mp4", None, None, None)],
    columns=["path", "label", "start", "end"],
)


@pytest.fixture
def videos(tmp_path, recordings):
    """Folder of two videos of 3 seconds."""
    (tmp_path / "videos" / "sub").mkdir(parents=True)
    for name in ("a.mp4", "sub/b.mp4"):
        (tmp_path / "videos" / name).write_bytes(recordings["long"].read_bytes())
    return tmp_path / "videos"


def spans(rows, number: int = 0) -> list[tuple[str, float, float]]:
    names = rows.features["category"].names
    return [(names[event["label"]], event["start"], event["end"]) for event in rows[number]["events"]]


@pytest.mark.parametrize("suffix, write", [(".txt", format_audacity), (".eaf", format_elan)])
def test_what_the_package_writes_is_read_back(suffix, write, videos):
    for file, video in (("a", "a.mp4"), ("b", "sub/b.mp4")):
        places = {"folder": videos} if suffix == ".eaf" else {}
        (videos / f"{file}{suffix}").write_text(write(RESULT, str(videos / video), **places))
    rows = load_videos(videos / f"a{suffix}", split="train")
    assert spans(rows) == SPANS and rows[0]["video_id"] == "a.mp4" and rows[0]["labels"] == [0, 0, 1]
    both = load_videos(videos, split="train")
    assert [row["video_id"] for row in both] == ["a.mp4", "sub/b.mp4"] and spans(both, 1) == SPANS


def test_label_files_may_be_kept_apart_from_the_videos(videos, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "a.mp4.txt").write_text("0,500000\t2,000000\tBark\n\\\t100.0\t2000.0\n")
    (labels / "b.txt").write_text("")
    (labels / "categories.txt").write_text("Bark\nWhine\n")
    rows = load_videos(labels, split="train", video_dir=videos)
    assert spans(rows) == [("Bark", 0.5, 2.0)] and spans(rows, 1) == []
    assert rows.features["category"].names == ["Bark", "Whine"]


@pytest.mark.parametrize(
    "text, reason",
    [
        ("0.5\t2\n", "line 1: got '0.5.t2'"),
        ("0\t1\tBark\n2\t2\tBark\n", "line 2: 'Bark': The event ends at 2.0"),
        ("zero\t1\tBark\n", "wanted a number of seconds"),
        ("0\t1\tBark\n1\t2\tbark\n", "differ only in case"),
        ("path,label,start,end\n", "with tabs"),
    ],
)
def test_label_files_with_mistakes_name_the_line(text, reason, videos):
    (videos / "a.txt").write_text(text)
    with pytest.raises(AnnotationError, match=reason):
        load_videos(videos / "a.txt")


def elan(*tiers: tuple[str, str], unit: str = "milliseconds") -> str:
    body = "".join(
        f'<TIER TIER_ID="{name}"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="x" TIME_SLOT_REF1="t1" '
        f'TIME_SLOT_REF2="t2"><ANNOTATION_VALUE>{label}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>'
        for name, label in tiers
    )
    return (
        f'<ANNOTATION_DOCUMENT><HEADER TIME_UNITS="{unit}"/><TIME_ORDER>'
        f'<TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="500"/>'
        f'<TIME_SLOT TIME_SLOT_ID="t2" TIME_VALUE="2000"/></TIME_ORDER>{body}<TIER TIER_ID="empty"/>'
        "</ANNOTATION_DOCUMENT>"
    )


def test_a_tier_of_elan_is_chosen_or_asked_for(videos):
    (videos / "a.eaf").write_text(elan(("my sounds", "Bark")))
    assert spans(load_videos(videos / "a.eaf", split="train")) == [("Bark", 0.5, 2.0)]
    (videos / "a.eaf").write_text(elan(("one", "Bark"), ("two", "Whine")))
    with pytest.raises(AnnotationError, match=r"several tiers .* tier= with one of \['one', 'two', 'empty'\]"):
        load_videos(videos / "a.eaf")
    assert spans(load_videos(videos / "a.eaf", split="train", tier="two")) == [("Whine", 0.5, 2.0)]
    with pytest.raises(AnnotationError, match="no tier 'three'"):
        load_videos(videos / "a.eaf", tier="three")


@pytest.mark.parametrize("text", ["<a", "<a/>", elan(("x", "Bark"), unit="frames"), elan(("x", " "))])
def test_other_xml_is_refused(text, videos):
    (videos / "a.eaf").write_text(text)
    with pytest.raises(AnnotationError, match=r"a\.eaf"):
        load_videos(videos / "a.eaf")


def test_a_data_frame_is_a_table(videos, monkeypatch):
    rows = load_videos(FRAME, split="train", video_dir=videos)
    assert spans(rows) == SPANS and spans(rows, 1) == []
    monkeypatch.chdir(videos)
    assert load_videos(FRAME.to_dict("records"), split="train").to_list() == rows.to_list()
    for wrong in (7, {"path": ["a.mp4"]}, [1, 2], None):
        with pytest.raises(TypeError, match="data frame"):
            load_videos(wrong)


@pytest.mark.parametrize(
    "names",
    [
        ["filename", "event_label", "onset", "offset"],
        ["File", "Class", "Start Time", "End Time"],
        ["video", "category", "start_seconds", "end_seconds"],
        ["Video Path", "tag", "Begin Time (s)", "End Time (s)"],
        ["file_name", "class-name", "start_time", "stop"],
    ],
)
@pytest.mark.parametrize("separator", [",", ";", "\t", None])
def test_columns_go_by_their_usual_names(names, separator, videos):
    frame = FRAME.set_axis(names, axis=1)
    if separator is not None:
        path = videos / ("events.tsv" if separator == "\t" else "events.csv")
        frame.to_csv(path, index=False, sep=separator)
        frame = path
    assert spans(load_videos(frame, split="train", video_dir=videos)) == SPANS


def test_a_duration_instead_of_an_end_is_the_events(videos):
    frame = FRAME.rename(columns={"end": "duration"}).assign(duration=[1.5, 1.0, None])
    assert spans(load_videos(frame, split="train", video_dir=videos)) == SPANS


def test_two_columns_that_can_be_meant_are_an_error_unless_one_has_the_name_itself(videos):
    both = FRAME.rename(columns={"label": "class"}).assign(category="x")
    with pytest.raises(AnnotationError, match="'class' and 'category' can both be the label"):
        load_videos(both, video_dir=videos)
    assert spans(load_videos(FRAME.assign(category="x"), split="train", video_dir=videos)) == SPANS
    (videos / "x.csv").write_text("path,label,begin_frame,end\na.mp4,Bark,0,1\n")
    with pytest.raises(AnnotationError, match=r"line 1: .*without start \(or begin, "):
        load_videos(videos / "x.csv")


@pytest.mark.parametrize("other", ["bark", "BARK", " Bark"])
def test_labels_that_differ_only_in_case_are_an_error(other, videos):
    frame = FRAME.assign(label=["Bark", other, None])
    if other.strip() == "Bark":
        assert load_videos(frame, split="train", video_dir=videos).features["category"].names == ["Bark"]
        return
    with pytest.raises(AnnotationError, match=f"'{other}' and 'Bark' of line 1 differ only in case"):
        load_videos(frame, video_dir=videos)
    with pytest.raises(AnnotationError, match="differ only in case"):
        load_videos(frame, video_dir=videos, categories=["Bark", other])
    with pytest.raises(AnnotationError, match="Did you mean 'Bark'"):
        load_videos(frame, video_dir=videos, categories=["Bark"])
