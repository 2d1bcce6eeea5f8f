"""What a converter works with: the official download and the rows made from it.

The entries of an annotation file are checked against a shape: a type, or several (``str | int``); a
mapping from keys to shapes; or, for a JSON list, a tuple with the shapes of its first elements.
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
    images: Mapping[str, Path | bytes]  # for each image column the image file, or its content
    values: Mapping[str, Any]  # the other columns
    change: Callable[[bytes], bytes] | None = None  # of each image file; None keeps the bytes


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

    def items(
        self, path: Path, shape: Any, place: str = "item", entries: Iterable[Any] | None = None
    ) -> Iterator[Any]:
        """Stream the entries of an annotation file that have a shape; skip the others.

        Args:
            path: The file.
            shape: The shape of an entry.
            place: Where JSON has the entries: "item" for a list, "KEY.item" for a list in an object
                under KEY, and "" for one object per line.
            entries: The entries, if the file is not JSON.
        """
        before, used = self.skipped[_MALFORMED], False
        for entry in self.fitting(entries or json_entries(path, place), shape, path.name):
            used = True
            yield entry
        if not used:
            found = self.examples[_MALFORMED] if self.skipped[_MALFORMED] > before else "nothing"
            key = place.removesuffix("item").rstrip(".")
            where = f'in a list under "{key}"' if key else "in a list" if place else "on each line"
            raise DataError(f"{path} should have {described(shape)} {where}. Found: {found}")

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


def json_entries(path: Path, place: str) -> Iterator[Any]:
    """Stream the entries of a JSON file; see `Download.items` for ``place``."""
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
    return type(entry) in (get_args(shape) or (shape,))


def described(shape: Any) -> str:
    """Return a shape as a sketch of JSON."""
    if isinstance(shape, Mapping):
        return "{" + ", ".join(f'"{key}": {described(part)}' for key, part in shape.items()) + "}"
    if isinstance(shape, tuple):
        return f"[{', '.join(map(described, shape))}]"
    return " or ".join(kind.__name__ for kind in get_args(shape) or (shape,))
