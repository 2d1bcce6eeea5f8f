"""The base class of tasks that choose one answer."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip.data.batch import Batch
from elip.model.initialise import initialise
from elip.model.interface import Fused
from elip.model.meter import Meter
from elip.tasks.base import (
    Evaluator,
    Loss,
    Task,
    encode_shared,
    fuse_pairs,
    prediction_rows,
    with_reducer_loss,
)
from elip.tasks.scores import Sums


class Classification(Task):
    """Choose one of A answers from the pooled CLS tokens of text and image(s).

    Attributes:
        images: Images per example; only their token types differ.
    """

    main_metric = "accuracy"
    images: int = 1

    def __init__(self) -> None:
        super().__init__()
        self.classifier: nn.Sequential | None = None

    @property
    @abstractmethod
    def classes(self) -> int:
        """A; if it depends on the data, known after `build`."""

    def build(self, meter: Meter, num_answers: int) -> None:
        """Build the classifier: 2W per image, then 2W, then the answers."""
        width = 2 * meter.width
        self.classifier = nn.Sequential(
            nn.Linear(self.images * width, width), nn.LayerNorm(width), nn.GELU(),
            nn.Linear(width, self.classes),
        )  # fmt: skip
        self.classifier.apply(initialise)

    def truth(self, target: Tensor) -> Tensor:
        """Return the score of each answer: `Batch.target` -> [B,A] float in [0, 1]."""
        return F.one_hot(target, self.classes).float()

    def logits_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross entropy of logits [B,A]."""
        return F.cross_entropy(logits, target)

    def loss(self, meter: Meter, batch: Batch) -> Loss:
        """Return the training loss of one batch.

        Raises:
            ValueError: The batch has no targets.
        """
        if batch.target is None:
            raise ValueError(f"{type(self).__name__} cannot train: this split has no answers.")
        logits, passes = self.logits(meter, batch)
        return with_reducer_loss(Loss(self.logits_loss(logits, batch.target)), *passes)

    def logits(self, meter: Meter, batch: Batch) -> tuple[Tensor, list[Fused]]:
        """Return float32 logits [B,A] and the fusion output of each image.

        Raises:
            ValueError: The examples have a different number of images.
        """
        images = batch.images.shape[1]
        if images != self.images:
            raise ValueError(
                f"{type(self).__name__} needs {self.images} image(s) per example; the data has "
                f"{images}."
            )
        assert self.classifier is not None
        # In evaluation, questions about one image share its encoding.
        names = [] if self.training else [image for image, _ in batch.numbers]
        distinct = list(dict.fromkeys(names))
        shown = batch.images
        index: Tensor | slice = slice(None)
        if len(distinct) < len(names):
            shown = shown[[names.index(image) for image in distinct]]
            places = [distinct.index(image) for image in names]
            index = torch.tensor(places, device=shown.device)
        begun = encode_shared(meter, shown.transpose(0, 1).flatten(0, 1), self.training)
        text = meter.encode_text(batch.text)
        passes = []
        for which in range(images):
            rows = begun.rows(slice(which * len(shown), (which + 1) * len(shown)))
            passes += fuse_pairs(meter, rows, index, text, self.training, image_type=which + 1)
        pooled = [fused.pooled for fused in passes if fused.pooled is not None]
        logits: Tensor = self.classifier(torch.cat(pooled, dim=-1))
        return logits.float(), passes

    def evaluator(self) -> Evaluator:
        """Return an evaluator of the chosen answers."""
        return _Evaluator(self)

    def infer(self, meter: Meter, batch: Batch) -> Tensor:
        """Return the logits [B,A] of the answers."""
        return self.logits(meter, batch)[0]

    def predict(self, meter: Meter, batch: Batch) -> list[dict[str, Any]]:
        """Return the ``label`` of the best answer, and its ``probability``."""
        return self.prediction_rows(batch, self.infer(meter, batch))

    def prediction_rows(self, batch: Batch, logits: Tensor) -> list[dict[str, Any]]:
        """Return the rows of `predict` for logits [B,A]."""
        best = self.probabilities(logits).max(dim=-1)
        return prediction_rows(batch, label=best.indices, probability=best.values)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability [B,A] of each answer."""
        return logits.softmax(dim=-1)


class _Evaluator(Evaluator):
    def __init__(self, task: Classification) -> None:
        super().__init__()
        self.task = task
        # The total score of each constant answer; the last column counts the examples.
        self.constant = Sums(task.classes + 1)

    def update(self, meter: Meter, batch: Batch) -> None:
        """Add one batch; a split without targets gets predictions but no score."""
        logits, _ = self.task.logits(meter, batch)
        if self.keeps_predictions:
            self.predictions += self.task.prediction_rows(batch, logits)
        if batch.target is None:
            return
        truth = self.task.truth(batch.target)
        scores = truth.gather(1, logits.argmax(dim=-1, keepdim=True))[:, 0]
        self.examples.update(batch.image_id, batch.example, scores)
        self.constant.update(F.pad(truth, (0, 1), value=1.0))

    def compute(self, meter: Meter) -> dict[str, float]:
        return {self.task.main_metric: self.examples.mean(meter)}

    def chance(self, meter: Meter) -> dict[str, float]:
        sums = self.constant.over_processes(meter)
        if not sums[-1]:
            return {}
        return {self.task.main_metric: (sums[:-1].max() / sums[-1]).item()}
