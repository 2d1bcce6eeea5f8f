"""All datasets, found automatically."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil

from elip.data.datasets.base import DataError, DatasetSpec


def known_datasets() -> dict[str, type[DatasetSpec]]:
    """Return every dataset of this package by name, in alphabetical order."""
    names = [f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__)]
    members = [each for name in names for each in vars(importlib.import_module(name)).values()]
    specs = [each for each in members if inspect.isclass(each) and issubclass(each, DatasetSpec)]
    return dict(sorted((spec.name, spec) for spec in specs if hasattr(spec, "views")))


def find_dataset(name: str) -> DatasetSpec:
    """Return the dataset with this name or import path (``package.module.Class``).

    Raises:
        DataError: There is no such dataset; the message suggests similar names.
    """
    known = known_datasets()
    if name in known:
        return known[name]()
    module, _, member = name.rpartition(".")
    if not module:
        near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise DataError(f"There is no dataset {name!r}.{hint} Known: {', '.join(known)}.")
    try:
        found: DatasetSpec = getattr(importlib.import_module(module), member)()
    except (ImportError, AttributeError) as error:
        raise DataError(f"The dataset {name!r} cannot be imported: {error}") from error
    return found
