"""Checkpoints that are whole or not there, and that are refused in a sentence when damaged."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from elip.checkpoints import CheckpointError
from elip.files import whole_file
from elip.weights.read import BROKEN

_SHOWN = 5


class WholeCheckpoints(TorchCheckpointIO):
    """Writes to a temporary file in the same folder, forces it to disk, and renames it.

    Lightning's own way goes through the system's temporary folder; where that is another disk,
    a process that is killed leaves half a checkpoint under the final name.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint.

        Raises:
            CheckpointError: It could not be written; an older one of that name is untouched.
        """
        target = Path(path)
        try:
            with whole_file(target, durable=True) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"Cannot write the checkpoint {target}: {error}. Make room or set "
                "trainer.default_root_dir; an older checkpoint there is untouched."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint, tensors and plain values only.

        Raises:
            CheckpointError: It is damaged, carries code, or is no checkpoint of a run.
        """
        try:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"{path} carries objects beside tensors and plain values, which are not loaded. "
                "To take only its weights: --model.weights."
            ) from error
        except BROKEN as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if not isinstance(loaded, dict) or "state_dict" not in loaded:
            raise CheckpointError(
                f"{path} is no checkpoint of a run. To start from weights: --model.weights."
            )
        return loaded


def check_fit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Hold the tensors of a checkpoint against those of the model.

    Raises:
        CheckpointError: Names or shapes differ; the message names the first few.
    """
    wrong = [f"{name} is missing" for name in own if name not in given]
    wrong += [f"{name} has no place" for name in given if name not in own]
    wrong += [
        f"{name} is {tuple(given[name].shape)}, wanted {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if wrong:
        raise CheckpointError(
            f"The checkpoint is of another model, with {len(wrong)} differences: "
            f"{'; '.join(wrong[:_SHOWN])}. Use the configuration that it was trained with (its "
            "config.yaml), or --model.weights to take what fits."
        )
