"""The image encoder: a timm ViT whose blocks are driven here, with a reducer in place.

The encoder is the reducer's host: it owns CLS, the schedule, masks, token sizes and origins, and
computes the signals that the reducer asks for. Shape legend: B batch, P original patches,
N current patches, K kept, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from elip.model.guard import check
from elip.model.signals import BlockSignals, Heads, JointEmbeddings, Probe
from elip.schedule import Plan, Schedule
from reducers.contract import EncodedText, Host, Reduced, Reducer, Signal, Signals


@dataclass(frozen=True)
class ReductionStage:
    """What happened at one reduction layer.

    Attributes:
        layer: The block, 0-based.
        assignment: [B,N] int64, old token -> new token, or -1 where dropped.
        patch_to_token: [B,P] int64, original patch -> token that stands for it now, or -1.
    """

    layer: int
    assignment: Tensor
    patch_to_token: Tensor


@dataclass(frozen=True)
class EncodedImage:
    """Image tokens on their way through the encoder, or at its end.

    Attributes:
        tokens: [B,1+N,D] float, CLS first.
        block: The block that comes next.
        sizes: [B,N] float, how many original patches each token stands for.
        patch_to_token: [B,P] int64, the token that stands for each original patch, or -1.
        seeds: [B] int64, one seed an example, for reducers that draw at random.
        mask: [B,1+N] bool, True at tokens; None when all are.
        stages: The reductions so far.
        tokens_per_block: Patch tokens that entered each block so far.
        loss: Auxiliary loss of the reducer, if it has one.
    """

    tokens: Tensor
    block: int
    sizes: Tensor
    patch_to_token: Tensor
    seeds: Tensor
    mask: Tensor | None = None
    stages: tuple[ReductionStage, ...] = ()
    tokens_per_block: tuple[int, ...] = ()
    loss: Tensor | None = None

    def rows(self, index: Tensor | slice) -> EncodedImage:
        """Return the images at ``index``, which may repeat: one image then meets several texts."""
        return replace(
            self,
            tokens=self.tokens[index],
            sizes=self.sizes[index],
            patch_to_token=self.patch_to_token[index],
            seeds=self.seeds[index],
            mask=None if self.mask is None else self.mask[index],
            stages=tuple(
                ReductionStage(stage.layer, stage.assignment[index], stage.patch_to_token[index])
                for stage in self.stages
            ),
        )

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the mean row and column [B,N,2] of the patches that each token stands for."""
        dtype = self.sizes.dtype
        index = torch.arange(grid[0] * grid[1], device=self.tokens.device)
        places = torch.stack([index // grid[1], index % grid[1]], dim=1).to(dtype)
        alive = (self.patch_to_token >= 0).to(dtype).unsqueeze(-1)
        went = self.patch_to_token.clamp(min=0).unsqueeze(-1).expand(-1, -1, 2)
        total = torch.zeros(*self.sizes.shape, 2, device=index.device, dtype=dtype)
        return total.scatter_add(1, went, places * alive) / self.sizes.clamp(min=1).unsqueeze(-1)

    def reduce(self, layer: int, cls: Tensor, reduced: Reduced) -> EncodedImage:
        """Return the image behind a reduction: tokens, sizes, origins, mask and record.

        Args:
            layer: The block (or fusion layer) at which it happened.
            cls: [B,1,D], the CLS token.
            reduced: What the reducer returned.
        """
        went = reduced.assignment.clamp(min=0)
        alive = (reduced.assignment >= 0).to(self.sizes.dtype)
        sizes = torch.zeros_like(self.sizes[:, : reduced.tokens.shape[1]])
        sizes = sizes.scatter_add(1, went, self.sizes * alive)
        patch_to_token = reduced.assignment.gather(1, self.patch_to_token.clamp(min=0))
        patch_to_token = torch.where(self.patch_to_token >= 0, patch_to_token, self.patch_to_token)
        real = reduced.mask
        if real is None and self.mask is not None:
            real = sizes > 0
        losses = [loss for loss in (self.loss, reduced.loss) if loss is not None]
        return replace(
            self,
            tokens=torch.cat([cls, reduced.tokens], dim=1),
            sizes=sizes,
            patch_to_token=patch_to_token,
            mask=None if real is None else F.pad(real, (1, 0), value=True),
            stages=(*self.stages, ReductionStage(layer, reduced.assignment, patch_to_token)),
            loss=sum(losses[1:], losses[0]) if losses else None,
        )


class ImageEncoder(nn.Module):
    """A vision transformer with token reduction.

    Args:
        vit: The transformer; all of its blocks run, then its final norm.
        reducer: The method, or None for no reduction.
        schedule: When it acts and how many tokens it leaves.
        text_width: Width of the text encoder, for reducers that look at the text.

    Raises:
        ValueError: The schedule or the reducer does not fit this transformer.
    """

    def __init__(
        self, vit: VisionTransformer, reducer: Reducer | None, schedule: Schedule, text_width: int
    ) -> None:
        super().__init__()
        self.vit = vit
        self.reducer = reducer
        self.probe = Probe(vit.blocks)
        self.signals = BlockSignals(vit)
        self.joint_embeddings: JointEmbeddings | None = None
        self.grid: tuple[int, int] = vit.patch_embed.grid_size
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_blocks = len(vit.blocks)
        self.width: int = vit.embed_dim
        placement = "never" if reducer is None else reducer.placement
        self.plan: Plan = schedule.plan(self.num_patches, self.num_blocks, placement)
        self.layers = tuple(self.plan.keep)
        if reducer is not None:
            heads = vit.blocks[0].attn.num_heads
            reducer.configure(Host(self.width, heads, self.num_blocks, self.layers, text_width))

    @property
    def reads_text(self) -> bool:
        """Whether the image tokens depend on the text."""
        if self.reducer is None or self.reducer.placement == "fusion" or not self.layers:
            return False
        return not self.reducer.needs.isdisjoint({"text", "text_attention", "joint_embeddings"})

    def forward(
        self,
        image: Tensor | EncodedImage,
        text: EncodedText | None = None,
        seeds: Tensor | None = None,
        end: int | None = None,
    ) -> EncodedImage:
        """Encode images, or go on with images that are encoded in part.

        Args:
            image: [B,3,S,S] float, normalised pixels; or what an earlier call returned.
            text: The encoded text, for reducers that look at it.
            seeds: [B] int64, one seed an example, for reducers that draw at random.
            end: The block to stop before; None runs all of them and the final norm.

        Raises:
            ValueError: The reducer looks at the text and none was given.
        """
        if isinstance(image, Tensor):
            image = self._embed(image, seeds)
        end = self.num_blocks if end is None else end
        if end == self.num_blocks and self.reads_text and text is None:
            raise ValueError(f"{type(self.reducer).__name__} looks at the text; none was given.")
        for _ in range(image.block, end):
            image = self._block(image, text)
            if image.block == self.num_blocks:
                image = replace(image, tokens=self.vit.norm(image.tokens))
        return image

    def encode_prefix(self, pixels: Tensor, seeds: Tensor | None = None) -> EncodedImage:
        """Run what does not depend on the text, so that it can be shared between texts.

        That is all blocks before the first reduction layer where the reducer looks at the text,
        and everything where it does not.
        """
        # Called as a module, not as a method, so that the work is counted as the encoder's.
        end = self.layers[0] if self.reads_text else self.num_blocks
        begun: EncodedImage = self(pixels, seeds=seeds, end=end)
        return begun

    def encode_suffix(self, image: EncodedImage, text: EncodedText | None = None) -> EncodedImage:
        """Run what `encode_prefix` left.

        Raises:
            ValueError: The reducer looks at the text and none was given.
        """
        if image.block == self.num_blocks:
            # A call that computes nothing would make torch.compile give up on all later ones.
            return image
        finished: EncodedImage = self(image, text)
        return finished

    def _embed(self, pixels: Tensor, seeds: Tensor | None) -> EncodedImage:
        tokens = self.vit.patch_embed(pixels)
        tokens = self.vit.norm_pre(self.vit._pos_embed(tokens))
        batch, patches = tokens.shape[0], self.num_patches
        if seeds is None:
            seeds = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
        return EncodedImage(
            tokens=tokens,
            block=0,
            sizes=torch.ones(batch, patches, device=tokens.device),
            patch_to_token=torch.arange(patches, device=tokens.device).expand(batch, patches),
            seeds=seeds,
        )

    def _block(self, image: EncodedImage, text: EncodedText | None) -> EncodedImage:
        block, layer = self.vit.blocks[image.block], image.block
        reducing = self.plan.keep.get(layer, image.sizes.shape[1]) < image.sizes.shape[1]
        before = reducing and self.reducer is not None and self.reducer.placement == "before_block"
        if before:
            image = self._reduce(image, text, None)
        tokens_per_block = (*image.tokens_per_block, image.sizes.shape[1])
        if before or not reducing:
            tokens = block(image.tokens, attn_mask=self._bias(image))
            return replace(image, tokens=tokens, block=layer + 1, tokens_per_block=tokens_per_block)
        attended, heads = self._attend(block, image)
        image = replace(image, tokens=image.tokens + block.drop_path1(block.ls1(attended)))
        image = self._reduce(image, text, heads)
        tokens = image.tokens
        tokens = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
        return replace(image, tokens=tokens, block=layer + 1, tokens_per_block=tokens_per_block)

    def _bias(self, image: EncodedImage) -> Tensor | None:
        """Return what is added to the attention logits, [B,1,1,1+N]: log sizes and the mask."""
        proportional = self.reducer is not None and self.reducer.proportional_attention
        bias = None
        if proportional and image.stages:
            bias = F.pad(image.sizes.log(), (1, 0))[:, None, None, :]
        if image.mask is not None:
            floor = torch.finfo(image.tokens.dtype).min
            hidden = torch.zeros_like(image.mask, dtype=image.tokens.dtype)
            hidden = hidden.masked_fill(~image.mask, floor)[:, None, None, :]
            bias = hidden if bias is None else bias + hidden
        return None if bias is None else bias.to(image.tokens.dtype)

    def _attend(self, block: Block, image: EncodedImage) -> tuple[Tensor, Heads]:
        """Run a block's attention and keep its queries, keys and values [B,H,1+N,D/H]."""
        attention: Attention = block.attn
        batch, count, _ = image.tokens.shape
        qkv = attention.qkv(block.norm1(image.tokens))
        qkv = qkv.view(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        query, key = attention.q_norm(query), attention.k_norm(key)
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=self._bias(image))
        context = attention.norm(context.transpose(1, 2).reshape(batch, count, -1))
        return attention.proj(context), (query, key, value)

    def _reduce(
        self, image: EncodedImage, text: EncodedText | None, heads: Heads | None
    ) -> EncodedImage:
        assert self.reducer is not None
        num_keep = self.plan.keep[image.block]
        patches = image.tokens[:, 1:]
        reduced = self.reducer(patches, num_keep, self._signals(image, text, heads))
        check(self.reducer, reduced, patches, num_keep, padded=image.mask is not None)
        return image.reduce(image.block, image.tokens[:, :1], reduced)

    def _signals(
        self, image: EncodedImage, text: EncodedText | None, heads: Heads | None
    ) -> Signals:
        assert self.reducer is not None
        needs, layer, bias = self.reducer.needs, image.block, self._bias(image)

        def probe(cls: Tensor, patches: Tensor, depth: int) -> Tensor:
            scores: Tensor = self.probe(cls, patches, bias, layer, depth)
            return scores

        if text is None and self.reads_text:
            raise ValueError(
                f"{type(self.reducer).__name__} needs the text; give encode_image the encoded text."
            )
        tokens = None if text is None else text.tokens
        requested: dict[Signal, Any] = self.signals(needs, layer, image.tokens, bias, heads, tokens)
        if "probe" in needs:
            requested["probe"] = probe
        if "text" in needs:
            requested["text"] = text
        if "joint_embeddings" in needs:
            assert self.joint_embeddings is not None
            requested["joint_embeddings"] = self.joint_embeddings(image.tokens[:, 1:], tokens)
        if "sizes" in needs:
            requested["sizes"] = image.sizes
        if "positions" in needs:
            requested["positions"] = image.positions(self.grid)
        return Signals(
            cls=image.tokens[:, :1],
            stage=len(image.stages),
            layer=layer,
            grid=self.grid,
            seeds=image.seeds,
            mask=None if image.mask is None else image.mask[:, 1:],
            requested=requested,
            reader=type(self.reducer).__name__,
        )
