"""Types of command-line arguments: what they refuse, argparse says in one message."""

from __future__ import annotations

import os
from argparse import ArgumentTypeError
from pathlib import Path


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return number


def output_file(text: str) -> Path:
    """Read the path of a file to write, before the work that it is to hold is done."""
    if os.path.isdir(text):
        raise ArgumentTypeError(f"{text} is a folder; give the name of a file")
    output_folder(os.path.dirname(text))
    return Path(text)


def output_folder(text: str) -> Path:
    """Read the path of a folder to write into, which need not be there yet."""
    path = Path(text)
    for place in (path, *path.parents):
        if os.path.lexists(place):  # the nearest that is there
            if not os.path.isdir(place):
                raise ArgumentTypeError(f"{place} is a file; give a folder")
            break
    return path
