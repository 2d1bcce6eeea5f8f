"""The image encoder: the blocks of a timm ViT with a token reducer between or inside them.

The encoder keeps CLS, the schedule, masks, token sizes and the map from patches to tokens, and
computes the reducer's signals. Shape legend: B batch, P original patches, N current patches,
K kept, D width, S image size.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from elip.model import timm_shim
from elip.model.guard import reduce
from elip.model.interface import EncodedImage
from elip.model.signals import BlockSignals, Probe
from elip.schedule import Schedule
from reducers import Identity
from reducers.contract import EncodedText, Host, Reducer

_OF_THE_TEXT = {"text", "text_attention", "joint_embeddings"}


class PatchEmbedding(nn.Module):
    """Embeds pixels as the tokens of the first block; owns no parameters."""

    def __init__(self, vit: VisionTransformer) -> None:
        super().__init__()
        self._vit = (vit,)

    def forward(self, pixels: Tensor, seeds: Tensor | None) -> EncodedImage:
        """Embed normalised pixels [B,3,S,S] with seeds [B] int64."""
        tokens = timm_shim.embed(self._vit[0], pixels)
        batch, patches = tokens.shape[0], tokens.shape[1] - 1
        if seeds is None:
            seeds = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
        return EncodedImage(
            tokens=tokens,
            block=0,
            sizes=torch.ones(batch, patches, device=tokens.device),
            patch_to_token=torch.arange(patches, device=tokens.device).expand(batch, patches),
            seeds=seeds,
        )


class ImageEncoder(nn.Module):
    """A vision transformer with token reduction.

    Args:
        vit: The transformer; all its blocks run, then its final norm.
        signals: Computes the reducer's signals.
        text_width: Width of the text encoder, for reducers that read the text.
    """

    def __init__(self, vit: VisionTransformer, signals: BlockSignals, text_width: int) -> None:
        super().__init__()
        self.vit = vit
        self.embed = PatchEmbedding(vit)
        self.probe = Probe(vit.blocks)
        self.signals = signals
        self.text_width = text_width
        self.grid: tuple[int, int] = vit.patch_embed.grid_size
        self.num_patches = self.grid[0] * self.grid[1]
        size, patch = vit.patch_embed.img_size[0], vit.patch_embed.patch_size[0]
        if size % patch:  # the encoder would never see the last pixels
            raise ValueError(
                f"image_size {size} is not a multiple of the image encoder's patch size {patch}; "
                f"use {size - size % patch} or {size - size % patch + patch}."
            )
        self.num_blocks = len(vit.blocks)
        self.width: int = vit.embed_dim
        self.reducer: Reducer = Identity()
        self.plan = Schedule().plan(self.num_patches, self.num_blocks, "never")

    def set_reduction(self, reducer: Reducer, schedule: Schedule) -> None:
        """Change the reducer and the schedule."""
        plan = schedule.plan(self.num_patches, self.num_blocks, reducer.placement)
        if reducer is not self.reducer or tuple(plan.keep) != tuple(self.plan.keep):
            heads, layers = self.vit.blocks[0].attn.num_heads, tuple(plan.keep)
            reducer.configure(Host(self.width, heads, self.num_blocks, layers, self.text_width))
        self.reducer, self.plan = reducer, plan

    @property
    def reads_text(self) -> bool:
        """Whether the image tokens depend on the text."""
        return bool(self.plan.keep) and not self.reducer.needs.isdisjoint(_OF_THE_TEXT)

    @property
    def prefix_end(self) -> int:
        """The first block that depends on the text; the number of blocks if none does."""
        return min(self.plan.keep) if self.reads_text else self.num_blocks

    @property
    def first_reduction(self) -> int:
        """The first block that reduces; the number of blocks if none does."""
        reducing = (layer for layer, keep in self.plan.keep.items() if keep < self.num_patches)
        return min(reducing, default=self.num_blocks)

    def forward(
        self,
        image: EncodedImage,
        text: EncodedText | None = None,
        end: int | None = None,
        record: dict[int, Tensor] | None = None,
    ) -> EncodedImage:
        """Continue to encode an embedded or partly encoded image.

        Args:
            image: The image.
            text: The encoded text, for reducers that read it.
            end: The block to stop before; None runs all blocks and the final norm.
            record: Receives the tokens that enter each block, up to the first reduction.

        Raises:
            ValueError: The reducer reads the text and ``text`` is None.
        """
        end = self.num_blocks if end is None else end
        if end == self.num_blocks and self.reads_text and text is None:
            raise ValueError(
                f"{type(self.reducer).__name__} needs the text; give encode_image the encoded text."
            )
        for _ in range(image.block, end):
            image = self._block(image, text)
            if image.block == self.num_blocks:
                image = replace(image, tokens=self.vit.norm(image.tokens))
            if record is not None and not image.stages:
                record[image.block] = image.tokens
        return image

    def _block(self, image: EncodedImage, text: EncodedText | None) -> EncodedImage:
        block, layer = self.vit.blocks[image.block], image.block
        reducing = self.plan.keep.get(layer, image.sizes.shape[1]) < image.sizes.shape[1]
        before = reducing and self.reducer.placement == "before_block"
        if before:
            image = self._reduce(image, text, None)
        counts = (*image.tokens_per_block, image.sizes.shape[1])
        if before or not reducing:
            tokens = block(image.tokens, attn_mask=self._bias(image))
        else:
            attended, heads = timm_shim.attend(block, image.tokens, self._bias(image))
            image = self._reduce(replace(image, tokens=attended), text, heads)
            tokens = timm_shim.feed_forward(block, image.tokens)
        return replace(image, tokens=tokens, block=layer + 1, tokens_per_block=counts)

    def _bias(self, image: EncodedImage) -> Tensor | None:
        """Return the term [B,1,1,1+N] added to the attention logits: log sizes and mask."""
        bias = None
        if self.reducer.proportional_attention and image.stages:
            bias = F.pad(image.sizes.log(), (1, 0))[:, None, None, :]
        if image.mask is not None:
            floor = torch.finfo(image.tokens.dtype).min
            hidden = torch.zeros_like(image.mask, dtype=image.tokens.dtype)
            hidden = hidden.masked_fill(~image.mask, floor)[:, None, None, :]
            bias = hidden if bias is None else bias + hidden
        return None if bias is None else bias.to(image.tokens.dtype)

    def _reduce(
        self, image: EncodedImage, text: EncodedText | None, heads: timm_shim.Heads | None
    ) -> EncodedImage:
        layer, bias = image.block, self._bias(image)

        def probe(cls: Tensor, patches: Tensor, depth: int) -> Tensor:
            scores: Tensor = self.probe(cls, patches, bias, layer, depth)
            return scores

        needs, requested = self.reducer.needs, {}
        if needs:
            requested = self.signals(needs, image, text, bias, heads, self.grid, probe)
        num_keep = self.plan.keep[layer]
        reduced = reduce(self.reducer, image, num_keep, layer, self.grid, requested)
        return image.reduce(layer, image.tokens[:, :1], reduced)
