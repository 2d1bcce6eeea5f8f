"""Checkpoints that are whole or not there, and that are refused in a sentence when damaged."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from elip.checkpoints import CheckpointError
from elip.files import whole_file
from elip.inputs import TEXT_CONFIG, read_origin
from elip.model.config import MeterConfig, Sizes
from elip.old_record import Earlier, Origin
from elip.provenance import LENGTH, PLACE, VOLATILE, config_differences
from elip.weights.read import BROKEN

log = logging.getLogger(__name__)

# What a run may change on the way: where it runs, and how long.
_MAY_DIFFER = (
    *VOLATILE, *PLACE, *LENGTH, "trainer.limit_test_batches", "trainer.limit_predict_batches",
    "trainer.devices", "trainer.num_nodes",
)  # fmt: skip
_OPTIONS = {"tokenizer": "data.tokenizer"}  # of inputs that are not named as their option
_LENGTH = ("max_steps", "max_epochs")
_SHOWN = 5
_DEPTHS = ("image_blocks", "text_layers", "fusion_layers")
# Encoders that are built from sizes of the configuration; and those that a name fully tells.
_OF_SIZES = {"vit", "roberta", "bert"}
_NAMED_TEXT = {"roberta", "bert", "roberta-base", "roberta-large", "bert-base-uncased"}


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


def earlier_parts(began: Origin, steps: int, own: Origin) -> tuple[Earlier, ...]:
    """Return what a run that goes on has done under another length, which set its learning rate.

    Args:
        began: What it was when it left its checkpoint.
        steps: How many optimiser steps it had taken.
        own: What it goes on with.
    """
    then, now = (each.config.get("trainer") or {} for each in (began, own))
    was = {f"trainer.{name}": then.get(name) for name in _LENGTH if then.get(name) != now.get(name)}
    return (*began.earlier, *([Earlier(steps, was)] if was and steps else []))


def check_goes_on(path: str | Path, own: Origin) -> None:
    """Hold a run that is to go on against the one that left the checkpoint.

    Args:
        path: The checkpoint; its tensors are not read.
        own: What the run goes on with.

    Raises:
        CheckpointError: It cannot be read, or more differs than the length of the run and where it
            runs.
    """
    _load(path, mmap=True)
    began = read_origin(path)
    if began is None:
        log.warning("%s does not say its run's configuration, which must be this one.", path)
    else:
        refuse_changed(began, own)


def refuse_changed(began: Origin, own: Origin) -> None:
    """Hold a run that goes on against what it began as.

    Raises:
        CheckpointError: More differs than the length of the run and where it runs.
    """
    # Where a file lies does not matter if what it holds is known.
    known = began.inputs.keys() & own.inputs.keys()
    files = [_OPTIONS.get(name, name) for name in known]
    may = (*_MAY_DIFFER, *(option for option in files if "." in option))
    differ = config_differences(began.config, own.config, may)
    said = [f"{name} was {was}, is {now}" for name, (was, now) in differ.items()]
    said += [f"{_content(name)} has changed" for name in changed(began.inputs, own.inputs)]
    if began.processes != own.processes:
        said.append(f"processes were {began.processes}, are {own.processes}")
    if said:
        raise CheckpointError(
            f"A run cannot go on under another configuration: {'; '.join(said[:_SHOWN])}"
            + (f" ({len(said)} differences in all)" if len(said) > _SHOWN else "")
            + ". Give it its own (config.yaml in its directory; only its length may change); or "
            "train anew from its weights, with --model.weights in place of --ckpt_path."
        )


def check_same_model(path: str | Path, own: Origin, whole: bool, scored: bool = False) -> None:
    """Hold the weights that a run begins from against what their tensors do not tell.

    Numbers of heads, the normalisation of pixels, the configuration of the text encoder, the
    tokenizer and the order of answers leave no trace in shapes.

    Args:
        path: The checkpoint or weights file; one that does not say how it was made is let pass.
        own: The run's configuration and inputs.
        whole: Whether it is taken as it is, task and all (``--ckpt_path``).
        scored: Whether it is scored without training, so that no layer may be left out.

    Raises:
        CheckpointError: They were trained as another model; the message says in what.
    """
    made = read_origin(path)
    if made is None:
        return
    was, now = (MeterConfig(**(each.config["model"].get("meter") or {})) for each in (made, own))
    said = [
        f"model.meter.{name} was {one}, is {two}"
        for name, one, two in _told_apart(was.resolve(), now.resolve(), scored)
    ]
    tasks = [_class_of(each.config["model"].get("task")) for each in (made, own)]
    held = ("tokenizer", TEXT_CONFIG, *(["answers"] if tasks[0] == tasks[1] else []))
    differ = changed(made.inputs, own.inputs)
    said += [f"{_content(name)} changed" for name in differ if name in held]
    if whole and tasks[0] != tasks[1]:
        said.append(f"model.task was {tasks[0]}, is {tasks[1]}")
    if said:
        raise CheckpointError(
            f"{path} was trained as another model, though its tensors fit: {'; '.join(said)}. Use "
            "what it was trained with (its config.yaml)."
        )


def _told_apart(was: Sizes, now: Sizes, scored: bool) -> Iterator[tuple[str, Any, Any]]:
    """Yield the sizes that differ and that no tensor's shape tells.

    Depths are among them where weights are scored; training may go on from some of their layers.
    """
    own = {"image_heads": "image_encoder", "text_heads": "text_encoder",
           "text_layers": "text_encoder"}  # fmt: skip
    for name in ("image_encoder", "image_heads", "text_encoder", "text_heads", "fusion_heads",
                 "pixels", *(_DEPTHS if scored else ())):  # fmt: skip
        one, two = getattr(was, name), getattr(now, name)
        if name == "image_encoder":  # the weights that timm has of one architecture stand behind it
            one, two = (each.partition(".")[0] for each in (one, two))
        if name == "image_blocks" and None in (one, two):  # how many, only the encoder knows
            continue
        named = own.get(name)  # an encoder by name, or from a folder, brings its own heads
        if named and getattr(now, named) not in _OF_SIZES:
            continue
        if name == "text_encoder" and {one, two} - _NAMED_TEXT:  # folders move
            continue
        if one != two:
            yield name, one, two


def _class_of(given: Any) -> Any:
    return given.get("class_path") if isinstance(given, dict) else given


def changed(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the inputs that both know, and that are not the same."""
    return sorted(name for name in was.keys() & now.keys() if was[name] != now[name])


def _content(name: str) -> str:
    """Return in words what an input is (see `elip.inputs`)."""
    if "." in name or name == "ckpt_path":
        return f"the file of {name}"
    return f"the {name.replace('_', ' ')}"


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
