"""Running a plan on this machine: child processes, a slot for each device or group of cores."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Protocol

from elip.provenance import cores
from experiments.attempt import (
    Attempt,
    acquire,
    conclude,
    error_of,
    give_up,
    holder,
    lock_of,
    log_of,
    look,
    prepare,
    sign,
)
from experiments.board import Board
from experiments.grid import GridError
from experiments.plan import Cell
from experiments.warm import Request, Warm, WarmRun

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Slots:
    """How many processes may run at once, and what each is given.

    Attributes:
        count: Number of slots.
        gpus: GPUs by number; slots share them in turn. Empty for none.
        threads: Processor threads of a slot.
    """

    count: int
    gpus: tuple[str, ...] = ()
    threads: int = 1

    def environment(self, taken: Sequence[int]) -> dict[str, str]:
        """Return the environment of a process that takes these slots."""
        # Under a cluster's variables, Lightning would take this process for one of its tasks.
        keep = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_"))}
        threads = str(self.threads * len(taken))
        keep |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        # Threads that wait by spinning take the cores from the neighbours.
        keep |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}
        if self.gpus:
            mine = dict.fromkeys(self.gpus[slot % len(self.gpus)] for slot in taken)
            keep["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        return keep


def find_slots(jobs: int | None) -> Slots:
    """Return the slots of this machine.

    Args:
        jobs: Number of slots; None for one a GPU, or where there is none, one for two cores.
    """
    gpus = _gpus()
    count = jobs or len(gpus) or max(1, cores() // 2)
    return Slots(count, gpus, max(1, cores() // count))


def _gpus() -> tuple[str, ...]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(each for each in visible.split(",") if each)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True, text=True, check=True, timeout=30,
        ).stdout  # fmt: skip
        return tuple(listed.split())
    return ()


class Listener(Protocol):
    """What is told of everything that happens."""

    def event(self, cell: Cell, what: str) -> None:
        """Something has happened to a run."""

    def tick(self, board: Board) -> None:
        """Time has gone by."""


@dataclass
class _Running:
    """A process at work; ``process`` is None for one that an earlier launcher had started."""

    cell: Cell
    slots: list[int]
    began: float
    attempt: Attempt | None = None
    process: subprocess.Popen[bytes] | WarmRun | None = None

    def send(self, number: signal.Signals) -> None:
        pid = self.process.pid if self.process else holder(lock_of(self.cell)).get("pid")
        if pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)


@dataclass
class LocalLauncher:
    """Carries out a plan in child processes.

    A run that is killed from outside goes on from its last checkpoint, ``restarts`` times at
    most. On Ctrl-C, SIGTERM or SIGHUP the runs are asked to save and stop; the second time they
    are killed. When the launcher itself is killed, its runs go on, and the next launcher waits
    for them.

    Args:
        board: The plan and its state.
        grid: Name of the grid.
        slots: What there is to run on.
        runner: How the command line is started.
        listener: Is told what happens.
        warm: How a process that forks the runs is started; None for a fresh one each time.
        restarts: How often a run that was killed is started again.
    """

    board: Board
    grid: str
    slots: Slots
    runner: Sequence[str]
    listener: Listener
    warm: Sequence[str] | None = None
    restarts: int = 2
    _warm: Warm | None = None
    _running: list[_Running] = field(default_factory=list)
    _deaths: dict[str, int] = field(default_factory=dict)
    _asked: int = 0

    def run(self) -> bool:
        """Run everything that is ready until nothing is; return False when it was stopped."""
        self._check_sizes()
        before = {
            number: signal.signal(number, self._ask)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            self._free = list(range(self.slots.count))
            self._adopt()
            if self.warm and sum(cell.devices == 1 for cell in self.board.of("waiting")) > 1:
                self._warm = Warm(self.warm, self.slots.environment([0]))
            while self._start_ready() or self._running:
                self.listener.tick(self.board)
                time.sleep(_POLL_SECONDS)
                for running in list(self._running):
                    self._poll(running)
        finally:
            if self._warm is not None:
                self._warm.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        self.listener.tick(self.board)
        return not self._asked

    def _check_sizes(self) -> None:
        for cell in self.board.of("waiting"):
            if cell.devices > self.slots.count or cell.nodes > 1:
                raise GridError(
                    f"{cell.key} takes {cell.devices} devices on {cell.nodes} nodes, and there are "
                    f"{self.slots.count} slots here. Give --jobs {cell.devices} or more, or use "
                    "--launcher slurm."
                )

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked += 1
        for running in self._running:
            running.send(signal.SIGTERM if self._asked == 1 else signal.SIGKILL)

    def _adopt(self) -> None:
        for cell in self.board.of("waiting"):
            if not lock_of(cell).exists():
                continue
            lock = acquire(lock_of(cell))
            if lock is not None:
                lock.close()
                continue
            taken = [self._free.pop(0) for _ in range(min(cell.devices, len(self._free)))]
            self._running.append(_Running(cell, taken, time.monotonic()))
            self.board.set(cell, "running")
            self.listener.event(cell, "still runs, from an earlier launcher")

    def _start_ready(self) -> bool:
        """Start what there are slots for; return whether anything could start later."""
        if self._asked:
            return False
        ready = self.board.ready()
        for cell in ready:
            if self._asked or cell.devices > len(self._free):
                break
            self._start(cell, [self._free.pop(0) for _ in range(cell.devices)])
        return bool(ready)

    def _start(self, cell: Cell, taken: list[int]) -> None:
        lock = acquire(lock_of(cell))
        if lock is None:  # somebody runs it by another launcher
            self._running.append(_Running(cell, taken, time.monotonic()))
            self.board.set(cell, "running")
            return
        attempt = prepare(cell, self.grid)
        process = self._spawn(attempt, lock, taken)
        self._running.append(_Running(cell, taken, time.monotonic(), attempt, process))
        if self._asked:  # while it was starting, when nobody could hand the signal on to it
            self._running[-1].send(signal.SIGTERM)
        self.board.set(cell, "running")
        self.listener.event(cell, "goes on" if "--ckpt_path" in attempt.arguments else "starts")

    def _spawn(
        self, attempt: Attempt, lock: IO[str], taken: list[int]
    ) -> subprocess.Popen[bytes] | WarmRun:
        environment = self.slots.environment(taken)
        # Several devices are Lightning's to start, which begins the command line anew for each.
        if self._warm is not None and attempt.cell.devices == 1:
            lock.close()  # the run takes it
            paths = str(log_of(attempt.cell)), str(lock_of(attempt.cell))
            run = self._warm.start(Request(attempt.arguments, environment, *paths))
            if run is not None:
                return run
            again = acquire(lock_of(attempt.cell))
            assert again is not None
            lock = again
        with lock, log_of(attempt.cell).open("ab") as log:
            process = subprocess.Popen(
                [*self.runner, *attempt.arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=environment,
                pass_fds=(lock.fileno(),),  # the run itself holds its lock from here on
                start_new_session=True,  # Ctrl-C is the launcher's to hand on
            )  # fmt: skip
            sign(lock, process.pid)
        return process

    def _poll(self, running: _Running) -> None:
        if running.process is None:
            lock = acquire(lock_of(running.cell))
            if lock is None:
                return
            lock.close()
            seen = look(running.cell)
        else:
            status = running.process.poll()
            if status is None:
                return
            running.send(signal.SIGKILL)  # loader processes that outlived it would keep the lock
            assert running.attempt is not None
            seen = conclude(running.attempt, status, time.monotonic() - running.began)
        self._running.remove(running)
        self._free = sorted([*self._free, *running.slots])
        self._settle(running.cell, seen)

    def _settle(self, cell: Cell, seen: str) -> None:
        if seen == "open":
            deaths = self._deaths[cell.id] = self._deaths.get(cell.id, 0) + 1
            if self._asked:
                self.board.set(cell, "stopped")
                self.listener.event(cell, "stopped; start again to go on")
                return
            if deaths <= self.restarts:
                self.board.set(cell, "waiting")
                self.listener.event(cell, "was killed from outside; it is started again")
                return
            give_up(
                cell,
                f"{error_of(cell).rstrip('.')}, {deaths} times in a row. Where memory runs out, "
                "the system kills: fewer --jobs or a smaller batch help.",
            )
            seen = "failed"
        self.board.set(cell, "done" if seen == "done" else "failed")
        first = error_of(cell).splitlines()[0] if seen == "failed" else ""
        self.listener.event(cell, f"failed: {first}" if first else "done")
        for skipped in self.board.skip_orphans():
            assert skipped.parent is not None
            self.listener.event(skipped, f"skipped, since {skipped.parent.key} failed")
