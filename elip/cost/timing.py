"""Time and memory, measured so that two candidates can be compared.

Runs of all candidates are interleaved, so that a machine that gets slower or busier hits all of
them alike; the first runs are dropped; medians stand with their spread.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Times of one candidate.

    Attributes:
        seconds: Times of the counted runs, in the order in which they were made.
        examples: Examples that one run handles.
    """

    seconds: tuple[float, ...]
    examples: int = 1

    @property
    def median(self) -> float:
        """Median time of a run, seconds."""
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        """95th percentile of the time of a run, seconds (linear between the nearest two)."""
        return float(np.quantile(self.seconds, 0.95))

    @property
    def spread(self) -> float:
        """Distance between the quartiles, as a share of the median."""
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float(high - low) / self.median

    @property
    def examples_per_second(self) -> float:
        """Throughput at the median."""
        return self.examples / self.median


def time_interleaved(
    candidates: Mapping[str, Run],
    rounds: int = 10,
    warm_up: int = 2,
    examples: int = 1,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Time candidates against each other.

    Each round runs every candidate once, in an order that moves on by one from round to round, so
    that none is always behind the same other.

    Args:
        candidates: What to run, by name.
        rounds: Counted rounds, at least 1.
        warm_up: Rounds before these, whose times are dropped.
        examples: Examples that one run handles.
        device: Where they run. On CUDA the clock is read when the device has finished.

    Raises:
        ValueError: There are no candidates or no rounds.
    """
    if not candidates or rounds < 1:
        raise ValueError(
            f"{len(candidates)} candidates and {rounds} rounds; give at least one of each."
        )
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = _time(candidates[name], torch.device(device))
            if number >= warm_up:
                times[name].append(seconds)
    return {name: Timing(tuple(seconds), examples) for name, seconds in times.items()}


def peak_memory(run: Run, device: torch.device | str = "cpu") -> int | None:
    """Return by how many bytes memory rose at most during one run, above its start.

    On CUDA: the tensors that torch's allocator held at once. On the CPU: the resident memory of
    the process, which takes in the scratch space of libraries as well and repeats to a few
    megabytes only; Linux alone can tell it. Weights and inputs are there before and not counted.

    Args:
        run: What to run, once. Run it before, so that what it sets up once is not counted.
        device: Where it runs.

    Returns:
        Bytes, or None where the system cannot tell.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # Memory that was freed but not handed back would be used again unseen: hand it back. Then
        # "5" lets the system's high-water mark fall to the present level (man 5 proc).
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError):
        return None
    resident = _process_bytes("VmRSS")
    run()
    return _process_bytes("VmHWM") - resident


def _process_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}.")


def _time(run: Run, device: torch.device) -> float:
    _synchronise(device)
    start = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
