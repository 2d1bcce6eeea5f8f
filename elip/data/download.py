"""An official download, as the converters read it: entries of a known shape, losses named.

A shape is what an entry must hold: a type, or several (``str | int``); a mapping of keys to shapes;
or, for a JSON list, a tuple with the shapes of its first elements.
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

_MISFIT = "entry that is not as expected"
_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", list: "list"}


class Download:
    """The folder of a download; it counts and names what is left out.

    Args:
        root: The folder.
        notes: Takes a line for each thing that is left out: the reason, a tab, what it was.
        progress: Shows how far the annotations are read.

    Attributes:
        skipped: How often something was left out, by reason.
        examples: The first thing that was left out, by reason.
        side_files: Text files to be written beside the Arrow files, by name; a dataset adds them.
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
        """Return the first of these paths, relative to the download, that exists.

        Raises:
            MissingFilesError: If none does.
        """
        for name in names:
            if (self.root / name).exists():
                return self.root / name
        raise MissingFilesError(f"{self.root} has no {' or '.join(names)}.")

    def skip(self, reason: str, what: str) -> None:
        """Count and name something that is left out."""
        what = " ".join(what.split())
        self.skipped[reason] += 1
        self.examples.setdefault(reason, what)
        self._notes.write(f"{reason}\t{what}\n")

    def is_new(self, image: str) -> bool:
        """Whether an image is named for the first time; later times are to be left out."""
        mark = hash(image)  # not the name: a set of millions of names fills the memory
        if mark in self._images:
            self.skip("image that is listed again", image)
            return False
        self._images.add(mark)
        return True

    def items(self, path: Path, shape: Any, key: str | None = None) -> Iterator[Any]:
        """Read the list that a large JSON file holds, or that it holds under a key.

        Raises:
            DataError: If the file is cut short or not JSON, or no item has the shape.
        """
        expected = f"a list of {described(shape)}"
        expected = f'{{"{key}": {expected}}}' if key else expected
        return self.entries(path, self._json(path, key), shape, expected)

    def lines(self, path: Path, shape: Any) -> Iterator[Any]:
        """Read a file of one JSON object a line.

        Raises:
            DataError: If a line is not JSON, or none has the shape.
        """
        expected = f"on each line {described(shape)}"
        return self.entries(path, self._json_lines(path), shape, expected)

    def entries(
        self, path: Path, entries: Iterable[Any], shape: Any, expected: str
    ) -> Iterator[Any]:
        """Return the entries that have the shape, and leave out the others.

        Args:
            path: Where they come from.
            entries: The entries.
            shape: What each must hold.
            expected: What the file should hold, for the message.

        Raises:
            DataError: If none has the shape.
        """
        before, used = self.skipped[_MISFIT], False
        for entry in self.fitting(entries, shape, path.name):
            used = True
            yield entry
        if not used:
            found = self.examples[_MISFIT] if self.skipped[_MISFIT] > before else "no entry"
            raise DataError(f"{path} should hold {expected}. Found: {found}.")

    def fitting(self, entries: Iterable[Any], shape: Any, where: str) -> Iterator[Any]:
        """Return the entries that have the shape; leave out the others, named after ``where``."""
        for number, entry in enumerate(entries, start=1):
            wrong = misfit(entry, shape)
            if wrong:
                self.skip(_MISFIT, f"{where}, entry {number}: {wrong}")
            else:
                yield entry

    def _json(self, path: Path, key: str | None) -> Iterator[Any]:
        task = self._progress.add_task(path.name, total=None, unit="bytes")
        with self._progress.open(path, "rb", task_id=task) as file:
            try:
                yield from ijson.items(file, f"{key}.item" if key else "item", use_float=True)
            except ijson.JSONError as error:
                said = " ".join(str(error).split())  # it shows the place, over three lines
                raise DataError(f"{path} is cut short or damaged: {said}") from error
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


def misfit(entry: Any, shape: Any) -> str:
    """Return what keeps an entry from having a shape; nothing if it has it."""
    if isinstance(shape, Mapping):
        if not isinstance(entry, Mapping):
            return f"{_short(entry)} is no object with {', '.join(shape)}"
        for key, part in shape.items():
            wrong = misfit(entry[key], part) if key in entry else "is missing"
            if wrong:
                return f"{key} {wrong} in {_short(entry)}"
        return ""
    if isinstance(shape, tuple):
        if not isinstance(entry, list) or len(entry) < len(shape):
            return f"{_short(entry)} is no list {described(shape)}"
        return next(filter(None, map(misfit, entry, shape)), "")
    if type(entry) not in (get_args(shape) or (shape,)):
        return f"{_short(entry)} is no {described(shape)}"
    if isinstance(entry, str):
        try:
            entry.encode()
        except UnicodeEncodeError:
            return f"{_short(entry)} holds half a character"
    return ""


def _short(entry: Any) -> str:
    return json.dumps(entry)[:100]
