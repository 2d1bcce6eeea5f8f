"""From an official download to Arrow files.

``python -m elip.data.convert NAME --root RAW --out ARROWS``

A dataset's `rows` yields rows, each with its Arrow file and its images. Threads read and check the
images; the rows are written in order. All files appear at the end, or none after an error.
Everything left out is counted and listed in ``NAME.notes.tsv``. Memory holds a few dozen images and
one record batch per file.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from elip.data.arrow_writer import ArrowWriter
from elip.data.datasets import DataError, MissingFilesError, find_dataset, known_datasets
from elip.data.datasets.base import Row
from elip.data.download import Download
from elip.data.transforms import ImageError, decode_image
from elip.files import whole_file

_GIVE_UP_AFTER = 1000
"""Stop if none of the first rows of a file can be written."""


@dataclass(frozen=True)
class Report:
    """The result of a conversion.

    Attributes:
        rows: Number of rows by file name.
        skipped: Number of things left out, by reason.
    """

    rows: Mapping[str, int]
    skipped: Mapping[str, int]


class _UnusableError(Exception):
    """An image cannot be used; the arguments are the reason and the file."""


def convert(
    name: str, raw: Path, out: Path, workers: int = 1, check: bool = True, progress: bool = True
) -> Report:
    """Convert one dataset. Complete new files replace those of an earlier conversion.

    Args:
        name: Name of the dataset, or import path of its `DatasetSpec`.
        raw: Folder of the official download.
        out: Folder for the Arrow files.
        workers: Threads that read and check images.
        check: Decode each image to see that it is complete.
        progress: Show a progress bar.

    Raises:
        DataError: The dataset has no converter, or the download has another form.
    """
    spec = find_dataset(name)
    if workers < 1:
        raise DataError(f"workers is {workers}; it must be at least 1.")
    if not raw.is_dir():
        raise MissingFilesError(f"There is no folder {raw}; set --root to the download.")
    out = out / spec.subfolder
    writers: dict[str, ArrowWriter] = {}
    expected: Counter[str] = Counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} {task.fields[unit]}"),
        TimeRemainingColumn(),
    )
    with ExitStack() as opened:
        bar = opened.enter_context(Progress(*columns, disable=not progress))
        task = bar.add_task("Writing", total=None, unit="rows")
        notes = opened.enter_context(whole_file(out / f"{spec.name}.notes.tsv"))
        download = Download(raw, opened.enter_context(notes.open("w", encoding="utf-8")), bar)
        pool = ThreadPoolExecutor(workers)
        opened.callback(pool.shutdown, cancel_futures=True)

        def writer(file: str) -> ArrowWriter:
            if file not in writers:
                schema = next(each for name, each in spec.files.items() if fnmatch(file, name))
                writers[file] = opened.enter_context(ArrowWriter(out / file, schema))
            return writers[file]

        for file in spec.files:
            if "*" not in file:  # write this file even if it has no row
                writer(file)
        for row, images in _read_ahead(pool, spec.rows(download), check, 4 * workers):
            expected[row.file] += 1
            try:
                writer(row.file).write({**images.result(), **row.values})
            except _UnusableError as problem:
                download.skip(*problem.args)
            bar.advance(task)
            if expected[row.file] == _GIVE_UP_AFTER and not writer(row.file).rows:
                break
        empty = [file for file in expected if not writer(file).rows]
        if empty or not expected:
            lost = "; ".join(
                f"{count} x {reason}, such as {download.examples[reason]}"
                for reason, count in download.skipped.most_common(3)
            )
            raise DataError(
                f"There are no rows for {', '.join(empty) or spec.name}; nothing is written. "
                f"Left out: {lost}. {raw} should contain {spec.layout}."
            )
        for name, text in download.side_files.items():
            with whole_file(out / name) as path:
                path.write_text(text, encoding="utf-8")
    if not download.skipped:
        (out / f"{spec.name}.notes.tsv").unlink()
    return Report({file: each.rows for file, each in writers.items()}, download.skipped)


def _read_ahead(
    pool: ThreadPoolExecutor, rows: Iterable[Row], check: bool, ahead: int
) -> Iterator[tuple[Row, Future[dict[str, bytes]]]]:
    """Yield each row with its images by column, in order."""
    waiting: deque[tuple[Row, Future[dict[str, bytes]]]] = deque()
    for row in rows:
        waiting.append((row, pool.submit(_images, row, check)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def _images(row: Row, check: bool) -> dict[str, bytes]:
    images = {}
    for column, path in row.images.items():
        try:
            data = path.read_bytes()
            if check or row.change:
                decode_image(data, short_side=1)  # a JPEG at 1/8 scale: enough to find a truncation
        except FileNotFoundError as error:
            raise _UnusableError("missing image file", str(path)) from error
        except ImageError as error:
            raise _UnusableError("damaged image", f"{path}: {error}") from error
        except (OSError, ValueError) as error:  # ValueError: an impossible file name
            raise _UnusableError("unreadable image file", f"{path}: {error}") from error
        images[column] = row.change(data) if row.change else data
    return images


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one dataset and report what was written and left out.

    Returns:
        The exit status: 0; 1 after an error; 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="python -m elip.data.convert",
        description="Write the Arrow files of a dataset from its official download.",
    )
    add = parser.add_argument
    add("name", metavar="NAME", help=f"one of {', '.join(known_datasets())}")
    add("--root", metavar="RAW", type=Path, default=Path(), help="folder of the download")
    add("--out", metavar="ARROWS", type=Path, required=True, help="folder for the Arrow files")
    add("--workers", type=int, default=os.cpu_count() or 1, help="threads for the images")
    add("--no-check", dest="check", action="store_false", help="do not decode the images")
    given = parser.parse_args(arguments)
    errors = Console(stderr=True)
    try:
        report = convert(given.name, given.root, given.out, given.workers, given.check)
    except (DataError, OSError, UnicodeDecodeError) as error:
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
