"""What a converter makes of the entries of a download: rows, and notes about what is amiss."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

from elip.files import whole_file


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
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
            rows = [unexpected(f"{type(error).__name__} {error} in", entry)]
        yield from rows


def having(entries: Iterable[Any], **kinds: type | UnionType) -> Iterator[Mapping[str, Any] | Note]:
    """Return the entries that have values of these types, and a note in place of each other one."""
    for entry in entries:
        wrong = [
            key
            for key, kind in kinds.items()
            if not isinstance(entry, Mapping) or not isinstance(entry.get(key), kind)
        ]
        yield unexpected(f"no usable {', '.join(wrong)} in", entry) if wrong else entry


def unexpected(reason: str, entry: Any) -> Note:
    """Return the note about an entry that no row can be made of."""
    return Note("left out: entry is not as expected", f"{reason} {str(entry)[:200]}")


@contextmanager
def note_file(path: Path) -> Iterator[Callable[[Iterable[Note]], None]]:
    """Yield what adds notes to a file, a line each: the reason, a tab, what it is about.

    The file takes its name only when the conversion is done, and there is none without notes.
    """

    def add(notes: Iterable[Note]) -> None:
        for note in notes:
            file.write(f"{note.reason}\t{' '.join(note.what.split())}\n")

    path.unlink(missing_ok=True)
    with (
        whole_file(path) as temporary,
        # JSON may hold half a character, which UTF-8 may not: it is written as an escape.
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        yield add
    if path.stat().st_size == 0:
        path.unlink()


def read_reasons(path: Path) -> Iterator[str]:
    """Return the reason of each note in a file; nothing if there is no file."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield line.split("\t")[0]
