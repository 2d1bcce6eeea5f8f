"""Arrow files as they lie on disk: memory-mapped, checked once, read one cell at a time.

An item is one text of one row; items are numbered through all files, rows in order, texts within
a row in order. The numbering is one array of offsets (8 bytes a row), searched by bisection.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from elip.data.datasets.base import Columns, DataError
from elip.data.digests import ValueDigest
from elip.data.opening import check_batch, has_truth, is_list, open_batches


@dataclass(frozen=True)
class SoftAnswers:
    """The truth of a question with several right answers.

    Attributes:
        labels: Numbers of the answers.
        scores: Their scores in [0, 1].
    """

    labels: tuple[int, ...]
    scores: tuple[float, ...]


Target = int | SoftAnswers
_TRUTH = {"true": 1, "false": 0}
_SAMPLED = 32


class ArrowTable:
    """The rows of several Arrow files (IPC file format), one after the other.

    Nothing is copied: cells are read from the memory map. A pickle holds the paths and the
    offsets (8 bytes a row); worker processes open the files again.

    Args:
        paths: The files, in order.
        columns: Names of the columns that are read; other columns are ignored.
        distinct: Whether a text that occurs twice in a row counts once, where it stands first.
        classes: Class numbers go up to one below this.

    Raises:
        DataError: If a file is no Arrow file, is truncated, lacks a column, has a column of a
            wrong type, or holds a null or lists of unequal length; with file and row.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        columns: Columns,
        distinct: bool = False,
        classes: int = 1 << 31,
    ) -> None:
        self.paths = tuple(paths)
        self.classes = classes
        self.columns = columns
        self.distinct = distinct
        self._open()
        counts = [_count_texts(batch, columns, distinct) for batch in self._batches]
        self._offsets: NDArray[np.int64] = np.zeros(self.num_rows + 1, np.int64)
        np.cumsum(np.concatenate([[0], *counts]), out=self._offsets)

    def _open(self) -> None:
        self._batches: list[pa.RecordBatch] = []
        self._files: list[int] = []
        self._starts: list[int] = [0]
        self._file_starts: list[int] = []
        for number, path in enumerate(self.paths):
            self._file_starts.append(self._starts[-1])
            for batch in open_batches(path):
                if batch.num_rows == 0:  # such files carry columns of type null
                    continue
                check_batch(batch, self.columns, path, self._starts[-1] - self._file_starts[-1])
                self._batches.append(batch)
                self._files.append(number)
                self._starts.append(self._starts[-1] + batch.num_rows)
        truths = {has_truth(batch, self.columns) for batch in self._batches}
        if len(truths) > 1:
            names = ", ".join(path.name for path in self.paths)
            raise DataError(f"{names}: some files hold the truth and others do not.")
        self.has_truth = truths == {True}

    def __getstate__(self) -> dict[str, Any]:
        kept = ("paths", "columns", "distinct", "classes", "_offsets")
        return {name: value for name, value in self.__dict__.items() if name in kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    @property
    def num_rows(self) -> int:
        """Number of rows in all files."""
        return self._starts[-1]

    @property
    def num_items(self) -> int:
        """Number of (row, text) pairs in all files."""
        return int(self._offsets[-1])

    def locate(self, item: int) -> tuple[int, int]:
        """Return the row of an item and the number of its text within the row."""
        if not 0 <= item < self.num_items:
            raise IndexError(f"item {item} of {self.num_items}")
        row = int(np.searchsorted(self._offsets, item, side="right")) - 1
        return row, item - int(self._offsets[row])

    def items(self, row: int) -> range:
        """Return the items of a row."""
        return range(int(self._offsets[row]), int(self._offsets[row + 1]))

    def first_without_text(self, rows: int) -> int | None:
        """Return the first of the rows at the beginning that has no text; None if all have one."""
        bare = np.flatnonzero(np.diff(self._offsets[: rows + 1]) == 0)
        return int(bare[0]) if len(bare) else None

    def images(self, row: int) -> list[memoryview]:
        """Return the encoded image files of a row, as views into the memory map."""
        batch, at = self._cell(row)
        return [memoryview(batch.column(name)[at].as_buffer()) for name in self.columns.images]

    def text(self, row: int, index: int) -> str:
        """Return one text of a row."""
        texts = self._value(self.columns.texts, row)
        if texts and isinstance(texts[0], list):
            texts = [group[-1] for group in texts]
        if self.distinct:
            texts = list(dict.fromkeys(texts))
        return str(texts[index])

    def target(self, row: int, index: int) -> Target | None:
        """Return the truth of one text, or None where the files hold none.

        Raises:
            DataError: If a word other than true and false, or no class number, stands there.
        """
        if not self.has_truth or self.columns.target is None:
            return None
        value = self._value(self.columns.target, row)[index]
        if isinstance(value, str):
            if value.lower() not in _TRUTH:
                raise DataError(f"{self.where(row)}: {value!r} is neither True nor False.")
            return _TRUTH[value.lower()]
        if isinstance(value, list):
            assert self.columns.scores is not None
            return SoftAnswers(tuple(value), tuple(self._value(self.columns.scores, row)[index]))
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or not 0 <= value < self.classes:
            raise DataError(
                f"{self.where(row)}: label {value!r}; labels go from 0 to {self.classes - 1}."
            )
        return value

    def key(self, row: int, index: int) -> str:
        """Return the dataset's own name of an item; file, row and text number if it has none."""
        if self.columns.keys is None:
            return f"{self.file(row).stem}:{row - self._file_start(row)}:{index}"
        value = self._value(self.columns.keys, row)
        return str(value[index] if isinstance(value, list) else value)

    def file(self, row: int) -> Path:
        """Return the file that holds a row."""
        return self.paths[self._files[bisect_right(self._starts, row) - 1]]

    def where(self, row: int) -> str:
        """Return the place of a row in words, for messages."""
        return f"{self.file(row)}, row {row - self._file_start(row)}"

    def digest(self) -> str:
        """Return 64 hexadecimal digits that stand for what is read from the files.

        Texts, truth and names count in whole; of the images their lengths, and all bytes of some,
        evenly spaced: so that gigabytes take no longer than a look. Rows that are cut into other
        files or record batches are the same.
        """
        values = ValueDigest()
        for batch in self._batches:
            for name in self.columns.names:
                values.add(name, batch.column(name), lengths_only=name in self.columns.images)
        digest = hashlib.sha256(values.hexdigest().encode())
        for row in np.linspace(0, self.num_rows - 1, min(_SAMPLED, self.num_rows)):
            for image in self.images(int(row)):
                digest.update(image)
        return digest.hexdigest()

    def answer_words(self) -> dict[int, str]:
        """Return the word of every answer number that occurs in the files."""
        if not self.has_truth or self.columns.answers is None or self.columns.target is None:
            return {}
        words: dict[int, str] = {}
        for batch in self._batches:
            labels = _flat(batch.column(self.columns.target)).to_numpy(zero_copy_only=False)
            texts = _flat(batch.column(self.columns.answers))
            numbers, first = np.unique(labels, return_index=True)
            for number, at in zip(numbers, first, strict=True):
                words.setdefault(int(number), texts[int(at)].as_py())
        return words

    def _file_start(self, row: int) -> int:
        return self._file_starts[self._files[bisect_right(self._starts, row) - 1]]

    def _cell(self, row: int) -> tuple[pa.RecordBatch, int]:
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} of {self.num_rows}")
        number = bisect_right(self._starts, row) - 1
        return self._batches[number], row - self._starts[number]

    def _value(self, column: str, row: int) -> Any:
        batch, at = self._cell(row)
        return batch.column(column)[at].as_py()


def _flat(column: pa.Array) -> pa.Array:
    while is_list(column.type):
        column = column.flatten()
    return column


def _count_texts(batch: pa.RecordBatch, columns: Columns, distinct: bool) -> NDArray[np.int64]:
    """Return the number of texts of each row, without repeated ones if ``distinct``."""
    column = batch.column(columns.texts)
    lengths: NDArray[np.int64] = pc.list_value_length(column).to_numpy().astype(np.int64)
    if not distinct or lengths.max(initial=0) < 2:
        return lengths
    codes = column.flatten().dictionary_encode()
    rows = np.repeat(np.arange(len(lengths)), lengths)
    pairs = np.unique(rows * len(codes.dictionary) + codes.indices.to_numpy())
    return np.bincount(pairs // len(codes.dictionary), minlength=len(lengths)).astype(np.int64)
