"""Identity of a run: run id, protocol and fingerprints, computed once when the run starts.

The *stated config* holds the options that differ from the defaults, so a new option or a newer
Lightning changes no identity. Options of the machine (`MACHINE_OPTIONS`) and paths of weights never
count; weights count by the run that made them, or by their content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from elip.record import CheckpointInfo, RunHeader, display_name

log = logging.getLogger(__name__)

FOLDER = "checkpoints"  # in a run directory
BEST: Final = "best"  # the checkpoint of its best validation
LAST: Final = "last"  # and of its last step
INFO_KEY = "elip_run"  # of the `CheckpointInfo` (JSON) in a checkpoint or weights file

MACHINE_OPTIONS = (
    "config", "ckpt_path", "weights_only", "return_predictions", "verbose",
    "data.root", "data.num_workers", "data.prefetch_factor", "data.eval_batch_size",
    "model.compile", "model.recompute",
    *(f"trainer.{name}" for name in (
        "accelerator", "barebones", "benchmark", "default_root_dir", "devices",
        "enable_checkpointing", "enable_model_summary", "enable_progress_bar",
        "log_every_n_steps", "logger", "num_nodes", "plugins", "profiler", "strategy",
    )),
)  # fmt: skip
"""Options that say where a run computes and how it reports, not what it computes.

The number of processes changes the batch of a step; `protocol_options` includes that batch.
"""

WEIGHT_OPTIONS = ("model.weights", "model.image_weights", "model.text_weights")
"""Paths of weights; their lineage or a fingerprint of their content counts instead."""

LENGTH_OPTIONS = tuple(
    f"trainer.{name}" for name in ("max_steps", "max_epochs", "max_time", "min_steps", "min_epochs")
)
"""Options for the length of training; a continued run may change them."""

TRAINING_OPTIONS = (
    *LENGTH_OPTIONS,
    "effective_batch_size", "data.batch_size", "data.fast_decode", "data.train_limit",
    "data.train_transform", "model.optimization",
    *(f"trainer.{name}" for name in (
        "accumulate_grad_batches", "check_val_every_n_epoch", "gradient_clip_algorithm",
        "gradient_clip_val", "limit_train_batches", "limit_val_batches", "num_sanity_val_steps",
        "val_check_interval",
    )),
)  # fmt: skip
"""Options that only training reads; they do not count for test, validate and predict."""

METHOD_OPTIONS = ("model.reducer", "model.schedule")
"""Options that a comparison varies."""

SEED_OPTION = "seed_everything"

# Aliases in Lightning; None is its default.
_PRECISIONS = {"32": None, "32-true": None, "16": "16-mixed", "bf16": "bf16-mixed"}


def digest(value: Any, length: int = 8) -> str:
    """Return the first ``length`` hexadecimal digits of the SHA-256 of a plain value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def without(config: Mapping[str, Any], options: Iterable[str]) -> dict[str, Any]:
    """Return the leaves of a nested config by dotted name, except those at or below options."""
    left_out = tuple(f"{option}." for option in options)

    def leaves(node: Any, name: str) -> Iterator[tuple[str, Any]]:
        if isinstance(node, Mapping) and node:
            for key, value in node.items():
                yield from leaves(value, f"{name}{key}.")
        elif not name.startswith(left_out):
            yield name[:-1], node

    return dict(leaves(config, ""))


def identifying(command: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of a stated config that identify a run of a command."""
    unused = () if command == "fit" else TRAINING_OPTIONS
    leaves = without(stated, (*MACHINE_OPTIONS, *WEIGHT_OPTIONS, *unused))
    if (given := leaves.pop("trainer.precision", None)) is not None:
        precision = _PRECISIONS.get(str(given), given)
        leaves |= {} if precision is None else {"trainer.precision": precision}
    return leaves


def run_id(command: str, stated: Mapping[str, Any], parent: str | None) -> str:
    """Return the run id: 8 hexadecimal digits.

    ``parent`` is the run id of the initial weights (with ``/last`` for a last checkpoint), or the
    fingerprint of a file that names no run; None for random weights.
    """
    return digest([command, identifying(command, stated), parent])


def protocol_options(
    command: str,
    stated: Mapping[str, Any],
    fingerprints: Mapping[str, str],
    parent: RunHeader | None,
    examples_per_step: int | None = None,
) -> dict[str, Any]:
    """Return the values that two comparable runs share, by dotted name.

    ``fingerprints`` are those of data splits and of weights files that name no run, ``parent`` is
    the run that made the initial weights, ``examples_per_step`` the batch over all processes.
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
    """Return the dotted options that differ between two configs, with both values (or None)."""
    left, right = without(one, left_out), without(other, left_out)
    pairs = {name: (left.get(name), right.get(name)) for name in (*left, *right)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def describe(differences: Mapping[str, tuple[Any, Any]]) -> str:
    """Return differences in words."""
    return "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in differences.items())


def arrow_fingerprint(files: Iterable[Path]) -> str:
    """Return the fingerprint of a dataset split: names, sizes, row counts, hash of the footers."""
    facts: list[Any] = []
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as content:
            # The footer lists schema and record batches; its length precedes the magic bytes.
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
    return _content_fingerprint(path, tuple((file, file.stat().st_mtime_ns) for file in files))


@lru_cache
def _content_fingerprint(path: Path, files: tuple[tuple[Path, int], ...]) -> str:
    total = hashlib.sha256()
    for file, _ in files:
        total.update(f"{file.relative_to(path)}\n".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 22):
                total.update(block)
    return total.hexdigest()[:16]


def source_fingerprint(kind: type) -> str | None:
    """Return a hash of a class's source file; None for our own code, which the commit covers."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    if kind.__module__.partition(".")[0] in ("elip", "reducers", "builtins") or file is None:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]


def method_name(reducer: str, schedule: Mapping[str, Any]) -> str:
    """Return the name of a method, such as "ELIP 0.7", "ELIP 44/34/22" or "No reduction"."""
    if reducer == "Identity":
        return display_name(reducer)
    counts, ratio = schedule.get("counts"), schedule.get("keep_ratio")
    amount = "profile" if ratio is None else f"{ratio:g}"
    return f"{reducer} {'/'.join(map(str, counts)) if counts else amount}"


def directory_name(reducer: str, schedule: Mapping[str, Any], seed: int, identity: str) -> str:
    """Return the name of a run directory: method, seed and run id."""
    method = reducer if reducer == "Identity" else method_name(reducer, schedule)
    return f"{method.replace(' ', '-').replace('/', '_')}-s{seed}-{identity}"


class CheckpointError(ValueError):
    """A checkpoint cannot be written, found, read or used."""


def checkpoint_path(run: Path, name: str) -> Path:
    """Return the path of a run's checkpoint ``best`` or ``last``."""
    return run / FOLDER / f"{name}.ckpt"


def weights_id(run_id: str, checkpoint: str | None) -> str:
    """Return the identity of a run's checkpoint ``best`` or ``last``, as the parent of another."""
    return f"{run_id}/last" if checkpoint == LAST else run_id


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is complete: the directory of a zip archive is written last."""
    return path.is_file() and zipfile.is_zipfile(path)


def find_checkpoint(path: str | Path, first: str = BEST) -> Path:
    """Return the complete checkpoint of a run directory, or ``path`` itself if it is a file.

    In a directory, the checkpoint ``first`` is preferred; the other is used with a warning.

    Raises:
        CheckpointError: There is no complete checkpoint.
    """
    path = Path(path).expanduser()
    if path.suffix == ".ckpt" and path.is_file() and not is_whole(path):
        raise CheckpointError(f"{path} is incomplete or not a checkpoint. Delete it.")
    if not path.is_dir():
        return path
    preferred, other = (LAST, BEST) if first == LAST else (BEST, LAST)
    if is_whole(found := checkpoint_path(path, preferred)):
        return found
    if is_whole(instead := checkpoint_path(path, other)):
        log.warning("%s is missing or incomplete; using %s.", found, instead)
        return instead
    raise CheckpointError(f"There is no complete checkpoint in {path}. Run fit first.")


def read_checkpoint_info(path: Path) -> CheckpointInfo | None:
    """Return the run information in a checkpoint or weights file, or None; reads no tensors."""
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
    # A file of another program; loading its weights will report what is wrong.
    except Exception:  # noqa: BLE001
        return None
