"""Reading an official download: entries are checked against a shape, and losses are recorded.

A shape is a type, or several (``str | int``); a mapping from keys to shapes; or, for a JSON list, a
tuple with the shapes of its first elements.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO, get_args

import ijson
from rich.progress import Progress

from elip.data.datasets.base import DataError, MissingFilesError

_MALFORMED = "malformed entry"
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", list: "list"}


class Download:
    """The folder of a download; counts and records what is left out.

    Args:
        root: The folder.
        notes: Receives a line for each thing left out: reason, tab, details.
        progress: Shows the progress of reading the annotations.

    Attributes:
        skipped: Number of things left out, by reason.
        examples: Details of the first thing left out, by reason.
        side_files: Text files to write beside the Arrow files, by name.
    """

    def __init__(self, root: Path, notes: TextIO, progress: Progress) -> None:
        self.root = root
        self.skipped: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.side_files: dict[str, str] = {}
        self._notes = notes
        self._progress = progress
        self._images: set[int] = set()

    def find(self, *names: str) -> Path:
        """Return the first existing path, relative to the download.

        Raises:
            MissingFilesError: None of them exists.
        """
        for name in names:
            if (self.root / name).exists():
                return self.root / name
        raise MissingFilesError(f"{self.root} has no {' or '.join(names)}.")

    def skip(self, reason: str, what: str) -> None:
        """Count and record something that is left out."""
        what = " ".join(what.split())
        self.skipped[reason] += 1
        self.examples.setdefault(reason, what)
        self._notes.write(f"{reason}\t{what}\n")

    def is_new(self, image: str) -> bool:
        """Return whether an image occurs for the first time; skip it otherwise."""
        mark = hash(image)  # a set of millions of names would fill the memory
        if mark in self._images:
            self.skip("repeated image", image)
            return False
        self._images.add(mark)
        return True

    def items(self, path: Path, shape: Any, key: str | None = None) -> Iterator[Any]:
        """Stream a JSON file that is a list, or has a list under ``key``.

        Raises:
            DataError: The file is truncated or not JSON, or no item has the shape.
        """
        expected = f"a list of {described(shape)}"
        expected = f'{{"{key}": {expected}}}' if key else expected
        return self.entries(path, self._json(path, key), shape, expected)

    def lines(self, path: Path, shape: Any) -> Iterator[Any]:
        """Stream a file with one JSON object per line.

        Raises:
            DataError: A line is not JSON, or no line has the shape.
        """
        expected = f"on each line {described(shape)}"
        return self.entries(path, self._json_lines(path), shape, expected)

    def entries(
        self, path: Path, entries: Iterable[Any], shape: Any, expected: str
    ) -> Iterator[Any]:
        """Yield the entries that have the shape, and skip the others.

        Args:
            path: The file of the entries.
            entries: The entries.
            shape: The shape of each.
            expected: Description of the expected file, for the error message.

        Raises:
            DataError: No entry has the shape.
        """
        before, used = self.skipped[_MALFORMED], False
        for entry in self.fitting(entries, shape, path.name):
            used = True
            yield entry
        if not used:
            found = self.examples[_MALFORMED] if self.skipped[_MALFORMED] > before else "no entry"
            raise DataError(f"{path} should contain {expected}. Found: {found}.")

    def fitting(self, entries: Iterable[Any], shape: Any, where: str) -> Iterator[Any]:
        """Yield the entries that have the shape; skip the others, with ``where`` in the notes."""
        for number, entry in enumerate(entries, start=1):
            wrong = mismatch(entry, shape)
            if wrong:
                self.skip(_MALFORMED, f"{where}, entry {number}: {wrong}")
            else:
                yield entry

    def _json(self, path: Path, key: str | None) -> Iterator[Any]:
        task = self._progress.add_task(path.name, total=None, unit="bytes")
        with self._progress.open(path, "rb", task_id=task) as file:
            try:
                yield from ijson.items(file, f"{key}.item" if key else "item", use_float=True)
            except ijson.JSONError as error:
                said = " ".join(str(error).split())  # it spans three lines
                raise DataError(f"{path} is truncated or damaged: {said}") from error
        self._progress.remove_task(task)

    def _json_lines(self, path: Path) -> Iterator[Any]:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(f"{path}, line {number} is damaged: {error}") from error


def described(shape: Any) -> str:
    """Return a shape as a sketch of JSON."""
    if isinstance(shape, Mapping):
        return "{" + ", ".join(f'"{key}": {described(part)}' for key, part in shape.items()) + "}"
    if isinstance(shape, tuple):
        return f"[{', '.join(map(described, shape))}]"
    return " or ".join(_NAMES[kind] for kind in get_args(shape) or (shape,))


def mismatch(entry: Any, shape: Any) -> str:
    """Return how an entry differs from a shape; empty if it does not."""
    if isinstance(shape, Mapping):
        if not isinstance(entry, Mapping):
            return f"{_short(entry)} is not an object with {', '.join(shape)}"
        for key, part in shape.items():
            wrong = mismatch(entry[key], part) if key in entry else "is missing"
            if wrong:
                return f"{key} {wrong} in {_short(entry)}"
        return ""
    if isinstance(shape, tuple):
        if not isinstance(entry, list) or len(entry) < len(shape):
            return f"{_short(entry)} is not a list {described(shape)}"
        return next(filter(None, map(mismatch, entry, shape)), "")
    if type(entry) not in (get_args(shape) or (shape,)):
        return f"{_short(entry)} is not a {described(shape)}"
    if isinstance(entry, str):
        try:
            entry.encode()
        except UnicodeEncodeError:
            return f"{_short(entry)} is not valid Unicode"
    return ""


def _short(entry: Any) -> str:
    return json.dumps(entry)[:100]
