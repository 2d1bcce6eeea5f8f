"""Describes code, packages, processor and memory for the run record."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "elip", "torch", "torchvision", "timm", "transformers", "tokenizers", "lightning",
    "jsonargparse", "torchmetrics", "numpy", "pyarrow", "pillow", "fvcore",
)  # fmt: skip


@cache
def environment() -> dict[str, Any]:
    """Return the fields of an `elip.record.Record` that describe code and machine."""
    import torch

    version, commit, dirty = code_version()
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "version": version,
        "commit": commit,
        "dirty": dirty,
        "packages": package_versions(),
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "gpus": tuple(torch.cuda.get_device_name(index) for index in gpus),
    }


def precision_advice(precision: str) -> str | None:
    """Advise on a faster precision for this processor; None if the given one is best.

    Processors with the flag avx512_bf16 or amx_bf16 compute in bfloat16; others emulate it.
    """
    try:
        has_bf16 = "_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None
    if has_bf16 and precision == "32-true":
        return (
            "This processor has bfloat16: trainer.precision=bf16-mixed is about 1.6 times faster."
        )
    if not has_bf16 and precision == "bf16-mixed":
        return "This processor has no bfloat16: trainer.precision=32-true is faster."
    return None


def code_version() -> tuple[str, str | None, bool | None]:
    """Return the package's version, commit, and whether the checkout has changes."""
    root = Path(__file__).resolve().parent.parent
    try:
        version = metadata.version("elip")
    except metadata.PackageNotFoundError:
        version = "not installed"
    # Without its own .git, git would describe a repository further up.
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if not commit:
        return version, None, None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    # New files of code are not in the commit either.
    added = _git(root, "ls-files", "--others", "--exclude-standard", "--", "elip", "reducers")
    return version, commit, None if changes is None else bool(changes or added)


def package_versions() -> dict[str, str]:
    """Return Python's version and those of the packages that can change a result."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # macOS and Windows have none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str | None:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or None


def memory_bytes() -> int | None:
    """Return the main memory of the machine in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
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
