"""Bipartite matching: merge tokens of one half into the most similar tokens of the other half.

Source: Bolya et al., Token Merging: Your ViT But Faster, 2023, arXiv:2210.09461, section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reducers.tokens import cosine_similarity, merge_tokens, scatter_sum, top_indices

Step = Callable[[Tensor, int], Tensor]
"""``step(metric [B,N,C], removed) -> assignment [B,N]`` into ``N - removed`` new tokens."""


def repeat_until(metric: Tensor, sizes: Tensor, num_keep: int, step: Step) -> Tensor:
    """Repeat a merging step, which removes at most half of the tokens, until ``num_keep`` remain.

    Args:
        metric: [B,N,C] float, features to compare; merged like the tokens between rounds.
        sizes: [B,N] float, weights of the tokens in a merge.
        num_keep: K.
        step: One round of merging.

    Returns:
        [B,N] int64, the new token of each old one.
    """
    batch, count, _ = metric.shape
    assignment = torch.arange(count, device=metric.device).expand(batch, count)
    while count > num_keep:
        removed = min(count - num_keep, count // 2)
        merged = step(metric, removed)
        assignment = merged.gather(1, assignment)
        count -= removed
        if count > num_keep:
            metric = merge_tokens(metric, merged, count, sizes)
            sizes = scatter_sum(sizes, merged, count)
    return assignment


def alternate(num_tokens: int, first: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Split the indices 0..N-1 into those with the parity of ``first`` and the others."""
    return (
        torch.arange(first, num_tokens, 2, device=device),
        torch.arange(1 - first, num_tokens, 2, device=device),
    )


def match(metric: Tensor, removed: int, first: int = 1) -> Tensor:
    """Merge every second token, from ``first`` on, into its most similar other; best pairs first.

    Args:
        metric: [B,N,C] float.
        removed: Number of tokens to merge.
        first: Index of the first source, 0 or 1.

    Returns:
        [B,N] int64. New tokens: the remaining sources, in order, then the targets.
    """
    sources, targets = alternate(metric.shape[1], first, metric.device)
    best, edge = cosine_similarity(metric[:, first::2], metric[:, 1 - first :: 2]).max(dim=-1)
    return assign(best, edge, sources, targets, removed)


def assign(best: Tensor, edge: Tensor, sources: Tensor, targets: Tensor, removed: int) -> Tensor:
    """Turn each source's best target into an assignment.

    Args:
        best: [B,S] float, similarity to the best target.
        edge: [B,S] int64, index of that target.
        sources: [B,S] or [S] int64.
        targets: [B,T] or [T] int64.
        removed: Number of sources to merge, best first.
    """
    sources, targets = sources.expand(len(best), -1), targets.expand(len(best), -1)
    stay = sources.shape[1] - removed
    merge = torch.zeros_like(sources, dtype=torch.bool).scatter(1, top_indices(best, removed), True)
    new_source = torch.where(merge, stay + edge, (~merge).cumsum(dim=1) - 1)
    new_target = torch.arange(stay, stay + targets.shape[1], device=targets.device)
    places = torch.cat([sources, targets], dim=1)
    new = torch.cat([new_source, new_target.expand_as(targets)], dim=1)
    return torch.zeros_like(places).scatter(1, places, new)
