"""Command line: the built-in data in other sizes than the default.

``python -m elip.data.shapes --root data --pixels 96 --train 20000``
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from elip.data.shapes.write import Options, write_shapes


def main() -> None:
    """Make the data in ``ROOT/shapes``, in place of what is there if that has other options."""
    parser = argparse.ArgumentParser(
        prog="python -m elip.data.shapes", description="Draw the built-in shapes data."
    )
    parser.add_argument("--root", type=Path, default=Path("data"), help="the data root")
    for field in fields(Options):
        parser.add_argument(f"--{field.name}", type=int, default=field.default)
    given = vars(parser.parse_args())
    write_shapes(given.pop("root") / "shapes", Options(**given))


if __name__ == "__main__":
    main()
