"""What a converter makes of the entries of a download: rows, and notes about what is amiss."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """A row to be written.

    Attributes:
        images: Image files for the schema's image columns, in their order.
        values: The other columns.
    """

    images: tuple[Path, ...]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Note:
    """Something that a user should know about one entry of the download.

    Attributes:
        reason: What it is; begins with "left out:" or "kept:", and is what notes are counted by.
        what: Which entry or file.
    """

    reason: str
    what: str


Parsed = Iterable[Row | Note]


def parsed(entries: Iterable[Any], parse: Callable[[Any], Parsed]) -> Parsed:
    """Parse entries one by one; one that is not as the layout says becomes a note."""
    for entry in entries:
        try:
            rows = list(parse(entry))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            reason = f"{type(error).__name__} {error}"
            rows = [_unexpected(f"{reason} in", entry)]
        yield from rows


def having(entries: Iterable[Any], *keys: str) -> Iterator[Mapping[str, Any] | Note]:
    """Return the entries that have all these keys, and a note in place of each other one."""
    for entry in entries:
        missing = [key for key in keys if not isinstance(entry, Mapping) or key not in entry]
        yield _unexpected(f"no {', '.join(missing)} in", entry) if missing else entry


def _unexpected(reason: str, entry: Any) -> Note:
    return Note("left out: entry is not as expected", f"{reason} {str(entry)[:200]}")


class NoteFile:
    """Notes as tab-separated lines, under their name only when the conversion of a file is done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.part")

    def __enter__(self) -> NoteFile:
        """Begin a temporary file."""
        self._path.unlink(missing_ok=True)
        self._file = self._temporary.open("w", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Give the file its name if it holds anything and nothing went wrong."""
        some = self._file.tell() > 0
        self._file.close()
        if kind is None and some:
            os.replace(self._temporary, self._path)
        self._temporary.unlink(missing_ok=True)

    def add(self, notes: Iterable[Note]) -> None:
        """Add notes, a line each: the reason, a tab, what it is about."""
        for note in notes:
            self._file.write(f"{note.reason}\t{' '.join(note.what.split())}\n")


def read_reasons(path: Path) -> Iterator[str]:
    """Return the reason of each note in a file; nothing if there is no file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield line.split("\t")[0]
