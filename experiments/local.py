"""Run jobs on this machine: one slot per GPU or group of cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from types import FrameType
from typing import Any

from experiments.grid import GridError
from experiments.jobs import Job, conclude, do_job, look, now
from experiments.report import Report, duration

_SAVE_SECONDS = 60.0


@dataclass(frozen=True)
class Slots:
    """The number of parallel processes, and the resources of each."""

    count: int
    gpus: tuple[str, ...] = ()  # the slots share them in turn
    threads: int = 1  # per slot

    def environment(self, taken: Sequence[int]) -> dict[str, str]:
        """Return the environment variables of a process in these slots."""
        threads = str(self.threads * len(taken))
        found = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        if self.gpus:
            mine = dict.fromkeys(self.gpus[slot % len(self.gpus)] for slot in taken)
            found["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        return found


def find_slots(jobs: int | None) -> Slots:
    """Return the slots: by default one per GPU, or one per two cores without a GPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
            listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
            visible = ",".join(listed.stdout.split())
    gpus = tuple(each for each in (visible or "").split(",") if each)
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    count = jobs or len(gpus) or max(1, cores // 2)
    return Slots(count, gpus, max(1, cores // count))


@dataclass
class _Running:
    job: Job
    slots: list[int]
    process: Any
    began: float = field(default_factory=time.monotonic)
    started: str = field(default_factory=now)


class Local:
    """Runs jobs in child processes.

    Ctrl-C, SIGTERM and SIGHUP ask the runs to save and stop. A second signal kills them. When this
    process is killed, its runs save and stop by themselves.
    """

    def __init__(self, context: Any, worker: str, grid: str, slots: Slots, report: Report) -> None:
        self._context, self._worker, self._grid, self._report = context, worker, grid, report
        self._slots, self._free = slots, list(range(slots.count))
        self._running: list[_Running] = []
        self._asked = 0  # to stop

    def run(self, stages: Sequence[Sequence[Job]]) -> bool:
        """Run the stages one after the other. Return False if stopped.

        Raises:
            GridError: A job needs more than this machine has.
        """
        for job in (job for jobs in stages for job in jobs):
            if job.slots > self._slots.count or job.cells[0].nodes > 1:
                raise GridError(
                    f"{job.title} needs {job.slots} devices on {job.cells[0].nodes} nodes; this "
                    f"machine has {self._slots.count} slots. Use --jobs {job.slots} or --launcher "
                    "slurm."
                )
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            for jobs in stages:
                waiting = list(jobs)
                while (waiting and not self._asked) or self._running:
                    while waiting and not self._asked and waiting[0].slots <= len(self._free):
                        self._start(waiting.pop(0))
                    wait([each.process.sentinel for each in self._running], timeout=0.5)
                    for each in [x for x in self._running if x.process.exitcode is not None]:
                        self._settle(each)
                    self._report.tick()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return not self._asked

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked += 1
        for each in self._running:
            with contextlib.suppress(ProcessLookupError):
                if self._asked == 1:
                    each.process.terminate()
                else:
                    os.killpg(each.process.pid, signal.SIGKILL)

    def _start(self, job: Job) -> None:
        """Start a job, or skip it if the run that it starts from is not done."""
        parent = job.cells[0].parent
        if parent is not None and look(parent) != "done":
            for cell in job.cells:
                self._report.set(cell, "skipped")
            return
        taken = [self._free.pop(0) for _ in range(job.slots)]
        arguments = (self._worker, self._grid, job, self._slots.environment(taken))
        process = self._context.Process(target=_work, args=arguments, name=job.title)
        process.start()
        self._running.append(_Running(job, taken, process))
        if self._asked:  # the signal came while the process was starting
            process.terminate()
        for cell in job.cells:
            self._report.set(cell, "running")

    def _settle(self, ended: _Running) -> None:
        job, seconds = ended.job, time.monotonic() - ended.began
        self._running.remove(ended)
        self._free = sorted([*self._free, *ended.slots])
        with contextlib.suppress(ProcessLookupError):  # data loaders that are still alive
            os.killpg(ended.process.pid, signal.SIGKILL)
        done = 0
        for cell in job.cells:
            try:
                stopped = self._asked > 0
                state = conclude(cell, ended.started, ended.process.exitcode, job.log, stopped)
            except OSError as error:  # such as a full disk; the next launch tries again
                self._report.say(f"{cell.key} has no record: {error}", "red")
                state = "failed"
            self._report.set(cell, state)
            if state == "done":
                done += 1
                self._report.took(cell, seconds / len(job.cells))
        if done or self._asked:
            what = "done" if done else "stopped"
            self._report.say(f"{job.title} {what} after {duration(seconds)}")


def _work(worker: str, grid: str, job: Job, environment: dict[str, str]) -> None:
    """Do a job in a child process and exit with its status."""
    os.setsid()  # Ctrl-C reaches only the launcher
    os.environ.update(environment)
    for name in [x for x in os.environ if x.startswith(("SLURM_", "SBATCH_"))]:
        del os.environ[name]  # else Lightning assumes that SLURM started this process
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    sys.exit(do_job(worker, grid, job))


def _stop_with_parent() -> None:
    """When the launcher dies, ask this process to save and stop, then kill it."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SAVE_SECONDS)
    os.killpg(0, signal.SIGKILL)
