"""The cost of a run's model, measured once and stored beside the runs."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import elip
import reducers
from elip.cost.count import count_forward, count_training_step, random_batch
from elip.cost.timing import Timing, inference, time_interleaved, time_once
from elip.data.batch import Batch
from elip.identity import digest
from elip.model.meter import Meter
from elip.record import Gflops
from elip.tasks.base import Task

log = logging.getLogger(__name__)

COSTS_NAME = "costs.jsonl"
_ROUNDS, _ROUNDS_TOGETHER = 7, 3
_ENOUGH_SECONDS, _MOST_EXAMPLES = 0.05, 256
_UNKNOWN = Gflops()


@dataclass(frozen=True)
class RunCost:
    """What a run's model costs; None where it was not measured.

    Attributes:
        gflops: G multiply-adds an example, texts at full length.
        gflops_unreduced: The same model without reduction.
        batch_size: Examples in a timed batch (`choose_batch`).
        latency_ms: Median inference time of a batch.
        latency_p95_ms: 95th percentile of it.
        latency_unreduced_ms: Median without reduction, timed in the same rounds.
        examples_per_second: Throughput at the median.
        notes: Why something was not measured.
    """

    gflops: Gflops = _UNKNOWN
    gflops_unreduced: Gflops = _UNKNOWN
    batch_size: int | None = None
    latency_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_unreduced_ms: float | None = None
    examples_per_second: float | None = None
    notes: tuple[str, ...] = ()


def cached_cost(
    meter: Meter,
    task: Task,
    store: Path | None = None,
    training: bool = False,
    timed: bool = True,
    precision: str = "32-true",
    facts: Mapping[str, Any] | None = None,
) -> RunCost:
    """Return the cost of a model; measure only what the store does not contain.

    Costs depend on sizes, reducer, token counts and task, not on weights or data. If a measurement
    fails, its values are None and the notes say why, so a finished run is never lost.

    Args:
        meter: The model on its device. Modes and random states do not change.
        task: Its task.
        store: A JSON-lines file, which processes may share; None stores nothing.
        training: Whether to count the training step too.
        timed: Whether to time inference.
        precision: Lightning's name of the precision for timing.
        facts: Other facts that change a cost, such as ``{"compile": True}``.
    """
    store_ = _Store(store)
    shared = _shared_facts(meter, task, facts)

    def gflops(key: Mapping[str, Any]) -> Gflops:
        def forward() -> dict[str, Any]:
            return count_forward(meter, task, _batch(meter, task, 1)).model_dump()

        def step() -> float:
            # Two examples: in pre-training, half of a batch gets a negative image.
            return count_training_step(meter, task, _batch(meter, task, 2))

        found = dict(store_.get({"what": "forward", **shared, **key}, forward))
        if training:
            found["training_step"] = store_.get({"what": "training", **shared, **key}, step)
        return Gflops(**found)

    notes, parts = [], dict[str, Any]()
    # A reducer may fail under tracing, memory may run out, an operator may be unknown. The run is
    # complete all the same and must be recorded.
    try:
        parts["gflops"] = gflops(_own_facts(meter))
        with meter.reduction_disabled():
            parts["gflops_unreduced"] = gflops({"reducer": None})
    except Exception as error:  # noqa: BLE001
        notes.append(f"No GFLOPs: {error}")
    if timed:
        try:
            (times,) = _times(store_, meter, task, [meter.reduction], precision, facts)
            parts |= times
        except Exception as error:  # noqa: BLE001
            notes.append(f"No times: {error}")
    return RunCost(**parts, notes=tuple(notes))


def time_together(
    meter: Meter,
    task: Task,
    reductions: Sequence[Any],
    store: Path,
    precision: str = "32-true",
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Time several reductions in the same rounds, and store the results for `cached_cost`.

    If a reduction fails, nothing is stored, and `cached_cost` will time each one alone.

    ``reductions`` are values of `Meter.reduction`, which have run before. The other arguments are
    those of `cached_cost`.
    """
    kept = meter.reduction
    try:
        _times(_Store(store), meter, task, reductions, precision, facts)
    except Exception as error:  # noqa: BLE001
        log.warning("Methods are timed one by one: %s", error)
        meter.reduction = kept


def _times(
    store: _Store,
    meter: Meter,
    task: Task,
    reductions: Sequence[Any],
    precision: str,
    facts: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Return the times of each reduction; measure those that the store does not contain."""
    device, kept = meter.device, meter.reduction
    where = {"precision": precision, "device": _device_name(device)}
    names, keys, candidates = [], [], dict[str, Callable[[], object]]()

    def run(reduction: Any) -> None:
        meter.reduction = reduction
        task.infer(meter, batch)

    with inference(meter, task, precision=precision):
        count = store.get(
            {"what": "batch size", **_shared_facts(meter, task, facts), **where},
            lambda: choose_batch(meter, task),
        )
        batch = _batch(meter, task, count)
        where["batch_size"] = count
        for number, reduction in enumerate(reductions):
            meter.reduction = reduction
            own = {**_shared_facts(meter, task, facts), **_own_facts(meter)}
            keys.append({"what": "time", **own, **where})
            names.append(str(number) if meter.plan.keep else "unreduced")
            if keys[-1] not in store:
                with meter.reduction_disabled():
                    candidates["unreduced"] = partial(run, meter.reduction)
                candidates[names[-1]] = partial(run, reduction)
        timings = dict[str, Timing]()
        if candidates:
            rounds = _ROUNDS if len(reductions) == 1 else _ROUNDS_TOGETHER
            timings = time_interleaved(candidates, rounds, 1, count, device)
        meter.reduction = kept

    def summary(name: str) -> dict[str, Any]:
        timing = timings[name]
        return {
            "batch_size": count,
            "latency_ms": 1e3 * timing.median,
            "latency_p95_ms": 1e3 * timing.p95,
            "latency_unreduced_ms": 1e3 * timings["unreduced"].median,
            "examples_per_second": timing.examples_per_second,
        }

    return [store.get(key, partial(summary, name)) for key, name in zip(keys, names, strict=True)]


def choose_batch(meter: Meter, task: Task) -> int:
    """Return the number of examples to time inference at: 1, 2, 4, ... 256.

    The first at which a pass without reduction takes 50 ms. With less work, a fast device mostly
    launches operators, and hides what a method saves. Call inside `inference`.
    """
    count = 1
    with meter.reduction_disabled():
        while count < _MOST_EXAMPLES:
            run = partial(task.infer, meter, _batch(meter, task, count))
            run()  # warm-up
            if time_once(run, meter.device) >= _ENOUGH_SECONDS:
                break
            count *= 2
    return count


def _batch(meter: Meter, task: Task, count: int) -> Batch:
    return random_batch(meter, count, task).to(meter.device)


def _shared_facts(meter: Meter, task: Task, facts: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "sizes": asdict(meter.sizes), "task": _options(task), "facts": dict(facts or {}),
        "code": _code_hash(type(task).__module__, type(meter.reducer).__module__),
    }  # fmt: skip


def _own_facts(meter: Meter) -> dict[str, Any]:
    return {"reducer": _options(meter.reducer), "tokens": meter.plan.tokens_per_block}


class _Store:
    """One JSON line per measurement.

    Each line is appended in one write, so processes need no lock. If two write the same key, the
    first line counts. Damaged lines are ignored.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        if path is not None and path.is_file():
            for line in path.read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                    self._known.setdefault(entry["key"], entry["value"])
                except (ValueError, TypeError, LookupError):
                    continue

    def __contains__(self, facts: Mapping[str, Any]) -> bool:
        return digest(facts, 16) in self._known

    def get(self, facts: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        key = digest(facts, 16)
        if key not in self._known:
            self._known[key] = measure()
            if self._path is not None:
                entry = {"key": key, "value": self._known[key], **facts}
                line = json.dumps(entry, default=repr) + "\n"
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab", buffering=0) as file:
                    file.write(line.encode())
        return self._known[key]


_MODULE_FIELDS = frozenset([*vars(nn.Module()), "_compiled_call_impl"])


def _options(module: nn.Module) -> dict[str, Any]:
    """Return class and options of a reducer or task: all its attributes that are not tensors."""
    own = {
        f"{name}.{key}".lstrip("."): value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in _MODULE_FIELDS
    }
    return {"class": f"{type(module).__module__}.{type(module).__qualname__}", **own}


@cache
def _code_hash(*modules: str) -> str:
    """Hash the source code that determines a cost, so that a change means a new measurement."""
    root = Path(elip.__file__).parent
    files = {*root.glob("model/*.py"), *root.glob("tasks/*.py"), *root.glob("cost/*.py")}
    files |= {root / "schedule.py", *Path(reducers.__file__).parent.glob("*.py")}
    named = (getattr(sys.modules[name], "__file__", None) for name in modules)
    files |= {Path(file) for file in named if file}
    total = hashlib.sha256()
    for file in sorted(files):
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.node()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
