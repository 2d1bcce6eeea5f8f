"""One table of many runs: ``python -m experiments.results RUNS --out table.parquet``.

One row per run: the columns of `elip.record.Record.row`, ``folder``, ``record`` (the text of
``run.json``), and the per-example scores as four lists.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from elip.files import whole_file
from elip.record import RECORD_NAME, SCORES, Record, RecordError, parse_record, read_scores

TABLE_NAME = "table.parquet"
"""Name of the table in a grid's folder."""

_SCORE_COLUMNS = {f"scores_{field.name}": field for field in SCORES}
"""The columns of per-example scores, and their fields in `elip.record.SCORES`."""

_REDUCTION_AXES = ("reducer", "keep_ratio", "budget")
_SHOWN_COLUMNS = 8
_LABEL_WIDTH = 22


def gather(runs: Path) -> tuple[pa.Table, list[str]]:
    """Return a table of all runs below a folder, and messages about unreadable records.

    Missing values are null.
    """
    rows: list[dict[str, Any]] = []
    bad: list[str] = []
    for file in sorted(runs.rglob(RECORD_NAME)):
        try:
            text = file.read_text(encoding="utf-8")
            record = parse_record(text, file)
            scores = read_scores(file.parent)
        except (RecordError, OSError, UnicodeDecodeError) as error:
            bad.append(str(error))
            continue
        row = {**record.row(), "folder": str(file.parent.relative_to(runs)), "record": text}
        if scores is not None:
            row |= {name: scores[field.name].to_pylist() for name, field in _SCORE_COLUMNS.items()}
        rows.append(row)
    found = {"folder", "record"}.union(*rows)
    names = [*Record.model_fields, *(name for row in rows for name in row), "folder", "record"]
    # Types come from the names, so they do not depend on which values are missing.
    schema = pa.schema([(name, _kind(name)) for name in dict.fromkeys(names) if name in found])
    return pa.Table.from_pylist(rows, schema=schema), bad


def write_table(table: pa.Table, out: Path) -> None:
    """Write a table as Parquet, atomically."""
    with whole_file(out) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def score_tables(records: Iterable[Record]) -> Iterator[tuple[str, Table]]:
    """Yield title and table of methods by keep ratio for each stage and split.

    Baselines come first. A score is the mean over seeds and all else that varies within a cell. A
    method without a keep ratio, such as no reduction, appears in every column.
    """
    groups: dict[tuple[str, ...], list[tuple[Record, float]]] = defaultdict(list)
    for record in records:
        if record.status != "completed" or not record.main_metric:
            continue
        others = [
            f"{axis} {label}"
            for axis, label in record.axes.items()
            if axis not in (*_REDUCTION_AXES, "seed")
        ]
        for each in record.evaluations:
            score = each.metrics.get(record.main_metric)
            if score is not None:
                title = (record.stage or record.command, *others, each.split, record.main_metric)
                groups[title].append((record, score))
    for title, scored in groups.items():
        for table in _score_tables(scored):
            yield ", ".join(dict.fromkeys(title)), table


def _score_tables(scored: Sequence[tuple[Record, float]]) -> Iterator[Table]:
    cells: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record, score in scored:
        ratio = record.axes.get("keep_ratio") or record.axes.get("budget") or ""
        label = record.axes.get("reducer", record.reducer)
        cells["No reduction" if label == "Identity" else label][ratio].append(score)
    columns = list(dict.fromkeys(ratio for line in cells.values() for ratio in line if ratio))
    baselines = [name for name in ("No reduction", "Random") if name in cells]
    lines = [*baselines, *(name for name in cells if name not in baselines)]
    for start in range(0, max(1, len(columns)), _SHOWN_COLUMNS):
        shown = columns[start : start + _SHOWN_COLUMNS] or [""]
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        table.add_column("method", max_width=_LABEL_WIDTH, overflow="ellipsis", no_wrap=True)
        for column in shown:
            table.add_column(column or "score", justify="right", no_wrap=True)
        for name in lines:
            values = (cells[name].get(column) or cells[name].get("") for column in shown)
            table.add_row(name, *(f"{statistics.mean(v):.3f}" if v else "-" for v in values))
        yield table


def _kind(name: str) -> pa.DataType:
    if name in _SCORE_COLUMNS:
        field = _SCORE_COLUMNS[name]
        return pa.list_(pa.string() if pa.types.is_dictionary(field.type) else field.type)
    if name in Record.model_fields:
        annotation = Record.model_fields[name].annotation
        kinds = () if get_origin(annotation) is tuple else get_args(annotation) or (annotation,)
        for kind, column in ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64())):
            if kind in kinds:
                return column
        return pa.string()
    if name.endswith("/examples"):
        return pa.int64()
    scored = name.startswith("gflops") or ("/" in name and not name.startswith("axis/"))
    return pa.float64() if scored else pa.string()


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table. The exit status is 1 if a record is unreadable."""
    parser = argparse.ArgumentParser(prog="python -m experiments.results", description=__doc__)
    parser.add_argument("runs", type=Path, help="folder of runs, such as runs/keep_ratio")
    parser.add_argument("--out", type=Path, required=True, metavar="TABLE.parquet")
    options = parser.parse_args(arguments)
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    table, bad = gather(options.runs)
    if not table.num_rows and not bad:
        console.print(f"error: no {RECORD_NAME} below {options.runs}; wrote no table.")
        return 2
    write_table(table, options.out)
    for message in bad:
        console.print(f"not in the table: {message}")
    console.print(f"{table.num_rows} runs, {table.num_columns} columns: {options.out}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
