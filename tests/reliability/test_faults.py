"""Faults that were put into the code on purpose and that no other test saw."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from elip.model.fusion_reduction import FusionReduction
from elip.model.image_encoder import EncodedImage
from elip.schedule import Schedule
from elip.tasks.base import _checksums
from reducers import Reducer, Signals, Text
from reducers.contract import Reduced
from reducers.elip import ELIP
from reducers.kmedoids import KMedoids
from reducers.tokens import top_indices
from tests.contract.subjects import bound, scene


def test_images_that_are_floats_have_seeds_of_their_own() -> None:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert len(set(_checksums(images).tolist())) == 8
    slightly = images + 1e-4
    assert bool((_checksums(slightly) != _checksums(images)).all())


def test_a_medoid_is_the_middle_of_its_own_cluster_not_of_everything() -> None:
    # Three tokens near 0 and three near 10; the token at 2 is nearest to all of them together.
    places = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
    distance = (places[:, None] - places[None]).abs()[None]
    cluster = torch.tensor([[0, 0, 0, 1, 1, 1]])
    method = KMedoids()
    assert method._move(distance, torch.ones(1, 6), cluster, 2).tolist() == [[1, 4]]


def test_shuffled_text_is_another_examples_text() -> None:
    seen: list[Tensor] = []

    def probe(cls: Tensor, patches: Tensor, depth: int) -> Tensor:
        seen.append(cls)
        return patches[..., 0]

    for shuffled in (False, True):
        reducer = bound(ELIP(mix=0.0, shuffle_text=shuffled))
        patches, signals = scene(reducer)
        reducer(patches, 9, replace(signals, probe=probe))
    own, others = seen
    assert torch.equal(others, own.roll(1, dims=0))
    assert not torch.equal(others, own)


class Looks(Reducer):
    """Acts in the fusion and looks at everything there is."""

    needs = frozenset({"keys", "text", "sizes", "positions", "cross_attention"})
    acts = "fusion"

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep the first patches."""
        self.seen = patches, signals
        went = torch.arange(patches.shape[1]).expand(len(patches), -1)
        return Reduced(patches[:, :num_keep], torch.where(went < num_keep, went, -1))


@pytest.mark.parametrize("whole", [False, True])
def test_signals_of_the_fusion_run_beside_the_patches(whole: bool) -> None:
    reducer = Looks()
    reducer.takes_cls = whole
    host = FusionReduction(reducer, Schedule(0.5, layers=(0,), profile=(0.5,)), (2, 3), 8, 2, 2)
    image = EncodedImage(
        tokens=torch.randn(2, 7, 8),
        block=0,
        sizes=torch.arange(1.0, 7).expand(2, 6),
        origin=torch.arange(6).expand(2, 6),
        seeds=torch.zeros(2, dtype=torch.int64),
    )
    text = Text(torch.randn(2, 4, 8), torch.ones(2, 4, dtype=torch.bool))
    reduced = host(0, image, text, torch.randn(2, 2, 4, 4), torch.randn(2, 2, 7, 4))
    patches, signals = reducer.seen
    count = 6 + whole
    assert patches.shape == (2, count, 8)
    assert signals.sizes.shape == (2, count)
    assert signals.sizes[0, -1] == 6
    assert signals.positions.shape == (2, count, 2)
    # A patch stands for as many as its size says, so the mean place is divided by that.
    assert signals.positions[0, -1].tolist() == pytest.approx([1 / 6, 2 / 6])
    assert signals.keys.shape == (2, 2, count, 4)
    assert signals.cross_attention.shape == (2, 4, count)
    assert reduced.tokens.shape == (2, 4, 8)
    assert torch.equal(reduced.tokens, image.tokens[:, :4])


def test_ties_go_to_the_lowest_index_in_long_rows() -> None:
    scores = torch.zeros(2, 4000)
    assert top_indices(scores, 50).tolist() == [list(range(50))] * 2
