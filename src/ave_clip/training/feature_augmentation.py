"""Random changes of cached features in training: noise, sounds and parts of other clips, and missing modalities.

What an epoch does to a clip depends only on the seed, the epoch and the clip, so it is the same in any process and
after a resume.
"""

import argparse
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers.utils import logging

from ..core.categories import MULTI_LABEL
from ..core.configuration_ave_clip import AVEClipConfig
from ..core.losses import IGNORED_LABEL
from .clip_windows import ClipWindows, labels_of, read_clip_window
from .sampling import item_rng

logger = logging.get_logger(__name__)

AUGMENTATION_KEY = 0xA06  # makes the choices independent of the order of the epochs and of the windows
SOUND_KEY = 0x50D  # other choices than those above, which are the same with and without swapped sounds
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
        swap_sounds (`float`): Probability that each event of a clip gets the sound of an event of the same class in
            another training clip; labels do not change. For one label per segment.

    Raises:
        ValueError: If a value is outside its range.
    """

    noise: float = 0.0
    mix_clips: float = 0.0
    drop_modality: float = 0.0
    swap_sounds: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"The noise of features must be 0 or more, got {self.noise}.")
        for name in ("mix_clips", "drop_modality", "swap_sounds"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is a probability from 0 to 1, got {getattr(self, name)}.")

    def __bool__(self) -> bool:
        return any((self.noise, self.mix_clips, self.drop_modality, self.swap_sounds))


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
    group.add_argument(
        "--swap_sounds",
        type=float,
        default=0.0,
        help="Probability that the events of a clip get the sound of the same class from other training clips.",
    )


def change_features(
    arguments: argparse.Namespace, windows: ClipWindows, config: AVEClipConfig
) -> "ClipWindows | ChangedFeatures":
    """Returns the training windows with the changes of features that the arguments of a script ask for.

    Args:
        arguments (`argparse.Namespace`): With the options of `add_augmentation_arguments`, and `seed`.
        windows (`ClipWindows`): The training windows.
        config (`AVEClipConfig`): Configuration of the localizer, or of another network.

    Raises:
        ValueError: If a value is outside its range, or a change cannot be used with this configuration or these clips.
    """
    changes = FeatureChanges(
        arguments.feature_noise, arguments.mix_clips, arguments.drop_modality, arguments.swap_sounds
    )
    if not changes:
        return windows
    is_multi_label, is_weak = config.problem_type == MULTI_LABEL, config.supervision == "weak"
    if (is_weak or config.boundary_regression) and (changes.mix_clips or changes.drop_modality):
        raise ValueError(
            "--mix_clips and --drop_modality change the labels of segments: they cannot be used with "
            "supervision=weak or boundary_regression=true."
        )
    if changes.swap_sounds and (is_weak or is_multi_label):
        raise ValueError(
            "--swap_sounds needs to know which one event is in each segment: it cannot be used with supervision=weak "
            f"or problem_type=multi_label, but these are supervision={config.supervision} and "
            f"problem_type={config.problem_type}. Leave it out."
        )
    background = 0 if is_multi_label else len(config.id2label) - 1
    return ChangedFeatures(windows, changes, background, arguments.seed)


class ChangedFeatures(Dataset):
    """The windows of a split with changed features.

    Args:
        windows (`ClipWindows`): Windows of cached features, with labels of each segment.
        changes (`FeatureChanges`): What is changed.
        background (`int`): Label of a segment without an event: the class index of background, or, with several
            labels per segment, 0 for each class.
        seed (`int`): Seed of all choices.

    Raises:
        ValueError: If the windows are not of cached features, or no sound can be swapped.
    """

    def __init__(self, windows: ClipWindows, changes: FeatureChanges, background: int, seed: int):
        if len(windows) and not windows[0].keys() >= set(FEATURES):
            raise ValueError(
                "Noise, mixed clips, dropped modalities and swapped sounds change cached features: extract them "
                "(stage 2) and pass --features_dir, or leave these options out."
            )
        self.windows, self.changes, self.background, self.seed = windows, changes, background, seed
        self.sounds = EventSounds(windows, background) if changes.swap_sounds else None

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
        if self.sounds is not None:
            sound_rng = item_rng(self.seed, self.windows.epoch, index, SOUND_KEY)
            if sound_rng.random() < self.changes.swap_sounds:
                clip, _ = self.windows.places[index]
                row["audio_features"] = self.sounds.swapped(row, clip, sound_rng)
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


class EventSounds:
    """Where each class sounds in the training clips, from their labels alone.

    Args:
        windows (`ClipWindows`): Windows of all training clips.
        background (`int`): Class index of background.

    Attributes:
        runs (`dict[int, list[tuple[int, int, int]]]`): For each class, in the order of the clips, the runs of segments
            with this class: clip, first segment, number of segments.

    Raises:
        ValueError: If segments have several labels, or no class is in two clips.
    """

    def __init__(self, windows: ClipWindows, background: int):
        self.windows, self.background = windows, background
        self.runs: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for clip in range(len(windows.clips)):
            labels = torch.as_tensor(labels_of(windows.clips, clip))
            if labels.dim() != 1:
                raise ValueError("Sounds can be swapped only if segments have one label each. Leave swap_sounds out.")
            for label, first, length in _event_runs(labels, background):
                self.runs[label].append((clip, first, length))
        single = [label for label, runs in self.runs.items() if len({clip for clip, *_ in runs}) == 1]
        if len(single) == len(self.runs):
            raise ValueError(
                f"No class of the {len(windows.clips)} training clips is in two of them, so that no sound can be "
                "swapped. Leave swap_sounds out, or train on more clips."
            )
        if single:
            logger.warning(f"Events of {len(single)} classes keep their sound: only one training clip has each.")

    def swapped(self, row: dict[str, Any], clip: int, rng: Any) -> torch.Tensor:
        """Returns the audio features of a window in which each event has the sound of another clip, if there is one.

        Args:
            row (`dict[str, Any]`): The window, which is not modified.
            clip (`int`): Its clip.
            rng (`np.random.Generator`): Chooses the sounds.
        """
        audio = row["audio_features"].clone()
        for label, first, length in _event_runs(row["labels"], self.background):
            runs = self.runs[label]
            own, following = bisect_left(runs, (clip,)), bisect_left(runs, (clip + 1,))
            number = len(runs) - (following - own)
            if not number:
                continue
            choice = int(rng.integers(number))
            other, other_first, other_length = runs[choice if choice < own else choice + following - own]
            # Of a longer event a random part; a shorter one is repeated.
            start = other_first + int(rng.integers(max(other_length - length, 0) + 1))
            sound = self._read(other, start, min(length, other_length))
            audio[first : first + length] = sound[torch.arange(length) % len(sound)].to(audio.dtype)
        return audio

    def _read(self, clip: int, first: int, length: int) -> torch.Tensor:
        clips = self.windows.clips
        if self.windows.lengths is None:  # such as h5 features: only whole clips can be read
            return clips[clip]["audio_features"][first : first + length]
        return read_clip_window(clips, clip, first, length)["audio_features"]


def _event_runs(labels: torch.Tensor, background: int) -> Iterator[tuple[int, int, int]]:
    """Yields class, first segment and number of segments of each run of segments with the same event."""
    classes, lengths = torch.unique_consecutive(labels, return_counts=True)
    firsts = lengths.cumsum(0) - lengths
    for label, first, length in zip(classes.tolist(), firsts.tolist(), lengths.tolist()):
        if label not in (background, IGNORED_LABEL):
            yield label, first, length


def _run(rng: Any, length: int) -> tuple[int, int]:
    """Returns the first segment of a random run and the one after its last."""
    size = int(rng.integers(min(SHORTEST_PART, length), length + 1))
    first = int(rng.integers(length - size + 1))
    return first, first + size


__all__ = ["ChangedFeatures", "EventSounds", "FeatureChanges", "add_augmentation_arguments", "change_features"]
