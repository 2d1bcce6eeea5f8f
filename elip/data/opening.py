"""Opening Arrow files, and everything that can be wrong with them, found before it costs time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from elip.data.sources.base import Columns, DataError, MissingFilesError


def open_batches(path: Path) -> list[pa.RecordBatch]:
    """Memory-map one Arrow file (IPC file format) and return its record batches.

    Raises:
        DataError: If the file is missing, truncated or of another format.
    """
    if not path.is_file():
        raise MissingFilesError(f"There is no file {path}.")
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        for batch in batches:
            batch.validate()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path} is not a whole Arrow file (IPC file format): {error}. It may be truncated by "
            "an interrupted copy or conversion; make it or fetch it again."
        ) from error
    return batches


def check_batch(batch: pa.RecordBatch, columns: Columns, path: Path, start: int) -> None:
    """Hold a record batch to the column names, types, lengths and the absence of nulls.

    Args:
        batch: The record batch.
        columns: What is read from it.
        path: Its file, for messages.
        start: Row of the file at which it begins, for messages.

    Raises:
        DataError: At the first thing that is wrong, with file and row.
    """
    beside = (columns.target, columns.scores, columns.answers, columns.keys)
    optional = [name for name in beside if name is not None]
    wanted = [*columns.images, columns.texts, *optional]
    missing = [name for name in wanted if name not in batch.schema.names]
    if missing:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; it has {', '.join(batch.schema.names)}."
        )
    for name in wanted:
        column = batch.column(name)
        kind = str(column.type)
        if not _accepted(column.type, name in columns.images, name == columns.texts):
            raise DataError(f"{path}: column {name} has type {kind}, which is not readable here.")
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            raise DataError(f"{path}: column {name} is damaged: {error}.") from error
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            raise DataError(f"{path}, row {start + row}: {name} is null.")
    lengths = pc.list_value_length(batch.column(columns.texts)).to_numpy()
    _check_texts(batch.column(columns.texts), path, start)
    for name in optional:
        if is_list(batch.column(name).type) and not is_empty(batch.column(name).type):
            unequal = pc.list_value_length(batch.column(name)).to_numpy() != lengths
            if unequal.any():
                row = int(np.argmax(unequal))
                raise DataError(
                    f"{path}, row {start + row}: {columns.texts} and {name} differ in length."
                )


def _check_texts(column: pa.Array, path: Path, start: int) -> None:
    """Find nulls among the texts, and sentence groups without a sentence."""
    rows = np.arange(len(column))
    while is_list(column.type):
        rows = rows[pc.list_parent_indices(column).to_numpy()]
        column = column.flatten()
        wrong = column.is_null()
        if is_list(column.type):
            wrong = pc.or_kleene(wrong, pc.equal(pc.list_value_length(column), 0))
        found = np.flatnonzero(wrong.to_numpy(zero_copy_only=False))
        if len(found):
            raise DataError(f"{path}, row {start + int(rows[found[0]])}: a text is missing.")


def _accepted(kind: pa.DataType, is_image: bool, is_text: bool) -> bool:
    if is_image:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
    if not is_text:
        return True
    depth = 0
    while is_list(kind):
        kind, depth = kind.value_type, depth + 1
    return depth in (1, 2) and bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def is_empty(kind: pa.DataType) -> bool:
    """Whether a column's type says that it holds nothing (test sets without truth)."""
    while is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_null(kind))
