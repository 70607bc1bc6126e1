"""The items of each training step: the same for any number of processes, and after a resume.

No process's own random number generator is used. The order of an epoch is a function of `(seed, epoch)`, and random
choices for one item are a function of `(seed, epoch, item)`.
"""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

# A last batch smaller than this fraction (1 / 8) of a batch is merged with the one before, so that the batches are the
# same for up to batch_size / 8 processes.
SMALLEST_FRACTION = 8


class GlobalBatchSampler(Sampler[list[int]]):
    """Divides an epoch into global batches and yields this process's part of each.

    The global batches do not depend on the number of processes: process `p` of `P` gets the `p`-th of `P` contiguous
    parts of almost equal size. Do not pass loaders with this sampler to `accelerator.prepare`, which would divide them
    again. A last batch that is smaller than 2, than an eighth of `batch_size`, or than the number of processes is
    merged with the one before it.

    Args:
        num_items (`int`): Length of the data set.
        batch_size (`int`): Items per batch, over all processes.
        seed (`int`): Seed of the order.
        shuffle (`bool`): Whether each epoch has its own random order. Otherwise the order of the data set.
        drop_last (`bool`): Whether to leave out a last batch with fewer than `batch_size` items.
        process_index (`int`), num_processes (`int`): Index of this process and number of processes.

    Attributes:
        global_sizes (`list[int]`): Items of each batch of an epoch, over all processes.

    Raises:
        ValueError: if a process would have no items in a batch.
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
            if whole and rest < max(2, self.num_processes, batch_size // SMALLEST_FRACTION):
                sizes[-2:] = [batch_size + rest]
        if not sizes or sizes[-1] < self.num_processes:
            processes = "1 process" if self.num_processes == 1 else f"{self.num_processes} processes"
            raise ValueError(
                f"{self.num_items} items give no batch of {batch_size} for {processes}"
                f"{' when an incomplete batch is dropped' if drop_last else ''}. Pass more items, a smaller batch "
                "(--batch_size) or fewer processes."
            )
        return sizes

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Sets the epoch and the first batch in it.

        Args:
            epoch (`int`): Number of the epoch, which determines the order.
            first_batch (`int`): Number of batches to skip, which a resumed run has already processed.
        """
        if not 0 <= first_batch <= len(self.global_sizes):
            raise ValueError(f"Got first_batch={first_batch}, but an epoch has {len(self.global_sizes)} batches.")
        self.epoch, self.first_batch = epoch, first_batch

    def __len__(self) -> int:
        """Number of batches left in the epoch, the same for each process."""
        return len(self.global_sizes) - self.first_batch

    def __iter__(self) -> Iterator[list[int]]:
        order = np.arange(self.num_items)
        if self.shuffle:
            order = item_rng(self.seed, self.epoch).permutation(self.num_items)
        starts = np.cumsum([0, *self.global_sizes])
        for batch in range(self.first_batch, len(self.global_sizes)):
            size, members = self.global_sizes[batch], order[starts[batch] : starts[batch + 1]]
            first, end = (index * size // self.num_processes for index in (self.process_index, self.process_index + 1))
            yield members[first:end].tolist()


def item_rng(seed: int, *key: int) -> np.random.Generator:
    """Returns the NumPy generator of one item, always in the same state.

    Args:
        seed (`int`): Seed of the training run, at least 0.
        key (`int`): What the generator is for: the epoch, the item, and a number per purpose; each at least 0.
    """
    return np.random.default_rng([seed, *key])
