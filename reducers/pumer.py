"""PuMer: text-informed pruning and modality-aware merging inside the fusion."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.matching import alternate, assign, match, repeat_until
from reducers.tokens import (
    assignment_of_kept,
    cosine_similarity,
    gather_tokens,
    merge_tokens,
    top_indices,
)


class PuMer(Reducer):
    """Prune the image tokens that the text ignores, merge those that resemble each other.

    It acts in the fusion's text layers, between cross-attention and feed-forward. Score of an image
    token: the mean, over heads and text tokens, of the cross-attention that it receives. The
    lowest are pruned; the others, by falling score, merge as in ToMe on the cross-attention's keys.
    The text, where a head reads only its CLS, merges likewise on its self-attention's keys.

    Source: Cao et al., PuMer: Pruning and Merging Tokens for Efficient Vision Language Models,
    ACL 2023, arXiv:2305.17530, and its METER code.
    Differs: ``num_keep`` is met exactly, over several rounds of merging where more than half has to
    go; CLS is protected on both sides; padding neither scores nor merges into words; a merge is
    weighted by token size; the image layer of the same level reads the text as the previous
    level left it, as METER does; text that a head reads whole (masked words) is not merged.

    Args:
        prune: Share of the removed image tokens that are pruned; the others merge. In [0, 1]. 0.5
            is the official setting for questions (0.2 and 0.2).
        merge_text: Share of the text tokens that merge away at each reduction layer, in [0, 0.5].
        official: Do as the code does: CLS is an image token like others and whatever scores
            highest takes its place; padding scores; a merge is the plain mean.
    """

    needs: frozenset[Signal] = frozenset({"cross_attention", "keys", "sizes", "text"})
    placement: Placement = "fusion"
    family = "text"

    def __init__(self, prune: float = 0.5, merge_text: float = 0.2, official: bool = False) -> None:
        super().__init__()
        if not 0 <= prune <= 1:
            raise ValueError(f"PuMer: prune is {prune}; it must lie between 0 and 1.")
        if not 0 <= merge_text <= 0.5:
            raise ValueError(f"PuMer: merge_text is {merge_text}; it must lie between 0 and 0.5.")
        self.prune = prune
        self.merge_text = merge_text
        self.official = official
        self.includes_cls = official

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Prune and merge until ``num_keep`` image tokens are left."""
        count = patches.shape[1]
        weights = torch.ones_like(signals.sizes) if self.official else signals.sizes
        with torch.no_grad():
            attention = signals.cross_attention
            if not self.official:
                attention = attention * signals.text.mask.unsqueeze(-1)
            left = count - round(self.prune * (count - num_keep))
            kept = top_indices(attention.sum(dim=1), left)
            metric = gather_tokens(signals.keys.mean(dim=1), kept)
            merged = self._merge(metric, weights.gather(1, kept), num_keep)
            assignment = assignment_of_kept(kept, count)
            assignment = assignment.scatter(1, kept, merged)
        return Reduced(merge_tokens(patches, assignment, num_keep, weights), assignment)

    def _merge(self, metric: Tensor, weights: Tensor, num_keep: int) -> Tensor:
        """Merge [B,M,C] tokens down to ``num_keep``; the official rule protects the first."""

        def step(metric: Tensor, removed: int) -> Tensor:
            sources, targets = alternate(metric.shape[1], 1, metric.device)
            return match(metric, sources, targets, removed)

        first = int(self.official)
        merged = repeat_until(metric[:, first:], weights[:, first:], num_keep - first, step)
        alone = torch.zeros_like(merged[:, :first])
        return torch.cat([alone, merged + first], dim=1)

    def reduce_text(self, tokens: Tensor, keys: Tensor, mask: Tensor | None) -> Reduced | None:
        """Merge a share of the text tokens; CLS stays as it is."""
        removed = min(round(self.merge_text * tokens.shape[1]), (tokens.shape[1] - 1) // 2)
        if removed == 0:
            return None
        real = torch.ones_like(tokens[..., 0]) if mask is None else mask.to(tokens.dtype)
        words = real[:, 1:]
        with torch.no_grad():
            similarity = cosine_similarity(keys.mean(dim=1)[:, 1:])
            if not self.official:
                # Padding merges into padding, and first of all; nothing merges across.
                padding = (1 - words).unsqueeze(1) * (1 - words).unsqueeze(2)
                across = (words.unsqueeze(1) != words.unsqueeze(2)).to(similarity.dtype)
                similarity = similarity + 3 * padding - 3 * across
            sources, targets = alternate(words.shape[1], 1, tokens.device)
            best, edge = similarity[:, sources][:, :, targets].max(dim=-1)
            rows = len(tokens)
            assignment = assign(
                best, edge, sources.expand(rows, -1), targets.expand(rows, -1), removed
            )
        count = words.shape[1] - removed
        weights = torch.ones_like(words) if self.official else words.clamp(min=1e-6)
        merged = merge_tokens(tokens[:, 1:], assignment, count, weights)
        alive = torch.zeros_like(words[:, :count]).scatter_reduce(1, assignment, words, "amax")
        cls = torch.zeros_like(assignment[:, :1])
        return Reduced(
            torch.cat([tokens[:, :1], merged], dim=1),
            torch.cat([cls, assignment + 1], dim=1),
            torch.cat([real[:, :1], alive], dim=1).bool(),
        )
