"""Times and memory that can be compared.

Candidates take turns, so drift of the machine affects all of them alike. The clock is read only
when the device is idle. The first runs are dropped.
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from elip.data.batch import Batch
from elip.model.meter import Meter
from elip.tasks.base import Task

Run = Callable[[], object]
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Lightning's names of mixed precision; every other one runs in float32."""

_ENOUGH_SECONDS = 0.05
_MOST_EXAMPLES = 256


@dataclass(frozen=True)
class Timing:
    """Times of one candidate.

    Attributes:
        seconds: Times of the counted runs, in order.
        examples: Examples in one run.
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

    Each round runs every candidate once. The order rotates from round to round.

    Args:
        candidates: What to run, by name; at least one.
        rounds: Counted rounds, at least 1.
        warm_up: Rounds before these, whose times are dropped.
        examples: Examples in one run.
        device: Where they run.
    """
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            seconds = time_once(candidates[name], device)
            if number >= warm_up:
                times[name].append(seconds)
    return {name: Timing(tuple(seconds), examples) for name, seconds in times.items()}


def time_once(run: Run, device: torch.device | str = "cpu") -> float:
    """Return the seconds of one run, from an idle device to an idle device."""
    _wait(device)
    start = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - start


@contextmanager
def inference(*modules: nn.Module, precision: str | None = None) -> Iterator[None]:
    """Evaluate without gradient in a precision, then restore the modes.

    Time all runs inside *one* such context. Autocast caches the weights that it has cast until its
    context ends, so a context per run would cast all weights in every run.

    Args:
        modules: What runs.
        precision: Lightning's name, such as ``32-true`` or ``bf16-mixed``.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    half = HALF.get(precision or "")
    casting: AbstractContextManager[object] = nullcontext()
    if half is not None:
        casting = torch.autocast(next(modules[0].parameters()).device.type, half)
    try:
        for module in modules:
            module.eval()
        with torch.no_grad(), casting:
            yield
    finally:
        for part, mode in modes:
            part.training = mode


def choose_batch(meter: Meter, task: Task, make: Callable[[int], Batch]) -> int:
    """Return the number of examples to time inference at: 1, 2, 4, ... 256.

    The first at which a pass without reduction takes 50 ms. With less work, a fast device mostly
    launches operators, and hides what a method saves. Call inside `inference`.

    Args:
        meter: The model.
        task: Its task.
        make: Makes a batch of so many examples, on the model's device.
    """
    count = 1
    with meter.reduction_disabled():
        while count < _MOST_EXAMPLES:
            batch = make(count)
            task.infer(meter, batch)  # warm-up
            seconds = time_once(partial(task.infer, meter, batch), batch.images.device)
            if seconds >= _ENOUGH_SECONDS:
                break
            count *= 2
    return count


def peak_memory(run: Run, device: torch.device | str = "cpu") -> int | None:
    """Return the peak memory of one run in bytes, above the memory in use at its start.

    On CUDA this is what torch's allocator holds. On the CPU it is the resident memory of the
    process. It includes scratch space of libraries, varies by a few megabytes, and needs Linux
    (elsewhere the result is None).

    Args:
        run: What to run, once. Run it before as a warm-up.
        device: Where it runs.
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
        # Return freed memory to the system, or its reuse would go unseen. Then "5" resets the
        # high-water mark (man 5 proc).
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError):
        return None
    resident = _process_bytes("VmRSS")
    run()
    return _process_bytes("VmHWM") - resident


def _process_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
