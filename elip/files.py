"""Files that are there wholly or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a path to write to; what was written takes the name ``path`` in one step at the end.

    The temporary file lies in the same folder, which is made if need be. Where the block raises, it
    is removed and a file that was at ``path`` before is untouched.

    Args:
        path: The file that is wanted.
        durable: Force the content to disk first, so that not even a power cut leaves half of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_remains(folder: Path) -> None:
    """Remove what killed processes were writing in a folder that belongs to this one alone."""
    for temporary in folder.glob(".*.part"):
        temporary.unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Rename a file, where it is there, to its name with the next number: ``log-1.txt``."""
    with suppress(FileNotFoundError):  # none, or another process was faster
        path.stat()
        earlier = (each.stem.removeprefix(f"{path.stem}-") for each in path.parent.glob("*-*"))
        number = max((int(each) for each in earlier if each.isdigit()), default=0) + 1
        path.rename(path.with_stem(f"{path.stem}-{number}"))
