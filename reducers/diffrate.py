"""DiffRate: sort by attention, prune the tail, merge the middle into the head."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import assignment_of_kept, cosine_similarity, gather_tokens, merge_tokens


class DiffRate(Reducer):
    """Drop the least attended patches, merge the next ones into the kept ones.

    Patches are sorted by the head-mean attention of CLS. Of the ``N - num_keep`` patches to remove,
    the last are pruned; each of the others merges into the kept patch with the highest cosine
    similarity. New tokens are in order of falling attention. Attention is proportional to size.

    Source: Chen et al., DiffRate: Differentiable Compression Rate for Efficient Vision
    Transformers, 2023, arXiv:2305.17997, and its code.
    Differs: the rates are not learnt: the schedule sets the count, ``merged`` the merged share; a
    token's size is its number of patches (the official code scales the size of a merged token by
    its similarity, which can make it negative, so its log is NaN); ties go to the lower index.

    Args:
        merged: Share of the removed patches that merge; the others are pruned. In [0, 1].
        weighted: Weight a merge by token size. The official code takes the plain mean.
    """

    needs: frozenset[Signal] = frozenset({"cls_attention", "sizes"})
    placement: Placement = "after_attention"
    proportional_attention = True
    family = "similarity"

    def __init__(self, merged: float = 0.5, weighted: bool = True) -> None:
        super().__init__()
        if not 0 <= merged <= 1:
            raise ValueError(f"DiffRate: merged is {merged}; it must be in [0, 1].")
        self.merged = merged
        self.weighted = weighted

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Prune and merge until ``num_keep`` patches are left."""
        count = patches.shape[1]
        order = signals.cls_attention.argsort(dim=1, descending=True, stable=True)
        end = num_keep + round(self.merged * (count - num_keep))
        kept, merging = order[:, :num_keep], order[:, num_keep:end]
        with torch.no_grad():
            similar = cosine_similarity(
                gather_tokens(patches, merging), gather_tokens(patches, kept)
            )
        assignment = assignment_of_kept(kept, count)
        if end > num_keep:
            assignment = assignment.scatter(1, merging, similar.argmax(dim=-1))
        weights = signals.sizes if self.weighted else torch.ones_like(signals.sizes)
        return Reduced(merge_tokens(patches, assignment, num_keep, weights), assignment)
