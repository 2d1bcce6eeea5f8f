"""Radial: the middle of the image, whatever it shows."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from reducers.contract import Reduced, Reducer, Signal, Signals
from reducers.tokens import keep_tokens, top_indices


class Radial(Reducer):
    """Keep the patches nearest to the centre of the image, in their original order.

    Source: Haurum et al., Which Tokens to Use? Investigating Token Reduction in Vision
    Transformers, 2023, arXiv:2308.04657 (fixed radial patterns), and its code.
    Differs: exactly as many patches as asked for, the lower index first where distances are
    equal; the official code keeps all within the radius whose count comes closest.

    Args:
        norm: How distance is measured: ``l1`` a diamond, ``l2`` a disc, ``linf`` a square.
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
        centre = signals.positions.new_tensor([(rows - 1) / 2, (columns - 1) / 2])
        offset = (signals.positions - centre).abs()
        if self.norm == "l1":
            distance = offset.sum(dim=-1)
        elif self.norm == "l2":
            distance = offset.square().sum(dim=-1)
        else:
            distance = offset.amax(dim=-1)
        return keep_tokens(patches, top_indices(-distance, num_keep).sort(dim=1).values)
