"""What a person sees: the plan, the live table, the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from experiments.attempt import IDENTITY_NAME, error_of, log_of
from experiments.board import Board, Estimates, Phase
from experiments.grid import Grid
from experiments.plan import Cell
from experiments.results import TABLE_NAME, gather, write_table

_STYLES = {"failed": "red", "skipped": "yellow", "running": "cyan", "done": "green"}
_SHOWN_RUNNING = 12


class Screen:
    """Tells of events as lines, and on a terminal keeps a table below them.

    Args:
        console: Where to.
        estimates: What runs take.
        jobs: How many run at once.
    """

    def __init__(self, console: Console, estimates: Estimates, jobs: int) -> None:
        self.console, self.estimates, self.jobs = console, estimates, jobs
        self._live = Live(console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def event(self, cell: Cell, what: str) -> None:
        """Print a line."""
        if what == "done":
            self.estimates.add(cell)
        clock = time.strftime("%H:%M:%S")
        self.console.print(Text(f"{clock} {cell.key}: {what}"), soft_wrap=True)

    def tick(self, board: Board) -> None:
        """Draw the table anew."""
        if self.console.is_terminal:
            self._live.update(self._table(board))

    def _table(self, board: Board) -> RenderableType:
        running = Table("running", "for", "about", box=None, padding=(0, 2, 0, 0))
        at_work = board.of("running")
        for cell in at_work[:_SHOWN_RUNNING]:
            spent = time.monotonic() - board.since[cell.id]
            running.add_row(cell.key, duration(spent), duration(self.estimates.seconds(cell)))
        if len(at_work) > _SHOWN_RUNNING:
            running.add_row(f"and {len(at_work) - _SHOWN_RUNNING} more", "", "")
        return Group(running, counts(board), Text(self._end(board), style="bold"))

    def _end(self, board: Board) -> str:
        left = 0.0
        for cell in [*board.of("waiting"), *board.of("running")]:
            seconds = self.estimates.seconds(cell)
            if seconds is None:
                return "The end is known when one run of each stage is done."
            running = board.phase[cell.id] == "running"
            spent = time.monotonic() - board.since[cell.id] if running else 0.0
            left += max(0.0, seconds - spent)
        end = time.strftime("%a %H:%M", time.localtime(time.time() + left / self.jobs))
        return f"About {duration(left / self.jobs)} to go, until {end}."


def counts(board: Board) -> Table:
    """Return a table of how many runs of each stage are in which phase."""
    phases: tuple[Phase, ...] = ("waiting", "running", "done", "failed", "skipped", "stopped")
    table = Table("stage", *phases, box=None, padding=(0, 2, 0, 0))
    for stage in dict.fromkeys(cell.stage.name for cell in board.cells):
        mine = [board.phase[cell.id] for cell in board.cells if cell.stage.name == stage]
        numbers = [
            Text(str(mine.count(each) or "-"), style=_STYLES.get(each, "") if each in mine else "")
            for each in phases
        ]
        table.add_row(stage, *numbers)
    return table


def show_plan(console: Console, grid: Grid, board: Board, estimates: Estimates, jobs: int) -> None:
    """Print what would be run, in which order, after what, and what it would cost."""
    table = Table(
        Column("run", overflow="fold"), Column("after", overflow="fold"), "state", "about",
        box=None, padding=(0, 2, 0, 0),
    )  # fmt: skip
    for cell in board.cells:
        phase = board.phase[cell.id]
        table.add_row(
            Text(cell.key), Text(cell.parent.key if cell.parent else "-"),
            Text(phase, style=_STYLES.get(phase, "")),
            "-" if phase in ("done", "skipped") else duration(estimates.seconds(cell)),
        )  # fmt: skip
    waiting = board.of("waiting")
    seconds, unknown = estimates.total(waiting)
    done = len(board.of("done"))
    console.print(table)
    console.print(f"{len(board.cells)} runs in {grid.name}: {done} done, {len(waiting)} to run.")
    if unknown < len(waiting):
        devices = sum((estimates.seconds(c) or 0) * c.devices * c.nodes for c in waiting)
        console.print(
            f"About {duration(seconds)} one after the other, {duration(devices / jobs)} with "
            f"{jobs} devices at once; {devices / 3600:.1f} device hours.",
            soft_wrap=True,
        )
    for missing in sorted({why for cell in waiting for why in cell.lacks}):
        console.print(f"Cannot start yet: {missing}", soft_wrap=True)
    if unknown:
        console.print(f"Of {unknown} of them nothing is known: no run of their stage was timed.")
    if estimates.damaged:
        console.print(
            f"Passed over: the times of {estimates.damaged} runs whose {IDENTITY_NAME} is damaged.",
            soft_wrap=True,
        )


def show_end(console: Console, board: Board, plan: Sequence[Cell], root: Path) -> None:
    """Write the table, and print how it ended: counts, failures and logs, what was skipped.

    Args:
        console: Where to.
        board: What was to be run, in its last state.
        plan: All runs of the grid, those that were not to be run too.
        root: Folder of the grid's runs.
    """
    console.print(counts(board))
    for cell in board.of("failed"):
        console.print(Text(f"{cell.key} failed: {error_of(cell)}", style="red"), soft_wrap=True)
        console.print(Text(f"  log: {log_of(cell)}", style="dim"), soft_wrap=True)
    for cell in board.of("skipped"):
        assert cell.parent is not None
        why = board.phase[cell.parent.id]
        console.print(f"{cell.key} skipped: {cell.parent.key} {why}.", soft_wrap=True)
    if board.of("failed"):
        console.print("Run them again with --retry-failed.")
    table, left_out = gather(root, {cell.id for cell in plan})
    write_table(table, root / TABLE_NAME)
    for message in left_out:
        console.print(Text(f"left out: {message}", style="yellow"), soft_wrap=True)
    console.print(f"Table of {table.num_rows} runs: {root / TABLE_NAME}", soft_wrap=True)
    if earlier := table["planned"].to_pylist().count(False):
        console.print(
            f"{earlier} of them are of an earlier plan, which the grid's file has no longer: "
            "`planned` is false there.",
            soft_wrap=True,
        )


def duration(seconds: float | None) -> str:
    """Return a duration in plain units; ``?`` where it is not known."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
