"""Both counters agree with closed forms and with each other."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip.cost.count import (
    GIGA,
    CostError,
    check_count,
    count_backward,
    count_forward,
    count_parts,
    count_run,
    count_training_step,
    random_batch,
)
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.record import Gflops
from elip.schedule import Schedule
from elip.tasks import tasks
from elip.tasks.base import Task
from reducers import Reducer, shelf
from tests.cost import closed_forms as paper

LENGTH, WIDTH, PATCHES, BLOCKS = 12, 48, 16, 4
CONFIG = MeterConfig(
    image_size=32, image_width=WIDTH, image_blocks=BLOCKS, text_width=WIDTH, fusion_width=WIDTH,
    max_text_len=LENGTH, vocab_size=60, text_layers=2, fusion_layers=2,
)  # fmt: skip


def build(reducer: Reducer | None = None, task: str = "Pretraining") -> tuple[Meter, Task]:
    schedule = Schedule(layers=(1, 2), counts=(10, 5))
    if reducer is not None and reducer.placement == "fusion":
        schedule = Schedule(layers=(0,), counts=(5,))
    meter, built = Meter(CONFIG.resolve(), reducer, schedule), tasks()[task]()
    built.build(meter, 3)
    return meter, built


def on_paper(entering: list[int], leaving: int, probe: float = 0, reducer: float = 0) -> Gflops:
    """Expected cost of one example of pre-training; patch counts without CLS."""
    image = 1 + leaving
    parts = {
        "vision": paper.vit([1 + count for count in entering], WIDTH, PATCHES, 8),
        "probe": probe,
        "reducer": reducer,
        "text": paper.text_encoder(LENGTH, WIDTH, 2),
        "fusion": paper.fusion(LENGTH, image, WIDTH, 2, "pooled") + (LENGTH + image + 2) * WIDTH**2,
        "head": 2 * WIDTH * 2,
    }
    return Gflops(**{name: count / GIGA for name, count in parts.items()})


# --- METER


def test_no_reduction_and_random_match_closed_forms() -> None:
    meter, task = build()
    assert count_forward(meter, task, random_batch(meter, 2)) == on_paper([16] * 4, 16)
    meter, task = build(shelf()["Random"]())
    assert count_forward(meter, task, random_batch(meter, 2)) == on_paper([16, 10, 5, 5], 5)


def test_the_probe_has_its_own_part() -> None:
    # Depths 1 and 2 at blocks 1 and 2: a row of 17 tokens; then a block of 11 and a row of 11.
    probe = (
        paper.cls_row(17, WIDTH)
        + paper.layer(11, WIDTH) + paper.feed_forward(11, WIDTH) + paper.cls_row(11, WIDTH)
    )  # fmt: skip
    # The fused token is one weighted sum over all current patches.
    fused = (16 + 10) * WIDTH
    meter, task = build(shelf()["ELIP"](probe_depth=(1, 2)))
    cost = count_forward(meter, task, random_batch(meter, 1))
    assert cost == on_paper([16, 10, 5, 5], 5, probe, fused)
    # Scores carry no gradient: the probe has no backward pass, and the sum only one of two.
    plain, other = build(shelf()["Random"]())
    more = training_forward(meter, task) - training_forward(plain, other)
    assert more == pytest.approx(cost.probe + 2 * cost.reducer, abs=1e-12)


def training_forward(meter: Meter, task: Task) -> float:
    batch = random_batch(meter, 1)
    return count_backward(meter, lambda: task.infer(meter, batch).sum()) / GIGA


@pytest.mark.parametrize("name", shelf())
def test_the_counters_agree_on_every_method(name: str) -> None:
    meter, task = build(shelf()[name]())
    cost = check_count(meter, task, random_batch(meter, 2))
    with meter.reduction_disabled():
        full = count_forward(meter, task, random_batch(meter, 2))
    assert full == on_paper([PATCHES] * BLOCKS, PATCHES)
    if meter.reducer.placement == "before_block":
        entering = list(meter.plan.tokens_per_block[:-1])
        assert cost.vision == on_paper(entering, 5).vision
    if meter.reducer.placement != "never":
        assert cost.fusion < full.fusion


@pytest.mark.parametrize("name", tasks())
def test_the_counters_agree_on_every_task(name: str) -> None:
    meter, task = build(task=name)
    batch = random_batch(meter, 2, task)
    cost = check_count(meter, task, batch)
    assert cost.head > 0
    step = count_training_step(meter, task, batch)
    meta = build(task=name)
    for module in meta:
        module.to("meta")
    assert step == count_training_step(*meta, batch.to("meta")) > 2 * cost.total


@pytest.mark.slow
def test_published_size() -> None:
    """ViT-B/16 at 288 pixels, RoBERTa-base with 50 tokens, six co-attention layers a side."""
    with torch.device("meta"):
        meter = Meter(MeterConfig("clip16_roberta").resolve())
    meter.to_empty(device="cpu")
    for buffer in meter.buffers():  # token types: what lay in memory may be no index
        buffer.zero_()
    batch = random_batch(meter, 1)
    parts = {"vision": [meter.image], "text": [meter.text]}

    def run() -> tuple[Tensor, ...]:
        fused = meter(batch.images[:, 0], batch.text, "all")
        return fused.text, fused.image, fused.pooled

    counts = count_parts(run, meter, parts, "fusion")
    assert counts == {
        "vision": paper.vit([325] * 11, 768, 324, 16),
        "text": paper.text_encoder(50, 768, 12),
        "fusion": paper.fusion(50, 325, 768, 6, "all") + (50 + 325 + 2) * 768**2,
    }
    assert round(sum(counts.values()) / GIGA, 1) == 54.3


# --- any model


def test_training_step_is_three_forward_passes_less_the_pixels_gradient() -> None:
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=0,
        global_pool="",
    )  # fmt: skip
    image, forward = torch.randn(1, 3, 32, 32), paper.vit([17] * 3, 48, 16, 8)
    assert count_parts(lambda: model(image), model) == {"rest": forward}
    counted = count_backward(model, lambda: model(image).sum())
    assert counted == 3 * forward - 16 * 48 * 3 * 64


def test_frozen_layers_and_passes_without_gradient() -> None:
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    model, rows, product = nn.Sequential(first, second), torch.randn(5, 8), 5 * 8 * 8

    def loss() -> Tensor:
        with torch.no_grad():
            second(rows)
        return model(rows).sum()

    # Three passes forward, gradients of both weights, and of the second layer's input.
    assert count_backward(model, loss) == 6 * product
    first.requires_grad_(False)
    assert count_backward(model, loss) == 4 * product


def test_counting_changes_nothing() -> None:
    meter, task = build()
    meter.text.eval()
    state, modes = torch.random.get_rng_state(), [part.training for part in meter.modules()]
    task.itm.weight.grad = gradient = torch.ones_like(task.itm.weight)
    check_count(meter, task, random_batch(meter, 2))
    count_training_step(meter, task, random_batch(meter, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [part.training for part in meter.modules()] == modes
    assert task.itm.weight.grad is gradient
    assert torch.equal(gradient, torch.ones_like(gradient))
    assert all(weight.grad is None for weight in meter.parameters())


A, B = torch.randn(3, 5, 4), torch.randn(3, 6, 4)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: A @ B.transpose(1, 2), 3 * 5 * 6 * 4),
        (lambda: A[0] @ B.transpose(1, 2), 3 * 5 * 6 * 4),
        (lambda: A @ B[0, 0], 3 * 5 * 4),
        (lambda: A[0, 0] @ B[0, 0], 4),
        (lambda: torch.einsum("bnd,bmd->bnm", A, B), 3 * 5 * 6 * 4),
        (lambda: torch.einsum("bnd,bmd->b", A, B), 3 * 4),
        (lambda: torch.einsum("bnd,bmd->bnmd", A, B), 0),
        (lambda: torch.einsum("bnd->bn", A), 0),
        (lambda: torch.baddbmm(torch.zeros(3, 5, 6), A, B.transpose(1, 2)), 3 * 5 * 6 * 4),
        (lambda: torch.cdist(A, B), 3 * 5 * 6 * 4),
        (lambda: torch.cdist(A.repeat(1, 9, 1), B), 3 * 45 * 6 * 4),
        (lambda: F.scaled_dot_product_attention(A, B, B[..., :2]), 3 * 5 * 6 * (4 + 2)),
        (lambda: F.conv2d(torch.ones(2, 4, 5, 5), torch.ones(6, 2, 3, 3), groups=2),
         2 * 6 * 9 * 2 * 9),
        (lambda: F.layer_norm(A, (4,)).softmax(-1).argsort(1) + F.normalize(A).detach(), 0),
    ],
)  # fmt: skip
def test_operators(run: object, expected: int) -> None:
    assert count_parts(run, nn.Module()) == ({"rest": expected} if expected else {})
    assert count_run(run) == expected


class Encoder(nn.Module):
    """A probe runs the encoder's layer, and a chooser calls the probe."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.probe = Borrower(self.layer)
        self.chooser = Chooser()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(self.chooser(self.layer(tokens), self.probe))


class Borrower(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layers = (layer,)

    def forward(self, tokens: Tensor) -> Tensor:
        return self._layers[0](tokens)


class Chooser(nn.Module):
    def forward(self, tokens: Tensor, probe: nn.Module) -> Tensor:
        return tokens + probe(tokens) @ torch.ones(4, 4)


@pytest.mark.parametrize("compiled", [False, True])
def test_borrowed_layers_count_for_the_borrower(compiled: bool) -> None:
    model, head, tokens = Encoder(), nn.Linear(4, 7), torch.randn(3, 4)
    parts = {"probe": [model.probe], "chooser": [model.chooser], "model": [model]}
    if compiled:
        model.compile()
    counted = count_parts(lambda: head(model(tokens)), nn.ModuleList([model, head]), parts, "head")
    assert counted == {"model": 2 * 48, "probe": 48, "chooser": 48, "head": 84}


def test_sizes_are_numbers_while_tracing() -> None:
    def run() -> Tensor:
        kept = round(0.5 * A.shape[1]) + len(A) - A.size(0) + A.numel() - math.prod(A.size())
        mark = torch.zeros(3, 5, dtype=torch.bool).scatter(1, torch.zeros(3, 1).long(), True)
        return (A * mark[..., None])[:, :kept] @ B.mT

    assert count_parts(run, nn.Module()) == {"rest": 3 * 2 * 6 * 4}


def test_unknown_products_are_errors() -> None:
    with pytest.raises(CostError, match=r"cost of aten::linalg_inv\w* is not known"):
        count_parts(lambda: torch.linalg.inv(torch.eye(3)), nn.Module())


@pytest.mark.parametrize("equation", ["bnd,bmd,bnm->b", "...nd,...md", "bnd,bmd"])
def test_ambiguous_einsum_is_an_error(equation: str) -> None:
    given = (A, A, A @ A.mT)[: equation.count(",") + 1]
    with pytest.raises(CostError, match="products of two operands"):
        count_parts(lambda: torch.einsum(equation, *given), nn.Module())


class Wasteful(shelf()["Random"]):
    def forward(self, patches: Tensor, num_keep: int, signals: object) -> object:
        patches @ patches.transpose(1, 2)
        return super().forward(patches, num_keep, signals)


def test_the_check_finds_unused_work() -> None:
    meter, task = build(Wasteful())
    batch = replace(random_batch(meter, 1), masked=None)
    assert count_forward(meter, task, batch).reducer == 0
    with pytest.raises(CostError, match=r"fvcore counts .* multiply-adds, torch .* never used"):
        check_count(meter, task, batch)
