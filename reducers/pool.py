"""Pool: average neighbouring patches, whatever they show."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Reduced, Reducer, Signal, Signals
from reducers.grid import z_order
from reducers.tokens import merge_tokens


class Pool(Reducer):
    """Average patches that lie side by side.

    The patches are lined up along a Z-shaped curve through the grid and the line is cut into
    ``num_keep`` pieces of as equal length as can be; each piece becomes the mean of the patches
    that it stands for. On an even grid a quarter of the tokens is exactly average pooling by 2 x 2,
    a sixteenth by 4 x 4; counts between mix both.

    Source: a usual control of the field.
    Differs: any count works, where a pooling window gives only a few.
    """

    needs: frozenset[Signal] = frozenset({"positions", "sizes"})
    family = "position"
    equivariant = False

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Average down to ``num_keep`` tokens."""
        count = patches.shape[1]
        order = z_order(signals.positions, signals.grid).argsort(dim=1, stable=True)
        piece = torch.arange(count, device=patches.device) * num_keep // count
        assignment = torch.zeros_like(order).scatter(1, order, piece.expand_as(order))
        return Reduced(merge_tokens(patches, assignment, num_keep, signals.sizes), assignment)
