"""Runs a localizer on the clips of a split, with any number of processes, and saves its predictions."""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from safetensors.torch import save_file
from torch.utils.data import Subset

from ..core.categories import MULTI_LABEL, SINGLE_LABEL
from ..core.label_space import LabelSpace
from ..core.losses import IGNORED_LABEL
from ..core.proposals import Proposals
from ..files import atomic_file
from .clip_windows import DEFAULT_WINDOW, ClipWindows, merge_windows, truth_of
from .splits import Clips, ReadableBatches


@dataclass
class SplitPredictions:
    """The predictions of a localizer on the clips of a split, sorted by row number.

    Attributes:
        rows (`list[int]`): Row numbers.
        probabilities (`list[np.ndarray]`): One array of shape `(T, C)` per clip; with one label per segment,
            background is last.
        labels (`list[np.ndarray]`): One array of shape `(T,)` per clip; `(T, C)` with several labels per segment.
        event_probabilities (`list[np.ndarray]`, *optional*): One array of shape `(T,)` per clip: EGTA's weight, the
            sigmoid of the event logits. `None` for a localizer without event attention.
        unreadable (`dict[int, str]`): The reason for each row that could not be read.
        truth (`dict[int, dict]`): By row, the annotated `events` (a list of `label`, `start` and `end`, or `None`
            where they are withheld) and the `duration` in seconds, if the data set has them.
        problem_type (`str`): "single_label" or "multi_label".
        proposals (`list[Proposals]`, *optional*): By clip, what the boundary head proposes; `None` without one.
    """

    rows: list[int]
    probabilities: list[np.ndarray]
    labels: list[np.ndarray]
    event_probabilities: list[np.ndarray] | None = None
    unreadable: dict[int, str] = field(default_factory=dict)
    truth: dict[int, dict[str, Any]] = field(default_factory=dict)
    problem_type: str = SINGLE_LABEL
    proposals: list[Proposals] | None = None


@torch.no_grad()
def predict_clips(
    accelerator: Accelerator,
    localizer: torch.nn.Module,
    loader: Iterable[Mapping[str, torch.Tensor]],
    prepare: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = dict,
) -> SplitPredictions:
    """Predicts each clip once and removes the padding; processes may have different numbers of batches.

    The logits of a clip that comes in several windows (see `ClipWindows`) are averaged where the windows overlap.

    Args:
        accelerator (`Accelerator`): Gathers the results of all processes.
        localizer (`AVEClipForLocalization`): With or without wrapping. It is switched to evaluation mode.
        loader (`Iterable`): Batches of `collate_rows` with this process's clips. A clip that several processes have,
            as in the last batch of a prepared loader, counts once.
        prepare (`Callable`, *optional*): Turns a batch, without `rows`, `first` and `labels`, into the model's inputs.

    Returns:
        [`SplitPredictions`]: the same in every process, without `unreadable`.
    """
    localizer.eval()
    # The bare model: DDP would wait in each forward pass for the processes that have no batch left.
    model = accelerator.unwrap_model(localizer)
    space = LabelSpace.of(model.config)
    has_proposals = getattr(model.config, "boundary_regression", False)
    wanted = {"output_hidden_states": [-1]} if has_proposals else {}
    own = []
    for batch in loader:
        batch = send_to_device(batch, accelerator.device)
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("rows", "first", "labels")}
        output = model(**prepare(inputs), **wanted)
        logits = {"logits": output.logits.float(), "event_logits": output.event_logits}
        columns = {"labels": batch["labels"], "probabilities": space.probabilities(logits["logits"]), **logits}
        if output.event_logits is not None:
            columns["event_logits"] = output.event_logits.float()
            columns["event_probabilities"] = columns["event_logits"].sigmoid()
        if has_proposals:  # the head sees whole clips, after their windows are merged
            columns["hidden"] = output.hidden_states[-1].float()
        values = {name: column.cpu().numpy() for name, column in columns.items() if column is not None}
        lengths = batch["segment_mask"].sum(dim=-1).tolist()
        firsts = batch["first"].tolist() if "first" in batch else [0] * len(lengths)
        for index, (row, first) in enumerate(zip(batch["rows"].tolist(), firsts)):
            own.append((row, first, {name: column[index, : lengths[index]] for name, column in values.items()}))
    windows: dict[int, dict[int, dict[str, np.ndarray]]] = {}
    for row, first, clip in gather_object(own):
        windows.setdefault(row, {})[first] = clip
    # A row is unreadable if one of its windows is.
    for row in gather_object(list(getattr(loader, "unreadable", {}))):
        windows.pop(row, None)
    rows = sorted(windows)
    clips = [_merge(windows[row], space) for row in rows]
    return SplitPredictions(
        rows,
        probabilities=[clip["probabilities"] for clip in clips],
        labels=[clip["labels"] for clip in clips],
        event_probabilities=[clip["event_probabilities"] for clip in clips]
        if clips and "event_probabilities" in clips[0]
        else None,
        problem_type=space.problem_type,
        proposals=[space.video_proposals(model, torch.from_numpy(clip["hidden"])) for clip in clips]
        if has_proposals
        else None,
    )


def _merge(windows: Mapping[int, Mapping[str, np.ndarray]], space: LabelSpace) -> Mapping[str, np.ndarray]:
    """Returns the columns of a clip from those of its windows, by their first segment."""
    if len(windows) == 1:
        return next(iter(windows.values()))
    merged = {
        name: merge_windows([(first, window[name]) for first, window in windows.items()])
        for name in next(iter(windows.values()))
    }
    merged["probabilities"] = space.probabilities(torch.from_numpy(merged["logits"])).numpy()
    if "event_logits" in merged:
        merged["event_probabilities"] = torch.from_numpy(merged["event_logits"]).sigmoid().numpy()
    return merged


def predict_split(
    accelerator: Accelerator,
    localizer: torch.nn.Module,
    clips: Clips,
    batch_size: int = 1,
    num_workers: int = 0,
    max_segments: int = DEFAULT_WINDOW,
) -> SplitPredictions:
    """Predicts each clip of a split once; clips that cannot be read are recorded and left out.

    Args:
        accelerator (`Accelerator`): Each of its processes takes every n-th clip.
        localizer (`AVEClipForLocalization`): On the accelerator's device.
        clips (`Dataset`): Rows of `ClipReader`, `FeatureStore` or `AVEFeatures`.
        batch_size (`int`): Clips per process.
        num_workers (`int`): Data loading processes per process.
        max_segments (`int`): Longer clips are predicted in overlapping windows of this many segments.

    Raises:
        ValueError: if there is no clip, none can be read, or none has a label.
    """
    if not len(clips):
        raise ValueError("The split is empty: there is no clip to measure. Pass another split or data set.")
    windows = ClipWindows(clips, max_segments)
    own = Subset(windows, range(accelerator.process_index, len(windows), accelerator.num_processes))
    batches = ReadableBatches(own, batch_size, num_workers)
    predictions = predict_clips(accelerator, localizer, batches)
    predictions.unreadable = dict(sorted(gather_object(list(batches.unreadable.items()))))
    predictions.truth = truth_of(clips)
    if not predictions.rows:
        first = next(iter(predictions.unreadable.values()))
        raise ValueError(f"None of the {len(clips)} clips could be read. The first: {first}")
    if all((labels == IGNORED_LABEL).all() for labels in predictions.labels):
        raise ValueError(f"None of the {len(predictions.rows)} clips has a label, so nothing can be measured.")
    return predictions


def save_predictions(path: str | os.PathLike, predictions: Mapping[str, SplitPredictions]) -> None:
    """Saves predictions, so that they can be decoded and measured in other ways later.

    Args:
        path (`str` or `os.PathLike`): Safetensors file.
        predictions (`Mapping[str, SplitPredictions]`): The predictions by split. For a split "test" the file contains
            `test_probabilities` `(N, T, C)`, `test_labels` `(N, T)` or `(N, T, C)` and `test_rows` `(N,)`. Clips
            shorter than the longest one are padded with zeros, their labels with -100. With several labels per
            segment also `test_events` `(M, 4)`: row, class, start and end in seconds of each annotated event; and
            `test_durations` `(N,)`, NaN where it is unknown.
    """
    tensors = {}
    for split, found in predictions.items():
        for name, clips, padding in (
            ("probabilities", found.probabilities, 0),
            ("labels", found.labels, IGNORED_LABEL),
        ):
            tensors[f"{split}_{name}"] = torch.nn.utils.rnn.pad_sequence(
                [torch.from_numpy(clip) for clip in clips], batch_first=True, padding_value=padding
            ).contiguous()
        tensors[f"{split}_rows"] = torch.tensor(found.rows)
        if found.problem_type == MULTI_LABEL:
            facts = [(row, found.truth.get(row, {})) for row in found.rows]
            events = [
                (row, event["label"], event["start"], event["end"])
                for row, known in facts
                for event in known.get("events") or []
            ]
            durations = [math.nan if known.get("duration") is None else known["duration"] for _, known in facts]
            tensors[f"{split}_events"] = torch.tensor(events, dtype=torch.float64).reshape(-1, 4)
            tensors[f"{split}_durations"] = torch.tensor(durations, dtype=torch.float64)
    with atomic_file(path) as partial:
        save_file(tensors, partial)
