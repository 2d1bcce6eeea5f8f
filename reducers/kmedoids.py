"""K-Medoids: cluster the patches and keep one member of each cluster."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import (
    distances,
    farthest_first,
    gather_tokens,
    nearest_centre,
    top_indices,
)


class KMedoids(Reducer):
    """Cluster the patches around medoids and keep the medoids' features.

    The first medoids are the ``num_keep`` patches that receive the most attention. Each round
    assigns every patch to its nearest medoid. The new medoid of a cluster is the member i that
    minimises ``sum_j w_j d(i, j)`` over its members j, with w the attention received.

    Source: Marin et al., Token Pooling in Vision Transformers, 2021, arXiv:2110.03860, and the
    code of Haurum et al., Which Tokens to Use?, 2023, arXiv:2308.04657.
    Differs: it uses this block's attention instead of the previous block's, and acts after the
    attention; a medoid always belongs to its own cluster; ties go to the lower index.

    Args:
        rounds: Number of rounds.
        weighted: Weight by the attention received. False uses equal weights and starts from the
            patches that are farthest from one another.
        first: First medoid of the unweighted start.
        official: Move the medoids as the code of Haurum et al. does, to the member i that minimises
            ``w_i sum_j d(i, j)`` over all patches j of the image. This penalises the patches that
            receive attention. The unweighted start then measures the distance to the farthest
            chosen patch instead of the nearest.
    """

    placement: Placement = "after_attention"
    family = "clustering"

    def __init__(
        self, rounds: int = 3, weighted: bool = True, first: int = 0, official: bool = False
    ) -> None:
        super().__init__()
        if rounds < 0:
            raise ValueError(f"KMedoids: rounds is {rounds}; it must be at least 0.")
        self.rounds = rounds
        self.weighted = weighted
        self.first = first
        self.official = official
        needs: set[Signal] = {"attention_received"} if weighted else set()
        self.needs = frozenset(needs)
        # The unweighted start depends on the order of the patches.
        self.equivariant = weighted

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep ``num_keep`` medoids."""
        with torch.no_grad():
            distance = distances(patches)
            weights, medoids = self._start(distance, num_keep, signals)
            cluster = nearest_centre(distance, medoids)
            for _ in range(self.rounds):
                medoids = self._move(distance, weights, cluster, num_keep)
                cluster = nearest_centre(distance, medoids)
        return Reduced(gather_tokens(patches, medoids), cluster)

    def _start(self, distance: Tensor, num_keep: int, signals: Signals) -> tuple[Tensor, Tensor]:
        if self.weighted:
            received = signals.attention_received
            return received, top_indices(received, num_keep)
        first = torch.full_like(distance[:, 0, 0], self.first, dtype=torch.int64)
        start = _farthest_from_any if self.official else farthest_first
        return torch.ones_like(distance[:, 0]), start(distance, first, num_keep)

    def _move(self, distance: Tensor, weights: Tensor, cluster: Tensor, num_keep: int) -> Tensor:
        if self.official:
            cost = weights * distance.sum(dim=-1)
        else:
            together = cluster.unsqueeze(1) == cluster.unsqueeze(2)
            cost = (distance * together * weights.unsqueeze(1)).sum(dim=-1)
        # The lowest cost of each cluster, then the first token with that cost.
        least = cost.new_full((len(cost), num_keep), torch.inf)
        least = least.scatter_reduce(1, cluster, cost, "amin").gather(1, cluster)
        index = torch.arange(cost.shape[1], device=cost.device).expand_as(cluster)
        index = torch.where(cost <= least, index, cost.shape[1])
        first = cluster.new_full((len(cost), num_keep), cost.shape[1])
        return first.scatter_reduce(1, cluster, index, "amin")


def _farthest_from_any(distance: Tensor, first: Tensor, count: int) -> Tensor:
    """Like `farthest_first`, but by the distance to the farthest chosen token."""
    batch = torch.arange(len(first), device=first.device)
    free = torch.zeros_like(distance[:, 0])
    chosen, farthest = [first], distance[batch, first]
    for _ in range(count - 1):
        free = free.scatter(1, chosen[-1].unsqueeze(1), -torch.inf)
        chosen.append((farthest + free).argmax(dim=1))
        farthest = torch.maximum(farthest, distance[batch, chosen[-1]])
    return torch.stack(chosen, dim=1)
