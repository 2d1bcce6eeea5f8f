"""What every task must do, whatever it is."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from elip.tasks import tasks
from elip.tasks.base import Task
from reducers import Reduced, Reducer, Signals
from reducers.contract import Placement
from reducers.elip import ELIP
from reducers.pumer import PuMer
from reducers.random import Random
from tests.tasks.tiny import ANSWERS, batch_for, built, take, tiny_meter

TASKS = [pytest.param(task, id=name) for name, task in tasks().items()]
REDUCERS = [
    pytest.param(lambda: None, id="none"),
    pytest.param(Random, id="blind"),
    pytest.param(ELIP, id="reads_text"),
    pytest.param(PuMer, id="fusion"),
]


class Costly(Reducer):
    """Keeps the first patches, and has a loss of its own."""

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self.placement = placement
        self.price = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        index = torch.arange(patches.shape[1]).expand(patches.shape[:2])
        assignment = index.where(index < num_keep, -1)
        return Reduced(patches[:, :num_keep], assignment, loss=self.price.square())


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("reducer", REDUCERS)
def test_training_loss_is_finite_and_reaches_every_part(kind: type[Task], reducer) -> None:
    meter = tiny_meter(reducer(), dropout=0.1).train()
    task = built(kind(), meter).train()
    loss = task.loss(meter, batch_for(task.spec))
    assert loss.total.ndim == 0
    assert math.isfinite(loss.total.item())
    assert not any(part.requires_grad for part in loss.parts.values())
    loss.total.backward()
    without = [name for name, p in task.named_parameters() if p.grad is None]
    assert not without
    for part in (meter.image.vit, meter.text, meter.fusion, meter.token_types):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


@pytest.mark.parametrize("kind", TASKS)
def test_heads_are_made_by_build_alone(kind: type[Task]) -> None:
    task, meter = kind(), tiny_meter()
    assert not list(task.parameters())
    task.build(meter, ANSWERS)
    assert list(task.parameters())


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("reducer", REDUCERS)
@torch.no_grad()
def test_scores_lie_in_range_beside_chance_and_do_not_depend_on_batches(
    kind: type[Task], reducer
) -> None:
    meter = tiny_meter(reducer())
    task = built(kind(), meter)
    batch = batch_for(task.spec, count=7)
    whole, parts = task.evaluator(), task.evaluator()
    assert (whole.keeps_predictions, whole.predictions) == (False, [])
    whole.update(meter, batch)
    torch.manual_seed(5)
    for rows in ([3, 6, 0], [1], [5, 2, 4]):
        parts.update(meter, take(batch, rows))
    scores, chance = whole.compute(meter), whole.chance(meter)
    assert 0 <= scores[task.main_metric] <= 1
    assert 0 <= chance[task.main_metric] <= 1
    assert chance.keys() <= scores.keys()
    assert parts.compute(meter) == pytest.approx(scores, rel=1e-5, abs=1e-5)
    assert parts.chance(meter) == pytest.approx(chance, abs=1e-6)
    outcomes = whole.per_example_scores(meter)
    assert outcomes[:, 2].mean().item() == pytest.approx(scores[task.main_metric], abs=1e-6)
    assert outcomes[:, 1].diff().min() > 0
    if task.spec.kind != "caption" or task.main_metric != "r1":
        assert outcomes[:, :2].tolist() == [
            [image, example]
            for example, image in sorted(
                zip(batch.example.tolist(), batch.image_id.tolist(), strict=True)
            )
        ]
    torch.testing.assert_close(parts.per_example_scores(meter), outcomes)


@pytest.mark.parametrize("kind", TASKS)
@torch.no_grad()
def test_predictions_are_one_plain_row_an_example(kind: type[Task]) -> None:
    meter = tiny_meter(ELIP())
    task = built(kind(), meter)
    batch = batch_for(task.spec)
    rows = task.predict(meter, batch)
    assert [row["example"] for row in rows] == batch.example.tolist()
    assert [row["key"] for row in rows] == list(batch.keys)
    assert [row["text"] for row in rows] == list(batch.strings)
    assert json.loads(json.dumps(rows)) == rows
    assert len(rows[0]) > 4
    alone = task.predict(meter, take(batch, [2]))[0]
    for name, value in alone.items():
        assert value == (pytest.approx(rows[2][name], abs=1e-5) if name != "text" else "text 2")


@pytest.mark.parametrize(("placement", "layers"), [("before_block", 2), ("fusion", 1)])
@pytest.mark.parametrize("kind", TASKS)
def test_the_reducers_own_loss_is_added(
    kind: type[Task], placement: Placement, layers: int
) -> None:
    meter = tiny_meter(Costly(placement))
    task = built(kind(), meter)
    batch = batch_for(task.spec)
    loss = task.loss(meter, batch)
    loss.total.backward()
    # 2 squared at each layer, in one or more passes.
    assert loss.parts["reducer"] >= 4.0 * layers
    assert loss.parts["reducer"] % (4.0 * layers) == 0
    assert meter.reducer.price.grad > 0
    with meter.reduction_disabled():
        assert "reducer" not in task.loss(meter, batch).parts


@pytest.mark.parametrize("kind", TASKS)
def test_loss_is_finite_in_bfloat16(kind: type[Task]) -> None:
    meter = tiny_meter(ELIP()).train()
    task = built(kind(), meter).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = task.loss(meter, batch_for(task.spec))
    assert loss.total.dtype == torch.float32
    assert math.isfinite(loss.total.item())
