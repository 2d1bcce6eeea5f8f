"""The host reads one value per training step. On a GPU, each read waits for the device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from elip.training.module import MeterModule
from tests.training.conftest import Go

READS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal"}


class Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.seen[name] += name in READS
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("quick")
def test_one_read_a_step(go: Go, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, steps = Reads(), []
    # This check of a reducer's values runs in every step only on the CPU, where it is cheap.
    monkeypatch.setattr("elip.training.callbacks.looks_wrong", lambda reduced: False)

    def start(module: MeterModule, batch: object, number: int) -> None:
        if 1 <= module.global_step < 4:  # the first batch has extra checks
            reads.__enter__()
            steps.append(number)

    def end(module: MeterModule, outputs: object, batch: object, number: int) -> None:
        if number in steps:
            reads.__exit__(None, None, None)

    monkeypatch.setattr(MeterModule, "on_train_batch_start", start, raising=False)
    monkeypatch.setattr(MeterModule, "on_train_batch_end", end, raising=False)
    assert go("fit", "--trainer.log_every_n_steps=50") == 0
    assert steps == [1, 2, 3]
    # The one read is the loss. On CUDA, `StepFlags` reads a copy from the previous step instead,
    # which does not wait.
    assert +reads.seen == Counter(_local_scalar_dense=len(steps))
