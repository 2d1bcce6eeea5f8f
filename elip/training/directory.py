"""The run directory: where one run keeps its config, record, metrics, log and checkpoints.

``fit`` writes into ``trainer.default_root_dir``; the other commands into a folder of their own
below it, so that testing a run never touches what training it left behind.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from elip.checkpoints import (
    BEST,
    FOLDER,
    LAST,
    CheckpointError,
    checkpoint_in,
    checkpoint_path,
    first_whole,
    is_whole,
)
from elip.files import whole_file
from elip.old_record import RECORD_NAME, RecordError, read_record

_PATIENCE = 10.0  # seconds


def run_directory(root: Path, command: str, resumes: bool) -> Path:
    """Return a directory that holds no other finished run.

    Args:
        root: ``trainer.default_root_dir``.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        resumes: Whether a run is to be continued in its own directory.

    Returns:
        The directory; a number is added to its name where there is a record already.
    """
    base = root if command == "fit" else root / command
    if command == "fit" and (resumes or _is_requeued(base)):
        return base
    number = 1
    candidate = base
    while (candidate / RECORD_NAME).exists():
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate


def claim(run_dir: Path) -> FileLock | None:
    """Hold a run directory for as long as a run lives, so that no other writes there meanwhile.

    Returns:
        The lock; None where the file system has none.

    Raises:
        CheckpointError: Another living process has it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir / ".running")
    try:
        lock.acquire(timeout=_PATIENCE)  # loaders of a run that was killed end a little later
    except Timeout as error:
        raise CheckpointError(
            f"Another run is writing into {run_dir}. Wait for it, or give this one another "
            "trainer.default_root_dir."
        ) from error
    except (OSError, NotImplementedError):
        return None
    return lock


def refuse_another(checkpoint: str, root: Path) -> None:
    """Hold a run that is to go on to a directory that is its own, or new.

    Args:
        checkpoint: The checkpoint that it goes on from.
        root: The directory.

    Raises:
        CheckpointError: Another run's results lie there.
    """
    last = checkpoint_path(root, LAST)
    # A best checkpoint alone is no sign: it is brought along before anything else is there.
    taken = (root / RECORD_NAME).exists() or last.exists()
    if taken and not _is_in(checkpoint, last.parent):
        raise CheckpointError(
            f"{checkpoint} is of another run than the one in {root}, whose results would be lost. "
            "Set trainer.default_root_dir to the run's own directory, or to a new one."
        )


def bring_best(checkpoint: str, root: Path) -> None:
    """Copy the best checkpoint of a run that goes on in a new directory, if it has one there.

    Args:
        checkpoint: The checkpoint that it goes on from.
        root: The directory.
    """
    there = Path(checkpoint).resolve().with_name(f"{BEST}.ckpt")
    here = checkpoint_path(root, BEST)
    if is_whole(there) and not _is_in(checkpoint, here.parent):
        with whole_file(here, durable=True) as temporary:
            shutil.copyfile(there, temporary)


def not_ended(checkpoint: Path) -> str | None:
    """Return how the run stands that keeps a checkpoint, where that is not at its end.

    None too for a checkpoint that lies elsewhere, or beside a record that cannot be read.

    Args:
        checkpoint: The checkpoint.
    """
    folder = checkpoint.absolute().parent
    if folder.name != FOLDER:
        return None
    if not (folder.parent / RECORD_NAME).exists():
        return "no record"
    try:
        status = read_record(folder.parent).status
    except RecordError:
        return None
    return None if status == "completed" else status


def _is_in(checkpoint: str, folder: Path) -> bool:
    return Path(checkpoint).resolve().parent == folder.resolve()


def _is_requeued(run_dir: Path) -> bool:
    """Whether the cluster starts an interrupted run again, which Lightning then resumes itself."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return False
    try:
        return read_record(run_dir).status == "interrupted"
    except RecordError:
        return False


def resolve_checkpoint(asked: str | None, root: Path, command: str) -> str | None:
    """Return the checkpoint file that is meant, after a look at whether it is whole.

    Where ``last`` is missing or half written, ``best`` takes its place, and a warning says so.

    Args:
        asked: ``last``, ``best``, what `checkpoint_in` takes, or None.
        root: ``trainer.default_root_dir``, the run directory of the training run.
        command: ``fit`` goes on from a run directory's last checkpoint; the others score its best.

    Raises:
        FileNotFoundError: There is no such checkpoint; the message lists those that there are.
        CheckpointError: There is, but it was not written to its end.
    """
    if asked is None:
        return None
    if command == "fit" and Path(asked).expanduser().is_dir():
        asked, root = LAST, Path(asked).expanduser()
    if asked in (LAST, BEST):
        return str(first_whole([checkpoint_path(root, name) for name in (asked, BEST)]))
    return str(first_whole([checkpoint_in(asked)]))
