"""METER's co-attention fusion: two streams that attend to themselves and to each other.

A reducer here acts after the cross-attention of a text layer. The reduced image enters the image
layer of the same level and all later layers. Shape legend: B batch, L text length, N image tokens
(including CLS), W width, H heads.

Source: Dou et al., 2022, arXiv:2111.02387, section 3.2 (co-attention, post-norm).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elip.model.fusion_reduction import FusionReduction
from elip.model.interface import (
    EncodedImage,
    OneSided,
    PreparedImage,
    PreparedText,
    Reading,
)

_EPS = 1e-12


class Attention(nn.Module):
    """Multi-head attention with a residual connection, then layer norm (post-norm)."""

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
        return self.attend(tokens, self.queries(tokens), *self.keys(self.key_value(source)), mask)

    def queries(self, tokens: Tensor) -> Tensor:
        """Return the queries [B,H,N,W/H] of tokens [B,N,W]."""
        query = self.query(tokens).unflatten(-1, (self.heads, -1))
        heads: Tensor = query.transpose(1, 2)
        return heads

    def keys(self, key_value: Tensor) -> tuple[Tensor, Tensor]:
        """Split the output [B,M,2W] of ``key_value`` into keys and values [B,H,M,W/H]."""
        split = key_value.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        key, value = split.unbind(0)
        return key, value

    def attend(
        self, tokens: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Attend, add ``tokens`` and normalise."""
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
    """Two linear maps with GELU between them and a residual connection, then layer norm."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=_EPS)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B,N,W] to [B,N,W]."""
        hidden = self.down(F.gelu(self.up(tokens)))
        normed: Tensor = self.norm(tokens + F.dropout(hidden, self.dropout, self.training))
        return normed


class CoAttentionLayer(nn.Module):
    """One layer of one stream: self-attention, cross-attention, feed-forward."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)

    def forward(
        self,
        tokens: Tensor,
        other: Tensor,
        mask: Tensor | None,
        other_mask: Tensor | None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """Run one layer.

        Args:
            tokens: [B,N,W] of this stream.
            other: [B,M,W] of the other stream, from the previous level.
            mask: [B,N] bool, True at real tokens; None if all are real.
            other_mask: [B,M] bool, likewise.
            rows: [B,K,W], the tokens to compute; None computes all.
        """
        hidden = self.self_attention(tokens if rows is None else rows, tokens, mask)
        hidden = self.cross_attention(hidden, other, other_mask)
        output: Tensor = self.feed_forward(hidden)
        return output

    def second_half(self, own: OneSided, other: OneSided, other_mask: Tensor | None) -> Tensor:
        """Run the rest of a layer after its one-sided part."""
        key, value = self.cross_attention.keys(other.key_value)
        hidden = self.cross_attention.attend(own.hidden, own.query, key, value, other_mask)
        output: Tensor = self.feed_forward(hidden)
        return output


class FirstLayer(nn.Module):
    """The one-sided part of the first level; ``own`` and ``other`` keep their parameters."""

    def __init__(self, own: CoAttentionLayer, other: CoAttentionLayer) -> None:
        super().__init__()
        self._own, self._other = (own,), (other,)

    def forward(self, tokens: Tensor, mask: Tensor | None) -> OneSided:
        """Run on tokens [B,N,W]; ``mask`` [B,N] is True at real tokens."""
        hidden = self._own[0].self_attention(tokens, tokens, mask)
        query = self._own[0].cross_attention.queries(hidden)
        return OneSided(hidden, query, self._other[0].cross_attention.key_value(tokens))


class Fusion(nn.Module):
    """The two streams. Both layers of a level read the output of the previous level.

    ``hidden`` is the width between the two linear maps of a feed-forward half.
    """

    def __init__(self, width: int, layers: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        made = [
            [CoAttentionLayer(width, heads, hidden, dropout) for _ in range(layers)]
            for _ in range(2)
        ]
        self.text_layers, self.image_layers = nn.ModuleList(made[0]), nn.ModuleList(made[1])
        self.first_text = FirstLayer(made[0][0], made[1][0])
        self.first_image = FirstLayer(made[1][0], made[0][0])
        self.reduction: FusionReduction | None = None

    @property
    def first_is_shared(self) -> bool:
        """Whether the first layer has a part that can be shared between pairs."""
        reduces = self.reduction is not None and 0 in self.reduction.plan.keep
        return len(self.text_layers) > 1 and not reduces

    def forward(
        self, text: PreparedText, image: PreparedImage, readings: Sequence[Reading]
    ) -> list[tuple[Tensor, EncodedImage]]:
        """Fuse texts and images row by row; return text tokens and image of each reading.

        All rows pass through the lower levels together. In the last level each reading computes
        only the tokens that it reads.
        """
        words, mask, seen = text.tokens, text.mask, image.image
        merges = all(each.read == "pooled" for each in readings)
        last = len(self.text_layers) - 1
        for level in range(last):
            text_layer, image_layer = self._layers(level)
            before, before_mask = words, mask
            if level == 0 and text.first is not None and image.first is not None:
                words = text_layer.second_half(text.first, image.first, seen.mask)
                tokens = image_layer.second_half(image.first, text.first, before_mask)
            elif self._reduces(level, seen):
                words, mask, seen = self._reducing_layer(level, words, mask, seen, merges)
                tokens = image_layer(seen.tokens, before, seen.mask, before_mask)
            else:
                words = text_layer(words, seen.tokens, mask, seen.mask)
                tokens = image_layer(seen.tokens, before, seen.mask, before_mask)
            seen = replace(seen, tokens=tokens)
        results, start = [], 0
        for reading in readings:
            part = slice(start, start + reading.rows)
            whole = reading.rows == len(words)
            results.append(
                self._last_level(
                    last,
                    words if whole else words[part],
                    mask if whole or mask is None else mask[part],
                    seen if whole else seen.rows(part),
                    reading,
                )
            )
            start += reading.rows
        return results

    def _layers(self, level: int) -> tuple[CoAttentionLayer, CoAttentionLayer]:
        text, image = self.text_layers[level], self.image_layers[level]
        assert isinstance(text, CoAttentionLayer)
        assert isinstance(image, CoAttentionLayer)
        return text, image

    def _reduces(self, level: int, image: EncodedImage) -> bool:
        return self.reduction is not None and self.reduction.reduces(level, image)

    def _last_level(
        self, level: int, words: Tensor, mask: Tensor | None, image: EncodedImage, reading: Reading
    ) -> tuple[Tensor, EncodedImage]:
        """Compute the tokens that are read; an image that is not read stays unchanged."""
        text_layer, image_layer = self._layers(level)
        if reading.read == "text":
            rows = None
            if reading.places is not None:
                index = reading.places.unsqueeze(-1).expand(-1, -1, words.shape[-1])
                rows = words.gather(1, index)
            return text_layer(words, image.tokens, mask, image.mask, rows), image
        cls_only = reading.read == "pooled"
        before = words
        if self._reduces(level, image):
            words, _, image = self._reducing_layer(level, words, mask, image, False, cls_only)
        else:
            rows = words[:, :1] if cls_only else None
            words = text_layer(words, image.tokens, mask, image.mask, rows)
        rows = image.tokens[:, :1] if cls_only else None
        tokens = image_layer(image.tokens, before, image.mask, mask, rows)
        return words, replace(image, tokens=tokens)

    def _reducing_layer(
        self,
        level: int,
        words: Tensor,
        mask: Tensor | None,
        image: EncodedImage,
        merges: bool,
        cls_only: bool = False,
    ) -> tuple[Tensor, Tensor | None, EncodedImage]:
        """Run a text layer that reduces the image, and the text if it may be merged.

        All text tokens are computed up to the reduction, because the reducer reads all of them.
        """
        assert self.reduction is not None
        layer, _ = self._layers(level)
        own, cross = layer.self_attention, layer.cross_attention
        own_key, own_value = own.keys(own.key_value(words))
        hidden = own.attend(words, own.queries(words), own_key, own_value, mask)
        query = cross.queries(hidden)
        key, value = cross.keys(cross.key_value(image.tokens))
        hidden = cross.attend(hidden, query, key, value, image.mask)
        image = self.reduction(level, image, hidden, mask, query, key)
        if merges:
            hidden, mask = self.reduction.reduce_text(hidden, mask, own_key)
        return layer.feed_forward(hidden[:, :1] if cls_only else hidden), mask, image


class Pooler(nn.Module):
    """tanh(linear(CLS)): [B,N,W] -> [B,W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool the first token."""
        return torch.tanh(self.dense(tokens[:, 0]))
