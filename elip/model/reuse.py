"""A cache of encodings that do not depend on the reduction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from elip.data.batch import TextBatch
from elip.model.image_encoder import ImageEncoder
from elip.model.interface import EncodedImage
from elip.model.text_encoder import TextEncoder
from reducers.contract import EncodedText

_TEXTS, _IMAGES = 4, 2
"""Cached batches: no task encodes more in one step."""


@dataclass
class Encodings:
    """Caches the latest texts and images, compared by value because tasks rebuild batches."""

    texts: list[tuple[TextBatch, EncodedText]] = field(default_factory=list)
    # Pixels, the embedded images, and the tokens that enter each block.
    images: list[tuple[Tensor, EncodedImage, dict[int, Tensor]]] = field(default_factory=list)

    def text(self, text: TextBatch, encoder: TextEncoder) -> EncodedText:
        """Return the encoding of a text."""
        for known, encoded in self.texts:
            if _same(known.ids, text.ids) and _same(known.mask, text.mask):
                return encoded
        new: EncodedText = encoder(text)
        self.texts = [(text, new), *self.texts][:_TEXTS]
        return new

    def image(
        self,
        encoder: ImageEncoder,
        pixels: Tensor,
        normalise: Callable[[Tensor], Tensor],
        seeds: Tensor | None,
    ) -> tuple[EncodedImage, dict[int, Tensor]]:
        """Return the cached start of the encoding, and the dict that stores further blocks."""
        found = next((each for each in self.images if _same(each[0], pixels)), None)
        if found is None:
            embedded = encoder.embed(normalise(pixels), seeds)
            found = pixels, embedded, {0: embedded.tokens}
            self.images = [found, *self.images][:_IMAGES]
        _, embedded, tokens = found
        block = max(number for number in tokens if number <= encoder.first_reduction)
        image = replace(
            embedded,
            tokens=tokens[block],
            block=block,
            seeds=embedded.seeds if seeds is None else seeds,
            tokens_per_block=(encoder.num_patches,) * block,
        )
        return image, tokens


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))
