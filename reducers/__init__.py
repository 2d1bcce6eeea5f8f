"""Vision-token reducers, one file each.

A `Reducer` class in a new file of this folder appears in the command line, grids, contract tests,
tables and plots. Name a reducer of another package by its import path.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from reducers.contract import EncodedText, Host, Probe, Reduced, Reducer, Signal, Signals
from reducers.identity import Identity

__all__ = [
    "EncodedText", "Host", "Identity", "Probe", "Reduced", "Reducer", "Signal", "Signals", "shelf",
]  # fmt: skip


def shelf() -> dict[str, type[Reducer]]:
    """Return every reducer of this package by class name, in alphabetical order."""
    found: dict[str, type[Reducer]] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_"):
            continue
        members = vars(importlib.import_module(f"{__name__}.{module.name}"))
        for name, member in members.items():
            if (
                inspect.isclass(member)
                and issubclass(member, Reducer)
                and not inspect.isabstract(member)
                and member.__module__ == f"{__name__}.{module.name}"
            ):
                found[name] = member
    return dict(sorted(found.items()))
