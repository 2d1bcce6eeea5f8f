"""METER's co-attention fusion: two streams that attend to themselves and to each other.

Source: Dou et al., 2022, arXiv:2111.02387, section 3.2 (co-attention, post-norm).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-12

Read = Literal["all", "pooled", "text"]
"""What a head reads of the fusion's output: all tokens of both streams; the two CLS tokens; the
tokens of the text stream. What is not read is not computed in the last layer."""


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
        batch, count, width = tokens.shape
        split = (self.heads, width // self.heads)
        query = self.query(tokens).view(batch, count, *split).transpose(1, 2)
        key, value = (
            self.key_value(source).view(batch, -1, 2, *split).permute(2, 0, 3, 1, 4).unbind(0)
        )
        context = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        context = self.out(context.transpose(1, 2).reshape(batch, count, width))
        return self.norm(tokens + F.dropout(context, self.dropout, self.training))


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
        return self.norm(tokens + F.dropout(hidden, self.dropout, self.training))


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
        return self.feed_forward(hidden)


class Fusion(nn.Module):
    """The two streams. Both layers of a level read what the previous level left.

    Args:
        width: W.
        layers: Levels.
        heads: Attention heads.
        dropout: Dropout.
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.text_layers = nn.ModuleList(
            CoAttentionLayer(width, heads, dropout) for _ in range(layers)
        )
        self.image_layers = nn.ModuleList(
            CoAttentionLayer(width, heads, dropout) for _ in range(layers)
        )

    def forward(
        self,
        text: Tensor,
        image: Tensor,
        text_mask: Tensor | None,
        image_mask: Tensor | None,
        read: Read,
    ) -> tuple[Tensor, Tensor | None]:
        """Fuse [B,L,W] text and [B,N,W] image tokens.

        Returns:
            Text and image tokens, as many as ``read`` asks for; None for a stream that is not read.
        """
        last = len(self.text_layers) - 1
        for level, (text_layer, image_layer) in enumerate(
            zip(self.text_layers, self.image_layers, strict=True)
        ):
            rows = 1 if level == last and read == "pooled" else None
            new_text = text_layer(text, image, text_mask, image_mask, rows)
            if level == last and read == "text":
                return new_text, None
            image = image_layer(image, text, image_mask, text_mask, rows)
            text = new_text
        return text, image


class Pooler(nn.Module):
    """tanh(linear(CLS)): [B,N,W] -> [B,W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool the first token."""
        return torch.tanh(self.dense(tokens[:, 0]))
