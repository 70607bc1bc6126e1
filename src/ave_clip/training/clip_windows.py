"""Windows of long clips: random ones for training, overlapping ones for prediction, whose results are averaged.

The windows of an epoch depend only on the seed, the epoch and the clip: not on the process that reads them, and not on
earlier reads.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from ..core.categories import IGNORED_LABEL
from .features import SplitError
from .sampling import item_rng

WINDOW_KEY = 0x317D0  # makes the choice of windows independent of the order of the epochs
DEFAULT_WINDOW = 64  # segments of a training window, unless the localizer's configuration says otherwise
OVERLAP = 0.5  # fraction of a window that the next one repeats in prediction, as in the pipeline
NEEDS_EVENTS = (
    "Dense boundaries (boundary_regression=True) learn the exact times of events. Train on annotated videos (--data), "
    "or on features that stage 2 extracted from them; or leave boundary_regression out."
)


class ClipWindows(Dataset):
    """The windows of a data set's clips as items; a clip of at most `size` segments is one item, unchanged.

    Args:
        clips (`Dataset`): Rows of `FeatureStore`, `ClipReader` or a subset of them.
        size (`int`): Largest number of segments of a window.
        seed (`int`, *optional*): Seed of random windows; a clip gets as many as are needed to cover it once. Without
            a seed, the windows are regular and overlap by half, and the last one ends with the clip.
        segment_seconds (`float`, *optional*): Length of a segment. Adds the exact times of the annotated events to
            each item, which dense boundaries learn; see [`window_events`].

    Raises:
        SplitError: with `segment_seconds`, if the events of a clip are not known.

    Attributes:
        clips (`Dataset`): The clips.
    """

    def __init__(self, clips: Any, size: int, seed: int | None = None, segment_seconds: float | None = None):
        if size < 1:
            raise ValueError(f"A window has at least one segment, got {size}.")
        self.clips, self.size, self.seed, self.segment_seconds = clips, size, seed, segment_seconds
        self._events = {row: known.get("events") for row, known in truth_of(clips).items()} if segment_seconds else {}
        if segment_seconds is not None and all(events is None for events in self._events.values()):
            raise SplitError(f"No event of these clips is known. {NEEDS_EVENTS}")
        self.lengths = clip_lengths(clips)
        if self.lengths is None:  # such as h5 features: clips of one length that cannot be read in windows
            self.places = [(index, 0) for index in range(len(clips))]
        elif seed is None:
            self.places = [
                (index, first) for index, length in enumerate(self.lengths) for first in window_starts(length, size)
            ]
        else:
            self.places = [
                (index, number) for index, length in enumerate(self.lengths) for number in range(-(-length // size))
            ]
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.places)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which determines the random windows; call it before iterating a loader."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads one window: the row with the tensors of its segments, and in a long clip `first`, its place."""
        clip, number = self.places[index]
        if self.lengths is None or self.lengths[clip] <= self.size:
            return self._with_events(self.clips[clip], 0)
        first = number  # regular windows are numbered by their first segment
        if self.seed is not None:
            rng = item_rng(self.seed, self.epoch, clip, number, WINDOW_KEY)
            first = int(rng.integers(self.lengths[clip] - self.size + 1))
        row = {**read_clip_window(self.clips, clip, first, self.size), "first": first}
        return self._with_events(row, first)

    def _with_events(self, row: dict[str, Any], first: int) -> dict[str, Any]:
        if self.segment_seconds is None or "error" in row:
            return row
        events = self._events.get(int(row["row"]))
        if events is None and (torch.as_tensor(row["labels"]) != IGNORED_LABEL).any():
            raise SplitError(f"Row {int(row['row'])} has labels, but its events are not known. {NEEDS_EVENTS}")
        spans, labels = window_events(events or [], first, len(row["labels"]), self.segment_seconds)
        return {**row, "event_spans": spans, "event_classes": labels}


def window_events(
    events: Sequence[Mapping[str, Any]], first: int, length: int, segment_seconds: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the events of a window, clipped at its ends: times in segments from its start, not rounded.

    Args:
        events (`Sequence[Mapping[str, Any]]`): `label`, `start` and `end` in seconds of each event of the clip.
        first (`int`), length (`int`): First segment and number of segments of the window.
        segment_seconds (`float`): Length of a segment.

    Returns:
        `event_spans` `(num_events, 2)`, float32, and `event_classes` `(num_events,)`.

    >>> window_events([{"label": 3, "start": 1.5, "end": 9.0}, {"label": 0, "start": 0.0, "end": 1.0}], 1, 4, 1.0)
    (tensor([[0.5000, 4.0000]]), tensor([3]))
    """
    spans = torch.tensor([[event["start"], event["end"]] for event in events], dtype=torch.float64).reshape(-1, 2)
    spans = (spans / segment_seconds - first).clamp(0, length)
    labels = torch.tensor([int(event["label"]) for event in events], dtype=torch.long)
    is_inside = spans[:, 1] > spans[:, 0]
    return spans[is_inside].float(), labels[is_inside]


def truth_of(clips: Any) -> dict[int, dict[str, Any]]:
    """Returns the annotated `events` and the `duration` of each row, as far as its source knows them."""
    while not hasattr(clips, "truth"):
        inner = getattr(clips, "clips", None) or getattr(clips, "dataset", None)
        if inner is None:
            return {}
        clips = inner
    return clips.truth


def window_starts(length: int, size: int) -> list[int]:
    """Returns the first segments of windows that overlap by half; the last window ends with the clip.

    >>> window_starts(10, 4), window_starts(11, 4), window_starts(3, 4)
    ([0, 2, 4, 6], [0, 2, 4, 6, 7], [0])
    """
    if length <= size:
        return [0]
    starts = list(range(0, length - size + 1, max(1, size - round(size * OVERLAP))))
    return starts if starts[-1] == length - size else [*starts, length - size]


def clip_lengths(clips: Any) -> list[int] | None:
    """Returns the number of segments of each clip; `None` for clips that cannot be read in windows."""
    if isinstance(clips, Subset):
        lengths = clip_lengths(clips.dataset)
        return None if lengths is None else [lengths[index] for index in clips.indices]
    return getattr(clips, "lengths", None)


def read_clip_window(clips: Any, index: int, first: int, length: int | None) -> dict[str, Any]:
    """Reads a window of a clip; subsets are followed to the data set that has it."""
    if isinstance(clips, Subset):
        return read_clip_window(clips.dataset, clips.indices[index], first, length)
    return clips.window(index, first, length)


def labels_of(clips: Any, index: int) -> Any:
    """Returns the labels of a clip without reading its features or its video; subsets and wrappers are followed."""
    while not hasattr(clips, "labels_of"):
        if isinstance(clips, Subset):
            clips, index = clips.dataset, clips.indices[index]
        elif isinstance(clips, ConcatDataset):
            part = bisect_right(clips.cumulative_sizes, index)
            clips, index = clips.datasets[part], index - [0, *clips.cumulative_sizes][part]
        else:
            clips = clips.clips
    return clips.labels_of(index)


def merge_windows(windows: Sequence[tuple[int, np.ndarray]]) -> np.ndarray:
    """Averages values of overlapping windows.

    Args:
        windows (`Sequence[tuple[int, np.ndarray]]`): First segment, and values `(T, ...)` of each.

    Returns:
        `np.ndarray`: The values of all segments.
    """
    ordered = sorted(windows, key=lambda window: window[0])  # sums do not depend on which process was faster
    end = max(first + len(values) for first, values in ordered)
    total = np.zeros((end, *ordered[0][1].shape[1:]), dtype=np.float64)
    count = np.zeros((end, *[1] * (total.ndim - 1)))
    for first, values in ordered:
        total[first : first + len(values)] += values
        count[first : first + len(values)] += 1
    return (total / count.clip(min=1)).astype(ordered[0][1].dtype)
