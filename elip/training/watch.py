"""Watches the reducer of a run: its contract, and how many tokens it keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from elip.model.guard import check, examine
from elip.schedule import Plan
from reducers.contract import Reduced, Reducer


class ReducerWatch:
    """Examines what a reducer returns in the first batch, and counts tokens that content decides.

    Later batches are not examined, because on a GPU the host would wait for the result; their
    shapes are checked by the model, and values that are not finite stop the run by the loss. A
    compiled model is not examined.

    Args:
        reducer: The method.
        plan: The planned counts.
    """

    def __init__(self, reducer: Reducer, plan: Plan) -> None:
        self._plan, self._reducer = plan, reducer
        self._unexamined = len(plan.keep)
        # If counts depend on content, for each reduction: images, tokens, squared tokens.
        self._sums: Tensor | None = None
        if not reducer.fixed_count:
            self._sums = torch.zeros(len(plan.keep), 3, dtype=torch.int64)
        self._hook = reducer.register_forward_hook(self._look)

    def stop(self) -> None:
        """Stop watching, so that timing and counting see the model alone."""
        self._hook.remove()

    def clear(self) -> None:
        """Reset the token counts."""
        if self._sums is not None:
            self._sums.zero_()

    def _look(self, _: Any, given: tuple[Any, ...], reduced: Reduced) -> None:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined]
            return
        patches, num_keep, signals = given
        if self._unexamined > 0:
            self._unexamined -= 1
            check(self._reducer, reduced, patches, num_keep, padded=signals.mask is not None)
            examine(self._reducer, reduced, patches, signals.layer)
        if self._sums is not None and reduced.mask is not None and not self._reducer.training:
            real = reduced.mask.sum(dim=1)
            self._sums = self._sums.to(real.device)
            row = torch.stack([torch.ones_like(real), real, real.square()], dim=1).sum(dim=0)
            self._sums[signals.stage] += row

    def add_up(self, join: Callable[[Tensor], Tensor]) -> None:
        """Add the counts of all processes with ``join``."""
        if self._sums is not None:
            self._sums = join(self._sums)

    def tokens_per_block(self) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
        """Return how many tokens enter each block and leave the last.

        Returns:
            Means and standard deviations over images; for fixed counts the planned numbers and
            None.
        """
        plan = self._plan
        if self._sums is None:
            return tuple(float(count) for count in plan.tokens_per_block), None
        counted = self._sums.tolist()
        means, spreads, stage, before = [], [], -1, plan.num_patches
        for planned in plan.tokens_per_block:
            stage, before = stage + (planned < before), planned
            images, total, squares = 1, planned, planned**2
            if stage >= 0 and counted[stage][0]:
                images, total, squares = counted[stage]
            means.append(total / images)
            spreads.append(max(0.0, squares / images - means[-1] ** 2) ** 0.5)
        return tuple(means), tuple(spreads)
