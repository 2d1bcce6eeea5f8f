"""Opening Arrow files, and everything that can be wrong with them, found before it costs time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from elip.data.datasets.base import Columns, DataError, MissingFilesError


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
        _ = reader.schema.names, str(reader.schema)  # in a damaged file they may be no UTF-8
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
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
    wanted = columns.names
    optional = wanted[len(columns.images) + 1 :]
    names = batch.schema.names
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}.")
    for name in wanted:
        if names.count(name) > 1:
            raise DataError(f"{path} has {names.count(name)} columns {name}; it must have one.")
    truth = has_truth(batch, columns)
    allowed = _allowed(columns, truth)
    for name in wanted:
        column = batch.column(name)
        forms = allowed.get(name)
        if forms and form(column.type) not in forms:
            raise DataError(
                f"{path}: column {name} has type {column.type}; it must be {' or '.join(forms)}."
            )
        try:
            column.validate(full=True)
        except pa.ArrowException as error:
            raise DataError(f"{path}: column {name} is damaged: {error}.") from error
        if column.null_count:
            row = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
            raise DataError(f"{path}, row {start + row}: {name} is null.")
    lengths = pc.list_value_length(batch.column(columns.texts)).to_numpy()
    _check_texts(batch.column(columns.texts), path, start)
    for name in optional:
        if is_list(batch.column(name).type) and not _is_empty(batch.column(name).type):
            unequal = pc.list_value_length(batch.column(name)).to_numpy() != lengths
            if unequal.any():
                row = int(np.argmax(unequal))
                raise DataError(
                    f"{path}, row {start + row}: {columns.texts} and {name} differ in length."
                )
    if truth and columns.scores is not None:
        _check_answers(batch, columns, path, start)


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


def _check_answers(batch: pa.RecordBatch, columns: Columns, path: Path, start: int) -> None:
    """Hold the numbers, scores and words of answers to each other, question by question."""
    names = [n for n in (columns.target, columns.scores, columns.answers) if n is not None]
    by_question = [batch.column(name).flatten() for name in names]
    lengths = [pc.list_value_length(part).fill_null(-1).to_numpy() for part in by_question]
    for name, part, length in zip(names, by_question, lengths, strict=True):
        wrong = (length < 0) | (length != lengths[0])
        values = part.flatten()
        good = values.is_valid()
        if name == columns.scores:
            within = pc.and_(pc.greater_equal(values, 0), pc.less_equal(values, 1))
            good = within.fill_null(False)
        questions = np.repeat(np.arange(len(part)), np.maximum(length, 0))
        wrong[questions[~good.to_numpy(zero_copy_only=False)]] = True
        if wrong.any():
            at = int(np.argmax(wrong))
            row = start + pc.list_parent_indices(batch.column(names[0]))[at].as_py()
            given = ", ".join(f"{n} {p[at]}" for n, p in zip(names, by_question, strict=True))
            raise DataError(
                f"{path}, row {row}: {given}; each answer must have a number and a word, and one "
                "of the scores, from 0 to 1."
            )


def _allowed(columns: Columns, truth: bool) -> dict[str, tuple[str, ...]]:
    """Return the forms that a column may have, by its name; those left out may have any."""
    forms: dict[str | None, tuple[str, ...]] = {}
    if truth:
        forms[columns.target] = ("list<text>", "list<integer>", "list<number>")
        if columns.scores is not None:
            forms[columns.target] = ("list<list<integer>>",)
            forms[columns.scores] = ("list<list<number>>", "list<list<integer>>")
            forms[columns.answers] = ("list<list<text>>",)
    forms |= {name: ("binary",) for name in columns.images}
    forms[columns.texts] = ("list<text>", "list<list<text>>")
    return {name: allowed for name, allowed in forms.items() if name is not None}


def form(kind: pa.DataType) -> str:
    """Return a type without its width and the names of its parts."""
    if is_list(kind):
        return f"list<{form(kind.value_type)}>"
    for name, tests in _FORMS.items():
        if any(test(kind) for test in tests):
            return name
    return str(kind)


_FORMS: dict[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "text": (pa.types.is_string, pa.types.is_large_string),
    "binary": (pa.types.is_binary, pa.types.is_large_binary),
    "integer": (pa.types.is_integer,),
    "number": (pa.types.is_floating,),
}


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def has_truth(batch: pa.RecordBatch, columns: Columns) -> bool:
    """Whether a record batch holds the truth; test sets often do not."""
    return columns.target is not None and not _is_empty(batch.column(columns.target).type)


def _is_empty(kind: pa.DataType) -> bool:
    """Whether a column's type says that it holds nothing."""
    while is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_null(kind))
