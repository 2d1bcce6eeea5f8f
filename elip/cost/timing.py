"""Times and memory that can be compared.

Candidates take turns, so drift of the machine affects all of them alike. The clock is read only
when the device is idle. The first runs are dropped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

Run = Callable[[], object]

_HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Timing(NamedTuple):
    """The times of one candidate."""

    latency_ms: float  # median of a run
    latency_p95_ms: float  # 95th percentile
    latency_spread: float  # distance between the quartiles, as a share of the median
    examples_per_second: float  # at the median


def time_interleaved(
    candidates: Mapping[str, Run],
    rounds: int = 10,
    warm_up: int = 2,
    examples: int = 1,
    device: torch.device | str = "cpu",
) -> dict[str, Timing]:
    """Time candidates against each other.

    Each round runs every candidate once, in an order that rotates from round to round. The times
    of the first ``warm_up`` rounds are dropped. ``examples`` is the number in one run.
    """
    names = list(candidates)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(warm_up + rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(time_once(candidates[name], device))
    found = {}
    for name, seconds in times.items():
        points = np.quantile(seconds[warm_up:], [0.25, 0.5, 0.75, 0.95])
        low, median, high, p95 = points.tolist()
        found[name] = Timing(1e3 * median, 1e3 * p95, (high - low) / median, examples / median)
    return found


def time_once(run: Run, device: torch.device | str = "cpu") -> float:
    """Return the seconds of one run, from an idle device to an idle device."""
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if cuda:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@contextmanager
def undisturbed(*modules: nn.Module, eager: bool = False) -> Iterator[None]:
    """Restore modes and random states afterwards; ``eager`` runs compiled modules uncompiled."""
    states = [(part, part.training, part._compiled_call_impl)
              for module in modules for part in module.modules()]  # fmt: skip
    devices = {tensor.device.index for part in modules for tensor in part.parameters()
               if tensor.is_cuda}  # fmt: skip
    try:
        with torch.random.fork_rng(devices):
            for part, _, compiled in states:
                part._compiled_call_impl = None if eager else compiled
            yield
    finally:
        for part, mode, compiled in states:
            part.training, part._compiled_call_impl = mode, compiled


@contextmanager
def inference(
    *modules: nn.Module, precision: str | None = None, eager: bool = False
) -> Iterator[None]:
    """Evaluate without gradient, `undisturbed`.

    Time all runs inside *one* such context. Autocast caches the weights that it has cast until its
    context ends, so a context per run would cast all weights in every run.

    ``precision`` is Lightning's name. ``bf16-mixed`` and ``16-mixed`` cast, the others do not.
    """
    casting: AbstractContextManager[object] = nullcontext()
    if precision in _HALF:
        casting = torch.autocast(next(modules[0].parameters()).device.type, _HALF[precision])
    with undisturbed(*modules, eager=eager), torch.no_grad(), casting:
        for module in modules:
            module.eval()
        yield


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
