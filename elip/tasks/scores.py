"""What every score of a task is made of, right over several processes."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from elip.model.meter import Meter


def gather(value: Tensor) -> list[Tensor]:
    """Return the value of every process; sizes may differ. Every process must ask."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    return gather_all_tensors(value)


class _Summed(Metric):
    """A metric whose states are float32 sums (counts are exact to 16 million)."""

    full_state_update = False

    def _take(self, name: str, value: Tensor) -> None:
        self.to(value.device)
        setattr(self, name, getattr(self, name) + value)


class Mean(_Summed):
    """Weighted mean of everything taken: ``sum(w * x) / sum(w)``."""

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "weight"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, values: Tensor, weights: Tensor | None = None) -> None:
        """Take values of any shape, with weights of the same shape (1 each by default)."""
        weights = torch.ones_like(values) if weights is None else weights
        self._take("total", (values.float() * weights.float()).sum())
        self._take("weight", weights.float().sum())

    def compute(self) -> Tensor:
        """Return both sums."""
        return torch.stack([self.total, self.weight])

    def over_processes(self, meter: Meter) -> float:
        """Return the mean over all processes; not a number when nothing was taken.

        Every process must ask.
        """
        self.to(meter.pixel_mean.device)
        total, weight = self.compute().tolist()
        return total / weight if weight else math.nan


class Tally(_Summed):
    """Column sums of everything taken: class counts, or the score of every constant answer.

    Args:
        columns: C, number of columns.
    """

    sums: Tensor

    def __init__(self, columns: int) -> None:
        super().__init__()
        zeros = torch.zeros(columns)
        self.add_state("sums", zeros, dist_reduce_fx="sum")

    def update(self, rows: Tensor) -> None:
        """Take rows [..., C]."""
        self._take("sums", rows.reshape(-1, rows.shape[-1]).float().sum(dim=0))

    def compute(self) -> Tensor:
        """Return the sums [C]."""
        return self.sums

    def over_processes(self, meter: Meter) -> Tensor:
        """Return the sums [C] over all processes; every process must ask."""
        self.to(meter.pixel_mean.device)
        sums: Tensor = self.compute()
        return sums


class Outcomes:
    """The main score of every example, so that runs can be compared example by example."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def update(self, images: Tensor, examples: Tensor, scores: Tensor) -> None:
        """Take the image numbers, example numbers and scores of a batch, [B] each."""
        self._rows.append(torch.stack([images.double(), examples.double(), scores.double()], dim=1))

    def over_processes(self, meter: Meter) -> Tensor:
        """Return `Evaluator.outcomes`; every process must ask."""
        device = meter.pixel_mean.device
        none = torch.zeros(0, 3, dtype=torch.float64, device=device)
        rows = torch.cat(gather(torch.cat([none, *(own.to(device) for own in self._rows)])))
        rows = rows[rows[:, 1].argsort(stable=True)]
        first = torch.ones(len(rows), dtype=torch.bool, device=device)
        first[1:] = rows[1:, 1] != rows[:-1, 1]
        return rows[first]
