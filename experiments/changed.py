"""Finished runs that were made from other data or code than there is now.

Neither is part of a run's identity: data may lie on other machines than the launcher's, or be drawn
by the first run. But a table of old runs beside new ones must not be made without a word.
"""

from __future__ import annotations

from collections.abc import Iterable

from elip.old_record import read_record
from experiments.plan import Cell

_SHOWN = 5


def say_changed(cells: Iterable[Cell]) -> str | None:
    """Return what is to be said of finished runs whose inputs have changed; None for nothing.

    Args:
        cells: The finished runs.
    """
    cells = list(cells)
    found = [(cell.folder, names) for cell in cells if (names := changed(cell))]
    if not found:
        return None
    lines = [f"  {folder}: {', '.join(names)}" for folder, names in found[:_SHOWN]]
    if len(found) > _SHOWN:
        lines.append(f"  and {len(found) - _SHOWN} more")
    return "\n".join(
        [
            f"{len(found)} of {len(cells)} finished runs were made from other inputs than there "
            "are now. None is started until that is settled:",
            *lines,
            "To make them anew beside the old ones, give the grid file another name, or --runs "
            "another folder. To make them anew in their place, delete these folders. Or put the "
            "old inputs back.",
        ]
    )


def say_mixed(cells: Iterable[Cell]) -> str | None:
    """Return what is to be said of finished runs that read different things by one name.

    Code that is edited while a grid runs, for instance.

    Args:
        cells: The finished runs.
    """
    read: dict[str, set[str]] = {}
    for cell in cells:
        record = read_record(cell.record_folder)
        for name, digest in record.inputs.items():
            if name.startswith("code of"):
                read.setdefault(name, set()).add(digest)
            elif name.endswith("_data"):
                read.setdefault(f"{name} ({record.task}, {'+'.join(record.datasets)})", set()).add(
                    digest
                )
    mixed = sorted(name for name, digests in read.items() if len(digests) > 1)
    if not mixed:
        return None
    return f"Not all finished runs read the same: {', '.join(mixed)} changed between them."


def changed(cell: Cell) -> list[str]:
    """Return what a finished run read that is another now: ``test_data``, ``code of Mine``.

    The runs that it goes back to count too, as its own record tells of them: their folders may be
    gone or made anew. What one of both sides does not know is passed over.

    Raises:
        RecordError: Its record cannot be read.
    """
    record = read_record(cell.record_folder)
    found = _different(record.inputs, cell)
    origin, parent = record.origin, cell.parent
    while origin is not None and parent is not None:
        found += [f"{name} of {parent.stage.name}" for name in _different(origin.inputs, parent)]
        origin, parent = origin.origin, parent.parent
    return found


def _different(read: dict[str, str], cell: Cell) -> list[str]:
    return [name for name, digest in cell.inputs.items() if read.get(name, digest) != digest]
