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
from elip.cost.timing import inference, time_interleaved, time_once
from elip.data.batch import Batch
from elip.identity import digest
from elip.model.meter import Meter, Reduction
from elip.record import Gflops
from elip.tasks.base import Task

log = logging.getLogger(__name__)

COSTS_NAME = "costs.jsonl"
_ROUNDS, _ROUNDS_TOGETHER = 7, 3
_ENOUGH_SECONDS, _MOST_EXAMPLES = 0.05, 256
_UNKNOWN = Gflops()


@dataclass(frozen=True)
class RunCost:
    """What a run's model costs, under the names of `Record`; None where it was not measured."""

    gflops: Gflops = _UNKNOWN  # an example, texts at full length
    gflops_unreduced: Gflops = _UNKNOWN  # the same model without reduction
    batch_size: int | None = None  # examples in a timed batch (`choose_batch`)
    latency_ms: float | None = None  # median inference time of a batch
    latency_p95_ms: float | None = None
    latency_unreduced_ms: float | None = None  # median without reduction, in the same rounds
    examples_per_second: float | None = None  # at the median
    notes: tuple[str, ...] = ()  # why something was not measured


def cached_cost(
    meter: Meter,
    task: Task,
    store: Path | None = None,
    training: bool = False,
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
        precision: Lightning's name of the precision for timing.
        facts: Other facts that change a cost, such as ``{"compile": True}``.
    """
    known = _Store(store)

    def gflops() -> Gflops:
        own = _facts(meter, task, facts)
        found = dict(known.get(
            {"what": "forward", **own},
            lambda: count_forward(meter, task, _batch(meter, task, 1)).model_dump(),
        ))  # fmt: skip
        if training:
            # Two examples: in pre-training, half of a batch gets a negative image.
            found["training_step"] = known.get(
                {"what": "training", **own},
                lambda: count_training_step(meter, task, _batch(meter, task, 2)),
            )
        return Gflops(**found)

    notes, parts = [], dict[str, Any]()
    # A reducer may fail under tracing, memory may run out, an operator may be unknown. The run is
    # complete all the same and must be recorded.
    try:
        parts["gflops"] = gflops()
        with meter.reduction_disabled():
            parts["gflops_unreduced"] = gflops()
    except Exception as error:  # noqa: BLE001
        notes.append(f"No GFLOPs: {error}")
    try:
        parts |= _times(known, meter, task, [meter.reduction], precision, facts)[0]
    except Exception as error:  # noqa: BLE001
        notes.append(f"No times: {error}")
    return RunCost(**parts, notes=tuple(notes))


def time_together(
    meter: Meter,
    task: Task,
    reductions: Sequence[Reduction],
    store: Path,
    precision: str = "32-true",
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Time several reductions in the same rounds, and store the results for `cached_cost`.

    If a reduction fails, nothing is stored, and `cached_cost` will time each one alone.

    ``reductions`` are values of `Meter.reduction`, which have run before. The other arguments are
    those of `cached_cost`.
    """
    try:
        _times(_Store(store), meter, task, reductions, precision, facts)
    except Exception as error:  # noqa: BLE001
        log.warning("Methods are timed one by one: %s", error)


def _times(
    known: _Store,
    meter: Meter,
    task: Task,
    reductions: Sequence[Reduction],
    precision: str,
    facts: Mapping[str, Any] | None,
) -> list[dict[str, Any]]:
    """Return the times of each reduction; measure those that are not known."""
    where: dict[str, Any] = {"precision": precision, "device": _device_name(meter.device)}
    kept, keys, candidates = meter.reduction, dict[str, Any](), dict[str, Callable[[], object]]()

    def run(reduction: Reduction) -> None:
        meter.reduction = reduction
        task.infer(meter, batch)

    with inference(meter, task, precision=precision):
        with meter.reduction_disabled():
            unreduced, plain = meter.reduction, _facts(meter, task, facts)
            count = known.get(
                {"what": "batch size", **plain, **where}, lambda: choose_batch(meter, task)
            )
        batch = _batch(meter, task, count)
        try:
            for number, reduction in enumerate(reductions):
                meter.reduction = reduction
                name = str(number) if meter.plan.keep else "unreduced"
                own = _facts(meter, task, facts)
                keys[name] = {"what": "time", **own, **where, "batch_size": count}
                if keys[name] not in known:
                    candidates["unreduced"] = partial(run, unreduced)
                    candidates[name] = partial(run, reduction)
            rounds = _ROUNDS if len(reductions) == 1 else _ROUNDS_TOGETHER
            timings = {}
            if candidates:
                timings = time_interleaved(candidates, rounds, 1, count, meter.device)
        finally:
            meter.reduction = kept

    def values(name: str) -> dict[str, Any]:
        own = timings[name]
        return {
            "batch_size": count, "latency_ms": own.latency_ms,
            "latency_p95_ms": own.latency_p95_ms,
            "latency_unreduced_ms": timings["unreduced"].latency_ms,
            "examples_per_second": own.examples_per_second,
        }  # fmt: skip

    return [known.get(key, partial(values, name)) for name, key in keys.items()]


def choose_batch(meter: Meter, task: Task) -> int:
    """Return the number of examples to time inference at: 1, 2, 4, ... 256.

    The first at which a pass without reduction takes 50 ms. With less work, a fast device mostly
    launches operators, and hides what a method saves. Call without reduction inside `inference`.
    """
    count = 1
    while count < _MOST_EXAMPLES:
        run = partial(task.infer, meter, _batch(meter, task, count))
        run()  # warm-up
        if time_once(run, meter.device) >= _ENOUGH_SECONDS:
            break
        count *= 2
    return count


def _batch(meter: Meter, task: Task, count: int) -> Batch:
    return random_batch(meter, count, task).to(meter.device)


def _facts(meter: Meter, task: Task, facts: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return all that the cost depends on."""
    reducer = meter.reducer
    return {
        "sizes": asdict(meter.sizes), "task": _options(task), "facts": dict(facts or {}),
        "reducer": _options(reducer), "tokens": meter.plan.tokens_per_block,
        "code": _code_hash(type(task).__module__, type(reducer).__module__),
    }  # fmt: skip


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
    folders = (root / "model", root / "tasks", root / "cost", Path(reducers.__file__).parent)
    files = {root / "schedule.py", *(file for folder in folders for file in folder.glob("*.py"))}
    named = (getattr(sys.modules[name], "__file__", None) for name in modules)
    files |= {Path(file) for file in named if file}
    return hashlib.sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()[:16]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.node()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
