"""Writing dataset files: Arrow IPC in the layout of ViLT and METER, row by row, all or nothing.

Columns are ``binary`` and ``list<...>`` with 32-bit offsets, as those files have them. Offsets
count within one record batch, and a batch is closed long before it reaches 2 GB, so a file may be
of any size, and memory stays at one batch.
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

_TEXTS = pa.list_(pa.string())
_NUMBERS = pa.list_(pa.int64())
_NOTHING = pa.list_(pa.null())

CAPTION = pa.schema(
    {"image": pa.binary(), "caption": _TEXTS, "image_id": pa.string(), "split": pa.string()}
)
"""COCO, Flickr30k, Conceptual Captions, SBU."""

REGION = pa.schema(
    {
        "image": pa.binary(),
        "caption": _TEXTS,
        "width": _NUMBERS,
        "height": _NUMBERS,
        "x": _NUMBERS,
        "y": _NUMBERS,
        "image_id": pa.string(),
    }
)
"""Visual Genome: captions of boxes, in pixels."""

QUESTION = pa.schema(
    {
        "image": pa.binary(),
        "questions": _TEXTS,
        "answers": pa.list_(_TEXTS),
        "answer_labels": pa.list_(_NUMBERS),
        "answer_scores": pa.list_(pa.list_(pa.float64())),
        "image_id": pa.int64(),
        "question_id": _NUMBERS,
        "split": pa.string(),
    }
)
"""VQAv2: for each question its kept answers, their numbers and their soft scores."""

QUESTION_WITHOUT_ANSWERS = pa.schema(
    [field.with_type(_NOTHING) if field.name.startswith("answer") else field for field in QUESTION]
)
"""VQAv2's test splits: the answer columns hold one null a question."""

PAIR = pa.schema(
    {
        "image_0": pa.binary(),
        "image_1": pa.binary(),
        "questions": _TEXTS,
        "answers": _TEXTS,
        "identifier": pa.string(),
    }
)
"""NLVR2: sentences about two images, "True" or "False"."""

STATEMENT = pa.schema(
    {
        "image": pa.binary(),
        "questions": _TEXTS,
        "answers": _TEXTS,
        "identifier": pa.string(),
        "directory": pa.string(),
        "permutation": pa.int64(),
    }
)
"""NLVR: sentences about one image, "True" or "False"."""

ENTAILMENT = pa.schema({"image": pa.binary(), "sentences": pa.list_(_TEXTS), "labels": _NUMBERS})
"""SNLI-VE: [premise, hypothesis] pairs; contradiction 0, neutral 1, entailment 2."""


class ArrowWriter:
    """Writes one Arrow IPC file; the file appears under its name only when it is whole.

    Use it in a ``with`` block. Rows go to a temporary file in the same folder, which is renamed
    at the end of the block, or removed if the block raises.

    Args:
        path: The file to write; its folder is made if need be. An older file is replaced.
        schema: Columns and types.
        batch_bytes: A record batch is closed when its images reach this many bytes.
        batch_rows: ... or this many rows.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        batch_bytes: int = 16 << 20,
        batch_rows: int = 1000,
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
        """Open the temporary file."""
        with ExitStack() as opened:
            temporary = opened.enter_context(whole_file(self.path))
            file = opened.enter_context(pa.OSFile(str(temporary), "wb"))
            self._ipc = opened.enter_context(pa.ipc.new_file(file, self._schema))
            opened.push(self._finish)
            self._open = opened.pop_all()
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row.

        Args:
            row: A value for every column, by name.

        Raises:
            ValueError: If the row's columns are not those of the schema.
        """
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
        """Finish and rename the file, or remove it after an exception."""
        self._open.__exit__(kind, error, trace)

    def _finish(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            self._ipc.write_batch(pa.RecordBatch.from_pylist(self._pending, schema=self._schema))
            self._pending, self._pending_bytes = [], 0


def write_json(path: Path, value: Any) -> None:
    """Write a side file of a dataset, all or nothing."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
