"""Random changes of cached features in training: noise, parts of other clips, and seconds without picture or sound.

What an epoch does to a clip depends only on the seed, the epoch and the clip, so it is the same in any process and
after a resume.
"""

import argparse
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset

from ..core.losses import IGNORED_LABEL
from .clip_windows import ClipWindows
from .sampling import item_rng

AUGMENTATION_KEY = 0xA06  # makes the choices independent of the order of the epochs and of the windows
FEATURES = ("image_features", "audio_features")
SHORTEST_PART = 2  # segments of another clip


@dataclass(frozen=True)
class FeatureChanges:
    """How cached features are changed in training. All are off by default.

    Args:
        noise (`float`): Standard deviation of Gaussian noise, as a fraction of that of the clip's own features.
        mix_clips (`float`): Probability that a run of segments is replaced by the same segments of another clip,
            picture, sound and labels (Yun et al. 2019, CutMix, along time).
        drop_modality (`float`): Probability that picture or sound is zero in a run of segments, which are then
            labelled as background: an event must be both heard and seen.

    Raises:
        ValueError: If a value is outside its range.
    """

    noise: float = 0.0
    mix_clips: float = 0.0
    drop_modality: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"The noise of features must be 0 or more, got {self.noise}.")
        for name in ("mix_clips", "drop_modality"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is a probability from 0 to 1, got {getattr(self, name)}.")

    def __bool__(self) -> bool:
        return any((self.noise, self.mix_clips, self.drop_modality))


def add_augmentation_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of [`FeatureChanges`] to the parser of a script."""
    group = parser.add_argument_group("changes of cached features in training")
    group.add_argument(
        "--feature_noise", type=float, default=0.0, help="Standard deviation of noise, relative to the features' own."
    )
    group.add_argument(
        "--mix_clips", type=float, default=0.0, help="Probability that a clip gets a run of segments of another."
    )
    group.add_argument(
        "--drop_modality",
        type=float,
        default=0.0,
        help="Probability that a clip gets a run of segments without picture or sound, labelled as background.",
    )


class ChangedFeatures(Dataset):
    """The windows of a split with changed features.

    Args:
        windows (`ClipWindows`): Windows of cached features, with labels of each segment.
        changes (`FeatureChanges`): What is changed.
        background (`int`): Label of a segment without an event: the class index of background, or, with several
            labels per segment, 0 for each class.
        seed (`int`): Seed of all choices.

    Raises:
        ValueError: If the windows are not of cached features.
    """

    def __init__(self, windows: ClipWindows, changes: FeatureChanges, background: int, seed: int):
        if len(windows) and not windows[0].keys() >= set(FEATURES):
            raise ValueError(
                "Noise, mixed clips and dropped modalities change cached features: extract them (stage 2) and pass "
                "--features_dir, or leave these options out."
            )
        self.windows, self.changes, self.background, self.seed = windows, changes, background, seed

    def __len__(self) -> int:
        return len(self.windows)

    @property
    def clips(self) -> Any:
        """The clips of the windows."""
        return self.windows.clips

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which determines the windows and their changes; call it before iterating a loader."""
        self.windows.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads one window with its changes; the features that are stored are not modified."""
        rng = item_rng(self.seed, self.windows.epoch, index, AUGMENTATION_KEY)
        row = dict(self.windows[index])
        if rng.random() < self.changes.mix_clips:
            self._mix(row, self.windows[int(rng.integers(len(self.windows)))], rng)
        if rng.random() < self.changes.drop_modality:
            self._drop(row, rng)
        if self.changes.noise:
            generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
            for name in FEATURES:
                noise = torch.randn(row[name].shape, generator=generator)
                row[name] = row[name] + self.changes.noise * row[name].float().std() * noise.to(row[name].dtype)
        return row

    @staticmethod
    def _mix(row: dict[str, Any], other: dict[str, Any], rng: Any) -> None:
        first, last = _run(rng, min(len(row["labels"]), len(other["labels"])))
        for name in (*FEATURES, "labels"):
            row[name] = torch.cat([row[name][:first], other[name][first:last], row[name][last:]])

    def _drop(self, row: dict[str, Any], rng: Any) -> None:
        first, last = _run(rng, len(row["labels"]))
        name = FEATURES[int(rng.integers(len(FEATURES)))]
        row[name], labels = row[name].clone(), row["labels"].clone()
        row[name][first:last] = 0
        labels[first:last][labels[first:last] != IGNORED_LABEL] = self.background
        row["labels"] = labels


def _run(rng: Any, length: int) -> tuple[int, int]:
    """Returns the first segment of a random run and the one after its last."""
    size = int(rng.integers(min(SHORTEST_PART, length), length + 1))
    first = int(rng.integers(length - size + 1))
    return first, first + size


__all__ = ["ChangedFeatures", "FeatureChanges"]
