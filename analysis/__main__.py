"""Write the report of some runs: ``python -m analysis RUNS [RUNS ...] --out REPORT``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from analysis.report import write_report
from elip.arguments import output_folder, positive
from elip.provenance import cores


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Figures, tables and one HTML page from the records of finished runs.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or packed files")
    parser.add_argument("--out", type=output_folder, required=True, help="folder of the report")
    parser.add_argument("--title", default="Token reduction: report", help="heading of the page")
    parser.add_argument(
        "--against", action="append", default=[], metavar="METHOD",
        help="compare all others with this method too; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--may-differ", action="append", default=[], metavar="OPTION",
        help="compare runs that differ in this option (model.optimization.learning_rate), or in "
        "the content of this input (test_data); may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--literature", action="store_true", help="draw published results as hollow markers"
    )
    parser.add_argument(
        "--jobs", type=positive, default=min(4, cores()), help="processes that draw"
    )
    given = parser.parse_args(arguments)
    try:
        path = write_report(
            given.runs,
            given.out,
            given.title,
            tuple(given.against),
            given.literature,
            given.jobs,
            tuple(given.may_differ),
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
