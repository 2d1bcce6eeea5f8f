"""Draw the built-in data with other options than the default.

``python -m elip.data.shapes --root data --pixels 96 --train 20000``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from elip.data.datasets.base import DataError
from elip.data.shapes import Options, write_shapes


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the data in ``ROOT/shapes``, and replace existing data with other options."""
    parser = argparse.ArgumentParser(
        prog="python -m elip.data.shapes", description="Draw the built-in shapes data."
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="the data root")
    for field in fields(Options):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    given = vars(parser.parse_args(arguments))
    try:
        write_shapes(given.pop("root") / "shapes", Options(**given))
    except DataError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
