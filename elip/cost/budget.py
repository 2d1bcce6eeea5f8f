"""Matched budgets: the token counts at which a method costs what it may cost.

Equal keep ratios are no equal costs: a method's own work comes on top. Here the counts are solved
so that the measured total of a forward pass, probe and reducer included, meets the budget.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from pydantic import TypeAdapter, ValidationError

from elip.cost.count import count_run
from elip.cost.timing import time_interleaved
from elip.data.batch import Batch
from elip.model.meter import Meter
from elip.schedule import Plan, Schedule
from elip.tasks.base import Task

_TOLERANCE = {"gflops": 0.01, "latency_ms": 0.05, "latency_share": 0.05}
_STEPS = 12
_TIMED_RUNS = 15
# The search goes on until it is this much nearer than it must be.
_AIM = 0.3
_SHIFT = 4


class BudgetError(ValueError):
    """The budget is no budget, or cannot be met; the message says what could be."""


@dataclass(frozen=True)
class Budget:
    """What a forward pass may cost. Exactly one of the first three is given.

    Attributes:
        gflops: G multiply-adds an example (one multiply-add = 1), above 0; met within 1%.
        latency_ms: Milliseconds a batch on this machine, above 0; met within 5%, about what a
            median of 15 runs repeats to.
        latency_share: The same as a share of the time without reduction, which is measured in turn
            with it, so that a machine that drifts does no harm; in (0, 1].
        batch_size: Examples a batch, for a latency.
    """

    gflops: float | None = None
    latency_ms: float | None = None
    latency_share: float | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Refuse what is no budget.

        Raises:
            BudgetError: Not exactly one is given, or it is not above 0.
        """
        given = [name for name in _TOLERANCE if getattr(self, name) is not None]
        if len(given) != 1 or not getattr(self, given[0]) > 0 or self.batch_size < 1:
            raise BudgetError(
                f"{self} is no budget: give one of {', '.join(_TOLERANCE)}, above 0, and for a "
                "latency a batch_size of at least 1."
            )

    @classmethod
    def read(cls, value: object) -> Budget:
        """Make a budget of a mapping, as a file has it.

        Raises:
            BudgetError: It is none.
        """
        try:
            # As JSON, since strict reading of Python values takes no mapping for a dataclass.
            text = json.dumps(value, default=str)
            return _ADAPTER.validate_json(text, strict=True, extra="forbid")
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "value_error":  # raised above, and complete
                raise first["ctx"]["error"] from None
            place = ".".join(map(str, first["loc"])) or "all of it"
            raise BudgetError(
                f"{value!r} is no budget: {place}: {first['msg']}. Give a mapping of "
                f"{', '.join(field.name for field in fields(cls))}."
            ) from error

    @property
    def kind(self) -> str:
        """Which of the three it is."""
        return next(name for name in _TOLERANCE if getattr(self, name) is not None)

    @property
    def target(self) -> float:
        """What it may be."""
        return float(getattr(self, self.kind))


_ADAPTER = TypeAdapter(Budget)


@dataclass(frozen=True)
class Met:
    """Token counts that meet a budget.

    Attributes:
        counts: Patch tokens kept at each reduction layer, for `Schedule.counts`.
        keep_ratio: The keep ratio that they come to.
        cost: What was measured, in the budget's unit.
    """

    counts: tuple[int, ...]
    keep_ratio: float
    cost: float


def meet(budget: Budget, meter: Meter, task: Task, schedule: Schedule, batch: Batch) -> Met:
    """Solve the token counts of a model whose reducer is to meet a budget.

    The keep ratio is searched first. Where its rounding leaves no ratio that meets the budget,
    counts of single layers are shifted by a few tokens.

    Args:
        budget: What a forward pass may cost.
        meter: The model with its reducer; for a latency with memory behind its weights. Its plan
            is left at what was found.
        task: The task, built; `Task.infer` is the forward pass.
        schedule: Layers and profile; its keep ratio and counts give way.
        batch: What is run: one example, or for a latency ``budget.batch_size`` of them.

    Raises:
        BudgetError: The budget cannot be met; the message gives what can.
    """
    search = _Search(budget, meter, schedule, _measure(budget, meter, task, batch))
    return search.run()


class _Search:
    def __init__(
        self, budget: Budget, meter: Meter, schedule: Schedule, cost: Callable[[], float]
    ) -> None:
        self.budget, self.meter, self.schedule = budget, meter, schedule
        self.cost = cost
        self.known: dict[tuple[int, ...], Met] = {}

    def run(self) -> Met:
        low, high = self._ends()
        below, above = self.at(low), self.at(high)
        if (
            not below.cost * (1 - self.tolerance)
            <= self.budget.target
            <= above.cost * (1 + self.tolerance)
        ):
            raise BudgetError(self._unreachable(below, above))
        for step in range(_STEPS):
            if self._off() <= _AIM * self.tolerance or below.counts == above.counts:
                break
            # Between the ends cost is all but straight in the keep ratio; where it is not, halve.
            share = (self.budget.target - below.cost) / max(above.cost - below.cost, 1e-12)
            share = min(max(share, 0.02), 0.98) if step < _STEPS // 2 else 0.5
            ratio = low + share * (high - low)
            tried = self.at(ratio)
            if tried.counts in (below.counts, above.counts) and step < _STEPS // 2:
                ratio = (low + high) / 2
                tried = self.at(ratio)
            if tried.cost < self.budget.target:
                low, below = ratio, tried
            else:
                high, above = ratio, tried
        if self._off() > self.tolerance:
            self._try_near(below.counts, above.counts)
        best = self._best()
        if self._off() > self.tolerance:
            raise BudgetError(
                f"{self._name()} cannot meet {self._asked()}: with whole tokens the nearest is "
                f"{best.cost:.4g}, at counts {list(best.counts)}."
            )
        self.meter.set_reduction(
            self.meter.reducer, replace(self.schedule, keep_ratio=None, counts=best.counts)
        )
        return best

    @property
    def tolerance(self) -> float:
        return _TOLERANCE[self.budget.kind]

    def at(self, ratio: float) -> Met:
        """Measure at a keep ratio."""
        return self._at(replace(self.schedule, keep_ratio=ratio, counts=None))

    def _at(self, schedule: Schedule) -> Met:
        plan: Plan = self.meter.set_reduction(self.meter.reducer, schedule)
        counts = tuple(plan.keep.values())
        if counts not in self.known:
            self.known[counts] = Met(counts, plan.keep_ratio, self.cost())
        return self.known[counts]

    def _ends(self) -> tuple[float, float]:
        """Return the lowest keep ratio that the layers allow, and the highest below 1."""
        least = self.meter.set_reduction(
            self.meter.reducer, replace(self.schedule, counts=(1,) * len(self.meter.plan.keep))
        )
        patches = least.num_patches
        counts = least.tokens_per_block[:-1]
        bare = sum(count == patches for count in counts) / len(counts)
        return bare + 1e-3, 1 - 1 / (2 * patches)

    def _try_near(self, *ends: tuple[int, ...]) -> None:
        """Shift single counts of both by up to `_SHIFT` tokens, until one meets the budget."""
        shifts = sorted(range(-_SHIFT, _SHIFT + 1), key=abs)[1:]
        for shift, place, counts in itertools.product(shifts, range(len(ends[0])), ends):
            moved = tuple(c + shift * (i == place) for i, c in enumerate(counts))
            falling = all(
                a >= b for a, b in itertools.pairwise((self.meter.plan.num_patches, *moved))
            )
            if falling and moved[-1] >= 1 and self._off() > self.tolerance:
                self._at(replace(self.schedule, keep_ratio=None, counts=moved))

    def _best(self) -> Met:
        return min(self.known.values(), key=lambda met: abs(met.cost - self.budget.target))

    def _off(self) -> float:
        """Return by which share of the budget the nearest so far misses it."""
        return abs(self._best().cost / self.budget.target - 1)

    def _name(self) -> str:
        return type(self.meter.reducer).__name__

    def _asked(self) -> str:
        return f"budget {self.budget.kind} {self.budget.target:g}"

    def _unreachable(self, below: Met, above: Met) -> str:
        low, high = sorted((below, above), key=lambda met: met.cost)
        return (
            f"{self._name()} cannot meet {self._asked()}: its own work included, it can cost from "
            f"{low.cost:.4g} (counts {list(low.counts)}) to {high.cost:.4g} (counts "
            f"{list(high.counts)}). Give a budget between, or other reduction layers."
        )


def _measure(budget: Budget, meter: Meter, task: Task, batch: Batch) -> Callable[[], float]:
    """Return what measures the model as it stands, in the budget's unit."""

    @torch.no_grad()
    def run() -> object:
        return task.infer(meter, batch)

    def full() -> object:
        with meter.reduction_disabled():
            return run()

    def gflops() -> float:
        return count_run(run) / len(batch) / 1e9

    def latency() -> float:
        times = time_interleaved({"own": run, "full": full}, _TIMED_RUNS, device=meter.device)
        own, whole = times["own"].median, times["full"].median
        return own / whole if budget.kind == "latency_share" else 1e3 * own

    meter.eval()
    task.eval()
    return gflops if budget.kind == "gflops" else latency
