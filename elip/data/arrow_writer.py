"""Writing Arrow IPC files in the layout of ViLT and METER, row by row, all or nothing.

Columns have 32-bit offsets, as in the original files. Offsets count within one record batch, which
stays far below 2 GB, so a file can have any size and memory holds one batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from elip.files import whole_file


class ArrowWriter:
    """Writes one Arrow IPC file, in a ``with`` block.

    Rows go to a temporary file in the same folder. At the end of the block it gets its name; if the
    block raises, it is deleted.

    Args:
        path: The file to write; an existing file is replaced.
        schema: Columns and types.
        batch_bytes: Close a record batch when its images reach this many bytes...
        batch_rows: ... or when it has this many rows.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, batch_bytes: int = 16 << 20, batch_rows: int = 1000
    ) -> None:
        self.path = path
        self.rows = 0
        self._schema = schema
        self._batch_bytes = batch_bytes
        self._batch_rows = batch_rows
        self._pending: list[Mapping[str, Any]] = []
        self._pending_bytes = 0
        self._open = ExitStack()

    def __enter__(self) -> ArrowWriter:
        with ExitStack() as opened:
            temporary = opened.enter_context(whole_file(self.path))
            file = opened.enter_context(pa.OSFile(str(temporary), "wb"))
            self._ipc = opened.enter_context(pa.ipc.new_file(file, self._schema))
            opened.push(self._finish)
            self._open = opened.pop_all()
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row: a value for every column."""
        if row.keys() != set(self._schema.names):
            raise ValueError(
                f"{self.path.name} has the columns {', '.join(self._schema.names)}; "
                f"the row has {', '.join(row)}."
            )
        self.rows += 1
        self._pending.append(row)
        self._pending_bytes += sum(len(v) for v in row.values() if isinstance(v, bytes))
        if self._pending_bytes >= self._batch_bytes or len(self._pending) >= self._batch_rows:
            self._flush()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.__exit__(kind, error, trace)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._ipc.write_batch(pa.RecordBatch.from_pylist(self._pending, schema=self._schema))
            self._pending, self._pending_bytes = [], 0


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, all or nothing."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
