"""A reducer as a third party would write it in its own package."""

from __future__ import annotations

from torch import Tensor

from reducers import Reduced, Reducer, Signal, Signals
from reducers.tokens import keep_tokens, top_indices


class Longest(Reducer):
    """Keep the patches with the longest key.

    Source: made up for the tests.
    Differs: nothing.

    Args:
        sign: 1 for the longest, -1 for the shortest.
    """

    needs: frozenset[Signal] = frozenset({"keys"})

    def __init__(self, sign: int = 1) -> None:
        super().__init__()
        self.sign = sign

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        length = signals.keys.float().square().sum(dim=(1, 3))
        return keep_tokens(patches, top_indices(self.sign * length, num_keep))
