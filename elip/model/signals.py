"""The signals that the image encoder computes for a reducer, only on request.

To add a signal, name it in `reducers.contract` and compute it in `BlockSignals`. Shape legend:
B batch, N patches, L text length, H heads, D width, W fusion width.
"""

from __future__ import annotations

from collections.abc import Callable
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
        norm, project_image, project_text = self._projections

        def head_attention() -> Tensor:
            return timm_shim.attention_map(block, query[:, :, :1], key, bias)[:, :, 0, 1:]

        def text_attention() -> Tensor:
            hidden = block.norm1(text_cls())
            own = timm_shim.project(block, hidden, QUERY)
            among = None if bias is None else bias[..., 1:]
            attention = timm_shim.attention_map(block, own, key[:, :, 1:], among)
            return attention[:, :, 0].mean(dim=1)

        def text_cls() -> Tensor:
            assert text is not None
            return text.tokens[:, :1]

        compute: dict[Signal, Callable[[], object]] = {
            "head_attention": head_attention,
            "cls_attention": lambda: head_attention().mean(dim=1),
            "attention_received": lambda: timm_shim.attention_received(block, query, key, bias)[
                :, 1:
            ],
            "text_attention": text_attention,
            "keys": lambda: key[:, :, 1:],
            "values": lambda: value[:, :, 1:],
            "text": lambda: text,
            "joint_embeddings": lambda: (
                project_image(norm(image.tokens[:, 1:])), project_text(text_cls())
            ),
            "probe": lambda: probe,
            "sizes": lambda: image.sizes,
            "positions": lambda: image.positions(grid),
        }  # fmt: skip
        return {name: compute[name]() for name in sorted(needs)}


def _project(block: Block, tokens: Tensor, needs: frozenset[Signal]) -> tuple[Any, Any, Any]:
    """Compute only the queries, keys and values that the signals need; the others are None."""
    if needs.isdisjoint(_WITH_KEYS | {"values"}):
        return None, None, None
    hidden = block.norm1(tokens)
    asking = hidden if "attention_received" in needs else hidden[:, :1]
    return (
        timm_shim.project(block, asking, QUERY) if needs & _WITH_QUERIES else None,
        timm_shim.project(block, hidden, KEY) if needs & _WITH_KEYS else None,
        timm_shim.project(block, hidden, VALUE) if "values" in needs else None,
    )
