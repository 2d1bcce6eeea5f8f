"""The signals that the image encoder computes for a reducer, only on request.

To add a signal, name it in `reducers.contract` and add a method of that name to `_Block`. Shape
legend: B batch, N patches, L text length, H heads, D width, W fusion width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from elip.model import timm_shim
from elip.model.interface import EncodedImage
from elip.model.timm_shim import KEY, QUERY, VALUE, Heads
from reducers.contract import EncodedText, Signal
from reducers.contract import Probe as ProbeSignal

_WITH_KEYS = {"cls_attention", "head_attention", "attention_received", "text_attention", "keys"}
_WITH_QUERIES = {"cls_attention", "head_attention", "attention_received"}


class Probe(nn.Module):
    """Run later blocks without gradient to score patch tokens.

    A separate module, so that its cost is counted separately. The blocks stay the encoder's.
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
            cls: [B,1,D], the CLS token.
            patches: [B,N,D].
            bias: [B,1,1,1+N] added to the attention logits, or None.
            start: The first block to run.
            depth: Number of blocks, at least 1. Of the last block only the CLS row is computed.
        """
        tokens = torch.cat([cls, patches], dim=1)
        for block in self._blocks[start : start + depth - 1]:
            tokens = block(tokens, attn_mask=bias)
        return timm_shim.cls_attention(self._blocks[start + depth - 1], tokens, bias)


class BlockSignals(nn.Module):
    """Computes the signals at one block.

    A separate module, so that its cost is counted as the reducer's. It owns no parameters.

    Args:
        vit: The image encoder's transformer.
        image_projection: Projects image tokens to the fusion width.
        text_projection: Projects text tokens to the fusion width.
    """

    def __init__(
        self, vit: VisionTransformer, image_projection: nn.Module, text_projection: nn.Module
    ) -> None:
        super().__init__()
        self._blocks: tuple[Block, ...] = tuple(vit.blocks)
        self._projections = (vit.norm, image_projection, text_projection)

    def forward(
        self,
        needs: frozenset[Signal],
        image: EncodedImage,
        text: EncodedText | None,
        bias: Tensor | None,
        heads: Heads | None,
        grid: tuple[int, int],
        probe: ProbeSignal,
    ) -> dict[str, Any]:
        """Return the requested signals by name.

        Args:
            needs: Names of the signals.
            image: The image, with the tokens that enter the block.
            text: The encoded text.
            bias: [B,1,1,1+N] added to the attention logits, or None.
            heads: Queries, keys and values if the block's attention already ran.
            grid: Rows and columns of the patch grid.
            probe: Looks ahead from this block.
        """
        block = self._blocks[image.block]
        query, key, value = heads or _project(block, image.tokens, needs)
        view = _Block(
            block, image, text, bias, query, key, value, grid, probe, self._projections
        )  # fmt: skip
        return {name: getattr(view, name)() for name in sorted(needs)}


@dataclass(frozen=True)
class _Block:
    """One block, with one method per signal."""

    block: Block
    image: EncodedImage
    encoded_text: EncodedText | None
    bias: Tensor | None
    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    grid: tuple[int, int]
    look_ahead: ProbeSignal
    projections: tuple[nn.Module, nn.Module, nn.Module]

    def head_attention(self) -> Tensor:
        assert self.query is not None
        assert self.key is not None
        cls = self.query[:, :, :1]
        return timm_shim.attention_map(self.block, cls, self.key, self.bias)[:, :, 0, 1:]

    def cls_attention(self) -> Tensor:
        return self.head_attention().mean(dim=1)

    def attention_received(self) -> Tensor:
        assert self.query is not None
        assert self.key is not None
        return timm_shim.attention_received(self.block, self.query, self.key, self.bias)[:, 1:]

    def text_attention(self) -> Tensor:
        assert self.key is not None
        hidden = self.block.norm1(self.text().tokens[:, :1])
        query = timm_shim.project(self.block, hidden, QUERY)
        bias = None if self.bias is None else self.bias[..., 1:]
        attention = timm_shim.attention_map(self.block, query, self.key[:, :, 1:], bias)
        return attention[:, :, 0].mean(dim=1)

    def keys(self) -> Tensor:
        assert self.key is not None
        return self.key[:, :, 1:]

    def values(self) -> Tensor:
        assert self.value is not None
        return self.value[:, :, 1:]

    def text(self) -> EncodedText:
        assert self.encoded_text is not None
        return self.encoded_text

    def joint_embeddings(self) -> tuple[Tensor, Tensor]:
        norm, project_image, project_text = self.projections
        patches = project_image(norm(self.image.tokens[:, 1:]))
        return patches, project_text(self.text().tokens[:, :1])

    def probe(self) -> ProbeSignal:
        return self.look_ahead

    def sizes(self) -> Tensor:
        return self.image.sizes

    def positions(self) -> Tensor:
        return self.image.positions(self.grid)


def _project(
    block: Block, tokens: Tensor, needs: frozenset[Signal]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Compute only the queries, keys and values that the signals need."""
    if needs.isdisjoint(_WITH_KEYS | {"values"}):
        return None, None, None
    hidden = block.norm1(tokens)
    asking = hidden if "attention_received" in needs else hidden[:, :1]
    return (
        timm_shim.project(block, asking, QUERY) if needs & _WITH_QUERIES else None,
        timm_shim.project(block, hidden, KEY) if needs & _WITH_KEYS else None,
        timm_shim.project(block, hidden, VALUE) if "values" in needs else None,
    )
