"""Run a grid: ``python -m experiments.launch GRID``.

The launcher does not import the model. A fork server imports it once, and its children parse and
run the cells. The run directories are the only state, so you may stop or kill the launcher at any
moment. The same command then resumes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from elip.record import read_record
from experiments.grid import (
    Cell,
    Draft,
    Grid,
    GridError,
    Parsed,
    listing,
    read_grid,
    run_name,
    select,
)
from experiments.jobs import call, error_of, look, make_jobs
from experiments.local import Local, find_slots
from experiments.report import Report
from experiments.results import TABLE_NAME, gather, score_tables, write_table

_HOME = Path(__file__).resolve().parent.parent


def make_plan(grid: Grid, root: Path, context: Any, worker: str) -> list[Cell]:
    """Parse every run. Return each run once, parents before children.

    Args:
        grid: The grid.
        root: The grid's folder.
        context: The multiprocessing context.
        worker: The module that parses and runs.

    Raises:
        GridError: A run is invalid, or the grid has no runs.
    """
    cells: dict[Path, Cell] = {}
    by_labels: dict[tuple[str, frozenset[tuple[str, str]]], Cell] = {}
    problems: list[tuple[str, str]] = []
    with context.Pool(min(8, os.cpu_count() or 1)) as pool:
        shelf = pool.apply(call, (worker, "shelf")) if grid.uses_shelf else []
        for stage in grid.stages.values():
            requests: list[tuple[Draft, Cell | None]] = []
            for draft in grid.drafts(stage, shelf):
                parent = None
                if stage.after is not None:
                    axes = grid.stages[stage.after].axes
                    labels = draft.labels.items()
                    wanted = frozenset(x for x in labels if axes is None or x[0] in axes)
                    parent = by_labels.get((stage.after, wanted))
                    if parent is None:
                        continue  # excluded or invalid
                requests.append((draft, parent))
            asked = [(worker, "parse_draft", draft, _parent_id(draft, p)) for draft, p in requests]
            parsed = pool.starmap(call, asked, chunksize=4)
            for (draft, parent), answer in zip(requests, parsed, strict=True):
                if isinstance(answer, str):
                    problems.append((f"{stage.name}/{run_name(draft.labels)}", answer))
                    continue
                cell = plan_cell(draft, answer, parent, root)
                # Several combinations may be the same run; keep the first.
                cell = cells.setdefault(cell.folder, cell)
                by_labels[stage.name, frozenset(draft.labels.items())] = cell
    if problems:
        raise GridError(
            f"{len(problems)} runs are invalid, so nothing was started:\n{listing(problems)}"
        )
    if not cells:
        raise GridError(f"{grid.name} has no runs: exclude removes every combination.")
    return list(cells.values())


def _parent_id(draft: Draft, parent: Cell | None) -> str | None:
    """Return the id of the initial weights, which may not exist yet."""
    if parent is None:
        return None
    return f"{parent.run_id}/last" if draft.stage.checkpoint == "last" else parent.run_id


def plan_cell(draft: Draft, parsed: Parsed, parent: Cell | None, root: Path) -> Cell:
    """Return a parsed draft as a cell with its directory and its parent's checkpoint."""
    stage = draft.stage
    name = run_name(parsed.labels)
    folder = root / stage.name / f"{name}-{parsed.run_id}"
    args = [stage.command, *parsed.args, f"--trainer.default_root_dir={folder}"]
    if parent is not None:
        checkpoint = parent.folder / "checkpoints" / f"{stage.checkpoint}.ckpt"
        args.append(f"--{stage.weights_option}={checkpoint}")
    return Cell(
        stage, name, parsed.labels, tuple(args), parsed.run_id, folder, parsed.stated,
        parsed.config, parent,
    )  # fmt: skip


def main(arguments: Sequence[str] | None = None, worker: str = "experiments.sweep") -> int:
    """Run a grid.

    Args:
        arguments: Command-line arguments. None uses those of the process.
        worker: Module that parses and runs.

    Returns:
        Exit status: 0 all runs done, 1 some failed or were skipped, 2 nothing could start,
        130 stopped.
    """
    options = _options(arguments)
    console = Console(highlight=False)
    search = [str(_HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(search)  # for the fork server and its children
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow down other runs
    try:
        grid = read_grid(options.grid, options.set)
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([worker])
        root = options.runs / grid.name
        plan = make_plan(grid, root, context, worker)
        cells = select(plan, options.only)
        if options.dry_run:
            _show_plan(console, grid, cells, options)
            return 0
        root.mkdir(parents=True, exist_ok=True)
        return _run(grid, plan, cells, context, worker, options, console)
    except KeyboardInterrupt:  # outside the runs
        console.print("Stopped. The same command resumes.")
        return 130
    except (GridError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        return 2


def _run(
    grid: Grid,
    plan: Sequence[Cell],
    cells: Sequence[Cell],
    context: Any,
    worker: str,
    options: argparse.Namespace,
    console: Console,
) -> int:
    slots, parts = find_slots(options.jobs), _sweeps_at_once(options)
    again = ("open", "failed") if options.retry_failed else ("open",)
    report = Report(console, cells, slots.count)
    stages = []
    for stage in grid.stages.values():
        mine = [c for c in cells if c.stage is stage and report.states[c.folder] in again]
        for cell in mine:
            report.set(cell, "open")
        stages.append(make_jobs(mine, parts))
    console.print(f"{grid.name}: {report.status()}.")
    with report:
        if options.launcher == "slurm":
            from experiments.slurm import run_on_slurm

            finished = run_on_slurm(grid.name, stages, options.runs / grid.name, worker, report)
        else:
            finished = Local(context, worker, grid.name, slots, report).run(stages)
    _show_end(console, grid, plan, cells, report, options)
    if not finished:
        console.print("Stopped. The same command resumes.")
        return 130
    return 0 if all(state == "done" for state in report.states.values()) else 1


def _sweeps_at_once(options: argparse.Namespace) -> int:
    return find_slots(options.jobs).count if options.launcher == "local" else 1


def _show_plan(
    console: Console, grid: Grid, cells: Sequence[Cell], options: argparse.Namespace
) -> None:
    shown = {cell.folder: look(cell).replace("open", "to run") for cell in cells}
    for cell in cells:
        console.print(Text(f"{shown[cell.folder]:7} {cell.key}"), soft_wrap=True)
    counts = ", ".join(f"{count} {state}" for state, count in Counter(shown.values()).items())
    sweeps = [
        job
        for stage in grid.stages.values()
        for job in make_jobs(
            [c for c in cells if c.stage is stage and look(c) == "open"], _sweeps_at_once(options)
        )
        if len(job.cells) > 1
    ]
    console.print(f"{len(cells)} runs in {grid.name}: {counts}.")
    if sweeps:
        console.print(f"{sum(len(s.cells) for s in sweeps)} of them in {len(sweeps)} sweeps.")


def _show_end(
    console: Console,
    grid: Grid,
    plan: Sequence[Cell],
    cells: Sequence[Cell],
    report: Report,
    options: argparse.Namespace,
) -> None:
    """Write the table. Print scores, failures and the next commands."""
    root = options.runs / grid.name
    table, left_out = gather(root)
    write_table(table, root / TABLE_NAME)
    records = [read_record(cell.folder) for cell in plan if look(cell) == "done"]
    tested = [record for record in records if record.command in ("test", "validate")]
    for scores in score_tables(tested or records):
        console.print(scores)
        console.print()
    failed = [cell for cell in cells if report.states[cell.folder] == "failed"]
    for cell in failed:
        console.print(f"{cell.key} failed: {error_of(cell)}", style="red", soft_wrap=True)
        console.print(f"  {cell.folder}", style="dim", soft_wrap=True)
    for message in left_out:
        console.print(f"not in the table: {message}", style="yellow", markup=False, soft_wrap=True)
    folders = {str(cell.folder.relative_to(root)) for cell in plan}
    if others := [name for name in table["folder"].to_pylist() if name not in folders]:
        console.print(f"{len(others)} runs in the table are no longer in the grid file.")
    console.print(f"{grid.name}: {report.status()}. Table: {root / TABLE_NAME}", soft_wrap=True)
    command = shlex.join([*_given(options), "--retry-failed"])
    report_to = shlex.join([str(root), "--out", str(root / "report")])
    console.print(f"Report:  python -m analysis {report_to}", soft_wrap=True)
    if failed:
        console.print(f"Retry:   python -m experiments.launch {command}", soft_wrap=True)


def _given(options: argparse.Namespace) -> Iterator[str]:
    yield str(options.grid)
    if options.launcher != "local":
        yield f"--launcher={options.launcher}"
    if options.jobs:
        yield f"--jobs={options.jobs}"
    for name in ("only", "set"):
        yield from (f"--{name}={each}" for each in getattr(options, name))
    if options.runs != Path("runs"):
        yield f"--runs={options.runs}"


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1.")
    return number


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.launch", description=__doc__)
    parser.add_argument("grid", type=Path, help="grid file, see docs/grids.md")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    parser.add_argument(
        "--jobs", type=_positive, help="parallel runs (default: one per GPU, or one per two cores)"
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their state")
    parser.add_argument(
        "--only", action="append", default=[], metavar="FILTER",
        help="'stage/pattern*' or axis=label,...; includes the runs they start from",
    )  # fmt: skip
    parser.add_argument("--retry-failed", action="store_true", help="run failed runs again")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE",
        help="override an option of all runs, such as model.weights=PATH",
    )  # fmt: skip
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
