"""The labelled clips that stage 3 learns from, whatever they come from: stage 2's features, peers' h5, or videos.

Each source gives its splits as rows for `collate_clips`: the model's inputs, `labels` of each segment, `video_label`
of the whole clip, and the `row` number. Rows are read when they are asked for.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from ..categories import labels_with_background
from ..configuration_ave_clip import AVEClipConfig
from ..data import load_ave, load_ave_features
from ..data.annotations import IGNORED_LABEL
from ..data.h5 import AUDIO_FILE, H5Array
from .clips import ClipReader, clips_fingerprint
from .features import MANIFEST_FILE, FeatureStore, SplitError, collate_clips
from .sampling import GlobalBatchSampler, item_rng

# What the features of all splits must have in common.
SHARED_SETTINGS = ("id2label", "visual_feature_type", "num_frames_per_segment", "segment_seconds", "pictures", "sound")
SUBSET_KEY = 0xC11B5  # keeps the choice of a subset apart from the orders of the epochs


class FeatureSplits:
    """Stage 2's features.

    Args:
        folder (`str` or `os.PathLike`): Output of `extract_features.py`.

    Attributes:
        id2label (`dict[int, str]`): Names of the classes, background last.
        manifest (`dict[str, Any]`): How the training features were made.
        expected (`dict[str, Any]`): Entries of the manifest that every split must have; see `expect`.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.manifest = FeatureStore(self.folder / "train").manifest
        self.id2label = {int(index): label for index, label in self.manifest["id2label"].items()}
        self.expected: dict[str, Any] = {name: self.manifest.get(name) for name in SHARED_SETTINGS}
        self._encoder_fingerprint: str | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of `AVEClipConfig` that follow from the features."""
        return {"visual_feature_type": self.manifest["visual_feature_type"]}

    @property
    def fingerprint(self) -> str:
        """Hash of what is learned from and measured on."""
        # The encoder is known by its weights (`encoder_fingerprint`); where it lay is no matter.
        ignored = ("made_with", "failed", "model")
        stores = [FeatureStore(path.parent) for path in sorted(self.folder.glob(f"*/{MANIFEST_FILE}"))]
        return _hash(
            [{name: value for name, value in store.manifest.items() if name not in ignored} for store in stores]
        )

    def expect(self, config: AVEClipConfig, encoder_fingerprint: str) -> None:
        """Note which features a localizer takes.

        Args:
            config (`AVEClipConfig`): Of the localizer.
            encoder_fingerprint (`str`): Of its towers.
        """
        self.expected |= {
            "image_feature_size": config.resolved_image_feature_size,
            "audio_feature_size": config.resolved_audio_feature_size,
            "visual_feature_type": config.visual_feature_type,
        }
        self._encoder_fingerprint = encoder_fingerprint

    def unreadable(self, split: str) -> dict[int, str]:
        """Rows of a split that stage 2 could not read, and why."""
        return FeatureStore(self.folder / split).failed

    def open(self, split: str) -> Dataset | None:
        """The rows of a split; `None` where there is none.

        Args:
            split (`str`): "train", "validation" or "test".

        Raises:
            FeatureStoreError: where the features are damaged, without labels, or not those expected.
        """
        if not (self.folder / split).exists():
            return None
        store = FeatureStore(self.folder / split)
        if self._encoder_fingerprint is not None:
            store.check_encoder(self._encoder_fingerprint)
        store.check_settings(**self.expected)
        store.check_labels()
        return LabelledClips(store, len(self.id2label) - 1)


class H5Splits:
    """Peers' features in h5 files (see [`load_ave_features`]).

    Args:
        folder (`str` or `os.PathLike`): Holds the feature files.
        weak (`bool`): Whether the background clips of the weak setting, where they are there, join the train split.
        options: Further arguments of [`load_ave_features`].

    Attributes:
        id2label (`dict[int, str]`): Names of the classes, background last.
    """

    def __init__(self, folder: str | os.PathLike, weak: bool = False, **options: Any):
        audio_file = options.setdefault("audio_file", AUDIO_FILE)
        options.setdefault("num_segments", H5Array(Path(folder) / audio_file).shape[1])
        self.splits = load_ave_features(folder, **options)
        features = next(iter(self.splits.values()))
        self.id2label = labels_with_background(features.categories)
        background = len(self.id2label) - 1
        self._parts: dict[str, Dataset] = {
            split: LabelledClips(rows, background) for split, rows in self.splits.items()
        }
        if weak and "train" in self.splits:
            clean = len(self.splits["train"])
            with_noisy = load_ave_features(folder, "train", name="weak", **options)
            noisy = Subset(with_noisy, range(clean, len(with_noisy)))
            self._parts["train"] = ConcatDataset([self._parts["train"], LabelledClips(noisy, background)])

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of `AVEClipConfig` that follow from the features: no towers, these widths, any scale."""
        features = next(iter(self.splits.values()))
        is_map = features[0]["image_features"].dim() == 3
        return {
            "use_encoders": False,
            "image_feature_size": features.image_feature_size,
            "audio_feature_size": features.audio_feature_size,
            "visual_feature_type": "dense" if is_map else "pooled",
            "normalize_features": True,
        }

    @property
    def fingerprint(self) -> str:
        """Hash of labels and shapes; features are known by their shape alone."""
        labels = {split: features.labels for split, features in self.splits.items()}
        return _hash([labels, self.id2label, self.overrides, {name: len(part) for name, part in self._parts.items()}])

    def unreadable(self, split: str) -> dict[int, str]:
        """None is known before it is read."""
        return {}

    def open(self, split: str) -> Dataset | None:
        """The rows of a split; `None` where there is none.

        Raises:
            SplitError: where no row has a label.
        """
        if split in self.splits:
            _check_labels(split, self.splits[split].labels)
        return self._parts.get(split)


class VideoSplits:
    """Videos in AVE's layout, decoded as they are asked for.

    Args:
        data_dir (`str` or `os.PathLike`), on_missing (`str`): As for [`load_ave`].

    Attributes:
        id2label (`dict[int, str]`): Names of the classes, background last.
        processor (`AVEClipProcessor`, *optional*): Reads the videos; to be set before a split is opened.
    """

    overrides: Mapping[str, Any] = {}

    def __init__(self, data_dir: str | os.PathLike, on_missing: str = "raise"):
        self.examples = load_ave(data_dir, on_missing=on_missing)
        self.id2label = labels_with_background(next(iter(self.examples.values())).features["category"].names)
        self.processor = None

    @property
    def fingerprint(self) -> str:
        """Hash of videos and labels."""
        return _hash({split: clips_fingerprint(examples) for split, examples in self.examples.items()})

    def unreadable(self, split: str) -> dict[int, str]:
        """None is known before it is read."""
        return {}

    def open(self, split: str) -> Dataset | None:
        """The clips of a split; `None` where there is none.

        Raises:
            SplitError: where no clip has a label.
        """
        if split not in self.examples or not len(self.examples[split]):
            return None
        _check_labels(split, self.examples[split]["labels"])
        return LabelledClips(ClipReader(self.examples[split], self.processor), len(self.id2label) - 1)


class LabelledClips(Dataset):
    """Rows with `video_label`, the class of the whole clip, where they lack it.

    Args:
        clips (`Dataset`): Rows with `labels`.
        background (`int`): Index of the background class.
    """

    def __init__(self, clips: Dataset, background: int):
        self.clips = clips
        self.background = background

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        clip = dict(self.clips[index])
        if "labels" in clip:
            withheld = int(clip.get("video_label", IGNORED_LABEL))
            clip["video_label"] = video_label(clip["labels"], self.background, withheld)
        return clip


def video_label(labels: torch.Tensor, background: int, withheld: int = IGNORED_LABEL) -> int:
    """The class of a whole clip, as AVEL's and PSP's weak setting has it: its event, or background without any.

    >>> video_label(torch.tensor([2, 2, 0, 5]), background=5)
    2

    Args:
        labels (`torch.LongTensor` of shape `(num_segments,)`): Classes of its segments; -100 is unknown.
        background (`int`): Index of the background class.
        withheld (`int`): The answer where no segment has a label.
    """
    known = labels[labels != IGNORED_LABEL]
    if not len(known):
        return withheld
    events = known[known != background]
    return int(events.mode().values) if len(events) else background


def choose_clips(clips: Dataset, number: int | None, seed: int) -> Dataset:
    """Take a seeded subset; a smaller number gives a part of what a larger one gives.

    Args:
        clips (`Dataset`): All clips.
        number (`int`, *optional*): How many to keep; all by default.
        seed (`int`): Seed of the choice.

    Raises:
        SplitError: where there are fewer clips.
    """
    if number is None:
        return clips
    if not 1 <= number <= len(clips):
        raise SplitError(f"Asked for {number} training clips, but there are {len(clips)}. Pass 1 to {len(clips)}.")
    return Subset(clips, sorted(item_rng(seed, SUBSET_KEY).permutation(len(clips))[:number].tolist()))


def build_train_loader(
    clips: Dataset, sampler: GlobalBatchSampler, video_level: bool = False, num_workers: int = 0
) -> DataLoader:
    """Loader of this process's part of each batch; not to be prepared by Accelerate.

    Args:
        clips (`Dataset`): A split.
        sampler (`GlobalBatchSampler`): Which of them come when.
        video_level (`bool`): Whether `labels` are the classes of whole clips.
        num_workers (`int`): Processes that read.
    """
    collate = partial(collate_clips, video_level=video_level)
    return DataLoader(clips, batch_sampler=sampler, collate_fn=collate, num_workers=num_workers)


def build_prediction_loader(
    clips: Dataset, batch_size: int, num_workers: int = 0, process_index: int = 0, num_processes: int = 1
) -> "ReadableBatches":
    """Loader of every `num_processes`-th clip, in order; `predict_clips` brings the processes together.

    Args:
        clips (`Dataset`): A split.
        batch_size (`int`): Clips of a batch, over all processes together.
        num_workers (`int`): Processes that read.
        process_index (`int`), num_processes (`int`): Which process this is, of how many.
    """
    own = Subset(clips, range(process_index, len(clips), num_processes))
    size = max(1, batch_size // num_processes)
    return ReadableBatches(own, size, num_workers)


class ReadableBatches:
    """Batches of the clips that can be read, as often as they are asked for.

    Args:
        clips (`Dataset`): Rows of `ClipReader`, `FeatureStore` or `AVEFeatures`.
        batch_size (`int`): Clips of a batch, with those that cannot be read.
        num_workers (`int`): Processes that read.

    Attributes:
        rows (`list[list[int]]`): Row numbers of each batch of the last pass.
        unreadable (`dict[int, str]`): Rows of that pass that could not be read, and why.
    """

    def __init__(self, clips: Dataset, batch_size: int, num_workers: int):
        self.loader = DataLoader(clips, batch_size, collate_fn=_collate_readable, num_workers=num_workers)
        self.rows: list[list[int]] = []
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.rows, self.unreadable = [], {}
        for batch, unreadable in self.loader:
            self.unreadable |= unreadable
            if batch is not None:
                self.rows.append(batch["rows"].tolist())
                yield batch


def _collate_readable(clips: Sequence[Mapping[str, Any]]) -> tuple[dict[str, torch.Tensor] | None, dict[int, str]]:
    unreadable = {int(clip["row"]): clip["error"] for clip in clips if "error" in clip}
    return (collate_clips(clips) if len(unreadable) < len(clips) else None), unreadable


def _check_labels(split: str, labels: Iterable[Sequence[int]]) -> None:
    if all(label == IGNORED_LABEL for clip in labels for label in clip):
        raise SplitError(
            f"The {split} split has no labels: every segment is marked {IGNORED_LABEL}. Give annotations of its clips."
        )


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
