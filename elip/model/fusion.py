"""METER's co-attention fusion: two streams that attend to themselves and to each other.

Source: Dou et al., 2022, arXiv:2111.02387, section 3.2 (co-attention, post-norm).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip.model.fusion_reduction import FusionReduction
from elip.model.image_encoder import EncodedImage
from reducers.contract import EncodedText

_EPS = 1e-12

Read = Literal["all", "pooled", "text"]
"""What a head reads of the fusion's output: all tokens of both streams; the two CLS tokens; the
tokens of the text stream. What is not read is not computed in the last layer."""

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values [B,H,N,W/H]."""


class Attention(nn.Module):
    """Multi-head attention with residual and layer norm behind it (post-norm).

    Args:
        width: W, width of both streams.
        heads: Attention heads.
        dropout: On attention weights and on the output.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, tokens: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        """Let ``tokens`` [B,N,W] attend to ``source`` [B,M,W]; ``mask`` [B,M] is True at tokens."""
        return self.attend(tokens, self.project(tokens, source), mask)

    def project(self, tokens: Tensor, source: Tensor) -> Heads:
        """Return queries of ``tokens``, and keys and values of ``source``."""
        batch, count, width = tokens.shape
        split = (self.heads, width // self.heads)
        query = self.query(tokens).view(batch, count, *split).transpose(1, 2)
        key, value = (
            self.key_value(source).view(batch, -1, 2, *split).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return query, key, value

    def attend(self, tokens: Tensor, heads: Heads, mask: Tensor | None) -> Tensor:
        """Attend with what `project` returned, add ``tokens``, and normalise."""
        query, key, value = heads
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        context = self.out(context.transpose(1, 2).reshape(tokens.shape))
        normed: Tensor = self.norm(tokens + F.dropout(context, self.dropout, self.training))
        return normed


class FeedForward(nn.Module):
    """Two linear maps with GELU between them, residual and layer norm behind (post-norm)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B,N,W] to [B,N,W]."""
        hidden = self.down(F.gelu(self.up(tokens)))
        normed: Tensor = self.norm(tokens + F.dropout(hidden, self.dropout, self.training))
        return normed


class CoAttentionLayer(nn.Module):
    """One layer of one stream: self-attention, cross-attention, feed-forward."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, dropout)

    def forward(
        self,
        tokens: Tensor,
        other: Tensor,
        mask: Tensor | None,
        other_mask: Tensor | None,
        rows: int | None = None,
    ) -> Tensor:
        """Run one layer.

        Args:
            tokens: [B,N,W] of this stream.
            other: [B,M,W] of the other stream, as the previous level left it.
            mask: [B,N] bool, True at tokens; None when all are.
            other_mask: [B,M] bool, likewise.
            rows: Compute only the first ``rows`` tokens; None computes all.
        """
        hidden = self.self_attention(tokens[:, :rows], tokens, mask)
        hidden = self.cross_attention(hidden, other, other_mask)
        output: Tensor = self.feed_forward(hidden)
        return output


class Fusion(nn.Module):
    """The two streams. Both layers of a level read what the previous level left.

    Args:
        width: W.
        layers: Levels.
        heads: Attention heads.
        dropout: Dropout.
        reduction: Reduces the image tokens on the way; None leaves them all.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        reduction: FusionReduction | None = None,
    ) -> None:
        super().__init__()
        self.text_layers = nn.ModuleList(
            CoAttentionLayer(width, heads, dropout) for _ in range(layers)
        )
        self.image_layers = nn.ModuleList(
            CoAttentionLayer(width, heads, dropout) for _ in range(layers)
        )
        self.reduction = reduction

    def forward(
        self, text: EncodedText, image: EncodedImage, read: Read
    ) -> tuple[Tensor, EncodedImage]:
        """Fuse [B,L,W] text and [B,1+N,W] image tokens.

        Returns:
            Text tokens, and the image with its tokens and record; as many tokens as ``read`` asks
            for. Where only text is read, the image is as the last layer but one left it.
        """
        last = len(self.text_layers) - 1
        for level, (text_layer, image_layer) in enumerate(
            zip(self.text_layers, self.image_layers, strict=True)
        ):
            before = text
            rows = 1 if level == last and read == "pooled" else None
            text_only = level == last and read == "text"
            reducing = self.reduction is not None and self.reduction.reduces(level, image)
            if reducing and not text_only:
                text, image = self._reducing_layer(level, text, image, read, rows)
            else:
                tokens = text_layer(text.tokens, image.tokens, text.mask, image.mask, rows)
                text = replace(text, tokens=tokens)
            if text_only:
                return text.tokens, image
            tokens = image_layer(image.tokens, before.tokens, image.mask, before.mask, rows)
            image = replace(image, tokens=tokens)
        return text.tokens, image

    def _reducing_layer(
        self, level: int, text: EncodedText, image: EncodedImage, read: Read, rows: int | None
    ) -> tuple[EncodedText, EncodedImage]:
        """Run a text layer that reduces the image, and the text where only its CLS is read.

        All text rows take part up to the reduction, since all of them choose.
        """
        assert self.reduction is not None
        layer = self.text_layers[level]
        assert isinstance(layer, CoAttentionLayer)
        heads = layer.self_attention.project(text.tokens, text.tokens)
        hidden = layer.self_attention.attend(text.tokens, heads, text.mask)
        cross = layer.cross_attention.project(hidden, image.tokens)
        hidden = layer.cross_attention.attend(hidden, cross, image.mask)
        text = replace(text, tokens=hidden)
        image = self.reduction(level, image, text, cross[0], cross[1])
        if read == "pooled" and rows is None:
            text = self.reduction.reduce_text(text, heads[1])
        return replace(text, tokens=layer.feed_forward(text.tokens[:, :rows])), image


class Pooler(nn.Module):
    """tanh(linear(CLS)): [B,N,W] -> [B,W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool the first token."""
        return torch.tanh(self.dense(tokens[:, 0]))
