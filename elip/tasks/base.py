"""The base classes of tasks: required data, heads, loss and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from elip.data.batch import Batch, SampleSpec
from elip.model.interface import EncodedImage, Fused, Reading
from elip.model.meter import Meter
from elip.tasks.scores import ExampleScores
from reducers.contract import EncodedText


@dataclass(frozen=True)
class Loss:
    """A training loss."""

    total: Tensor  # scalar to minimise
    parts: dict[str, Tensor] = field(default_factory=dict)  # scalars for the log, detached


class Evaluator(ABC):
    """Computes the scores of one split of one dataset.

    Attributes:
        keeps_predictions: Whether to fill ``predictions``.
        predictions: The rows of `Task.predict` for this process, if evaluation computes them.
        examples: The main score of each example, if it has one.
    """

    def __init__(self) -> None:
        self.keeps_predictions = False
        self.predictions: list[dict[str, Any]] = []
        self.examples = ExampleScores()

    @abstractmethod
    def update(self, meter: Meter, batch: Batch) -> None:
        """Add one batch. Runs in eval mode without gradient."""

    @abstractmethod
    def compute(self, meter: Meter) -> dict[str, float]:
        """Return the scores over all batches and processes, named without the split."""

    @abstractmethod
    def chance(self, meter: Meter) -> dict[str, float]:
        """Return the scores of guessing, over all batches and processes, named as in `compute`.

        Guessing is random if the task balances its classes. Otherwise it gives the one answer that
        scores best on this data. A score without a defined guess is left out.
        """

    def per_example_scores(self, meter: Meter) -> Tensor:
        """Return each example's share of the main score, over all processes; after `compute`.

        Returns:
            [N,3] float64: image number, example number and score, sorted by example, without
            repeats. The mean score is the main score. Empty if the main score is no such mean.
        """
        return self.examples.over_processes(meter)


class Task(nn.Module, ABC):
    """Base class of all tasks.

    Attributes:
        spec: The data that the task needs.
        main_metric: The score for model selection and tables; higher is better.
    """

    spec: SampleSpec
    main_metric: str

    @abstractmethod
    def build(self, meter: Meter, num_answers: int) -> None:
        """Build the heads; called once, before weights are loaded.

        Args:
            meter: The model.
            num_answers: A, the dataset's number of answers (0 if it has none).
        """

    @abstractmethod
    def loss(self, meter: Meter, batch: Batch) -> Loss:
        """Return the training loss of one batch."""

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """Return a fresh evaluator for one split."""

    @abstractmethod
    def infer(self, meter: Meter, batch: Batch) -> Tensor:
        """Return the raw scores of a batch, [B] or [B,A]; reported costs are of this pass."""

    @abstractmethod
    def predict(self, meter: Meter, batch: Batch) -> list[dict[str, Any]]:
        """Return one row of plain values per example; runs in eval mode without gradient.

        Each row has ``example``, ``key``, ``image_id`` and ``text``, then the task's predictions.
        """

    def submission(
        self, rows: Sequence[dict[str, Any]], answers: Sequence[str], asked: Collection[int] = ()
    ) -> list[dict[str, Any]] | None:
        """Return the JSON for the public evaluation server; None if there is no server.

        Args:
            rows: The rows of `predict`, from all processes.
            answers: The dataset's answers by label.
            asked: Keys of all examples that the server expects; empty if unknown.
        """
        return None


def encode_shared(meter: Meter, images: Tensor, training: bool) -> EncodedImage:
    """Run the blocks that do not depend on the text on images [B,3,S,S], with one seed per image.

    In evaluation the seeds depend on the pixels alone, so random reducers draw the same in any
    batch, order or process. In training they change at every step.
    """
    seeds = _checksums(images)
    if training:
        seeds = seeds + torch.randint(2**62, (1,), device=images.device)
    return meter.encode_prefix(images, seeds)


def fuse_pairs(
    meter: Meter,
    images: EncodedImage,
    index: Tensor | slice,
    text: EncodedText,
    training: bool,
    readings: Sequence[Reading] | None = None,
    image_type: int = 1,
) -> list[Fused]:
    """Fuse B texts with their images.

    Args:
        meter: The model.
        images: The result of `encode_shared`.
        index: [B] int64, the image of each text.
        text: B encoded texts.
        training: Whether this is training; then each pair needs its own dropout.
        readings: What heads read; None means the two CLS tokens of each pair.
        image_type: See `Meter.prepare_image`.
    """
    if meter.shares_prefix and not training:
        image = meter.prepare_image(images, image_type).rows(index)
    else:
        image = meter.prepare_image(meter.encode_suffix(images.rows(index), text), image_type)
    readings = readings or [Reading(len(text.tokens), "pooled")]
    return meter.fuse_prepared(meter.prepare_text(text), image, readings)


def with_reducer_loss(loss: Loss, *passes: Fused) -> Loss:
    """Add the reducer's auxiliary loss, if any."""
    # Several passes may share one encoding and thus one loss.
    own = {id(fused.loss): fused.loss for fused in passes if fused.loss is not None}
    if not own:
        return loss
    extra = torch.stack(list(own.values())).sum()
    return Loss(loss.total + extra, {**loss.parts, "reducer": extra.detach()})


def prediction_rows(batch: Batch, **columns: Tensor) -> list[dict[str, Any]]:
    """Return one row per example: its names and its entry of each column [B]."""
    named: dict[str, list[Any]] = {
        "example": batch.example.tolist(),
        "key": list(batch.keys) or [""] * len(batch),
        "image_id": batch.image_id.tolist(),
        "text": list(batch.strings),
        **{name: column.tolist() for name, column in columns.items()},
    }
    return [dict(zip(named, values, strict=True)) for values in zip(*named.values(), strict=True)]


def _checksums(images: Tensor) -> Tensor:
    """Return one int64 checksum per image: about 4,000 of its values, summed with odd weights."""
    flat = images.detach().flatten(1)
    some = flat[:, :: max(1, flat.shape[1] // 4096)]
    if some.is_floating_point():
        some = (some.float() * 65536).round()
    place = torch.arange(some.shape[1], device=images.device) * 2 + 1
    return (some.long() * (place * -7046029254386353131 | 1)).sum(dim=1)
