"""The checkpoints of a run: where they lie, which are whole, and which of them speaks for it."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
"""Folder of the checkpoints in a run directory."""

BEST, LAST = "best", "last"
"""The two that it keeps: of the best validation, and of the last step."""


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read or used; the message says which one and why."""


def checkpoint_path(run: Path, name: str) -> Path:
    """Return where a run keeps the checkpoint ``best`` or ``last``."""
    return run / FOLDER / f"{name}.ckpt"


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end: the directory of a zip archive comes last."""
    return path.is_file() and zipfile.is_zipfile(path)


def checkpoint_in(path: str | Path) -> Path:
    """Return the best whole checkpoint of a run directory, or else its last; a file as it is.

    Args:
        path: A run directory or a file; ``~`` is the home folder.

    Raises:
        FileNotFoundError: The folder holds neither; the message lists what it holds.
        CheckpointError: It does, but none was written to its end.
    """
    path = Path(os.path.expanduser(path))  # where there is no such user, as it is
    if not path.is_dir():
        return path
    return first_whole([checkpoint_path(path, name) for name in (BEST, LAST)])


def first_whole(choices: Sequence[Path]) -> Path:
    """Return the first checkpoint that is whole; a warning says which one it stands in for.

    Args:
        choices: The checkpoints, the wanted one first.

    Raises:
        FileNotFoundError: There is none; the message lists those that lie there.
        CheckpointError: There is one, but it was not written to its end.
    """
    for path in choices:
        if is_whole(path):
            if path != choices[0]:
                said = "half written" if choices[0].is_file() else "missing"
                log.warning("%s is %s; %s takes its place.", choices[0], said, path.name)
            return path
    for path in choices:
        if path.is_file():
            raise CheckpointError(
                f"{path} is not a whole checkpoint: it was cut short, or is another kind of file. "
                "Delete it, and begin anew or go on from another checkpoint."
            )
    folder = choices[0].parent
    there = sorted(str(found) for found in folder.glob("*.ckpt"))
    raise FileNotFoundError(
        f"No checkpoint {choices[0]}. "
        + (f"There are {there}." if there else f"{folder} holds none: run fit first.")
    )
