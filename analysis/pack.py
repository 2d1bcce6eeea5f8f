"""Many runs in one file: ``python -m analysis.pack RUNS --out STUDY.parquet``.

The file holds each run's record and the scores of its examples, and stands in for the folders
everywhere: ``python -m analysis STUDY.parquet --out REPORT``. A study of hundreds of runs takes
some hundred kilobytes. Training logs, token maps and checkpoints stay behind.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from elip.arguments import output_file
from elip.examples import SCHEMA as EXAMPLES
from elip.examples import read_examples
from elip.files import whole_file
from elip.old_record import RECORD_NAME, RecordError

SCHEMA = pa.schema(
    [
        pa.field("folder", pa.string()),
        pa.field("record", pa.string()),
        *(pa.field(field.name, pa.list_(field.type)) for field in EXAMPLES),
    ],
    metadata={"record": "text of run.json", "score": "as in examples.parquet"},
)


def pack(runs: Path, out: Path) -> int:
    """Write all runs below a folder into one file; return how many.

    Raises:
        RecordError: A file of examples is damaged, or a record is no text.
        FileNotFoundError: There is no record.
    """
    rows = []
    for path in sorted(runs.rglob(RECORD_NAME)):
        examples = read_examples(path.parent)
        columns = {} if examples is None else examples.to_pydict()
        # With the name of the folder of runs: a checkpoint's path is told by its last two parts.
        folder = Path(runs.resolve().name, path.parent.relative_to(runs))
        try:
            row = {"folder": str(folder), "record": path.read_text("utf-8")}
        except UnicodeDecodeError as error:
            raise RecordError(f"{path} is damaged ({error}). Delete or restore it.") from error
        rows.append(row | {name: columns.get(name, []) for name in EXAMPLES.names})
    if not rows:
        raise FileNotFoundError(f"No {RECORD_NAME} below {runs}. A run writes it when it ends.")
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    with whole_file(out) as temporary:
        pq.write_table(table, temporary, compression="zstd", compression_level=19)
    return len(rows)


def unpack(path: Path) -> Iterator[tuple[str, bytes, pa.Table | None]]:
    """Yield folder, text of the record, and examples of each run of a file.

    Raises:
        RecordError: The file is damaged or holds something else.
    """
    try:
        table = pq.read_table(path, schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise RecordError(f"{path} holds no packed runs ({error}).") from error
    if lacking := [name for name in SCHEMA.names if table[name].null_count]:
        raise RecordError(f"{path} holds no packed runs (it lacks {', '.join(lacking)}).")
    for row in range(len(table)):
        folder, record = (table[name][row].as_py() for name in ("folder", "record"))
        columns = [table[name][row].values for name in EXAMPLES.names]
        examples = pa.Table.from_arrays(columns, schema=EXAMPLES) if len(columns[0]) else None
        yield folder, record.encode(), examples


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.pack",
        description="Write the records and example scores of many runs into one file.",
    )
    parser.add_argument("runs", type=Path, help="folder of runs, searched at any depth")
    parser.add_argument("--out", type=output_file, required=True, metavar="STUDY.parquet")
    given = parser.parse_args(arguments)
    try:
        count = pack(given.runs, given.out)
    except (OSError, RecordError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{count} runs: {given.out}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
