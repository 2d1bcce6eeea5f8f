"""PiToMe: merge within large groups of similar tokens, protect rare tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reducers.contract import Host, Placement, Reduced, Reducer, Signal, Signals
from reducers.matching import assign, repeat_until
from reducers.tokens import cosine_similarity, merge_tokens, submatrix


class PiToMe(Reducer):
    """Merge tokens of high energy, which resemble many others, and protect the rest.

    Energy: ``e_i = mean_j ELU(cos(k_i, k_j) - margin)`` with k the head-mean keys and j
    including i. The margin of a layer is ``margin * (1 - layer / blocks)``. To remove r tokens, the
    2r tokens with the highest energy are ranked; each of even rank merges into its most similar
    token of odd rank, weighted by size. New tokens: the protected ones by falling energy, then the
    targets. One round removes at most half; rounds repeat on merged keys until ``num_keep`` remain.

    Source: Tran et al., Accelerating Transformers with Spectrum-Preserving Token Merging, 2024,
    arXiv:2405.16148, and its vision code.
    Differs: the count comes from the schedule; rounds repeat to remove more than half (the official
    code refuses); ties go to the lower index.

    Args:
        margin: Margin at layer 0; the official models use 0.9 to 0.95.
        alpha: Slope of ELU below 0.
        split_all: The official variant ``bsm``: all tokens are split by rank and the best pairs
            merge, as in ToMe; no token is protected.
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
        """Store the number of blocks, which sets the margins."""
        self.num_blocks = host.num_blocks

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Merge away ``N - num_keep`` patches."""
        margin = self.margin * (1 - signals.layer / self.num_blocks)

        def step(metric: Tensor, removed: int) -> Tensor:
            return self.step(metric, removed, margin)

        with torch.no_grad():
            metric = signals.keys.mean(dim=1)
            assignment = repeat_until(metric, signals.sizes, num_keep, step)
        return Reduced(merge_tokens(patches, assignment, num_keep, signals.sizes), assignment)

    def step(self, metric: Tensor, removed: int, margin: float) -> Tensor:
        """Merge away ``removed`` of the [B,N,C] tokens; return the assignment [B,N]."""
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
