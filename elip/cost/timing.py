"""Times and memory that can be compared.

Candidates take turns, so drift of the machine affects all of them alike. The clock is read only
when the device is idle. The first runs are dropped.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

Run = Callable[[], object]
HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
"""Lightning's names of mixed precision; every other one runs in float32."""


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
        return self._quantile(0.5)

    @property
    def p95(self) -> float:
        """95th percentile of the time of a run, seconds."""
        return self._quantile(0.95)

    @property
    def spread(self) -> float:
        """Distance between the quartiles, as a share of the median."""
        return (self._quantile(0.75) - self._quantile(0.25)) / self.median

    @property
    def examples_per_second(self) -> float:
        """Throughput at the median."""
        return self.examples / self.median

    def _quantile(self, share: float) -> float:
        return float(np.quantile(self.seconds, share))


def time_interleaved(
    candidates: Mapping[str, Run],
    rounds: int = 10,
    warm_up: int = 2,
    examples: int = 1,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Time candidates against each other.

    Each round runs every candidate once, in an order that rotates from round to round. The times
    of the first ``warm_up`` rounds are dropped.
    """
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(time_once(candidates[name], device))
    return {name: Timing(tuple(seconds[warm_up:]), examples) for name, seconds in times.items()}


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

    ``precision`` is Lightning's name, such as ``32-true`` or ``bf16-mixed``.
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


def peak_memory(run: Run, device: torch.device) -> int | None:
    """Return the bytes that torch's allocator held at most in one run, above those at its start.

    None where the device is not CUDA. Run it once before, as a warm-up.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def machine() -> dict[str, object]:
    """Describe the machine that a benchmark ran on."""
    count = torch.cuda.device_count()
    return {
        "processor": platform.machine(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(number) for number in range(count)],
        "torch": torch.__version__,
    }


def report(rows: Sequence[Mapping[str, object]], path: Path) -> None:
    """Print the rows of a benchmark, and save them as JSON with facts about the machine."""
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3g"))  # noqa: T201
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1), encoding="utf-8")
