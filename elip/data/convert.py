"""From an official download to Arrow files.

``python -m elip.data.convert NAME --root RAW --out ARROWS``

A dataset's `rows` yields rows, each with the file that it goes to and the images that it needs.
Here threads read and check the images, and the rows are written in order. All files appear at the
end; after an error there are none. What is left out is counted, and named in ``NAME.notes.tsv``.
Memory holds some dozen images and one record batch a file, whatever the size of the dataset.
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
from elip.data.datasets.base import DatasetSpec, Row
from elip.data.download import Download
from elip.data.transforms import ImageError, decode_image
from elip.files import whole_file


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        rows: Number of rows by file name.
        skipped: How often something was left out, by reason.
    """

    rows: Mapping[str, int]
    skipped: Mapping[str, int]


def convert(
    name: str, raw: Path, out: Path, workers: int = 1, check: bool = True, progress: bool = True
) -> Report:
    """Convert one dataset. Files of an earlier conversion are replaced, but only by whole ones.

    Args:
        name: Name of the dataset, or import path of its `DatasetSpec`.
        raw: Folder of the official download.
        out: Folder for the Arrow files.
        workers: Threads that read and check images.
        check: Whether each image is decoded to see that it is whole.
        progress: Whether progress is shown.

    Returns:
        What was written and what was left out.

    Raises:
        DataError: The dataset has no converter, or the download is not as expected.
    """
    spec = find_dataset(name)
    if workers < 1:
        raise DataError(f"workers is {workers}; it must be at least 1.")
    if not raw.is_dir():
        raise MissingFilesError(f"There is no folder {raw}; --root names the download.")
    out = out / spec.subfolder
    writers: dict[str, ArrowWriter] = {}
    wanted: Counter[str] = Counter()
    with ExitStack() as opened:
        bar = opened.enter_context(_progress(disable=not progress))
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
            if "*" not in file:  # it is written also where it has no row
                writer(file)
        for row, images in _read_ahead(pool, spec.rows(download), check, 4 * workers):
            wanted[row.file] += 1
            try:
                writer(row.file).write({**images.result(), **row.values})
            except _UnusableError as problem:
                download.skip(*problem.args)
            bar.advance(task)
            if wanted[row.file] == _HOPELESS and not writer(row.file).rows:
                break
        empty = [file for file in wanted if not writer(file).rows]
        if empty or not wanted:
            raise DataError(_nothing(spec, empty, download))
        for name, text in download.side_files.items():
            with whole_file(out / name) as path:
                path.write_text(text, encoding="utf-8")
    if not download.skipped:
        (out / f"{spec.name}.notes.tsv").unlink()
    return Report({file: each.rows for file, each in writers.items()}, download.skipped)


_HOPELESS = 1000
"""Where none of so many rows of a file can be written, the conversion ends at once."""


class _UnusableError(Exception):
    """An image cannot be used; the arguments are the reason and the file."""


def _read_ahead(
    pool: ThreadPoolExecutor, rows: Iterable[Row], check: bool, ahead: int
) -> Iterator[tuple[Row, Future[dict[str, bytes]]]]:
    """Return each row with its images by column, in order."""
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
                decode_image(data, short_side=1)  # a JPEG at 1/8: enough to find a cut
        except FileNotFoundError as error:
            raise _UnusableError("image file that is missing", str(path)) from error
        except ImageError as error:
            raise _UnusableError("image that does not decode", f"{path}: {error}") from error
        except (OSError, ValueError) as error:  # ValueError: no file can have that name
            raise _UnusableError("image file that cannot be read", f"{path}: {error}") from error
        images[column] = row.change(data) if row.change else data
    return images


def _progress(disable: bool) -> Progress:
    count = TextColumn("{task.completed:,.0f} {task.fields[unit]}")
    text = TextColumn("{task.description}")
    return Progress(text, BarColumn(), count, TimeRemainingColumn(), disable=disable)


def _nothing(spec: DatasetSpec, files: Sequence[str], download: Download) -> str:
    """Return the message about files that would have no row."""
    lost = "; ".join(
        f"{count} x {reason}, such as {download.examples[reason]}"
        for reason, count in download.skipped.most_common(3)
    )
    return (
        f"No row came out for {', '.join(files) or spec.name}; nothing is written. "
        f"Left out: {lost}. {download.root} should hold {spec.layout}."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one dataset and report what was written and left out.

    Returns:
        The exit status: 0; 1 where the download is not as expected; 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="python -m elip.data.convert",
        description="Write the Arrow files of a dataset from its official download.",
    )
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(known_datasets())}")
    parser.add_argument(
        "--root", metavar="RAW", type=Path, default=Path(), help="folder of the download"
    )
    parser.add_argument(
        "--out", metavar="ARROWS", type=Path, required=True, help="folder for the Arrow files"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        help="threads that read and check images",
    )
    parser.add_argument(
        "--no-check", dest="check", action="store_false", help="do not decode the images"
    )
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
    lines += ["The .notes.tsv file beside them names each case."] if report.skipped else []
    Console().print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
