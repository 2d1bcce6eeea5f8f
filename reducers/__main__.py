"""Print the shelf, or one method's card: ``python -m reducers [show NAME]``."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
from difflib import get_close_matches

from reducers import Reducer, shelf

_COLUMNS = ("name", "family", "needs", "placement", "trained", "source")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m reducers", description="The reducer shelf.")
    commands = parser.add_subparsers(dest="command")
    show = commands.add_parser("show", help="print the card of one method")
    show.add_argument("name", help="class name, as in the table")
    given = parser.parse_args(arguments)
    try:
        text = table() if given.command is None else card(given.name)
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(text + "\n")
    return 0


def table() -> str:
    """Return all methods of the shelf, one a line."""
    rows = [_COLUMNS] + [
        (
            name,
            method.family,
            " ".join(sorted(_needs(method))) or "-",
            method.placement,
            "yes" if method.trained else "no",
            _short(_section(method, "Source:")),
        )
        for name, method in shelf().items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )


def card(name: str) -> str:
    """Return one method's description, options and properties.

    Raises:
        ValueError: There is no such method; the message gives the nearest names.
    """
    methods = shelf()
    if name not in methods:
        lower = {known.lower(): known for known in methods}
        near = [lower[match] for match in get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"No reducer {name!r}.{hint} The shelf holds {', '.join(methods)}.")
    method = methods[name]
    properties = {
        "family": method.family,
        "placement": method.placement,
        "needs": ", ".join(sorted(_needs(method))) or "nothing",
        "trained": "yes" if method.trained else "no",
        "count": "fixed" if method.fixed_count else "depends on content (with a mask)",
    }
    lines = [f"{key:8} {value}" for key, value in properties.items()]
    doc = inspect.cleandoc(method.__doc__ or "")
    return "\n\n".join([_signature(method), "\n".join(lines), doc])


def _signature(method: type[Reducer]) -> str:
    options = list(inspect.signature(method).parameters.values())
    if not options:
        return f"{method.__name__}()"
    listed = textwrap.indent(",\n".join(map(_option, options)), "    ")
    return f"{method.__name__}(\n{listed},\n)"


def _option(option: inspect.Parameter) -> str:
    return f"{option.name}: {option.annotation} = {option.default!r}"


def _needs(method: type[Reducer]) -> frozenset[str]:
    """The signals that the method needs with its default options."""
    return frozenset(method().needs)


def _section(method: type[Reducer], title: str) -> str:
    """The paragraph of the docstring that starts with ``title``, on one line."""
    lines = inspect.cleandoc(method.__doc__ or "").splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(title)), None)
    if start is None:
        return ""
    kept = []
    for line in lines[start:]:
        if not line or line.startswith("Differs:"):
            break
        kept.append(line)
    return " ".join(kept)[len(title) :].strip()


def _short(source: str) -> str:
    """Authors, year and identifier of the first work that a source names."""
    identifier = re.search(r"(arXiv|doi):[\w./-]*\w", source)
    year = re.search(r"\b(19|20)\d\d\b", source)
    if year is None:
        return source.split(". ")[0].rstrip(".")
    found = [source.split(", ")[0].split(" (")[0]]
    found += [match.group() for match in (year, identifier) if match is not None]
    return ", ".join(found)


if __name__ == "__main__":
    raise SystemExit(main())
