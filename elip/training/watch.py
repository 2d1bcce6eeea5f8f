"""Watches what the reducer returns while a run goes on: its contract, and what it really kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from elip.model.guard import check, examine, looks_wrong
from elip.schedule import Plan
from elip.training.module import MeterModule
from reducers.contract import Reduced, Reducer


class ContractGuard(Callback):
    """Hold the reducer to the values of its contract.

    The first batch of each loop and every ``every``-th one after it is examined closely. On a CPU
    every other call gets a cheap look as well, and a close one where that looks wrong; elsewhere a
    look makes the host wait for the device. A compiled model runs the batches that are examined as
    it is written, without the compiler.

    Args:
        every: Batches from one close look to the next.
    """

    def __init__(self, every: int = 100) -> None:
        self.every = every
        self._due = True
        self._hook: RemovableHandle | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen to the reducer."""
        assert isinstance(pl_module, MeterModule)
        if pl_module.meter.reducer is not None:
            self._hook = pl_module.meter.reducer.register_forward_hook(self._look)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look no more: what the record times and counts is the model alone, as it was run."""
        if self._hook is not None:
            self._hook.remove()
        if isinstance(pl_module, MeterModule) and pl_module.compiled:
            torch.compiler.set_stance("default")

    on_test_end = on_train_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look no more, unless training goes on."""
        if not trainer.training and not trainer.sanity_checking:
            self.on_train_end(trainer, pl_module)

    def _look(self, reducer: nn.Module, given: tuple[Any, ...], reduced: Reduced) -> None:
        patches, num_keep, signals = given
        traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]
        if traced or not (self._due or patches.device.type == "cpu"):
            return
        assert isinstance(reducer, Reducer)
        check(reducer, reduced, patches, num_keep, padded=signals.mask is not None)
        if self._due or looks_wrong(reduced):
            examine(reducer, reduced, patches, signals.layer)

    def _begin(self, module: LightningModule, number: int) -> None:
        assert isinstance(module, MeterModule)
        self._due = number % self.every == 0
        if module.compiled:
            torch.compiler.set_stance("force_eager" if self._due else "default")

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at this batch when it is time."""
        self._begin(pl_module, batch_idx)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look at this batch when it is time."""
        self._begin(pl_module, batch_idx)

    on_test_batch_start = on_validation_batch_start
    on_predict_batch_start = on_validation_batch_start


class KeptTokens:
    """Counts the real tokens behind each reduction, where the number depends on content.

    Args:
        reducer: The method; one that keeps a fixed count needs no counting.
        plan: The planned counts.
    """

    def __init__(self, reducer: Reducer | None, plan: Plan) -> None:
        self._plan = plan
        self._sums: Tensor | None = None
        if reducer is not None and not reducer.fixed_count:
            # For each reduction: images, tokens, squares of tokens.
            self._sums = torch.zeros(len(plan.keep), 3, dtype=torch.int64)
            reducer.register_forward_hook(self._count)

    def _count(self, reducer: nn.Module, given: tuple[Any, ...], reduced: Reduced) -> None:
        if reduced.mask is None or reducer.training:
            return
        assert self._sums is not None
        real = reduced.mask.sum(dim=1)
        self._sums = self._sums.to(real.device)
        row = torch.stack([torch.ones_like(real), real, real.square()], dim=1).sum(dim=0)
        self._sums[given[2].stage] += row

    def clear(self) -> None:
        """Start again."""
        if self._sums is not None:
            self._sums.zero_()

    def entering(
        self, join: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
        """Return how many tokens enter each block and leave the last: means, and their spread.

        Args:
            join: Adds up a tensor over all processes.

        Returns:
            Mean numbers, and standard deviations over images; the planned numbers and None where
            the count is fixed.
        """
        plan = self._plan
        if self._sums is None:
            return tuple(float(count) for count in plan.tokens_per_block), None
        counted = join(self._sums).tolist()
        means, spreads, stage, before = [], [], -1, plan.num_patches
        for planned in plan.tokens_per_block:
            stage, before = stage + (planned < before), planned
            images, total, squares = (1, planned, planned**2)
            if stage >= 0 and counted[stage][0]:
                images, total, squares = counted[stage]
            means.append(total / images)
            spreads.append(max(0.0, squares / images - means[-1] ** 2) ** 0.5)
        return tuple(means), tuple(spreads)
