"""VisPruner: keep important patches by attention, diverse ones by removing duplicates."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import cosine_similarity, keep_tokens, submatrix, top_indices

_PER_ROUND = 8


class VisPruner(Reducer):
    """Keep the patches that CLS attends to most, and of the others the least redundant.

    The others are sorted by falling attention. Each round removes at most 8 of those at even
    positions, the most similar to a patch at an odd position, until ``num_keep`` patches remain.
    The kept patches stay in their original order.

    Source: Zhang et al., Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token
    Pruning in VLMs, 2024, arXiv:2412.01818, and its code.
    Differs: it acts at the reduction layers inside the image encoder instead of after it; an odd
    number of patches works (the official code fails); ties go to the lower index.

    Args:
        important: Share of ``num_keep`` chosen by attention, in [0, 1]. 1 is FasterVLM.
    """

    needs: frozenset[Signal] = frozenset({"cls_attention"})
    placement: Placement = "after_attention"
    family = "diversity"

    def __init__(self, important: float = 0.5) -> None:
        super().__init__()
        if not 0 <= important <= 1:
            raise ValueError(f"VisPruner: important is {important}; it must be in [0, 1].")
        self.important = important

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep ``num_keep`` patches."""
        important = int(num_keep * self.important)
        order = signals.cls_attention.argsort(dim=1, descending=True, stable=True)
        kept, rest = order[:, :important], order[:, important:]
        if important < num_keep:
            rest = self._thin(cosine_similarity(patches), rest, num_keep - important)
            kept = torch.cat([kept, rest], dim=1)
        return keep_tokens(patches, kept.sort(dim=1).values)

    @staticmethod
    @torch.no_grad()
    def _thin(similarity: Tensor, rest: Tensor, count: int) -> Tensor:
        while rest.shape[1] > count:
            even, odd = rest[:, ::2], rest[:, 1::2]
            removed = min(_PER_ROUND, rest.shape[1] - count, even.shape[1])
            best = submatrix(similarity, even, odd).amax(dim=-1)
            order = top_indices(best, even.shape[1])
            rest = torch.cat([even.gather(1, order[:, removed:]), odd], dim=1)
        return rest
