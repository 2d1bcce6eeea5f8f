"""What a task is: which data it asks for, its heads, its loss, its metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from elip.data.batch import Batch, SampleSpec
from elip.model.interface import EncodedImage, Fused, PreparedImage
from elip.model.meter import Meter
from reducers.contract import EncodedText


@dataclass(frozen=True)
class Loss:
    """A training loss.

    Attributes:
        total: Scalar, what is minimised.
        parts: Named scalars for the log, detached.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Evaluator(ABC):
    """Collects one split of one dataset and ends in scores.

    Attributes:
        keeps_predictions: Whether ``predictions`` is wanted; nobody reads it in a validation.
        predictions: What `Task.predict` would say of each example of this process, for tasks whose
            evaluation has it at hand; else empty.
    """

    def __init__(self) -> None:
        self.keeps_predictions = False
        self.predictions: list[dict[str, Any]] = []

    @abstractmethod
    def update(self, meter: Meter, batch: Batch) -> None:
        """Take one batch. Runs in eval mode without gradient."""

    @abstractmethod
    def compute(self, meter: Meter) -> dict[str, float]:
        """Return the scores over everything taken, over all processes. Names carry no split."""

    @abstractmethod
    def chance(self, meter: Meter) -> dict[str, float]:
        """Return the scores of guessing on everything taken, over all processes.

        Guessing means at random where the task balances its own classes, and otherwise the one
        answer that scores best on this very data (the majority class). The names are those of
        `compute`; a score for which guessing is not defined is left out.
        """

    @abstractmethod
    def per_example_scores(self, meter: Meter) -> Tensor:
        """Return what each example added to the main score, over all processes; after `compute`.

        Returns:
            [N,3] float64: image number, example number and score, in order of example, each once.
            The mean of the scores is the main score. Empty where that is no mean over examples.
        """


class Task(nn.Module, ABC):
    """Base class of all tasks.

    Attributes:
        spec: What the task asks of the data.
        main_metric: The score that selects a model and heads the tables; higher is better.
    """

    spec: SampleSpec
    main_metric: str

    @abstractmethod
    def build(self, meter: Meter, num_answers: int) -> None:
        """Make the heads that fit the model and the data; called once, before weights are loaded.

        Args:
            meter: The model.
            num_answers: A, the number of answers that the dataset knows (0 where it has none).
        """

    @abstractmethod
    def loss(self, meter: Meter, batch: Batch) -> Loss:
        """Return the training loss of one batch."""

    @abstractmethod
    def evaluator(self) -> Evaluator:
        """Return a fresh evaluator for one split."""

    @abstractmethod
    def infer(self, meter: Meter, batch: Batch) -> Tensor:
        """Return the raw scores of a batch, [B] or [B,A]: the forward pass whose cost is stated."""

    @abstractmethod
    def predict(self, meter: Meter, batch: Batch) -> list[dict[str, Any]]:
        """Return one row of plain values an example; runs in eval mode without gradient.

        Each row has ``example``, ``key``, ``image_id`` and ``text``, then what the task predicts.
        """

    def submission(
        self, rows: Sequence[dict[str, Any]], answers: Sequence[str], asked: Collection[int] = ()
    ) -> list[dict[str, Any]] | None:
        """Return what the task's public evaluation server takes as JSON; None where it has none.

        Args:
            rows: What `predict` gave, from all processes.
            answers: The dataset's answers by label.
            asked: Keys of all examples that the server asks for; empty where they are not known.
        """
        return None


def encode_shared(meter: Meter, images: Tensor, training: bool) -> EncodedImage:
    """Encode images [B,3,S,S] as far as no text can change them, under seeds of their own.

    Finish with `prepare_pairs`, for as many rows as a task has texts.

    Args:
        meter: The model.
        images: uint8, or normalised float.
        training: Whether random reducers draw anew at every step; otherwise what they draw is a
            function of the pixels alone, in whatever batch, order or process an image comes.
    """
    seeds = _checksums(images)
    if training:
        seeds = seeds + torch.randint(2**62, (1,), device=images.device)
    return meter.encode_prefix(images, seeds)


def prepare_pairs(
    meter: Meter,
    images: EncodedImage,
    index: Tensor,
    text: EncodedText,
    training: bool,
    image_type: int = 1,
) -> PreparedImage:
    """Return the image side of pairs: the images at ``index`` [B], each beside its text.

    Where no text changes an image, what one image has in common is computed once; in training its
    dropout would be in common, too, so there it is computed for every pair.

    Args:
        meter: The model.
        images: What `encode_shared` returned.
        index: [B] int64, which image each text has beside it.
        text: B encoded texts.
        training: Whether this is training.
        image_type: Token type of the image: 1, or 2 for the second image of a pair.
    """
    if meter.shares_prefix and not training:
        return meter.prepare_image(images, image_type).rows(index)
    return meter.prepare_image(meter.encode_suffix(images.rows(index), text), image_type)


def with_reducer_loss(loss: Loss, *passes: Fused) -> Loss:
    """Add the auxiliary loss of the reducer, for reducers that have one."""
    # Where the reducer is blind to the text, several passes share one encoding and one loss.
    own = {id(fused.loss): fused.loss for fused in passes if fused.loss is not None}
    if not own:
        return loss
    extra = torch.stack(list(own.values())).sum()
    return Loss(loss.total + extra, {**loss.parts, "reducer": extra.detach()})


def prediction_rows(batch: Batch, **columns: Tensor) -> list[dict[str, Any]]:
    """Return one row an example: what names it, and its entry of each column [B]."""
    named: dict[str, list[Any]] = {
        "example": batch.example.tolist(),
        "key": list(batch.keys) or [""] * len(batch),
        "image_id": batch.image_id.tolist(),
        "text": list(batch.strings),
    }
    named |= {name: column.tolist() for name, column in columns.items()}
    rows = zip(*named.values(), strict=True)
    return [dict(zip(named, values, strict=True)) for values in rows]


def _checksums(images: Tensor) -> Tensor:
    """Return one int64 an image, a checksum of some 4,000 of its values: a sum by odd weights."""
    flat = images.detach().flatten(1)
    some = flat[:, :: max(1, flat.shape[1] // 4096)]
    if some.is_floating_point():
        some = (some.float() * 65536).round()
    place = torch.arange(some.shape[1], device=images.device) * 2 + 1
    return (some.long() * (place * -7046029254386353131 | 1)).sum(dim=1)
