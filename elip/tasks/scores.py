"""Sums and per-example scores, correct over several processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from elip.model.meter import Meter


def gather(value: Tensor) -> list[Tensor]:
    """Return the value of each process; sizes may differ. All processes must call this."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    return gather_all_tensors(value)


class Sums:
    """Sums of C columns in float64."""

    def __init__(self, columns: int) -> None:
        self._sums = torch.zeros(columns, dtype=torch.float64)

    def update(self, rows: Tensor) -> None:
        """Add rows [..., C]."""
        own = rows.flatten(end_dim=-2).sum(dim=0, dtype=torch.float64)
        self._sums = self._sums.to(own.device) + own

    def over_processes(self, meter: Meter) -> Tensor:
        """Return the sums [C] over all processes; all must call this."""
        return torch.stack(gather(self._sums.to(meter.device))).sum(dim=0)


class ExampleScores:
    """The main score of each example, for the mean and for paired comparison of runs."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []

    def update(self, images: Tensor, examples: Tensor, scores: Tensor) -> None:
        """Add the image numbers, example numbers and scores of a batch, [B] each."""
        self._rows.append(torch.stack([images.double(), examples.double(), scores.double()], dim=1))

    def over_processes(self, meter: Meter) -> Tensor:
        """Return `Evaluator.per_example_scores`; all processes must call this."""
        device = meter.device
        none = torch.zeros(0, 3, dtype=torch.float64, device=device)
        rows = torch.cat(gather(torch.cat([none, *(own.to(device) for own in self._rows)])))
        rows = rows[rows[:, 1].argsort(stable=True)]
        first = torch.ones(len(rows), dtype=torch.bool, device=device)
        first[1:] = rows[1:, 1] != rows[:-1, 1]
        return rows[first]

    def mean(self, meter: Meter) -> float:
        """Return the mean score, NaN without examples; all processes must call this."""
        return self.over_processes(meter)[:, 2].mean().item()
