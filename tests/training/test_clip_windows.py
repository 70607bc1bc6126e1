"""Windows of long clips: which ones training draws, and how prediction puts them together."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch.utils.data import Dataset, Subset
from transformers.utils import ModelOutput

from ave_clip.core.configuration_ave_clip import AVEClipConfig
from ave_clip.data.collation import collate_rows
from ave_clip.training.clip_windows import ClipWindows, merge_windows, window_starts
from ave_clip.training.features import SplitError
from ave_clip.training.prediction import predict_split
from ave_clip.training.splits import LabelledClips, video_label

LENGTHS = [3, 10, 25]


class Clips(Dataset):
    """Clips whose features are the numbers of their segments."""

    lengths = LENGTHS

    def __len__(self):
        return len(LENGTHS)

    def __getitem__(self, index):
        return self.window(index, 0, LENGTHS[index])

    def window(self, index, first=0, length=None):
        numbers = torch.arange(LENGTHS[index])[first : first + length]
        labels = torch.stack([numbers % 2, numbers % 3 == 0], dim=1).long()
        return {"row": torch.tensor(index), "labels": labels, "audio_features": numbers[:, None].float().repeat(1, 2)}


def test_short_clips_are_unchanged_and_long_ones_are_drawn_as_often_as_they_are_long():
    windows = ClipWindows(Clips(), 10, seed=0)
    assert [clip for clip, _ in windows.places] == [0, 1, 2, 2, 2]
    assert [len(windows[index]["labels"]) for index in range(5)] == [3, 10, 10, 10, 10]
    assert "first" not in windows[1]


def test_the_windows_of_an_epoch_depend_on_seed_epoch_and_clip_only():
    def firsts(seed, epoch, clips=None, order=(2, 3, 4)):
        windows = ClipWindows(Clips() if clips is None else clips, 10, seed=seed)
        windows.set_epoch(epoch)
        found = {index: int(windows[index]["audio_features"][0, 0]) for index in order}
        return [found[index] for index in sorted(found)]

    assert firsts(0, 1) == firsts(0, 1, order=(4, 3, 2)) == firsts(0, 1, LabelledClips(Clips(), 2))
    assert len({tuple(firsts(0, epoch)) for epoch in range(5)}) > 1
    assert len({tuple(firsts(seed, 0)) for seed in range(5)}) > 1
    drawn = [first for epoch in range(60) for first in firsts(0, epoch)]
    assert min(drawn) == 0 and max(drawn) == 15  # the last window ends with the clip


def test_windows_of_a_subset_are_those_of_its_clips():
    windows = ClipWindows(Subset(Clips(), [2, 0]), 10)
    assert [(clip, first) for clip, first in windows.places] == [(0, 0), (0, 5), (0, 10), (0, 15), (1, 0)]
    assert int(windows[3]["row"]) == 2 and int(windows[3]["audio_features"][0, 0]) == 15


def test_regular_windows_cover_every_segment_and_overlap_by_half():
    for length in range(1, 40):
        starts = window_starts(length, 8)
        covered = {segment for start in starts for segment in range(start, start + 8)}
        assert set(range(length)) <= covered and starts[-1] == max(0, length - 8)
    with pytest.raises(ValueError, match="at least one segment"):
        ClipWindows(Clips(), 0)


def test_values_of_overlapping_windows_are_averaged():
    windows = [(2, np.full((4, 1), 3.0)), (0, np.full((4, 1), 1.0))]
    assert merge_windows(windows).ravel().tolist() == [1, 1, 2, 2, 3, 3]


class Echo(torch.nn.Module):
    """Returns the numbers of the segments as logits, with an error that depends on the window's start."""

    config = AVEClipConfig(id2label={0: "Bell", 1: "Bark"}, problem_type="multi_label", use_encoders=False)

    def forward(self, audio_features, segment_mask):
        start = audio_features[:, :1]
        return ModelOutput(logits=audio_features / 25 + start / 100, event_logits=None)


def test_a_whole_video_is_predicted_in_windows(monkeypatch):
    found = predict_split(Accelerator(cpu=True), Echo(), Clips(), batch_size=2, max_segments=10)
    assert found.rows == [0, 1, 2] and found.problem_type == "multi_label"
    assert [len(clip) for clip in found.probabilities] == LENGTHS
    for row, labels in enumerate(found.labels):
        assert (labels == Clips()[row]["labels"].numpy()).all()
    numbers = np.arange(25)
    starts = [[start for start in (0, 5, 10, 15) if start <= number < start + 10] for number in numbers]
    logits = numbers / 25 + np.array([np.mean(values) for values in starts]) / 100
    np.testing.assert_allclose(found.probabilities[2][:, 0], 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_the_weak_label_of_several_events_is_one_flag_per_class():
    labels = torch.tensor([[0, 1, -100], [0, 1, -100], [0, 0, -100]])
    assert video_label(labels, background=3).tolist() == [0, 1, -100]
    assert video_label(labels, 3, torch.tensor([1, 1, 1])).tolist() == [0, 1, 1]


def test_windows_have_the_exact_times_of_their_events():
    clips = Clips()
    events = [{"label": 1, "start": 2.3, "end": 9.75}, {"label": 0, "start": 0.5, "end": 1.75}]
    clips.truth = {0: {"events": []}, 1: {"events": events}, 2: {"events": events}}
    windows = ClipWindows(clips, 5, segment_seconds=0.5)
    assert not len(windows[0]["event_classes"])
    row = windows[windows.places.index((1, 3))]  # from 1.5 to 4 s: both events are cut
    torch.testing.assert_close(row["event_spans"], torch.tensor([[1.6, 5.0], [0.0, 0.5]]))
    assert row["event_classes"].tolist() == [1, 0]
    batch = collate_rows([windows[0], row])
    assert batch["event_classes"].tolist() == [[-100, -100], [1, 0]]
    assert batch["event_spans"].shape == (2, 2, 2)


def test_clips_with_labels_but_without_times_are_refused():
    with pytest.raises(SplitError, match="No event of these clips is known"):
        ClipWindows(Clips(), 5, segment_seconds=1.0)
    clips = Clips()
    clips.truth = {0: {"events": []}, 1: {"events": None}}
    with pytest.raises(SplitError, match="Row 1 has labels, but its events are not known"):
        ClipWindows(clips, 10, segment_seconds=1.0)[1]
