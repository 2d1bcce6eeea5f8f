"""Writing Arrow IPC files in the layout of ViLT and METER, row by row, all or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from elip.files import whole_file

_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 1000


class ArrowWriter:
    """Collects rows, and writes a record batch at 16 MB of images or 1,000 rows.

    So memory holds one batch, and the 32-bit offsets of the original files, which count within a
    batch, suffice for a file of any size.
    """

    def __init__(self, ipc: pa.RecordBatchFileWriter, schema: pa.Schema) -> None:
        self.rows = 0
        self._ipc = ipc
        self._schema = schema
        self._pending: list[Mapping[str, Any]] = []
        self._pending_bytes = 0

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row: a value for every column."""
        self.rows += 1
        self._pending.append(row)
        self._pending_bytes += sum(len(v) for v in row.values() if isinstance(v, bytes))
        if self._pending_bytes >= _BATCH_BYTES or len(self._pending) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the collected rows."""
        if self._pending:
            columns = [
                pa.array([row[field.name] for row in self._pending], field.type)
                for field in self._schema
            ]
            self._ipc.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))
            self._pending, self._pending_bytes = [], 0


@contextmanager
def arrow_writer(path: Path, schema: pa.Schema) -> Iterator[ArrowWriter]:
    """Write a file; if the block raises, there is no file, or still the earlier one."""
    with (
        whole_file(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, schema) as ipc,
    ):
        writer = ArrowWriter(ipc, schema)
        yield writer
        writer.flush()


def write_text(path: Path, text: str) -> None:
    """Write a text file, all or nothing."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
