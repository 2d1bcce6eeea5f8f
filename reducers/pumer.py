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
    """Prune the image tokens that the text ignores, merge similar ones.

    It acts in the fusion's text layers, between cross-attention and feed-forward. The score of an
    image token is the cross-attention it receives, averaged over heads and text tokens. The tokens
    with the lowest scores are pruned; the others, by falling score, merge as in ToMe by the
    cross-attention's keys. Text tokens merge by their self-attention's keys, unless a head reads
    the whole text.

    Source: Cao et al., PuMer: Pruning and Merging Tokens for Efficient Vision Language Models,
    ACL 2023, arXiv:2305.17530, and its METER code.
    Differs: the count is exactly ``num_keep``, and merging rounds repeat to remove more than half;
    both CLS tokens are protected; padding neither scores nor merges; merges are weighted by token
    size; as in METER, an image layer reads the text that entered the text layer of the same level;
    text that a head reads as a whole (masked words) is not merged.

    Args:
        prune: Share of the removed image tokens that are pruned instead of merged, in [0, 1]. 0.5
            is the official setting for VQA (0.2 and 0.2).
        merge_text: Share of the text tokens that merge away at each reduction layer, in [0, 0.5].
        official: As the official code: CLS is an ordinary image token and the token with the
            highest score replaces it; padding scores; a merge is the plain mean.
    """

    needs: frozenset[Signal] = frozenset({"cross_attention", "keys", "sizes", "text"})
    placement: Placement = "fusion"
    family = "text"

    def __init__(self, prune: float = 0.5, merge_text: float = 0.2, official: bool = False) -> None:
        super().__init__()
        if not 0 <= prune <= 1:
            raise ValueError(f"PuMer: prune is {prune}; it must be in [0, 1].")
        if not 0 <= merge_text <= 0.5:
            raise ValueError(f"PuMer: merge_text is {merge_text}; it must be in [0, 0.5].")
        self.prune = prune
        self.merge_text = merge_text
        self.official = official
        self.includes_cls = official

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Prune and merge until ``num_keep`` image tokens remain."""
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
        first = int(self.official)
        merged = repeat_until(metric[:, first:], weights[:, first:], num_keep - first, match)
        alone = torch.zeros_like(merged[:, :first])
        return torch.cat([alone, merged + first], dim=1)

    def reduce_text(self, tokens: Tensor, keys: Tensor, mask: Tensor | None) -> Reduced | None:
        """Merge a share of the text tokens; CLS is unchanged.

        Each text merges a share of its own tokens, so padding has no effect on the choice.
        """
        length = tokens.shape[1]
        removed = min(round(self.merge_text * length), (length - 1) // 2)
        if removed == 0:
            return None
        real = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask
        words, count = real[:, 1:], length - 1 - removed
        with torch.no_grad():
            similarity = cosine_similarity(keys.mean(dim=1)[:, 1:])
            sources, targets = alternate(length - 1, 1, tokens.device)
            if self.official:
                best, edge = similarity[:, sources][:, :, targets].max(dim=-1)
                assignment = assign(best, edge, sources, targets, removed)
            else:
                assignment = self._merge_words(similarity, words, sources, targets, count)
        merged = merge_tokens(tokens[:, 1:], assignment, count, torch.ones_like(tokens[:, 1:, 0]))
        alive = torch.zeros_like(tokens[:, 1 : 1 + count, 0]).scatter_reduce(
            1, assignment.clamp(min=0), (words & (assignment >= 0)).to(tokens.dtype), "amax"
        )
        cls = torch.zeros_like(assignment[:, :1])
        return Reduced(
            torch.cat([tokens[:, :1], merged], dim=1),
            torch.cat([cls, torch.where(assignment >= 0, assignment + 1, -1)], dim=1),
            torch.cat([real[:, :1], alive.bool()], dim=1),
        )

    def _merge_words(
        self, similarity: Tensor, words: Tensor, sources: Tensor, targets: Tensor, count: int
    ) -> Tensor:
        """Return the new index, below ``count``, of each word; -1 for padding that is dropped."""
        pairs = words[:, sources].unsqueeze(2) & words[:, targets].unsqueeze(1)
        similarity = similarity[:, sources][:, :, targets].masked_fill(~pairs, -torch.inf)
        best, edge = similarity.max(dim=-1)
        tokens = words.sum(dim=1, keepdim=True) + 1
        merging = (self.merge_text * tokens.double()).round().long()
        merging = torch.minimum(merging, (tokens - 1) // 2)
        rank = best.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        merges = torch.zeros_like(words)
        merges[:, sources] = rank < merging
        # Remaining words, in order; then padding; then words that merge.
        order = torch.where(merges, 2, torch.where(words, 0, 1))
        place = order.argsort(dim=1, stable=True).argsort(dim=1)
        target = place.gather(1, targets[edge])
        place[:, sources] = torch.where(rank < merging, target, place[:, sources])
        return torch.where(place < count, place, -1)
