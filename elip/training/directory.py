"""The run directory: where one run keeps its config, record, metrics, log and checkpoints.

``fit`` writes into ``trainer.default_root_dir``; the other commands into a folder of their own
below it, so that testing a run never touches what training it left behind.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from elip.record import RECORD_NAME
from elip.training.checkpoints import CheckpointError, is_whole

log = logging.getLogger(__name__)


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
    requeued = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0  # Lightning resumes it itself
    if (resumes or requeued) and command == "fit":
        return base
    number = 1
    candidate = base
    while (candidate / RECORD_NAME).exists():
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate


def resolve_checkpoint(asked: str | None, root: Path) -> str | None:
    """Return the checkpoint file that ``last`` or ``best`` stands for.

    Where ``last`` is missing or half written, ``best`` takes its place, and a warning says so.

    Args:
        asked: A path, ``last``, ``best``, or None.
        root: ``trainer.default_root_dir``, the run directory of the training run.

    Raises:
        FileNotFoundError: There is no such checkpoint; the message lists those that there are.
        CheckpointError: There is, but it was not written to its end.
    """
    if asked is None:
        return None
    folder = root / "checkpoints"
    if asked in ("last", "best"):
        choices = [folder / f"{name}.ckpt" for name in dict.fromkeys((asked, "best"))]
    elif Path(asked).is_dir():
        choices = [Path(asked) / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    else:
        choices = [Path(asked)]
    for path in choices:
        if is_whole(path):
            if path is not choices[0]:
                said = "half written" if choices[0].is_file() else "missing"
                log.warning("%s is %s; %s takes its place.", choices[0], said, path.name)
            return str(path)
    for path in choices:
        if path.is_file():
            raise CheckpointError(
                f"{path} is not a whole checkpoint: it was cut short, or is another kind of file. "
                "Delete it, and begin anew or go on from another checkpoint."
            )
    there = sorted(str(found) for found in folder.glob("*.ckpt"))
    raise FileNotFoundError(
        f"No checkpoint {choices[0]}. "
        + (f"There are {there}." if there else f"{folder} holds none: run fit first.")
    )
