"""Inputs and weights that are formulas, so that the authors' code and the rivals can be given the same ones.

`make_rival_parity.py` runs the authors' code with them and stores a few results; the test computes the same here.
"""

import math
import zlib

import torch

# Sizes that the authors' code has built in.
IMAGE_SIZE, AUDIO_SIZE, NUM_SEGMENTS, NUM_CLASSES = 512, 128, 10, 29
NUM_CLIPS, SIDE = 2, 7
EVENT_CLASSES = (3, 7)


def pseudo_random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers in (-1, 1) that look random and depend on a name alone, in float64."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64) + zlib.crc32(name.encode()) % 100_003
    return torch.frac(torch.sin(steps * 12.9898) * 43758.5453).view(shape)


def pseudo_weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight of a layer: of unit gain for a matrix, near 1 for a normalization, small for a bias."""
    values = pseudo_random(name, shape)
    if len(shape) > 1:
        return values * math.sqrt(3 / shape[1])
    return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)


def parity_features() -> tuple[torch.Tensor, torch.Tensor]:
    """Image maps `(2, 10, 7, 7, 512)` and audio `(2, 10, 128)`."""
    image = pseudo_random("image", (NUM_CLIPS, NUM_SEGMENTS, SIDE, SIDE, IMAGE_SIZE))
    return image, pseudo_random("audio", (NUM_CLIPS, NUM_SEGMENTS, AUDIO_SIZE))


def parity_labels() -> torch.Tensor:
    """Labels `(2, 10)`: an event from 2 to 7 in the first clip, another one throughout the second."""
    labels = torch.full((NUM_CLIPS, NUM_SEGMENTS), NUM_CLASSES - 1)
    labels[0, 2:7], labels[1] = EVENT_CLASSES
    return labels
