"""Carry out a grid: ``python -m experiments.launch GRID``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from elip.arguments import output_folder, positive
from experiments.attempt import acquire, holder, look, sign
from experiments.board import Board, Estimates
from experiments.budgets import BUDGETS_NAME
from experiments.changed import say_changed, say_mixed
from experiments.check import Checked
from experiments.grid import Grid, GridError
from experiments.grid_file import read_grid
from experiments.local import LocalLauncher, find_slots
from experiments.plan import Cell, build_plan, refuse_missing, select
from experiments.show import Screen, show_end, show_plan

_HOME = Path(__file__).resolve().parent.parent
RUNNER = (sys.executable, str(_HOME / "run_experiment.py"))
CHECKER = (sys.executable, "-m", "experiments.check")
WARM = (sys.executable, "-m", "experiments.warm")


def main(
    arguments: Sequence[str] | None = None,
    runner: Sequence[str] = RUNNER,
    checker: Sequence[str] = CHECKER,
    warm: Sequence[str] | None = WARM,
) -> int:
    """Carry out a grid.

    Args:
        arguments: The command line's; None takes those of the process.
        runner: How a run is started: the command line of this project.
        checker: How all runs are parsed: `experiments.check`.
        warm: How runs are forked on this machine: `experiments.warm`. None starts each afresh.

    Returns:
        The exit status: 0 when every run is done, 1 when some failed or were skipped, 2 when
        nothing could start, 130 when it was stopped.
    """
    options = _parse(arguments)
    console = Console(soft_wrap=False)
    # Child processes find this project wherever they are started.
    search = [str(_HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(search)
    try:
        grid = read_grid(options.grid, options.set)
        root = options.runs / grid.name
        checked = _check(options.grid, options.set, root, checker)
        plan = build_plan(grid, checked, root)
        return _carry_out(grid, plan, root, options, runner, warm, console)
    except KeyboardInterrupt:  # before or after the runs, which are asked to save and stop
        console.print("Stopped. Start again to go on.")
        return 130
    except (GridError, OSError) as error:
        console.file = sys.stderr
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 2


def _carry_out(
    grid: Grid,
    plan: list[Cell],
    root: Path,
    options: argparse.Namespace,
    runner: Sequence[str],
    warm: Sequence[str] | None,
    console: Console,
) -> int:
    cells = select(plan, options.only)
    slots = find_slots(options.jobs)
    estimates = Estimates(root)
    if options.dry_run:
        board = Board(cells, options.retry_failed)
        show_plan(console, grid, board, estimates, slots.count)
        if told := say_changed(cell for cell in plan if look(cell) == "done"):
            console.print(told, markup=False, highlight=False, soft_wrap=True)
        return 0
    refuse_missing(cells)  # not of a dry run: a plan can be costed before its weights are there
    lock = acquire(root / ".lock")
    if lock is None:
        who = holder(root / ".lock")
        raise GridError(
            f"{grid.name} is being launched already, by process {who.get('pid')} on "
            f"{who.get('host')} since {who.get('since')}. Wait for it or stop it."
        )
    with lock:
        sign(lock, os.getpid())
        board = Board(cells, options.retry_failed)
        # Of the whole plan, whatever --only picks: all of them stand in one table.
        if told := say_changed(cell for cell in plan if look(cell) == "done"):
            raise GridError(told)
        console.print(f"{grid.name}: {len(cells)} runs, {len(board.found_done)} done before.")
        if options.launcher == "slurm":
            try:
                from experiments.slurm import run_on_slurm
            except ModuleNotFoundError as error:
                raise GridError("--launcher slurm: pip install -e '.[slurm]'.") from error
            finished = run_on_slurm(board, grid.name, root, runner, console)
        else:
            with Screen(console, estimates, slots.count) as screen:
                launcher = LocalLauncher(board, grid.name, slots, runner, screen, warm)
                finished = launcher.run()
        show_end(console, board, plan, root)
        if told := say_mixed(cell for cell in plan if look(cell) == "done"):
            console.print(told, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not finished:
        return 130
    return 0 if len(board.of("done")) == len(cells) else 1


def _check(path: Path, sets: Sequence[str], root: Path, checker: Sequence[str]) -> list[Checked]:
    """Have every run parsed in a child process.

    Raises:
        GridError: The grid file is wrong, or the child failed.
    """
    command = [*checker, str(path), *(f"--set={each}" for each in sets)]
    command.append(f"--budgets={root / BUDGETS_NAME}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().removeprefix("error: ")
        raise GridError(said or f"{' '.join(command)} ended with status {done.returncode}.")
    return [Checked(**each) for each in json.loads(done.stdout)]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.launch", description=__doc__)
    parser.add_argument("grid", type=Path, help="grid file, see docs/grids.md")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    parser.add_argument(
        "--jobs", type=positive, help="runs at once (default: one a GPU, or one for two cores)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost")
    parser.add_argument(
        "--only", action="append", default=[], metavar="FILTER",
        help="'stage/pattern*' or axis=label,...; with the runs that they start from",
    )  # fmt: skip
    parser.add_argument("--retry-failed", action="store_true", help="run failed ones again")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE",
        help="lay an option over the grid's base, such as model.weights=PATH",
    )  # fmt: skip
    parser.add_argument(
        "--runs", type=output_folder, default=Path("runs"), help="folder of all runs"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
