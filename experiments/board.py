"""The state of a plan while it is carried out, and how long the rest will take."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from elip.old_record import RecordError
from experiments.attempt import IDENTITY_NAME, attempts, look, read_identity, seconds_spent
from experiments.plan import Cell

Phase = Literal["waiting", "running", "done", "failed", "skipped", "stopped"]


class Board:
    """Which phase every run of a plan is in.

    Args:
        cells: The plan, parents before children.
        retry_failed: Whether runs that failed earlier are to be run again.
    """

    def __init__(self, cells: Sequence[Cell], retry_failed: bool = False) -> None:
        self.cells = tuple(cells)
        self.phase: dict[str, Phase] = {}
        self.since: dict[str, float] = {}
        for cell in self.cells:
            seen = look(cell)
            again = seen == "open" or (seen == "failed" and retry_failed)
            self.phase[cell.id] = "waiting" if again else seen  # type: ignore[assignment]
        self.found_done = frozenset(cell.id for cell in self.cells if self.phase[cell.id] == "done")
        self.skip_orphans()

    def set(self, cell: Cell, phase: Phase) -> None:
        """Move a run to a phase."""
        self.phase[cell.id] = phase
        self.since[cell.id] = time.monotonic()

    def skip_orphans(self) -> list[Cell]:
        """Move runs whose parent failed or was skipped to ``skipped``, and return them."""
        skipped = []
        for cell in self.cells:  # parents stand first, so one pass is enough
            lost = cell.parent is not None and self.phase[cell.parent.id] in ("failed", "skipped")
            if lost and self.phase[cell.id] == "waiting":
                self.set(cell, "skipped")
                skipped.append(cell)
        return skipped

    def ready(self) -> list[Cell]:
        """Return the waiting runs whose parents are done, in the order of the plan."""
        return [
            cell
            for cell in self.of("waiting")
            if cell.parent is None or self.phase[cell.parent.id] == "done"
        ]

    def of(self, phase: Phase) -> list[Cell]:
        """Return the runs in a phase, in the order of the plan."""
        return [cell for cell in self.cells if self.phase[cell.id] == phase]


class Estimates:
    """What runs take, from those that were timed in this grid, else from the price stated in it.

    Args:
        root: Folder of the grid's runs; runs of earlier versions of the grid count too.

    Attributes:
        damaged: How many runs were timed, but do not say which they are.
    """

    def __init__(self, root: Path) -> None:
        self._times: dict[tuple[str, str | None], list[float]] = defaultdict(list)
        self.damaged = 0
        for file in sorted(root.glob(f"*/*/{IDENTITY_NAME}")):
            seconds = _recorded(file.parent)
            if seconds is not None:
                try:
                    run = read_identity(file.parent)
                except RecordError:  # the table of results names it
                    self.damaged += 1
                else:
                    self._add(run.stage, run.labels.get("reducer"), seconds)

    def add(self, cell: Cell) -> None:
        """Learn from a run that is done."""
        seconds = seconds_spent(attempts(cell.folder))
        if seconds is not None:
            self._add(cell.stage.name, cell.labels.get("reducer"), seconds)

    def _add(self, stage: str, reducer: str | None, seconds: float) -> None:
        self._times[stage, reducer].append(seconds)
        if reducer is not None:
            self._times[stage, None].append(seconds)

    def seconds(self, cell: Cell) -> float | None:
        """Return how long a run takes, in seconds; None where nothing is known.

        The median of the stage's runs with the same reducer, else of all its runs.
        """
        for key in ((cell.stage.name, cell.labels.get("reducer")), (cell.stage.name, None)):
            if self._times.get(key):
                return statistics.median(self._times[key])
        if cell.stage.price is None:
            return None
        return cell.stage.price.seconds / (cell.devices * cell.nodes)

    def total(self, cells: Iterable[Cell]) -> tuple[float, int]:
        """Return the seconds of all runs one after the other, and of how many nothing is known."""
        known = [self.seconds(cell) for cell in cells]
        return sum(each for each in known if each is not None), known.count(None)


def _recorded(folder: Path) -> float | None:
    """Return the time of all attempts at a run, where the last one came to a good end."""
    found = attempts(folder)
    return seconds_spent(found) if found and found[-1]["status"] == 0 else None
