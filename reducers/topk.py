"""TopK: attentive token selection without fusion."""

from __future__ import annotations

from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import keep_tokens, top_indices


class TopK(Reducer):
    """Keep the patches that CLS attends to most, drop the rest.

    The score is the head-mean attention of CLS in this block. The kept patches are in order of
    falling score.

    Source: Liang et al., Not All Patches are What You Need (EViT without its fused token), 2022,
    arXiv:2202.07800, and its code; Haurum et al., Which Tokens to Use?, 2023, arXiv:2308.04657.
    Differs: the count comes from the schedule instead of ceil(rate * patches); ties go to the lower
    index.
    """

    needs: frozenset[Signal] = frozenset({"cls_attention"})
    placement: Placement = "after_attention"
    family = "attention"

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep the ``num_keep`` most attended patches."""
        return keep_tokens(patches, top_indices(signals.cls_attention, num_keep))
