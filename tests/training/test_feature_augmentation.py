"""Changes of cached features in training: what they change, and that they depend on seed, epoch and clip alone."""

import argparse

import pytest
import torch
from torch.utils.data import Dataset, Subset

from ave_clip.core.configuration_ave_clip import AVEClipConfig
from ave_clip.training.clip_windows import ClipWindows, labels_of
from ave_clip.training.feature_augmentation import (
    ChangedFeatures,
    FeatureChanges,
    add_augmentation_arguments,
    change_features,
)
from ave_clip.training.open_vocabulary import SeenClips
from ave_clip.training.splits import LabelledClips

BACKGROUND = 3


class Clips(Dataset):
    """Clips of six segments whose features and labels are the number of the clip."""

    lengths = [6] * 3

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        features = torch.full((6, 4), float(index + 1)) * torch.tensor([1.0, -1.0, 1.0, -1.0])
        return {
            "image_features": features.unsqueeze(1).repeat(1, 2, 1),
            "audio_features": features.clone(),
            "labels": torch.full((6,), index),
            "row": index,
        }


def changed(seed=0, **changes):
    return ChangedFeatures(ClipWindows(Clips(), 10, seed), FeatureChanges(**changes), BACKGROUND, seed)


def rows_of(clips, epochs=20):
    for epoch in range(epochs):
        clips.set_epoch(epoch)
        yield from (clips[index] for index in range(len(clips)))


def test_noise_has_the_stated_deviation_and_leaves_labels_alone():
    plain = Clips()
    noise = []
    for row in rows_of(changed(noise=0.5), epochs=200):
        original = plain[row["row"]]
        assert torch.equal(row["labels"], original["labels"])
        for name in ("image_features", "audio_features"):
            noise.append(((row[name] - original[name]) / original[name].std()).flatten())
    assert torch.cat(noise).std().item() == pytest.approx(0.5, rel=0.02)


def test_a_mixed_segment_has_picture_sound_and_label_of_one_clip():
    foreign = 0
    for row in rows_of(changed(mix_clips=1.0)):
        assert torch.equal(row["image_features"][:, 0, 0], row["labels"] + 1.0)
        assert torch.equal(row["audio_features"][:, 0], row["labels"] + 1.0)
        foreign += int((row["labels"] != row["row"]).sum())
    assert foreign > 50  # of 360


def test_a_segment_without_picture_or_sound_is_background():
    kinds = set()
    for row in rows_of(changed(drop_modality=1.0)):
        for segment in range(6):
            silent = not row["audio_features"][segment].any()
            dark = not row["image_features"][segment].any()
            kinds.add((silent, dark))
            assert row["labels"][segment] == (BACKGROUND if silent or dark else row["row"])
    assert kinds == {(True, False), (False, True), (False, False)}


def test_changes_depend_on_seed_epoch_and_clip_alone():
    options = {"noise": 0.1, "mix_clips": 0.5, "drop_modality": 0.5}
    first, again = changed(**options), changed(**options)
    first.set_epoch(3)
    _ = [first[index] for index in (2, 1, 0)]
    again.set_epoch(3)
    for name in ("image_features", "audio_features", "labels"):
        assert torch.equal(first[1][name], again[1][name])
    other = changed(seed=1, **options)
    other.set_epoch(3)
    assert not torch.equal(first[1]["audio_features"], other[1]["audio_features"])
    again.set_epoch(4)
    assert not torch.equal(first[1]["audio_features"], again[1]["audio_features"])


@pytest.mark.parametrize("changes", [{"noise": -1}, {"mix_clips": 1.5}, {"drop_modality": -0.1}, {"swap_sounds": 2}])
def test_values_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=r"must be 0 or more|from 0 to 1"):
        FeatureChanges(**changes)


def test_videos_are_refused():
    class Videos(Clips):
        def __getitem__(self, index):
            return {"pixel_values": torch.zeros(6, 1, 3, 8, 8), "labels": torch.zeros(6)}

    with pytest.raises(ValueError, match="cached features"):
        ChangedFeatures(ClipWindows(Videos(), 10, 0), FeatureChanges(noise=0.1), BACKGROUND, 0)


class Events(Clips):
    """Clips of six segments, each with an event of class 0, except the last, whose class no other clip has.

    Features contain 10 times the number of the clip plus the segment; labels are read apart from them.
    """

    labels = [[0, 0, 3, 0, 0, 0], [3, 0, 0, -100, 3, 3], [3, 3, 0, 3, 3, 3], [3, 1, 1, 1, 1, 1]]
    lengths = [6] * 4

    def __getitem__(self, index):
        values = 10.0 * index + torch.arange(6)
        features = values.unsqueeze(1).repeat(1, 4)
        labels = torch.tensor(self.labels[index])
        return {"image_features": features, "audio_features": features, "labels": labels, "row": index}

    def labels_of(self, index):
        return self.labels[index]

    def window(self, index, first, length):
        row = self[index]
        return {name: row[name][first : first + length] for name in ("image_features", "audio_features", "labels")}


def swapped(clips, size=10, **changes):
    return ChangedFeatures(ClipWindows(clips, size, 0), FeatureChanges(**changes), BACKGROUND, 0)


@pytest.mark.parametrize("size", [10, 4])
def test_an_event_gets_the_sound_of_its_class_in_another_clip(size):
    class H5(Events):
        lengths = None

        def __len__(self):
            return 4

    heard = {0: set(), 1: set(), 2: set(), 3: set()}
    kinds = [Events()] if size == 4 else [Events(), H5()]  # clips of h5 files cannot be read in windows
    for row in (row for clips in kinds for row in rows_of(swapped(clips, size, swap_sounds=1.0))):
        clip, first = row["row"] if "row" in row else int(row["image_features"][0, 0]) // 10, int(row.get("first", 0))
        own = Events()[clip]
        assert row["labels"].tolist() == Events.labels[clip][first : first + len(row["labels"])]
        assert torch.equal(row["image_features"], own["image_features"][first : first + len(row["labels"])])
        for segment, (label, audio) in enumerate(zip(row["labels"], row["audio_features"][:, 0].tolist())):
            other, place = divmod(int(audio), 10)
            if label == 0:
                assert other != clip and Events.labels[other][place] == 0
                heard[clip].add(other)
            else:  # background, an unknown label, and the class of one clip
                assert (other, place) == (clip, first + segment)
    assert heard == {0: {1, 2}, 1: {0, 2}, 2: {0, 1}, 3: set()}


def test_swapped_sounds_leave_the_other_choices_alone():
    options = {"noise": 0.1, "mix_clips": 0.5, "drop_modality": 0.5}
    plain, both, again = (swapped(Events(), **options, swap_sounds=value) for value in (0.0, 0.5, 0.5))
    pairs = list(zip(rows_of(plain), rows_of(both), rows_of(again)))
    for row, other, same in pairs:
        assert torch.equal(row["labels"], other["labels"])
        assert torch.equal(row["image_features"], other["image_features"])
        assert torch.equal(other["audio_features"], same["audio_features"])
    changed_sounds = sum(not torch.allclose(row["audio_features"], other["audio_features"]) for row, other, _ in pairs)
    assert 10 < changed_sounds < 60  # of 80, a quarter of which cannot change


def test_labels_without_features_are_those_of_the_seen_classes():
    class Known(Events):
        truth = {index: {"events": [{"label": int(index == 3)}], "duration": 6.0} for index in range(4)}

    clips = Subset(SeenClips(LabelledClips(Known(), BACKGROUND), ("a", "b", "c"), ("a",)), [0])
    assert labels_of(clips, 0).tolist() == clips[0]["labels"].tolist() == [2, 0, 0, 0, 0, 0]


def test_sounds_that_cannot_be_swapped_are_refused():
    class Several(Events):
        def labels_of(self, index):
            return torch.zeros(6, 3)

    class Alone(Events):
        def labels_of(self, index):
            return [index] * 6

    for clips, message in ((Several(), "one label each"), (Alone(), "in two of them")):
        with pytest.raises(ValueError, match=message):
            swapped(clips, swap_sounds=0.5)
    parser = argparse.ArgumentParser()
    add_augmentation_arguments(parser)
    arguments = parser.parse_args(["--swap_sounds", "0.5"])
    for fields in ({"supervision": "weak"}, {"problem_type": "multi_label", "id2label": {0: "Bell"}}):
        with pytest.raises(ValueError, match="--swap_sounds needs to know"):
            change_features(arguments, ClipWindows(Events(), 10, 0), AVEClipConfig(**fields))
