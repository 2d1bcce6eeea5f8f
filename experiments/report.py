"""What a person sees while a grid runs."""

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
    """Tells a person how far a grid is: a line an event, and on a terminal a status line below.

    Args:
        console: Where to.
        cells: All runs that are to be done.
        slots: How many run at once.
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
        """Print a line with the time and how much is done."""
        done = f"{self._count('done')}/{len(self.states)}"
        line = f"{time.strftime('%H:%M:%S')} {done} {what}"
        self.console.print(Text(line, style=style), soft_wrap=True)

    def set(self, cell: Cell, state: str) -> None:
        """Note what has become of a run."""
        self.states[cell.folder] = state

    def tick(self, fractions: Sequence[tuple[float, float]] = ()) -> None:
        """Draw the status line anew.

        Args:
            fractions: Of each running job, its seconds and its share done (0 where not known).
        """
        if self.console.is_terminal:
            self._live.update(Text(self.status(fractions), style="bold"))

    def status(self, fractions: Sequence[tuple[float, float]] = ()) -> str:
        """Return counts of runs by state, and the time left by what this launch has measured."""
        counts = [f"{n} {name}" for name in ("done", "running", "failed", "skipped")
                  if (n := self._count(name))]  # fmt: skip
        counts.append(f"{self._count('open')} to go")
        left = [s / f - s for s, f in fractions if f > 0.05]
        every = [x for times in self.seconds.values() for x in times]
        waiting = [folder for folder, state in self.states.items() if state == "open"]
        if every:
            left += [
                statistics.mean(self.seconds.get(self.stages[folder]) or every)
                for folder in waiting
            ]
        if left and (every or not waiting):
            counts.append(f"about {duration(sum(left) / self.slots)} left")
        return ", ".join(counts)

    def _count(self, state: str) -> int:
        return list(self.states.values()).count(state)


def duration(seconds: float) -> str:
    """Return a duration in plain units."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
