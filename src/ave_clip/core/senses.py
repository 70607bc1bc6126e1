"""How probable it is that a label is heard, seen, and both: added to the segments and events of a result."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .events import SENSES


def add_senses(result: dict[str, Any], senses: np.ndarray, names: Sequence[str]) -> None:
    """Add to segments and events how probable it is that their label is heard, seen, and both; `None`: cannot tell."""
    senses = senses.reshape(len(senses), len(SENSES), -1)  # (T, 3, L)
    for index, segment in enumerate(result["segments"]):
        label = names.index(segment["label"])
        values = senses[index, :, label] if label < senses.shape[2] else [math.nan] * len(SENSES)
        segment.update((name, None if math.isnan(value) else float(value)) for name, value in zip(SENSES, values))
    for event in result["events"]:
        inside = [part for part in result["segments"] if event["start"] <= part["start"] < event["end"]]
        for name in SENSES:
            values = [part[name] for part in inside]
            event[name] = None if None in values else sum(values) / len(values)


def unknown_senses(num_segments: int, num_labels: int) -> np.ndarray:
    """Probabilities `(num_segments, 3, num_labels)` of heard, seen and both in such a video: NaN, none can be told."""
    return np.full((num_segments, len(SENSES), num_labels), np.nan)


__all__ = ["add_senses", "unknown_senses"]
