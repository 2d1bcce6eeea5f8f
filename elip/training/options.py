"""Options of the trainer that fit no run; found when they are read, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from elip.checkpoints import BEST, LAST

_ABOVE_0 = ("val_check_interval", "check_val_every_n_epoch", "accumulate_grad_batches")
_SEARCHES = ("LearningRateFinder", "BatchSizeFinder")


def check_options(config: Mapping[str, Any], command: str) -> None:
    """Refuse options that would give another result than they say.

    Args:
        config: The resolved configuration, as plain values.
        command: ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        ValueError: The message says what to give instead.
    """
    trainer = config["trainer"]
    for name in _ABOVE_0:
        value = trainer[name]
        if isinstance(value, int | float) and not value > 0:
            raise ValueError(f"trainer.{name} is {value}; it must be above 0.")
    clip = trainer["gradient_clip_val"]
    if clip is not None and not clip >= 0:
        raise ValueError(f"trainer.gradient_clip_val is {clip}; it must be above 0, or 0 for none.")
    if trainer["use_distributed_sampler"]:
        raise ValueError(
            "trainer.use_distributed_sampler would score some examples twice; leave it out: "
            "processes share out examples as it is."
        )
    if trainer["overfit_batches"]:
        raise ValueError(
            "trainer.overfit_batches would draw other examples in each epoch; to train on a few, "
            "give data.train_limit, how many."
        )
    used = {"fit": "train", "validate": "val"}.get(command, command)
    lengths = [f"limit_{used}_batches", *(("max_steps", "max_epochs") if command == "fit" else ())]
    for name in lengths:
        if trainer[name] in (0, 0.0):
            raise ValueError(f"trainer.{name} is 0: {command} would have nothing to do.")
    if re.search("spawn|fork|notebook", str(trainer["strategy"])):
        raise ValueError(f"trainer.strategy {trainer['strategy']}: several processes run with ddp.")
    searches = [kind for kind in _SEARCHES if kind in str(trainer["callbacks"])]
    if searches:
        raise ValueError(
            f"{searches[0]} would change the configuration that is recorded; give "
            "model.optimization.learning_rate and data.batch_size."
        )
    for each in trainer["callbacks"] or []:
        if _keeps_ours(each):
            raise ValueError(
                "A ModelCheckpoint of your own would write over best.ckpt or last.ckpt, which the "
                "run keeps itself: give it a dirpath, or another filename and no save_last."
            )
    for name in ("optimizer", "lr_scheduler"):
        if config.get(name) is not None:
            raise ValueError(
                f"--{name} has no effect: METER is trained with AdamW and a polynomial decay. "
                "Their options: model.optimization."
            )


def _keeps_ours(callback: Any) -> bool:
    """Whether a checkpoint callback takes the names of our checkpoints in their folder."""
    if not isinstance(callback, Mapping) or "Checkpoint" not in str(callback.get("class_path")):
        return False
    given = callback.get("init_args") or {}
    named = given.get("filename") in (BEST, LAST) or bool(given.get("save_last"))
    return named and given.get("dirpath") is None


def known_processes(config: Mapping[str, Any]) -> int | None:
    """Return how many processes a run will have; None where its machine decides.

    Args:
        config: The resolved configuration, as plain values.
    """
    trainer = config["trainer"]
    devices = trainer["devices"]
    if devices == "auto" and trainer["accelerator"] == "cpu":
        devices = 1
    elif isinstance(devices, list):
        devices = len(devices)
    if not str(devices).isdigit():
        return None
    return int(devices) * int(trainer["num_nodes"])


def accumulated(config: Mapping[str, Any], processes: int) -> int:
    """Return over how many batches gradients are accumulated.

    Args:
        config: The resolved configuration of a fit, as plain values.
        processes: How many processes it has.

    Raises:
        ValueError: Effective batch size, batch size and accumulation do not agree.
    """
    wanted, given = (
        config["effective_batch_size"],
        int(config["trainer"]["accumulate_grad_batches"]),
    )
    batch_size = config["data"]["batch_size"]
    at_once = batch_size * processes
    if wanted is None:
        return given
    if wanted < 1 or wanted % at_once:
        raise ValueError(
            f"effective_batch_size {wanted} is not a multiple of data.batch_size "
            f"{batch_size} times {processes} processes."
        )
    if given not in (1, wanted // at_once):
        raise ValueError(
            f"effective_batch_size {wanted} takes {wanted // at_once} batches of {at_once} "
            f"examples, and trainer.accumulate_grad_batches is {given}: leave one of them out."
        )
    return int(wanted) // int(at_once)
