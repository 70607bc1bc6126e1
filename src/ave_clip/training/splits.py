"""The labelled clips of stage 3: features of stage 2, h5 features of previous work, or videos.

Each source returns its splits as rows for `collate_clips`: the model's inputs, `labels` of each segment, `video_label`
of the whole clip, and the `row` number. Rows are read lazily.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow
import pyarrow.compute
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from ..core.categories import SINGLE_LABEL, labels_with_background
from ..core.configuration_ave_clip import AVEClipConfig
from ..core.losses import IGNORED_LABEL
from ..core.processing_ave_clip import AVEClipProcessor
from ..data import AVEFeatures, load_ave_features, open_dataset
from ..data.builder import problem_type_of
from ..data.h5 import AUDIO_FILE, H5Array
from .clip_windows import DEFAULT_WINDOW, ClipWindows, clip_lengths, read_clip_window
from .clips import ClipReader, clips_fingerprint
from .features import MANIFEST_FILE, FeatureStore, SplitError, collate_clips
from .sampling import GlobalBatchSampler, item_rng

if TYPE_CHECKING:
    import datasets

# Settings that must be the same in all splits.
SHARED_SETTINGS = ("id2label", "visual_feature_type", "num_frames_per_segment", "segment_seconds", "pictures", "sound")
SUBSET_KEY = 0xC11B5  # makes the choice of a subset independent of the order of the epochs


class FeatureSplits:
    """The splits of stage 2's features.

    Args:
        folder (`str` or `os.PathLike`): Output of `extract_features.py`.

    Attributes:
        problem_type (`str`): "single_label" or "multi_label".
        id2label (`dict[int, str]`): Class names; of a single label per segment, background is last.
        manifest (`dict[str, Any]`): Manifest of the training features.
        expected (`dict[str, Any]`): Entries that the manifest of each split must have; see `expect`.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        self.manifest = FeatureStore(self.folder / "train").manifest
        self.id2label = {int(index): label for index, label in self.manifest["id2label"].items()}
        self.problem_type = self.manifest.get("problem_type", SINGLE_LABEL)
        self.expected: dict[str, Any] = {name: self.manifest.get(name) for name in SHARED_SETTINGS}
        self.expected["problem_type"] = self.problem_type
        self._encoder_fingerprint: str | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of `AVEClipConfig` that the features determine."""
        return {"visual_feature_type": self.manifest["visual_feature_type"], **_label_overrides(self.problem_type)}

    @property
    def segment_seconds(self) -> float:
        """Length of a segment."""
        return self.manifest["segment_seconds"]

    @property
    def fingerprint(self) -> str:
        """Hash of the features and labels of all splits."""
        # The encoder is identified by its weights (`encoder_fingerprint`); its path does not matter.
        ignored = ("made_with", "failed", "model")
        stores = [FeatureStore(path.parent) for path in sorted(self.folder.glob(f"*/{MANIFEST_FILE}"))]
        return _hash(
            [{name: value for name, value in store.manifest.items() if name not in ignored} for store in stores]
        )

    def expect(self, config: AVEClipConfig, encoder_fingerprint: str) -> None:
        """Sets the features that a localizer needs; `open` then checks them.

        Args:
            config (`AVEClipConfig`): Configuration of the localizer.
            encoder_fingerprint (`str`): Fingerprint of its towers.
        """
        self.expected |= {
            "image_feature_size": config.resolved_image_feature_size,
            "audio_feature_size": config.resolved_audio_feature_size,
            "visual_feature_type": config.visual_feature_type,
        }
        self._encoder_fingerprint = encoder_fingerprint

    def unreadable(self, split: str) -> dict[int, str]:
        """Returns the reason for each row of a split that stage 2 could not read."""
        return FeatureStore(self.folder / split).failed

    def open(self, split: str) -> "Clips | None":
        """Returns the rows of a split; `None` if there is no such split.

        Args:
            split (`str`): "train", "validation" or "test".

        Raises:
            FeatureStoreError: if the features are damaged, have no labels, or are not those expected.
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
    """The splits of h5 features from previous work (see [`load_ave_features`]).

    Args:
        folder (`str` or `os.PathLike`): Folder of the feature files.
        weak (`bool`): Whether to add the background clips of the weak setting, if available, to the train split.
        options: Further arguments of [`load_ave_features`].

    Attributes:
        id2label (`dict[int, str]`): Class names, background last.
    """

    problem_type = SINGLE_LABEL
    segment_seconds = 1.0  # the segments of AVE

    def __init__(self, folder: str | os.PathLike, weak: bool = False, **options: Any):
        audio_file = options.setdefault("audio_file", AUDIO_FILE)
        options.setdefault("num_segments", H5Array(Path(folder) / audio_file).shape[1])
        self.splits = load_ave_features(folder, **options)
        features = next(iter(self.splits.values()))
        self.id2label = labels_with_background(features.categories)
        background = len(self.id2label) - 1
        self._parts: dict[str, Clips] = {split: LabelledClips(rows, background) for split, rows in self.splits.items()}
        if weak and "train" in self.splits:
            clean = len(self.splits["train"])
            with_noisy = load_ave_features(folder, "train", name="weak", **options)
            noisy = Subset(with_noisy, range(clean, len(with_noisy)))
            self._parts["train"] = ConcatDataset([self._parts["train"], LabelledClips(noisy, background)])

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of `AVEClipConfig` that the features determine: no towers, and the widths."""
        features = next(iter(self.splits.values()))
        is_map = features[0]["image_features"].dim() == 3
        return {
            "use_encoders": False,
            "image_feature_size": features.image_feature_size,
            "audio_feature_size": features.audio_feature_size,
            "visual_feature_type": "dense" if is_map else "pooled",
        }

    @property
    def fingerprint(self) -> str:
        """Hash of labels and shapes; of the features only the shape is compared."""
        labels = {split: features.labels for split, features in self.splits.items()}
        return _hash([labels, self.id2label, self.overrides, {name: len(part) for name, part in self._parts.items()}])

    def unreadable(self, split: str) -> dict[int, str]:
        """Returns no rows: unreadable ones are only found while reading."""
        return {}

    def open(self, split: str) -> "Clips | None":
        """Returns the rows of a split; `None` if there is no such split.

        Raises:
            SplitError: if no row has a label.
        """
        if split in self.splits:
            _check_labels(split, self.splits[split].labels)
        return self._parts.get(split)


class VideoSplits:
    """The splits of a labelled data set of videos, decoded lazily.

    Args:
        data (`str` or `os.PathLike`), options: Arguments of [`~ave_clip.data.open_dataset`].

    Attributes:
        problem_type (`str`): "single_label" or "multi_label".
        id2label (`dict[int, str]`): Class names; of a single label per segment, background is last.
        processor (`AVEClipProcessor`, *optional*): Reads the videos; must be set before a split is opened.
    """

    def __init__(self, data: str | os.PathLike, **options: Any):
        self.examples = open_videos(data, **options)
        features = next(iter(self.examples.values())).features
        self.problem_type = problem_type_of(features)
        self.id2label = class_names_of(features)
        self.processor: AVEClipProcessor | None = None

    @property
    def overrides(self) -> dict[str, Any]:
        """Fields of `AVEClipConfig` that the data determine."""
        return _label_overrides(self.problem_type)

    @property
    def segment_seconds(self) -> float:
        """Length of a segment.

        Raises:
            ValueError: if `processor` is not set.
        """
        return self._reader("length of a segment is known").video_processor.segment_seconds

    @property
    def fingerprint(self) -> str:
        """Hash of videos and labels."""
        return _hash({split: clips_fingerprint(examples) for split, examples in self.examples.items()})

    def unreadable(self, split: str) -> dict[int, str]:
        """Returns no rows: unreadable ones are only found while reading."""
        return {}

    def open(self, split: str) -> "Clips | None":
        """Returns the clips of a split; `None` if there is no such split.

        Raises:
            SplitError: if no clip has a label.
            ValueError: if `processor` is not set.
        """
        if split not in self.examples or not len(self.examples[split]):
            return None
        check_labelled(split, self.examples[split])
        reader = self._reader(f"{split} split is opened")
        return LabelledClips(ClipReader(self.examples[split], reader), len(self.id2label) - 1)

    def _reader(self, purpose: str) -> AVEClipProcessor:
        if self.processor is None:
            raise ValueError(f"Set `processor` before the {purpose}: it reads the videos.")
        return self.processor


Splits = FeatureSplits | H5Splits | VideoSplits


class LabelledClips(Dataset):
    """Adds `video_label`, the class of the whole clip (or its classes, 0 or 1 each), to rows without one.

    Args:
        clips (`Dataset`): Rows with `labels`.
        background (`int`): Index of the background class, if segments have one label.
    """

    def __init__(self, clips: "Clips | AVEFeatures", background: int):
        self.clips = clips
        self.background = background

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._labelled(self.clips[index])

    @property
    def lengths(self) -> list[int] | None:
        """Number of segments of each clip; `None` for clips that cannot be read in windows."""
        return clip_lengths(self.clips)

    def window(self, index: int, first: int = 0, length: int | None = None) -> dict[str, Any]:
        """Returns a window of a clip; its `video_label` is that of the window."""
        return self._labelled(read_clip_window(self.clips, index, first, length))

    def _labelled(self, row: Mapping[str, Any]) -> dict[str, Any]:
        clip: dict[str, Any] = dict(row)
        if "labels" in clip:
            withheld = torch.as_tensor(clip.get("video_label", IGNORED_LABEL))
            clip["video_label"] = video_label(clip["labels"], self.background, withheld)
        return clip


# Data sets of torch with a length; `Dataset` itself does not promise one.
Clips = ClipReader | ClipWindows | FeatureStore | LabelledClips | Subset | ConcatDataset


def video_label(
    labels: torch.Tensor, background: int, withheld: int | torch.Tensor = IGNORED_LABEL
) -> int | torch.Tensor:
    """Returns the class of a whole clip as in the weak setting of AVEL and PSP: its event, or background without one.

    >>> video_label(torch.tensor([2, 2, 0, 5]), background=5)
    2

    Args:
        labels (`torch.LongTensor` of shape `(num_segments,)` or `(num_segments, num_classes)`): Classes of its
            segments, or 0 and 1 for each class; -100 means unknown.
        background (`int`): Index of the background class, for one class per segment.
        withheld (`int` or `torch.Tensor`): The result if no segment has a label.

    Returns:
        `int`: the class; or a `torch.LongTensor` of shape `(num_classes,)`: 1 for each class of any segment.
    """
    if labels.dim() == 2:
        flags = (labels == 1).any(dim=0).long()
        is_unknown = (labels == IGNORED_LABEL).all(dim=0)
        return torch.where(is_unknown, torch.as_tensor(withheld, dtype=torch.long), flags)
    known = labels[labels != IGNORED_LABEL]
    if not len(known):
        return int(withheld)
    events = known[known != background]
    return int(events.mode().values) if len(events) else background


def check_whole_videos(clips: Clips, split: str, max_segments: int) -> int:
    """Returns the segments of the longest clip, for weak supervision, which learns from whole videos.

    A label of a video says that its event is in some segment. In a window of the video, it may be in none.

    Raises:
        SplitError: if a clip is longer than `max_segments`.
    """
    longest = max(clip_lengths(clips) or [1])
    if longest > max_segments:
        raise SplitError(
            f"The longest clip of the {split} split has {longest} segments, more than max_segments={max_segments}. "
            "Weak supervision learns from whole videos: a window may not contain the event of its video's label. Pass "
            f"--localizer max_segments={longest}, which needs memory for so many, cut the videos, or use labels of "
            "segments."
        )
    return longest


def open_split(data: str | os.PathLike, split: str, **options: Any) -> "datasets.Dataset":
    """Opens one split of a labelled data set of videos.

    Args:
        data (`str` or `os.PathLike`), options: Arguments of [`~ave_clip.data.open_dataset`].
        split (`str`): "train", "validation" or "test".

    Raises:
        SplitError: if there is no such split.
    """
    splits = open_videos(data, **options)
    if split not in splits:
        raise SplitError(
            f"{os.fspath(data)} has no {split} split, only {list(splits)}. Choose one of these; of data without "
            "splits, --split_fractions 0.8 0.1 0.1 makes them."
        )
    return splits[split]


def open_videos(data: str | os.PathLike, **options: Any) -> "datasets.DatasetDict":
    """Opens all splits of a labelled data set of videos.

    Args:
        data (`str` or `os.PathLike`), options: Arguments of [`~ave_clip.data.open_dataset`].

    Raises:
        ValueError: if `data` contains features and no videos.
    """
    splits = open_dataset(data, **options)
    if not all(hasattr(rows, "features") for rows in splits.values()):
        raise ValueError(f"{os.fspath(data)} contains features of AVE and no videos. Pass --h5_dir instead of --data.")
    return splits


def class_names_of(features: "datasets.Features") -> dict[int, str]:
    """Returns the names of a data set's classes; with one label per segment, background is the last class."""
    names = features["category"].names
    return labels_with_background(names) if problem_type_of(features) == SINGLE_LABEL else dict(enumerate(names))


def _label_overrides(problem_type: str) -> dict[str, Any]:
    # Only where it differs from the default: a run with one label per segment is described as in earlier versions.
    return {} if problem_type == SINGLE_LABEL else {"problem_type": problem_type}


def choose_clips(clips: Clips, number: int | None, seed: int) -> Clips:
    """Returns a seeded subset; smaller subsets are contained in larger ones.

    Args:
        clips (`Dataset`): All clips.
        number (`int`, *optional*): Size of the subset. Default: all clips.
        seed (`int`): Seed of the choice.

    Raises:
        SplitError: if there are fewer clips.
    """
    if number is None:
        return clips
    if not 1 <= number <= len(clips):
        raise SplitError(f"Asked for {number} training clips, but there are {len(clips)}. Pass 1 to {len(clips)}.")
    return Subset(clips, sorted(item_rng(seed, SUBSET_KEY).permutation(len(clips))[:number].tolist()))


def build_train_loader(
    clips: Dataset, sampler: GlobalBatchSampler, video_level: bool = False, num_workers: int = 0
) -> DataLoader:
    """Builds the loader of this process's part of each batch; do not pass it to `accelerator.prepare`.

    Args:
        clips (`Dataset`): A split, or `ClipWindows` of it.
        sampler (`GlobalBatchSampler`): Defines the batches.
        video_level (`bool`): Whether `labels` are the classes of whole clips.
        num_workers (`int`): Data loading processes.
    """
    collate = partial(collate_clips, video_level=video_level)
    return DataLoader(clips, batch_sampler=sampler, collate_fn=collate, num_workers=num_workers)


def build_prediction_loader(
    clips: Clips,
    batch_size: int,
    num_workers: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
    max_segments: int = DEFAULT_WINDOW,
) -> "ReadableBatches":
    """Builds the loader of every `num_processes`-th clip, in order, for `predict_clips`.

    Args:
        clips (`Dataset`): A split.
        batch_size (`int`): Clips per batch, over all processes.
        num_workers (`int`): Data loading processes.
        process_index (`int`), num_processes (`int`): Index of this process and number of processes.
        max_segments (`int`): Longer clips come in overlapping windows of this many segments.
    """
    windows = ClipWindows(clips, max_segments)
    own = Subset(windows, range(process_index, len(windows), num_processes))
    size = max(1, batch_size // num_processes)
    return ReadableBatches(own, size, num_workers)


class ReadableBatches:
    """Batches of readable clips; can be iterated repeatedly.

    Args:
        clips (`Dataset`): Rows of `ClipReader`, `FeatureStore` or `AVEFeatures`.
        batch_size (`int`): Clips per batch, including unreadable ones.
        num_workers (`int`): Data loading processes.

    Attributes:
        unreadable (`dict[int, str]`): The reason for each unreadable row of the last pass.
    """

    def __init__(self, clips: Clips, batch_size: int, num_workers: int):
        self.loader = DataLoader(clips, batch_size, collate_fn=_collate_readable, num_workers=num_workers)
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.unreadable = {}
        for batch, unreadable in self.loader:
            self.unreadable |= unreadable
            if batch is not None:
                yield batch


def _collate_readable(clips: Sequence[Mapping[str, Any]]) -> tuple[dict[str, torch.Tensor] | None, dict[int, str]]:
    unreadable = {int(clip["row"]): clip["error"] for clip in clips if "error" in clip}
    return (collate_clips(clips) if len(unreadable) < len(clips) else None), unreadable


def check_labelled(split: str, examples: "datasets.Dataset") -> None:
    """Checks that a split has labels, without a Python object for each of them.

    Raises:
        SplitError: if it has none.
    """
    values = examples.with_format("arrow")["labels"][:]
    # pyarrow makes these functions when it is imported, so they have no types.
    while pyarrow.types.is_list(values.type) or pyarrow.types.is_large_list(values.type):
        values = pyarrow.compute.list_flatten(values)  # pyrefly: ignore[missing-attribute]
    if not len(values) or pyarrow.compute.max(values).as_py() == IGNORED_LABEL:  # pyrefly: ignore[missing-attribute]
        raise _no_labels(split)


def _check_labels(split: str, labels: Iterable[Sequence[int]]) -> None:
    if all(label == IGNORED_LABEL for clip in labels for label in clip):
        raise _no_labels(split)


def _no_labels(split: str) -> SplitError:
    return SplitError(
        f"The {split} split has no labels: each segment has {IGNORED_LABEL}. Provide annotations of its clips."
    )


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
