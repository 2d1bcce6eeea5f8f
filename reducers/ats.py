"""ATS: keep as many tokens as the image needs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from reducers.contract import Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import assignment_of_kept, gather_tokens, top_indices


class ATS(Reducer):
    """Sample patches from the distribution of their scores; keep those that are sampled.

    Score: ``s_j = sum over heads of attention(CLS, j) * |v_j|``, normalised to sum 1. Each
    of K points, evenly spaced in [0, 1], selects the patch whose cumulative score is nearest. A
    patch with a high score is selected several times, so fewer than ``num_keep`` patches may
    remain; a mask marks the real ones. The kept patches stay in their original order.

    Source: Fayyaz et al., Adaptive Token Sampling for Efficient Vision Transformers, 2022,
    arXiv:2111.15667; its code, and that of Haurum et al., 2023, arXiv:2308.04657.
    Differs: the count is at most ``num_keep``, instead of the number of patches; tensors are always
    ``num_keep`` wide, with a mask, instead of as wide as the longest sample of a batch.

    Args:
        points: Number of sampling points K; None means ``num_keep``. If they select more than
            ``num_keep`` patches, those with the highest scores stay.
        rule: ``paper``: as above. ``haurum``: the code of Haurum et al., whose rounding sometimes
            drops the last point, and which adds 0.1 to the cumulative score of padding.
            ``official``: the authors' code, whose scores multiply the attention summed over heads
            (smoothed by 1e-6) by the norm over all heads; they are summed in order of score, and
            the points start at the first value above 0.
    """

    needs: frozenset[Signal] = frozenset({"head_attention", "values"})
    placement: Placement = "after_attention"
    family = "attention"
    equivariant = False
    fixed_count = False

    def __init__(
        self, points: int | None = None, rule: Literal["paper", "haurum", "official"] = "paper"
    ) -> None:
        super().__init__()
        if points is not None and points < 2:
            raise ValueError(f"ATS: points is {points}; it must be at least 2, or null.")
        self.points = points
        self.rule = rule

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep at most ``num_keep`` patches."""
        with torch.no_grad():
            scores = self._scores(signals)
            points = self.points or num_keep
            kept, mask = self._sample(scores, points, num_keep, signals.mask)
        # Padding gets indices past the end, which are cut off.
        count = patches.shape[1]
        places = torch.where(mask, kept, count + torch.arange(num_keep, device=kept.device))
        assignment = assignment_of_kept(places, count + num_keep)[:, :count]
        tokens = gather_tokens(patches, kept) * mask.unsqueeze(-1)
        return Reduced(tokens, assignment, mask)

    def _scores(self, signals: Signals) -> Tensor:
        if self.rule == "official":
            norm = signals.values.float().square().sum(dim=(1, 3)).sqrt()
            scores = _smoothed(signals.head_attention.float()).sum(dim=1) * norm
        else:
            norm = signals.values.float().norm(dim=-1)
            scores = (signals.head_attention.float() * norm).sum(dim=1)
        if signals.mask is not None and self.rule != "haurum":
            scores = scores * signals.mask
        return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-6)

    def _sample(
        self, scores: Tensor, points: int, num_keep: int, alive: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the kept patches [B,num_keep] and a mask of the real ones."""
        count = scores.shape[1]
        order = torch.arange(count, device=scores.device).expand_as(scores)
        if self.rule == "official":
            order = scores.argsort(dim=1, stable=True)
        cumulative = scores.gather(1, order).cumsum(dim=1)
        marks = self._marks(cumulative, points)
        if self.rule == "official":
            low, high = cumulative[:, :1], cumulative[:, -1:]
            cumulative = (cumulative - low) / (high - low).clamp(min=1e-12)
            start = torch.where(cumulative > 0, cumulative, torch.inf).amin(dim=1, keepdim=True)
            marks = start + (1 - start) * marks
        if self.rule == "haurum" and alive is not None:
            cumulative = cumulative + 0.1 * ~alive
        nearest = (marks.unsqueeze(2) - cumulative.unsqueeze(1)).abs().argmin(dim=2)
        hit = torch.zeros_like(scores, dtype=torch.bool).scatter(1, nearest, True)
        # The best of the selected patches first, then put back in order.
        ranked = torch.where(hit, scores.gather(1, order), -1.0)
        best = top_indices(ranked, num_keep)
        mask = hit.gather(1, best)
        place = torch.where(mask, best, count).argsort(dim=1, stable=True)
        return order.gather(1, best.gather(1, place)), mask.gather(1, place)

    def _marks(self, cumulative: Tensor, points: int) -> Tensor:
        """Return the sampling points [1,K] in [0, 1]."""
        device = cumulative.device
        if self.rule == "official":
            return torch.linspace(0, 1, points, device=device).unsqueeze(0)
        if self.rule == "haurum":
            double = 2 * points  # this range loses its end to rounding, as the original does
            marks = torch.arange(1 / double, (double - 1) / double, 2 / double, device=device)
            return marks.unsqueeze(0)
        return ((torch.arange(points, device=device) + 0.5) / points).unsqueeze(0)


def _smoothed(attention: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Smooth [B,H,N] attention as the official softmax does: (e_j + eps / N) / (sum e + eps).

    With e_j = exp(logit - largest logit), the largest attention (CLS included) is 1 / sum e.
    """
    of_cls = 1 - attention.sum(dim=-1, keepdim=True)
    largest = torch.maximum(attention.amax(dim=-1, keepdim=True), of_cls)
    smoothing = epsilon * largest
    return (attention + smoothing / (attention.shape[-1] + 1)) / (1 + smoothing)
