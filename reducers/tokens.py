"""Selecting and merging tokens: the few tensor operations that all reducers are made of."""

from __future__ import annotations

import torch
from torch import Tensor


def top_indices(scores: Tensor, count: int) -> Tensor:
    """Return the indices of the ``count`` highest scores, best first; ties go to the lowest index.

    Args:
        scores: [B,N] float.
        count: Between 0 and N.

    Returns:
        [B,count] int64.
    """
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens by index: [B,N,D] and [B,K] -> [B,K,D]."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def assignment_of_kept(index: Tensor, num_tokens: int, rest: int = -1) -> Tensor:
    """Say where each old token went when the tokens at ``index`` were kept, in that order.

    Args:
        index: [B,K] int64, distinct within a row.
        num_tokens: N, the number of old tokens.
        rest: What to say of all others: -1 for dropped, or the index of the token that they were
            fused into.

    Returns:
        [B,N] int64.
    """
    batch, kept = index.shape
    new = torch.arange(kept, device=index.device).expand(batch, kept)
    return index.new_full((batch, num_tokens), rest).scatter(1, index, new)
