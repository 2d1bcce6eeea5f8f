"""Who a run is: run id, protocol and fingerprints. Decided once, when the run starts.

The *stated config* is what differs from the defaults, so a new option or a newer Lightning changes
no identity. Options that say where a run computes and how it logs (`MACHINE_OPTIONS`) and paths of
weights never count; weights count by the run that made them, or by their content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from elip.record import CheckpointInfo, RunHeader, display_name

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
"""Folder of the checkpoints in a run directory."""

BEST: Final = "best"
LAST: Final = "last"
"""The two that a run keeps: of the best validation, and of the last step."""

INFO_KEY = "elip_run"
"""Where a checkpoint or the metadata of a weights file holds its `CheckpointInfo`, as JSON."""

MACHINE_OPTIONS = (
    "config",
    "ckpt_path",
    "weights_only",
    "return_predictions",
    "verbose",
    "data.root",
    "data.num_workers",
    "data.prefetch_factor",
    "data.eval_batch_size",
    "model.compile",
    "model.recompute",
    "trainer.accelerator",
    "trainer.barebones",
    "trainer.benchmark",
    "trainer.default_root_dir",
    "trainer.devices",
    "trainer.enable_checkpointing",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.num_nodes",
    "trainer.plugins",
    "trainer.profiler",
    "trainer.strategy",
)
"""Options that say where a run computes and how it reports, not what it computes.

How many processes share a training step changes its batch: `protocol_options` has that by itself.
"""

WEIGHT_OPTIONS = ("model.weights", "model.image_weights", "model.text_weights")
"""Paths of weights: the lineage or a fingerprint of the content stands for them."""

LENGTH_OPTIONS = tuple(
    f"trainer.{name}" for name in ("max_steps", "max_epochs", "max_time", "min_steps", "min_epochs")
)
"""Options that say how long a run trains; a resumed run may change them."""

TRAINING_OPTIONS = (
    *LENGTH_OPTIONS,
    "effective_batch_size",
    "data.batch_size",
    "data.fast_decode",
    "data.train_limit",
    "data.train_transform",
    "model.optimization",
    "trainer.accumulate_grad_batches",
    "trainer.check_val_every_n_epoch",
    "trainer.gradient_clip_algorithm",
    "trainer.gradient_clip_val",
    "trainer.limit_train_batches",
    "trainer.limit_val_batches",
    "trainer.num_sanity_val_steps",
    "trainer.val_check_interval",
)
"""Options that only training reads: they are no part of a test, validation or prediction."""

METHOD_OPTIONS = ("model.reducer", "model.schedule")
"""What a comparison varies."""

SEED_OPTION = "seed_everything"

# Lightning's names of one thing; None is its default.
_PRECISIONS = {"32": None, "32-true": None, "16": "16-mixed", "bf16": "bf16-mixed"}


def digest(value: Any, length: int = 8) -> str:
    """Return the first ``length`` hexadecimal digits of the SHA-256 of a plain value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of a nested config by dotted name."""

    def leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                yield from leaves(value, f"{name}.{key}" if name else str(key))
        else:
            yield name, node

    return dict(leaves(config, ""))


def without(config: Mapping[str, Any], options: Iterable[str]) -> dict[str, Any]:
    """Return the leaves of a config, save those that are or lie below some dotted options."""
    left_out = tuple(options)
    return {
        name: value
        for name, value in flatten(config).items()
        if not any(name == option or name.startswith(f"{option}.") for option in left_out)
    }


def identifying(command: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of a stated config that tell one run of a command from another."""
    unused = () if command == "fit" else TRAINING_OPTIONS
    leaves = without(stated, (*MACHINE_OPTIONS, *WEIGHT_OPTIONS, *unused))
    if (given := leaves.pop("trainer.precision", None)) is not None:
        precision = _PRECISIONS.get(str(given), given)
        leaves |= {} if precision is None else {"trainer.precision": precision}
    return leaves


def run_id(command: str, stated: Mapping[str, Any], parent: str | None) -> str:
    """Return the run id: 8 hexadecimal digits.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        stated: The stated config.
        parent: What it starts from: the run id of the weights (with ``/last`` for a last
            checkpoint), or the fingerprint of a file that names no run; None for random weights.
    """
    return digest([command, identifying(command, stated), parent])


def protocol_options(
    command: str,
    stated: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    parent: RunHeader | None,
    examples_per_step: int | None = None,
) -> dict[str, Any]:
    """Return what two runs must share to be comparable, by dotted name.

    Args:
        command: The command.
        stated: The stated config.
        fingerprints: Of data splits (``data/<split>``) and of weights files that name no run.
        parent: The run whose weights it starts from.
        examples_per_step: Of a fit: the batch of an optimiser step over all processes.
    """
    left_out = (*METHOD_OPTIONS, SEED_OPTION)
    options = {"command": command, **without(identifying(command, stated), left_out)}
    options |= {f"fingerprint.{name}": value for name, value in fingerprints.items()}
    if command == "fit":
        options["examples_per_step"] = examples_per_step
    if parent is not None:
        options["parent.protocol"] = parent.protocol
        options["parent.checkpoint"] = parent.checkpoint
    return options


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], left_out: Iterable[str] = MACHINE_OPTIONS
) -> dict[str, tuple[Any, Any]]:
    """Return where two configs differ: dotted option, and its value in each (or None)."""
    left, right = without(one, left_out), without(other, left_out)
    pairs = {name: (left.get(name), right.get(name)) for name in (*left, *right)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def arrow_fingerprint(files: Iterable[Path]) -> str:
    """Return the fingerprint of a dataset split: names, sizes, row counts, hash of the footers."""
    facts: list[Any] = []
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as content:
            # The footer lists schema and record batches; its length stands before the magic.
            content.seek(max(0, size - 10))
            length = int.from_bytes(content.read(4), "little", signed=True)
            content.seek(max(0, size - 10 - max(0, length)))
            footer = hashlib.sha256(content.read()).hexdigest()[:16]
        with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as reader:
            rows = sum(reader.get_batch(each).num_rows for each in range(reader.num_record_batches))
        facts.append([file.name, size, rows, footer])
    return digest(facts, 16)


def content_fingerprint(path: Path) -> str:
    """Return the fingerprint of a weights file or folder: a hash of its content."""
    files = sorted(each for each in path.rglob("*") if each.is_file()) or [path]
    newest = max(file.stat().st_mtime_ns for file in files)
    return _content(path, tuple(files), newest)


@lru_cache(maxsize=64)
def _content(path: Path, files: tuple[Path, ...], newest: int) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(path)}\n".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 22):
                total.update(block)
    return total.hexdigest()[:16]


def source_fingerprint(kind: type) -> str | None:
    """Return a hash of the source file of a class; None for ours, which the commit tells."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if kind.__module__.partition(".")[0] in ("elip", "reducers", "builtins") or file is None:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def method_name(reducer: str, schedule: Mapping[str, Any]) -> str:
    """Return a method in words, such as "ELIP 0.7", "ELIP 44/34/22" or "No reduction"."""
    return " ".join([display_name(reducer), *_amount(reducer, schedule)])


def directory_name(reducer: str, schedule: Mapping[str, Any], seed: int, identity: str) -> str:
    """Return the name of a run directory: method, seed and run id."""
    amount = [each.replace("/", "_") for each in _amount(reducer, schedule)]
    return "-".join([reducer, *amount, f"s{seed}", identity])


def _amount(reducer: str, schedule: Mapping[str, Any]) -> list[str]:
    if reducer == "Identity":
        return []
    if schedule.get("counts"):
        return ["/".join(str(count) for count in schedule["counts"])]
    ratio = schedule.get("keep_ratio")
    return ["profile" if ratio is None else f"{ratio:g}"]


class CheckpointError(ValueError):
    """A checkpoint cannot be written, found, read or used; the message says which one and why."""


def checkpoint_path(run: Path, name: str) -> Path:
    """Return where a run keeps the checkpoint ``best`` or ``last``."""
    return run / FOLDER / f"{name}.ckpt"


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end: the directory of a zip archive comes last."""
    return path.is_file() and zipfile.is_zipfile(path)


def find_checkpoint(path: str | Path, first: str = BEST) -> Path:
    """Return a whole checkpoint of a run directory; a file as it is.

    Args:
        path: A run directory or a file; ``~`` is the home folder.
        first: Which of the two is wanted; the other one takes its place, with a warning.

    Raises:
        CheckpointError: There is none that is whole; the message says what there is.
    """
    path = Path(os.path.expanduser(path))
    if path.is_file() and path.suffix == ".ckpt" and not is_whole(path):
        raise CheckpointError(f"{path} was cut short, or is no checkpoint. Delete it.")
    if not path.is_dir():
        return path
    choices = [checkpoint_path(path, name) for name in (first, LAST if first == BEST else BEST)]
    for choice in choices:
        if is_whole(choice):
            if choice != choices[0]:
                log.warning("%s is not there or not whole; %s takes its place.", *choices)
            return choice
    if there := [choice.name for choice in choices if choice.is_file()]:
        raise CheckpointError(f"{path}: {there[0]} was cut short. Delete it and train again.")
    raise CheckpointError(f"There is no checkpoint in {path}: run fit first.")


def read_checkpoint_info(path: Path) -> CheckpointInfo | None:
    """Return what a checkpoint or weights file says of its run; None where it says nothing.

    The tensors are not read.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "np") as file:
                text = (file.metadata() or {}).get(INFO_KEY)
        elif is_whole(path):
            import torch

            text = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get(INFO_KEY)
        else:
            return None
        return None if text is None else CheckpointInfo.model_validate_json(text)
    # A file of another program; what is wrong with it, reading its weights will say.
    except Exception:  # noqa: BLE001
        return None
