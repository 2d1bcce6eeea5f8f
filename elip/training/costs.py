"""What a run costs, for its record: GFLOPs and times of the model as it was run."""

from __future__ import annotations

from dataclasses import replace

from elip.cost import cached_cost
from elip.data.batch import Batch
from elip.old_record import Cost, Gflops, Record, Speed
from elip.record import Gflops as Parts
from elip.training.module import MeterModule


def with_costs(record: Record, module: MeterModule, sample: Batch | None) -> Record:
    """Return a record with GFLOPs, with and without reduction, and the time of a forward pass.

    Args:
        record: The record of a run that is complete.
        module: Its model and task.
        sample: One of its batches; None where it saw none, and has no costs then.
    """
    if sample is None:
        return record
    found = cached_cost(
        module.meter, module.task,
        training=record.subcommand == "fit", precision=str(module.trainer.precision),
    )  # fmt: skip
    speed = None
    if found.batch_size is not None:
        speed = Speed(
            batch_size=found.batch_size,
            latency_ms=found.latency_ms,
            latency_p95_ms=found.latency_p95_ms,
            examples_per_second=found.examples_per_second,
            latency_identity_ms=found.latency_unreduced_ms,
        )
    return replace(
        record,
        gflops=_old(found.gflops),
        gflops_identity=_old(found.gflops_unreduced),
        speed=speed,
        notes=(*record.notes, *found.notes),
    )


def _old(cost: Parts) -> Gflops:
    parts = cost.model_dump(exclude={"training_step"})
    return Gflops(Cost(**parts), cost.training_step)
