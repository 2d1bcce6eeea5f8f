"""The data loaders: plain ones for evaluation, one for training that resumes within an epoch."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from elip.data.batch import Batch
from elip.data.collate import Collator
from elip.data.dataset import Examples
from elip.data.sampling import DistributedBatchSampler

log = logging.getLogger(__name__)


class Loader(DataLoader[Any]):
    """Batches of one split, without those of which `skip_bad` left nothing.

    Workers start at the first batch, not before: Lightning asks for the iterator before it says
    which epoch it is.

    Args:
        examples: The split.
        batches: Which examples make up which batch.
        collate: What joins examples.
        num_workers: Number of worker processes; 0 loads in this one.
    """

    def __init__(
        self,
        examples: Examples,
        batches: DistributedBatchSampler,
        collate: Collator,
        num_workers: int = 0,
    ) -> None:
        super().__init__(
            examples,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_quiet_tokenizers,
        )
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches."""
        for batch in super().__iter__():
            if batch is not None:
                yield batch


class PlainLoader:
    """The same batches from something that is no `DataLoader`.

    For prediction, Lightning (2.6) builds every `DataLoader` anew with a sampler of its own. It
    leaves alone what is none.

    Args:
        loader: What yields the batches.
    """

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        """Return the number of batches, empty ones included."""
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches."""
        return iter(self.loader)


class TrainLoader(Loader):
    """Batches for training; an epoch that was interrupted goes on with the batch that was next.

    On resuming within an epoch, Lightning (2.6) counts the batches that are done and expects the
    loader to pass over them by itself.

    Args:
        examples: As in `Loader`.
        batches: As in `Loader`.
        collate: As in `Loader`.
        num_workers: As in `Loader`.
        num_done: Returns how many batches of the current epoch the trainer has finished.
    """

    def __init__(
        self,
        examples: Examples,
        batches: DistributedBatchSampler,
        collate: Collator,
        num_workers: int,
        num_done: Callable[[], int],
    ) -> None:
        super().__init__(examples, batches, collate, num_workers)
        self._num_done = num_done

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield the batches of the current epoch that are not done yet."""
        self.batches.start = self._num_done()
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """Return what the order of the batches depends on; Lightning saves it."""
        kept = ("num_examples", "batch_size", "seed", "world_size")
        return {name: getattr(self.batches, name) for name in kept}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Hold the state of an interrupted epoch against this one; warn if they differ."""
        changed = {name for name, value in self.state_dict().items() if state.get(name) != value}
        if changed:
            log.warning(
                "The interrupted epoch had other %s: the rest of it repeats or leaves out "
                "examples. Epochs after it are not affected.",
                ", ".join(sorted(changed)),
            )


def _quiet_tokenizers(_: int) -> None:
    # A forked process must not use the threads of its parent's tokenizer, and says so otherwise.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
