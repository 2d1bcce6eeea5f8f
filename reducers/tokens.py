"""Tensor operations that reducers share: selecting, merging and comparing tokens."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from reducers.contract import Reduced


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
    # Copying whole rows is several times faster on a CPU than `gather`.
    picked = tokens.flatten(0, 1).index_select(0, _in_one_list(index, tokens.shape[1]))
    return picked.view(*index.shape, tokens.shape[-1])


def _in_one_list(index: Tensor, count: int) -> Tensor:
    """Turn indices [B,K] into ``count`` tokens of a sample into indices [B*K] into the batch."""
    samples = torch.arange(len(index), device=index.device)
    return (index + count * samples.unsqueeze(1)).flatten()


def submatrix(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pick rows [B,R] and columns [B,C] of [B,N,N]: [B,R,C]."""
    picked = gather_tokens(matrix, rows)
    return picked.gather(2, columns.unsqueeze(1).expand(-1, rows.shape[1], -1))


def keep_tokens(patches: Tensor, index: Tensor) -> Reduced:
    """Keep the tokens at ``index`` [B,K], in that order, and drop the others."""
    assignment = assignment_of_kept(index, patches.shape[1])
    return Reduced(gather_tokens(patches, index), assignment)


def keep_and_fuse(patches: Tensor, index: Tensor, weights: Tensor, normalise: bool) -> Reduced:
    """Keep the tokens at ``index``, in that order, and add the weighted sum of the others.

    Args:
        patches: [B,N,D] float.
        index: [B,K-1] int64, distinct within a row.
        weights: [B,N] float, at least 0.
        normalise: Whether the weights of the fused token add up to 1.
    """
    last = index.shape[1]
    assignment = assignment_of_kept(index, patches.shape[1], rest=last)
    weights = weights * (assignment == last)
    if normalise:
        weights = weights / (weights.sum(dim=1, keepdim=True) + 1e-6)
    fused = weights.to(patches.dtype).unsqueeze(1) @ patches
    return Reduced(torch.cat([gather_tokens(patches, index), fused], dim=1), assignment)


def assignment_of_kept(index: Tensor, num_tokens: int, rest: int = -1) -> Tensor:
    """Return the assignment that keeps the tokens at ``index``, in that order.

    Args:
        index: [B,K] int64, distinct within a row.
        num_tokens: N, the number of old tokens.
        rest: Assignment of all other tokens: -1 drops them.

    Returns:
        [B,N] int64.
    """
    batch, kept = index.shape
    new = torch.arange(kept, device=index.device).expand(batch, kept)
    return index.new_full((batch, num_tokens), rest).scatter(1, index, new)


def merge_tokens(tokens: Tensor, assignment: Tensor, count: int, weights: Tensor) -> Tensor:
    """Average the tokens with the same assignment: ``sum w_i x_i / sum w_i``.

    Args:
        tokens: [B,N,D] float.
        assignment: [B,N] int64, the new token of each old one, or -1 to drop it.
        count: K, number of new tokens.
        weights: [B,N] float, at least 0.

    Returns:
        [B,K,D].
    """
    weights = weights * (assignment >= 0)
    total = scatter_sum(weights, assignment, count)
    share = weights / total.clamp(min=1e-12).gather(1, assignment.clamp(min=0))
    return scatter_sum(tokens * share.unsqueeze(-1).to(tokens.dtype), assignment, count)


def scatter_sum(values: Tensor, assignment: Tensor, count: int) -> Tensor:
    """Sum the values with the same assignment: [B,N] or [B,N,D] -> [B,K] or [B,K,D].

    Args:
        values: [B,N] or [B,N,D]; 0 where ``assignment`` is -1.
        assignment: [B,N] int64.
        count: K.
    """
    total = values.new_zeros(values.shape[0] * count, *values.shape[2:])
    total = total.index_add_(0, _in_one_list(assignment.clamp(min=0), count), values.flatten(0, 1))
    return total.view(values.shape[0], count, *values.shape[2:])


def cosine_similarity(tokens: Tensor, others: Tensor | None = None) -> Tensor:
    """Cosine similarity of all pairs of tokens, in float32 even under autocast.

    Args:
        tokens: [B,N,C] float.
        others: [B,M,C] float; None compares ``tokens`` among themselves.

    Returns:
        [B,N,M] float32.
    """
    with without_autocast(tokens):
        unit = F.normalize(tokens.float(), dim=-1)
        other = unit if others is None else F.normalize(others.float(), dim=-1)
        return unit @ other.transpose(1, 2)


def distances(tokens: Tensor) -> Tensor:
    """Euclidean distance of all pairs of tokens, in float32 even under autocast.

    Computed as ``|x|^2 + |y|^2 - 2 x y`` on centred tokens; the diagonal is exactly 0.

    Args:
        tokens: [B,N,C] float.

    Returns:
        [B,N,N] float32.
    """
    with without_autocast(tokens):
        tokens = tokens.float()
        tokens = tokens - tokens.mean(dim=1, keepdim=True)
        square = tokens.square().sum(dim=-1)
        squared = square.unsqueeze(1) + square.unsqueeze(2) - 2 * tokens @ tokens.transpose(1, 2)
        itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        return squared.clamp(min=0).masked_fill(itself, 0).sqrt()


def nearest_centre(distance: Tensor, centres: Tensor) -> Tensor:
    """Return the index [B,N] of each token's nearest centre; a centre is its own.

    Args:
        distance: [B,N,N] float.
        centres: [B,K] int64, the tokens that are centres.
    """
    nearest = gather_tokens(distance, centres).argmin(dim=1)
    own = torch.arange(centres.shape[1], device=centres.device).expand_as(centres)
    return nearest.scatter(1, centres, own)


@torch.no_grad()
def farthest_first(distance: Tensor, first: Tensor, count: int) -> Tensor:
    """Choose tokens one by one, each time the one farthest from its nearest chosen token.

    Args:
        distance: [B,N,N] float.
        first: [B] int64, the first token.
        count: K.

    Returns:
        [B,K] int64, in the order of choice.
    """
    # The distance of a token to itself is minus infinity, so none is chosen twice.
    itself = torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
    distance = distance.masked_fill(itself, -torch.inf)
    batch = torch.arange(len(first), device=first.device)
    chosen, nearest = [first], distance[batch, first]
    for _ in range(count - 1):
        chosen.append(nearest.argmax(dim=1))
        nearest = torch.minimum(nearest, distance[batch, chosen[-1]])
    return torch.stack(chosen, dim=1)


def without_autocast(tokens: Tensor) -> AbstractContextManager[object]:
    """Disable autocast; meta tensors do not support it."""
    return nullcontext() if tokens.is_meta else torch.autocast(tokens.device.type, enabled=False)


def number_groups(leader: Tensor) -> Tensor:
    """Turn "token i joins token ``leader[i]``" into an assignment, in order of leaders.

    Args:
        leader: [B,N] int64; a leader leads itself.

    Returns:
        [B,N] int64.
    """
    itself = torch.arange(leader.shape[1], device=leader.device)
    return ((leader == itself).cumsum(dim=1) - 1).gather(1, leader)
