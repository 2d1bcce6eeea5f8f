"""ToMe: merge the most similar tokens, pair by pair."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.matching import match, repeat_until
from reducers.tokens import merge_tokens


class ToMe(Reducer):
    """Merge patches at odd positions into similar ones at even positions, best pairs first.

    Similarity is the cosine of the head-mean keys. Each odd patch (source) is paired with its most
    similar even patch (target); the best pairs merge into their size-weighted mean. New tokens: the
    remaining sources, then the targets. Attention is proportional to token size. One round removes
    at most half; rounds repeat on merged keys until ``num_keep`` remain.

    Source: Bolya et al., Token Merging: Your ViT But Faster, 2023, arXiv:2210.09461, and its code.
    Differs: rounds repeat to remove more than half (the official code stops at half); ties go to
    the lower index.

    Args:
        sources: Positions of the patches that may merge into others. ``odd`` is the official split
            of a model with CLS, ``even`` that of one without.
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
        """Merge away ``N - num_keep`` patches."""
        with torch.no_grad():
            metric, step = signals.keys.mean(dim=1), partial(match, first=self.first)
            assignment = repeat_until(metric, signals.sizes, num_keep, step)
        return Reduced(merge_tokens(patches, assignment, num_keep, signals.sizes), assignment)
