"""VisionZip: keep dominant patches, merge the others into contextual tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import assignment_of_kept, cosine_similarity, gather_tokens, merge_tokens


class VisionZip(Reducer):
    """Keep the patches that CLS attends to most; merge the rest into a few contextual tokens.

    The dominant patches stay in their original order. Of the R others, every (R // C)-th is one
    of C targets. Each remaining patch joins the target with the most similar head-mean key, and
    each target becomes the mean of its group.

    Source: Yang et al., VisionZip: Longer is Better but Not Necessary in Vision Language Models,
    2024, arXiv:2412.04467, and its code.
    Differs: it acts at the reduction layers inside the image encoder instead of after it; ties go
    to the lower index.

    Args:
        contextual: Share of contextual tokens in ``num_keep``, in [0, 1); the paper has 10 of 64.
        official: As the official code, a contextual token is the target plus the mean of the
            patches that join it, which roughly doubles its length.
    """

    needs: frozenset[Signal] = frozenset({"cls_attention", "keys"})
    placement: Placement = "after_attention"
    family = "attention"
    equivariant = False

    def __init__(self, contextual: float = 10 / 64, official: bool = False) -> None:
        super().__init__()
        if not 0 <= contextual < 1:
            raise ValueError(f"VisionZip: contextual is {contextual}; it must be in [0, 1).")
        self.contextual = contextual
        self.official = official

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep dominant patches and merge the others."""
        contextual = min(round(self.contextual * num_keep), num_keep - 1)
        dominant = num_keep - contextual
        order = signals.cls_attention.argsort(dim=1, descending=True, stable=True)
        kept = order[:, :dominant].sort(dim=1).values
        if contextual == 0:
            assignment = assignment_of_kept(kept, patches.shape[1])
            return Reduced(gather_tokens(patches, kept), assignment)
        rest = order[:, dominant:].sort(dim=1).values
        joins = self._join(gather_tokens(signals.keys.mean(dim=1), rest), contextual)
        assignment = assignment_of_kept(kept, patches.shape[1]).scatter(1, rest, dominant + joins)
        ones = torch.ones_like(signals.cls_attention)
        if not self.official:
            return Reduced(merge_tokens(patches, assignment, num_keep, ones), assignment)
        stride = rest.shape[1] // contextual
        targets = rest[:, : stride * contextual : stride]
        joined = assignment.scatter(1, torch.cat([kept, targets], dim=1), -1)
        alone = torch.cat([gather_tokens(patches, kept), gather_tokens(patches, targets)], dim=1)
        return Reduced(alone + merge_tokens(patches, joined, num_keep, ones), assignment)

    @staticmethod
    @torch.no_grad()
    def _join(metric: Tensor, contextual: int) -> Tensor:
        """Return the contextual token that each of the [B,R,C] remaining tokens joins."""
        stride = metric.shape[1] // contextual
        places = torch.arange(contextual, device=metric.device)
        targets = metric[:, : stride * contextual : stride]
        nearest = cosine_similarity(metric, targets).argmax(dim=-1)
        own = places.expand(len(metric), -1)
        return nearest.scatter(1, (places * stride).expand(len(metric), -1), own)
