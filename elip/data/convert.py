"""From an official download to Arrow files in the layout of ViLT and METER.

``python -m elip.data.convert NAME --root RAW --out ARROWS``

A dataset's `rows` yields rows, each with its Arrow file and its images. Threads read and check the
images; the rows are written in order. All files appear at the end, or none after an error.
Everything left out is counted and listed in ``NAME.notes.tsv``. Memory holds a few hundred images
and one record batch per file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import track

from elip.data.datasets import find_dataset, known_datasets
from elip.data.datasets.base import DataError, DatasetSpec, MissingFilesError
from elip.data.download import Download, Row
from elip.data.transforms import ImageError, check_image
from elip.files import whole_file

_GROUP = 8
"""Rows that a thread reads at once."""

_BATCH_BYTES, _BATCH_ROWS = 16 << 20, 1000
"""The size of a record batch: of images, and in rows, whichever comes first. The 32-bit offsets of
the original files count within a batch, so they suffice for a file of any size."""

Images = dict[str, bytes] | tuple[str, str]
"""The images of a row by column; or the reason to skip the row, and details."""


@dataclass(frozen=True)
class Report:
    """The result of a conversion."""

    rows: Mapping[str, int]  # by file
    skipped: Mapping[str, int]  # by reason


def convert(
    dataset: str | DatasetSpec,
    raw: Path,
    out: Path,
    workers: int = 1,
    check: bool = True,
    progress: bool = True,
) -> Report:
    """Convert one dataset. Complete new files replace those of an earlier conversion.

    Args:
        dataset: The dataset, its name, or the import path of its class.
        raw: Folder of the official download.
        out: Folder for the Arrow files.
        workers: Threads that read and check images.
        check: Check that each image is complete.
        progress: Show a progress bar.
    """
    spec = find_dataset(dataset) if isinstance(dataset, str) else dataset
    if not raw.is_dir():
        raise MissingFilesError(f"There is no folder {raw}; set --root to the download.")
    notes, seen = out / f"{spec.name}.notes.tsv", Counter[str]()  # rows yielded, by file
    writers: dict[str, _Writer] = {}
    with ExitStack() as stack:
        temporary = stack.enter_context(whole_file(notes))
        download = Download(raw, stack.enter_context(temporary.open("w", encoding="utf-8")))
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)

        def writer(file: str) -> _Writer:
            if file not in writers:
                schema = next(each for name, each in spec.files.items() if fnmatch(file, name))
                temporary = stack.enter_context(whole_file(out / file))
                ipc = stack.enter_context(pa.ipc.new_file(str(temporary), schema))
                writers[file] = _Writer(ipc, schema)
            return writers[file]

        for name in spec.files:
            if "*" not in name:  # write this file even if it has no row
                writer(name)
        rows = _read_ahead(pool, iter(spec.rows(download)), check, 2 * workers)
        for row, images in track(rows, f"Writing {spec.name}", disable=not progress):
            seen[row.file] += 1
            if isinstance(images, dict):
                writer(row.file).write({**images, **row.values})
            else:
                download.skip(*images)
        for each in writers.values():
            each.flush()
        empty = [file for file in seen if not writer(file).rows]
        if empty or not seen:
            lost = "; ".join(
                f"{count} x {reason}, such as {download.examples[reason]}"
                for reason, count in download.skipped.most_common(3)
            )
            raise DataError(
                f"There are no rows for {', '.join(empty) or spec.name}; nothing is written. "
                f"Left out: {lost}. {raw} should contain {spec.layout}."
            )
        for name, text in download.side_files.items():
            stack.enter_context(whole_file(out / name)).write_text(text, encoding="utf-8")
    if not download.skipped:
        notes.unlink()
    return Report({file: each.rows for file, each in writers.items()}, download.skipped)


class _Writer:
    """Writes rows to an Arrow file (IPC file format), batch by batch."""

    def __init__(self, ipc: pa.RecordBatchFileWriter, schema: pa.Schema) -> None:
        self.rows = self._bytes = 0
        self._ipc, self._schema, self._pending = ipc, schema, list[dict[str, Any]]()

    def write(self, row: dict[str, Any]) -> None:
        self.rows += 1
        self._pending.append(row)
        self._bytes += sum(len(value) for value in row.values() if isinstance(value, bytes))
        if self._bytes >= _BATCH_BYTES or len(self._pending) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self._ipc.write_batch(pa.RecordBatch.from_pylist(self._pending, self._schema))
            self._pending, self._bytes = [], 0


def _read_ahead(
    pool: ThreadPoolExecutor, rows: Iterator[Row], check: bool, ahead: int
) -> Iterator[tuple[Row, Images]]:
    """Yield each row with its images, in order."""

    def images_of(row: Row) -> Images:
        images = {}
        for column, source in row.images.items():
            if isinstance(source, bytes):
                images[column] = source
                continue
            try:
                with open(source, "rb", buffering=0) as file:
                    data = file.read()
                if check or row.change:
                    check_image(data)
                images[column] = row.change(data) if row.change else data
            except FileNotFoundError:
                return "missing image file", str(source)
            except ImageError as error:
                return "damaged image", f"{source}: {error}"
            except (OSError, ValueError) as error:  # ValueError: an impossible file name
                return "unreadable image file", f"{source}: {error}"
        return images

    waiting: deque[Future[list[tuple[Row, Images]]]] = deque()
    while group := list(islice(rows, _GROUP)):
        waiting.append(pool.submit(lambda rows: [(row, images_of(row)) for row in rows], group))
        if len(waiting) > ahead:
            yield from waiting.popleft().result()
    for each in waiting:
        yield from each.result()


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one dataset; report what was written and left out; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m elip.data.convert",
        description="Write the Arrow files of a dataset from its official download.",
    )
    add = parser.add_argument
    add("name", metavar="NAME", help=f"one of {', '.join(known_datasets())}")
    add("--root", metavar="RAW", type=Path, default=Path(), help="folder of the download")
    add("--out", metavar="ARROWS", type=Path, required=True, help="folder for the Arrow files")
    add("--workers", type=int, default=os.cpu_count() or 1, help="threads for the images")
    add("--no-check", dest="check", action="store_false", help="do not check the images")
    given = parser.parse_args(arguments)
    errors = Console(stderr=True)
    try:
        report = convert(given.name, given.root, given.out, given.workers, given.check)
    except (ValueError, OSError) as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("Interrupted; nothing was written.")
        return 130
    lines = [f"{count:>9,} rows in {file}" for file, count in report.rows.items()]
    lines += [f"{count:>9,} left out: {reason}" for reason, count in report.skipped.items()]
    lines += [f"Written to {given.out}"]
    lines += ["The .notes.tsv file lists each case."] if report.skipped else []
    Console().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
