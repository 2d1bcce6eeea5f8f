"""One run of a grid on a node of a SLURM cluster."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import submitit

from elip.files import whole_file
from experiments.attempt import (
    Attempt,
    acquire,
    conclude,
    error_of,
    give_up,
    lock_of,
    log_of,
    look,
    prepare,
    sign,
)
from experiments.plan import Cell

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
        # What the leading process hears as submitit's, this one hears as the end of the run.
        signal.signal(signal.SIGUSR2, self._hear)
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
    with whole_file(cell.folder / ".start") as temporary:
        temporary.write_text(text)


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
