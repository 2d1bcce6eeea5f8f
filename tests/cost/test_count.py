"""The two counters against closed forms, and against each other."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

from elip.cost import CostError, count_forward, measure_training_cost
from tests.cost import closed_forms as paper

GIGA = 1e9


def test_published_vit_to_the_multiply_add() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224", img_size=288)
    model, image = model.to_empty(device="cpu"), torch.zeros(1, 3, 288, 288)
    counted = count_forward(model, lambda: model(image))
    expected = paper.vit([325] * 12, 768, 324, 16) + 768 * 1000
    assert counted == {"rest": expected}
    assert round(expected / GIGA, 4) == 29.7425


def small_vit() -> nn.Module:
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=4, num_classes=0,
        global_pool="",
    )  # fmt: skip


def small_text() -> nn.Module:
    config = RobertaConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128,
    )  # fmt: skip
    return RobertaModel(config, add_pooling_layer=False)


def test_text_encoder() -> None:
    model, ids = small_text(), torch.randint(5, 50, (3, 11))
    counted = count_forward(model, lambda: model(ids).last_hidden_state)
    assert counted == {"rest": 3 * paper.text_encoder(11, 32, 2)}


@pytest.mark.parametrize("training", [False, True])
def test_attention_module_of_torch_is_seen_in_full(training: bool) -> None:
    model = nn.TransformerEncoderLayer(16, 4, 64, batch_first=True).train(training)
    tokens = torch.randn(2, 7, 16)
    expected = 2 * (paper.layer(7, 16) + paper.feed_forward(7, 16))
    assert count_forward(model, lambda: model(tokens)) == {"rest": expected}
    assert model.training is training


def test_training_step_is_three_forward_passes_less_the_pixels_gradient() -> None:
    model, image = small_vit(), torch.randn(1, 3, 32, 32)
    stem = 16 * 48 * 3 * 64
    forward = paper.vit([17] * 3, 48, 16, 8)
    counted = measure_training_cost(model, lambda: model(image).sum())
    assert counted * GIGA == pytest.approx(3 * forward - stem, abs=0.5)


def test_training_step_of_text_encoder() -> None:
    model, ids = small_text(), torch.randint(5, 50, (4, 11))
    counted = measure_training_cost(model, lambda: model(ids).last_hidden_state.sum(), examples=4)
    assert counted * GIGA == pytest.approx(3 * paper.text_encoder(11, 32, 2), abs=0.5)


def test_training_step_knows_frozen_layers_and_passes_without_gradient() -> None:
    first, second = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
    model, rows = nn.Sequential(first, second), torch.randn(5, 8)
    product = 5 * 8 * 8

    def loss() -> Tensor:
        with torch.no_grad():
            second(rows)
        return model(rows).sum()

    # Three passes forward, gradients of both weights, and of the second layer's input.
    assert measure_training_cost(model, loss) * GIGA == pytest.approx(6 * product)
    first.requires_grad_(False)
    assert measure_training_cost(model, loss) * GIGA == pytest.approx(4 * product)


def test_measuring_changes_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    model[1].eval()
    rows = torch.randn(2, 4)
    gradient = torch.ones(4, 4)
    model[0].weight.grad = gradient
    state = torch.random.get_rng_state()
    before = [parameter.clone() for parameter in model.parameters()]
    measure_training_cost(model, lambda: F.dropout(model(rows)).sum())
    count_forward(model, lambda: model(rows) + torch.rand(1))
    assert model[0].weight.grad is gradient
    assert torch.equal(gradient, torch.ones(4, 4))
    assert model[2].weight.grad is None
    assert [module.training for module in model] == [True, False, True]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(map(torch.equal, before, model.parameters()))


A, B = torch.randn(3, 5, 4), torch.randn(3, 6, 4)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda: A @ B.transpose(1, 2), 3 * 5 * 6 * 4),
        (lambda: A[0] @ B.transpose(1, 2), 3 * 5 * 6 * 4),
        (lambda: A @ B[0, 0], 3 * 5 * 4),
        (lambda: A[0] @ B[0, 0], 5 * 4),
        (lambda: A[0, 0] @ B[0, 0], 4),
        (lambda: torch.einsum("bnd,bmd->bnm", A, B), 3 * 5 * 6 * 4),
        (lambda: torch.einsum("...nd,...md", A, B), 3 * 5 * 6 * 4),
        (lambda: torch.einsum("bnd,bmd->b", A, B), 3 * 4),
        (lambda: torch.einsum("bnd,bmd->bnmd", A, B), 0),
        (lambda: torch.einsum("bnd->bn", A), 0),
        (lambda: torch.baddbmm(torch.zeros(3, 5, 6), A, B.transpose(1, 2)), 3 * 5 * 6 * 4),
        (lambda: torch.addmm(torch.zeros(5, 6), A[0], B[0].T), 5 * 6 * 4),
        (lambda: torch.cdist(A, B), 3 * 5 * 6 * 4),
        (lambda: torch.cdist(A.repeat(1, 9, 1), B), 3 * 45 * 6 * 4),
        (lambda: F.scaled_dot_product_attention(A, B, B[..., :2]), 3 * 5 * 6 * (4 + 2)),
        (lambda: F.scaled_dot_product_attention(A, A, A, is_causal=True), 3 * 5 * 5 * 8),
        (lambda: F.conv2d(torch.ones(2, 4, 5, 5), torch.ones(6, 2, 3, 3), groups=2),
         2 * 6 * 9 * 2 * 9),
        (lambda: F.layer_norm(A, (4,)).softmax(-1).argsort(1), 0),
    ],
)  # fmt: skip
def test_operators(run: object, expected: int) -> None:
    assert count_forward(nn.Module(), run) == ({"rest": expected} if expected else {})


class Borrower(nn.Module):
    """Runs another module's layer, without gradient, as a probe does."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._layers = (layer,)

    def forward(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            return self._layers[0](tokens)


class Chooser(nn.Module):
    def forward(self, tokens: Tensor, probe: nn.Module) -> Tensor:
        scores = probe(tokens)
        return tokens + scores @ torch.ones(4, 4)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.probe = Borrower(self.layer)
        self.chooser = Chooser()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layer(self.chooser(self.layer(tokens), self.probe))


PARTS = {"model.probe": "probe", "model.chooser": "chooser", "model": "model"}


def test_borrowed_layers_are_booked_on_the_borrower() -> None:
    model, tokens = Encoder(), torch.randn(3, 4)
    head = nn.Linear(4, 7)
    counted = count_forward(model, lambda: head(model(tokens)), PARTS, "head", head)
    assert counted == {"model": 2 * 48, "probe": 48, "chooser": 48, "head": 84}


def test_work_below_a_module_is_its_own_however_it_is_reached() -> None:
    model, tokens = Encoder(), torch.randn(3, 4)
    assert count_forward(model, lambda: model.layer(tokens), PARTS) == {"model": 48}


def test_compiled_modules_are_counted() -> None:
    model, tokens = Encoder(), torch.randn(3, 4)
    model.compile()
    assert sum(count_forward(model, lambda: model(tokens), PARTS).values()) == 4 * 48


def test_sizes_are_numbers_while_tracing() -> None:
    def run() -> Tensor:
        kept = round(0.5 * A.shape[1]) + len(A) - A.size(0) + A.numel() - math.prod(A.size())
        mark = torch.zeros(3, 5, dtype=torch.bool).scatter(1, torch.zeros(3, 1).long(), True)
        return (A * mark[..., None])[:, :kept] @ B.mT

    assert count_forward(nn.Module(), run) == {"rest": 3 * 2 * 6 * 4}


def test_unknown_operator_is_an_error_that_names_it() -> None:
    with pytest.raises(CostError, match=r"aten::linalg_inv.*1 times.*operators\.py"):
        count_forward(nn.Module(), lambda: torch.linalg.inv(torch.eye(3)))


def test_work_that_tracing_would_drop_is_an_error() -> None:
    def wasteful() -> Tensor:
        A @ A.transpose(1, 2)
        return A.sum()

    with pytest.raises(CostError, match="fvcore counts 0 multiply-adds, torch 300"):
        count_forward(nn.Module(), wasteful)


def test_einsum_of_three_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="products of two"):
        count_forward(nn.Module(), lambda: torch.einsum("bnd,bmd,bnm->b", A, A, A @ A.mT))
