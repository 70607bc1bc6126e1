"""Changes of cached features in training: what they change, and that they depend on seed, epoch and clip alone."""

import pytest
import torch
from torch.utils.data import Dataset

from ave_clip.training.clip_windows import ClipWindows
from ave_clip.training.feature_augmentation import ChangedFeatures, FeatureChanges

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


@pytest.mark.parametrize("changes", [{"noise": -1}, {"mix_clips": 1.5}, {"drop_modality": -0.1}])
def test_values_out_of_range_are_refused(changes):
    with pytest.raises(ValueError, match=r"must be 0 or more|from 0 to 1"):
        FeatureChanges(**changes)


def test_videos_are_refused():
    class Videos(Clips):
        def __getitem__(self, index):
            return {"pixel_values": torch.zeros(6, 1, 3, 8, 8), "labels": torch.zeros(6)}

    with pytest.raises(ValueError, match="cached features"):
        ChangedFeatures(ClipWindows(Videos(), 10, 0), FeatureChanges(noise=0.1), BACKGROUND, 0)
