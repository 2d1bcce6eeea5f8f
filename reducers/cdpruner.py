"""CDPruner: diverse patches, weighted by their relevance to the text."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from reducers.contract import Reduced, Reducer, Signal, Signals
from reducers.tokens import cosine_similarity, keep_tokens, without_autocast


class CDPruner(Reducer):
    """Choose patches by a determinantal point process conditioned on the text.

    Relevance r_j is the mean cosine between patch j and the text in their shared space, scaled to
    [0, 1] over the patches of one image. With L_ij the cosine similarity of patches, the kernel is
    ``r_i L_ij r_j``. Each step adds the patch that raises its determinant most. The kept patches
    stay in their original order.

    Source: Zhang et al., Beyond Attention or Similarity: Maximizing Conditional Diversity for Token
    Pruning in MLLMs, 2025, arXiv:2506.10967, and its code.
    Differs: relevance is scaled within each image, so the rest of the batch has no effect; the
    shared space is METER's fusion width (its two projections, which no contrastive loss aligns);
    relevance is not negated; it acts inside the image encoder.

    Args:
        negate: Take the negative cosine, as the official code does for CLIP's patches.
        over_batch: Scale relevance over the whole batch, as the official code does.
    """

    needs: frozenset[Signal] = frozenset({"text", "joint_embeddings"})
    family = "text"

    def __init__(self, negate: bool = False, over_batch: bool = False) -> None:
        super().__init__()
        self.negate = negate
        self.over_batch = over_batch

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep ``num_keep`` patches."""
        with torch.no_grad():
            relevance = self._relevance(*signals.joint_embeddings)
            kernel = cosine_similarity(patches)
            kernel = relevance.unsqueeze(2) * kernel * relevance.unsqueeze(1)
            kept = greedy_determinant(kernel, num_keep)
        return keep_tokens(patches, kept.sort(dim=1).values)

    def _relevance(self, image: Tensor, text: Tensor) -> Tensor:
        cosine = cosine_similarity(image, text).mean(dim=-1)
        cosine = -cosine if self.negate else cosine
        over = (0, 1) if self.over_batch else (1,)
        low, high = cosine.amin(dim=over, keepdim=True), cosine.amax(dim=over, keepdim=True)
        return (cosine - low + 1e-6) / (high - low).clamp(min=1e-12)


def greedy_determinant(kernel: Tensor, count: int) -> Tensor:
    """Choose items greedily so that the determinant of their kernel is as large as possible.

    The diagonal holds the factor by which each item would multiply the determinant. Each step takes
    the best item and subtracts its part from the whole kernel (one step of a pivoted Cholesky
    decomposition). That is more arithmetic than updating only the diagonal, but few operators.

    Source: Chen, Zhang and Zhou, Fast Greedy MAP Inference for Determinantal Point Process, 2018,
    arXiv:1709.05135.

    Args:
        kernel: [B,N,N] float, positive semi-definite.
        count: K.

    Returns:
        [B,K] int64, in the order of choice.
    """
    left = kernel.float().clone()
    gains = left.diagonal(dim1=1, dim2=2).unsqueeze(1)  # a view of the kernel
    chosen: list[Tensor] = []
    with without_autocast(kernel):
        for _ in range(count - 1):
            gain, best = gains.max(dim=2, keepdim=True)
            chosen.append(best)
            row = left.gather(1, best.expand(-1, -1, left.shape[2]))
            # Beyond the kernel's rank, gains are rounding noise: subtract nothing.
            share = row / F.threshold(gain, 1e-12, torch.inf)
            left.baddbmm_(row.mT, share, alpha=-1)
            gains.scatter_(2, best, -torch.inf)
    chosen.append(gains.argmax(dim=2, keepdim=True))
    return torch.cat(chosen, dim=1).squeeze(2)
