"""ATC: agglomerative clustering of tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import cosine_similarity, merge_tokens, number_groups


class ATC(Reducer):
    """Merge the two nearest clusters again and again until the count is met.

    Distance of two tokens is one minus the cosine of their head-mean keys; of two clusters, by
    linkage, the mean, the largest or the smallest distance between their tokens. A cluster becomes
    its size-weighted mean. New tokens come in the order of their first patches.

    Source: Haurum et al., Agglomerative Token Clustering, 2024, arXiv:2409.11923, and its code.
    Differs: all samples at once, on the tokens' device (the official code calls scikit-learn on the
    CPU for each sample); of equally near pairs the first in index order merges.

    Args:
        linkage: How the distance of two clusters is measured.
        proportional: Add log(size) to the attention logits.
    """

    needs: frozenset[Signal] = frozenset({"keys", "sizes"})
    placement: Placement = "after_attention"
    family = "clustering"

    def __init__(
        self,
        linkage: Literal["average", "complete", "single"] = "average",
        proportional: bool = False,
    ) -> None:
        super().__init__()
        self.linkage = linkage
        self.proportional_attention = proportional

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Form ``num_keep`` clusters."""
        with torch.no_grad():
            distance = 1 - cosine_similarity(signals.keys.mean(dim=1))
            assignment = number_groups(self._leaders(distance, num_keep))
        return Reduced(merge_tokens(patches, assignment, num_keep, signals.sizes), assignment)

    def _leaders(self, distance: Tensor, num_keep: int) -> Tensor:
        """Return for each token [B,N] the first token of its cluster."""
        batch, count, _ = distance.shape
        rows = torch.arange(batch, device=distance.device)
        index = torch.arange(count, device=distance.device).expand(batch, count)
        # Places that no cluster is led from, and a cluster's distance to itself, are infinite.
        distance = distance.masked_fill(index.unsqueeze(1) == index.unsqueeze(2), torch.inf)
        leader, members = index, torch.ones_like(distance[:, 0])
        for _ in range(count - num_keep):
            nearest = distance.flatten(1).argmin(dim=1)
            one, two = nearest // count, nearest % count
            first, second = torch.minimum(one, two), torch.maximum(one, two)
            joined = self._joined(distance, members, rows, first, second)
            distance[rows, first], distance[rows, :, first] = joined, joined
            distance[rows, second], distance[rows, :, second] = torch.inf, torch.inf
            distance[rows, first, first] = torch.inf
            into, gone = first.unsqueeze(1), second.unsqueeze(1)
            members = members.scatter_add(1, into, members.gather(1, gone))
            leader = torch.where(leader == gone, into, leader)
        return leader

    def _joined(
        self, distance: Tensor, members: Tensor, rows: Tensor, first: Tensor, second: Tensor
    ) -> Tensor:
        """Return the distances [B,N] of the cluster that two clusters make to all others."""
        one, two = distance[rows, first], distance[rows, second]
        if self.linkage == "single":
            return torch.minimum(one, two)
        if self.linkage == "complete":
            return torch.maximum(one, two)
        count_one, count_two = members[rows, first], members[rows, second]
        total = (count_one + count_two).unsqueeze(1)
        return (count_one.unsqueeze(1) * one + count_two.unsqueeze(1) * two) / total
