"""MCTF: merge by similarity, importance and size."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Reduced, Reducer, Signal, Signals
from reducers.matching import alternate
from reducers.tokens import (
    cosine_similarity,
    merge_tokens,
    number_groups,
    scatter_sum,
    top_indices,
)


class MCTF(Reducer):
    """Merge tokens that are similar, unimportant and small.

    Score of merging i into j: ``((cos(x_i, x_j) + 1) / 2) ** (1 / similar)`` times
    ``(a_i a_j) ** (-1 / informative)`` times ``(s_i s_j) ** (-1 / small)``, with a the attention
    received and s the size. Half of the merges move odd patches into even ones, the other half even
    ones into the remaining odd ones. A new token is the mean of its tokens weighted by attention
    received times size. One round removes at most half; rounds repeat until ``num_keep`` remain.

    Source: Lee et al., Multi-criteria Token Fusion with One-step-ahead Attention for
    Efficient Vision Transformers, 2024, arXiv:2403.10030, and its code.
    Differs: the block computes attention again on the merged tokens (the official code merges the
    one-step-ahead attention map and uses it); there is no minimum of ten tokens; rounds repeat, and
    a merged token has received the sum of its tokens' attention; the paper's consistency loss for
    fine-tuning is not included.

    Args:
        similar: Temperature of similarity.
        informative: Temperature of importance.
        small: Temperature of size.
        both_ways: Merge in both directions; False merges only odd patches.
        by_attention: Weight a merge by attention received times size; False by size.
    """

    needs: frozenset[Signal] = frozenset({"attention_received", "sizes"})
    family = "similarity"
    equivariant = False

    def __init__(
        self,
        similar: float = 1.0,
        informative: float = 20.0,
        small: float = 40.0,
        both_ways: bool = True,
        by_attention: bool = True,
    ) -> None:
        super().__init__()
        if min(similar, informative, small) <= 0:
            raise ValueError("MCTF: the temperatures must be above 0.")
        self.similar = similar
        self.informative = informative
        self.small = small
        self.both_ways = both_ways
        self.by_attention = by_attention

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Merge ``N - num_keep`` patches away."""
        received, sizes = signals.attention_received.float(), signals.sizes.float()
        weights = received * sizes if self.by_attention else sizes
        with torch.no_grad():
            assignment = self._assignment(patches, num_keep, received, sizes)
        return Reduced(merge_tokens(patches, assignment, num_keep, weights), assignment)

    def _assignment(self, tokens: Tensor, num_keep: int, received: Tensor, sizes: Tensor) -> Tensor:
        batch, count, _ = tokens.shape
        assignment = torch.arange(count, device=tokens.device).expand(batch, count)
        while count > num_keep:
            removed = min(count - num_keep, count // 2)
            merged = self._round(self._edges(tokens, received, sizes), removed)
            assignment = merged.gather(1, assignment)
            count -= removed
            if count > num_keep:
                weights = received * sizes if self.by_attention else sizes
                tokens = merge_tokens(tokens, merged, count, weights)
                received = scatter_sum(received, merged, count)
                sizes = scatter_sum(sizes, merged, count)
        return assignment

    def _edges(self, tokens: Tensor, received: Tensor, sizes: Tensor) -> Tensor:
        """Score the merge of each odd token with each even one."""
        edges = (cosine_similarity(tokens[:, 1::2], tokens[:, ::2]) + 1) / 2
        edges = edges.clamp(min=0) ** (1 / self.similar)
        for amount, temperature in ((received, self.informative), (sizes, self.small)):
            low = 1 / amount.clamp(min=1e-12)
            low = (low / low.amax(dim=1, keepdim=True)) ** (1 / temperature)
            edges = edges * low[:, 1::2].unsqueeze(2) * low[:, ::2].unsqueeze(1)
        return edges

    def _round(self, edges: Tensor, removed: int) -> Tensor:
        batch, count = len(edges), edges.shape[1] + edges.shape[2]
        odd, even = alternate(count, 1, edges.device)
        there = removed // 2 if self.both_ways else removed
        best, edge = edges.max(dim=-1)
        gone = _marked(best, there)
        leader = torch.arange(count, device=edges.device).expand(batch, count)
        leader = leader.scatter(1, odd.expand(batch, -1), torch.where(gone, even[edge], odd))
        if removed > there:
            back = edges.masked_fill(gone.unsqueeze(2), -torch.inf).transpose(1, 2)
            best, edge = back.max(dim=-1)
            gone = _marked(best, removed - there)
            leader = leader.scatter(1, even.expand(batch, -1), torch.where(gone, odd[edge], even))
        # If the token it merged into merged in turn, follow it.
        return number_groups(leader.gather(1, leader))


def _marked(scores: Tensor, count: int) -> Tensor:
    """Mark the ``count`` highest of [B,N] scores."""
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, top_indices(scores, count), True)
