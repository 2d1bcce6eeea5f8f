"""A loss that is not finite stops the run. No method causes one in half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from elip.data.batch import Batch
from elip.model.config import MeterConfig
from elip.record import read_record
from elip.schedule import Schedule
from elip.tasks.base import Task
from elip.tasks.retrieval import Retrieval
from elip.training.module import MeterModule
from elip.training.optimizer import Optimization, build_optimizer
from reducers import Reducer, shelf
from tests.reliability.forks import Fork, options
from tests.tasks.tiny import ANSWERS, LENGTH, PIXELS, VOCAB, batch_for

REDUCERS = {name: made for name, made in shelf().items() if made.placement != "never"}


def build(task: Task, reducer: Reducer | None) -> MeterModule:
    torch.manual_seed(0)
    fused = reducer is not None and reducer.placement == "fusion"
    sizes = MeterConfig(
        image_size=PIXELS, patch_size=4, image_width=16, image_blocks=3, image_heads=2,
        text_width=16, text_layers=1, text_heads=2, fusion_width=16, fusion_layers=2,
        fusion_heads=2, max_text_len=LENGTH,
    )  # fmt: skip
    schedule = Schedule(0.7, layers=(0, 1) if fused else (1, 2), profile=(0.8, 0.5))
    return MeterModule(task, reducer, schedule, sizes, vocab_size=VOCAB, num_answers=ANSWERS)


@pytest.mark.slow
def test_a_run_stops_at_the_first_loss_that_is_not_finite(shapes: Path, tmp_path: Path) -> None:
    step = MeterModule.training_step

    def poison() -> None:
        def poisoned(self: MeterModule, batch: Batch, index: int) -> torch.Tensor:
            if self.global_step == 3:
                with torch.no_grad():
                    next(self.task.parameters()).fill_(float("nan"))
            return step(self, batch, index)

        MeterModule.training_step = poisoned  # type: ignore[method-assign]

    arguments = ["fit", *options(tmp_path / "run", shapes, 50)]
    ended = Fork(arguments, tmp_path / "log.txt", poison).wait()
    assert ended.status == 2
    assert "error: The loss is nan at step 3" in ended.output
    assert "Traceback" not in ended.output
    record = read_record(tmp_path / "run")
    assert record.status == "failed"
    assert record.train_steps == 4  # the step with that loss is the last
    assert "The loss is nan at step 3" in str(record.error)


@pytest.mark.slow
@pytest.mark.parametrize("name", REDUCERS)
def test_training_in_bf16_stays_finite(name: str) -> None:
    module = build(Retrieval(negative_texts=1), REDUCERS[name]())
    optimizer = build_optimizer(module, Optimization(1e-3))
    batch, losses = batch_for(module.task.spec, 4), []
    for number in range(20):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.training_step(batch, number)
        optimizer.zero_grad()
        loss.backward()
        gradients = [value.grad for value in module.parameters() if value.grad is not None]
        assert all(bool(gradient.isfinite().all()) for gradient in gradients)
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])  # it did train


@pytest.mark.parametrize("name", REDUCERS)
def test_massive_activations_do_not_overflow_in_fp16(name: str) -> None:
    """Trained ViTs have channels hundreds of times larger than the rest.

    Their squares overflow in fp16. Source: Sun et al., 2024, arXiv:2402.17762.
    """
    module = build(Retrieval(negative_texts=1), REDUCERS[name]()).eval()
    module.meter.image.vit.norm_pre.weight.data[7] = 300
    batch = batch_for(module.task.spec, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        text = module.meter.encode_text(batch.text)
        image = module.meter.encode_image(batch.images[:, 0], text)
        loss = module.task.loss(module.meter, batch).total
    assert bool(image.tokens.isfinite().all())
    assert bool(loss.isfinite())
