"""Write the report of some runs: ``python -m analysis RUNS [RUNS ...] --out REPORT``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.figures import TWO_COLUMN
from analysis.report import write_report


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Write findings, figures and tables of runs as one HTML page and as files.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, help="folders of runs, or table.parquet")
    add("--out", type=Path, required=True, help="folder of the report")
    add("--title", default="Token reduction: report", help="heading of the page")
    add("--against", nargs="+", action="extend", default=[], metavar="METHOD",
        help="also compare all others with these methods")  # fmt: skip
    add("--highlight", nargs="+", action="extend", default=[], metavar="METHOD",
        help="name only these methods, the baselines and the best in figures")  # fmt: skip
    add("--width", type=float, default=TWO_COLUMN, metavar="INCHES",
        help="width of the figures (one column of a paper: 3.3)")  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        path = write_report(
            given.runs, given.out, given.title, given.against, given.highlight, given.width
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
