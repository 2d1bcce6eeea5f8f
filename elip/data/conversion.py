"""From an official download to Arrow files: streaming, checked, resumable, all losses counted.

A converter yields rows, each with the image files it needs, and notes about what it leaves out. The
machinery here reads and checks the images in parallel, keeps the order, writes each Arrow file all
or nothing, and counts every note. Memory holds a few dozen images and one record batch, whatever
the size of the dataset.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import ijson
import pyarrow as pa
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from elip.data.arrow_writer import ArrowWriter
from elip.data.datasets.base import DataError, MissingFilesError
from elip.data.entries import Note, Parsed, Row, note_file, read_reasons, unexpected
from elip.data.opening import open_batches
from elip.data.transforms import ImageError, decoded_mode

Given = TypeVar("Given")
Made = TypeVar("Made")


class Conversion:
    """One conversion, to be used in a ``with`` block.

    Args:
        raw: Folder of the official download.
        out: Folder for the Arrow files.
        workers: Number of threads that read and check images.
        check: Whether each image is decoded to see that it is whole.
        progress: Whether progress bars are shown.

    Attributes:
        counts: Rows of each file by its name; number of notes by reason.
    """

    def __init__(
        self, raw: Path, out: Path, workers: int = 1, check: bool = True, progress: bool = True
    ) -> None:
        if workers < 1:
            raise DataError(f"workers is {workers}; it must be at least 1.")
        if not raw.is_dir():
            raise MissingFilesError(f"There is no folder {raw}; --root names the download.")
        self.raw = raw
        self.out = out
        self.counts: Counter[str] = Counter()
        self._check = check
        self._workers = workers
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f} {task.fields[unit]}"),
            TimeRemainingColumn(),
            disable=not progress,
        )

    def __enter__(self) -> Conversion:
        """Start threads and progress bars."""
        self._pool = ThreadPoolExecutor(self._workers)
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop them."""
        self._progress.stop()
        self._pool.shutdown(cancel_futures=True)

    def into(self, folder: str) -> Path:
        """Let the files go into a folder below the one given, and return it."""
        self.out = self.out / folder
        return self.out

    def find(self, *names: str) -> Path:
        """Return the first of these paths, relative to the download, that exists.

        Raises:
            MissingFilesError: If none does.
        """
        for name in names:
            if (self.raw / name).exists():
                return self.raw / name
        raise MissingFilesError(f"{self.raw} has no {' or '.join(names)}.")

    def items(self, path: Path, prefix: str) -> Iterator[Any]:
        """Read a large JSON file item by item.

        Args:
            path: The file.
            prefix: Where the items are: "item" for a list, "images.item" for the list under the
                key "images".

        Raises:
            DataError: If the file is cut short or is not JSON.
        """
        with self._open(path) as file:
            try:
                yield from ijson.items(file, prefix, use_float=True)
            except ijson.JSONError as error:
                said = " ".join(str(error).split())  # it shows the place, over three lines
                raise DataError(f"{path} is cut short or damaged: {said}") from error

    def lines(self, path: Path) -> Iterator[Any]:
        """Read a file of one JSON object a line.

        Raises:
            DataError: If a line is not JSON; the message gives its number.
        """
        with self._open(path) as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}, line {number} is damaged: {error}") from error

    def write(
        self,
        name: str,
        schema: pa.Schema,
        rows: Parsed,
        change: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """Write one Arrow file, and its notes to ``NAME.notes.tsv`` if there are any.

        A file that is there already is left as it is and counted; ``rows`` is then not touched.

        Args:
            name: Name of the file.
            schema: Its columns; the ``binary`` ones take the rows' images in order.
            rows: Rows and notes.
            change: What is done to the bytes of each image, after the check; None keeps them.
        """
        path, notes_path = self.out / name, (self.out / name).with_suffix(".notes.tsv")
        if not path.exists():
            self._task = self._progress.add_task(name, total=None, unit="rows")
            columns = [field.name for field in schema if pa.types.is_binary(field.type)]
            load = partial(self._load, schema, change)
            with ArrowWriter(path, schema) as writer, note_file(notes_path) as add:
                for images, values, notes in self._in_order(rows, load):
                    add(notes)
                    self._progress.update(self._task, completed=writer.rows)
                    if images is not None:
                        writer.write({**dict(zip(columns, images, strict=True)), **values})
            self._progress.update(self._task, total=writer.rows, completed=writer.rows)
        self.counts[f"{name}: rows"] = _num_rows(path)
        self.counts.update(f"{name}: {reason}" for reason in read_reasons(notes_path))

    def expect(self, rows: int) -> None:
        """Tell how many rows the file being written will have, for its progress bar."""
        if self._task is not None:
            self._progress.update(self._task, total=rows)

    @contextmanager
    def _open(self, path: Path) -> Iterator[BinaryIO]:
        if not path.is_file():
            raise MissingFilesError(f"There is no file {path}.")
        task = self._progress.add_task(f"Reading {path.name}", total=None, unit="bytes")
        with self._progress.open(path, "rb", task_id=task) as file:
            yield file
        self._progress.remove_task(task)

    def _load(
        self, schema: pa.Schema, change: Callable[[bytes], bytes] | None, row: Row | Note
    ) -> tuple[list[bytes] | None, Mapping[str, Any], tuple[Note, ...]]:
        """Read and check the images of a row; None stands for a row that cannot be written."""
        if isinstance(row, Note):
            return None, {}, (row,)
        try:
            for name, value in row.values.items():
                pa.array([value], schema.field(name).type)
        except (ValueError, TypeError, OverflowError) as error:
            return None, {}, (unexpected(f"{type(error).__name__} {error} in", row.values),)
        images, notes = [], []
        for path in row.images:
            try:
                data = path.read_bytes()
                mode = decoded_mode(data) if self._check or change else None
            except FileNotFoundError:
                return None, {}, (Note("left out: image file missing", str(path)),)
            except ImageError as error:
                return None, {}, (Note("left out: image does not decode", f"{path}: {error}"),)
            except (OSError, ValueError) as error:  # ValueError: no file can have that name
                return None, {}, (Note("left out: image file unreadable", f"{path}: {error}"),)
            if mode == "CMYK":
                notes.append(Note("kept: image in CMYK colors", str(path)))
            images.append(change(data) if change else data)
        return images, row.values, tuple(notes)

    def _in_order(
        self, items: Iterable[Given], function: Callable[[Given], Made]
    ) -> Iterator[Made]:
        """Map in parallel with a short look-ahead, keeping the order."""
        ahead: deque[Future[Made]] = deque()
        for item in items:
            ahead.append(self._pool.submit(function, item))
            if len(ahead) > 4 * self._workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _num_rows(path: Path) -> int:
    return sum(batch.num_rows for batch in open_batches(path))
