"""A job is the work of one process: how to start it, and what it leaves on disk.

The run directories are the only state, so a launcher may be killed at any moment.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from elip.files import set_aside
from elip.identity import METHOD_OPTIONS, checkpoint_path, without
from elip.record import RECORD_NAME, Record, RecordError, read_record, write_record
from experiments.grid import Cell

State = Literal["open", "done", "failed"]

_LEAST_IN_SWEEP = 8
_TAIL_LINES, _TAIL_BYTES = 40, 20_000


@dataclass(frozen=True)
class Job:
    """The work of one process: one run, or a sweep of runs that differ only in the method."""

    cells: tuple[Cell, ...]

    @property
    def slots(self) -> int:
        """Number of slots it needs."""
        return self.cells[0].devices

    @property
    def log(self) -> Path:
        """The file that receives its output."""
        first = self.cells[0].folder
        return first / "log.txt" if len(self.cells) == 1 else first.with_name(f"{first.name}.log")

    @property
    def title(self) -> str:
        """Readable name."""
        more = len(self.cells) - 1
        return self.cells[0].key + (f" and {more} more in one sweep" if more else "")


def make_jobs(cells: Sequence[Cell], slots: int = 1) -> list[Job]:
    """Group runs of one stage into jobs.

    Scoring runs that share their weights and differ only in reducer and schedule form one sweep.
    Many of them form a sweep per slot, so that all slots have work.
    """
    groups: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        trainer = cell.config["trainer"]
        own = any(not isinstance(trainer.get(x), bool | None) for x in ("callbacks", "logger"))
        alone = cell.stage.command == "fit" or cell.devices * cell.nodes > 1 or own
        shared = [str(cell.parent and cell.parent.folder), without(cell.stated, METHOD_OPTIONS)]
        groups[str(cell.folder) if alone else json.dumps(shared, default=str)].append(cell)
    jobs = []
    for group in groups.values():
        parts = max(1, min(slots, len(group) // _LEAST_IN_SWEEP))
        jobs += [Job(tuple(group[part::parts])) for part in range(parts)]
    return jobs


def look(cell: Cell) -> State:
    """Return the state of a run according to its record."""
    if not (cell.folder / RECORD_NAME).exists():
        return "open"
    try:
        status = read_record(cell.folder).status
    except RecordError:
        return "failed"
    states: dict[str, State] = {"completed": "done", "failed": "failed", "interrupted": "open"}
    return states[status]


def error_of(cell: Cell) -> str:
    """Return the error of a failed run, or the problem with its record."""
    try:
        return read_record(cell.folder).error or "no error recorded"
    except RecordError as error:
        return str(error)


def start_arguments(cell: Cell, leads: bool = True) -> list[str]:
    """Return the arguments that start a run, or resume it from its last checkpoint.

    This renames an older record, so that nobody takes it for the record of this attempt.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    if leads:
        set_aside(cell.folder / RECORD_NAME)
    args = list(cell.args)
    if cell.stage.command == "fit" and checkpoint_path(cell.folder, "last").is_file():
        args.append("--ckpt_path=last")
    return args


def conclude(cell: Cell, started: str, status: int, log: Path, stopped: bool = False) -> State:
    """Make sure that a failed run has a record with the end of its log, and return its state.

    Args:
        cell: The run.
        started: Its start time, ISO 8601.
        status: Exit status of its process. Negative means killed by that signal.
        log: Its log.
        stopped: Whether it was asked to stop, so that a missing record is no failure.
    """
    try:
        record = read_record(cell.folder)
    except RecordError:
        if stopped or status == -signal.SIGTERM:
            return "open"
        record = _stand_in(cell, started, status)
    if record.status == "failed" and not record.log_tail and log.exists():
        text = log.read_bytes()[-_TAIL_BYTES:].decode(errors="replace")
        record = record.model_copy(update={"log_tail": tuple(text.splitlines()[-_TAIL_LINES:])})
        write_record(record, cell.folder)
    return look(cell)


def _stand_in(cell: Cell, started: str, status: int) -> Record:
    """Return a record for a run whose process died without writing one."""
    error = f"The process exited with status {status} and left no record."
    if status < 0:
        error = f"Killed by {signal.Signals(-status).name}."
    if status == -signal.SIGKILL:
        error += " Out of memory? Try fewer --jobs or a smaller batch."
    model, names = cell.config["model"], cell.config["data"]["datasets"]
    task, reducer = (
        (given or {"class_path": "Identity"})["class_path"].rpartition(".")[2]
        for given in (model["task"], model["reducer"])
    )
    return Record(
        name=cell.folder.name, run_id=cell.run_id, command=cell.stage.command, status="failed",
        started=started, ended=now(), protocol="unknown", protocol_options={},
        stated_config=cell.stated, config=cell.config, task=task, reducer=reducer,
        datasets=(names,) if isinstance(names, str) else tuple(names),
        seed=cell.config["seed_everything"], error=error,
        notes=("Written by the launcher: the process left no record.",),
        grid=cell.folder.parents[1].name, stage=cell.stage.name, axes=cell.labels,
    )  # fmt: skip


def now() -> str:
    """Return date and time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def do_job(worker: str, grid: str, job: Job, leads: bool = True) -> int:
    """Do a job in this process and return the exit status.

    ``leads`` says whether this is the job's first process. Only that one renames old files.
    """
    arguments = [start_arguments(cell, leads) for cell in job.cells]
    log_file = job.log if leads else job.log.with_suffix(f".{os.getpid()}.txt")
    with log_file.open("ab", buffering=0) as log:
        log.write(f"=== {now()} {shlex.join(arguments[0])}\n".encode())
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if len(job.cells) > 1:
        return int(call(worker, "sweep", grid, job.cells, arguments))
    cell = job.cells[0]
    run = {"args": arguments[0], "grid": grid, "stage": cell.stage.name, "axes": cell.labels}
    if cell.devices == 1 or "SLURM_PROCID" in os.environ:
        return int(call(worker, "run", **run))
    # Lightning starts the other devices by running the same command again, so this must be a
    # command. On a cluster, SLURM has started all processes.
    text = json.dumps({"worker": worker, "run": run})
    process = subprocess.Popen([sys.executable, "-m", "experiments.jobs", text])
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    return process.wait()


def call(worker: str, name: str, *args: Any, **options: Any) -> Any:
    """Call a function of a worker module."""
    return getattr(importlib.import_module(worker), name)(*args, **options)


if __name__ == "__main__":
    request: Mapping[str, Any] = json.loads(sys.argv[1])
    sys.exit(call(request["worker"], "run", **request["run"]))
