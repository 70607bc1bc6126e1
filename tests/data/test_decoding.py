import datasets
import pytest
import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader

from ave_clip.core.video_io import VideoReadError, read_video
from ave_clip.data import ClipAugmentation, collate_rows, decode_videos, load_ave, open_video, to_parquet
from ave_clip.data.decoding import DecodeVideos, identify_video
from tests.helpers.ave_files import write_ave

ROWS = [
    "Bark&-dog0000001&good&1&3",
    "Goat&goat0000001&good&0&3",
    "Bark&dog00000002&good&0&2",
    "Goat&-dog0000001&good&1&3",
]
SPLITS = {"train": [0, 1, 2], "test": [3]}
INPUTS = ("pixel_values", "frame_mask", "input_values", "segment_mask")


@pytest.fixture
def clips(tmp_path, recordings):
    """A data set of real recordings: three seconds each, one of two."""
    files = write_ave(tmp_path / "clips", ROWS, SPLITS)
    for video in (files.root / "AVE").iterdir():
        video.write_bytes(recordings["short" if video.stem == "dog00000002" else "long"].read_bytes())
    return files


class CountingProcessor:
    """Says how many videos it was asked for."""

    def __init__(self, processor):
        self.processor = processor
        self.num_videos = 0

    def __call__(self, videos, **options):
        self.num_videos += len(videos)
        return self.processor(videos=videos, **options)


def same_inputs(row, other):
    return all(torch.equal(row[name], other[name]) for name in INPUTS)


def test_a_row_is_decoded_to_what_the_processor_makes_of_its_file(clips, processor):
    train = decode_videos(load_ave(clips.root, split="train", num_segments=3), processor)
    expected = processor(videos=str(clips.video("-dog0000001")), return_tensors="pt")
    row = train[0]
    assert all(torch.equal(row[name], expected[name][0]) for name in INPUTS)
    assert row["pixel_values"].shape[:3] == (3, 2, 3)
    assert row["labels"] == [28, 2, 2]
    assert "video" not in row


def test_rows_are_the_same_from_folder_zip_stream_parquet_and_workers(clips, processor, tmp_path):
    dataset = load_ave(clips.root, num_segments=3)
    expected = {row["row"]: row for row in decode_videos(dataset, processor)["train"]}
    archive = clips.zip(tmp_path / "clips.zip")
    embedded = datasets.load_dataset(str(to_parquet(dataset, tmp_path / "parquet")), split="train")
    sources = {
        "zip": load_ave(archive, split="train", num_segments=3),
        "stream from zip": load_ave(archive, split="train", num_segments=3, streaming=True),
        "parquet": embedded,
        "parquet that decodes by itself": embedded.cast_column("video", datasets.Video()),
    }
    for name, source in sources.items():
        rows = {row["row"]: row for row in decode_videos(source, processor)}
        assert rows.keys() == expected.keys(), name
        assert all(same_inputs(rows[number], expected[number]) for number in rows), name
    stream = decode_videos(sources["stream from zip"], processor)
    loader = DataLoader(stream, batch_size=1, num_workers=2, collate_fn=lambda rows: rows[0])
    seen = {row["row"]: row for row in loader}
    assert all(same_inputs(seen[number], expected[number]) for number in expected)


def test_a_batch_of_workers_is_collated_with_padding(clips, processor):
    train = decode_videos(load_ave(clips.root, split="train", num_segments=3), processor)
    (batch,) = DataLoader(train, batch_size=3, num_workers=1, collate_fn=collate_rows)
    assert batch["pixel_values"].shape[:3] == (3, 3, 2)
    assert batch["rows"].tolist() == [0, 1, 2]
    assert batch["labels"].tolist() == [[28, 2, 2], [18, 18, 18], [2, 2, 28]]
    assert batch["segment_mask"].all()
    assert not batch["frame_mask"][2, 2].any()
    assert not batch["input_values"][2, 2].any()


def test_each_clip_is_processed_once_and_labels_alone_decode_nothing(clips, processor):
    counting = CountingProcessor(processor)
    train = decode_videos(load_ave(clips.root, split="train", num_segments=3), counting)
    assert train.select_columns(["row", "labels"])[:] == {
        "row": [0, 1, 2],
        "labels": [[28, 2, 2], [18, 18, 18], [2, 2, 28]],
    }
    assert counting.num_videos == 0
    assert len(train[:2]["labels"]) == 2
    assert counting.num_videos == 2


def test_each_node_and_worker_decodes_only_its_own_rows(clips, processor):
    stream = load_ave(clips.root, split="train+test", num_segments=3, streaming=True)
    seen = []
    for rank in range(2):
        counting = CountingProcessor(processor)
        node = split_dataset_by_node(decode_videos(stream, counting), rank, 2)
        seen += [row["row"] for row in node]
        assert counting.num_videos == 2
    assert sorted(seen) == [0, 1, 2, 3]


def test_options_go_to_the_processor(clips, processor):
    train = decode_videos(load_ave(clips.root, split="train", num_segments=3), processor, num_frames_per_segment=4)
    assert train[0]["pixel_values"].shape[:2] == (3, 4)


def test_only_the_training_split_is_augmented_and_the_seed_decides(clips, processor):
    dataset = load_ave(clips.root, num_segments=3)
    plain, changed = decode_videos(dataset, processor), decode_videos(dataset, processor, ClipAugmentation())
    torch.manual_seed(0)
    first = changed["train"][0]
    second = changed["train"][0]
    torch.manual_seed(0)
    again = changed["train"][0]
    assert same_inputs(first, again)
    assert not same_inputs(first, second)
    assert not torch.equal(first["pixel_values"], plain["train"][0]["pixel_values"])
    assert not torch.equal(first["input_values"], plain["train"][0]["input_values"])
    assert same_inputs(changed["test"][0], plain["test"][0])


def test_workers_augment_differently_and_the_loaders_generator_decides(clips, processor):
    train = decode_videos(load_ave(clips.root, split="train", num_segments=3), processor, ClipAugmentation())
    train = train.select([0, 0])

    def epoch(seed):
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(train, batch_size=1, num_workers=2, generator=generator, collate_fn=lambda rows: rows[0])
        return [row["input_values"] for row in loader]

    first, again = epoch(0), epoch(0)
    assert all(torch.equal(one, other) for one, other in zip(first, again))
    assert not torch.equal(first[0], first[1])


def test_a_transform_without_augmentation_is_given_the_file_itself(clips, processor):
    transform = DecodeVideos(processor)
    row = load_ave(clips.root, split="test", num_segments=3)[0]
    batch = transform({"row": [3], "video": [row["video"]]})
    assert set(batch) == {"row", *INPUTS}


def test_paths_stay_paths_and_everything_else_becomes_a_named_file(clips, tmp_path):
    path = str(clips.video("-dog0000001"))
    content = clips.video("-dog0000001").read_bytes()
    archive = clips.zip(tmp_path / "clips.zip")
    member = f"zip://AVE_Dataset/AVE/-dog0000001.mp4::{archive}"
    assert open_video(path) == path
    assert open_video({"path": path, "bytes": None}) == path
    assert open_video("https://example.org/a.mp4") == "https://example.org/a.mp4"
    for source, name in (
        (member, member),
        ({"path": "a.mp4", "bytes": content}, "a.mp4"),
        (f"file://{path}", f"file://{path}"),
    ):
        file = open_video(source)
        assert file.read() == content
        assert file.name == name
    with pytest.raises(ValueError, match="neither a path nor bytes"):
        open_video({"path": None, "bytes": None})
    with pytest.raises(VideoReadError, match=r"The video 'AVE/no\.mp4' in .*clips\.zip cannot be read"):
        open_video(f"zip://AVE/no.mp4::{archive}")


def test_a_damaged_member_of_a_zip_is_named_in_the_error(ave, processor, tmp_path):
    archive = ave.zip(tmp_path / "AVE.zip")
    train = decode_videos(load_ave(archive, split="train"), processor)
    with pytest.raises(VideoReadError, match=r"zip://AVE_Dataset/AVE/both_talk__E\.mp4"):
        train[0]


def test_the_augmentation_sees_the_clip_as_the_processor_would_read_it(clips, processor):
    seen = []
    train = decode_videos(
        load_ave(clips.root, split="train", num_segments=3), processor, lambda clip: seen.append(clip) or clip
    )
    plain = decode_videos(load_ave(clips.root, split="train", num_segments=3), processor)
    assert same_inputs(train[0], plain[0])
    clip = read_video(str(clips.video("-dog0000001")), sampling_rate=8000, num_frames_per_segment=2)
    assert (seen[0].waveforms == clip.waveforms).all()


def test_a_video_is_known_by_name_size_and_time_of_change(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"video")
    name, size, changed = identify_video({"path": str(path), "bytes": None})
    assert (name, size, changed) == ("a.mp4", "5", str(path.stat().st_mtime_ns))


def test_a_zipped_video_is_identified_by_its_path_in_the_archive_and_its_content(tmp_path):
    files = write_ave(tmp_path / "clips", ROWS, SPLITS)
    videos = [load_ave(files.zip(tmp_path / name), split="test")[0]["video"] for name in ("a.zip", "b.zip")]
    assert identify_video(videos[0]) == identify_video(videos[1])
    assert identify_video(videos[0])[:2] == ("AVE_Dataset/AVE/-dog0000001.mp4", str(len("video of -dog0000001")))
    files.video("-dog0000001").write_bytes(b"video of +dog0000001")
    changed = load_ave(files.zip(tmp_path / "c.zip"), split="test")[0]["video"]
    assert identify_video(changed) != identify_video(videos[0])


def test_embedded_videos_are_known_by_content_and_others_by_address():
    one, other = ({"path": "a.mp4", "bytes": content} for content in (b"1", b"2"))
    assert identify_video(one) == identify_video({"path": None, "bytes": b"1"}) != identify_video(other)
    for address in ("/nowhere/a.mp4", "zip://a.mp4::/nowhere/b.zip", "hf://datasets/x/a.mp4"):
        assert identify_video({"path": address}) == (address,)
