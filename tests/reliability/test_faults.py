"""Catches deliberate faults that all other tests missed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from elip.model.fusion_reduction import FusionReduction
from elip.model.interface import EncodedImage
from elip.schedule import Schedule
from elip.tasks.base import _checksums
from elip.tasks.pretrain import Pretraining
from elip.tasks.retrieval import Retrieval
from reducers import Reducer, Signals
from reducers.atc import ATC
from reducers.ats import ATS
from reducers.cdpruner import CDPruner
from reducers.contract import Reduced
from reducers.elip import ELIP
from reducers.grid import spread_order, z_order
from reducers.kmedoids import KMedoids
from reducers.pumer import PuMer
from reducers.random import hash_uniform
from reducers.tokens import top_indices
from tests.contract.subjects import bound, pairs, scene, tiny
from tests.tasks.tiny import batch_for
from tests.training.test_predict import experiment


def test_float_images_have_distinct_seeds() -> None:
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert len(set(_checksums(images).tolist())) == 8
    slightly = images + 1e-4
    assert bool((_checksums(slightly) != _checksums(images)).all())


def test_a_medoid_is_the_centre_of_its_cluster() -> None:
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
        reducer(patches, 9, replace(signals, requested={**signals.requested, "probe": probe}))
    own, others = seen
    assert torch.equal(others, own.roll(1, dims=0))
    assert not torch.equal(others, own)


class Looks(Reducer):
    """Reduces in the fusion and reads every signal."""

    needs = frozenset({"keys", "text", "sizes", "positions", "cross_attention"})
    placement = "fusion"

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep the first patches."""
        self.seen = patches, signals
        went = torch.arange(patches.shape[1]).expand(len(patches), -1)
        assert signals.mask is not None
        kept = torch.where(went < num_keep, went, -1)
        return Reduced(patches[:, :num_keep], kept, signals.mask[:, :num_keep])


@pytest.mark.parametrize("whole", [False, True])
def test_fusion_signals_align_with_the_patches(whole: bool) -> None:
    reducer = Looks()
    reducer.includes_cls = whole
    plan = Schedule(0.5, layers=(0,), profile=(0.5,)).plan(6, 2, "fusion")
    host = FusionReduction(reducer, plan, (2, 3))
    image = EncodedImage(
        tokens=torch.randn(2, 7, 8),
        block=0,
        sizes=torch.arange(1.0, 7).expand(2, 6),
        patch_to_token=torch.arange(6).expand(2, 6),
        seeds=torch.zeros(2, dtype=torch.int64),
        mask=torch.tensor([[True, True, False, True, True, True, True], [True] * 7]),
    )
    query, key = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 7, 4)
    reduced = host(0, image, torch.randn(2, 4, 8), None, query, key)
    patches, signals = reducer.seen
    count = 6 + whole
    assert patches.shape == (2, count, 8)
    assert signals.sizes.shape == (2, count)
    assert signals.sizes[0, -1] == 6
    assert signals.positions.shape == (2, count, 2)
    # Positions are means, divided by the size of the patch.
    assert signals.positions[0, -1].tolist() == pytest.approx([1 / 6, 2 / 6])
    assert signals.keys.shape == (2, 2, count, 4)
    logits = (query @ key.mT / 2).masked_fill(~image.mask[:, None, None, :], -torch.inf)
    attention = logits.softmax(dim=-1).mean(dim=1)[:, :, 1 - whole :]
    torch.testing.assert_close(signals.cross_attention, attention)
    assert reduced.tokens.shape == (2, 4, 8)
    assert torch.equal(reduced.tokens, image.tokens[:, :4])
    assert reduced.mask is not None
    assert torch.equal(signals.cls, image.tokens[:, :1])
    assert torch.equal(signals.mask, image.mask[:, 1 - whole :])
    assert torch.equal(reduced.mask, image.mask[:, :4])


def test_ties_go_to_the_lowest_index_in_long_rows() -> None:
    scores = torch.zeros(2, 4000)
    assert top_indices(scores, 50).tolist() == [list(range(50))] * 2


def test_random_numbers_are_those_of_splitmix64() -> None:
    def mixed(state: int) -> float:
        state = state * 0x9E3779B97F4A7C15 % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return ((state ^ state >> 31) % 2**24) / 2**24

    states = [*range(50), 2**40 + 7, 2**62]
    assert hash_uniform(torch.tensor(states)).tolist() == [mixed(state) for state in states]


def test_places_spread_in_the_order_of_a_bayer_matrix() -> None:
    def bayer(side: int) -> list[list[int]]:
        if side == 1:
            return [[0]]
        quarter, corners = bayer(side // 2), [[0, 2], [3, 1]]
        half = side // 2
        return [
            [4 * quarter[row % half][column % half] + corners[row // half][column // half]
             for column in range(side)]
            for row in range(side)
        ]  # fmt: skip

    index = torch.arange(64)
    places = torch.stack([index // 8, index % 8], dim=1)[None].float()
    assert spread_order(places, (8, 8)).view(8, 8).tolist() == bayer(8)
    # In Z order every aligned square of 4 and of 16 patches has consecutive numbers.
    curve = z_order(places, (8, 8)).view(8, 8)
    assert sorted(curve.flatten().tolist()) == list(range(64))
    for side in (2, 4):
        for row in range(0, 8, side):
            for column in range(0, 8, side):
                square = curve[row : row + side, column : column + side]
                assert int(square.max() - square.min()) == side * side - 1


@pytest.mark.parametrize("rule", ["paper", "official", "haurum"])
@pytest.mark.parametrize(
    "values", [[0.4, 0.3, 0.02, 0.08, 0.05, 0.15], [0.28, 0.22, 0.13, 0.2, 0.17], [0.9, 0.06, 0.04]]
)
def test_adaptive_sampling_takes_the_patch_nearest_to_each_mark(
    rule: Any, values: list[float]
) -> None:
    scores, points = torch.tensor(values), 4
    order = scores.argsort() if rule == "official" else torch.arange(len(values))
    total = scores[order].cumsum(0)
    marks = [(mark + 0.5) / points for mark in range(points)]
    if rule == "official":
        total = (total - total[0]) / (total[-1] - total[0])
        first = float(total[total > 0].min())
        marks = [first + (1 - first) * mark / (points - 1) for mark in range(points)]
    if rule == "haurum":
        marks = [0.125, 0.375, 0.625]  # its end is left out
    wanted = {int(order[(total - mark).abs().argmin()]) for mark in marks}
    kept, real = ATS(points, rule)._sample(scores[None], points, len(values), None)
    assert set(kept[real].tolist()) == wanted


@pytest.mark.parametrize("points", [0, 1])
def test_adaptive_sampling_takes_two_points_at_least(points: int) -> None:
    assert ATS(2).points == 2
    with pytest.raises(ValueError, match="at least 2"):
        ATS(points)


def test_a_default_profile_of_two_layers_falls_to_the_published_share() -> None:
    plan = Schedule(None, layers=(1, 3)).plan(100, 6, "before_block")
    assert list(plan.keep.values()) == [round(100 * 0.45**0.5), 45]
    assert Schedule(None, layers=(1,), counts=(1,)).plan(100, 6, "before_block").keep == {1: 1}


def test_relevance_to_the_text_runs_from_0_to_1() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(3, n, 8, generator=generator) + 2 for n in (20, 1))
    relevance = CDPruner()._relevance(image, text)
    assert relevance.amin(dim=1).tolist() == pytest.approx([0] * 3, abs=1e-4)
    assert relevance.amax(dim=1).tolist() == pytest.approx([1] * 3, abs=1e-4)


def test_a_word_never_merges_with_padding() -> None:
    tokens = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    reduced = PuMer(merge_text=0.5).reduce_text(
        tokens, tokens.unsqueeze(1), torch.tensor([[True, True, False]])
    )
    assert reduced is not None
    assert reduced.mask is not None
    assert reduced.mask.tolist() == [[True, True]]
    torch.testing.assert_close(reduced.tokens, tokens[:, :2], atol=1e-4, rtol=0)


def test_proportional_attention_of_clusters_is_optional() -> None:
    assert not ATC().proportional_attention
    assert ATC(proportional=True).proportional_attention


def test_matching_needs_one_negative_image() -> None:
    assert Pretraining().spec.negative_images == 1
    assert Pretraining(itm=0.0).spec.negative_images == 0


def test_default_layers_of_a_shallow_encoder_begin_at_its_first_block() -> None:
    assert Schedule().layers_in(2, "after_attention") == (0,)
    assert Schedule().layers_in(2, "before_block") == (0, 1)


def test_retrieval_trains_with_fifteen_negative_texts() -> None:
    assert Retrieval().spec.negative_texts == 15


class Misreads(Looks):
    """Returns a reduced text of the wrong length."""

    def reduce_text(self, tokens: Tensor, keys: Tensor, mask: Tensor | None) -> Reduced:
        """Assign one word too few."""
        return Reduced(tokens[:, :-1], torch.zeros(len(tokens), tokens.shape[1] - 1).long())


def test_a_reduced_text_is_checked() -> None:
    plan = Schedule(0.5, layers=(0,), profile=(0.5,)).plan(6, 2, "fusion")
    host = FusionReduction(Misreads(), plan, (2, 3))
    with pytest.raises(ValueError, match="Misreads broke its contract"):
        host.reduce_text(torch.randn(2, 4, 8), None, torch.randn(2, 2, 4, 4))


def test_text_is_merged_only_if_just_its_cls_is_read() -> None:
    meter = tiny(PuMer(merge_text=0.4)).eval()
    reduction = meter.fusion.reduction
    assert reduction is not None
    seen, reduce_text, forward = [], reduction.reduce_text, reduction.forward

    def merging(words: Tensor, *given: Any) -> tuple[Tensor, Tensor | None]:
        after = reduce_text(words, *given)
        seen.append((words.shape[1], after[0].shape[1]))
        return after

    def reducing(level: int, *given: Any) -> EncodedImage:
        seen.append(level)
        return forward(level, *given)

    reduction.reduce_text = merging  # type: ignore[method-assign]
    reduction.forward = reducing  # type: ignore[method-assign]
    images, text, seeds = pairs()
    with torch.no_grad():
        meter(images, text, "all", seeds)
        assert seen == [0, 1]
        meter(images, text, "pooled", seeds)
    assert seen == [0, 1, 0, (10, 6), 1]


def test_smallest_allowed_values_are_accepted() -> None:
    assert Retrieval(negative_texts=1, pairs=1).pairs == 1
    plan = Schedule(None, layers=(1, 2), counts=(5, 5)).plan(100, 6, "before_block")
    assert plan.keep == {1: 5, 2: 5}


@pytest.mark.parametrize("itm", [0.0, 1.0])
def test_pretraining_leaves_no_parameter_without_gradient(itm: float) -> None:
    """DDP would wait for the missing gradients."""
    module = experiment(Pretraining(itm=itm), ELIP())
    module.task.loss(module.meter, batch_for(module.task.spec)).total.backward()
    waiting = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert waiting == []
