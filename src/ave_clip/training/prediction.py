"""Run a localizer over a labelled split, on any number of processes, and measure it under several decoders."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..events import DECODERS, decode_labels
from .metrics import localization_metrics


@torch.no_grad()
def predict_clips(
    accelerator: Accelerator,
    localizer: torch.nn.Module,
    loader: DataLoader,
    prepare: Callable[[Mapping[str, torch.Tensor]], Mapping[str, torch.Tensor]] = dict,
) -> tuple[list[np.ndarray], list[np.ndarray], list[int]]:
    """Predict every clip once, also where the last batch is uneven; padding is cut off.

    Args:
        accelerator (`Accelerator`): That prepared the loader.
        localizer (`AVEClipForLocalization`): In whatever wrapping; put into evaluation mode.
        loader (`DataLoader`): Batches of `collate_clips`.
        prepare (`Callable`, *optional*): Changes a batch, without `rows` and `labels`, into the model's inputs.

    Returns:
        `tuple`: the probabilities `(T, C)` and the labels `(T,)` of each clip, and the clips' row numbers.
    """
    localizer.eval()
    probabilities, labels, rows = [], [], []
    for batch in loader:
        inputs = {name: tensor for name, tensor in batch.items() if name not in ("rows", "labels")}
        logits = localizer(**prepare(inputs)).logits
        padded = accelerator.pad_across_processes((logits, batch["labels"], batch["segment_mask"]), dim=1)
        gathered = accelerator.gather_for_metrics((*padded, batch["rows"]))
        for clip_logits, clip_labels, mask, row in zip(*(tensor.cpu() for tensor in gathered)):
            length = int(mask.sum())
            probabilities.append(clip_logits[:length].float().softmax(dim=-1).numpy())
            labels.append(clip_labels[:length].numpy())
            rows.append(int(row))
    return probabilities, labels, rows


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
        )
        for decoder in decoders
    }
