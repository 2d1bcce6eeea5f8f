"""The run directory: where one run keeps its config, record, metrics, log and checkpoints.

``fit`` writes into ``trainer.default_root_dir``; the other commands into a folder of their own
below it, so that testing a run never touches what training it left behind.
"""

from __future__ import annotations

from pathlib import Path

from elip.record import RECORD_NAME


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
    if resumes and command == "fit":
        return base
    number = 1
    candidate = base
    while (candidate / RECORD_NAME).exists():
        number += 1
        candidate = base.with_name(f"{base.name}-{number}")
    return candidate


def resolve_checkpoint(asked: str | None, root: Path) -> str | None:
    """Return the checkpoint file that ``last`` or ``best`` stands for.

    Args:
        asked: A path, ``last``, ``best``, or None.
        root: ``trainer.default_root_dir``, the run directory of the training run.

    Raises:
        FileNotFoundError: There is no such checkpoint; the message lists those that there are.
    """
    if asked is None:
        return None
    folder = root / "checkpoints"
    path = folder / f"{asked}.ckpt" if asked in ("last", "best") else Path(asked)
    if path.is_dir():
        best, last = path / "checkpoints" / "best.ckpt", path / "checkpoints" / "last.ckpt"
        path = best if best.is_file() else last
    if not path.is_file():
        there = sorted(str(found) for found in folder.glob("*.ckpt"))
        raise FileNotFoundError(
            f"No checkpoint {path}. "
            + (f"There are {there}." if there else f"{folder} holds none: run fit first.")
        )
    return str(path)
