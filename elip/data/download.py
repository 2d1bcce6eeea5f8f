"""Reading an official download: entries are checked against a shape, and losses are recorded.

A shape is a type, or several (``str | int``); a mapping from keys to shapes; or, for a JSON list, a
tuple with the shapes of its first elements.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, get_args

import ijson

from elip.data.datasets.base import DataError, MissingFilesError

_MALFORMED = "malformed entry"


@dataclass(frozen=True)
class Row:
    """A row that a converter writes."""

    file: str  # name of the Arrow file
    images: Mapping[str, Path]  # the image of each image column
    values: Mapping[str, Any]  # the other columns
    change: Callable[[bytes], bytes] | None = None  # of each image; None keeps the bytes


class Download:
    """The folder of a download; counts what is left out, and writes it to ``notes``."""

    def __init__(self, root: Path, notes: TextIO) -> None:
        self.root = root
        self.skipped: Counter[str] = Counter()  # by reason
        self.examples: dict[str, str] = {}  # the first one, by reason
        self.side_files: dict[str, str] = {}  # texts to write beside the Arrow files, by name
        self._notes = notes
        self._images: set[int] = set()

    def find(self, *names: str) -> Path:
        """Return the first path in the download that exists."""
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

    def items(self, path: Path, shape: Any, place: str = "item") -> Iterator[Any]:
        """Stream the entries of a JSON file that have a shape; skip the others.

        The place "item" means that the file is a list; "KEY.item", that the list is in an object
        under KEY; and "", that there is one object per line.
        """
        return self.entries(path, _json(path, place), shape, place)

    def entries(self, path: Path, entries: Iterable[Any], shape: Any, place: str) -> Iterator[Any]:
        """Stream the entries of another kind of file, like `items`."""
        before, used = self.skipped[_MALFORMED], False
        for entry in self.fitting(entries, shape, path.name):
            used = True
            yield entry
        if not used:
            found = self.examples[_MALFORMED] if self.skipped[_MALFORMED] > before else "nothing"
            key = place.removesuffix(".item")
            where = f'in a list under "{key}"' if key != "item" else "in a list"
            raise DataError(
                f"{path} should have {described(shape)} {where if place else 'on each line'}. "
                f"Found: {found}"
            )

    def fitting(self, entries: Iterable[Any], shape: Any, where: str) -> Iterator[Any]:
        """Yield the entries that have the shape; skip the others, with ``where`` in the notes."""
        for number, entry in enumerate(entries, start=1):
            if fits(entry, shape):
                yield entry
            else:
                found = f"{json.dumps(entry)[:100]} is not {described(shape)}"
                self.skip(_MALFORMED, f"{where}, entry {number}: {found}")

    def caption_rows(
        self, file: str, path: Path, captions: Iterable[str], image_id: str, split: str
    ) -> Iterator[Row]:
        """Yield the row of one image; skip empty captions, and images without captions."""
        kept = []
        for caption in captions:
            if caption.strip():
                kept.append(caption)
            else:
                self.skip("empty caption", image_id)
        if kept:
            values = {"caption": kept, "image_id": image_id, "split": split}
            yield Row(file, {"image": path}, values)
        else:
            self.skip("image without a caption", image_id)


def _json(path: Path, place: str) -> Iterator[Any]:
    with path.open("rb") as file:
        try:
            yield from ijson.items(file, place, multiple_values=not place, use_float=True)
        except ijson.JSONError as error:
            said = " ".join(str(error).split())  # it spans three lines
            raise DataError(f"{path} is truncated or damaged: {said}") from error


def fits(entry: Any, shape: Any) -> bool:
    """Return whether an entry of a JSON file has a shape."""
    if isinstance(shape, Mapping):
        return isinstance(entry, Mapping) and all(fits(entry.get(k), v) for k, v in shape.items())
    if isinstance(shape, tuple):
        return isinstance(entry, list) and len(entry) >= len(shape) and all(map(fits, entry, shape))
    if isinstance(entry, str) and entry.encode(errors="replace").decode() != entry:
        return False  # half of a surrogate pair
    return type(entry) in (get_args(shape) or (shape,))


def described(shape: Any) -> str:
    """Return a shape as a sketch of JSON."""
    if isinstance(shape, Mapping):
        return "{" + ", ".join(f'"{key}": {described(part)}' for key, part in shape.items()) + "}"
    if isinstance(shape, tuple):
        return f"[{', '.join(map(described, shape))}]"
    return " or ".join(kind.__name__ for kind in get_args(shape) or (shape,))
