"""Labels of several events at once, and the count of every event that the labels do not show."""

import json
import logging
import random

import numpy as np
import pytest

from ave_clip.data import load_ave, load_unav100, load_videos
from ave_clip.data.annotations import LabelledSpan
from ave_clip.data.targets import join_events, multi_label_segments
from tests.data.test_benchmarks import unav  # noqa: F401 (a fixture)
from tests.data.test_opening import own, write  # noqa: F401 (a fixture)


def test_every_annotated_second_of_every_class_is_in_the_labels():
    draw = random.Random(0)
    for _ in range(200):
        events = []
        for _ in range(draw.randrange(12)):
            start = draw.randrange(39) / 4
            events.append(LabelledSpan(draw.randrange(4), start, min(10.0, start + draw.randrange(1, 24) / 4)))
        for seconds in (0.25, 0.5, 1.0):
            found = multi_label_segments(events, round(10 / seconds), 4, seconds)
            # Independent: quarters of seconds, which all times are multiples of.
            grid = np.zeros((40, 4), int)
            for label, start, end in events:
                grid[round(start * 4) : round(end * 4), label] = 1
            covered = grid.reshape(round(10 / seconds), round(4 * seconds), 4).mean(axis=1)
            assert (found == (covered >= 0.5)).all()


def test_events_of_one_class_that_overlap_are_joined():
    spans = [LabelledSpan(0, 2, 4), LabelledSpan(0, 0, 3), LabelledSpan(0, 3.5, 3.7), LabelledSpan(1, 1, 2)]
    joined, absorbed = join_events(spans)
    assert joined == [LabelledSpan(0, 0, 4), LabelledSpan(1, 1, 2)]
    assert len(absorbed) == 2


def test_triple_overlaps_of_unav_are_all_in_the_labels(unav):  # noqa: F811
    segments = [([0, 6], "a", 0), ([4, 10], "b", 1), ([4, 9], "c", 2)]
    path = unav / "unav100_annotations.json"
    content = json.loads(path.read_text())
    for entry in content["database"].values():
        events = [{"segment": times, "label": label, "label_id": index} for times, label, index in segments]
        entry.update(duration=10, annotations=events)
    path.write_text(json.dumps(content))
    row = load_unav100(path, unav / "videos", "test")[0]
    assert row["labels"] == [[1, 0, 0]] * 4 + [[1, 1, 1]] * 2 + [[0, 1, 1]] * 3 + [[0, 1, 0]]
    assert len(row["events"]) == 3


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (
            ["a.mp4,Bark,1.4,1.7", "b.mp4,Bark,0,1"],
            {},
            "1 of 2 events (the first: 'Bark' at 1.4 to 1.7 s in a.mp4) do not cover half of any segment of 1 s "
            "and are in no label. Use shorter segments: segment_seconds=0.5 (--segment_seconds 0.5).",
        ),
        (
            ["a.mp4,Bark,0,2", "a.mp4,Whine,1.2,3"],
            {"overlap": "longest"},
            "1 of 2 events (the first: 'Whine' at 1.2 to 3 s in a.mp4) lose 1 s to events of other classes",
        ),
        (
            ["a.mp4,Bark,0,2", "a.mp4,Bark,1,3", "b.mp4,Bark,0,1"],
            {},
            "1 of 3 events (the first: 'Bark' at 1 to 3 s in a.mp4) overlap another event of their class",
        ),
        (
            ["a.mp4,Bark,0,3.4"],
            {},
            "1 of 1 events (the first: 'Bark' at 0 to 3.4 s in a.mp4) end after their video, 0.4 s in all",
        ),
    ],
)
def test_events_that_labels_do_not_show_are_counted_also_from_the_cache(own, lines, options, message, caplog):  # noqa: F811
    write(own, ["path,label,start,end", *lines])
    for problem_type in ("single_label", "multi_label"):
        if "overlap" in options and problem_type == "multi_label":
            continue
        for _ in range(2):  # the second time from the cache
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                load_videos(own, problem_type=problem_type, **options)
            found = [record.getMessage() for record in caplog.records]
            assert len(found) == 1 and found[0].startswith(message), found


def test_complete_labels_give_no_warning(own, caplog):  # noqa: F811
    with caplog.at_level(logging.WARNING):
        load_videos(own, problem_type="multi_label")
    assert not caplog.records


def test_events_keep_their_annotated_times_where_labels_lose_them(own):  # noqa: F811
    write(own, ["path,label,start,end", "a.mp4,Bark,1.4,1.7"])
    row = load_videos(own, "train", problem_type="multi_label")[0]
    assert row["labels"] == [[0]] * 3 and row["events"] == [{"label": 0, "start": 1.4, "end": 1.7}]
    assert load_videos(own, "train", problem_type="multi_label", segment_seconds=0.25)[0]["labels"][6] == [1]


def test_rows_of_one_ave_video_are_joined_into_one_truth(ave, caplog):
    with caplog.at_level(logging.WARNING):
        single = load_ave(ave.root)
    assert "2 videos of Annotations.txt have several rows, such as both_talk__E in lines 5 and 6" in caplog.text
    multi = load_ave(ave.root, problem_type="multi_label")
    rows = {split: part.to_list() for split, part in multi.items()}
    for split, part in single.items():
        assert list(dict.fromkeys(part["video_id"])) == [row["video_id"] for row in rows[split]]
        for row in part:
            truth = next(other for other in rows[split] if other["video_id"] == row["video_id"])
            assert all(event in truth["events"] for event in row["events"])
            for second, label in enumerate(row["labels"]):
                assert label == 28 or truth["labels"][second][label] == 1


def test_weak_labels_of_several_events_are_one_flag_per_class(ave):
    weak = load_ave(ave.root, name="weak", problem_type="multi_label")
    full = load_ave(ave.root, problem_type="multi_label")
    for withheld, row in zip(weak["train"], full["train"]):
        assert withheld["labels"] == [[-100] * 28] * 10 and withheld["events"] is None
        assert withheld["video_label"] == [int(any(flags)) for flags in zip(*row["labels"])]
    with pytest.raises(ValueError, match="cross_modality"):
        load_ave(ave.root, name="cross_modality", problem_type="multi_label")
