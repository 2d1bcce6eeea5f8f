"""What a run costs, for its record: GFLOPs and times of the model as it was run."""

from __future__ import annotations

from dataclasses import replace

import torch

from elip.cost import measure_cost, measure_training_cost
from elip.cost.timing import time_interleaved
from elip.data.batch import Batch
from elip.old_record import Gflops, Record, Speed
from elip.training.module import MeterModule

_COST_EXAMPLES = 2
_TIMED_RUNS = 8
_TIMED_EXAMPLES = 32  # at most; a grid of short runs should not spend its time on this


def with_costs(record: Record, module: MeterModule, sample: Batch | None) -> Record:
    """Return a record with GFLOPs, with and without reduction, and the time of a forward pass.

    What cannot be counted or timed is said in the record's notes; the run is not lost to it.

    Args:
        record: The record of a run that is complete.
        module: Its model and task.
        sample: One of its batches; None where it saw none, and has no costs then.
    """
    if sample is None:
        return record
    few, trained = sample.rows(slice(_COST_EXAMPLES)), record.subcommand == "fit"
    # Beside CostError: operators that no counter knows, reducers that cannot be traced, memory
    # that does not suffice, and whatever a reducer raises that was never traced before. A run that
    # is complete is not lost to that.
    try:
        gflops = _gflops(module, few, trained)
        with module.meter.reduction_disabled():
            identity = _gflops(module, few, trained)
        record = replace(record, gflops=gflops, gflops_identity=identity)
    except Exception as error:  # noqa: BLE001
        record = replace(record, notes=(*record.notes, f"No GFLOPs: {error}"))
    try:
        return replace(record, speed=_speed(module, sample.rows(slice(_TIMED_EXAMPLES))))
    except Exception as error:  # noqa: BLE001
        return replace(record, notes=(*record.notes, f"No times: {error}"))


def _gflops(module: MeterModule, batch: Batch, trained: bool) -> Gflops:
    meter, task, count = module.meter, module.task, len(batch)
    forward = measure_cost(meter, lambda: task.infer(meter, batch), count, head=task)
    if not trained:
        return Gflops(forward)
    step = measure_training_cost(module, lambda: task.loss(meter, batch).total, count)
    return Gflops(forward, step)


def _speed(module: MeterModule, batch: Batch) -> Speed:
    was = module.training

    def reduced() -> None:
        module.task.infer(module.meter, batch)

    def whole() -> None:
        with module.meter.reduction_disabled():
            reduced()

    candidates = {"reduced": reduced} | ({"whole": whole} if module.meter.plan.keep else {})
    module.eval()
    with torch.no_grad():
        timings = time_interleaved(
            candidates, rounds=_TIMED_RUNS, examples=len(batch), device=module.device
        )
    module.train(was)
    timing = timings["reduced"]
    return Speed(
        batch_size=len(batch),
        latency_ms=1e3 * timing.median,
        latency_p95_ms=1e3 * timing.p95,
        examples_per_second=timing.examples_per_second,
        latency_identity_ms=1e3 * timings.get("whole", timing).median,
    )
