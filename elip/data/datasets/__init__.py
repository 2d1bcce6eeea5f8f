"""All datasets: one file each, found automatically."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil

from elip.data.datasets.base import Columns, DataError, DatasetSpec, MissingFilesError, Phase, View

__all__ = [
    "Columns", "DataError", "DatasetSpec", "MissingFilesError", "Phase", "View",
    "find_dataset", "known_datasets",
]  # fmt: skip


def known_datasets() -> dict[str, type[DatasetSpec]]:
    """Return every dataset of this package by name, in alphabetical order."""
    modules = (
        importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)
    )
    found = {
        member.name: member
        for module in modules
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, DatasetSpec) and hasattr(member, "views")
    }
    return dict(sorted(found.items()))


def find_dataset(name: str) -> DatasetSpec:
    """Return the dataset with this name or import path (``package.module.Class``).

    Raises:
        DataError: There is no such dataset; the message suggests similar names.
    """
    known = known_datasets()
    if name in known:
        return known[name]()
    if "." not in name:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise DataError(f"There is no dataset {name!r}.{hint} Known: {', '.join(known)}.")
    module, _, member = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), member)
    except (ImportError, SyntaxError, AttributeError, TypeError, ValueError) as error:
        raise DataError(f"The dataset {name!r} cannot be imported: {error}") from error
    if not (inspect.isclass(found) and issubclass(found, DatasetSpec)):
        raise DataError(f"{name!r} is not a DatasetSpec class.")
    if not (hasattr(found, "name") and hasattr(found, "views")):
        raise DataError(f"The DatasetSpec class {name!r} must define `name` and `views`.")
    return found()
