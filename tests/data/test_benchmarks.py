import json

import pytest

from ave_clip.data import AnnotationError, load_ov_avebench, load_unav100

# Two entries of each in the published form, and one more each.
UNAV = {
    "version": "unav100",
    "database": {
        "-Rjmgv0O_p0": {
            "duration": 4.6,
            "annotations": [
                {"segment": [0, 4.67432], "label": "playing base guitar", "label_id": 1},
                {"segment": [2.715, 4.30743], "label": "female singing", "label_id": 0},
            ],
            "subset": "train",
        },
        "8WSesSOfBrE": {
            "duration": 3,
            "annotations": [{"segment": [1, 3], "label": "sailing", "label_id": 2}],
            "subset": "test",
        },
        "TOEwQXeyNe8": {"duration": 2, "annotations": [], "subset": "validation"},
    },
}
OV_META = [
    "split,cls_name,cls_type,vid_name",
    "train,people burping,close,EpxQKLhAP0s",
    "val,people burping,close,G_ggrRDR0n0",
    "test,airplane flyby,open,-26-vt3MvE8",
]
OV_LABELS = {
    "EpxQKLhAP0s": {"category": "people burping", "label": "[0, 1, 1, 1, 0, 0, 0, 0, 0, 0]"},
    "G_ggrRDR0n0": {"category": "people burping", "label": "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"},
    "-26-vt3MvE8": {"category": "airplane flyby", "label": "[0, 0, 0, 0, 1, 1, 0, 1, 1, 1]"},
}


@pytest.fixture
def unav(tmp_path):
    for index, video_id in enumerate(UNAV["database"]):
        folder = tmp_path / "videos" / f"part{index % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{video_id}.mp4").write_text(video_id)
    (tmp_path / "unav100_annotations.json").write_text(json.dumps(UNAV))
    return tmp_path


@pytest.fixture
def ov_ave(tmp_path):
    for line in OV_META[1:]:
        split, name, _, video_id = line.split(",")
        folder = tmp_path / "videos" / split / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{video_id}.mp4").write_text(video_id)
    (tmp_path / "meta.csv").write_text("\n".join(OV_META))
    (tmp_path / "anno.json").write_text(json.dumps(OV_LABELS))
    return tmp_path


def load_unav(folder, problem_type="single_label", **options):
    return load_unav100(folder / "unav100_annotations.json", folder / "videos", problem_type=problem_type, **options)


def load_ov(folder, **options):
    return load_ov_avebench(folder / "meta.csv", folder / "anno.json", folder / "videos", **options)


def change_unav(folder, video_id, **changes):
    content = json.loads(json.dumps(UNAV))
    content["database"][video_id].update(changes)
    (folder / "unav100_annotations.json").write_text(json.dumps(content))


def test_unav_keeps_all_events_and_labels_each_second_with_the_class_that_covers_most(unav):
    splits = load_unav(unav)
    assert {split: len(part) for split, part in splits.items()} == {"train": 1, "test": 1, "validation": 1}
    assert splits["train"].features["category"].names == ["female singing", "playing base guitar", "sailing"]
    row = splits["train"][0]
    assert row["video_id"] == "-Rjmgv0O_p0"
    assert row["video"]["path"].endswith("part0/-Rjmgv0O_p0.mp4")
    assert row["labels"] == [1, 1, 1, 1, 1]
    assert row["events"] == [
        {"label": 1, "start": 0.0, "end": 4.6},
        {"label": 0, "start": 2.715, "end": 4.30743},
    ]
    assert splits["test"][0]["labels"] == [3, 2, 2]
    assert splits["validation"][0]["labels"] == [3, 3]


def test_a_part_of_unav_needs_its_categories(unav):
    change_unav(unav, "8WSesSOfBrE", annotations=[{"segment": [1, 3], "label": "sailing", "label_id": 55}])
    with pytest.raises(AnnotationError, match=r"no event has label_id 2\. Pass `categories`"):
        load_unav(unav)
    names = ["sailing", "playing base guitar", "female singing"]
    assert load_unav(unav, categories=names)["test"][0]["labels"] == [3, 0, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subset": "dev"}, "Got the split 'dev'"),
        ({"duration": None}, "the entry has another structure"),
        ({"annotations": [{"segment": [1, 3]}]}, "the entry has another structure .KeyError"),
        ({"annotations": [{"segment": [2, 1], "label": "sailing", "label_id": 2}]}, r"An event from 2\.0 to 1\.0 s"),
        ({"annotations": [{"segment": [4, 5], "label": "sailing", "label_id": 2}]}, r"in a video of 3\.0 s"),
        ({"annotations": [{"segment": [-1, 2], "label": "sailing", "label_id": 2}]}, r"starts at -1\.0 s"),
        ({"annotations": [{"segment": [1, 2], "label": "rowing", "label_id": 1}]}, "label_id 1 is 'rowing', before"),
    ],
)
def test_an_unav_entry_that_cannot_be_used_is_refused_with_its_video(unav, changes, message):
    change_unav(unav, "8WSesSOfBrE", **changes)
    with pytest.raises(AnnotationError, match=rf"unav100_annotations\.json, video '8WSesSOfBrE': .*{message}"):
        load_unav(unav)


@pytest.mark.parametrize("problem_type", ["single_label", "multi_label"])
def test_a_class_of_unav_cannot_be_called_background(unav, problem_type):
    change_unav(unav, "8WSesSOfBrE", annotations=[{"segment": [1, 3], "label": "Background", "label_id": 2}])
    with pytest.raises(AnnotationError, match=r"unav100_annotations\.json: a class is called 'background'"):
        load_unav(unav, problem_type)


def test_files_of_another_form_are_no_unav(unav):
    path = unav / "unav100_annotations.json"
    for text, message in (
        ("{}", "no videos: wanted"),
        ("[1]", "a JSON list, wanted an object"),
        ('{"database":\n{,}}', "line 2: not readable as JSON"),
    ):
        path.write_text(text)
        with pytest.raises(AnnotationError, match=message):
            load_unav(unav)


def test_ov_avebench_has_flags_per_second_and_tells_seen_from_unseen(ov_ave):
    splits = load_ov(ov_ave)
    assert splits["train"].features["category"].names == ["airplane flyby", "people burping"]
    test = splits["test"][0]
    assert test["labels"] == [2, 2, 2, 2, 0, 0, 2, 0, 0, 0]
    assert [(event["start"], event["end"]) for event in test["events"]] == [(4.0, 6.0), (7.0, 10.0)]
    assert (test["category"], test["seen"]) == (0, False)
    train = splits["train"][0]
    assert (train["category"], train["seen"], train["labels"]) == (1, True, [2, 1, 1, 1] + [2] * 6)
    quiet = splits["validation"][0]
    assert (quiet["category"], quiet["labels"], quiet["events"]) == (1, [2] * 10, [])


@pytest.mark.parametrize(
    ("meta", "labels", "message"),
    [
        ([*OV_META, "test,rain,open,missing0001"], {}, r"meta\.csv, line 5: the video 'missing0001' is not in .*anno"),
        ([*OV_META, OV_META[1]], {}, r"line 5: the video 'EpxQKLhAP0s' is in line 2 already"),
        ([*OV_META, "test,rain,half,x"], {}, r"line 5: cls_type is .half., wanted one of"),
        ([*OV_META, "test,rain"], {}, r"line 5: another number of fields than the header, which has 4"),
        (["split,name,type,id"], {}, r"line 1: the header is"),
        (OV_META, {"category": "rain"}, r"anno\.json, video 'EpxQKLhAP0s': The category is 'rain' here"),
        (OV_META, {"label": "[0, 2]"}, r"video 'EpxQKLhAP0s': The label is '\[0, 2\]', wanted a list of 0 and 1"),
        (OV_META, {"label": "[0, "}, r"video 'EpxQKLhAP0s'"),
    ],
)
def test_ov_avebench_files_that_do_not_fit_are_refused(ov_ave, meta, labels, message):
    (ov_ave / "meta.csv").write_text("\n".join(meta))
    changed = {**OV_LABELS, "EpxQKLhAP0s": {**OV_LABELS["EpxQKLhAP0s"], **labels}}
    (ov_ave / "anno.json").write_text(json.dumps(changed))
    with pytest.raises(AnnotationError, match=message):
        load_ov(ov_ave)
