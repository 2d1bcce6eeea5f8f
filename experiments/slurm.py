"""Running a plan on a SLURM cluster, through submitit: one job array a stage.

What became of a run is read from its record; the queue is asked only whether a run is still in it.
So no accounting is needed, and the launcher can be stopped and started at any time.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from rich.console import Console
from rich.text import Text

from experiments.attempt import clear, error_of, look
from experiments.board import Board, Phase
from experiments.grid import GridError
from experiments.plan import Cell
from experiments.slurm_job import Job

_POLL_SECONDS = 2.0


def run_on_slurm(
    board: Board, grid: str, root: Path, runner: Sequence[str], console: Console
) -> bool:
    """Queue what is to be run, and watch it until it is done; return False when stopped before.

    Runs that an earlier launcher has queued are watched, not queued again.

    Raises:
        GridError: There is no SLURM here.
    """
    queue = _queue()
    if queue is None:
        raise GridError("--launcher slurm: squeue does not answer. Start this on a login node.")
    jobs = _submit(board, grid, root, tuple(runner), queue)
    console.print(f"{len(jobs)} runs are in the queue. Ctrl-C leaves them there.")
    missed: dict[str, int] = defaultdict(int)
    try:
        while board.of("waiting") or board.of("running"):
            time.sleep(_POLL_SECONDS)
            queue = _queue()
            if queue is None:  # busy; asked again the next time
                continue
            for cell in [*board.of("waiting"), *board.of("running")]:
                _update(board, cell, queue.get(jobs.get(cell.id, "")), missed, console)
    except KeyboardInterrupt:
        console.print("The jobs go on. Start again to watch them; scancel stops them.")
        return False
    return not board.of("stopped")


def _update(
    board: Board, cell: Cell, state: str | None, missed: dict[str, int], console: Console
) -> None:
    def tell(what: str) -> None:
        clock = time.strftime("%H:%M:%S")
        console.print(Text(f"{clock} {cell.key}: {what}"), soft_wrap=True)

    if board.phase[cell.id] == "skipped":  # since its parent failed, just now
        return
    seen = look(cell)
    if seen == "done":
        board.set(cell, "done")
        tell("done")
    elif seen == "failed":
        board.set(cell, "failed")
        tell(f"failed: {error_of(cell).splitlines()[0]}")
        for skipped in board.skip_orphans():
            console.print(f"{skipped.key}: skipped, since {cell.key} failed", soft_wrap=True)
    elif state is not None:
        missed[cell.id] = 0
        phase: Phase = "waiting" if state == "PENDING" else "running"
        if board.phase[cell.id] != phase:
            board.set(cell, phase)
            tell("starts" if phase == "running" else "is queued again")
    else:
        # A record may reach this machine after the job has left the queue.
        missed[cell.id] += 1
        if missed[cell.id] >= 3:
            board.set(cell, "stopped")
            tell("left the queue without a result; start again to go on")


def _submit(
    board: Board, grid: str, root: Path, runner: tuple[str, ...], queue: dict[str, str]
) -> dict[str, str]:
    """Queue the waiting runs by stage and size, and return the job of each by the run's id."""
    jobs: dict[str, str] = {}
    groups: dict[tuple[str, int, int], list[Cell]] = defaultdict(list)
    for cell in board.of("waiting"):
        known = _job_of(cell)
        if known in queue:
            jobs[cell.id] = known
        else:
            groups[cell.stage.name, cell.nodes, cell.devices].append(cell)
    for cells in groups.values():
        # Parents stand before their children in the plan, so their jobs are known by now.
        parents = {
            jobs[c.parent.id].split("_")[0] for c in cells if c.parent and c.parent.id in jobs
        }
        executor = _executor(cells[0], grid, root, sorted(parents))
        for cell in cells:
            clear(cell)
        with executor.batch():
            queued = [executor.submit(Job(cell, grid, runner)) for cell in cells]
        for cell, job in zip(cells, queued, strict=True):
            jobs[cell.id] = job.job_id
            (cell.folder / "job.json").write_text(json.dumps({"job": job.job_id}))
    return jobs


def _executor(cell: Cell, grid: str, root: Path, parents: Sequence[str]) -> Any:
    resources = cell.stage.resources
    # A run may meet its time limit as often as it takes: it goes on each time.
    executor = submitit.AutoExecutor(root / ".slurm", cluster="slurm", slurm_max_num_timeout=1000)
    home = Path(__file__).resolve().parent.parent
    asked = {
        "name": f"{grid}-{cell.stage.name}",
        "timeout_min": resources.minutes,
        "mem_gb": resources.memory_gb,
        "nodes": cell.nodes,
        "tasks_per_node": cell.devices,
        "cpus_per_task": resources.cpus,
        "gpus_per_node": (cell.devices if resources.gpus is None else resources.gpus) or None,
        "slurm_partition": resources.partition,
        "slurm_array_parallelism": resources.throttle,
        "slurm_dependency": "afterany:" + ":".join(parents) if parents else None,
        "slurm_additional_parameters": {"requeue": True},
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_setup": [f"export PYTHONPATH={home}:$PYTHONPATH"],
    }
    executor.update_parameters(
        **{name: value for name, value in asked.items() if value is not None}
    )
    return executor


def _queue() -> dict[str, str] | None:
    """Return the state of every job of this user that is in the queue; None when it is not told."""
    try:
        listed = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%i %T"],
            capture_output=True, text=True, check=True, timeout=60,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split(maxsplit=1) for line in listed.splitlines() if line.strip())


def _job_of(cell: Cell) -> str:
    try:
        return str(json.loads((cell.folder / "job.json").read_text(encoding="utf-8"))["job"])
    except (OSError, ValueError, KeyError):
        return ""
