"""Matched budgets: find the keep ratio at which a method costs a given number of GFLOPs.

At equal keep ratios, methods differ in cost, because each adds work of its own. The search counts
the whole forward pass, probe and reducer included.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from elip.cost.count import GIGA, count_run, random_batch
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.tasks.base import Task

TOLERANCE = 0.01
_STEPS = 12


class BudgetError(ValueError):
    """The budget cannot be met; the message gives the possible range."""


def match_gflops(target: float, meter: Meter, task: Task, schedule: Schedule) -> Schedule:
    """Return the schedule whose keep ratio makes a model cost ``target`` within 1%.

    Args:
        target: G multiply-adds an example of the forward pass, above 0.
        meter: The model with its reducer. It gets the schedule found. Only shapes matter,
            so build it on the device ``meta`` to save time.
        task: Its task, built; `Task.infer` is the forward pass.
        schedule: Layers and profile; its keep ratio and counts are replaced.

    Raises:
        BudgetError: No keep ratio meets the budget; the message gives the range that can be met.
    """
    batch = random_batch(meter, 1, task).to(meter.device)
    nn.ModuleList([meter, task]).eval()

    @torch.no_grad()
    def cost(ratio: float) -> float:
        meter.set_reduction(meter.reducer, replace(schedule, keep_ratio=ratio, counts=None))
        return count_run(lambda: task.infer(meter, batch)) / GIGA

    low, high = _ends(meter, schedule)
    known = {low: cost(low), high: cost(high)}
    least, most = known.values()
    best = min(known, key=lambda ratio: abs(known[ratio] - target))
    for step in range(_STEPS if least < target < most else 0):
        # Cost is almost linear in the keep ratio. Whole tokens make steps, so bisect after four.
        share = (target - known[low]) / (known[high] - known[low]) if step < 4 else 0.5
        ratio = low + share * (high - low)
        known[ratio] = cost(ratio)
        low, high = (ratio, high) if known[ratio] < target else (low, ratio)
        best = min(known, key=lambda ratio: abs(known[ratio] - target))
        if abs(known[best] / target - 1) <= TOLERANCE / 2:
            break
    if abs(known[best] / target - 1) > TOLERANCE:
        raise BudgetError(
            f"{type(meter.reducer).__name__} cannot cost {target:g} GFLOPs within 1%: with its own "
            f"work it costs from {least:.4g} to {most:.4g}; the nearest is {known[best]:.4g}. "
            "Choose another budget or other reduction layers."
        )
    found = replace(schedule, keep_ratio=best, counts=None)
    meter.set_reduction(meter.reducer, found)
    return found


def _ends(meter: Meter, schedule: Schedule) -> tuple[float, float]:
    """Return the lowest keep ratio that the reduction layers allow, and the highest below 1."""
    entering = meter.set_reduction(
        meter.reducer, replace(schedule, counts=(1,) * len(meter.plan.keep))
    ).tokens_per_block
    patches = entering[0]
    untouched = sum(count == patches for count in entering[:-1]) / (len(entering) - 1)
    return untouched + 1e-3, 1 - 0.5 / patches
