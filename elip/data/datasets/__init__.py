"""The shelf: datasets, one file each, found by themselves."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil

from elip.data.datasets.base import Columns, DataError, DatasetSpec, MissingFilesError, Phase, View

__all__ = [
    "Columns",
    "DataError",
    "MissingFilesError",
    "Phase",
    "DatasetSpec",
    "View",
    "find_dataset",
    "known_datasets",
]


def known_datasets() -> dict[str, type[DatasetSpec]]:
    """Return every dataset of this package by its name, in alphabetical order."""
    found: dict[str, type[DatasetSpec]] = {}
    for module in pkgutil.iter_modules(__path__):
        path = f"{__name__}.{module.name}"
        for member in vars(importlib.import_module(path)).values():
            if (
                inspect.isclass(member)
                and issubclass(member, DatasetSpec)
                and hasattr(member, "views")
            ):
                found[member.name] = member
    return dict(sorted(found.items()))


def find_dataset(name: str) -> DatasetSpec:
    """Return the dataset with that name, or of that import path (``package.module.Class``).

    Raises:
        DataError: If there is none; the message gives the nearest names.
    """
    known = known_datasets()
    if name in known:
        return known[name]()
    if "." in name:
        return _imported(name)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise DataError(f"There is no dataset {name!r}.{hint} Known: {', '.join(known)}.")


def _imported(path: str) -> DatasetSpec:
    module, _, name = path.rpartition(".")
    try:
        member = getattr(importlib.import_module(module), name)
    except (ImportError, SyntaxError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"The dataset {path!r} cannot be imported: {error}") from error
    if not (inspect.isclass(member) and issubclass(member, DatasetSpec)):
        raise DataError(f"{path!r} is not a DatasetSpec class.")
    lacking = [each for each in ("name", "views") if not hasattr(member, each)]
    if lacking:
        raise DataError(f"The DatasetSpec class {path!r} states no {' and no '.join(lacking)}.")
    return member()
