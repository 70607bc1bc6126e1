"""Windows of long videos: the same segments as decoding the whole, in bounded memory."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ave_clip.data import collate_rows, decode_videos, load_videos
from ave_clip.data.decoding import open_row_video
from ave_clip.data.windows import iter_windows, read_window
from ave_clip.training.clips import ClipReader
from tests.helpers.media import write_recording
from tests.helpers.models import tiny_processor


@pytest.fixture(scope="module")
def long_video(tmp_path_factory):
    """A video of 13 seconds with a table of two overlapping events."""
    folder = tmp_path_factory.mktemp("long")
    write_recording(folder / "a.mp4", 13.0, frame_rate=5)
    (folder / "events.csv").write_text("path,label,start,end\na.mp4,Bark,0,7\na.mp4,Whine,6,12\n")
    return folder / "a.mp4"


def test_windows_in_one_pass_are_the_whole_video(long_video):
    processor = tiny_processor()
    whole = processor(videos=str(long_video), do_rescale=False, do_normalize=False, return_tensors="pt")
    windows = list(iter_windows(str(long_video), processor, 5))
    assert [len(window["frame_mask"]) for window in windows] == [5, 5, 3]
    assert windows[0]["pixel_values"].dtype == torch.uint8
    for name in windows[0]:
        joined = torch.cat([window[name] for window in windows])
        torch.testing.assert_close(joined, whole[name][0].to(joined.dtype), rtol=0, atol=0)


def test_a_window_has_the_segments_of_its_place(long_video):
    processor = tiny_processor()
    whole = processor(videos=str(long_video), do_rescale=False, do_normalize=False, return_tensors="pt")
    window = read_window(str(long_video), processor, 6, 4)
    for name in ("pixel_values", "frame_mask"):
        torch.testing.assert_close(window[name], whole[name][0, 6:10].to(window[name].dtype), rtol=0, atol=0)
    # After a seek AAC fills in other noise, which is quiet.
    difference = (window["input_values"] - whole["input_values"][0, 6:10]).abs().mean()
    assert difference < 0.02 * whole["input_values"].abs().max()
    after = read_window(str(long_video), processor, 11, 5)
    assert after["frame_mask"].any(dim=1).tolist() == [True, True, False, False, False]


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_become_windows_with_the_labels_of_their_segments(long_video, streaming):
    table = long_video.parent / "events.csv"
    rows = load_videos(table, "train", streaming=streaming, problem_type="multi_label")
    whole = next(iter(rows))["labels"]
    windows = list(decode_videos(rows, tiny_processor(), max_segments=5))
    assert [window["first_segment"] for window in windows] == [0, 5, 10]
    assert [label for window in windows for label in window["labels"]] == whole
    assert all(torch.as_tensor(window["pixel_values"]).dtype == torch.uint8 for window in windows)
    batch = collate_rows(windows)
    assert batch["labels"].shape == (3, 5, 2) and (batch["labels"][2, 3:] == -100).all()
    with pytest.raises(ValueError, match="comes alone"):
        decode_videos(rows, tiny_processor(), max_segments=5, num_frames_per_segment=2)


def test_windows_of_an_embedded_video_do_not_copy_it(long_video):
    rows = load_videos(long_video.parent / "events.csv", "train", problem_type="multi_label")
    content = {"video": {"path": "a.mp4", "bytes": long_video.read_bytes()}}
    embedded = rows.map(lambda row: content, features=rows.features)
    expected, found = (list(decode_videos(source, tiny_processor(), max_segments=5)) for source in (rows, embedded))
    assert len(found) == 3 and found[0].keys() == expected[0].keys()
    for window, other in zip(found, expected):
        assert window["labels"] == other["labels"]
        torch.testing.assert_close(window["pixel_values"], other["pixel_values"], rtol=0, atol=0)
    places = {np.frombuffer(open_row_video(embedded, 0).raw.content, np.uint8).ctypes.data for _ in range(3)}
    assert len(places) == 1  # the memory of the data set itself
    reader = ClipReader(embedded, tiny_processor())
    assert torch.equal(reader.window(0, 5, 5)["frame_mask"], torch.as_tensor(found[1]["frame_mask"]))


HOUR = """
import resource, sys
from ave_clip.data.windows import iter_windows
from tests.helpers.models import tiny_processor

processor = tiny_processor()
next(iter_windows(sys.argv[1], processor, 16))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
number = sum(len(window["frame_mask"]) for window in iter_windows(sys.argv[1], processor, 16))
print(number, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_SELF") or sys.platform != "linux", reason="measures Linux' memory")
def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
    write_recording(tmp_path / "long.mp4", 600.0, frame_rate=1)
    command = [sys.executable, "-c", HOUR, str(tmp_path / "long.mp4")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    number, grown = map(float, done.stdout.split())
    assert number == 600
    assert grown < 60
