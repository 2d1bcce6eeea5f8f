"""From examples to a batch: texts are encoded and masked, everything becomes tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from elip.data.batch import Batch, TextBatch
from elip.data.dataset import Example
from elip.data.datasets.base import DataError
from elip.data.draw import sample_rng
from elip.data.masking import Masking
from elip.data.reader import SoftAnswers, Target
from elip.data.tokenize import TextTokenizer, Tokens


class Collator:
    """Joins examples.

    Args:
        encoder: The tokenizer.
        masked: Whether a copy of the text with masked words is wanted.
        seed: With epoch and example it decides what is masked.
        num_answers: A, the width of soft targets.
    """

    def __init__(
        self, encoder: TextTokenizer, masked: bool = False, seed: int = 0, num_answers: int = 0
    ) -> None:
        self.encoder = encoder
        self.seed = seed
        self.num_answers = num_answers
        self.masking = (
            Masking(encoder.mask_id, encoder.vocab_size, encoder.whole_words) if masked else None
        )

    def __call__(self, examples: Sequence[Example | None]) -> Batch | None:
        """Return the batch of those that are not None; None if there is none."""
        kept = [example for example in examples if example is not None]
        if not kept:
            return None
        strings = tuple(example.text for example in kept)
        tokens = self.encoder(strings)
        masked, labels = self._masked(kept, tokens)
        return Batch(
            images=torch.from_numpy(np.stack([example.images for example in kept])),
            text=_text(tokens),
            strings=strings,
            example=torch.tensor([example.draw.example for example in kept]),
            image_id=torch.tensor([example.image_id for example in kept]),
            masked=masked,
            masked_labels=labels,
            negative_images=_negative_images(kept),
            negative_text=self._negative_text(kept),
            target=self._targets(kept),
            keys=tuple(example.key for example in kept),
        )

    def _masked(
        self, examples: list[Example], tokens: Tokens
    ) -> tuple[TextBatch | None, torch.Tensor | None]:
        if self.masking is None:
            return None, None
        pairs = [
            self.masking(ids, words, sample_rng(self.seed, example.draw, "masks"))
            for ids, words, example in zip(tokens.ids, tokens.words, examples, strict=True)
        ]
        ids, labels = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        return TextBatch(ids, torch.from_numpy(tokens.mask)), labels

    def _negative_text(self, examples: list[Example]) -> TextBatch | None:
        count = len(examples[0].negative_texts)
        if not count:
            return None
        text = _text(
            self.encoder([text for example in examples for text in example.negative_texts])
        )
        shape = (len(examples), count, self.encoder.length)
        return TextBatch(text.ids.reshape(shape), text.mask.reshape(shape))

    def _targets(self, examples: list[Example]) -> torch.Tensor | None:
        targets = [example.target for example in examples if example.target is not None]
        if not targets:
            return None
        if len(targets) < len(examples):
            raise DataError("Some examples of a batch have a truth and others have none.")
        if not isinstance(targets[0], SoftAnswers):
            return torch.tensor(targets)
        scores = torch.zeros(len(examples), self.num_answers)
        for example, row in zip(examples, scores, strict=True):
            self._score(example.key, example.target, row)
        return scores

    def _score(self, key: str, target: Target | None, row: torch.Tensor) -> None:
        assert isinstance(target, SoftAnswers)
        if any(not 0 <= label < self.num_answers for label in target.labels):
            raise DataError(
                f"Question {key} has answers {target.labels}, but {self.num_answers} answers are "
                "known. The answer file beside the Arrow files belongs to others, or is missing."
            )
        row[list(target.labels)] = torch.tensor(target.scores)


def _text(tokens: Tokens) -> TextBatch:
    return TextBatch(torch.from_numpy(tokens.ids), torch.from_numpy(tokens.mask))


def _negative_images(examples: list[Example]) -> torch.Tensor | None:
    negative = [
        example.negative_images for example in examples if example.negative_images is not None
    ]
    return torch.from_numpy(np.stack(negative)) if negative else None
