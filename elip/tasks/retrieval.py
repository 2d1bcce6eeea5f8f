"""Image and text retrieval: fine-tuning with negative texts, evaluation of all pairs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip.data.batch import Batch, SampleSpec, TextBatch
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
from elip.tasks.gallery import Gallery
from elip.tasks.ranking import first_hits, guesses, recalls


class Retrieval(Task):
    """Find the image of a text and the texts of an image by scoring all pairs.

    Loss: cross entropy of an image's own text among itself and F texts of other examples. The
    rank head is one linear map of the pooled CLS tokens. Pre-trained weights initialise it with the
    matching head's row for "match".

    Source: Dou et al., 2022, arXiv:2111.02387, section 4.1; Kim et al., ViLT, 2021,
    arXiv:2102.03334 (15 negative texts).

    Args:
        negative_texts: F, at least 1.
        pairs: Pairs per pass in evaluation.

    Raises:
        ValueError: A number is below 1.
    """

    main_metric = "r1"

    def __init__(self, negative_texts: int = 15, pairs: int = 128) -> None:
        super().__init__()
        if negative_texts < 1 or pairs < 1:
            raise ValueError(
                f"negative_texts is {negative_texts} and pairs is {pairs}; both must be at least 1."
            )
        self.spec = SampleSpec(kind="caption", negative_texts=negative_texts)
        self.pairs = pairs
        self.rank: nn.Linear | None = None

    def build(self, meter: Meter, num_answers: int) -> None:
        """Build the rank head."""
        self.rank = nn.Linear(2 * meter.width, 1)
        self.rank.apply(initialise)

    def loss(self, meter: Meter, batch: Batch) -> Loss:
        """Return the cross entropy of the true text among 1 + F; each image is encoded once."""
        assert batch.negative_text is not None
        ids = torch.cat([batch.text.ids[:, None], batch.negative_text.ids], dim=1)
        mask = torch.cat([batch.text.mask[:, None], batch.negative_text.mask], dim=1)
        count, texts = ids.shape[:2]
        text = meter.encode_text(TextBatch(ids.flatten(0, 1), mask.flatten(0, 1)))
        prefix = encode_shared(meter, batch.images[:, 0], self.training)
        rows = torch.arange(count, device=ids.device).repeat_interleave(texts)
        (fused,) = fuse_pairs(meter, prefix, rows, text, self.training)
        true = torch.zeros(count, dtype=torch.int64, device=ids.device)
        loss = F.cross_entropy(self.score(fused).view(count, texts), true)
        return with_reducer_loss(Loss(loss), fused)

    def evaluator(self) -> Evaluator:
        """Return an evaluator of the recalls over all pairs."""
        return _Evaluator(self)

    def infer(self, meter: Meter, batch: Batch) -> Tensor:
        """Return the score [B] of each text with its own image."""
        prefix = encode_shared(meter, batch.images[:, 0], self.training)
        text = meter.encode_text(batch.text)
        return self.score(meter.fuse(text, meter.encode_suffix(prefix, text), "pooled"))

    def predict(self, meter: Meter, batch: Batch) -> list[dict[str, Any]]:
        """Return the ``score`` of each text with its own image."""
        return prediction_rows(batch, score=self.infer(meter, batch))

    def score(self, fused: Fused) -> Tensor:
        """Return how well image and text match: [B] float32, unbounded."""
        assert self.rank is not None
        scores: Tensor = self.rank(fused.pooled)
        return scores[:, 0].float()


class _Evaluator(Evaluator):
    def __init__(self, task: Retrieval) -> None:
        super().__init__()
        self.task = task
        self.gallery = Gallery()
        self.scores = torch.zeros(0, 0)

    def update(self, meter: Meter, batch: Batch) -> None:
        self.gallery.add(meter, batch)

    def compute(self, meter: Meter) -> dict[str, float]:
        self.scores = self.gallery.scores(meter, self.task.score, self.task.pairs)
        return recalls(self.scores, self.gallery.image_of_text(meter))

    def chance(self, meter: Meter) -> dict[str, float]:
        return guesses(self.gallery.image_of_text(meter))

    def per_example_scores(self, meter: Meter) -> Tensor:
        hits = first_hits(self.scores, self.gallery.image_of_text(meter))
        images = self.gallery.image_numbers(meter)[: len(hits)].double()
        return torch.stack([images, images, hits], dim=1)
