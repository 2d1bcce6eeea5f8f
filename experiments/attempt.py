"""One attempt at one run: what is on disk, who holds it, how it is started, how it ended.

All that is known of a run is in its folder, so a launcher can be killed at any moment:

- ``cell.json``: which run of which grid this is; ``cell.yaml``: its configuration
- ``.lock``: held by whoever runs it, and by the run itself for as long as it lives
- ``attempts.jsonl``: a line an attempt that came to its end under a launcher
- ``log.txt``: all output of all attempts; ``run.json``: the record
"""

from __future__ import annotations

import fcntl
import json
import re
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any, Literal

import yaml
from pydantic import TypeAdapter, ValidationError

from elip.checkpoints import checkpoint_path
from elip.files import set_aside, whole_file
from elip.old_record import (
    RECORD_NAME,
    Hardware,
    Record,
    RecordError,
    Status,
    read_record,
    write_record,
)
from elip.provenance import code_version, config_hash, cores, package_versions
from experiments.grid import GridError
from experiments.plan import Cell

ATTEMPTS_NAME = "attempts.jsonl"
IDENTITY_NAME = "cell.json"

Seen = Literal["done", "failed", "open"]

_TAIL_LINES = 40
_TAIL_BYTES = 20_000


def look(cell: Cell) -> Seen:
    """Return what the run's record says: done, failed, or still to be run."""
    if not (cell.record_folder / RECORD_NAME).exists():
        return "open"
    try:
        status = read_record(cell.record_folder).status
    except RecordError:
        return "failed"
    return {"completed": "done", "failed": "failed", "interrupted": "open"}[status]  # type: ignore[return-value]


def error_of(cell: Cell) -> str:
    """Return the error of a failed run, or what is wrong with its record."""
    try:
        return read_record(cell.record_folder).error or "no error was recorded"
    except RecordError as error:
        return str(error)


def acquire(path: Path) -> IO[str] | None:
    """Take the lock at ``path``; None when another living process has it.

    The lock belongs to the open file. Handed to a child, it is held until both have closed it or
    have died, so a run keeps its folder even when its launcher is killed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError as error:
        file.close()
        raise GridError(
            f"{path} cannot be locked: {error}. Runs and launchers tell by locks who runs what; "
            "keep the grid on a file system that has them (flock)."
        ) from error
    return file


def sign(file: IO[str], pid: int) -> None:
    """Write into a lock who holds it."""
    file.seek(0)
    file.truncate()
    json.dump({"pid": pid, "host": socket.gethostname(), "since": now()}, file)
    file.flush()


def holder(path: Path) -> dict[str, Any]:
    """Return who holds a lock: ``pid``, ``host``, ``since``; empty where that is not known."""
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


@dataclass(frozen=True)
class CellIdentity:
    """Which run of which grid a folder holds.

    Attributes:
        grid: Name of the grid.
        stage: Name of the stage.
        name: Name of the run within it.
        id: `Cell.id`.
        parent: ``id`` of the run that it started from; None for none.
        labels: Label on each axis.
    """

    grid: str
    stage: str
    name: str
    id: str
    parent: str | None
    labels: dict[str, str]


_IDENTITY = TypeAdapter(CellIdentity)


def read_identity(folder: Path) -> CellIdentity:
    """Read a run's ``cell.json``.

    Raises:
        RecordError: It cannot be read, or is damaged.
    """
    path = folder / IDENTITY_NAME
    try:
        return _IDENTITY.validate_json(path.read_bytes())
    except OSError as error:
        raise RecordError(f"Cannot read {path}: {error.strerror}.") from error
    except ValidationError as error:
        raise RecordError(
            f"{path} is damaged ({error.errors()[0]['msg']}). Restore it; a grid writes it when it "
            "runs the run again."
        ) from error


@dataclass(frozen=True)
class Attempt:
    """A started attempt.

    Attributes:
        cell: The run.
        arguments: What the command line is given.
        started: Date and time, ISO 8601.
    """

    cell: Cell
    arguments: tuple[str, ...]
    started: str


def lock_of(cell: Cell) -> Path:
    """Return the path of a run's lock."""
    return cell.folder / ".lock"


def log_of(cell: Cell) -> Path:
    """Return the path of a run's log."""
    return cell.folder / "log.txt"


def prepare(cell: Cell, grid: str) -> Attempt:
    """Write the run's files and return how to start it: on from its last checkpoint, if any.

    An older record is kept under a number.
    """
    clear(cell)
    with whole_file(cell.folder / "cell.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(cell.config, sort_keys=False), encoding="utf-8")
    identity = CellIdentity(
        grid, cell.stage.name, cell.name, cell.id, cell.parent.id if cell.parent else None,
        cell.labels,
    )  # fmt: skip
    with whole_file(cell.folder / IDENTITY_NAME) as temporary:
        temporary.write_text(json.dumps(asdict(identity), indent=1), encoding="utf-8")
    arguments = [cell.stage.command, "--config", str(cell.folder / "cell.yaml")]
    if cell.stage.command == "fit" and checkpoint_path(cell.folder, "last").is_file():
        arguments += ["--ckpt_path", "last"]
    with log_of(cell).open("a", encoding="utf-8") as log:
        log.write(f"=== {now()} {' '.join(arguments)}\n")
    return Attempt(cell, tuple(arguments), now())


def clear(cell: Cell) -> None:
    """Make the run's folder, and keep what an earlier attempt recorded under a number."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    set_aside(cell.record_folder / RECORD_NAME)


def conclude(attempt: Attempt, status: int, seconds: float) -> Seen:
    """Note how an attempt ended, and see to it that there is a record.

    A process that was killed leaves none: it gets one that says so. A failed one gets the end of
    its log.

    Args:
        attempt: The attempt.
        status: Exit status of the process; negative for the signal that ended it.
        seconds: How long it took.

    Returns:
        What has become of the run; ``open`` when it was stopped from outside and can go on.
    """
    cell = attempt.cell
    own = {"started": attempt.started, "seconds": round(seconds, 3), "status": status}
    with whole_file(cell.folder / ATTEMPTS_NAME) as temporary:
        # Anew each time: added to a line that was cut short, this one would be lost with it.
        lines = [json.dumps(each) + "\n" for each in (*attempts(cell.folder), own)]
        temporary.write_text("".join(lines), encoding="utf-8")
    tail = log_tail(log_of(cell))
    try:
        record = read_record(cell.record_folder)
    except RecordError:
        killed = status in (-signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL)
        ended: Status = "interrupted" if killed else "failed"
        write_record(_stand_in(attempt, ended, _reason(status, tail), tail), cell.record_folder)
    else:
        if record.status == "failed":
            write_record(replace(record, log_tail=tail), cell.record_folder)
    return look(cell)


def give_up(cell: Cell, error: str) -> None:
    """Turn the record of a run that was stopped again and again into one that failed."""
    record = read_record(cell.record_folder)
    tail = log_tail(log_of(cell))
    write_record(replace(record, status="failed", error=error, log_tail=tail), cell.record_folder)


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Return the attempts at the run in a folder: ``started``, ``seconds`` and ``status`` of each.

    A line that was cut short, by a full disk for instance, is passed over.
    """
    try:
        lines = (folder / ATTEMPTS_NAME).read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with suppress(ValueError, LookupError, TypeError, RecursionError):
            told = json.loads(line)
            numbers = {"seconds": float(told["seconds"]), "status": int(told["status"])}
            found.append({"started": str(told["started"]), **numbers})
    return found


def seconds_spent(found: Sequence[dict[str, Any]]) -> float | None:
    """Return the time of all `attempts` at a run, in seconds; None where there is none."""
    return sum(attempt["seconds"] for attempt in found) if found else None


def log_tail(path: Path) -> tuple[str, ...]:
    """Return the last lines of a log."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ()
    return tuple(text.splitlines()[-_TAIL_LINES:])


def now() -> str:
    """Return date and time, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def _reason(status: int, tail: Sequence[str]) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        return f"Killed from outside ({name})."
    for index in reversed(range(len(tail))):
        if re.match(r"error: |[\w.]*(Error|Exception|Interrupt)\b", tail[index]):
            return "\n".join(line.strip() for line in tail[index : index + 5])
    return f"Ended with status {status} and without a record; see {RECORD_NAME}'s log_tail."


def _stand_in(attempt: Attempt, status: Status, error: str, tail: tuple[str, ...]) -> Record:
    cell, resolved = attempt.cell, attempt.cell.resolved
    model, datasets = resolved.get("model", {}), resolved.get("data", {}).get("datasets", [])
    reducer = model.get("reducer") or {"class_path": "Identity"}
    task = model.get("task") or ""
    parent = cell.parent_checkpoint or model.get("weights") or resolved.get("ckpt_path")
    return Record(
        name=cell.record_folder.name,
        subcommand=cell.stage.command,
        status=status,
        started=attempt.started,
        ended=now(),
        config=resolved,
        config_hash=config_hash(resolved),
        code=code_version(),
        packages=package_versions(),
        hardware=Hardware(cores=cores()),
        seed=resolved.get("seed_everything"),
        task=str(task["class_path"] if isinstance(task, dict) else task).rsplit(".", 1)[-1],
        datasets=(datasets,) if isinstance(datasets, str) else tuple(datasets),
        reducer=reducer["class_path"].rsplit(".", 1)[-1],
        reducer_options=reducer.get("init_args", {}),
        parent=None if parent is None else str(parent),
        error=error,
        log_tail=tail,
        notes=("Written by the launcher: the process left no record.",),
    )
