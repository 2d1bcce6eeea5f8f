"""The fusion as a reducer's host: image tokens are reduced inside the text side's layers.

A reducer that acts here sees, after the cross-attention of a text layer, how much each text token
looked at each image token. The reduced image then enters the image layer of the same level and
all later ones. Shape legend: B batch, L text length, N patch tokens, K kept, W width, H heads.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip.model.guard import check
from elip.model.image_encoder import EncodedImage
from elip.schedule import Plan, Schedule
from reducers.contract import EncodedText, Host, Reduced, Reducer, Signal, Signals

_SIGNALS = {"keys", "text", "sizes", "positions", "cross_attention"}


class FusionReduction(nn.Module):
    """Calls the reducer and keeps its record.

    Args:
        reducer: A method with ``placement: "fusion"``.
        schedule: When it acts (fusion layers, from 0) and how many patch tokens it leaves.
        grid: Rows and columns of the patch grid.
        width: W.
        heads: H.
        layers: Number of fusion layers a side.

    Raises:
        ValueError: The schedule does not fit, or the reducer needs what there is not here.
    """

    def __init__(
        self,
        reducer: Reducer,
        schedule: Schedule,
        grid: tuple[int, int],
        width: int,
        heads: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.reducer = reducer
        self.grid = grid
        self.plan: Plan = schedule.plan(grid[0] * grid[1], layers, "fusion")
        foreign = sorted(set(reducer.needs) - _SIGNALS)
        if foreign:
            raise ValueError(
                f"{type(reducer).__name__} acts in the fusion and needs {foreign}; the fusion can "
                f"give {sorted(_SIGNALS)}."
            )
        reducer.configure(Host(width, heads, layers, tuple(self.plan.keep), width))

    def reduces(self, level: int, image: EncodedImage) -> bool:
        """Whether anything is left to reduce at this level."""
        count = image.sizes.shape[1]
        return self.plan.keep.get(level, count) < count

    def forward(
        self, level: int, image: EncodedImage, text: EncodedText, query: Tensor, key: Tensor
    ) -> EncodedImage:
        """Reduce the image tokens at one level.

        Args:
            level: The fusion layer.
            image: The image, its tokens in the fusion width.
            text: The text side behind its cross-attention.
            query: [B,H,L,W/H], the cross-attention's queries (text).
            key: [B,H,1+N,W/H], its keys (image, CLS first).

        Raises:
            ValueError: The reducer broke its contract.
        """
        whole = self.reducer.includes_cls
        num_keep = self.plan.keep[level] + whole
        patches = image.tokens if whole else image.tokens[:, 1:]
        signals = self._signals(level, image, text, query, key)
        reduced = self.reducer(patches, num_keep, signals)
        check(self.reducer, reduced, patches, num_keep, padded=image.mask is not None)
        cls = image.tokens[:, :1]
        if whole:
            # What came first is CLS from here on; patches that went into it are none any more.
            cls = reduced.tokens[:, :1]
            assignment = (reduced.assignment[:, 1:] - 1).clamp(min=-1)
            mask = None if reduced.mask is None else reduced.mask[:, 1:]
            reduced = Reduced(reduced.tokens[:, 1:], assignment, mask, reduced.loss)
        return image.reduce(level, cls, reduced)

    def _signals(
        self, level: int, image: EncodedImage, text: EncodedText, query: Tensor, key: Tensor
    ) -> Signals:
        needs, start = self.reducer.needs, 0 if self.reducer.includes_cls else 1
        requested: dict[Signal, Any] = {"keys": key[:, :, start:], "text": text}
        if "cross_attention" in needs:
            logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
            if image.mask is not None:
                hidden = ~image.mask[:, None, None, :]
                logits = logits.masked_fill(hidden, torch.finfo(logits.dtype).min)
            attention = logits.softmax(dim=-1).mean(dim=1)
            requested["cross_attention"] = attention[:, :, start:]
        if "sizes" in needs:
            requested["sizes"] = F.pad(image.sizes, (1 - start, 0), value=1.0)
        if "positions" in needs:
            positions = image.positions(self.grid)
            requested["positions"] = F.pad(positions, (0, 0, 1 - start, 0))
        return Signals(
            cls=image.tokens[:, :1],
            stage=len(image.stages),
            layer=level,
            grid=self.grid,
            seeds=image.seeds,
            mask=None if image.mask is None else image.mask[:, start:],
            requested={name: signal for name, signal in requested.items() if name in needs},
            reader=type(self.reducer).__name__,
        )

    def reduce_text(self, text: EncodedText, key: Tensor) -> EncodedText:
        """Let the reducer reduce the text side, where it does that.

        Args:
            text: The text side behind its cross-attention.
            key: [B,H,L,W/H], the keys of its self-attention.
        """
        reduced = self.reducer.reduce_text(text.tokens, key, text.mask)
        if reduced is None:
            return text
        check(self.reducer, reduced, text.tokens, reduced.tokens.shape[1], padded=True)
        mask = reduced.mask
        if mask is None:
            mask = torch.ones_like(reduced.tokens[..., 0], dtype=torch.bool)
        return replace(text, tokens=reduced.tokens, mask=mask)
