"""Random choice, the lower baseline that every method must beat."""

from __future__ import annotations

import torch
from torch import Tensor

from reducers.contract import Reduced, Reducer, Signals
from reducers.tokens import keep_tokens, top_indices


class Random(Reducer):
    """Keep a uniformly random subset of the patch tokens, in their original order.

    A token's score is a hash of the example's seed, the layer and the token's index, so an example
    keeps the same tokens in any batch.

    Source: Rao et al., DynamicViT, 2021, arXiv:2106.02034 (as a baseline).
    Differs: nothing.

    Args:
        seed: Seed of the choice, on top of the example's.
    """

    family = "baseline"
    equivariant = False

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep ``num_keep`` random patches."""
        count = patches.shape[1]
        index = torch.arange(count, device=patches.device, dtype=torch.int64)
        state = (signals.seeds + 1_000_003 * self.seed)[:, None] * 64 + signals.layer
        scores = hash_uniform(state * 8191 + index)
        kept = top_indices(scores, num_keep).sort(dim=1).values
        return keep_tokens(patches, kept)


def hash_uniform(state: Tensor) -> Tensor:
    """Map int64 states to numbers in [0, 1) that look independent and uniform.

    The mixing function is SplitMix64's (Steele, Lea and Flood, 2014, doi:10.1145/2660193.2660195),
    with the arithmetic shifts masked to act as logical ones.
    """
    state = state * -7046029254386353131
    state = (state ^ ((state >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    state = (state ^ ((state >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    state = state ^ ((state >> 31) & 0x1FFFFFFFF)
    return (state & 0xFFFFFF).to(torch.float32) / 2**24
