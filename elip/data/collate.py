"""From examples to a batch of tensors: texts are encoded and masked here."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from elip.data.arrow import SoftAnswers, Target
from elip.data.batch import Batch, TextBatch
from elip.data.dataset import Example
from elip.data.sampling import sample_rng
from elip.data.tokenize import TextTokenizer

IGNORED = -100
"""Label of a place where nothing is predicted."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Collator:
    """Joins examples to a batch."""

    encoder: TextTokenizer
    masked: bool = False  # add a copy of the text with masked words
    seed: int = 0  # decides the masks, together with epoch and example
    num_answers: int = 0  # A, the width of soft targets

    def __call__(self, examples: Sequence[Example | None]) -> Batch | None:
        """Return the batch of the examples that are not None; None if there are none."""
        kept = [example for example in examples if example is not None]
        if not kept:
            return None
        strings = tuple(example.text for example in kept)
        text, words = self.encoder.encode(strings)
        masked = labels = negative_text = None
        if self.masked:
            if not self.encoder.whole_words:  # every token is a unit
                words = np.where(words >= 0, np.arange(words.shape[1]), -1)
            rngs = [sample_rng(self.seed, example.index, "masks") for example in kept]
            pairs = [
                mask_tokens(row, units, self.encoder.mask_id, self.encoder.vocab_size, rng)
                for row, units, rng in zip(text.ids.numpy(), words, rngs, strict=True)
            ]
            ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
            masked = TextBatch(ids, text.mask)
        if count := len(kept[0].negative_texts):
            texts = self.encoder([each for example in kept for each in example.negative_texts])
            shape = (len(kept), count, self.encoder.length)
            negative_text = TextBatch(texts.ids.reshape(shape), texts.mask.reshape(shape))
        negatives = [e.negative_images for e in kept if e.negative_images is not None]
        return Batch(
            images=torch.from_numpy(np.stack([example.images for example in kept])),
            text=text,
            strings=strings,
            example=torch.tensor([example.index.example for example in kept]),
            image_id=torch.tensor([example.image_id for example in kept]),
            masked=masked,
            masked_labels=labels,
            negative_images=torch.from_numpy(np.stack(negatives)) if negatives else None,
            negative_text=negative_text,
            target=self._target([example.target for example in kept if example.target is not None]),
            keys=tuple(example.key for example in kept),
        ).trimmed()

    def _target(self, targets: list[Target]) -> torch.Tensor | None:
        """Return [B] classes or [B,A] scores; None without targets."""
        if not targets or not isinstance(targets[0], SoftAnswers):
            return torch.tensor(targets) if targets else None
        scores = torch.zeros(len(targets), self.num_answers)
        for target, row in zip(targets, scores, strict=True):
            assert isinstance(target, SoftAnswers)
            row[list(target.labels)] = torch.tensor(target.scores)
        return scores


def mask_tokens(
    ids: Ids, units: Ids, mask_id: int, vocab_size: int, rng: random.Random
) -> tuple[Ids, Ids]:
    """Mask one text for masked language modelling.

    Each unit (word or token) is chosen with probability 0.15. A chosen token becomes [MASK] with
    probability 0.8, becomes a random token with 0.1, and stays with 0.1.

    Source: Devlin et al., BERT, 2018, arXiv:1810.04805.
    Differs: METER's whole-word masking counts padding among the candidates and therefore masks 14
        to 18% of the tokens; here every word is chosen with probability 0.15.

    Args:
        ids: [L] token ids.
        units: [L] unit number of each token, -1 where nothing may be masked.
        mask_id: Id of the mask token.
        vocab_size: Number of ids to draw random tokens from.
        rng: Random generator.

    Returns:
        [L] ids with masks, and [L] labels: the true id at chosen tokens, else `IGNORED`.
    """
    masked, labels = ids.copy(), np.full_like(ids, IGNORED)
    chosen: dict[int, bool] = {}
    for place in np.flatnonzero(units >= 0).tolist():
        unit = int(units[place])
        if unit not in chosen:
            chosen[unit] = rng.random() < 0.15
        if not chosen[unit]:
            continue
        labels[place] = ids[place]
        fate = rng.random()
        if fate < 0.8:
            masked[place] = mask_id
        elif fate < 0.9:
            masked[place] = rng.randrange(vocab_size)
    return masked, labels
