"""Which examples make up which batch: shuffled, shared between processes, enterable anywhere."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from elip.data.datasets.base import DataError
from elip.data.draw import SampleIndex


class DistributedBatchSampler(Sampler[list[SampleIndex]]):
    """Batches of one process.

    Training: a permutation that depends on seed and epoch only; batch b of all processes together
    is the b-th slice of it, whatever their number. Every process gets the same number of whole
    batches; the rest is left out (`num_dropped`), other examples each epoch.

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
        DataError: If training has fewer examples than processes, or a size is not positive.
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
        if batch_size < 1:
            raise DataError(f"The batch size is {batch_size}; it must be at least 1.")
        if train and num_examples < world_size:
            raise DataError(f"{num_examples} training examples for {world_size} processes.")
        self.num_examples = num_examples
        # A dataset smaller than a batch still trains, with a smaller batch.
        self.batch_size = min(batch_size, num_examples // world_size) if train else batch_size
        self.train = train
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.start = 0
        whole = self.batch_size * world_size
        self.num_dropped = num_examples % whole if train else 0

    @property
    def sampler(self) -> DistributedBatchSampler:
        """Return this object: Lightning calls `set_epoch` on a batch sampler's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; evaluation is always epoch 0."""
        self.epoch = epoch if self.train else 0

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        if self.train:
            return self.num_examples // (self.batch_size * self.world_size)
        return -(-len(self._stretch()) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        """Yield the batches of the current epoch from `start` on."""
        mine = self._shuffled() if self.train else self._stretch()
        for number in range(self.start, len(self)):
            batch = mine[number * self.batch_size : (number + 1) * self.batch_size]
            yield [SampleIndex(self.epoch, int(example)) for example in batch]

    def _shuffled(self) -> NDArray[np.int64]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.num_examples)
        return order[self.rank :: self.world_size]

    def _stretch(self) -> range:
        ends = [self.num_examples * rank // self.world_size for rank in (self.rank, self.rank + 1)]
        return range(*ends)
