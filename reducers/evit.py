"""EViT: keep the attentive tokens, fuse the others into one."""

from __future__ import annotations

from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import keep_and_fuse, top_indices


class EViT(Reducer):
    """Keep the patches that CLS attends to most, fuse the rest into one token.

    With a_j the head-mean attention of CLS, the fused token is ``sum_j a_j x_j`` over the removed
    patches. It comes last, and the next reduction treats it like any patch.

    Source: Liang et al., Not All Patches are What You Need: Expediting Vision Transformers via
    Token Reorganizations, 2022, arXiv:2202.07800, and its code.
    Differs: ``num_keep`` includes the fused token; the count comes from the schedule instead of
    ceil(rate * patches); ties go to the lower index.

    Args:
        normalise: Divide the fused token by the sum of its weights. The official code does
            not, so its fused token is short.
    """

    needs: frozenset[Signal] = frozenset({"cls_attention"})
    placement: Placement = "after_attention"
    family = "attention"

    def __init__(self, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep ``num_keep - 1`` patches and fuse the others."""
        kept = top_indices(signals.cls_attention, num_keep - 1)
        return keep_and_fuse(patches, kept, signals.cls_attention, self.normalise)
