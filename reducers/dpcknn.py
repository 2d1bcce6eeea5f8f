"""DPC-KNN: density peaks as cluster centres."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from reducers.contract import Host, Reduced, Reducer, Signals
from reducers.tokens import distances, merge_tokens, nearest_centre, top_indices


class DPCKNN(Reducer):
    """Cluster the patches around density peaks and average each cluster.

    With d the Euclidean distance over sqrt(D), density is ``exp(-mean of the k smallest d^2)``,
    which includes the token itself. Delta is the distance to the nearest denser token; the densest
    token gets the largest distance. The ``num_keep`` tokens with the highest ``density * delta``
    become centres, in that order. Each other token joins its nearest centre; a cluster becomes its
    mean.

    Source: Du et al., Study on density peaks clustering based on k-nearest neighbors, 2016,
    doi:10.1016/j.knosys.2016.02.001; as a token reducer Zeng et al., TCFormer, 2022,
    arXiv:2204.08680, and the code of Haurum et al., 2023, arXiv:2308.04657.
    Differs: ties go to the lower index instead of being broken by random noise.

    Args:
        k: Number of neighbours that define the density.
        weighted: Learn the weights of the mean, ``exp(linear(x))``, as TCFormer does. False takes
            the plain mean and has no parameters.
    """

    family = "clustering"

    def __init__(self, k: int = 5, weighted: bool = False) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"DPCKNN: k is {k}; it must be at least 1.")
        self.k = k
        self.trained = weighted
        self.score: nn.Module | None = None

    def configure(self, host: Host) -> None:
        """Create the layer that computes the weights, if they are learnt."""
        if self.trained:
            self.score = nn.Linear(host.width, 1)
            nn.init.zeros_(self.score.weight)
            nn.init.zeros_(self.score.bias)

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Form ``num_keep`` clusters."""
        assignment = self.assignment(patches, num_keep)
        weights = torch.ones_like(patches[..., 0])
        if self.score is not None:
            weights = self.score(patches).squeeze(-1).exp()
        return Reduced(merge_tokens(patches, assignment, num_keep, weights), assignment)

    @torch.no_grad()
    def assignment(self, patches: Tensor, num_keep: int) -> Tensor:
        """Return the cluster [B,N] of each token."""
        distance = distances(patches) / math.sqrt(patches.shape[-1])
        near = distance.topk(min(self.k, distance.shape[1]), dim=-1, largest=False).values
        density = near.square().mean(dim=-1).neg().exp()
        denser = density.unsqueeze(1) > density.unsqueeze(2)
        largest = distance.amax(dim=(1, 2)).view(-1, 1, 1)
        delta = torch.where(denser, distance, largest).amin(dim=-1)
        centres = top_indices(density * delta, num_keep)
        return nearest_centre(distance, centres)
