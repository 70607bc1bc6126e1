"""Run a localizer over a labelled split, on any number of processes, and measure it under several decoders."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from safetensors.torch import save_file
from torch.utils.data import DataLoader

from ..data.annotations import IGNORED_LABEL
from ..events import DECODERS, decode_labels
from ..files import atomic_file
from .metrics import localization_metrics

# Of each clip probabilities (T, C), labels (T,) and the row number.
Predictions = tuple[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[int]]


@torch.no_grad()
def predict_clips(
    accelerator: Accelerator,
    localizer: torch.nn.Module,
    loader: DataLoader,
    prepare: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = dict,
) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Predict every clip once, whatever the number of processes and however uneven their batches; padding is cut off.

    Args:
        accelerator (`Accelerator`): Brings the processes together.
        localizer (`AVEClipForLocalization`): In whatever wrapping; put into evaluation mode.
        loader (`DataLoader`): Batches of `collate_rows`; of this process's clips. A clip that several processes have,
            as a prepared loader's last batch does, counts once.
        prepare (`Callable`, *optional*): Changes a batch, without `rows` and `labels`, into the model's inputs.

    Returns:
        `tuple`: the probabilities `(T, C)` and the labels `(T,)` of each clip, and the clips' row numbers, by which
        they are sorted.
    """
    localizer.eval()
    model = accelerator.unwrap_model(localizer)  # processes may have unequal numbers of batches
    own = []
    for batch in loader:
        batch = send_to_device(batch, accelerator.device)
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("rows", "labels")}
        probabilities = model(**prepare(inputs)).logits.float().softmax(dim=-1)
        lengths = batch["segment_mask"].sum(dim=-1).tolist()
        columns = (probabilities.cpu().numpy(), batch["labels"].cpu().numpy(), batch["rows"].tolist(), lengths)
        own += [(row, clip[:length], labels[:length]) for clip, labels, row, length in zip(*columns)]
    clips = {row: clip for row, *clip in gather_object(own)}
    rows = sorted(clips)
    return [clips[row][0] for row in rows], [clips[row][1] for row in rows], rows


def save_predictions(
    path: str | os.PathLike,
    predictions: Mapping[str, Predictions],
) -> None:
    """Write what was predicted, so that it can be decoded and measured in other ways later.

    Args:
        path (`str` or `os.PathLike`): File in safetensors.
        predictions (`Mapping[str, tuple]`): Of each split the result of `predict_clips`. The file holds, for a split
            "test", `test_probabilities` `(N, T, C)`, `test_labels` `(N, T)` and `test_rows` `(N,)`; clips shorter than
            the longest are filled with zeros, their labels with -100.
    """
    tensors = {}
    for split, (probabilities, labels, rows) in predictions.items():
        pad = torch.nn.utils.rnn.pad_sequence
        tensors[f"{split}_probabilities"] = pad([torch.from_numpy(clip) for clip in probabilities], batch_first=True)
        tensors[f"{split}_labels"] = pad(
            [torch.from_numpy(clip) for clip in labels], batch_first=True, padding_value=IGNORED_LABEL
        )
        tensors[f"{split}_rows"] = torch.tensor(rows)
    with atomic_file(path) as partial:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)


def measure_decoders(
    probabilities: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    min_event_segments: int,
    decoders: Sequence[str] = DECODERS,
) -> dict[str, dict[str, Any]]:
    """All measures of `localization_metrics` for each decoder.

    Args:
        probabilities (`Sequence[np.ndarray]`): Of each clip `(T, C)`, background last.
        labels (`Sequence[np.ndarray]`): Of each clip `(T,)`.
        min_event_segments (`int`): As in `decode_labels`.
        decoders (`Sequence[str]`): Their names.
    """
    return {
        decoder: localization_metrics(
            [decode_labels(clip, decoder, min_event_segments) for clip in probabilities],
            labels,
            num_labels=probabilities[0].shape[1],
            probabilities=probabilities,
        )
        for decoder in decoders
    }
