"""Which examples form which batch, and the random numbers of each example.

Every example has its own random generators, so results do not depend on the number or order of
worker processes, and an epoch can resume at any batch.
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
    """One example in one epoch. Evaluation is epoch 0."""

    epoch: int
    example: int


def sample_rng(seed: int, index: SampleIndex, purpose: str) -> random.Random:
    """Return the generator for one purpose of one example in one epoch."""
    return random.Random(f"{seed}/{index.epoch}/{index.example}/{purpose}")


class DistributedBatchSampler(Sampler[list[SampleIndex]]):
    """The batches of one process.

    Training: a permutation that depends only on seed and epoch. Batch b of all processes together
    is its b-th slice, for any number of processes. Every process gets the same number of full
    batches; the remaining examples (`num_dropped`) differ from epoch to epoch.

    Evaluation: every example once, in order; each process gets one contiguous part.
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
                "least one. Use fewer devices or more examples."
            )
        self.num_examples, self.train, self.seed = num_examples, train, seed
        self.rank, self.world_size = rank, world_size
        # A dataset smaller than a batch still trains, with a smaller batch.
        self.batch_size = min(batch_size, num_examples // world_size) if train else batch_size
        self.epoch = 0
        self.start = 0  # number of batches to skip at the start of the epoch
        self.num_dropped = num_examples % (self.batch_size * world_size) if train else 0

    @property
    def sampler(self) -> DistributedBatchSampler:
        """This object: Lightning calls `set_epoch` on a batch sampler's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; evaluation is always epoch 0."""
        self.epoch = epoch if self.train else 0

    def _own_examples(self) -> NDArray[np.int64] | range:
        if self.train:
            rng = np.random.default_rng([self.seed, self.epoch])
            return rng.permutation(self.num_examples)[self.rank :: self.world_size]
        first, last = (self.num_examples * n // self.world_size for n in (self.rank, self.rank + 1))
        return range(first, last)

    def __len__(self) -> int:
        if self.train:
            return self.num_examples // (self.batch_size * self.world_size)
        return -(-len(self._own_examples()) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        """Yield the batches of the current epoch, from `start` on."""
        own = self._own_examples()
        for number in range(self.start, len(self)):
            batch = own[number * self.batch_size : (number + 1) * self.batch_size]
            yield [SampleIndex(self.epoch, int(example)) for example in batch]
