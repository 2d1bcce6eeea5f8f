"""Progress output of a grid."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from experiments.grid import Cell
from experiments.jobs import look


class Report:
    """Shows progress: one line per event, and a status line on a terminal.

    Args:
        console: The console to print on.
        cells: All selected runs.
        slots: Number of parallel runs.
    """

    def __init__(self, console: Console, cells: Sequence[Cell], slots: int) -> None:
        self.console, self.slots = console, slots
        self.states: dict[Path, str] = {cell.folder: look(cell) for cell in cells}
        self.stages = {cell.folder: cell.stage.name for cell in cells}
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self._live = Live(console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Report:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, what: str, style: str = "") -> None:
        """Print a line with the time and the number of finished runs."""
        done = f"{self._count('done')}/{len(self.states)}"
        line = f"{time.strftime('%H:%M:%S')} {done} {what}"
        self.console.print(Text(line, style=style), soft_wrap=True)

    def set(self, cell: Cell, state: str) -> None:
        """Set the state of a run."""
        self.states[cell.folder] = state

    def tick(self) -> None:
        """Update the status line."""
        if self.console.is_terminal:
            self._live.update(Text(self.status(), style="bold"))

    def status(self) -> str:
        """Return the number of runs by state, and an estimate of the time left."""
        counts = [f"{n} {name}" for name in ("done", "running", "failed", "skipped")
                  if (n := self._count(name))]  # fmt: skip
        counts.append(f"{self._count('open')} to go")
        every = [x for times in self.seconds.values() for x in times]
        waiting = [folder for folder, state in self.states.items() if state == "open"]
        if every and waiting:
            left = [statistics.mean(self.seconds.get(self.stages[x]) or every) for x in waiting]
            counts.append(f"about {duration(sum(left) / self.slots)} left")
        return ", ".join(counts)

    def _count(self, state: str) -> int:
        return list(self.states.values()).count(state)


def duration(seconds: float) -> str:
    """Return a duration such as ``5 min``."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
