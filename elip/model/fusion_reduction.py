"""Reduction of image tokens inside the text layers of the fusion.

Shape legend: B batch, L text length, N patch tokens, K kept, W width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip.model.guard import check, reduce
from elip.model.interface import EncodedImage
from elip.schedule import Plan
from reducers.contract import EncodedText, Reduced, Reducer, Signal

SIGNALS = {"keys", "text", "sizes", "positions", "cross_attention"}


class FusionReduction(nn.Module):
    """Calls the reducer and updates the image.

    Args:
        reducer: A method with ``placement = "fusion"``.
        plan: The fusion layers that reduce, and how many patch tokens they keep.
        grid: Rows and columns of the patch grid.

    Raises:
        ValueError: The reducer needs a signal that the fusion does not have.
    """

    def __init__(self, reducer: Reducer, plan: Plan, grid: tuple[int, int]) -> None:
        super().__init__()
        if foreign := sorted(set(reducer.needs) - SIGNALS):
            raise ValueError(
                f"{type(reducer).__name__} acts in the fusion and needs {foreign}; the fusion "
                f"provides {sorted(SIGNALS)}."
            )
        self.reducer = reducer
        self.plan = plan
        self.grid = grid

    def reduces(self, level: int, image: EncodedImage) -> bool:
        """Whether this level removes tokens."""
        count = image.sizes.shape[1]
        return self.plan.keep.get(level, count) < count

    def forward(
        self,
        level: int,
        image: EncodedImage,
        words: Tensor,
        mask: Tensor | None,
        query: Tensor,
        key: Tensor,
    ) -> EncodedImage:
        """Reduce the image tokens at one level.

        Args:
            level: The fusion layer.
            image: The image, with tokens of the fusion width.
            words: [B,L,W], the text tokens after cross-attention.
            mask: [B,L] bool, True at real tokens; None if all are real.
            query: [B,H,L,W/H], the queries (text) of the cross-attention.
            key: [B,H,1+N,W/H], its keys (image, CLS first).
        """
        whole = int(self.reducer.includes_cls)
        start, num_keep = 1 - whole, self.plan.keep[level] + whole

        def cross_attention() -> Tensor:
            logits: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            if image.mask is not None:
                hidden = ~image.mask[:, None, None, :]
                logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
            return logits.softmax(dim=-1).mean(dim=1)[:, :, start:]

        def text() -> EncodedText:
            real = torch.ones_like(words[..., 0], dtype=torch.bool) if mask is None else mask
            return EncodedText(words, real)

        compute: dict[Signal, Callable[[], object]] = {
            "cross_attention": cross_attention,
            "keys": lambda: key[:, :, start:],
            "sizes": lambda: F.pad(image.sizes, (whole, 0), value=1.0),
            "positions": lambda: F.pad(image.positions(self.grid), (0, 0, whole, 0)),
            "text": text,
        }
        requested = {name: compute[name]() for name in sorted(self.reducer.needs)}
        reduced = reduce(self.reducer, image, num_keep, level, self.grid, requested)
        cls = image.tokens[:, :1]
        if whole:
            # The first token becomes CLS; patches merged into it are no patch tokens any more.
            cls = reduced.tokens[:, :1]
            assignment = (reduced.assignment[:, 1:] - 1).clamp(min=-1)
            real = None if reduced.mask is None else reduced.mask[:, 1:]
            reduced = Reduced(reduced.tokens[:, 1:], assignment, real, reduced.loss)
        return image.reduce(level, cls, reduced)

    def reduce_text(
        self, words: Tensor, mask: Tensor | None, key: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Let the reducer merge text tokens; return tokens and mask.

        Args:
            words: [B,L,W], the text tokens after cross-attention.
            mask: [B,L] bool, True at real tokens; None if all are real.
            key: [B,H,L,W/H], the keys of the text's self-attention.
        """
        reduced = self.reducer.reduce_text(words, key, mask)
        if reduced is None:
            return words, mask
        check(self.reducer, reduced, words, reduced.tokens.shape[1], padded=True)
        return reduced.tokens, reduced.mask
