"""The examples of a split: reading, random draws and decoding for one sample index."""

from __future__ import annotations

import logging
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from elip.data.arrow import ArrowTable, Target
from elip.data.batch import SampleSpec
from elip.data.datasets.base import DataError
from elip.data.sampling import SampleIndex, sample_rng
from elip.data.transforms import ImageError, Pixels, Transform

log = logging.getLogger(__name__)

_MAX_REDRAWS = 20
_MAX_WORKERS = 256


@dataclass(frozen=True)
class DatasetConfig:
    """How to read a split; most fields are options of `DataModule`."""

    transform: Transform
    image_size: int
    train: bool  # replace examples with a bad image; in evaluation a bad image is an error
    seed: int = 0
    limit: int | None = None  # of the examples of each table, also for negatives
    fast: bool = False
    skip_bad: bool = False
    exclude_own: bool = True


@dataclass(frozen=True)
class Example:
    """One example before collation; see `Batch` for what the fields mean."""

    index: SampleIndex
    images: Pixels
    text: str
    image_id: int
    key: str
    target: Target | None
    negative_images: Pixels | None
    negative_texts: tuple[str, ...]


class Examples(Dataset[Example | None]):
    """The examples of one split, from one or several tables.

    The negatives of an example come from its own table.
    """

    def __init__(
        self, tables: Sequence[ArrowTable], spec: SampleSpec, config: DatasetConfig
    ) -> None:
        if spec.negative_images and any(len(table.columns.images) > 1 for table in tables):
            raise DataError(f"Negative images are not defined for examples of kind {spec.kind!r}.")
        self.tables = tuple(tables)
        self.spec = spec
        self.config = config
        self._sizes = [t.num_items if spec.every_text else t.num_rows for t in tables]
        if config.limit is not None:
            self._sizes = [min(size, config.limit) for size in self._sizes]
        self._ends = np.cumsum(self._sizes).tolist()
        self._first_rows = [0, *np.cumsum([table.num_rows for table in tables]).tolist()]
        # One counter per worker in shared memory, so that counting needs no lock.
        self._skipped = torch.zeros(_MAX_WORKERS, dtype=torch.int64).share_memory_()
        self._last: tuple[int, int, Pixels] | None = None
        if not len(self):
            raise DataError(f"There is no example in {', '.join(map(str, tables))}.")

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def num_skipped(self) -> int:
        """How often an example was left out for a bad image, in all worker processes."""
        return int(self._skipped.sum())

    def __getitem__(self, index: SampleIndex | int) -> Example | None:
        """Return one example.

        If its image is bad, training returns another example; evaluation returns None if
        `skip_bad` is set, and else raises an error with file and row.
        """
        index = index if isinstance(index, SampleIndex) else SampleIndex(0, index)
        tried, rng = index, sample_rng(self.config.seed, index, "another")
        for _ in range(_MAX_REDRAWS):
            try:
                return self._example(tried)
            except ImageError as error:
                if not self.config.train and not self.config.skip_bad:
                    raise
                worker = get_worker_info()
                self._skipped[(worker.id + 1 if worker else 0) % _MAX_WORKERS] += 1
                log.warning("left out: %s", error)
                if not self.config.train:
                    return None
                tried = SampleIndex(index.epoch, rng.randrange(len(self)))
        raise DataError(f"{_MAX_REDRAWS} examples in a row had a bad image; see the warnings.")

    def _example(self, index: SampleIndex) -> Example:
        number, spec, seed = bisect_right(self._ends, index.example), self.spec, self.config.seed
        table = self.tables[number]
        position = index.example - self._ends[number] + self._sizes[number]
        if spec.every_text:
            row, text = table.locate(position)
        elif not table.items(position):
            raise DataError(f"{table.where(position)}: there is no text for this image.")
        else:
            row = position
            text = sample_rng(seed, index, "text").randrange(len(table.items(row)))
        # The purposes seed the draws: other names would give other negatives.
        rng = sample_rng(seed, index, "false images")
        items = self._others(number, row, spec.negative_images, rng)
        negatives = [self._decode(table, table.locate(item)[0], rng) for item in items]
        rng = sample_rng(seed, index, "false texts")
        items = self._others(number, row, spec.negative_texts, rng)
        # In evaluation the texts of a row follow each other, so its pixels are kept.
        if self.config.train or self._last is None or self._last[:2] != (number, row):
            pixels = self._decode(table, row, sample_rng(seed, index, "image"))
            self._last = (number, row, pixels)
        return Example(
            index=index,
            images=self._last[2],
            text=table.text(row, text),
            image_id=self._first_rows[number] + row,
            key=table.key(row, text),
            target=table.target(row, text),
            negative_images=np.concatenate(negatives) if negatives else None,
            negative_texts=tuple(table.text(*table.locate(item)) for item in items),
        )

    def _decode(self, table: ArrowTable, row: int, rng: random.Random) -> Pixels:
        transform, size = self.config.transform, self.config.image_size
        try:
            return np.stack(
                [transform(each, size, rng, self.config.fast) for each in table.images(row)]
            )
        except ImageError as error:
            raise ImageError(f"{table.where(row)}: {error}") from error

    def _others(self, number: int, row: int, count: int, rng: random.Random) -> list[int]:
        """Draw items of other rows uniformly, with replacement."""
        table, size = self.tables[number], self._sizes[number]
        end = size if self.spec.every_text else table.items(size - 1).stop
        own = table.items(row) if self.config.exclude_own else range(0)
        first, last = own.start, min(own.stop, end)
        candidates = end - (last - first)
        if count and candidates < 1:
            raise DataError(f"{table.where(row)}: there is no other image to draw negatives from.")
        drawn = [rng.randrange(candidates) for _ in range(count)]
        return [item if item < first else item + last - first for item in drawn]
