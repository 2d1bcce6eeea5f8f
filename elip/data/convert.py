"""From an official download to Arrow files.

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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import islice
from pathlib import Path

from rich.console import Console
from rich.progress import track

from elip.data.arrow_writer import ArrowWriter, arrow_writer, write_text
from elip.data.datasets import find_dataset, known_datasets
from elip.data.datasets.base import DataError, MissingFilesError
from elip.data.download import Download, Row
from elip.data.transforms import ImageError, check_image
from elip.files import whole_file

_GROUP = 8
"""Rows that a thread reads at once."""

Read = tuple[Row, dict[str, bytes] | tuple[str, str]]
"""A row with its images by column, or with the reason to skip it and details."""


@dataclass(frozen=True)
class Report:
    """The result of a conversion."""

    rows: Mapping[str, int]  # by file
    skipped: Mapping[str, int]  # by reason


def convert(
    name: str, raw: Path, out: Path, workers: int = 1, check: bool = True, progress: bool = True
) -> Report:
    """Convert one dataset. Complete new files replace those of an earlier conversion.

    Args:
        name: Name of the dataset, or import path of its `DatasetSpec`.
        raw: Folder of the official download.
        out: Folder for the Arrow files.
        workers: Threads that read and check images.
        check: Check that each image is complete.
        progress: Show a progress bar.
    """
    spec = find_dataset(name)
    if not raw.is_dir():
        raise MissingFilesError(f"There is no folder {raw}; set --root to the download.")
    writers: dict[str, ArrowWriter] = {}
    seen: Counter[str] = Counter()
    notes = out / f"{spec.name}.notes.tsv"
    with ExitStack() as stack:
        file = stack.enter_context(
            stack.enter_context(whole_file(notes)).open("w", encoding="utf-8")
        )
        download = Download(raw, file)
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)

        def writer(file: str) -> ArrowWriter:
            if file not in writers:
                schema = next(each for name, each in spec.files.items() if fnmatch(file, name))
                writers[file] = stack.enter_context(arrow_writer(out / file, schema))
            return writers[file]

        for each in spec.files:
            if "*" not in each:  # write this file even if it has no row
                writer(each)
        rows = _read_ahead(pool, spec.rows(download), check, 2 * workers)
        for row, images in track(rows, "Writing", disable=not progress):
            seen[row.file] += 1
            if isinstance(images, dict):
                writer(row.file).write({**images, **row.values})
            else:
                download.skip(*images)
        empty = [each for each in seen if not writer(each).rows]
        if empty or not seen:
            lost = "; ".join(
                f"{count} x {reason}, such as {download.examples[reason]}"
                for reason, count in download.skipped.most_common(3)
            )
            raise DataError(
                f"There are no rows for {', '.join(empty) or spec.name}; nothing is written. "
                f"Left out: {lost}. {raw} should contain {spec.layout}."
            )
        for each, text in download.side_files.items():
            write_text(out / each, text)
    if not download.skipped:
        notes.unlink()
    return Report({file: each.rows for file, each in writers.items()}, download.skipped)


def _read_ahead(
    pool: ThreadPoolExecutor, rows: Iterable[Row], check: bool, ahead: int
) -> Iterator[Read]:
    """Yield each row with its images, in order."""

    def read(group: Sequence[Row]) -> list[Read]:
        return [(row, _images(row, check)) for row in group]

    waiting: deque[Future[list[Read]]] = deque()
    rows = iter(rows)
    while group := list(islice(rows, _GROUP)):
        waiting.append(pool.submit(read, group))
        if len(waiting) > ahead:
            yield from waiting.popleft().result()
    for each in waiting:
        yield from each.result()


def _images(row: Row, check: bool) -> dict[str, bytes] | tuple[str, str]:
    images = {}
    for column, path in row.images.items():
        try:
            with open(path, "rb", buffering=0) as file:
                data = file.read()
            if check or row.change:
                check_image(data)
            images[column] = row.change(data) if row.change else data
        except FileNotFoundError:
            return "missing image file", str(path)
        except ImageError as error:
            return "damaged image", f"{path}: {error}"
        except (OSError, ValueError) as error:  # ValueError: an impossible file name
            return "unreadable image file", f"{path}: {error}"
    return images


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
