"""Bipartite matching: merge tokens of one half into their most similar token of the other half.

Source: Bolya et al., Token Merging: Your ViT But Faster, 2023, arXiv:2210.09461, section 3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reducers.tokens import cosine_similarity, gather_tokens, merge_tokens, scatter_sum, top_indices

Step = Callable[[Tensor, int], Tensor]
"""``step(metric [B,N,C], removed) -> assignment [B,N]`` into ``N - removed`` new tokens."""


def repeat_until(metric: Tensor, sizes: Tensor, num_keep: int, step: Step) -> Tensor:
    """Repeat a merging step, which can remove at most half of the tokens, until the count is met.

    Args:
        metric: [B,N,C] float, what similarity is measured on; merged like the tokens in between.
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
    """Split places 0..N-1 into those with the parity of ``first`` and the others."""
    return (
        torch.arange(first, num_tokens, 2, device=device),
        torch.arange(1 - first, num_tokens, 2, device=device),
    )


def match(metric: Tensor, sources: Tensor, targets: Tensor, removed: int) -> Tensor:
    """Merge the ``removed`` sources that have the most similar target into that target.

    Args:
        metric: [B,N,C] float.
        sources: [B,S] or [S] int64, the places that may merge.
        targets: [B,T] or [T] int64, the other places.
        removed: At most S.

    Returns:
        [B,N] int64. New tokens: the sources that stay, in the order of ``sources``, then the
        targets.
    """
    batch = metric.shape[0]
    sources, targets = sources.expand(batch, -1), targets.expand(batch, -1)
    similarity = cosine_similarity(gather_tokens(metric, sources), gather_tokens(metric, targets))
    best, edge = similarity.max(dim=-1)
    return assign(best, edge, sources, targets, removed)


def assign(best: Tensor, edge: Tensor, sources: Tensor, targets: Tensor, removed: int) -> Tensor:
    """Turn each source's best target into an assignment.

    Args:
        best: [B,S] float, how good the edge is.
        edge: [B,S] int64, the target that it leads to.
        sources: [B,S] int64.
        targets: [B,T] int64.
        removed: How many of the best edges merge.
    """
    stay = sources.shape[1] - removed
    merge = torch.zeros_like(sources, dtype=torch.bool).scatter(1, top_indices(best, removed), True)
    new_source = torch.where(merge, stay + edge, (~merge).cumsum(dim=1) - 1)
    new_target = torch.arange(stay, stay + targets.shape[1], device=targets.device)
    places = torch.cat([sources, targets], dim=1)
    new = torch.cat([new_source, new_target.expand_as(targets)], dim=1)
    return torch.zeros_like(places).scatter(1, places, new)
