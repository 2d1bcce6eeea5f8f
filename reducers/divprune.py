"""DivPrune: keep the patches that differ most from one another."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Reduced, Reducer, Signals
from reducers.tokens import cosine_similarity, farthest_first, keep_tokens


class DivPrune(Reducer):
    """Greedily solve the max-min diversity problem on cosine distance.

    The first patch is the one whose nearest neighbour is farthest. Each next patch is the one
    farthest from its nearest chosen patch. The kept patches stay in their original order.

    Source: Alvar et al., DivPrune: Diversity-based Visual Token Pruning for Large Multimodal
    Models, 2025, arXiv:2503.02175, and its code.
    Differs: it acts inside the image encoder instead of after it; batched; ties go to the lower
    index that is not yet chosen.
    """

    family = "diversity"

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep ``num_keep`` patches."""
        with torch.no_grad():
            distance = 1 - cosine_similarity(patches)
            itself = torch.eye(patches.shape[1], dtype=torch.bool, device=patches.device)
            first = distance.masked_fill(itself, torch.inf).amin(dim=-1).argmax(dim=-1)
            kept = farthest_first(distance, first, num_keep)
        return keep_tokens(patches, kept.sort(dim=1).values)
