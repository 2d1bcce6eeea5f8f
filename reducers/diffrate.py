"""DiffRate: sort by attention, prune the tail, merge what is left over the budget."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import assignment_of_kept, cosine_similarity, gather_tokens, merge_tokens


class DiffRate(Reducer):
    """Drop the least attended patches, merge the next ones into the kept ones.

    Patches are sorted by the head-mean attention of CLS. Of the ``N - num_keep`` that have to go,
    the last are pruned and those before them each merge into the kept patch of highest cosine
    similarity. New tokens come by falling attention; attention is proportional to token size.

    Source: Chen et al., DiffRate: Differentiable Compression Rate for Efficient Vision
    Transformers, 2023, arXiv:2305.17997, and its code.
    Differs: the rates are not learnt, the schedule gives the count and ``merged`` its division;
    a token's size is the number of patches it stands for (the official code scales the size of a
    merged token by its similarity, which can make it negative, and its log is no number then);
    equal scores go to the lower index.

    Args:
        merged: Share of the removed patches that merge; the others are pruned. In [0, 1].
        weighted: Weight a merge by token size. The official code takes the plain mean of the
            tokens, whatever they stand for.
    """

    needs: frozenset[Signal] = frozenset({"cls_attention", "sizes"})
    placement: Placement = "after_attention"
    proportional_attention = True
    family = "similarity"

    def __init__(self, merged: float = 0.5, weighted: bool = True) -> None:
        super().__init__()
        if not 0 <= merged <= 1:
            raise ValueError(f"DiffRate: merged is {merged}; it must lie between 0 and 1.")
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
