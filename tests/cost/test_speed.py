"""Cheap training gives the same results: fused optimiser, recomputed activations, bf16."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from elip.cost.count import count_backward, random_batch
from elip.model.config import MeterConfig
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.tasks.pretrain import Pretraining
from elip.training.optimizer import Optimization, build_optimizer
from reducers import shelf

CONFIG = MeterConfig(
    image_size=32, image_width=48, image_blocks=4, text_width=48, fusion_width=48, fusion_layers=2,
    max_text_len=12, vocab_size=60, dropout=0.1,
)  # fmt: skip


def build(name: str = "ELIP") -> nn.ModuleDict:
    torch.manual_seed(0)
    meter = Meter(CONFIG.resolve(), shelf()[name](), Schedule(layers=(1,), counts=(6,)))
    task = Pretraining()
    task.build(meter, 0)
    return nn.ModuleDict({"meter": meter, "task": task}).train()


def loss(both: nn.ModuleDict) -> Tensor:
    torch.manual_seed(1)
    total: Tensor = both["task"].loss(both["meter"], random_batch(both["meter"], 4)).total
    return total


def kept_for_backward(both: nn.ModuleDict) -> int:
    """Bytes kept for the backward pass, without parameters."""
    held: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in both.parameters()}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = loss(both)
    assert kept.requires_grad
    return sum(held.values())


@pytest.mark.parametrize("name", ["Identity", "ELIP", "ToMe", "Random"])
def test_recomputing_activations_saves_memory_and_changes_no_gradient(name: str) -> None:
    keeping, recomputing = build(name), build(name)
    recomputing["meter"].recompute_activations()
    first, second = loss(keeping), loss(recomputing)
    first.backward()
    second.backward()
    assert torch.equal(first, second)
    for one, other in zip(keeping.parameters(), recomputing.parameters(), strict=True):
        if one.grad is None:
            assert other.grad is None
        else:
            torch.testing.assert_close(one.grad, other.grad)
    more, less = (count_backward(both, lambda b=both: loss(b)) for both in
                  (recomputing, keeping))  # fmt: skip
    assert 1.1 < more / less < 1.4
    # ToMe reduces inside three of the five blocks, and a block that reduces keeps everything.
    most = 0.55 if name == "ToMe" else 0.5
    assert kept_for_backward(recomputing) < most * kept_for_backward(keeping)


def test_the_optimiser_is_fused() -> None:
    optimizer = build_optimizer(build(), Optimization(learning_rate=1e-3))
    assert all(group["fused"] for group in optimizer.param_groups)


def test_a_training_step_in_bf16_is_near_that_in_float32() -> None:
    exact, rough = build(), build()
    with torch.autocast("cpu", torch.bfloat16):
        approximate = loss(rough)
    approximate.backward()
    assert approximate.item() == pytest.approx(loss(exact).item(), rel=0.02)
    gradients = [parameter.grad for parameter in rough.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_batches_are_pinned_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = random_batch(build()["meter"], 2)
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    assert len(batch.pin_memory()) == 2
    for tensor in (batch.images, batch.text.ids, batch.text.mask, batch.masked_labels):
        assert any(tensor is each for each in pinned)
