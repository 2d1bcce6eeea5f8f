"""Running a plan on a SLURM cluster, through submitit: one job array a stage.

What became of a run is read from its record; the queue is asked only whether a run is still in it.
So no accounting is needed, and the launcher can be stopped and started at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import submitit
from rich.console import Console
from rich.text import Text

from experiments.attempt import (
    Attempt,
    acquire,
    clear,
    conclude,
    error_of,
    give_up,
    lock_of,
    log_of,
    look,
    prepare,
    sign,
)
from experiments.board import Board, Phase
from experiments.grid import GridError
from experiments.plan import Cell

_POLL_SECONDS = 2.0
_RESTARTS = 2
_GRACE_SECONDS = 120.0
_SAVE_SECONDS = 60.0
_WAIT_SECONDS = 300.0


@dataclass
class Job:
    """One run on a node of the cluster: a process a device, which a cluster's signal stops cleanly.

    Attributes:
        cell: The run.
        grid: Name of the grid.
        runner: How the command line is started.
    """

    cell: Cell
    grid: str
    runner: tuple[str, ...]
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _attempt: Attempt | None = field(default=None, init=False, repr=False)
    _began: float = field(default=0.0, init=False, repr=False)
    _told: bool = field(default=False, init=False, repr=False)

    def __call__(self) -> None:
        """Run it; one that is killed goes on from its last checkpoint.

        Raises:
            RuntimeError: It failed, or the run that it starts from is not done.
        """
        if look(self.cell) == "done":
            return
        if self.cell.parent is not None and look(self.cell.parent) != "done":
            raise RuntimeError(f"{self.cell.parent.key} is not done, and {self.cell.key} needs it.")
        signal.signal(signal.SIGTERM, self._hear)
        if _rank() > 0:
            self._follow()
            return
        lock = acquire(lock_of(self.cell))
        if lock is None:
            raise RuntimeError(f"{self.cell.key} runs somewhere else already.")
        with lock:
            sign(lock, os.getpid())
            self._lead()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Let the run save and stop, and hand back what is to be queued again (submitit's hook)."""
        if self._process is not None:
            status = _stop(self._process)
            if self._attempt is not None:
                conclude(self._attempt, status, time.monotonic() - self._began)
        return submitit.helpers.DelayedSubmission(Job(self.cell, self.grid, self.runner))

    def _lead(self) -> None:
        for _ in range(_RESTARTS + 1):
            self._attempt = prepare(self.cell, self.grid)
            _share(self.cell, self._attempt.arguments)
            self._began = time.monotonic()
            status = self._run(self._attempt.arguments, log_of(self.cell))
            seen = conclude(self._attempt, status, time.monotonic() - self._began)
            if seen == "failed":
                raise RuntimeError(error_of(self.cell))
            if seen == "done":
                return
            if self._told:
                # The cluster is about to take the node back, and will queue the job again.
                time.sleep(_GRACE_SECONDS)
        give_up(self.cell, f"{error_of(self.cell).rstrip('.')}, {_RESTARTS + 1} times in a row.")
        raise RuntimeError(error_of(self.cell))

    def _follow(self) -> None:
        """Run the same as the leading process, in a process group that Lightning joins."""
        arguments = _shared(self.cell)
        log = log_of(self.cell).with_name(f"log-{_rank()}.txt")
        status = self._run(arguments, log)
        if status and not self._told:
            raise RuntimeError(f"Process {_rank()} ended with status {status}; see {log}.")

    def _run(self, arguments: Sequence[str], log: Path) -> int:
        # The cluster signals every process of a job, and this one signal is for submitit alone.
        before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        try:
            with log.open("ab") as out:
                process = subprocess.Popen(
                    [*self.runner, *arguments],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    env=_environment(self.cell), start_new_session=True,
                )  # fmt: skip
        finally:
            signal.signal(signal.SIGUSR2, before)
        self._process = process
        return process.wait()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._told = True
        if self._process is not None and self._process.poll() is None:
            _signal(self._process, signal.SIGTERM)


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
        "gpus_per_node": resources.gpus or None,
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


def _environment(cell: Cell) -> dict[str, str]:
    environment = dict(os.environ)
    if cell.devices * cell.nodes == 1:
        # One process needs no cluster; what Lightning takes from these variables would mislead it.
        environment = {k: v for k, v in environment.items() if not k.startswith("SLURM_")}
    threads = str(cell.stage.resources.cpus)
    return environment | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
    }


def _rank() -> int:
    return int(os.environ.get("SLURM_PROCID", "0"))


def _start_mark() -> str:
    """Return what differs from one start of a job to the next."""
    return f"{os.environ.get('SLURM_JOB_ID')}-{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def _share(cell: Cell, arguments: Sequence[str]) -> None:
    text = json.dumps({"start": _start_mark(), "arguments": list(arguments)})
    part = cell.folder / ".start.part"
    part.write_text(text)
    part.replace(cell.folder / ".start")


def _shared(cell: Cell) -> list[str]:
    """Wait for what the leading process was started with, and return it."""
    until = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError, ValueError):
            told = json.loads((cell.folder / ".start").read_text())
            if told["start"] == _start_mark():
                return list(told["arguments"])
        time.sleep(0.2)
    raise RuntimeError(f"The leading process of {cell.key} did not start in {_WAIT_SECONDS:.0f} s.")


def _stop(process: subprocess.Popen[bytes]) -> int:
    """Ask a process to save and stop, kill it if it does not, and return its exit status.

    This runs inside a signal handler, above a `Popen.wait` whose lock is not to be had here.
    """
    _signal(process, signal.SIGTERM)
    until = time.monotonic() + _SAVE_SECONDS
    with contextlib.suppress(ChildProcessError):  # it had ended by itself
        while True:
            ended, status = os.waitpid(process.pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                _signal(process, signal.SIGKILL)
            time.sleep(0.1)
    return process.returncode or 0


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
