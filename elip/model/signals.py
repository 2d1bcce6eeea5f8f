"""What the image encoder computes for a reducer, each signal only when it is asked for.

Shape legend: B batch, N patches, H heads, D width. Attention here is computed beside the blocks'
own fused attention, from the same queries and keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from reducers.contract import Signal

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values [B,H,1+N,D/H] of a block."""

_QUERY, _KEY, _VALUE = 0, 1, 2
_WITH_KEYS = {"cls_attention", "head_attention", "attention_received", "text_attention", "keys"}
_WITH_QUERIES = {"cls_attention", "head_attention", "attention_received"}


class Probe(nn.Module):
    """Look ahead through the encoder's own blocks, without gradient, to score patch tokens.

    A module of its own so that its cost is counted as the probe's. The blocks are borrowed, not
    registered: their parameters belong to the encoder.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self._blocks: tuple[Block, ...] = tuple(blocks)

    @torch.no_grad()
    def forward(
        self, cls: Tensor, patches: Tensor, bias: Tensor | None, start: int, depth: int
    ) -> Tensor:
        """Return the CLS attention [B,N] of block ``start + depth - 1``.

        Args:
            cls: [B,1,D], the CLS to look with.
            patches: [B,N,D].
            bias: [B,1,1,1+N] added to the attention logits, or None.
            start: The first block to run.
            depth: How many blocks to run, at least 1; of the last only the CLS row is computed.
        """
        tokens = torch.cat([cls, patches], dim=1)
        for block in self._blocks[start : start + depth - 1]:
            tokens = block(tokens, attn_mask=bias)
        last = self._blocks[start + depth - 1]
        hidden = last.norm1(tokens)
        query, key = _part(last, hidden[:, :1], _QUERY), _part(last, hidden, _KEY)
        return _attention(query, key, last.attn.scale, bias)[:, :, 0, 1:].mean(dim=1)


class JointEmbeddings(nn.Module):
    """Patches and text CLS in METER's fusion width, where the two meet.

    The projections are borrowed, not registered.
    """

    def __init__(self, norm: nn.Module, image: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self._norm, self._image, self._text = (norm,), (image,), (text,)

    def forward(self, patches: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Map patches [B,N,D] and text tokens [B,L,Dt] to [B,N,W] and [B,1,W]."""
        return self._image[0](self._norm[0](patches)), self._text[0](text[:, :1])


class BlockSignals(nn.Module):
    """Signals that come out of one block's attention.

    A module of its own so that its cost is counted as the reducer's. The blocks are borrowed.

    Args:
        vit: The image encoder's transformer.
    """

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self._blocks: tuple[Block, ...] = tuple(vit.blocks)

    def forward(
        self,
        needs: frozenset[Signal],
        layer: int,
        tokens: Tensor,
        bias: Tensor | None,
        heads: Heads | None,
        text: Tensor | None,
    ) -> dict[Signal, Tensor]:
        """Compute the signals of a block that ``needs`` names.

        Args:
            needs: The signals that are wanted; those of other sources are ignored.
            layer: The block.
            tokens: [B,1+N,D], the tokens that enter the block.
            bias: [B,1,1,1+N] added to the attention logits, or None.
            heads: The block's queries, keys and values where it ran already; otherwise what is
                needed of them is computed here.
            text: [B,L,D], the text's tokens.
        """
        block = self._blocks[layer]
        query, key, value = heads or _project(block, tokens, needs)
        found: dict[Signal, Tensor] = {}
        if "cls_attention" in needs or "head_attention" in needs:
            assert query is not None
            assert key is not None
            by_head = _attention(query[:, :, :1], key, block.attn.scale, bias)[:, :, 0, 1:]
            found["head_attention"] = by_head
            found["cls_attention"] = by_head.mean(dim=1)
        if "attention_received" in needs:
            assert query is not None
            assert key is not None
            received = _received(query, key, block.attn.scale, bias)
            found["attention_received"] = received[:, 1:]
        if "text_attention" in needs:
            assert text is not None
            assert key is not None
            asking = _part(block, block.norm1(text[:, :1]), _QUERY)
            over = None if bias is None else bias[..., 1:]
            steered = _attention(asking, key[:, :, 1:], block.attn.scale, over)[:, :, 0]
            found["text_attention"] = steered.mean(dim=1)
        if key is not None:
            found["keys"] = key[:, :, 1:]
        if value is not None:
            found["values"] = value[:, :, 1:]
        return {name: signal for name, signal in found.items() if name in needs}


def _project(
    block: Block, tokens: Tensor, needs: frozenset[Signal]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute of a block's queries, keys and values what ``needs`` takes."""
    hidden = block.norm1(tokens)
    asking = hidden if "attention_received" in needs else hidden[:, :1]
    return (
        _part(block, asking, _QUERY) if needs & _WITH_QUERIES else None,
        _part(block, hidden, _KEY) if needs & _WITH_KEYS else None,
        _part(block, hidden, _VALUE) if "values" in needs else None,
    )


def _part(block: Block, hidden: Tensor, which: int) -> Tensor:
    """Project normalised tokens [B,M,D] to this block's queries, keys or values [B,H,M,D/H]."""
    attention: Attention = block.attn
    width = attention.attn_dim
    rows = slice(which * width, (which + 1) * width)
    bias = None if attention.qkv.bias is None else attention.qkv.bias[rows]
    part: Tensor = F.linear(hidden, attention.qkv.weight[rows], bias)
    part = part.view(*hidden.shape[:2], attention.num_heads, -1).transpose(1, 2)
    if which == _QUERY:
        part = attention.q_norm(part)
    elif which == _KEY:
        part = attention.k_norm(part)
    return part


def _attention(query: Tensor, key: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Return ``softmax(q k^T * scale + bias)``: [B,H,M,1+N]."""
    logits = (query * scale) @ key.transpose(-2, -1)
    return (logits if bias is None else logits + bias).softmax(dim=-1)


def _received(query: Tensor, key: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    """Return the attention [B,1+N] that each token receives, mean over heads and queries.

    One head at a time: its map stays in a CPU's cache, where the maps of all heads together take
    four times as long and twelve times the memory.
    """
    total = torch.zeros_like(query[:, 0, :, 0])
    for head in range(query.shape[1]):
        one = slice(head, head + 1)
        total = total + _attention(query[:, one], key[:, one], scale, bias).mean(dim=(1, 2))
    return total / query.shape[1]
