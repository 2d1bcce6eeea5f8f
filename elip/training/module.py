"""The Lightning module: one METER, one task, one reducer."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from elip.data.batch import Batch
from elip.identity import CheckpointError
from elip.model.config import MeterConfig
from elip.model.guard import refuse_namesake
from elip.model.meter import Meter
from elip.schedule import Schedule
from elip.tasks import tasks
from elip.tasks.base import Evaluator, Task
from elip.training.optimizer import Optimization, build_optimizer, build_schedule
from elip.weights import load_image_weights, load_text_weights, load_weights
from reducers.contract import Reducer

log = logging.getLogger(__name__)


class LossError(RuntimeError):
    """The loss of a step is not a finite number."""

    def __init__(self, loss: float, step: int) -> None:
        super().__init__(
            f"The loss is {loss:g} at step {step}. Lower the learning rate, clip gradients "
            "(trainer.gradient_clip_val), or use bf16-mixed or 32-true precision."
        )


@dataclass(frozen=True)
class SplitResult:
    """The scores of one split; see `elip.tasks.base.Evaluator`."""

    examples: int  # scored by this process
    metrics: dict[str, float]
    chance: dict[str, float]  # the same by guessing
    per_example: Tensor  # [N,3], the main score of each example
    predictions: list[dict[str, Any]]  # rows of this process


class MeterModule(LightningModule):
    """METER with a reducer, trained and scored on a task.

    Args:
        task: The task to train and score.
        reducer: The token reducer, by class name or import path. None means no reduction.
        schedule: Where tokens are dropped and how many remain.
        meter: Sizes of the model.
        optimization: Optimiser and learning rate.
        weights: Start from these: a run directory, a checkpoint of ours, or a METER checkpoint.
        image_weights: Image encoder to start from: an OpenAI CLIP archive, or a timm model name.
        text_weights: Text encoder to start from: a transformers folder or hub name.
        compile: Compile image encoder and fusion, which costs about a minute per input shape.
        allow_untrained: Allow scoring of parts that the given weights lack, such as the head.
        recompute: Compute activations again in the backward pass: less memory, about a third more
            arithmetic.
        vocab_size: The tokenizer's number of word pieces; set from the data.
        num_answers: The number of answers; set from the data.
    """

    def __init__(
        self,
        task: Task,
        reducer: Reducer | None = None,
        schedule: Schedule = Schedule(),  # noqa: B008  (frozen)
        meter: MeterConfig = MeterConfig(),  # noqa: B008  (frozen)
        optimization: Optimization = Optimization(),  # noqa: B008  (frozen)
        weights: str | None = None,
        image_weights: str | None = None,
        text_weights: str | None = None,
        compile: bool = False,
        recompute: bool = False,
        allow_untrained: bool = False,
        vocab_size: int | None = None,
        num_answers: int = 0,
    ) -> None:
        super().__init__()
        refuse_namesake(type(task), tasks())
        self.schedule = schedule
        self.optimization = optimization
        self.weights = weights
        self.missing: tuple[str, ...] = ()
        self._left_out: list[str] = []
        self.meter = Meter(meter.resolve(), reducer, schedule, vocab_size)
        self.task = task
        task.build(self.meter, num_answers)
        if image_weights is not None:
            log.info("%s", load_image_weights(self.meter, image_weights))
        if text_weights is not None:
            log.info("%s", load_text_weights(self.meter, text_weights))
        if weights is not None:
            report = load_weights(self, weights)
            self.missing = report.missing
            self._left_out = [name for name in report.unused if name.startswith("meter.")]
            log.info("%s", report)
        self.compiled = compile
        self._allow_untrained = allow_untrained
        if recompute:
            self.meter.recompute_activations()
        if compile:
            self.meter.compile_parts()
        self._seed = torch.initial_seed()
        self._evaluators: list[Evaluator] = []
        self._seen: list[int] = []
        self.results: dict[str, SplitResult] = {}
        self.notes: list[str] = []  # for the record

    def refuse_untrained(self) -> None:
        """Refuse to score a model whose given weights do not fit it.

        Raises:
            CheckpointError: The weights lack parts of the model, or have more layers.
        """
        for what, names in (("are not in", self.missing), ("do not fit, from", self._left_out)):
            if names and not self._allow_untrained:
                raise CheckpointError(
                    f"{len(names)} tensors such as {names[0]} {what} {self.weights}, so this model "
                    "would be scored untrained. Train it with fit, set model.meter to the sizes of "
                    "the weights, or give --model.allow_untrained true."
                )

    def configure_optimizers(self) -> Any:
        """Make AdamW with METER's parameter groups and learning-rate schedule."""
        optimizer = build_optimizer(self, self.optimization)
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(optimizer, num_steps, self.optimization)
        # Let Lightning unscale fp16 gradients; a fused optimiser would do so after clipping.
        optimizer._step_supports_amp_scaling = False
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch. `StepFlags` stops the run if it is not finite."""
        # Seed by run, process and step, so that a resumed run draws the same numbers.
        state = f"{self._seed} {self.global_rank} {self.global_step} {batch_idx}"
        torch.manual_seed(int.from_bytes(blake2b(state.encode(), digest_size=7).digest(), "big"))
        loss = self.task.loss(self.meter, batch)
        self.log("train/loss", loss.total.detach())
        self.log_dict({f"train/{name}": part for name, part in loss.parts.items()})
        return loss.total

    def on_validation_epoch_start(self) -> None:
        """Start one evaluator per split."""
        self._evaluators = [self.task.evaluator() for _ in self._splits()]
        self._seen = [0] * len(self._evaluators)
        for each in self._evaluators:
            each.keeps_predictions = self.trainer.testing

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Pass a batch to the evaluator of its split."""
        self._evaluators[dataloader_idx].update(self.meter, batch)
        self._seen[dataloader_idx] += len(batch)

    def on_validation_epoch_end(self) -> None:
        """Log each split's scores, and the mean main metric as ``val/main`` or ``test/main``."""
        self.results = {
            name: SplitResult(
                seen, each.compute(self.meter), each.chance(self.meter),
                each.per_example_scores(self.meter), each.predictions,
            )
            for name, each, seen in zip(self._splits(), self._evaluators, self._seen, strict=True)
        }  # fmt: skip
        self._evaluators = []
        prefix = "test" if self.trainer.testing else "val"
        for name, result in self.results.items():
            middle = "" if len(self.results) == 1 else f"{name}/"
            self.log_dict(
                {f"{prefix}/{middle}{key}": value for key, value in result.metrics.items()}
            )
        main = [result.metrics[self.task.main_metric] for result in self.results.values()]
        self.log(f"{prefix}/main", sum(main) / len(main))

    on_test_epoch_start = on_validation_epoch_start
    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def _splits(self) -> list[str]:
        stage = "test" if self.trainer.testing else "validate"
        return self.trainer.datamodule.split_names(stage)  # type: ignore[attr-defined, no-any-return]

    def predict_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Return one row of plain values per example."""
        return self.task.predict(self.meter, batch)
