"""Exponential moving average of the trained weights of a model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

TensorList = tuple[torch.Tensor, ...] | list[torch.Tensor]


class ExponentialAverage(AveragedModel):
    """torch's `AveragedModel` over the trained parameters alone: frozen towers are neither copied nor averaged.

    The first update copies the weights. After `n` updates the decay is `min(decay, (1 + n) / (10 + n))`, so that the
    untrained weights are soon forgotten. Pass it to `accelerator.register_for_checkpointing`.

    Args:
        model (`torch.nn.Module`): The model without wrapping, after freezing.
        decay (`float`): Decay in [0, 1).

    Raises:
        ValueError: if the decay is outside [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"The decay of the average must be in [0, 1), got {decay}. 0.99 to 0.9999 are usual.")

        def average(averages: TensorList, weights: TensorList, num_averaged: torch.Tensor | int) -> None:
            count = int(num_averaged)
            torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + count) / (10 + count)))

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        super().__init__(nn.ParameterList(trained), multi_avg_fn=average)
        self.trained = trained

    def update(self) -> None:
        """Updates the average with the current weights, after an optimizer step."""
        self.update_parameters(nn.ParameterList(self.trained))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context in which the model has the averaged weights; its own weights are restored at the end."""
        weights = [parameter.detach().clone() for parameter in self.trained]
        self._assign(self.module.parameters())
        try:
            yield
        finally:
            self._assign(weights)

    @torch.no_grad()
    def _assign(self, values: Iterable[torch.Tensor]) -> None:
        for parameter, value in zip(self.trained, values):
            parameter.copy_(value)
