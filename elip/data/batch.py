"""What flows from the data to the model: one batch, and what a task asks of it.

Shape legend: B batch, I images an example, F negative images or texts, L text length, S image size
in pixels, A answers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

Kind = str
"""What an example is. "caption": an image with captions; "question": a question with soft answers
about an image; "pair": a true-or-false sentence about two images; "entailment": premise and
hypothesis about an image in three classes; "statement": a true-or-false sentence about one image.
A dataset may have a kind of its own, which a task then asks for by its name."""


@dataclass(frozen=True)
class DataInfo:
    """What a model must know of the data before it is built.

    Attributes:
        vocab_size: Number of token ids.
        num_answers: A, the number of answers of data with questions; 0 without such data.
        answers: The A answers by number; empty where no file tells them.
    """

    vocab_size: int
    num_answers: int = 0
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class SampleSpec:
    """What a task asks of the data.

    Attributes:
        kind: The kind of example.
        masked: Whether a copy of the text with masked words is wanted.
        negative_images: F, how many images drawn from other examples go with each example.
        negative_texts: F, how many texts drawn from other examples go with each example.
        every_text: One example per text (True), or one per image with a text drawn for it.
    """

    kind: Kind
    masked: bool = False
    negative_images: int = 0
    negative_texts: int = 0
    every_text: bool = True


@dataclass(frozen=True)
class TextBatch:
    """Tokenized text.

    Attributes:
        ids: [..., L] int64.
        mask: [..., L] bool, True where there is a real token.
        padded: False where it is known that all tokens are real.
    """

    ids: Tensor
    mask: Tensor
    padded: bool = True


@dataclass(frozen=True)
class Batch:
    """One batch, as the loader makes it and every task reads it.

    Attributes:
        images: [B,I,3,S,S] uint8, resized and cropped, not yet normalised.
        text: [B,L] ids and mask.
        strings: The B texts as they were read.
        example: [B] int64, position in the dataset; joins predictions with examples.
        image_id: [B] int64, which image (row) an example shows.
        masked: The text with masked words, when asked for: [B,L].
        masked_labels: [B,L] int64, the true id at masked places and -100 elsewhere.
        negative_images: [B,F,3,S,S] uint8.
        negative_text: [B,F,L].
        target: [B] int64 class, or [B,A] float32 soft answers; None where there is no truth.
        keys: B identifiers of the examples as the dataset calls them (question ids, for instance).
        numbers: B pairs of ``image_id`` and ``example``, kept on the host; empty when not known.
        masked_places: A number M such that no text has more masked words; None when not known.
    """

    images: Tensor
    text: TextBatch
    strings: tuple[str, ...]
    example: Tensor
    image_id: Tensor
    masked: TextBatch | None = None
    masked_labels: Tensor | None = None
    negative_images: Tensor | None = None
    negative_text: TextBatch | None = None
    target: Tensor | None = None
    keys: tuple[str, ...] = ()
    numbers: tuple[tuple[int, int], ...] = ()
    masked_places: int | None = None

    def __len__(self) -> int:
        """Return B."""
        return len(self.example)

    def rows(self, which: slice) -> Batch:
        """Return some of the examples."""
        part: Batch = _map(self, lambda tensor: tensor[which])
        return replace(
            part,
            strings=self.strings[which],
            keys=self.keys[which],
            numbers=self.numbers[which],
        )

    def host_numbers(self) -> list[tuple[int, int]]:
        """Return ``numbers``; where they are empty, read them off the device, which waits."""
        if self.numbers:
            return list(self.numbers)
        return list(zip(self.image_id.tolist(), self.example.tolist(), strict=True))

    def trimmed(self) -> Batch:
        """Return the batch with all texts cut to the longest, rounded up to a multiple of 8.

        Also notes what the model would have to ask the device for: whether a text is padded, how
        many words are masked at most (rounded up to a multiple of 4), and the numbers. For batches
        on the CPU.
        """
        texts = [text for text in (self.text, self.negative_text) if text is not None]
        longest = max((int(text.mask.sum(dim=-1).max()) for text in texts), default=0)
        length = min(_round_up(longest, 8), self.text.ids.shape[-1])
        most = None
        if self.masked_labels is not None:
            masked = int((self.masked_labels != -100).sum(dim=1).max())
            most = min(_round_up(max(masked, 1), 4), length)

        def cut(text: TextBatch | None) -> TextBatch | None:
            if text is None:
                return None
            ids, mask = text.ids[..., :length], text.mask[..., :length]
            return TextBatch(ids.contiguous(), mask.contiguous(), not bool(mask.all()))

        text = cut(self.text)
        assert text is not None
        labels = self.masked_labels
        return replace(
            self,
            text=text,
            masked=cut(self.masked),
            masked_labels=None if labels is None else labels[:, :length].contiguous(),
            negative_text=cut(self.negative_text),
            numbers=tuple(self.host_numbers()),
            masked_places=most,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on ``device``."""
        moved: Batch = _map(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return moved

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory (the data loader calls this)."""
        pinned: Batch = _map(self, Tensor.pin_memory)
        return pinned


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


def _map(part: Any, function: Any) -> Any:
    changed = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif isinstance(value, TextBatch):
            changed[field.name] = _map(value, function)
    return replace(part, **changed)
