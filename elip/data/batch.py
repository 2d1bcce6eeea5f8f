"""The interface between data and model: a batch, and a task's request for one.

Shape legend: B batch, I images per example, F negative images or texts, L text length, S image size
in pixels, A answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Kind = str
"""The kind of an example. "caption": an image with captions; "question": a question about an image,
with soft answers; "pair": a true-or-false sentence about two images; "entailment": premise and
hypothesis about an image, in three classes; "statement": a true-or-false sentence about one image.
A dataset may define another kind, which a task then requests by its name."""


@dataclass(frozen=True)
class DataInfo:
    """What a model must know about the data before it is built."""

    vocab_size: int  # number of token ids
    num_answers: int = 0  # A; 0 if the data has no questions
    answers: tuple[str, ...] = ()  # the A answers by number; empty if no file lists them


@dataclass(frozen=True)
class SampleSpec:
    """What a task requests from the data."""

    kind: Kind
    masked: bool = False  # add a copy of the text with masked words
    negative_images: int = 0  # F, from other examples, to add to each example
    negative_texts: int = 0  # F, likewise
    every_text: bool = True  # one example per text, or (False) one per image with a random text


@dataclass(frozen=True)
class TextBatch:
    """Tokenized text."""

    ids: Tensor  # [..., L] int64
    mask: Tensor  # [..., L] bool, True at real tokens
    padded: bool = True  # False if all tokens are known to be real


@dataclass(frozen=True)
class Batch:
    """One batch, as the loader creates it and every task reads it."""

    images: Tensor  # [B,I,3,S,S] uint8, resized and cropped, not yet normalised
    text: TextBatch  # [B,L]
    strings: tuple[str, ...]  # the B original texts
    example: Tensor  # [B] int64, position in the dataset; joins predictions with examples
    image_id: Tensor  # [B] int64, number of the image (row)
    masked: TextBatch | None = None  # [B,L], the text with masked words, if requested
    masked_labels: Tensor | None = None  # [B,L] int64, true id at masked places, -100 elsewhere
    negative_images: Tensor | None = None  # [B,F,3,S,S] uint8
    negative_text: TextBatch | None = None  # [B,F,L]
    target: Tensor | None = None  # [B] int64 class, or [B,A] float32 soft answers, if known
    keys: tuple[str, ...] = ()  # the dataset's B identifiers of the examples, such as question ids
    numbers: tuple[tuple[int, int], ...] = ()  # (image_id, example) on the host; may be empty
    masked_places: int | None = None  # an upper bound on the masked words per text, if known

    def __len__(self) -> int:
        return len(self.example)

    def host_numbers(self) -> list[tuple[int, int]]:
        """Return ``numbers``; if they are empty, copy them from the device, which synchronises."""
        if self.numbers:
            return list(self.numbers)
        return list(zip(self.image_id.tolist(), self.example.tolist(), strict=True))

    def trimmed(self) -> Batch:
        """Cut all texts to the longest one, rounded up to a multiple of 8; for batches on the CPU.

        Also records what the model would otherwise have to fetch from the device: whether a text is
        padded, the most masked words per text (rounded up to a multiple of 4), and the numbers.
        """
        texts = [text for text in (self.text, self.negative_text) if text is not None]
        longest = max((int(text.mask.sum(dim=-1).max()) for text in texts), default=0)
        length = min(_round_up(longest, 8), self.text.ids.shape[-1])

        def cut(text: TextBatch) -> TextBatch:
            ids, mask = text.ids[..., :length], text.mask[..., :length]
            return TextBatch(ids.contiguous(), mask.contiguous(), not bool(mask.all()))

        most, labels = None, self.masked_labels
        if labels is not None:
            masked = int((labels != -100).sum(dim=1).max())
            most = min(_round_up(max(masked, 1), 4), length)
            labels = labels[:, :length].contiguous()
        return replace(
            self,
            text=cut(self.text),
            masked=self.masked and cut(self.masked),
            masked_labels=labels,
            negative_text=self.negative_text and cut(self.negative_text),
            numbers=tuple(self.host_numbers()),
            masked_places=most,
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with every tensor on ``device``."""
        return _map(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in pinned memory (the data loader calls this)."""
        return _map(self, Tensor.pin_memory)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


Part = TypeVar("Part", Batch, TextBatch)


def _map(part: Part, function: Callable[[Tensor], Tensor]) -> Part:
    changed: dict[str, Any] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = function(value)
        elif isinstance(value, TextBatch):
            changed[field.name] = _map(value, function)
    return replace(part, **changed)
