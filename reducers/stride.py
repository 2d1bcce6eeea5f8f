"""Stride: keep a coarser grid of patches."""

from __future__ import annotations

from torch import Tensor

from reducers.contract import Reduced, Reducer, Signal, Signals
from reducers.grid import spread_order
from reducers.tokens import keep_tokens


class Stride(Reducer):
    """Keep patches that are spread evenly over the image, in the order of a Bayer matrix.

    A quarter of the patches is every second row and column, half is a chessboard; other counts fill
    in evenly. The kept patches stay in their original order.

    Source: a common baseline.
    Differs: nothing.
    """

    needs: frozenset[Signal] = frozenset({"positions"})
    family = "position"
    equivariant = False

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep ``num_keep`` evenly spread patches."""
        order = spread_order(signals.positions, signals.grid).argsort(dim=1, stable=True)
        return keep_tokens(patches, order[:, :num_keep].sort(dim=1).values)
