"""EViT: attentive tokens stay, the inattentive ones are fused into one."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Acts, Reduced, Reducer, Signal, Signals
from reducers.tokens import assignment_of_kept, gather_tokens, top_indices


class EViT(Reducer):
    """Keep the patches that CLS attends to most, fuse the rest into one token.

    With a_j the head-mean attention of CLS, the fused token is ``sum_j a_j x_j`` over the
    patches that are not kept. It comes last and is an ordinary patch at the next reduction.

    Source: Liang et al., Not All Patches are What You Need: Expediting Vision Transformers via
    Token Reorganizations, 2022, arXiv:2202.07800, and its code.
    Differs: the fused token counts inside ``num_keep``; the count comes from the schedule instead
    of ceil(rate * patches); equal scores go to the lower index.

    Args:
        normalise: Divide the fused token by the sum of its weights. The official code does not,
            so that its fused token is short.
    """

    needs: frozenset[Signal] = frozenset({"cls_attention"})
    acts: Acts = "after_attention"
    family = "attention"

    def __init__(self, normalise: bool = False) -> None:
        super().__init__()
        self.normalise = normalise

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep ``num_keep - 1`` patches and fuse the others."""
        assert signals.cls_attention is not None
        return keep_and_fuse(patches, signals.cls_attention, num_keep, self.normalise)


def keep_and_fuse(patches: Tensor, scores: Tensor, num_keep: int, normalise: bool) -> Reduced:
    """Keep the ``num_keep - 1`` best patches, best first; fuse the others by their scores.

    Args:
        patches: [B,N,D] float.
        scores: [B,N] float, at least 0.
        num_keep: K, the fused token included.
        normalise: Whether the weights of the fused token add up to 1.
    """
    kept = top_indices(scores, num_keep - 1)
    assignment = assignment_of_kept(kept, patches.shape[1], rest=num_keep - 1)
    weights = scores * (assignment == num_keep - 1)
    if normalise:
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-6)
    fused = weights.to(patches.dtype).unsqueeze(1) @ patches
    return Reduced(torch.cat([gather_tokens(patches, kept), fused], dim=1), assignment)
