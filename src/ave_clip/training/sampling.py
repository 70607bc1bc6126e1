"""Which items a training step sees: the same for any number of processes, and again after a run was killed.

Nothing here is drawn from a process's own stream of random numbers. The order of an epoch follows from
`(seed, epoch)`, and what is random about one item from `(seed, epoch, item)`.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

# A last batch smaller than this share of a batch joins the one before, so that up to batch_size / 8 processes split
# the very same batches.
SMALLEST_SHARE = 8


class GlobalBatchSampler(Sampler[list[int]]):
    """Cuts an epoch into batches that all processes share, and yields the part of this process.

    The batches do not depend on the number of processes: process `p` of `P` gets the `p`-th of `P` near-equal
    contiguous parts of each. Loaders built on it must not go through `accelerator.prepare`, which would split them
    again. A last batch that is smaller than 2, than an eighth of `batch_size`, or than the number of processes joins
    the one before it.

    Args:
        num_items (`int`): Length of the data set.
        batch_size (`int`): Items of a batch, over all processes together.
        seed (`int`): Seed of the order.
        shuffle (`bool`): Whether each epoch has an order of its own; else the items come as they stand.
        drop_last (`bool`): Whether a last batch of less than `batch_size` is left out.
        process_index (`int`), num_processes (`int`): Which process this is, of how many.

    Attributes:
        global_sizes (`list[int]`): Items of every batch of an epoch, over all processes together.

    Raises:
        ValueError: for a number or size that leaves a process without items.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = False,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        if not 0 <= process_index < num_processes:
            raise ValueError(f"Got process {process_index} of {num_processes}; they count from 0.")
        self.num_items, self.seed, self.shuffle = num_items, seed, shuffle
        self.process_index, self.num_processes = process_index, num_processes
        self.global_sizes = self._sizes(batch_size, drop_last)
        self.set_epoch(0)

    def _sizes(self, batch_size: int, drop_last: bool) -> list[int]:
        if batch_size < self.num_processes:
            raise ValueError(
                f"A batch of {batch_size} items over all processes cannot be split over {self.num_processes} "
                f"processes. Pass a batch size of at least {self.num_processes}."
            )
        whole, rest = divmod(self.num_items, batch_size)
        sizes = [batch_size] * whole
        if rest and not drop_last:
            sizes.append(rest)
            if whole and rest < max(2, self.num_processes, batch_size // SMALLEST_SHARE):
                sizes[-2:] = [batch_size + rest]
        if not sizes or sizes[-1] < self.num_processes:
            raise ValueError(
                f"{self.num_items} items give no batch of {batch_size} for {self.num_processes} processes"
                f"{' when an incomplete batch is dropped' if drop_last else ''}. Pass more items, a smaller batch or "
                "fewer processes."
            )
        return sizes

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch, and where in it to begin.

        Args:
            epoch (`int`): Its number, which decides the order.
            first_batch (`int`): Batches of the epoch to skip, since a run that was resumed has made them already.
        """
        if not 0 <= first_batch <= len(self.global_sizes):
            raise ValueError(f"Got first_batch={first_batch}, but an epoch has {len(self.global_sizes)} batches.")
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        """Batches that are left in the epoch, the same for every process."""
        return len(self.global_sizes) - self.first_batch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.num_items)
        if self.shuffle:
            order = item_rng(self.seed, self.epoch).permutation(self.num_items)
        starts = np.cumsum([0, *self.global_sizes])
        for batch in range(self.first_batch, len(self.global_sizes)):
            first, end = self._part(self.global_sizes[batch])
            yield order[starts[batch] + first : starts[batch] + end].tolist()

    def local_size(self, batch: int) -> int:
        """Items of this process in the epoch's batch number `batch`."""
        first, end = self._part(self.global_sizes[batch])
        return end - first

    def loss_weight(self, batch: int) -> float:
        """What to multiply this process's mean loss with, so that DDP's mean over processes is that of the batch."""
        return self.local_size(batch) * self.num_processes / self.global_sizes[batch]

    def _part(self, size: int) -> tuple[int, int]:
        return tuple(number * size // self.num_processes for number in (self.process_index, self.process_index + 1))


def item_rng(seed: int, *key: int) -> np.random.Generator:
    """Make the NumPy generator of one item: the same wherever and whenever it is asked for.

    Args:
        seed (`int`): Seed of the run, at least 0.
        key (`int`): What is random: the epoch, then the item, and whatever tells two uses apart; each at least 0.
    """
    return np.random.default_rng([seed, *key])


def item_generator(seed: int, *key: int) -> torch.Generator:
    """Make the torch generator of one item, on CPU: the same wherever and whenever it is asked for.

    Args:
        seed (`int`): Seed of the run, at least 0.
        key (`int`): What is random: the epoch, then the item, and whatever tells two uses apart; each at least 0.
    """
    state = np.random.SeedSequence([seed, *key]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)
