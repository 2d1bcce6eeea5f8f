"""What a run reads beside its configuration: digests of files and code, and its weights' origin."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from elip.checkpoints import BEST, FOLDER, LAST, CheckpointError, checkpoint_in
from elip.record import Origin, origin_from_json
from elip.weights.read import BROKEN

if TYPE_CHECKING:
    from elip.data.module import DataModule
    from elip.tasks.base import Task
    from reducers.contract import Reducer

TEXT_CONFIG = "model.meter.text_encoder"
"""Option of the configuration of a text encoder, which decides what its tensors mean."""

_CONFIG_NAME = "config.json"
# What transformers notes in a configuration of how it was written, which is nothing of the model.
_NOTED = {"transformers_version", "_name_or_path", "architectures", "torch_dtype", "dtype"}

# The record's commit stands for the code of the first two, its versions for that of the others.
_KNOWN = {"elip", "reducers", "torch", "lightning", *sys.stdlib_module_names}


def run_inputs(
    command: str,
    config: Mapping[str, Any],
    task: Task,
    reducer: Reducer | None,
    data: DataModule,
) -> dict[str, str]:
    """Return the digests of everything that a run reads, by what it is.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        config: The resolved configuration.
        task: The task.
        reducer: The reducer.
        data: The data.
    """
    files = {option: file_digest(path) for option, path in input_files(command, config).items()}
    kinds = [type(task), type(reducer), *map(type, data.catalog.sources)]
    return {**files, **data.digests(command, task.needs), **code_digests(kinds)}


def input_files(command: str, config: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files and folders that a run starts from, by option, those that there are.

    Names on a hub are none; nor is the checkpoint that a training run goes on from, which is its
    own.
    """
    model = config.get("model") or {}
    named = {
        "model.weights": model.get("weights"),
        "ckpt_path": None if command == "fit" else config.get("ckpt_path"),
    }
    found: dict[str, Path] = {}
    for option, given in named.items():
        if given is not None:
            try:
                found[option] = checkpoint_in(given)
            except (FileNotFoundError, CheckpointError):
                continue
    for option in ("image_weights", "text_weights"):
        if model.get(option) is not None:
            found[f"model.{option}"] = Path(os.path.expanduser(model[option]))
    encoder = (model.get("meter") or {}).get("text_encoder")
    if encoder is not None:
        found[TEXT_CONFIG] = Path(os.path.expanduser(encoder), _CONFIG_NAME)
    return {option: path for option, path in found.items() if path.exists()}


def file_digest(path: Path) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a file, or of the files in a folder.

    A text encoder's configuration counts by what it says of the model.
    """
    digest = hashlib.sha256()
    if path.name == _CONFIG_NAME and (config := _model_config(path)):
        digest.update(json.dumps(config, sort_keys=True).encode())
        return digest.hexdigest()[:16]
    for file in sorted(each for each in path.rglob("*") if each.is_file()) or [path]:
        digest.update(f"{file.relative_to(path)}\n{file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()[:16]


def _model_config(path: Path) -> dict[str, Any] | None:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    return {name: value for name, value in config.items() if name not in _NOTED}


def code_digests(kinds: Iterable[type]) -> dict[str, str]:
    """Return the digests of classes that are not of this project, by class name.

    The files that they and the classes they are made from stand in are digested.
    """
    found: dict[str, str] = {}
    for kind in kinds:
        files = dict.fromkeys(file for base in kind.__mro__ if (file := _source(base)))
        digests = [file_digest(file) for file in files]
        if len(digests) > 1:
            digests = [hashlib.sha256("".join(digests).encode()).hexdigest()[:16]]
        found |= {f"code of {kind.__name__}": digest for digest in digests}
    return found


def _source(kind: type) -> Path | None:
    """Return the file of a class; None for one that the record tells of otherwise, or without."""
    if kind.__module__.partition(".")[0] in _KNOWN:
        return None
    try:
        path = inspect.getsourcefile(kind)
    except (TypeError, OSError):  # typed in by hand
        path = None
    return Path(path) if path is not None and Path(path).is_file() else None


def read_origin(path: Path | str) -> Origin | None:
    """Return how the weights in a file were made; None where it does not say.

    Args:
        path: A checkpoint, or weights that ``python -m elip.weights`` wrote.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get("origin")
            return None if text is None else origin_from_json(text)
        # Mapped, so that its tensors are not read.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        origin = origin_from_json(loaded["callbacks"]["Recorder"]["origin"])
        return replace(origin, steps=loaded.get("global_step"), kept=_kept(path.absolute()))
    except BROKEN:  # another program's; what is wrong with it, reading the weights will say
        return None


def _kept(path: Path) -> str | None:
    """Return which of a run's checkpoints a file is; None for one that lies elsewhere."""
    return path.stem if path.parent.name == FOLDER and path.stem in (BEST, LAST) else None
