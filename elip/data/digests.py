"""A digest of columns by their values alone, however their rows are cut into record batches."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from elip.data.opening import form, is_list


class ValueDigest:
    """Running digests, a few for each column: of its lengths, its numbers, its bytes.

    Widths of numbers and offsets do not count, nor does what lies between the values.
    """

    def __init__(self) -> None:
        self._parts: defaultdict[str, hashlib._Hash] = defaultdict(hashlib.sha256)

    def add(self, name: str, column: pa.Array, lengths_only: bool = False) -> None:
        """Go on with the next rows of a column.

        Args:
            name: The column.
            column: Its rows.
            lengths_only: Whether of bytes it counts only how many there are.
        """
        while is_list(column.type) and len(column):
            self._add_lengths(f"{name} lists", pc.list_value_length(column))
            name, column = f"{name} of", column.flatten()
        if not len(column):  # of empty lists the type may say nothing
            return
        kind = form(column.type)
        name = f"{name} {kind}"
        if kind in ("text", "binary"):
            self._add_lengths(f"{name} lengths", pc.binary_length(column))
            if not lengths_only:
                self._parts[name].update(_content(column.drop_null()))
        elif kind in ("integer", "number"):
            wide = pa.int64() if kind == "integer" else pa.float64()
            self._parts[f"{name} known"].update(column.is_valid().cast(pa.uint8()).to_numpy())
            self._parts[name].update(column.cast(wide, safe=False).fill_null(0).to_numpy())
        else:
            rows = "".join(f"{value!r}\n" for value in column.to_pylist())
            self._parts[name].update(rows.encode())

    def _add_lengths(self, name: str, lengths: pa.Array) -> None:
        self._parts[name].update(lengths.cast(pa.int64()).fill_null(-1).to_numpy())

    def hexdigest(self) -> str:
        """Return 64 hexadecimal digits of all that was added."""
        parts = [f"{name} {part.hexdigest()}\n" for name, part in sorted(self._parts.items())]
        return hashlib.sha256("".join(parts).encode()).hexdigest()


def _content(column: pa.Array) -> memoryview:
    """Return the bytes of texts or binary values, one after the other; none of them is null."""
    _, offsets, data = column.buffers()
    if data is None or not len(column):
        return memoryview(b"")
    large = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
    starts = np.frombuffer(offsets, np.int64 if large else np.int32)
    return memoryview(data)[starts[column.offset] : starts[column.offset + len(column)]]
