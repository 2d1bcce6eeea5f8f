"""Describes code, packages, processor and memory for the run record."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
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

    packages = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    commit, dirty = _commit()
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "version": packages.get("elip", "not installed"),
        "commit": commit,
        "dirty": dirty,
        "packages": packages,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")  # macOS has none
        else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": tuple(torch.cuda.get_device_name(index) for index in gpus),
    }


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit of the code, and whether the checkout has changes."""
    root = Path(__file__).resolve().parent.parent
    # Without its own .git, git would describe a repository further up.
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if not commit:
        return None, None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    # New files of code are not in the commit either.
    added = _git(root, "ls-files", "--others", "--exclude-standard", "--", "elip", "reducers")
    return commit, None if changes is None else bool(changes or added)


def _git(root: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(root), *arguments]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return None


def _cpu_name() -> str | None:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or None


def peak_memory_bytes() -> int:
    """Return the peak resident memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
