"""Command line: the weights of a run as one safetensors file, to keep or to hand on.

``python -m elip.weights runs/shapes/vqa --out vqa.safetensors``; use it with
``--model.weights vqa.safetensors``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import safetensors.torch

from elip.checkpoints import checkpoint_in
from elip.record import RECORD_NAME, RecordError, read_record
from elip.weights.read import read_state


def export(run: Path, out: Path, half: bool = False) -> None:
    """Write the model of a run (its best checkpoint, or else its last) without the optimiser.

    The file carries where it comes from: command, task, reducer, the hash of the configuration and
    the version of the code, as text in its header.

    Args:
        run: The run directory.
        out: The file.
        half: Whether floating-point tensors are stored as float16, at half the size; they are read
            as float32.

    Raises:
        FileNotFoundError: The run has no checkpoint, or no record.
        RecordError: The record cannot be read.
        ValueError: The checkpoint is damaged.
    """
    record = read_record(run)
    state = read_state(checkpoint_in(run))
    if half:
        state = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    about = {
        "command": record.subcommand,
        "task": record.task,
        "reducer": record.reducer,
        "config_hash": record.config_hash,
        "code": record.code.commit or record.code.version,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(state, out, metadata=about)


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m elip.weights", description="The weights of a run as a safetensors file."
    )
    parser.add_argument("run", type=Path, help=f"a run directory: {RECORD_NAME} and checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="the file, ending in .safetensors")
    parser.add_argument("--half", action="store_true", help="store float16, at half the size")
    given = parser.parse_args()
    if given.out.suffix != ".safetensors":
        parser.error(f"--out is {given.out}; the name must end in .safetensors.")
    try:
        export(given.run, given.out, given.half)
    except (OSError, ValueError, RecordError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
