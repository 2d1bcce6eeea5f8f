"""Files that are there wholly or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a path to write to; what was written takes the name ``path`` in one step at the end.

    The temporary file lies in the same folder, which is made if need be. Where the block raises, it
    is removed and a file that was at ``path`` before is untouched.

    Args:
        path: The file that is wanted.
        durable: Force the content to disk first, so that not even a power cut leaves half of it.
            For what one process alone writes: what a killed one left is written over, where
            other files' remains wait for somebody to remove them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = "" if durable else f".{os.getpid()}"
    temporary = path.with_name(f".{path.name}{writer}.part")
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Rename a file, where it is there, to its name with the next number: ``log-1.txt``."""
    if path.exists():
        earlier = (each.stem.removeprefix(f"{path.stem}-") for each in path.parent.glob("*-*"))
        number = max((int(each) for each in earlier if each.isdigit()), default=0) + 1
        path.rename(path.with_stem(f"{path.stem}-{number}"))
