"""ATC: agglomerative clustering of tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import cosine_similarity, merge_tokens, number_groups, without_autocast


class ATC(Reducer):
    """Repeatedly merge the two nearest clusters until ``num_keep`` remain.

    The distance between two tokens is one minus the cosine of their head-mean keys. The linkage
    sets the distance between two clusters: the mean, largest or smallest distance between their
    tokens. Each cluster becomes its size-weighted mean. New tokens are ordered by first patch.

    Source: Haurum et al., Agglomerative Token Clustering, 2024, arXiv:2409.11923, and its code.
    Differs: batched, on the tokens' device (the official code calls scikit-learn for each sample);
    of equally near pairs, the first by index merges.

    Args:
        linkage: Distance between clusters.
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
        with torch.no_grad(), without_autocast(patches):
            distance = 1 - cosine_similarity(signals.keys.mean(dim=1))
            assignment = number_groups(self._leaders(distance, num_keep))
        return Reduced(merge_tokens(patches, assignment, num_keep, signals.sizes), assignment)

    def _leaders(self, distance: Tensor, num_keep: int) -> Tensor:
        """Return for each token [B,N] the first token of its cluster."""
        size, count, _ = distance.shape
        index = torch.arange(count, device=distance.device)
        batch = torch.arange(size, device=distance.device).unsqueeze(1)
        # The matrix is symmetric, so argmin finds the pair above the diagonal. Distances to itself
        # and to merged clusters are infinite.
        distance = torch.minimum(distance, distance.mT)
        distance = distance.masked_fill(index == index.unsqueeze(1), torch.inf)
        flat, columns = distance.view(size, -1), distance.mT  # views of the distance
        pairs = torch.cartesian_prod(index, index)
        gone = torch.full_like(distance[:, :1], torch.inf)
        members = torch.ones_like(distance[:, 0])
        pair = pairs[flat.argmin(dim=1)]  # [B,2]; the second joins the first
        merges = [pair]
        while len(merges) < count - num_keep:
            both = distance[batch, pair]
            if self.linkage == "average":
                share = members.gather(1, pair)
                total = share.sum(dim=1, keepdim=True)
                members[batch, pair] = total
                joined = torch.bmm((share / total).unsqueeze(1), both)
            elif self.linkage == "complete":
                joined = both.amax(dim=1, keepdim=True)
            else:
                joined = both.amin(dim=1, keepdim=True)
                joined = joined.scatter(2, pair.unsqueeze(1), torch.inf)
            rows = torch.cat([joined, gone], dim=1)
            distance[batch, pair], columns[batch, pair] = rows, rows
            pair = pairs[flat.argmin(dim=1)]
            merges.append(pair)
        merged = torch.stack(merges, dim=1)
        leader = index.expand(size, -1).scatter(1, merged[..., 1], merged[..., 0])
        # Each step doubles the number of merges that are followed.
        for _ in range(count.bit_length()):
            leader = leader.gather(1, leader)
        return leader
