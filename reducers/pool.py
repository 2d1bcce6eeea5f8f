"""Pool: average neighbouring patches."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Reduced, Reducer, Signal, Signals
from reducers.grid import spread_order, z_order
from reducers.tokens import merge_tokens, top_indices


class Pool(Reducer):
    """Average rectangles of neighbouring patches.

    The largest rectangle is cut into halves until there are ``num_keep`` rectangles; each becomes
    the mean of its patches. On an even grid, a quarter of the tokens equals 2 x 2 average pooling;
    other counts mix two sizes, spread evenly over the image. A later reduction joins rectangles of
    an earlier one into larger rectangles.

    Source: a common baseline.
    Differs: any count works; a pooling window allows only a few.
    """

    needs: frozenset[Signal] = frozenset({"positions", "sizes"})
    family = "position"
    equivariant = False

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Average down to ``num_keep`` tokens."""
        # On a Z-shaped curve every rectangle is one segment, and cuts are between neighbours.
        places, grid = signals.positions.floor(), signals.grid
        order = z_order(places, grid).argsort(dim=1, stable=True)
        line = places.long().gather(1, order.unsqueeze(-1).expand_as(places))
        cuts = top_indices(_cut_order(line[:, :-1], line[:, 1:], grid), num_keep - 1)
        starts = torch.zeros_like(order).scatter(1, cuts + 1, 1)
        assignment = torch.zeros_like(order).scatter(1, order, starts.cumsum(dim=1))
        return Reduced(merge_tokens(patches, assignment, num_keep, signals.sizes), assignment)


def _cut_order(before: Tensor, after: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rank the cuts between neighbours [B,N,2] on the curve: the highest value is cut first.

    A cut halves the smallest aligned rectangle that contains both patches. Large rectangles come
    first, equal ones in an order that spreads over the image.
    """
    mask = before ^ after
    for shift in (1, 2, 4, 8):  # the bits that may differ inside the rectangle: 2^k - 1
        mask = mask | (mask >> shift)
    row_mask, column_mask = mask.unbind(dim=-1)
    across = torch.maximum(row_mask, column_mask)
    # The curve cuts rows before columns: a cut between columns has half the rows.
    down = torch.where(row_mask >= column_mask, across, across >> 1)
    corner = before & ~torch.stack([down, across], dim=-1)
    height = torch.clamp(corner[..., 0] + down + 1, max=grid[0]) - corner[..., 0]
    width = torch.clamp(corner[..., 1] + across + 1, max=grid[1]) - corner[..., 1]
    return (height * width << 32) - spread_order(corner.float(), grid)
