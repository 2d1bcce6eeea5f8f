"""The cost of METER, part by part, against closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from elip.cost import Cost, measure_cost, measure_training_cost
from elip.data.batch import TextBatch
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from reducers import Reducer, shelf
from tests.cost import closed_forms as paper

GIGA = 1e9
LENGTH, WIDTH, PATCHES, BLOCKS = 12, 48, 16, 4
CONFIG = MeterConfig(
    image_size=32, image_width=WIDTH, image_blocks=BLOCKS, text_width=WIDTH, fusion_width=WIDTH,
    max_text_len=LENGTH, vocab_size=60, text_layers=2, fusion_layers=2,
)  # fmt: skip
LAYERS, COUNTS = (1, 2), (10, 5)


def build(reducer: Reducer | None) -> tuple[Meter, torch.Tensor, TextBatch]:
    layers, counts = (LAYERS, COUNTS)
    if reducer is not None and reducer.placement == "fusion":
        layers, counts = (0,), (5,)
    meter = Meter(CONFIG.resolve(), reducer, Schedule(layers=layers, counts=counts))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    text = TextBatch(torch.randint(5, 60, (2, LENGTH)), torch.ones(2, LENGTH, dtype=torch.bool))
    return meter, images, text


def on_paper(
    entering: list[int], leaving: int, read: str, probe: float = 0, reducer: float = 0
) -> Cost:
    """Expected cost of one example; patch counts without CLS."""
    image = 1 + leaving
    projections = (LENGTH + image) * WIDTH**2
    poolers = 0 if read == "text" else 2 * WIDTH**2
    parts = {
        "vision": paper.vit([1 + count for count in entering], WIDTH, PATCHES, 8),
        "probe": probe,
        "reducer": reducer,
        "text": paper.text_encoder(LENGTH, WIDTH, 2),
        "fusion": paper.fusion(LENGTH, image, WIDTH, 2, read) + projections + poolers,
        "head": 0,
    }
    return Cost(**{name: count / GIGA for name, count in parts.items()})


@pytest.mark.parametrize("read", ["all", "pooled", "text"])
def test_no_reduction(read: str) -> None:
    meter, images, text = build(None)
    cost = measure_cost(meter, lambda: meter(images, text, read), examples=2)
    assert cost == on_paper([PATCHES] * BLOCKS, PATCHES, read)
    assert cost.total == pytest.approx(sum(vars(cost).values()))


def test_random_reduction_costs_nothing_itself() -> None:
    meter, images, text = build(shelf()["Random"]())
    cost = measure_cost(meter, lambda: meter(images, text), examples=2)
    assert cost == on_paper([16, 10, 5, 5], 5, "pooled")


def test_probe_of_elip_is_counted_apart() -> None:
    # Depths 1 and 2 at blocks 1 and 2: a row of 17 tokens; then a block of 11 and a row of 11.
    probe = (
        paper.cls_row(17, WIDTH)
        + paper.layer(11, WIDTH) + paper.feed_forward(11, WIDTH) + paper.cls_row(11, WIDTH)
    )  # fmt: skip
    # The fused token is one weighted sum over all patches at hand.
    reducer = (16 + 10) * WIDTH
    meter, images, text = build(shelf()["ELIP"](probe_depth=(1, 2)))
    cost = measure_cost(meter, lambda: meter(images, text), examples=2)
    assert cost == on_paper([16, 10, 5, 5], 5, "pooled", probe, reducer)


@pytest.mark.parametrize("name", sorted(shelf()))
def test_every_reducer_is_counted(name: str) -> None:
    """The two counters agree, or this raises; what a method adds is booked on it."""
    meter, images, text = build(shelf()[name]())
    cost = measure_cost(meter, lambda: meter(images, text), examples=2)
    with meter.reduction_disabled():
        full = measure_cost(meter, lambda: meter(images, text), examples=2)
    assert full == on_paper([PATCHES] * BLOCKS, PATCHES, "pooled")
    if meter.reducer.placement == "before_block":
        assert cost.vision == on_paper(list(meter.plan.tokens_per_block[:-1]), 5, "pooled").vision
    if meter.reducer.placement != "never":
        assert cost.fusion < full.fusion


def test_head_is_what_runs_outside_the_model() -> None:
    meter, images, text = build(None)
    head = nn.Linear(2 * WIDTH, 3)
    cost = measure_cost(meter, lambda: head(meter(images, text).pooled), examples=2, head=head)
    assert cost.head == 2 * WIDTH * 3 / GIGA


def test_probe_has_no_backward() -> None:
    plain, images, text = build(shelf()["Random"]())
    probing, _, _ = build(shelf()["ELIP"](probe_depth=(1, 2)))

    def step(meter: Meter) -> float:
        return measure_training_cost(meter, lambda: meter(images, text).pooled.sum(), examples=2)

    cost = measure_cost(probing, lambda: probing(images, text), examples=2)
    assert cost.probe is not None
    assert cost.reducer is not None
    # The scores carry no gradient, so of the weighted sum only the tokens' side has a backward.
    assert step(probing) - step(plain) == pytest.approx(cost.probe + 2 * cost.reducer, abs=1e-9)


@pytest.mark.slow
def test_published_size() -> None:
    """ViT-B/16 at 288 pixels, RoBERTa-base with 50 tokens, six co-attention layers a side."""
    meter = Meter(MeterConfig("clip16_roberta").resolve())
    images = torch.zeros(1, 3, 288, 288, dtype=torch.uint8)
    text = TextBatch(torch.full((1, 50), 7), torch.ones(1, 50, dtype=torch.bool))
    cost = measure_cost(meter, lambda: meter(images, text, "all"))
    assert cost.vision == paper.vit([325] * 11, 768, 324, 16) / GIGA
    assert cost.text == paper.text_encoder(50, 768, 12) / GIGA
    projections_and_poolers = (50 + 325 + 2) * 768**2
    assert cost.fusion == pytest.approx(
        (paper.fusion(50, 325, 768, 6, "all") + projections_and_poolers) / GIGA
    )
    assert (round(cost.vision, 1), round(cost.text, 1), round(cost.total, 1)) == (27.3, 4.3, 54.3)
