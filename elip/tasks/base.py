"""What a task is: which data it asks for, its heads, its loss, its metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from elip.data.batch import Batch, Needs
from elip.model.meter import Meter


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
    """Collects one split of one dataset and ends in scores."""

    @abstractmethod
    def update(self, meter: Meter, batch: Batch) -> None:
        """Take one batch. Runs in eval mode without gradient."""

    @abstractmethod
    def compute(self, meter: Meter) -> dict[str, float]:
        """Return the scores over everything taken, over all processes. Names carry no split."""


class Task(nn.Module, ABC):
    """Base class of all tasks.

    Attributes:
        needs: What the task asks of the data.
        main_metric: The score that selects a model and heads the tables; higher is better.
    """

    needs: Needs
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
    def chance(self, targets: Tensor | None, num_examples: int) -> dict[str, float]:
        """Return the scores of guessing, under the names that the evaluator uses.

        Args:
            targets: The split's targets as in `Batch.target`, where it has any.
            num_examples: Number of examples in the split.
        """
