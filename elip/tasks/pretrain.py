"""Pre-training: masked language modelling and image-text matching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip.data.batch import Batch, SampleSpec
from elip.model.initialise import initialise
from elip.model.interface import Fused
from elip.model.meter import Meter
from elip.tasks.base import (
    Evaluator,
    Loss,
    Task,
    begin_images,
    prediction_rows,
    with_reducer_loss,
)
from elip.tasks.heads import MaskedLanguageHead
from elip.tasks.scores import ExampleScores, Sums
from reducers.contract import EncodedText


@dataclass(frozen=True)
class _Passes:
    """What the two passes gave.

    Attributes:
        words: [B,L,V] logits of the masked-language pass; None when it is switched off.
        matching: [B,2] logits of the matching pass, no match and match; None likewise.
        matches: [B] int64, 1 where the pair of ``matching`` is a true one.
        order: [B] int64, the example whose text is in each row of ``matching``.
        fused: What each pass gave its head.
    """

    words: Tensor | None
    matching: Tensor | None
    matches: Tensor
    order: Tensor
    fused: tuple[Fused, ...]


class Pretraining(Task):
    """Fill in masked words, and tell true image-text pairs from false ones.

    Two passes a step, as in the reference: masked text beside its own image for the words;
    unmasked text, half of it beside a negative image, for the matching. In training half of the
    batch (rounded down) keeps its true image, drawn anew at each step; in evaluation the examples
    with an even number do, so that evaluation repeats in any batch size and number of processes.

    Each distinct image is encoded once a step as far as no text can change it: 1.5 images an
    example instead of 2, with the same gradients.

    Source: Dou et al., 2022, arXiv:2111.02387, section 3.3 (loss = MLM + ITM).

    Args:
        mlm: Weight of masked language modelling; 0 switches its pass off.
        itm: Weight of image-text matching; 0 switches its pass off.
        every_text: One example per text, or one per image with a text drawn for it.

    Raises:
        ValueError: A weight is negative or not finite, or both are 0.
    """

    def __init__(self, mlm: float = 1.0, itm: float = 1.0, every_text: bool = True) -> None:
        super().__init__()
        if not (0 <= mlm < math.inf and 0 <= itm < math.inf and mlm + itm > 0):
            raise ValueError(
                f"mlm is {mlm} and itm is {itm}; weights must not be negative, must be "
                "finite, and at least one must be above 0."
            )
        self.mlm_weight = mlm
        self.itm_weight = itm
        self.main_metric = "itm_accuracy" if itm else "mlm_accuracy"
        self.spec = SampleSpec(
            kind="caption",
            masked=mlm > 0,
            negative_images=1 if itm else 0,
            every_text=every_text,
        )
        self.mlm: MaskedLanguageHead | None = None
        self.itm: nn.Linear | None = None

    def build(self, meter: Meter, num_answers: int) -> None:
        """Make the heads of the passes that are on."""
        if self.mlm_weight:
            self.mlm = MaskedLanguageHead(meter.width, meter.vocab_size)
            self.mlm.apply(initialise)
        if self.itm_weight:
            self.itm = nn.Linear(2 * meter.width, 2)
            self.itm.apply(initialise)
        else:
            meter.freeze_unread("text")

    def loss(self, meter: Meter, batch: Batch) -> Loss:
        """Return the weighted sum of both losses."""
        passes = self._passes(meter, batch)
        total, parts = batch.example.new_zeros((), dtype=torch.float32), {}
        if passes.words is not None:
            assert batch.masked_labels is not None
            # The sum over places by their number, which may be 0 in a small batch.
            places = (batch.masked_labels != -100).sum().clamp(min=1)
            words = _word_losses(passes.words, batch.masked_labels).sum() / places
            total, parts["mlm"] = total + self.mlm_weight * words, words.detach()
        if passes.matching is not None:
            matching = F.cross_entropy(passes.matching.float(), passes.matches)
            total, parts["itm"] = total + self.itm_weight * matching, matching.detach()
        return with_reducer_loss(Loss(total, parts), *passes.fused)

    def evaluator(self) -> Evaluator:
        """Return accuracies of both passes, and loss and perplexity of the words."""
        return _Evaluator(self)

    def infer(self, meter: Meter, batch: Batch) -> Tensor:
        """Return the logits [B,2] of no match and match; [B,L,V] of the words without matching."""
        begun = begin_images(meter, batch.images[:, 0], self.training)
        text = meter.encode_text(batch.text)
        image = meter.encode_suffix(begun, text)
        logits: Tensor
        if self.itm is not None:
            logits = self.itm(meter.fuse(text, image, "pooled").pooled)
        else:
            assert self.mlm is not None
            logits = self.mlm(meter.fuse(text, image, "text").text)
        return logits

    def predict(self, meter: Meter, batch: Batch) -> list[dict[str, Any]]:
        """Return the probability ``match`` that image and text belong together.

        Raises:
            ValueError: Image-text matching is switched off.
        """
        if self.itm is None:
            raise ValueError("Pretraining predicts matches only; it needs itm above 0.")
        return prediction_rows(batch, match=self.infer(meter, batch).float().softmax(dim=-1)[:, 1])

    def _passes(self, meter: Meter, batch: Batch) -> _Passes:
        count, device = len(batch), batch.example.device
        keep, swap = self._halves(batch)
        order = torch.cat([keep, swap])
        true = batch.images[:, 0]
        distinct = true if self.mlm is not None else true[keep]
        beside = keep if self.mlm is not None else torch.arange(len(keep), device=device)
        if self.itm is not None:
            assert batch.negative_images is not None
            others = torch.arange(len(swap), device=device) + len(distinct)
            beside = torch.cat([beside, others])
            distinct = torch.cat([distinct, batch.negative_images[swap, 0]])
        begun = begin_images(meter, distinct, self.training)
        words = matching = None
        fused = []
        if self.mlm is not None:
            assert batch.masked is not None
            text = meter.encode_text(batch.masked)
            image = meter.encode_suffix(begun.rows(slice(count)), text)
            fused.append(meter.fuse(text, image, "text"))
            words = self.mlm(fused[-1].text)
        if self.itm is not None:
            text = meter.encode_text(batch.text)
            text = EncodedText(text.tokens[order], text.mask[order])
            image = meter.encode_suffix(begun.rows(beside), text)
            fused.append(meter.fuse(text, image, "pooled"))
            matching = self.itm(fused[-1].pooled)
        matches = (torch.arange(count, device=device) < len(keep)).long()
        return _Passes(words, matching, matches, order, tuple(fused))

    def _halves(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return which examples keep their true image and which take the false one."""
        if self.itm is None:
            everyone = torch.arange(len(batch), device=batch.example.device)
            return everyone, everyone[:0]
        if self.training:
            order = torch.randperm(len(batch), device=batch.example.device)
            return order[: len(batch) // 2], order[len(batch) // 2 :]
        even = batch.example % 2 == 0
        return even.nonzero()[:, 0], (~even).nonzero()[:, 0]


class _Evaluator(Evaluator):
    def __init__(self, task: Pretraining) -> None:
        super().__init__()
        self.task = task
        self.words = Sums(3)  # places that are right, their losses, their number
        self.targets: Sums | None = None
        self.examples = ExampleScores()

    def update(self, meter: Meter, batch: Batch) -> None:
        passes = self.task._passes(meter, batch)
        if passes.matching is not None:
            right = (passes.matching.argmax(dim=-1) == passes.matches).float()
            order = passes.order
            self.examples.update(batch.image_id[order], batch.example[order], right)
        if passes.words is not None:
            assert batch.masked_labels is not None
            labels = batch.masked_labels
            hits = passes.words.argmax(dim=-1) == labels  # never where no word was masked
            losses = _word_losses(passes.words, labels)
            self.words.update(torch.stack([hits.float(), losses, (labels != -100).float()], dim=-1))
            words = labels[labels != -100].bincount(minlength=meter.vocab_size)
            self._counts(meter).update(words[None])

    def compute(self, meter: Meter) -> dict[str, float]:
        scores = {}
        if self.task.itm is not None:
            scores["itm_accuracy"] = self.examples.mean(meter)
        if self.task.mlm is not None:
            hits, losses, places = self.words.over_processes(meter)
            scores["mlm_accuracy"] = (hits / places).item()
            scores["mlm_loss"] = (losses / places).item()
            scores["mlm_perplexity"] = (losses / places).exp().item()
        return scores

    def chance(self, meter: Meter) -> dict[str, float]:
        guesses = {}
        if self.task.itm is not None:
            guesses["itm_accuracy"] = 0.5
        if self.task.mlm is not None:
            counts = self._counts(meter).over_processes(meter)
            guesses["mlm_accuracy"] = (counts.max() / counts.sum()).item()
        return guesses

    def per_example_scores(self, meter: Meter) -> Tensor:
        return self.examples.over_processes(meter)

    def _counts(self, meter: Meter) -> Sums:
        if self.targets is None:
            self.targets = Sums(meter.vocab_size)
        return self.targets


def _word_losses(words: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy [B,L] at each place, 0 where no word was masked."""
    return F.cross_entropy(
        words.float().transpose(1, 2), labels, ignore_index=-100, reduction="none"
    )
