"""Write the report of some runs: ``python -m analysis RUNS [RUNS ...] --out REPORT``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from analysis.report import write_report


def show_progress(items: Sequence[Any], words: str) -> Iterable[Any]:
    """Pass items on, with a progress bar on a terminal."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    return track(items, words, console=console, transient=True, disable=hidden)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Findings, figures and tables of finished runs, as one HTML page and as files.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or table.parquet")
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--title", default="Token reduction: report", help="heading of the page")
    parser.add_argument(
        "--against", nargs="+", action="extend", default=[], metavar="METHOD",
        help="compare all others with these methods too",
    )  # fmt: skip
    parser.add_argument(
        "--highlight", nargs="+", action="extend", default=[], metavar="METHOD",
        help="name these methods in figures of one column, beside the baselines and the best",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    try:
        path = write_report(
            given.runs, given.out, given.title, given.against, given.highlight, show_progress
        )
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
