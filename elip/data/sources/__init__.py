"""The shelf: datasets, one file each, found by themselves."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil

from elip.data.sources.base import Columns, DataError, MissingFilesError, Phase, Source, View

__all__ = [
    "Columns",
    "DataError",
    "MissingFilesError",
    "Phase",
    "Source",
    "View",
    "find_source",
    "sources",
]


def sources() -> dict[str, type[Source]]:
    """Return every source of this package by its name, in alphabetical order."""
    found: dict[str, type[Source]] = {}
    for module in pkgutil.iter_modules(__path__):
        path = f"{__name__}.{module.name}"
        for member in vars(importlib.import_module(path)).values():
            if inspect.isclass(member) and issubclass(member, Source) and hasattr(member, "views"):
                found[member.name] = member
    return dict(sorted(found.items()))


def find_source(name: str) -> Source:
    """Return the source with that name, or of that import path (``package.module.Class``).

    Raises:
        DataError: If there is none; the message gives the nearest names.
    """
    known = sources()
    if name in known:
        return known[name]()
    if "." in name:
        return _imported(name)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise DataError(f"There is no dataset {name!r}.{hint} Known: {', '.join(known)}.")


def _imported(path: str) -> Source:
    module, _, name = path.rpartition(".")
    try:
        member = getattr(importlib.import_module(module), name)
    except (ImportError, SyntaxError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"The dataset {path!r} cannot be imported: {error}") from error
    if not (inspect.isclass(member) and issubclass(member, Source)):
        raise DataError(f"{path!r} is not a Source class.")
    lacking = [each for each in ("name", "views") if not hasattr(member, each)]
    if lacking:
        raise DataError(f"The Source class {path!r} states no {' and no '.join(lacking)}.")
    return member()
