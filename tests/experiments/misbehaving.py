"""Reducers that go wrong in the middle of a real run, each in its way."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import torch
from torch import Tensor

from reducers.contract import Reduced, Signals
from reducers.random import Random


class BadOption(Random):
    """Takes an option that only the first batch finds wrong.

    Args:
        mix: A share, in [0, 1].
    """

    def __init__(self, mix: float = 0.5) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        if not 0 <= self.mix <= 1:
            raise ValueError(f"mix is {self.mix}; it must lie in [0, 1].")
        return super().forward(patches, num_keep, signals)


class Hungry(Random):
    """Needs more memory than the process may have."""

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
        torch.ones(2**34, dtype=torch.uint8)
        return super().forward(patches, num_keep, signals)


class Preempted(Random):
    """Is asked to leave once, at its tenth training batch, as a cluster does.

    Args:
        mark: File that tells a later process that it has happened.
    """

    def __init__(self, mark: str) -> None:
        super().__init__()
        self.mark = Path(mark)
        self.calls = 0

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        self.calls += self.training
        if self.calls == 10 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGTERM)
        return super().forward(patches, num_keep, signals)
