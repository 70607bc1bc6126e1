import json

import pytest

from ave_clip.data import AnnotationError, MissingVideoError, decode_videos, load_ave, load_videos
from tests.helpers.media import write_recording

LINES = [
    "path,label,start,end,split",
    "dogs/-one.mp4,Bark,0.4,1.6,train",
    "dogs/-one.mp4,Whine,1.6,3,train",
    "two.mp4,Bark,0,2,test",
    "quiet.mp4,,,,train",
]


@pytest.fixture
def own(tmp_path, recordings):
    """Three videos (3, 2 and 3 seconds) and a table of their events."""
    folder = tmp_path / "own"
    (folder / "dogs").mkdir(parents=True)
    for name, recording in (("dogs/-one.mp4", "long"), ("two.mp4", "short"), ("quiet.mp4", "long")):
        (folder / name).write_bytes(recordings[recording].read_bytes())
    return write(folder / "events.csv", LINES)


def write(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_table_becomes_the_same_kind_of_data_set(own, ave):
    splits = load_videos(own)
    assert splits["train"].features.keys() == load_ave(ave.root, split="train").features.keys()
    assert splits["train"].features["category"].names == ["Bark", "Whine"]
    assert splits["train"][0] == {
        "row": 0,
        "video_id": "dogs/-one.mp4",
        "video": {"bytes": None, "path": str(own.parent / "dogs" / "-one.mp4")},
        "category": 1,
        "labels": [0, 0, 1],
        "start": 0.4,
        "end": 3.0,
        "events": [{"label": 0, "start": 0.4, "end": 1.6}, {"label": 1, "start": 1.6, "end": 3.0}],
        "duration": 3.0,
        "duplicate_of": None,
        "leaks_into": [],
    }
    assert [row["labels"] for row in splits["test"]] == [[0, 0]]


def test_a_video_without_events_is_all_background(own):
    quiet = load_videos(own, split="train")[1]
    assert (quiet["labels"], quiet["category"], quiet["start"], quiet["end"]) == ([2, 2, 2], None, None, None)
    assert quiet["events"] == []


def test_json_lines_give_the_same_as_the_table(own):
    names = LINES[0].split(",")
    records = [dict(zip(names, line.split(","))) for line in LINES[1:]]
    for record in records[:3]:
        record.update(start=float(record["start"]), end=float(record["end"]))
    lines = [json.dumps({key: value for key, value in record.items() if value != ""}) for record in records]
    table = load_videos(own)
    json_lines = load_videos(write(own.with_suffix(".jsonl"), lines))
    assert {split: part.to_list() for split, part in json_lines.items()} == {
        split: part.to_list() for split, part in table.items()
    }


def test_tabs_quotes_and_commas_in_labels_are_understood(own):
    lines = ["path\tlabel\tstart\tend", "two.mp4\tSpeech, male\t0\t1"]
    assert load_videos(write(own.with_suffix(".tsv"), lines), split="train").features["category"].names == [
        "Speech, male"
    ]
    lines = ["path,label,start,end", 'two.mp4,"Speech, male",0,1']
    assert load_videos(write(own, lines), split="train")[0]["labels"] == [0, 1]


def test_streaming_gives_what_building_gives(own):
    assert list(load_videos(own, split="train", streaming=True)) == load_videos(own, split="train").to_list()


def test_all_wrong_labels_are_listed(tmp_path):
    lines = ["path,label,start,end", *(f"{number}.mp4,Brak,0,1" for number in range(12)), "13.mp4,Bark,0,1"]
    with pytest.raises(AnnotationError) as raised:
        load_videos(write(tmp_path / "events.csv", lines), categories=["Bark"])
    message = str(raised.value)
    assert "events.csv, line 2: '0.mp4'" in message and "Did you mean 'Bark'?" in message
    assert "12 events have a label that is not in the list: 'Brak' (line 2); 'Brak' (line 3)" in message
    assert message.endswith("'Brak' (line 11); and 2 more.")


def test_categories_come_from_the_argument_or_the_file_beside(own):
    write(own.parent / "categories.txt", ["Whine", "Howl", "Bark"])
    assert load_videos(own, split="train")[0]["labels"] == [2, 2, 0]
    assert load_videos(own, split="train", categories=["Bark", "Whine", "Cat"])[0]["labels"] == [0, 0, 1]
    with pytest.raises(AnnotationError, match=r"events\.csv, line 3: 'dogs/-one\.mp4': Got the category 'Whine'"):
        load_videos(own, categories=["Bark", "Wine"])
    with pytest.raises(AnnotationError, match="categories, line 3: the category 'Bark' is in line 1 already"):
        load_videos(own, categories=["Bark", "Whine", "Bark"])
    with pytest.raises(ValueError, match="wanted a list of names"):
        load_videos(own, categories="Bark")


def test_two_ways_to_write_a_path_are_one_video(own):
    lines = [*LINES, "./two.mp4,Whine,0,1,train"]
    with pytest.raises(AnnotationError, match=r"line 6: 'two.mp4' has the split train here, but test in line 4"):
        load_videos(write(own, lines))
    lines[-1] = "./two.mp4,Whine,0,1,test"
    rows = load_videos(write(own, lines), "test", problem_type="multi_label")
    assert rows["video_id"] == ["two.mp4"] and len(rows[0]["events"]) == 2


@pytest.mark.parametrize("seconds", [1e-9, 0, 61, float("nan")])
def test_segments_of_a_senseless_length_are_refused(own, seconds):
    with pytest.raises(ValueError, match=r"segment_seconds=.*wanted a number of seconds from 0.05 to 60"):
        load_videos(own, segment_seconds=seconds)


def test_segments_may_be_shorter_than_a_second(own):
    labels = load_videos(own, split="train", segment_seconds=0.5)[0]["labels"]
    assert labels == [2, 0, 0, 1, 1, 1]


def test_paths_may_start_in_another_folder(own, tmp_path):
    table = write(tmp_path / "elsewhere.csv", LINES)
    assert load_videos(table, video_dir=own.parent)["test"][0]["video"]["path"] == str(own.parent / "two.mp4")
    with pytest.raises(MissingVideoError, match=r"3 of 3 rows cannot be read: dogs/-one\.mp4 \(row 0\): missing"):
        load_videos(table)


def test_a_duration_column_spares_the_look_into_the_file(own):
    (own.parent / "two.mp4").write_text("no video")
    lines = ["path,label,start,end,duration", "two.mp4,Bark,3,5.2,5"]
    assert load_videos(write(own, lines), split="train")[0]["labels"] == [1, 1, 1, 0, 0]
    with pytest.raises(MissingVideoError, match=r"two\.mp4 \(row 0\)"):
        load_videos(write(own, ["path,label,start,end", "two.mp4,Bark,0,1"]))


def test_unreadable_videos_can_be_skipped(own):
    (own.parent / "dogs" / "-one.mp4").write_text("no video")
    (own.parent / "quiet.mp4").write_text("")
    (own.parent / "three.mp4").write_bytes((own.parent / "two.mp4").read_bytes())
    write(own, [*LINES, "three.mp4,Bark,0,1,train"])
    assert [row["row"] for row in load_videos(own, split="train", on_missing="skip")] == [3]


def test_overlapping_events_are_refused_or_the_longest_wins(own):
    lines = ["path,label,start,end", "two.mp4,Bark,0,1.4", "two.mp4,Whine,1.2,2"]
    with pytest.raises(AnnotationError, match=r"line 3: 'Whine' at 1\.2 to 2\.0 s overlaps 'Bark' at 0\.0 to 1\.4 s"):
        load_videos(write(own, lines))
    row = load_videos(own, split="train", overlap="longest")[0]
    assert row["labels"] == [0, 1]
    assert len(row["events"]) == 2
    with pytest.raises(ValueError, match="overlap='first'"):
        load_videos(own, overlap="first")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("two.mp4,Bark,2,1,test", r"ends at 1\.0 s, but starts at 2\.0 s"),
        ("two.mp4,Bark,1,1,test", "the end must come later"),
        ("two.mp4,Bark,-1,1,test", "start='-1', wanted a number of seconds from 0 on"),
        ("two.mp4,Bark,nan,1,test", "start='nan', wanted"),
        ("two.mp4,Bark,zero,1,test", "start='zero', wanted a number of seconds"),
        ("two.mp4,Bark,0,,test", "Only label and start given"),
        ("two.mp4,,0,1,test", "Only start and end given"),
        (",Bark,0,1,test", "The path is empty"),
        ("two.mp4,Bark,0,1,dev", "the split 'dev', wanted train, validation or test"),
        ("two.mp4,Bark,0,1", "another number of fields than the header, which has 5"),
        ("two.mp4,Bark,0,1,test,7", "another number of fields"),
        ("dogs/-one.mp4,Bark,0,0.3,test", "has the split test here, but train in line 2"),
        ("dogs/-one.mp4,Bark,0.4,1.6,train", "repeats line 2"),
        ("quiet.mp4,Bark,0,1,train", "a row without an event, but 'quiet.mp4' has one"),
        ('two.mp4,"Bark,0,1,test', "not readable as CSV"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_with_its_line(own, row, message):
    with pytest.raises(AnnotationError, match=rf"events\.csv, line 6: .*{message}"):
        load_videos(write(own, [*LINES, row]))


def test_an_event_after_the_end_of_the_file_is_refused_with_its_line(own):
    with pytest.raises(
        AnnotationError, match=r"line 6: 'three\.mp4': The event ends at 9\.0 s, but the video at [23]"
    ):
        (own.parent / "three.mp4").write_bytes((own.parent / "two.mp4").read_bytes())
        load_videos(write(own, [*LINES, "three.mp4,Bark,0,9,test"]))


def test_files_of_another_form_are_refused(own):
    with pytest.raises(AnnotationError, match=r"line 1: the columns are \['path', 'label'\], without start .*; end "):
        load_videos(write(own, ["path,label", "two.mp4,Bark"]))
    with pytest.raises(AnnotationError, match="there are no rows"):
        load_videos(write(own, LINES[:1]))
    with pytest.raises(AnnotationError, match="there are no events"):
        load_videos(write(own, [LINES[0], LINES[4]]))
    with pytest.raises(AnnotationError, match=r"the suffix is '\.ods'"):
        load_videos(write(own.with_suffix(".ods"), LINES))
    with pytest.raises(AnnotationError, match=r"line 2: not readable as JSON"):
        load_videos(write(own.with_suffix(".jsonl"), ['{"path": "two.mp4"}', "{path}"]))
    with pytest.raises(AnnotationError, match=r"line 1: got '\[1\]', wanted an object"):
        load_videos(write(own.with_suffix(".jsonl"), ["[1]"]))
    own.write_bytes("path,label,start,end\ntwo.mp4,Möwe,0,1\n".encode("latin-1"))
    with pytest.raises(AnnotationError, match="line 2: byte 0xf6 is not UTF-8"):
        load_videos(own)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_videos(own.parent / "nowhere.csv")


def test_a_changed_table_or_video_is_noticed(own, tmp_path):
    assert load_videos(own, split="test")[0]["labels"] == [0, 0]
    write(own, [line.replace("two.mp4,Bark,0,2", "two.mp4,Bark,0,1") for line in LINES])
    assert load_videos(own, split="test")[0]["labels"] == [0, 2]
    (own.parent / "two.mp4").write_bytes((own.parent / "quiet.mp4").read_bytes())
    assert load_videos(own, split="test")[0]["labels"] == [0, 2, 2]


def test_rows_are_decoded_as_for_ave_with_one_label_per_segment(own, processor, tmp_path):
    write_recording(own.parent / "two.mp4", 2.6, frame_rate=5)
    for row in decode_videos(load_videos(own, split="test"), processor):
        assert len(row["labels"]) == row["pixel_values"].shape[0] == 3


def outside(own, tmp_path, way):
    """A table beside the videos of which one is outside."""
    (tmp_path / "secret.mp4").write_bytes((own.parent / "two.mp4").read_bytes())
    path = {
        "dots": "../secret.mp4",
        "absolute": str(tmp_path / "secret.mp4"),
        "link": "link.mp4",
        "folder": "x/secret.mp4",
    }
    (own.parent / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (own.parent / "x").symlink_to(tmp_path)
    return write(own, [LINES[0], f"{path[way]},Bark,0,1,train", LINES[3]])


@pytest.mark.parametrize("way", ["dots", "absolute", "link", "folder"])
def test_videos_outside_the_data_folder_are_taken_only_where_that_is_allowed(own, tmp_path, way):
    table = outside(own, tmp_path, way)
    with pytest.raises(
        MissingVideoError, match=r"1 of 2 rows .* leads out of the data folder to \S*/secret\.mp4, which"
    ):
        load_videos(table)
    assert load_videos(table, on_missing="skip").num_rows == {"test": 1}
    allowed = load_videos(table, allow_outside=True)
    assert allowed.num_rows == {"train": 1, "test": 1}


def test_a_link_within_the_data_folder_is_taken(own):
    (own.parent / "again.mp4").symlink_to(own.parent / "two.mp4")
    assert load_videos(write(own, [LINES[0], "dogs/../again.mp4,Bark,0,1,train"])).num_rows == {"train": 1}
