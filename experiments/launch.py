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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from elip.record import read_record
from experiments.grid import Cell, Draft, Grid, GridError, read_grid, run_name, select
from experiments.jobs import Job, call, error_of, look, make_jobs
from experiments.local import Local, find_slots
from experiments.report import Report
from experiments.results import TABLE_NAME, gather, score_tables, write_table

_HOME = Path(__file__).resolve().parent.parent
_SHOWN_PROBLEMS = 5


def main(arguments: Sequence[str] | None = None, worker: str = "experiments.sweep") -> int:
    """Run a grid; ``worker`` is the module that parses and runs.

    Returns:
        Exit status: 0 all runs done, 1 some failed or were skipped, 2 nothing could start,
        130 stopped.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _options(given)
    console = Console(highlight=False)
    search = [str(_HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(search)  # for the fork server and its children
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow down other runs
    try:
        grid = read_grid(options.grid, options.set)
        root = options.runs / grid.name
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([worker])
        plan = make_plan(grid, root, context, worker)
        cells = select(plan, options.only)
        slots = find_slots(options.jobs)
        report = Report(console, cells, slots.count)
        again = ("open", "failed") if options.retry_failed else ("open",)
        stages = []
        for stage in grid.stages.values():
            mine = [c for c in cells if c.stage is stage and report.states[c.folder] in again]
            stages.append(make_jobs(mine, slots.count if options.launcher == "local" else 1))
        if options.dry_run:
            _show_plan(report, grid.name, cells, stages)
            return 0
        root.mkdir(parents=True, exist_ok=True)
        for cell in (cell for jobs in stages for job in jobs for cell in job.cells):
            report.set(cell, "open")
        console.print(f"{grid.name}: {report.status()}.")
        with report:
            if options.launcher == "slurm":
                from experiments.slurm import run_on_slurm

                finished = run_on_slurm(grid.name, stages, root, worker, report)
            else:
                finished = Local(context, worker, grid.name, slots, report).run(stages)
        _show_end(report, plan, cells, root, given)
    except KeyboardInterrupt:  # outside the runs
        finished = False
    except (GridError, OSError) as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        return 2
    if not finished:
        console.print("Stopped. The same command resumes.")
        return 130
    return int(any(state != "done" for state in report.states.values()))


def make_plan(grid: Grid, root: Path, context: Any, worker: str) -> list[Cell]:
    """Parse every run in child processes. Return each run once, parents before children.

    Raises:
        GridError: A run is invalid, or the grid has no runs.
    """
    cells: dict[Path, Cell] = {}
    by_labels: dict[tuple[str, frozenset[tuple[str, str]]], Cell] = {}
    problems: dict[str, list[str]] = {}
    with context.Pool(min(8, os.cpu_count() or 1)) as pool:
        shelf = pool.apply(call, (worker, "shelf"))
        for stage in grid.stages.values():
            drafts: list[Draft] = []
            for draft in grid.drafts(stage, shelf):
                if stage.after is not None:
                    axes = grid.stages[stage.after].axes
                    labels = draft.labels.items()
                    wanted = frozenset(x for x in labels if axes is None or x[0] in axes)
                    parent = by_labels.get((stage.after, wanted))
                    if parent is None:
                        continue  # excluded or invalid
                    draft = replace(draft, parent=parent)
                drafts.append(draft)
            asked = [(worker, "parse_draft", draft, root) for draft in drafts]
            for draft, cell in zip(drafts, pool.starmap(call, asked, chunksize=4), strict=True):
                if isinstance(cell, str):
                    problems.setdefault(cell, []).append(f"{stage.name}/{run_name(draft.labels)}")
                    continue
                cell = replace(cell, stage=stage, parent=draft.parent)
                # Several combinations may be the same run; keep the first.
                cell = cells.setdefault(cell.folder, cell)
                by_labels[stage.name, frozenset(draft.labels.items())] = cell
    if problems:
        lines = [f"{sum(map(len, problems.values()))} runs are invalid, so nothing was started:"]
        for problem, (first, *others) in list(problems.items())[:_SHOWN_PROBLEMS]:
            more = f" ({len(others)} more like it)" if others else ""
            lines.append(f"  {first}: {problem}{more}")
        if (left := len(problems) - _SHOWN_PROBLEMS) > 0:
            lines.append(f"  and {left} other problems")
        raise GridError("\n".join(lines))
    if not cells:
        raise GridError(f"{grid.name} has no runs: exclude removes every combination.")
    return list(cells.values())


def _show_plan(
    report: Report, name: str, cells: Sequence[Cell], stages: Sequence[Sequence[Job]]
) -> None:
    shown = {folder: state.replace("open", "to run") for folder, state in report.states.items()}
    for cell in cells:
        report.console.print(Text(f"{shown[cell.folder]:7} {cell.key}"), soft_wrap=True)
    counts = ", ".join(f"{count} {state}" for state, count in Counter(shown.values()).items())
    report.console.print(f"{len(cells)} runs in {name}: {counts}.")
    sizes = [len(job.cells) for jobs in stages for job in jobs if len(job.cells) > 1]
    if sizes:
        report.console.print(f"{sum(sizes)} of them in {len(sizes)} sweeps.")


def _show_end(
    report: Report, plan: Sequence[Cell], cells: Sequence[Cell], root: Path, given: list[str]
) -> None:
    """Write the table. Print scores, failures and the next commands."""

    def say(text: str, style: str = "") -> None:
        report.console.print(text, style=style, markup=False, soft_wrap=True)

    table, left_out = gather(root)
    write_table(table, root / TABLE_NAME)
    records = [read_record(cell.folder) for cell in plan if look(cell) == "done"]
    tested = [record for record in records if record.command in ("test", "validate")]
    for title, scores in score_tables(tested or records):
        say(title, "bold")
        report.console.print(scores)
        say("")
    failed = [cell for cell in cells if report.states[cell.folder] == "failed"]
    for cell in failed:
        say(f"{cell.key} failed: {error_of(cell)}", "red")
        say(f"  {cell.folder}", "dim")
    for message in left_out:
        say(f"not in the table: {message}", "yellow")
    folders = {str(cell.folder.relative_to(root)) for cell in plan}
    if others := [name for name in table["folder"].to_pylist() if name not in folders]:
        say(f"{len(others)} runs in the table are no longer in the grid file.")
    say(f"{root.name}: {report.status()}.")
    say(f"Table:   {root / TABLE_NAME}")
    say(f"Report:  python -m analysis {shlex.join([str(root), '--out', str(root / 'report')])}")
    if failed:
        again = [*(each for each in given if each != "--retry-failed"), "--retry-failed"]
        say(f"Retry:   python -m experiments.launch {shlex.join(again)}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.launch", description=__doc__)
    parser.add_argument("grid", type=Path, help="grid file, see docs/grids.md")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local")
    parser.add_argument(
        "--jobs", type=int, help="parallel runs (default: one per GPU, or one per two cores)"
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
    options = parser.parse_args(arguments)
    if options.jobs is not None and options.jobs < 1:
        parser.error(f"--jobs is {options.jobs}; give 1 or more.")
    return options


if __name__ == "__main__":
    sys.exit(main())
