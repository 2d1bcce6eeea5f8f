"""Checkpoints that are whole or not there, and that are refused in a sentence when damaged."""

from __future__ import annotations

import json
import logging
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from elip.checkpoints import CheckpointError
from elip.files import whole_file
from elip.provenance import VOLATILE, config_differences
from elip.weights.read import BROKEN

log = logging.getLogger(__name__)

# What a run may change on the way: where it runs, and how long.
_MAY_DIFFER = (
    *VOLATILE, "ckpt_path", "weights_only", "data.root", "data.num_workers", "trainer.accelerator",
    "trainer.max_steps", "trainer.max_epochs", "trainer.max_time", "trainer.min_steps",
    "trainer.min_epochs", "trainer.limit_test_batches", "trainer.limit_predict_batches",
    "trainer.devices", "trainer.num_nodes", "model.compile", "model.recompute",
)  # fmt: skip
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
        return _load(path)


def _load(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
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


def conditions(config: Mapping[str, Any], processes: int) -> dict[str, Any]:
    """Return what a run must find again to go on, in plain values for its checkpoint.

    Args:
        config: The resolved configuration.
        processes: How many there are; each has its part of an epoch.
    """
    plain: dict[str, Any] = json.loads(json.dumps({**config, "processes": processes}, default=str))
    return plain


def check_goes_on(path: str | Path, config: Mapping[str, Any], processes: int) -> None:
    """Hold a run that is to go on against the one that left the checkpoint.

    Args:
        path: The checkpoint; its tensors are not read.
        config: The resolved configuration.
        processes: How many there are.

    Raises:
        CheckpointError: It cannot be read, or more differs than the length of the run and where it
            runs.
    """
    began = (_load(path, mmap=True).get("callbacks") or {}).get("Recorder", {}).get("conditions")
    if began is None:
        log.warning("%s does not say its run's configuration, which must be this one.", path)
        return
    differ = config_differences(began, conditions(config, processes), _MAY_DIFFER)
    if differ:
        said = [f"{name} was {was}, is {now}" for name, (was, now) in differ.items()]
        raise CheckpointError(
            f"A run cannot go on under another configuration: {'; '.join(said[:_SHOWN])}"
            + (f" ({len(said)} options in all)" if len(said) > _SHOWN else "")
            + ". Give it its own (config.yaml in its directory; only its length may change); or "
            "train anew from its weights, with --model.weights in place of --ckpt_path."
        )


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
