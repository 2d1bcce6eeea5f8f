"""List the reducers, or describe one: ``python -m reducers [show NAME]``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from difflib import get_close_matches

from reducers import Reducer, shelf

_COLUMNS = ("name", "family", "needs", "source")


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m reducers", description="The token reducers.")
    commands = parser.add_subparsers(dest="command")
    show = commands.add_parser("show", help="describe one method and its options")
    show.add_argument("name", help="class name, or import path of a class in your package")
    given = parser.parse_args(arguments)
    try:
        text = table() if given.command is None else card(find(given.name))
    except (ValueError, ImportError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(text + "\n")
    return 0


def find(name: str) -> type[Reducer]:
    """Return a method by its class name or import path.

    Raises:
        ImportError: The path cannot be imported.
        ValueError: No reducer has this name; the message gives similar names.
    """
    methods = shelf()
    module, _, attribute = name.rpartition(".")
    if module:
        found = getattr(importlib.import_module(module), attribute, None)
        if not (inspect.isclass(found) and issubclass(found, Reducer)):
            raise ValueError(f"{module} has no reducer class {attribute!r}.")
        return found
    if name in methods:
        return methods[name]
    lower = {known.lower(): known for known in methods}
    near = [lower[match] for match in get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise ValueError(
        f"No reducer {name!r}.{hint} Choose from {', '.join(methods)}, or give an import path such "
        "as my_package.module.Class."
    )


def table() -> str:
    """Return all methods, one per line."""
    rows = [_COLUMNS]
    for name, method in shelf().items():
        needs = " ".join(sorted(method().needs)) or "-"
        rows.append((name, method.family, needs, _source(method)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (map(str.ljust, row, widths) for row in rows)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def card(method: type[Reducer]) -> str:
    """Return one method's options, properties and description."""
    try:
        needs = ", ".join(sorted(method().needs)) or "nothing"
    except TypeError:  # options without defaults
        needs = "depends on the options"
    options = [
        f"\n    {option.name}: {_written(option.annotation)}"
        + ("" if option.default is option.empty else f" = {option.default!r}")
        for option in inspect.signature(method).parameters.values()
        if option.kind is option.POSITIONAL_OR_KEYWORD or option.kind is option.KEYWORD_ONLY
    ]
    listed = ",".join(options) + ",\n" if options else ""
    signature = f"{method.__name__}({listed})"
    properties = {
        "family": method.family,
        "placement": method.placement,
        "needs": needs,
        "trained": "yes" if method.trained else "no",
        "count": "fixed" if method.fixed_count else "depends on the image (with a mask)",
    }
    lines = "\n".join(f"{key:10} {value}" for key, value in properties.items())
    doc = inspect.cleandoc(method.__doc__ or "")
    return f"{signature}\n\n{lines}\n\n{doc}"


def _written(annotation: object) -> str:
    """Return a type as the source states it; a module without postponed annotations has classes."""
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _source(method: type[Reducer]) -> str:
    """Return authors and year of the first source in the docstring."""
    doc = " ".join(inspect.cleandoc(method.__doc__ or "").split())
    source = doc.partition("Source: ")[2].partition(" Differs:")[0]
    year = re.search(r"\b(19|20)\d\d\b", source)
    if year is None:
        return source.split(". ")[0].rstrip(".")
    return source.split(", ")[0].split(" (")[0] + ", " + year.group()


if __name__ == "__main__":
    raise SystemExit(main())
