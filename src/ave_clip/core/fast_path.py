"""Base of the networks that can run a faster copy of themselves."""

from typing import Any

from torch import nn


class HasFastPath(nn.Module):
    """Base of the networks that can run a faster copy of themselves; towers have a method `_compute` that it replaces.

    The copy is freed when the network is trained, moved or cast.
    """

    fast_path: Any = None  # `FastPath` of fast_inference.py, which `optimize_for_inference` sets on towers

    def train(self, mode: bool = True) -> Any:
        """Switches modes; training mode frees the copy made for fast inference."""
        if mode and self.fast_path is not None:
            self.fast_path.drop_copy()
        return super().train(mode)

    def _apply(self, fn, recurse=True):
        if self.fast_path is not None:
            self.fast_path.drop_copy()
        return super()._apply(fn, recurse)


__all__ = ["HasFastPath"]
