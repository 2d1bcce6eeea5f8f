"""Which examples make up which batch, and the random numbers of each example.

No generator lives longer than one example, so the number of worker processes and the order in which
they work change nothing, and an epoch can be entered anywhere.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from elip.data.datasets.base import DataError


class SampleIndex(NamedTuple):
    """One example of one epoch: what the sampler hands to a dataset. Evaluation is epoch 0."""

    epoch: int
    example: int


def sample_rng(seed: int, index: SampleIndex, purpose: str) -> random.Random:
    """Return the random numbers for one purpose of one example in one epoch."""
    return random.Random(f"{seed}/{index.epoch}/{index.example}/{purpose}")


class DistributedBatchSampler(Sampler[list[SampleIndex]]):
    """Batches of one process.

    Training: a permutation that depends on seed and epoch only; batch b of all processes together
    is the b-th slice of it, whatever their number. Every process gets the same number of whole
    batches; the rest (`num_dropped`) is left out, other examples each epoch.

    Evaluation: in order, each example once; every process gets one stretch, and stretches may
    differ by one example.

    Args:
        num_examples: Number of examples of all processes together.
        batch_size: Examples of a batch of one process.
        train: Whether this is for training.
        seed: Any integer.
        rank: Number of this process, from 0.
        world_size: Number of processes.

    Attributes:
        epoch: The current epoch, from 0; handed to the dataset with every example.
        start: How many batches of the epoch are passed over, without being loaded.
        num_dropped: Examples that no process sees in an epoch; 0 in evaluation.

    Raises:
        DataError: There are fewer examples than processes.
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        train: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if num_examples < world_size:
            raise DataError(
                f"There are {num_examples} examples for {world_size} processes; each needs at "
                "least one. Use fewer devices, or more examples."
            )
        self.num_examples = num_examples
        # A dataset smaller than a batch still trains, with a smaller batch.
        self.batch_size = min(batch_size, num_examples // world_size) if train else batch_size
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0
        self.num_dropped = num_examples % (self.batch_size * world_size) if train else 0

    @property
    def sampler(self) -> DistributedBatchSampler:
        """Return this object: Lightning calls `set_epoch` on a batch sampler's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; evaluation is always epoch 0."""
        self.epoch = epoch if self.train else 0

    def _mine(self) -> NDArray[np.int64] | range:
        """Return the examples of this process, in order."""
        if self.train:
            rng = np.random.default_rng([self.seed, self.epoch])
            return rng.permutation(self.num_examples)[self.rank :: self.world_size]
        first, last = (self.num_examples * n // self.world_size for n in (self.rank, self.rank + 1))
        return range(first, last)

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        if self.train:
            return self.num_examples // (self.batch_size * self.world_size)
        return -(-len(self._mine()) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        """Yield the batches of the current epoch from `start` on."""
        mine = self._mine()
        for first in range(
            self.start * self.batch_size, len(self) * self.batch_size, self.batch_size
        ):
            batch = mine[first : first + self.batch_size]
            yield [SampleIndex(self.epoch, int(example)) for example in batch]
