"""Each format, parsed back by a library that reads it, with labels and names that try to break out of their place."""

import csv
import html
import io
import json
import warnings

import pandas
import pympi
import pytest
import srt
import webvtt

from ave_clip.core.text import is_safe, read_csv_cell
from ave_clip.data.readers.base import ReaderOptions
from ave_clip.data.readers.elan import READER as ELAN
from ave_clip.outputs.formats import FORMATS, format_csv, format_elan, format_srt, join_json, result_object

LABELS = [
    "Church bell",
    "Male speech, man speaking",
    '<b onmouseover="x()">Bark</b> & co',
    "00:00:01,000 --> 00:00:02,000",
    "two\nlines\r\n\r\nand\ttabs",
    "{\\an8}\\pos(1,2)",
    "鐘 колокол 🔔",
    'say "hi"; =1+1',
    "nul\x00 bell\x07 \u2028 separator",
]
PLAIN = [" ".join(label.replace("\x00", " ").replace("\x07", " ").split()) for label in LABELS]
NAMES = ['my "best" clip.mp4', "-dash & <b>.mp4", "звон 鐘.mp4", "comma, semicolon;.mp4", "new\nline.mp4"]


def result_of(labels: list[str]) -> dict:
    events = [
        {"start": 3723.5 * index + 0.25, "end": 3723.5 * index + 2.0, "label": label, "score": 0.5 + index / 100}
        for index, label in enumerate(labels)
    ]
    segments = [{"start": float(t), "end": t + 1.0, "label": "background", "score": 0.9} for t in range(3)]
    return {"segments": segments, "events": events}


RESULT = result_of(LABELS)
TIMES = [(event["start"], event["end"]) for event in RESULT["events"]]
NOTHING = {"segments": result_of([])["segments"], "events": []}


def read_elan(text: str, folder) -> pympi.Eaf:
    (folder / "labels.eaf").write_text(text, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return pympi.Eaf(str(folder / "labels.eaf"))


def test_standard_input_has_a_name_that_is_no_formula_and_no_link():
    rows = list(csv.DictReader(io.StringIO(format_csv(RESULT, "-"))))
    assert {row["video"] for row in rows} == {"<stdin>"}
    assert [row["video"] for row in json.loads(FORMATS["json"].format(RESULT, "-"))] == ["<stdin>"]
    rows = csv.DictReader(io.StringIO(format_csv(RESULT, "http://me:key@host/a.mp4")))
    assert {row["video"] for row in rows} == {"http://me:***@host/a.mp4"}
    assert "MEDIA_URL" not in format_elan(RESULT, "-")


def test_subrip_is_read_back_with_every_event_and_without_markup():
    subtitles = list(srt.parse(FORMATS["srt"].format(RESULT), ignore_errors=False))
    assert [(one.start.total_seconds(), one.end.total_seconds()) for one in subtitles] == TIMES
    assert [one.index for one in subtitles] == list(range(1, len(LABELS) + 1))
    texts = [one.content for one in subtitles]
    assert [texts[i] for i in (0, 1, 4, 6, 7, 8)] == [PLAIN[i] for i in (0, 1, 4, 6, 7, 8)]
    assert texts[2] == '‹b onmouseover="x()"›Bark‹/b› & co'
    assert texts[3] == "00:00:01,000 --› 00:00:02,000"
    assert not any(character in text for text in texts for character in "<>{}\n")


def test_webvtt_is_read_back_with_every_event_and_every_character():
    captions = list(webvtt.from_string(FORMATS["vtt"].format(RESULT)))
    assert [(one.start_in_seconds, one.end_in_seconds) for one in captions] == [(int(a), int(b)) for a, b in TIMES]
    assert captions[1].start == "01:02:03.750"
    assert [html.unescape(one.raw_text) for one in captions] == PLAIN
    assert not any(character in one.raw_text for one in captions for character in "<>\n")


def test_audacity_labels_are_three_fields_a_line():
    table = pandas.read_csv(
        io.StringIO(FORMATS["audacity"].format(RESULT)), sep="\t", header=None, quoting=csv.QUOTE_NONE, dtype={2: str}
    )
    assert table.shape == (len(LABELS), 3)
    assert list(zip(table[0], table[1])) == TIMES
    assert list(table[2]) == PLAIN


def test_elan_is_read_back_with_both_tiers(tmp_path):
    eaf = read_elan(format_elan(RESULT, "clip.mp4"), tmp_path)
    assert list(eaf.get_tier_names()) == ["events", "segments"]
    expected = [(round(1000 * a), round(1000 * b), label) for (a, b), label in zip(TIMES, PLAIN)]
    assert sorted(eaf.get_annotation_data_for_tier("events")) == expected
    assert sorted(eaf.get_annotation_data_for_tier("segments"))[1] == (1000, 2000, "background")
    assert eaf.get_tier_names() and eaf.adocument["FORMAT"] == "3.0"


def test_overlapping_events_are_in_one_tier_of_elan_per_label(tmp_path):
    spans = [("Bark", 0.0, 6.0), ("Speech", 4.0, 10.0), ("Bell", 4.0, 9.0), ("Bark", 11.0, 12.0)]
    events = [{"start": start, "end": end, "label": label, "score": 0.5} for label, start, end in spans]
    eaf = read_elan(format_elan({**RESULT, "events": events}, "clip.mp4"), tmp_path)
    assert set(eaf.get_tier_names()) == {"events: Bark", "events: Speech", "events: Bell", "segments"}
    assert sorted(eaf.get_annotation_data_for_tier("events: Bark")) == [(0, 6000, "Bark"), (11000, 12000, "Bark")]
    (video,), _ = ELAN.read(tmp_path / "labels.eaf", ReaderOptions())
    assert sorted(event[:3] for event in video.events) == sorted(spans)


@pytest.mark.parametrize("name", NAMES[:4])
def test_elan_finds_the_video_by_its_absolute_and_relative_place(name, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "labels").mkdir()
    video = tmp_path / "videos" / name
    (media,) = read_elan(format_elan(RESULT, str(video), tmp_path / "labels"), tmp_path).media_descriptors
    assert media["MEDIA_URL"] == f"file://{video}"
    assert media["RELATIVE_MEDIA_URL"] == f"../videos/{name}"
    assert media["MIME_TYPE"] == "video/mp4"
    (beside,) = read_elan(format_elan(RESULT, str(video), video.parent), tmp_path).media_descriptors
    assert beside["RELATIVE_MEDIA_URL"] == f"./{name}"


def test_elan_links_an_url_as_it_is(tmp_path):
    url = "https://example.org/a%20clip.webm?x=1&y=2"
    (media,) = read_elan(format_elan(NOTHING, url), tmp_path).media_descriptors
    assert media["MEDIA_URL"] == url and "RELATIVE_MEDIA_URL" not in media


@pytest.mark.parametrize("name", NAMES)
def test_csv_gives_every_name_and_label_back(name):
    table = pandas.read_csv(io.StringIO(FORMATS["csv"].format(RESULT, name)))
    assert list(table.columns) == ["video", "start", "end", "label", "score"]
    assert {read_csv_cell(cell) for cell in table["video"]} == {name}
    assert list(zip(table["start"], table["end"])) == TIMES
    assert [read_csv_cell(cell) for cell in table["label"]] == LABELS
    assert list(table["score"]) == pytest.approx([event["score"] for event in RESULT["events"]], abs=1e-9)


def test_csv_cells_compute_nothing_in_a_spreadsheet(tmp_path):
    labels = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1", "'=1", "''t", "plain", "a=1"]
    table = pandas.read_csv(io.StringIO(FORMATS["csv"].format(result_of(labels), "-clip.mp4")), dtype={"label": str})
    assert list(table["label"]) == ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\t=1", "\\x0d=1", "'\uff1d1"] + [
        "''=1",
        *labels[8:],
    ]
    assert set(table["video"]) == {"'-clip.mp4"}
    assert [read_csv_cell(cell) for cell in table["label"]] == labels


@pytest.mark.parametrize("name", FORMATS)
def test_no_format_contains_a_raw_control_character_or_bidirectional_mark(name, tmp_path):
    labels = ["\x1b[31mred", "left\u202etfel", "\x7f\x9b\u200e\u2066hidden\u2069", "tag\U000e0041", "half\udc80"]
    text = FORMATS[name].format(result_of(labels), "clip \x1b]0;title\x07 \u202e4pm.mp4")
    assert [char for char in text if char not in "\n\t" and not is_safe(char)] == []
    if name == "json":
        assert [event["label"] for event in json.loads(text)[0]["events"]] == labels
    if name == "elan":
        (media,) = read_elan(text, tmp_path).media_descriptors
        assert media["RELATIVE_MEDIA_URL"] == "./clip \ufffd]0;title\ufffd \u202e4pm.mp4"


def test_csv_of_several_videos_has_one_header():
    text = format_csv(RESULT, "a.mp4") + format_csv(RESULT, "b.mp4", header=False)
    assert list(pandas.read_csv(io.StringIO(text))["video"]) == ["a.mp4"] * len(LABELS) + ["b.mp4"] * len(LABELS)


def test_csv_and_json_say_how_an_event_is_known_if_the_result_does():
    event = {"start": 1.0, "end": 3.0, "label": "thunder", "score": 0.9, "heard": 0.93, "seen": None, "both": 0.25}
    result = {"segments": [{**event, "end": 2.0}], "events": [event]}
    assert format_csv(result, "a.mp4") == (
        "video,start,end,label,score,heard,seen,both\na.mp4,1,3,thunder,0.9000,0.9300,,0.2500\n"
    )
    assert format_csv({**result, "events": []}) == "video,start,end,label,score,heard,seen,both\n"
    assert format_csv(RESULT).startswith("video,start,end,label,score\n")
    assert json.loads(FORMATS["json"].format(result))[0]["events"] == [event]
    assert json.loads(FORMATS["jsonl"].format(result))["segments"] == result["segments"]


def test_json_lines_are_read_back_without_heat_maps():
    heavy = {**RESULT, "heatmaps": object()}
    text = "".join(FORMATS["jsonl"].format(heavy, name) for name in NAMES)
    table = pandas.read_json(io.StringIO(text), lines=True)
    assert list(table["video"]) == NAMES
    assert table["events"][0] == RESULT["events"]
    assert all(json.loads(line) == {"video": name, **RESULT} for line, name in zip(text.splitlines(), NAMES))


def test_json_is_a_list_of_videos():
    assert json.loads(FORMATS["json"].format(RESULT, "a.mp4")) == [{"video": "a.mp4", **RESULT}]
    assert json.loads(join_json([])) == []


def test_a_video_without_events_is_a_valid_file(tmp_path):
    assert list(srt.parse(FORMATS["srt"].format(NOTHING))) == []
    assert len(webvtt.from_string(FORMATS["vtt"].format(NOTHING))) == 0
    assert FORMATS["audacity"].format(NOTHING) == ""
    assert read_elan(FORMATS["elan"].format(NOTHING, "a.mp4"), tmp_path).get_annotation_data_for_tier("events") == []
    assert len(pandas.read_csv(io.StringIO(FORMATS["csv"].format(NOTHING, "a.mp4")))) == 0


def test_times_are_rounded_to_the_millisecond_and_carried():
    result = {"segments": [], "events": [{"start": 59.9996, "end": 3599.9999, "label": "x", "score": 1.0}]}
    assert format_srt(result) == "1\n00:01:00,000 --> 01:00:00,000\nx\n"


def test_events_are_written_in_the_order_of_time():
    result = {"segments": [], "events": list(reversed(RESULT["events"]))}
    assert format_srt(result) == format_srt(RESULT)


def test_every_format_has_a_suffix_of_its_own():
    assert len({entry.suffix for entry in FORMATS.values()}) == len(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_header_and_what_follows_make_the_file_of_one_video(name):
    entry = FORMATS[name]
    if entry.columns is not None:
        header, rows = entry.format(NOTHING), entry.format(RESULT, "a.mp4", header=False)
        assert header + rows == entry.format(RESULT, "a.mp4")
    if entry.join is not None:
        assert entry.join([result_object(RESULT, "a.mp4")]) == entry.format(RESULT, "a.mp4")
