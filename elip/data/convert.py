"""Command line: official downloads to Arrow files.

``python -m elip.data.convert NAME --root RAW --out ARROWS``
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from elip.data.conversion import Conversion
from elip.data.datasets import DataError, find_dataset, known_datasets
from elip.provenance import cores


def convert(
    name: str, raw: Path, out: Path, workers: int = 1, check: bool = True, progress: bool = True
) -> Mapping[str, int]:
    """Convert one dataset.

    Args:
        name: Name of the dataset, or import path of its `DatasetSpec`.
        raw: Folder of the official download.
        out: Folder for the Arrow files.
        workers: Threads that read and check images.
        check: Whether each image is decoded to see that it is whole.
        progress: Whether progress bars are shown.

    Returns:
        Counts of what was written and of what was left out, by reason.

    Raises:
        DataError: The dataset has no converter, or the download is not as expected.
    """
    with Conversion(raw, out, workers, check, progress) as job:
        find_dataset(name).convert(job)
        return job.counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert one dataset and report what was written and left out.

    Files that are there already are kept, so an interrupted conversion goes on where it was; to
    make a file again, delete it.

    Returns:
        The exit status: 0, or 2 after a mistake in what was given.
    """
    given = _parser().parse_args(arguments)
    errors = Console(stderr=True)
    try:
        counts = convert(given.name, given.root, given.out, given.workers, given.check)
    except (DataError, OSError) as error:
        errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("Interrupted; finished files are kept. Run the same command to go on.")
        return 130
    _report(counts, given.out)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m elip.data.convert",
        description="Write the Arrow files of a dataset from its official download.",
    )
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(known_datasets())}")
    parser.add_argument(
        "--root", metavar="RAW", type=Path, default=Path(), help="folder of the download"
    )
    parser.add_argument(
        "--out", metavar="ARROWS", type=Path, required=True, help="folder for the Arrow files"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=cores(),
        help="threads that read and check images (default: %(default)s)",
    )
    parser.add_argument(
        "--no-check",
        dest="check",
        action="store_false",
        help="do not decode the images to see that they are whole",
    )
    return parser


def _report(counts: Mapping[str, int], out: Path) -> None:
    console = Console()
    width = max((len(f"{count:,}") for count in counts.values()), default=1)
    for what, count in counts.items():
        console.print(f"{count:>{width},}  {what}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Written to {out}", highlight=False, markup=False, soft_wrap=True)
    if any("left out" in what or "kept:" in what for what in counts):
        console.print("The .notes.tsv files beside the Arrow files name each case.")


if __name__ == "__main__":
    sys.exit(main())
