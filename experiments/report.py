"""Progress of a grid: one line per event, and a status line on a terminal."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from experiments.grid import Cell
from experiments.jobs import error_of, look


class Report:
    """Knows the state of every selected run, and shows progress on a console."""

    def __init__(self, console: Console, cells: Sequence[Cell], slots: int) -> None:
        self.console, self.slots = console, slots
        self.states: dict[Path, str] = {cell.folder: look(cell) for cell in cells}
        self._stages = {cell.folder: cell.stage.name for cell in cells}
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._live = Live(console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Report:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def say(self, what: str, style: str = "") -> None:
        """Print a line with the time and the number of finished runs."""
        done = f"{Counter(self.states.values())['done']}/{len(self.states)}"
        line = f"{time.strftime('%H:%M:%S')} {done} {what}"
        # In a file, each event is one line.
        self.console.print(Text(line, style=style), soft_wrap=not self.console.is_terminal)

    def set(self, cell: Cell, state: str) -> None:
        """Set the state of a run. Say so if it has failed or is skipped."""
        self.states[cell.folder] = state
        if state == "failed":
            self.say(f"{cell.key} failed: {error_of(cell).splitlines()[0]}", "red")
        if state == "skipped" and cell.parent is not None:
            self.say(f"{cell.key} skipped: {cell.parent.key} is not done", "yellow")

    def took(self, cell: Cell, seconds: float) -> None:
        """Note how long a run took."""
        self._seconds[cell.stage.name].append(seconds)

    def tick(self) -> None:
        """Update the status line: the number of runs by state, and the time left."""
        every = [seconds for times in self._seconds.values() for seconds in times]
        waiting = [folder for folder, state in self.states.items() if state == "open"]
        line = self.status()
        if every and waiting:
            left = [statistics.mean(self._seconds.get(self._stages[x]) or every) for x in waiting]
            line += f", about {duration(sum(left) / self.slots)} left"
        self._live.update(Text(line, style="bold"))

    def status(self) -> str:
        """Return the number of runs by state."""
        count = Counter(self.states.values())
        shown = [
            f"{count[state]} {state}"
            for state in ("done", "running", "failed", "skipped", "stopped")
            if count[state]
        ]
        return ", ".join([*shown, f"{count['open']} to go"])


def duration(seconds: float) -> str:
    """Return a duration such as ``0:05:00``."""
    return str(timedelta(seconds=round(seconds)))
