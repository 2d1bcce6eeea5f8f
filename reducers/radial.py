"""Radial: keep the middle of the image."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reducers.contract import Reduced, Reducer, Signal, Signals
from reducers.tokens import keep_tokens, top_indices


class Radial(Reducer):
    """Keep the patches nearest to the centre of the image, in their original order.

    Source: Haurum et al., Which Tokens to Use? Investigating Token Reduction in Vision
    Transformers, 2023, arXiv:2308.04657 (fixed radial patterns), and its code.
    Differs: exactly ``num_keep`` patches, ties to the lower index; the official code keeps all
    patches within the radius whose count comes closest.

    Args:
        norm: Distance: ``l1`` gives a diamond, ``l2`` a disc, ``linf`` a square.
    """

    needs: frozenset[Signal] = frozenset({"positions"})
    family = "position"
    equivariant = False

    def __init__(self, norm: Literal["l1", "l2", "linf"] = "l2") -> None:
        super().__init__()
        self.norm = norm

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep the ``num_keep`` patches nearest to the centre."""
        rows, columns = signals.grid
        row, column = signals.positions.unbind(dim=-1)
        down, across = (row - (rows - 1) / 2).abs(), (column - (columns - 1) / 2).abs()
        if self.norm == "l1":
            distance = down + across
        elif self.norm == "l2":
            distance = down.square() + across.square()
        else:
            distance = torch.maximum(down, across)
        return keep_tokens(patches, top_indices(-distance, num_keep).sort(dim=1).values)
