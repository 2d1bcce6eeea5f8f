"""PiToMe: merge inside large groups of similar tokens, protect the rare ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reducers.contract import Host, Placement, Reduced, Reducer, Signal, Signals
from reducers.matching import assign, repeat_until
from reducers.tokens import cosine_similarity, merge_tokens, submatrix


class PiToMe(Reducer):
    """Merge tokens of high energy, which have many like them, and protect the others.

    Energy: ``e_i = mean_j ELU(cos(k_i, k_j) - margin)`` with k the head-mean keys, itself
    included, and ``margin * (1 - layer / blocks)`` as the margin of a layer. To remove r tokens,
    the 2r of highest energy take sides by rank: each of even rank merges into its most similar
    one of odd rank, weighted by size. New tokens: the protected by falling energy, then the
    targets. One round removes at most half; it is repeated, on merged keys, until the count is
    met.

    Source: Tran et al., Accelerating Transformers with Spectrum-Preserving Token Merging, 2024,
    arXiv:2405.16148, and its vision code.
    Differs: the count comes from the schedule; the rounds are repeated where more than half has to
    go (the official code refuses); equal energies go to the lower index.

    Args:
        margin: Margin at layer 0; the official models use 0.9 to 0.95.
        alpha: Slope of ELU below 0.
        split_all: The official variant ``bsm``: all tokens take sides by rank and the best pairs
            merge, as in ToMe; nothing is protected as such.
    """

    needs: frozenset[Signal] = frozenset({"keys", "sizes"})
    placement: Placement = "after_attention"
    family = "similarity"

    def __init__(self, margin: float = 0.9, alpha: float = 1.0, split_all: bool = False) -> None:
        super().__init__()
        self.margin = margin
        self.alpha = alpha
        self.split_all = split_all
        self.num_blocks = 1

    def configure(self, host: Host) -> None:
        """Learn the number of blocks, by which the margin falls."""
        self.num_blocks = host.num_blocks

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Merge ``N - num_keep`` patches away."""
        margin = self.margin * (1 - signals.layer / self.num_blocks)

        def step(metric: Tensor, removed: int) -> Tensor:
            return self.step(metric, removed, margin)

        with torch.no_grad():
            metric = signals.keys.mean(dim=1)
            assignment = repeat_until(metric, signals.sizes, num_keep, step)
        return Reduced(merge_tokens(patches, assignment, num_keep, signals.sizes), assignment)

    def step(self, metric: Tensor, removed: int, margin: float) -> Tensor:
        """Merge ``removed`` of the [B,N,C] tokens away; returns the assignment [B,N]."""
        cosine = cosine_similarity(metric)
        energy = F.elu(cosine - margin, alpha=self.alpha).mean(dim=-1)
        order = energy.argsort(dim=1, descending=True, stable=True)
        mergeable = metric.shape[1] if self.split_all else 2 * removed
        sources, targets = order[:, 0:mergeable:2], order[:, 1:mergeable:2]
        best, edge = submatrix(cosine, sources, targets).max(dim=-1)
        if self.split_all:
            rank = best.argsort(dim=1, descending=True, stable=True)
            sources, best, edge = (part.gather(1, rank) for part in (sources, best, edge))
            return assign(best, edge, sources, targets, removed)
        protected = order[:, mergeable:]
        kept = torch.arange(metric.shape[1] - removed, device=metric.device)
        kept = kept.expand(len(metric), -1)
        new = torch.cat([kept[:, :-removed], protected.shape[1] + edge, kept[:, -removed:]], dim=1)
        places = torch.cat([protected, sources, targets], dim=1)
        return torch.zeros_like(places).scatter(1, places, new)
