"""Examples of a split: what is read, drawn and decoded for one draw of the sampler."""

from __future__ import annotations

import logging
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from elip.data.batch import SampleSpec
from elip.data.datasets.base import DataError
from elip.data.draw import SampleIndex, sample_rng
from elip.data.reader import ArrowTable, Target
from elip.data.transforms import ImageError, Pixels, Transform

log = logging.getLogger(__name__)

_MOST_REDRAWS = 20
_MOST_WORKERS = 256


@dataclass(frozen=True)
class Reading:
    """How a split is read.

    Attributes:
        transform: What makes pixels of an encoded image.
        image_size: S, pixels of a side.
        train: Whether a bad image is replaced by another example; in evaluation it is an error.
        seed: Any integer; with epoch and example it decides every random choice.
        limit: The number of examples of each table that are used, from the first on; None for
            all. Nothing beyond is drawn as a false image or text either.
        fast: Whether training decodes JPEGs at a reduced scale (other pixels, less time).
        skip_bad: Whether evaluation leaves out examples with a bad image, and counts them.
        exclude_own: Whether negative images and texts never come from the example's own row. The
            reference draws from all.
    """

    transform: Transform
    image_size: int
    train: bool
    seed: int = 0
    limit: int | None = None
    fast: bool = False
    skip_bad: bool = False
    exclude_own: bool = True


@dataclass(frozen=True)
class Example:
    """One example before it is joined with others.

    Attributes:
        draw: Epoch and position in the dataset.
        images: [I,3,S,S] uint8.
        text: The text as it was read.
        image_id: Number of the row in the dataset.
        key: The dataset's own name of the example.
        target: The truth, where there is one.
        negative_images: [F,3,S,S] uint8.
        negative_texts: F texts.
    """

    draw: SampleIndex
    images: Pixels
    text: str
    image_id: int
    key: str
    target: Target | None
    negative_images: Pixels | None
    negative_texts: tuple[str, ...]


class Examples(Dataset[Example | None]):
    """The examples of one split: one table, or several sources one after the other.

    Args:
        tables: The tables; negative images and texts come from the example's own table.
        spec: What the task asks for.
        reading: How the tables are read.

    Raises:
        DataError: If negative images are asked for where an example has several images, all tables
            are empty, or an image that stands for an example has no text.
    """

    def __init__(self, tables: Sequence[ArrowTable], spec: SampleSpec, reading: Reading) -> None:
        if spec.negative_images and any(len(table.columns.images) > 1 for table in tables):
            raise DataError(f"Negative images are not defined for examples of kind {spec.kind!r}.")
        self.tables = tuple(tables)
        self.spec = spec
        self.reading = reading
        self._sizes = [self._size(table) for table in tables]
        self._ends = np.cumsum(self._sizes).tolist()
        self._first_rows = [0, *np.cumsum([table.num_rows for table in tables]).tolist()]
        # One slot a worker, so that counting spec no lock; shared with worker processes.
        self._skipped = torch.zeros(_MOST_WORKERS, dtype=torch.int64).share_memory_()
        self._last: tuple[int, int, Pixels] | None = None
        if not len(self):
            names = ", ".join(path.name for table in tables for path in table.paths)
            raise DataError(f"There is no example in {names or 'no file'}.")

    def _size(self, table: ArrowTable) -> int:
        size = table.num_items if self.spec.every_text else table.num_rows
        size = size if self.reading.limit is None else min(size, self.reading.limit)
        bare = None if self.spec.every_text else table.first_without_text(size)
        if bare is not None:
            raise DataError(f"{table.where(bare)}: there is no text for this image.")
        return size

    def __len__(self) -> int:
        """Return the number of examples."""
        return int(self._ends[-1]) if self._ends else 0

    @property
    def num_skipped(self) -> int:
        """How often a bad image was met and its example left out, in all worker processes."""
        return int(self._skipped.sum())

    def __getitem__(self, draw: SampleIndex | int) -> Example | None:
        """Return one example; None for one with a bad image that `skip_bad` leaves out.

        Raises:
            DataError: If an image is bad and may not be skipped, with file and row.
        """
        draw = draw if isinstance(draw, SampleIndex) else SampleIndex(0, draw)
        if self.reading.train:
            return self._example_or_another(draw)
        try:
            return self._example(draw)
        except ImageError as error:
            if not self.reading.skip_bad:
                raise
            self._skip(error)
            return None

    def _example_or_another(self, draw: SampleIndex) -> Example:
        chance = sample_rng(self.reading.seed, draw, "another")
        tried = draw
        for _ in range(_MOST_REDRAWS):
            try:
                return self._example(tried)
            except ImageError as error:
                self._skip(error)
                tried = SampleIndex(draw.epoch, chance.randrange(len(self)))
        raise DataError(
            f"{_MOST_REDRAWS} examples in a row had a bad image; the last ones are in "
            f"{self._table(tried.example)[1].paths[0].parent}."
        )

    def _skip(self, error: ImageError) -> None:
        worker = get_worker_info()
        self._skipped[(worker.id + 1 if worker else 0) % _MOST_WORKERS] += 1
        log.warning("left out: %s", error)

    def _table(self, example: int) -> tuple[int, ArrowTable, int]:
        """Return the number of a table, the table, and the position of the example in it."""
        if not 0 <= example < len(self):
            raise IndexError(f"example {example} of {len(self)}")
        number = bisect_right(self._ends, example)
        return number, self.tables[number], example - self._ends[number] + self._sizes[number]

    def _example(self, draw: SampleIndex) -> Example:
        number, table, position = self._table(draw.example)
        if self.spec.every_text:
            row, index = table.locate(position)
        else:
            row = position
            chance = sample_rng(self.reading.seed, draw, "text")
            index = chance.randrange(len(table.items(row)))
        negative_images, negative_texts = self._negatives(draw, number, row)
        return Example(
            draw=draw,
            images=self._pixels(draw, number, row),
            text=table.text(row, index),
            image_id=self._first_rows[number] + row,
            key=table.key(row, index),
            target=table.target(row, index),
            negative_images=negative_images,
            negative_texts=negative_texts,
        )

    def _pixels(self, draw: SampleIndex, number: int, row: int) -> Pixels:
        """Decode the images of a row; in evaluation a row's texts follow each other, so keep it."""
        if self._last is not None and self._last[:2] == (number, row):
            return self._last[2]
        chance = sample_rng(self.reading.seed, draw, "image")
        pixels = self._decode(self.tables[number], row, chance)
        if not self.reading.train:
            self._last = (number, row, pixels)
        return pixels

    def _decode(self, table: ArrowTable, row: int, chance: random.Random) -> Pixels:
        reading = self.reading
        fast = reading.fast and reading.train
        try:
            return np.stack(
                [
                    reading.transform(data, reading.image_size, chance, fast)
                    for data in table.images(row)
                ]
            )
        except ImageError as error:
            raise ImageError(f"{table.where(row)}: {error}") from error

    def _negatives(
        self, draw: SampleIndex, number: int, row: int
    ) -> tuple[Pixels | None, tuple[str, ...]]:
        table, spec = self.tables[number], self.spec
        images: Pixels | None = None
        if spec.negative_images:
            chance = sample_rng(self.reading.seed, draw, "false images")
            rows = [
                table.locate(i)[0] for i in self._others(number, row, spec.negative_images, chance)
            ]
            images = np.concatenate([self._decode(table, other, chance) for other in rows])
        if not spec.negative_texts:
            return images, ()
        chance = sample_rng(self.reading.seed, draw, "false texts")
        others = self._others(number, row, spec.negative_texts, chance)
        return images, tuple(table.text(*table.locate(item)) for item in others)

    def _others(self, number: int, row: int, count: int, chance: random.Random) -> list[int]:
        """Draw items uniformly, with replacement, from the table without the row's own."""
        table, size = self.tables[number], self._sizes[number]
        end = size if self.spec.every_text else table.items(size - 1).stop
        if not self.reading.exclude_own:
            return [chance.randrange(end) for _ in range(count)]
        own = table.items(row)
        first, last = own.start, min(own.stop, end)
        left = end - (last - first)
        if left < 1:
            raise DataError(f"{table.where(row)}: no other image to draw a negative one from.")
        drawn = [chance.randrange(left) for _ in range(count)]
        return [item if item < first else item + last - first for item in drawn]
