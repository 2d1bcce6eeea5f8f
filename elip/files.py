"""Atomic writing of files, and reading of YAML without silent losses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml


@contextmanager
def whole_file(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to ``path`` at the end.

    If the block raises, the temporary file is removed and an older ``path`` is untouched.

    Args:
        path: The file to write; its folder is created.
        durable: Sync the content to disk first, so that it survives a power cut.
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
    """Remove the temporary files of killed processes; no other process may be writing here."""
    for temporary in folder.glob(".*.part"):
        temporary.unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Rename a file, if it exists, to the next free numbered name, such as ``log-1.txt``."""
    with suppress(FileNotFoundError):  # it does not exist, or another process renamed it
        path.stat()
        earlier = (each.stem.removeprefix(f"{path.stem}-") for each in path.parent.glob("*-*"))
        number = max((int(each) for each in earlier if each.isdigit()), default=0) + 1
        path.rename(path.with_stem(f"{path.stem}-{number}"))


class UniqueKeyLoader(yaml.SafeLoader):
    """Refuses duplicate keys in a mapping; YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Construct a mapping.

        Raises:
            yaml.MarkedYAMLError: A key occurs twice.
        """
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1 and name != "<<"]:
            said = f"duplicate key: {twice[0]} appears twice"
            raise yaml.MarkedYAMLError(problem=said, problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)
