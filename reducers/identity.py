"""No reduction, the upper baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signals


class Identity(Reducer):
    """Keep every patch token.

    Source: Dou et al., METER, 2022, arXiv:2111.02387.
    Differs: nothing.
    """

    placement: Placement = "never"
    family = "baseline"

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Return the tokens unchanged; the encoder never calls it."""
        batch, count, _ = patches.shape
        return Reduced(patches, torch.arange(count, device=patches.device).expand(batch, count))
