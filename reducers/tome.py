"""ToMe: merge the most similar tokens, pair by pair."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.matching import alternate, match, repeat_until
from reducers.tokens import merge_tokens


class ToMe(Reducer):
    """Merge every second patch into its most similar other one, the most similar pairs first.

    Similarity is the cosine of the keys, averaged over heads. Patches at odd places (sources)
    each point to their most similar patch at an even place (target); the best pairs merge into
    their size-weighted mean. New tokens: the sources that stay, then the targets. Attention is
    proportional to token size. One round merges at most half; it is repeated, on merged keys,
    until the count is met.

    Source: Bolya et al., Token Merging: Your ViT But Faster, 2023, arXiv:2210.09461, and its code.
    Differs: the rounds are repeated where more than half has to go (the official code stops at
    half); equal similarities go to the lower index.

    Args:
        sources: The places of the patches that may merge into others. ``odd`` is the official
            split with CLS in front of the patches, ``even`` the one without CLS.
        proportional: Add log(size) to the attention logits, as the paper does.
    """

    needs: frozenset[Signal] = frozenset({"keys", "sizes"})
    placement: Placement = "after_attention"
    family = "similarity"
    equivariant = False

    def __init__(self, sources: Literal["odd", "even"] = "odd", proportional: bool = True) -> None:
        super().__init__()
        self.first = 1 if sources == "odd" else 0
        self.proportional_attention = proportional

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Merge ``N - num_keep`` patches away."""
        assignment = self.assignment(signals.keys.mean(dim=1), signals.sizes, num_keep)
        return Reduced(merge_tokens(patches, assignment, num_keep, signals.sizes), assignment)

    @torch.no_grad()
    def assignment(self, metric: Tensor, sizes: Tensor, num_keep: int) -> Tensor:
        """Match [B,N,C] tokens until ``num_keep`` are left; returns [B,N]."""

        def step(metric: Tensor, removed: int) -> Tensor:
            sources, targets = alternate(metric.shape[1], self.first, metric.device)
            return match(metric, sources, targets, removed)

        return repeat_until(metric, sizes, num_keep, step)
