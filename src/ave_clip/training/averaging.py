"""Exponential moving average of a model's trained weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class ExponentialAverage:
    """Follows the trained parameters of a model: `average = decay * average + (1 - decay) * weight`.

    Over the first steps the decay is lower, `(1 + step) / (10 + step)`, so that the untrained weights are forgotten.
    Frozen parameters are not kept. To be given to `accelerator.register_for_checkpointing`.

    Args:
        model (`torch.nn.Module`): The bare model, after its parameters were frozen or not.
        decay (`float`): In [0, 1).

    Raises:
        ValueError: for another decay.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"The decay of the average must be in [0, 1), got {decay}. 0.99 to 0.9999 are usual.")
        self.decay, self.step = decay, 0
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        self._averages = {name: value.detach().clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of a step that was just made into the average."""
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        for name, average in self._averages.items():
            average.lerp_(self._parameters[name].detach(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the averaged weights inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "averages": self._averages}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        for name, average in self._averages.items():
            average.copy_(state["averages"][name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            kept = parameter.detach().clone()
            parameter.copy_(self._averages[name])
            self._averages[name].copy_(kept)
