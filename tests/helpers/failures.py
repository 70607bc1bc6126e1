"""Failures of a machine, in the middle of a training."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from accelerate import Accelerator


@contextmanager
def full_disk_at_the_second_state() -> Iterator[None]:
    """Context in which a training can save one state, and the disk is full when it saves the next one."""
    save_state, calls = Accelerator.save_state, []

    def fail_at_the_second(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return save_state(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "save_state", fail_at_the_second)
        yield
