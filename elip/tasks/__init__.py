"""The tasks, one file each: heads, losses and metrics on top of METER.

A `Task` in a new file of this folder is available at once on the command line, in grids and in the
contract tests. A third of the room is retrieval, which shares the work between all pairs.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from elip.tasks.base import Task


def tasks() -> dict[str, type[Task]]:
    """Return every task of this package by class name, in alphabetical order."""
    from elip.tasks.base import Task

    found: dict[str, type[Task]] = {}
    for module in pkgutil.iter_modules(__path__):
        path = f"{__name__}.{module.name}"
        for name, member in vars(importlib.import_module(path)).items():
            concrete = inspect.isclass(member) and not inspect.isabstract(member)
            if concrete and issubclass(member, Task) and member.__module__ == path:
                found[name] = member
    return dict(sorted(found.items()))
