"""Memory-mapped Arrow files, read one cell at a time.

Opening a file checks its columns and offsets and counts its texts. Reading a cell checks its value;
an error names the file and row.

An item is one text of one row. Items are numbered across all files, in the order of rows and texts.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from elip.data.datasets.base import Columns, DataError, MissingFilesError


@dataclass(frozen=True)
class SoftAnswers:
    """The target of a question with several right answers: their numbers and scores in [0, 1]."""

    labels: tuple[int, ...]
    scores: tuple[float, ...]


Target = int | SoftAnswers


class ArrowTable:
    """The rows of several Arrow files (IPC file format), one file after the other.

    Cells are read from the memory map without a copy. A pickle contains only the arguments; a
    worker process reopens the files.

    Args:
        paths: The files, in order.
        columns: Names of the columns to read; other columns are ignored.
        distinct: Keep only the first of equal texts in a row.
        num_classes: Upper bound of the class or answer numbers; None for no bound.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        columns: Columns,
        distinct: bool = False,
        num_classes: int | None = None,
    ) -> None:
        self.paths, self.columns = tuple(paths), columns
        self.distinct, self.num_classes = distinct, num_classes
        self._tables = [_open(path, columns) for path in self.paths]
        self._starts = np.cumsum([0, *(table.num_rows for table in self._tables)]).tolist()
        # In test sets the column of targets often has no type.
        self.has_target = columns.target is not None and any(
            table.num_rows and not pa.types.is_null(_leaf(table.schema.field(columns.target).type))
            for table in self._tables
        )
        counts = [np.zeros(1, np.int64)]
        for table, start in zip(self._tables, self._starts, strict=False):
            counts.append(self._num_texts(table, start))
        self._offsets = np.cumsum(np.concatenate(counts))
        self.num_rows, self.num_items = self._starts[-1], int(self._offsets[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return ArrowTable, (self.paths, self.columns, self.distinct, self.num_classes)

    def __str__(self) -> str:
        return ", ".join(map(str, self.paths))

    def _num_texts(self, table: pa.Table, start: int) -> NDArray[np.int64]:
        """Return the number of texts in each row of a file."""
        column = table.column(self.columns.texts)
        if not len(column):
            return np.zeros(0, np.int64)
        lengths: NDArray[np.int64] = pc.list_value_length(column).fill_null(-1).to_numpy()
        if (lengths < 0).any():
            raise self._bad(start + int(np.argmin(lengths)), self.columns.texts)
        if not self.distinct:
            return lengths
        texts = pc.list_flatten(column).combine_chunks()
        codes = texts.dictionary_encode().indices.fill_null(-1).to_numpy() + 1
        num_codes = int(codes.max(initial=0)) + 1
        rows = np.repeat(np.arange(len(lengths)), lengths)
        distinct_pairs = np.unique(rows * num_codes + codes)
        return np.bincount(distinct_pairs // num_codes, minlength=len(lengths))

    def locate(self, item: int) -> tuple[int, int]:
        """Return the row of an item, and the number of its text within the row."""
        row = int(np.searchsorted(self._offsets, item, side="right")) - 1
        return row, item - int(self._offsets[row])

    def items(self, row: int) -> range:
        """Return the items of a row."""
        return range(int(self._offsets[row]), int(self._offsets[row + 1]))

    def images(self, row: int) -> list[memoryview]:
        """Return the encoded images of a row, as views into the memory map."""
        return [memoryview(self._cell(name, row).as_buffer()) for name in self.columns.images]

    def text(self, row: int, index: int) -> str:
        """Return one text of a row."""
        texts = self._cell(self.columns.texts, row).as_py()
        if self.distinct:
            texts = list(dict.fromkeys(texts))
        text = texts[index]
        if isinstance(text, list):  # premise and hypothesis: the hypothesis is the text
            text = text[-1] if text else None
        if text is None:
            raise self._bad(row, self.columns.texts)
        return str(text)

    def target(self, row: int, index: int) -> Target | None:
        """Return the target of one text, or None if the files have none."""
        name, scores = self.columns.target, self.columns.scores
        if not self.has_target or name is None:
            return None
        value, most = self._per_text(name, row, index), self.num_classes or math.inf
        try:
            if scores is not None:
                answers = SoftAnswers(tuple(value), tuple(self._per_text(scores, row, index)))
                pairs = zip(answers.labels, answers.scores, strict=True)
                if all(0 <= int(a) == a < most and 0 <= score <= 1 for a, score in pairs):
                    return answers
            else:
                number = {"true": 1, "false": 0}.get(str(value).lower(), value)
                if 0 <= int(number) == number < most:
                    return int(number)
        except (TypeError, ValueError):
            pass  # not even numbers
        raise self._bad(row, name, f"{value!r} is no label, or its scores are not from 0 to 1")

    def key(self, row: int, index: int) -> str:
        """Return the dataset's identifier of an item; file, row and text number if it has none."""
        name = self.columns.keys
        if name is None:
            number, row = self._file_row(row)
            return f"{self.paths[number].stem}:{row}:{index}"
        value = self._cell(name, row).as_py()
        return str(self._per_text(name, row, index) if isinstance(value, list) else value)

    def where(self, row: int) -> str:
        """Return the file and row as text, for messages."""
        number, row = self._file_row(row)
        return f"{self.paths[number]}, row {row}"

    def answer_words(self) -> dict[int, str]:
        """Return the word for every answer number that occurs in the files."""
        words: dict[int, str] = {}
        if not self.has_target or self.columns.answers is None:
            return words
        for table, path in zip(self._tables, self.paths, strict=True):
            labels = pc.list_flatten(table.column(self.columns.target), recursive=True)
            texts = pc.list_flatten(table.column(self.columns.answers), recursive=True)
            if len(labels) != len(texts):
                raise DataError(f"{path}: some answers have a word or a number, but not both.")
            numbers, first = np.unique(labels.to_numpy(), return_index=True)
            for number, place in zip(numbers.tolist(), first.tolist(), strict=True):
                words.setdefault(int(number), texts[place].as_py())
        return words

    def _file_row(self, row: int) -> tuple[int, int]:
        """Return the number of the file, and of the row in it."""
        number = bisect_right(self._starts, row) - 1
        return number, row - self._starts[number]

    def _cell(self, column: str, row: int) -> pa.Scalar:
        number, place = self._file_row(row)
        cell = self._tables[number].column(column)[place]
        if not cell.is_valid:
            raise self._bad(row, column)
        return cell

    def _per_text(self, column: str, row: int, index: int) -> Any:
        """Return the value for one text, from a column with one value per text."""
        values = self._cell(column, row).as_py()
        if not isinstance(values, list) or len(values) != len(self._cell(self.columns.texts, row)):
            raise self._bad(row, column, f"it must be a list as long as {self.columns.texts}")
        return values[index]

    def _bad(self, row: int, column: str, problem: str = "a value is missing") -> DataError:
        return DataError(f"{self.where(row)}, column {column}: {problem}.")


def _open(path: Path, columns: Columns) -> pa.Table:
    """Memory-map one file, after checking the names, types and content of its columns."""
    if not path.is_file():
        raise MissingFilesError(f"There is no file {path}.")
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        for name in columns.names:
            if name not in table.column_names:
                found = ", ".join(table.column_names)
                raise DataError(f"{path} must have a column {name}; it has {found}.")
            kind = table.schema.field(name).type
            if not table.num_rows:
                continue  # files without rows have columns of type null
            if name in columns.images and kind not in (pa.binary(), pa.large_binary()):
                raise DataError(f"{path}: column {name} has type {kind}; it must be binary.")
            is_texts = _leaf(kind) != kind and _leaf(kind) in (pa.string(), pa.large_string())
            if name == columns.texts and not is_texts:
                raise DataError(f"{path}: column {name} has type {kind}; use list<string>.")
        table = table.select(columns.names)
        table.validate(full=True)  # offsets, lengths, UTF-8
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(
            f"{path} is damaged or not an Arrow file (IPC file format): {error}. A copy or "
            "conversion may have been interrupted; create or download the file again."
        ) from error
    return table


def _leaf(kind: pa.DataType) -> pa.DataType:
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return kind
