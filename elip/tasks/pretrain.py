"""Pre-training: masked language modelling and image-text matching."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip.data.batch import Batch, SampleSpec, TextBatch
from elip.model.initialise import initialise
from elip.model.interface import Fused, Reading
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


class MaskedLanguageHead(nn.Module):
    """Predicts word pieces: linear, GELU, layer norm, linear to the vocabulary."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.decoder = nn.Linear(width, vocab_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., W] to logits [..., vocab_size]."""
        logits: Tensor = self.decoder(self.norm(F.gelu(self.dense(tokens))))
        return logits


@dataclass(frozen=True)
class _Results:
    """The results of both passes of a step; those of a pass that is off are None."""

    words: Tensor | None  # [B,M,V] logits at M places of each masked text
    labels: Tensor | None  # [B,M] int64, the true ids there, -100 if no word is masked
    matching: Tensor | None  # [B,2] logits of no match and match
    matches: Tensor  # [B] int64, 1 if the pair is a true one
    order: Tensor  # [B] int64, the example whose text is in each row of ``matching``
    fused: list[Fused]


class Pretraining(Task):
    """Fill in masked words, and tell true image-text pairs from false ones.

    Two passes per step, as in the reference: masked texts with their own images for the words, and
    unmasked texts, half of them with a negative image, for the matching. In training a random half
    of the batch (rounded down) keeps its true image. In evaluation the examples with even numbers
    do, so that results do not depend on batch size or number of processes.

    Each distinct image is encoded once per step up to the first block that depends on the text:
    1.5 images per example instead of 2, with the same gradients.

    Source: Dou et al., 2022, arXiv:2111.02387, section 3.3 (loss = MLM + ITM).

    Args:
        mlm: Weight of masked language modelling; 0 switches the pass off.
        itm: Weight of image-text matching; 0 switches the pass off.
        every_text: One example per text, or one per image with a random text.

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
        """Build the heads of the passes that are on."""
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
        found = self._run(meter, batch)
        total, parts = batch.example.new_zeros((), dtype=torch.float32), {}
        if found.words is not None and found.labels is not None:
            # A small batch may have no masked word.
            places = (found.labels != -100).sum().clamp(min=1)
            words = _word_losses(found.words, found.labels).sum() / places
            total, parts["mlm"] = total + self.mlm_weight * words, words.detach()
        if found.matching is not None:
            matching = F.cross_entropy(found.matching.float(), found.matches)
            total, parts["itm"] = total + self.itm_weight * matching, matching.detach()
        return with_reducer_loss(Loss(total, parts), *found.fused)

    def evaluator(self) -> Evaluator:
        """Return an evaluator of both accuracies, and of the words' loss and perplexity."""
        return _Evaluator(self)

    def infer(self, meter: Meter, batch: Batch) -> Tensor:
        """Return the logits [B,2] of no match and match; without matching, [B,L,V] of the words."""
        prefix = encode_shared(meter, batch.images[:, 0], self.training)
        text = meter.encode_text(batch.text)
        image = meter.encode_suffix(prefix, text)
        logits: Tensor
        if self.itm is None:
            assert self.mlm is not None
            logits = self.mlm(meter.fuse(text, image, "text").text)
        else:
            logits = self.itm(meter.fuse(text, image, "pooled").pooled)
        return logits

    def predict(self, meter: Meter, batch: Batch) -> list[dict[str, Any]]:
        """Return the probability ``match`` that image and text belong together.

        Raises:
            ValueError: Image-text matching is switched off.
        """
        if self.itm is None:
            raise ValueError("Pretraining predicts matches only; it needs itm above 0.")
        return prediction_rows(batch, match=self.infer(meter, batch).float().softmax(dim=-1)[:, 1])

    def _run(self, meter: Meter, batch: Batch) -> _Results:
        """Run both passes at once; the rows of the words come first."""
        count, device = len(batch), batch.example.device
        keep, swap = self._halves(batch)
        order = torch.cat([keep, swap])
        everyone, true = torch.arange(count, device=device), batch.images[:, 0]
        # The index of each row's image among the distinct images, true ones first.
        distinct, beside = [true if self.mlm is not None else true[keep]], []
        texts, readings, labels = [], [], None
        if self.mlm is not None:
            assert batch.masked is not None
            places, labels = _masked_places(batch)
            texts.append(batch.masked)
            beside.append(everyone)
            readings.append(Reading(count, "text", places))
        if self.itm is not None:
            assert batch.negative_images is not None
            distinct.append(batch.negative_images[swap, 0])
            texts.append(
                TextBatch(batch.text.ids[order], batch.text.mask[order], batch.text.padded)
            )
            own = keep if self.mlm is not None else everyone[: len(keep)]
            beside += [own, everyone[: len(swap)] + len(distinct[0])]
            readings.append(Reading(count, "pooled"))
        prefix = encode_shared(meter, torch.cat(distinct), self.training)
        text = meter.encode_text(_join(texts))
        fused = fuse_pairs(meter, prefix, torch.cat(beside), text, self.training, readings)
        return _Results(
            words=None if self.mlm is None else self.mlm(fused[0].text),
            labels=labels,
            matching=None if self.itm is None else self.itm(fused[-1].pooled),
            matches=(everyone < len(keep)).long(),
            order=order,
            fused=fused,
        )

    def _halves(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the examples that keep their true image and those with a negative image."""
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
        self.words = Sums(3)  # correct places, losses, number of places
        self.targets: Sums | None = None

    def update(self, meter: Meter, batch: Batch) -> None:
        found = self.task._run(meter, batch)
        if found.matching is not None:
            right = (found.matching.argmax(dim=-1) == found.matches).float()
            order = found.order
            self.examples.update(batch.image_id[order], batch.example[order], right)
        if found.words is not None and found.labels is not None:
            labels, masked = found.labels, (found.labels != -100).float()
            hits = found.words.argmax(dim=-1) == labels  # never true at -100
            losses = _word_losses(found.words, labels)
            self.words.update(torch.stack([hits.float(), losses, masked], dim=-1))
            counts = torch.zeros(meter.vocab_size, device=labels.device)
            counts = counts.scatter_add(0, labels.clamp(min=0).flatten(), masked.flatten())
            self._counts(meter).update(counts[None])

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

    def _counts(self, meter: Meter) -> Sums:
        if self.targets is None:
            self.targets = Sums(meter.vocab_size)
        return self.targets


def _masked_places(batch: Batch) -> tuple[Tensor | None, Tensor]:
    """Return M places [B,M] per text that include all masked words, and their labels.

    Places are None, meaning all, if the batch does not set ``masked_places``.
    """
    labels = batch.masked_labels
    assert labels is not None
    if batch.masked_places is None:
        return None, labels
    first = (labels == -100).byte().argsort(dim=1, stable=True)
    places = first[:, : batch.masked_places]
    return places, labels.gather(1, places)


def _join(texts: list[TextBatch]) -> TextBatch:
    ids, masks = [each.ids for each in texts], [each.mask for each in texts]
    return TextBatch(torch.cat(ids), torch.cat(masks), any(each.padded for each in texts))


def _word_losses(words: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy [B,L] at each place, 0 if no word is masked."""
    return F.cross_entropy(
        words.float().transpose(1, 2), labels, ignore_index=-100, reduction="none"
    )
