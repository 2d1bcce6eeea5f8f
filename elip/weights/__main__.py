"""Command line: the weights of a run as one safetensors file, to keep or to hand on.

``python -m elip.weights runs/shapes/vqa --out vqa.safetensors``; use it with
``--model.weights vqa.safetensors``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import safetensors.torch
import torch

from elip.files import whole_file
from elip.identity import INFO_KEY, find_checkpoint, read_checkpoint_info
from elip.record import RECORD_NAME, read_record
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
        ValueError: The checkpoint is damaged, or holds what is not finite or does not fit float16.
    """
    if run.is_file():  # its record would be sought in the file itself
        raise ValueError(f"{run} is a file; give the run directory, which holds {RECORD_NAME}.")
    record = read_record(run)
    state = {
        # Copies, since safetensors takes neither views nor one tensor under two names.
        name: tensor.to(
            torch.float16 if half and tensor.is_floating_point() else tensor.dtype,
            copy=True,
            memory_format=torch.contiguous_format,
        )
        for name, tensor in read_state(find_checkpoint(run)).items()
    }
    broken = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(
            f"The weights of {run} have values in {len(broken)} tensors, {broken[0]} first, that "
            + ("float16 cannot hold: leave --half out." if half else "are not finite: it failed.")
        )
    about = {
        "command": record.command,
        "task": record.task,
        "reducer": record.reducer,
        "run_id": record.run_id,
        "code": record.commit or record.version or "unknown",
    }
    info = read_checkpoint_info(find_checkpoint(run))
    if info is not None:
        about[INFO_KEY] = info.model_dump_json()
    with whole_file(out) as temporary:
        # Not by `save_file`, which lets nobody but its writer read the file.
        temporary.write_bytes(safetensors.torch.save(state, metadata=about))


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
    except (OSError, ValueError) as error:
        parser.error(str(error))
    sys.stdout.write(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB\n")


if __name__ == "__main__":
    main()
