"""Where a result comes from: identity of the configuration, code, packages, hardware."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from elip.old_record import Code, Hardware

VOLATILE = (
    "config",
    "trainer.default_root_dir",
    "trainer.enable_checkpointing",
    "trainer.enable_model_summary",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "trainer.profiler",
)
"""Options that say where and how a run reports, not what it computes. They are no part of its
identity. Callbacks are, if there are any: they may stop a run, or change how it learns."""

PLACE = (
    "ckpt_path", "weights_only", "data.root", "data.num_workers", "trainer.accelerator",
    "model.compile", "model.recompute",
)  # fmt: skip
"""Options that say where a run computes and from where it reads. A run may go on under others, and
its repeats may have others; what is read there is told by its content (`elip.inputs`)."""

LENGTH = tuple(f"trainer.{name}" for name in (
    "max_steps", "max_epochs", "max_time", "min_steps", "min_epochs",
))  # fmt: skip
"""Options that say how long a run trains; the first two also set its learning rate."""

# Lightning's names of one thing; None is its default.
_SAME_PRECISION = {"32": None, "32-true": None, "16": "16-mixed", "bf16": "bf16-mixed"}

_PACKAGES = (
    "elip", "torch", "torchvision", "timm", "transformers", "tokenizers", "lightning",
    "jsonargparse", "torchmetrics", "numpy", "pyarrow", "pillow", "fvcore",
)  # fmt: skip


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with another laid over it; a class with its options goes over whole.

    Args:
        below: Stays where ``above`` says nothing; neither is changed.
        above: Wins; mappings in both are merged in turn.
    """
    result = copy.deepcopy(dict(below))
    for key, value in above.items():
        old = result.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and "class_path" not in value:
            result[key] = merged(old, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def config_hash(config: Mapping[str, Any], leave_out: Iterable[str] = VOLATILE) -> str:
    """Return the identity of a resolved configuration: 16 hexadecimal digits of a SHA-256.

    The order of keys does not matter.

    Args:
        config: The configuration, as plain mappings, lists and scalars.
        leave_out: Dotted paths that are no part of the identity. For instance
            ``(*VOLATILE, "seed_everything")`` gives one identity to all seeds of a setting.
    """
    text = json.dumps(without(config, leave_out), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def config_differences(
    one: Mapping[str, Any], other: Mapping[str, Any], leave_out: Iterable[str] = VOLATILE
) -> dict[str, tuple[Any, Any]]:
    """Return where two configurations differ: dotted option, and its value in each (or None).

    Args:
        one: A configuration.
        other: Another.
        leave_out: Dotted paths that are not looked at.
    """
    left, right = (dict(_leaves(without(each, leave_out))) for each in (one, other))
    pairs = {name: (left.get(name), right.get(name)) for name in (*left, *right)}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def without(config: Mapping[str, Any], leave_out: Iterable[str]) -> dict[str, Any]:
    """Return a configuration as plain values, without some options and with one name for a thing.

    Args:
        config: The configuration.
        leave_out: Dotted paths.
    """
    plain: dict[str, Any] = json.loads(json.dumps(config, default=str))
    for path in leave_out:
        *parents, last = path.split(".")
        node: Any = plain
        for key in parents:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(last, None)
    trainer = plain.get("trainer")
    if isinstance(trainer, dict):
        if not trainer.get("callbacks"):
            trainer.pop("callbacks", None)
        if "precision" in trainer:
            given = trainer["precision"]
            trainer["precision"] = _SAME_PRECISION.get(str(given), given)
    return plain


def _leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict) or not node:
        yield name, node
        return
    for key, value in node.items():
        yield from _leaves(value, f"{name}.{key}" if name else str(key))


def code_version() -> Code:
    """Return the package's version and, where the code lies in a git checkout, its commit."""
    root = Path(__file__).resolve().parent.parent
    try:
        version = metadata.version("elip")
    except metadata.PackageNotFoundError:
        version = "not installed"
    # Without its own .git, a repository further up would answer for code that is not its own.
    if not (root / ".git").exists():
        return Code(version)
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    # A method that was never added is not in the commit either.
    added = _git(root, "ls-files", "--others", "--exclude-standard", "--", "elip", "reducers")
    return Code(version, commit or None, None if changes is None else bool(changes or added))


def package_versions() -> dict[str, str]:
    """Return Python's version and those of the packages that can change a result."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def hardware() -> Hardware:
    """Return processor, memory and GPUs of this machine."""
    # Reading results needs no torch; looking for GPUs does.
    import torch

    gpus = [
        torch.cuda.get_device_properties(index)
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    return Hardware(
        cpu=_cpu_name(),
        cores=cores(),
        memory_bytes=_memory(),
        gpus=tuple(gpu.name for gpu in gpus),
        gpu_memory_bytes=gpus[0].total_memory if gpus else None,
    )


def cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS and Windows have none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Return the highest resident memory that this process ever had, as the system reports it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
