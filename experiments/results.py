"""Gather run records into one table: ``python -m experiments.results RUNS --out table.parquet``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from elip.arguments import output_file
from elip.files import whole_file
from elip.old_record import COLUMNS, RECORD_NAME, Record, RecordError, read_record
from elip.old_record import SCHEMA as RECORD_SCHEMA
from experiments.attempt import IDENTITY_NAME, attempts, read_identity, seconds_spent

SCHEMA = 1
"""Version of the table. It rises when a column changes its meaning or goes."""

TABLE_NAME = "table.parquet"
"""Name of the table in the folder of a grid's runs."""

CELL_COLUMNS: dict[str, str] = {
    "grid": "name of the grid; missing for a run of its own",
    "stage": "stage of the grid",
    "cell": "name of the run within its stage",
    "cell_id": "identity of the run: a hash of all that determines its result",
    "parent_id": "cell_id of the run that it started from",
    "planned": "whether the grid's file, as it was launched last, has this run; missing where that "
    "is not known",
    "folder": "run directory, relative to the folder that was gathered",
    "attempts": "how often the run was started, until it ended by itself",
    "wall_s": "time of all attempts, start-up included, seconds",
}
"""Columns that say which run of which grid a row is, with their meaning and unit."""

_WHOLE = {"seed", "patches", "batch_size", "train_steps", "attempts"}
_WORDS = {
    "name", "status", "subcommand", "config_hash", "commit", "started", "task", "datasets",
    "reducer", "reducer_family", "reducer_options", "cpu", "gpus", "parent", "main_metric",
    "error", "grid", "stage", "cell", "cell_id", "parent_id", "folder",
}  # fmt: skip


def gather(runs: Path, planned: Collection[str] | None = None) -> tuple[pa.Table, list[str]]:
    """Return one row a record below a folder, sorted by folder, and what could not be read.

    A record whose ``cell.json`` is damaged stands as that of a run of its own.

    After `CELL_COLUMNS` and the columns of every record come ``axis/<name>``, the label of the
    run on each axis of its grid, and the scores, ``<split>/<score>``. Missing is null, never 0.

    Args:
        runs: Folder that holds run directories at any depth.
        planned: ``cell_id`` of every run of the grid; None where that is not known.
    """
    rows, bad = [], []
    for file in sorted(runs.rglob(RECORD_NAME)):
        try:
            record = read_record(file)
        except RecordError as error:
            bad.append(str(error))
            continue
        row: dict[str, Any] = {"folder": str(file.parent.relative_to(runs))}
        try:
            row |= _cell_columns(file.parent, record)
        except RecordError as error:
            bad.append(str(error))
        if planned is not None and "cell_id" in row:
            # One that was lengthened by hand is not what was planned.
            row["planned"] = row["cell_id"] in planned and not record.earlier
        rows.append({**row, **record.row()})
    return _table(rows), bad


def write_table(table: pa.Table, out: Path) -> None:
    """Write a table as Parquet, wholly or not at all."""
    with whole_file(out) as temporary:
        pq.write_table(table, temporary)


def _cell_columns(folder: Path, record: Record) -> dict[str, Any]:
    """Return which run of a grid a record is of; nothing for one made by hand beside it."""
    if (folder / IDENTITY_NAME).is_file():
        place = folder
    # What is scored lies one below its run directory, which else holds a fit and its record.
    elif folder.name == record.subcommand and not (folder.parent / RECORD_NAME).exists():
        place = folder.parent
    else:
        return {}
    if not (place / IDENTITY_NAME).is_file():
        return {}
    run = read_identity(place)
    return {
        "grid": run.grid,
        "stage": run.stage,
        "cell": run.name,
        "cell_id": run.id,
        "parent_id": run.parent,
        **{f"axis/{axis}": label for axis, label in run.labels.items()},
        **_attempts(place),
    }


def _attempts(folder: Path) -> dict[str, Any]:
    found = attempts(folder)
    return {"attempts": len(found), "wall_s": seconds_spent(found)} if found else {}


def _table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    known = {**CELL_COLUMNS, **COLUMNS}
    others = sorted({name for row in rows for name in row} - set(known))
    names = [*CELL_COLUMNS, *(each for each in others if each.startswith("axis/")), *COLUMNS]
    names += [each for each in others if not each.startswith("axis/")]
    fields = [
        pa.field(name, kind(name), metadata={"description": known.get(name) or _describe(name)})
        for name in names
    ]
    versions = {"elip.table.schema": str(SCHEMA), "elip.old_record.schema": str(RECORD_SCHEMA)}
    return pa.Table.from_pylist(list(rows), schema=pa.schema(fields, metadata=versions))


def kind(name: str) -> pa.DataType:
    """Return the type of a column: words, truth, whole numbers, and else float64."""
    if name in _WORDS or name.startswith("axis/"):
        return pa.string()
    if name in ("dirty", "planned"):
        return pa.bool_()
    if name in _WHOLE or name.endswith("/examples"):
        return pa.int64()
    return pa.float64()


def _describe(name: str) -> str:
    if name.startswith("axis/"):
        return "label on this axis of the grid"
    if name.endswith("/examples"):
        return "number of examples that were scored"
    if name.endswith("/chance"):
        return "this score of guessing, as a share of 1 unless the task says otherwise"
    return "score, as a share of 1 unless the task says otherwise"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table; return the status of the process: 1 when a record could not be read."""
    parser = argparse.ArgumentParser(prog="python -m experiments.results", description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of runs, such as runs/keep_ratio")
    parser.add_argument("--out", type=output_file, required=True, metavar="TABLE.parquet")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    if not options.runs.is_dir():
        console.print(f"error: no folder {options.runs}.")
        return 2
    try:
        table, bad = gather(options.runs)
        if not table.num_rows and not bad:
            console.print(f"error: No {RECORD_NAME} below {options.runs}; no table was written.")
            return 2
        write_table(table, options.out)
    except OSError as error:
        console.print(f"error: {error}")
        return 2
    for message in bad:
        console.print(f"left out: {message}")
    console.print(f"{table.num_rows} runs, {table.num_columns} columns: {options.out}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
