import os
import tarfile

import pytest
from datasets import DatasetDict, Video, load_dataset

from ave_clip.data import load_ave, load_videos, open_video, to_parquet, to_videofolder, to_webdataset
from tests.helpers.media import write_recording


@pytest.fixture
def ave(ave, recordings):
    """As everywhere, but with videos that can be exported, no two alike."""
    for number, path in enumerate(sorted((ave.root / "AVE").iterdir())):
        path.write_bytes(recordings["short"].read_bytes() + b"\0\0\0\x09free" + bytes([number]))
    return ave


EXPORTS = {"videofolder": to_videofolder, "parquet": to_parquet, "webdataset": to_webdataset}


def content_of(video):
    source = open_video(video)
    return open(source, "rb").read() if isinstance(source, str) else source.read()


def rows_of(dataset):
    """Rows with the video's content instead of its path, for any format."""
    columns = dataset.features
    name = "mp4" if "mp4" in columns else "video"
    rows = []
    for row in dataset.cast_column(name, Video(decode=False)):
        video = content_of(row.pop(name))
        rows.append(({**row["json"]} if "json" in row else row, video))
    return rows


def types_of(dataset):
    features = dataset.features.get("json", dataset.features)
    return {name: feature for name, feature in features.items() if name != "video"}


@pytest.mark.parametrize("form", EXPORTS)
@pytest.mark.parametrize("zipped", [False, True])
def test_an_export_loads_back_equal_to_its_source(ave, tmp_path, form, zipped):
    source = load_ave(ave.zip(tmp_path / "AVE.zip") if zipped else ave.root)
    folder = EXPORTS[form](source, tmp_path / "out")
    back = load_dataset(str(folder))
    assert isinstance(back, DatasetDict)
    assert back.keys() == source.keys()
    for split in source:
        assert rows_of(back[split]) == rows_of(source[split])
        assert types_of(back[split]) == types_of(source[split])


@pytest.mark.parametrize("form", EXPORTS)
def test_hidden_seconds_and_absent_values_survive(ave, tmp_path, form):
    source = load_ave(ave.root, name="weak")
    back = load_dataset(str(EXPORTS[form](source, tmp_path / "out")))
    assert rows_of(back["train"]) == rows_of(source["train"])
    assert rows_of(back["test"]) == rows_of(source["test"])


@pytest.mark.parametrize("form", EXPORTS)
def test_videos_of_ones_own_are_exported_too(tmp_path, recordings, form):
    for name, recording in (("-a.mp4", "short"), ("b.mp4", "long")):
        (tmp_path / name).write_bytes(recordings[recording].read_bytes())
    (tmp_path / "events.csv").write_text("path,label,start,end\n-a.mp4,Bark,0,1\n-a.mp4,Moo,1,2\nb.mp4,,,\n")
    source = load_videos(tmp_path / "events.csv")
    back = load_dataset(str(EXPORTS[form](source, tmp_path / "out")))
    assert rows_of(back["train"]) == rows_of(source["train"])


@pytest.mark.parametrize("form", EXPORTS)
def test_a_streamed_data_set_and_a_single_split_are_exported_too(ave, tmp_path, form):
    source = load_ave(ave.root)
    streamed = EXPORTS[form](load_ave(ave.root, streaming=True), tmp_path / "streamed")
    single = EXPORTS[form](source["test"], tmp_path / "single")
    assert rows_of(load_dataset(str(streamed), split="train")) == rows_of(source["train"])
    back = load_dataset(str(single))
    assert list(back) == ["test"]
    assert rows_of(back["test"]) == rows_of(source["test"])
    part = EXPORTS[form](load_ave(ave.root, split="test[:2]+train[:1]"), tmp_path / "part")
    assert [len(rows) for rows in load_dataset(str(part)).values()] == [3]


def test_a_video_that_several_rows_show_is_written_once(ave, tmp_path):
    folder = to_videofolder(load_ave(ave.root, split="train+test"), tmp_path / "out")
    assert len(list(folder.rglob("*.mp4"))) == len({row.split("&")[1] for row in ave.rows}) - 2


def test_shards_contain_at_most_the_given_number_of_bytes(ave, tmp_path):
    source, size = load_ave(ave.root), ave.video("-bell_one-A").stat().st_size
    folder = to_parquet(source, tmp_path / "parquet", max_shard_bytes=2 * size)
    assert sorted(path.name for path in (folder / "data").glob("train-*")) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    assert rows_of(load_dataset(str(folder), split="train")) == rows_of(source["train"])
    folder = to_webdataset(source, tmp_path / "tar", max_shard_bytes=1)
    assert len(list(folder.glob("train-*.tar"))) == 4
    assert rows_of(load_dataset(str(folder), split="train")) == rows_of(source["train"])


def test_tar_members_are_named_by_row(ave, tmp_path):
    folder = to_webdataset(load_ave(ave.root, split="test"), tmp_path / "tar")
    with tarfile.open(folder / "test-00000.tar") as tar:
        assert tar.getnames()[:2] == ["000007.mp4", "000007.json"]


def test_tar_shards_need_one_file_ending(ave, tmp_path):
    ave.video("-bell_one-A").rename(ave.root / "AVE" / "-bell_one-A.webm")
    with pytest.raises(ValueError, match=r"the suffixes \['mp4', 'webm'\]"):
        to_webdataset(load_ave(ave.root), tmp_path / "tar")
    assert not (tmp_path / "tar").exists()


def test_tar_shards_need_a_row(ave, tmp_path):
    nothing = load_ave(ave.root, split="test").select([])
    with pytest.raises(ValueError, match=r"no row in its splits \['test'\]"):
        to_webdataset(nothing, tmp_path / "tar")
    assert list(tmp_path.glob("*tar*")) == []


@pytest.mark.parametrize("form", EXPORTS)
@pytest.mark.parametrize("name", ["secret.txt", "secret.mp4", "sound.mp4", "playlist.mp4"])
def test_what_is_no_video_is_not_exported(tmp_path, recordings, form, name):
    content = {"secret": b"password", "playlist": b"#EXTM3U\n#EXTINF:1,\nsecret.txt\n"}
    if name == "sound.mp4":
        write_recording(tmp_path / name, 1.0, picture=None)
    else:
        (tmp_path / name).write_bytes(content[name.split(".")[0]])
    (tmp_path / "a.mp4").write_bytes(recordings["short"].read_bytes())
    (tmp_path / "events.csv").write_text(f"path,label,start,end,duration\na.mp4,Bark,0,1,2\n{name},Bark,0,1,2\n")
    source = load_videos(tmp_path / "events.csv")
    with pytest.raises(ValueError, match=rf"Row 1 names .*{name}, which is not a video"):
        EXPORTS[form](source, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_the_leftover_of_a_killed_process_does_not_prevent_an_export(ave, tmp_path):
    (tmp_path / f".out.{os.getpid()}.partial").mkdir()
    assert to_videofolder(load_ave(ave.root, split="test"), tmp_path / "out").is_dir()


def test_a_folder_in_use_is_left_alone(ave, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="is not an empty folder"):
        to_parquet(load_ave(ave.root), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_failed_export_leaves_no_files(ave, tmp_path):
    source = load_ave(ave.root)
    ave.video("strings____G").unlink()
    before = set(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError):
        to_parquet(source, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


def test_the_data_card_tells_statistics_classes_duplicates_and_leaks(ave, tmp_path):
    folder = to_parquet(load_ave(ave.root), tmp_path / "out", name="Small AVE")
    card = (folder / "README.md").read_text()
    assert "pretty_name: Small AVE" in card
    assert "| train | 4 | 4 | 40 | 22.50% |" in card
    assert "| 0 | Church bell | 1 | 1 | 1 |" in card
    assert "| 28 | background |" in card
    assert "2 rows show a video that an earlier row shows" in card
    assert "2 videos of test occur in another split: `strings____G` (also in train), `both_talk__E`" in card
    assert "without stating a licence" in card
