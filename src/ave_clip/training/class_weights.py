"""Weights of classes in the loss of several labels, from the training labels (`AVEClipConfig.class_weights`).

`n_c` is the number of training segments in which class c is active. The weights are scaled so that their mean over the
active segments is 1: the balance between active and inactive classes stays that of the plain loss.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from ..core.categories import MULTI_LABEL
from ..core.label_space import LabelSpace
from .clip_windows import labels_of

logger = logging.get_logger(__name__)

BETA = 0.999  # of the four values that Cui et al. compare, the middle one for thousands of examples per class


def inverse_frequency(counts: np.ndarray) -> np.ndarray:
    """Returns `1 / n_c`: all classes together have equal weight (scikit-learn's "balanced", King & Zeng 2001)."""
    return 1 / counts


def inverse_effective_number(counts: np.ndarray) -> np.ndarray:
    """Returns `(1 - beta) / (1 - beta ** n_c)` with beta = 0.999 (Cui et al. 2019, "Class-Balanced Loss", eq. 2).

    As segments of a class are alike, the thousandth adds less than the first. Classes with many thousands of segments
    have almost equal weights.
    """
    return (1 - BETA) / (1 - BETA**counts)


# Values of `--class_weighting`.
CLASS_WEIGHTINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "balanced": inverse_frequency,
    "effective_number": inverse_effective_number,
}


def class_weights(counts: Sequence[int], weighting: str) -> list[float]:
    """Computes the weight of each class; a class without an active segment gets 1, which nothing uses.

    >>> class_weights([10, 30, 0], "balanced")
    [2.0, 0.666667, 1.0]

    Args:
        counts (`Sequence[int]`): `n_c` of each class.
        weighting (`str`): A key of `CLASS_WEIGHTINGS`.
    """
    numbers = np.asarray(counts, dtype=np.float64)
    occurs = numbers > 0
    weights = np.ones(len(numbers))
    if occurs.any():
        weights[occurs] = CLASS_WEIGHTINGS[weighting](numbers[occurs])
        weights[occurs] *= numbers.sum() / (weights * numbers)[occurs].sum()
    return [round(weight, 6) for weight in weights.tolist()]


def count_active(clips: Any, num_classes: int) -> list[int]:
    """Counts the segments in which each class is active, from the labels alone.

    Args:
        clips (`Dataset`): Rows with several labels per segment: a split, or a subset of it.
        num_classes (`int`): Number of classes.
    """
    counts = np.zeros(num_classes, dtype=np.int64)
    for index in range(len(clips)):
        counts += (np.asarray(labels_of(clips, index)) == 1).reshape(-1, num_classes).sum(axis=0)
    return counts.tolist()


def set_class_weights(config: Any, clips: Any, weighting: str) -> None:
    """Sets `class_weights` of a localizer's configuration from the labels of its training clips.

    Raises:
        ValueError: if segments have one label each, the vocabulary is open, or there are weights already.
    """
    space = LabelSpace.of(config)
    if space.problem_type != MULTI_LABEL or config.label_embedding_size is not None:
        raise ValueError(
            f"--class_weighting {weighting} needs several labels per segment and fixed classes "
            '(problem_type="multi_label", no --open_vocabulary). Leave it out.'
        )
    if config.class_weights is not None:
        raise ValueError(f"Got --class_weighting {weighting} and class_weights={config.class_weights}. Pass one.")
    counts = count_active(clips, len(space.names))
    config.class_weights = tuple(class_weights(counts, weighting))
    absent = [name for name, number in zip(space.names, counts) if not number]
    logger.info(f"Class weights: {dict(zip(space.names, config.class_weights))}")
    if absent:
        logger.warning(f"The training clips have no segment of {len(absent)} classes, such as {absent[0]!r}.")
