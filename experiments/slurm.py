"""Run a grid on a SLURM cluster through submitit: one job array per stage.

The record tells the state of a run, and ``squeue`` tells whether its job is still queued. This
needs no SLURM accounting, and you may stop and restart the launcher at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import submitit

from elip.files import whole_file
from experiments.grid import Cell, GridError
from experiments.jobs import Job, conclude, do_job, error_of, look, now
from experiments.report import Report

_POLL_SECONDS = 2.0
_MISSED = 3  # on shared disks a record may appear after the job has left the queue
_GRACE_SECONDS = 120.0
_HOME = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class ClusterJob:
    """A job on a cluster node. submitit calls it in one process per device."""

    worker: str
    grid: str
    job: Job

    def __call__(self) -> None:
        """Do the job. On preemption or timeout, save and requeue.

        Raises:
            RuntimeError: A run failed, or its parent is not done.
        """
        parent = self.job.cells[0].parent
        if parent is not None and look(parent) != "done":
            raise RuntimeError(f"{parent.key} is not done, and {self.job.title} needs it.")
        job = Job(tuple(cell for cell in self.job.cells if look(cell) != "done"))
        if not job.cells:
            return
        environment, signals = dict(os.environ), list[int]()

        def leave(number: int, frame: FrameType | None) -> None:
            if not signals:
                signals.append(number)
                signal.raise_signal(signal.SIGTERM)  # the run saves and stops

        signal.signal(signal.SIGTERM, signal.default_int_handler)
        signal.signal(signal.SIGUSR2, leave)
        if job.cells[0].devices * job.cells[0].nodes == 1:
            # These variables would make Lightning expect several processes.
            for name in [each for each in os.environ if each.startswith("SLURM_")]:
                del os.environ[name]
        leads = environment.get("SLURM_PROCID", "0") == "0"
        started, status = now(), 1
        with contextlib.suppress(KeyboardInterrupt):
            status = do_job(self.worker, self.grid, job, leads=leads)
        if signals and leads:
            array = environment.get("SLURM_ARRAY_JOB_ID")
            own = f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else None
            command = ["scontrol", "requeue", own or environment["SLURM_JOB_ID"]]
            subprocess.run(command, check=True, env=environment)
        if signals:
            time.sleep(_GRACE_SECONDS)  # until SLURM ends this process
        if leads:
            states = [conclude(cell, started, status, job.log) for cell in job.cells]
            if failed := [c for c, s in zip(job.cells, states, strict=True) if s != "done"]:
                raise RuntimeError(f"{failed[0].key}: {error_of(failed[0])}")


def run_on_slurm(
    grid: str, stages: Sequence[Sequence[Job]], root: Path, worker: str, report: Report
) -> bool:
    """Submit the jobs and watch them to the end. Return False if stopped.

    Jobs that an earlier launcher submitted are not submitted again.

    Raises:
        GridError: SLURM does not answer.
    """
    queue = _queue()
    if queue is None:
        raise GridError("--launcher slurm: squeue does not answer. Use a login node.")
    jobs = _submit(grid, stages, root, worker, queue)
    report.say(f"{len(set(jobs.values()))} jobs are in the queue; Ctrl-C leaves them there")
    cells = [cell for stage in stages for job in stage for cell in job.cells]
    missed: dict[Path, int] = defaultdict(int)
    try:
        while waiting := [c for c in cells if report.states[c.folder] in ("open", "running")]:
            report.tick()
            time.sleep(_POLL_SECONDS)
            if (queue := _queue()) is None:
                continue
            for cell in waiting:
                queued, state = queue.get(jobs[cell.run_id]), look(cell)
                parent = cell.parent and report.states.get(cell.parent.folder)
                missed[cell.folder] = 0 if queued else missed[cell.folder] + 1
                if state != "open":
                    report.set(cell, state)
                    if state == "done":
                        report.say(f"{cell.key} done")
                elif parent in ("failed", "skipped", "stopped"):
                    report.set(cell, "skipped")
                elif queued:
                    report.set(cell, "open" if queued == "PENDING" else "running")
                elif missed[cell.folder] >= _MISSED:
                    report.set(cell, "stopped")
                    report.say(f"{cell.key} left the queue without a result")
    except KeyboardInterrupt:
        report.say("The jobs keep running. The same command watches them; scancel stops them.")
        return False
    return all(report.states[cell.folder] != "stopped" for cell in cells)


def _submit(
    grid: str,
    stages: Sequence[Sequence[Job]],
    root: Path,
    worker: str,
    queue: dict[str, str],
) -> dict[str, str]:
    """Submit jobs by stage and size. Return the SLURM job id of each run id."""
    book = root / ".slurm" / "jobs.json"
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(book.read_text(encoding="utf-8"))
    jobs = {run: job for run, job in known.items() if job in queue}
    for stage in stages:
        groups: dict[tuple[int, int], list[Job]] = defaultdict(list)
        for job in stage:
            if job.cells[0].run_id not in jobs:
                groups[job.cells[0].nodes, job.cells[0].devices].append(job)
        for group in groups.values():
            parents = {job.cells[0].parent.run_id for job in group if job.cells[0].parent}
            arrays = {jobs[run].split("_")[0] for run in parents if run in jobs}
            executor = _executor(group[0].cells[0], grid, root, sorted(arrays))
            with executor.batch():
                queued = [executor.submit(ClusterJob(worker, grid, job)) for job in group]
            for job, handle in zip(group, queued, strict=True):
                jobs |= {cell.run_id: handle.job_id for cell in job.cells}
            with whole_file(book) as temporary:
                temporary.write_text(json.dumps(jobs), encoding="utf-8")
    return jobs


def _executor(cell: Cell, grid: str, root: Path, after: Sequence[str]) -> Any:
    resources = cell.stage.resources
    threads = resources.cpus
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
        "slurm_dependency": "afterany:" + ":".join(after) if after else None,
        "slurm_additional_parameters": {"requeue": True},
        "slurm_srun_args": ["--kill-on-bad-exit=1"],
        "slurm_setup": [
            f"export PYTHONPATH={shlex.quote(str(_HOME))}${{PYTHONPATH:+:$PYTHONPATH}}",
            f"export OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads} OMP_WAIT_POLICY=PASSIVE",
            "export PYTHONUNBUFFERED=1",
        ],
    }
    executor = submitit.AutoExecutor(root.resolve() / ".slurm", cluster="slurm")
    executor.update_parameters(**{k: v for k, v in asked.items() if v is not None})
    return executor


def _queue() -> dict[str, str] | None:
    """Return the state of each of this user's queued jobs, or None if squeue fails."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = listed.stdout.splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line.strip())
