"""The image encoder: a timm ViT whose blocks are driven here, with a reducer in place.

The encoder is the reducer's host: it owns CLS, the schedule, masks, token sizes and origins, and
computes the signals that the reducer asks for. Shape legend: B batch, P original patches,
N current patches, K kept, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from elip.schedule import Plan, Schedule
from reducers.contract import Host, Reduced, Reducer, Signals, Text


@dataclass(frozen=True)
class Stage:
    """What happened at one reduction layer.

    Attributes:
        layer: The block, 0-based.
        assignment: [B,N] int64, old token -> new token, or -1 where dropped.
        origin: [B,P] int64, original patch -> token that stands for it now, or -1.
    """

    layer: int
    assignment: Tensor
    origin: Tensor


@dataclass(frozen=True)
class EncodedImage:
    """Image tokens on their way through the encoder, or at its end.

    Attributes:
        tokens: [B,1+N,D] float, CLS first.
        block: The block that comes next.
        sizes: [B,N] float, how many original patches each token stands for.
        origin: [B,P] int64, the token that stands for each original patch, or -1.
        seeds: [B] int64, one seed an example, for reducers that draw at random.
        mask: [B,1+N] bool, True at tokens; None when all are.
        stages: The reductions so far.
        entering: Patch tokens that entered each block so far.
        loss: Auxiliary loss of the reducer, if it has one.
    """

    tokens: Tensor
    block: int
    sizes: Tensor
    origin: Tensor
    seeds: Tensor
    mask: Tensor | None = None
    stages: tuple[Stage, ...] = ()
    entering: tuple[int, ...] = ()
    loss: Tensor | None = None

    def rows(self, index: Tensor | slice) -> EncodedImage:
        """Return the images at ``index``, which may repeat: one image then meets several texts."""
        return replace(
            self,
            tokens=self.tokens[index],
            sizes=self.sizes[index],
            origin=self.origin[index],
            seeds=self.seeds[index],
            mask=None if self.mask is None else self.mask[index],
            stages=tuple(
                Stage(stage.layer, stage.assignment[index], stage.origin[index])
                for stage in self.stages
            ),
        )


class Probe(nn.Module):
    """Look ahead through the encoder's own blocks, without gradient, to score patch tokens.

    A module of its own so that its cost is counted as the probe's. The blocks are borrowed, not
    registered: their parameters belong to the encoder.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        super().__init__()
        self._blocks = tuple(blocks)

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
        return cls_attention_of(last, tokens, bias)


def cls_attention_of(block: Block, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Return the head-mean attention [B,N] of CLS to the patches that ``block`` would compute.

    Only the query of CLS and the keys are computed: ``mean_h softmax(q_cls k^T / sqrt(d))``.
    """
    attention: Attention = block.attn
    batch, count, _ = tokens.shape
    width, heads = attention.attn_dim, attention.num_heads
    hidden = block.norm1(tokens)
    weight, offset = attention.qkv.weight, attention.qkv.bias
    query = F.linear(hidden[:, :1], weight[:width], None if offset is None else offset[:width])
    key = F.linear(
        hidden, weight[width : 2 * width], None if offset is None else offset[width : 2 * width]
    )
    query = attention.q_norm(query.view(batch, 1, heads, -1).transpose(1, 2))
    key = attention.k_norm(key.view(batch, count, heads, -1).transpose(1, 2))
    return _cls_row(query, key, attention.scale, bias)


def _cls_row(query: Tensor, key: Tensor, scale: float, bias: Tensor | None) -> Tensor:
    logits = (query * scale) @ key.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1).mean(dim=1)[:, 0, 1:]


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
        self.grid: tuple[int, int] = vit.patch_embed.grid_size
        self.num_patches = self.grid[0] * self.grid[1]
        self.num_blocks = len(vit.blocks)
        self.width: int = vit.embed_dim
        acts = "never" if reducer is None else reducer.acts
        self.plan: Plan = schedule.plan(self.num_patches, self.num_blocks, acts)
        self.layers = tuple(self.plan.keep)
        if reducer is not None:
            heads = vit.blocks[0].attn.num_heads
            reducer.bind(Host(self.width, heads, self.num_blocks, self.layers, text_width))

    @property
    def reads_text(self) -> bool:
        """Whether the image tokens depend on the text."""
        return self.reducer is not None and "text" in self.reducer.needs and bool(self.layers)

    def forward(
        self, pixels: Tensor, text: Text | None = None, seeds: Tensor | None = None
    ) -> EncodedImage:
        """Encode normalised pixels [B,3,S,S].

        Args:
            pixels: Float, normalised.
            text: The encoded text, for reducers that look at it.
            seeds: [B] int64, one seed an example, for reducers that draw at random.
        """
        return self.finish(self.begin(pixels, seeds), text)

    def begin(self, pixels: Tensor, seeds: Tensor | None = None) -> EncodedImage:
        """Run what does not depend on the text, so that it can be shared between texts.

        That is all blocks before the first reduction layer where the reducer looks at the text,
        and everything where it does not.
        """
        tokens = self.vit.patch_embed(pixels)
        tokens = self.vit.norm_pre(self.vit._pos_embed(tokens))
        batch, patches = tokens.shape[0], self.num_patches
        if seeds is None:
            seeds = torch.zeros(batch, dtype=torch.int64, device=tokens.device)
        image = EncodedImage(
            tokens=tokens,
            block=0,
            sizes=tokens.new_ones(batch, patches),
            origin=torch.arange(patches, device=tokens.device).expand(batch, patches),
            seeds=seeds,
        )
        return self._run(image, None, self.layers[0] if self.reads_text else self.num_blocks)

    def finish(self, image: EncodedImage, text: Text | None = None) -> EncodedImage:
        """Run what `begin` left.

        Raises:
            ValueError: The reducer looks at the text and none was given.
        """
        if self.reads_text and text is None:
            raise ValueError(f"{type(self.reducer).__name__} looks at the text; none was given.")
        return self._run(image, text, self.num_blocks)

    def _run(self, image: EncodedImage, text: Text | None, end: int) -> EncodedImage:
        """Run the blocks up to ``end``, and the final norm behind the last."""
        for _ in range(image.block, end):
            image = self._block(image, text)
            if image.block == self.num_blocks:
                image = replace(image, tokens=self.vit.norm(image.tokens))
        return image

    def _block(self, image: EncodedImage, text: Text | None) -> EncodedImage:
        block, layer = self.vit.blocks[image.block], image.block
        reducing = self.plan.keep.get(layer, image.sizes.shape[1]) < image.sizes.shape[1]
        before = reducing and self.reducer is not None and self.reducer.acts == "before_block"
        if before:
            image = self._reduce(image, text, None)
        entering = (*image.entering, image.sizes.shape[1])
        if before or not reducing:
            tokens = block(image.tokens, attn_mask=self._bias(image))
            return replace(image, tokens=tokens, block=layer + 1, entering=entering)
        attended, heads = self._attend(block, image)
        image = replace(image, tokens=image.tokens + block.drop_path1(block.ls1(attended)))
        image = self._reduce(image, text, heads)
        tokens = image.tokens
        tokens = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
        return replace(image, tokens=tokens, block=layer + 1, entering=entering)

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

    def _attend(
        self, block: Block, image: EncodedImage
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
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
        self,
        image: EncodedImage,
        text: Text | None,
        heads: tuple[Tensor, Tensor, Tensor] | None,
    ) -> EncodedImage:
        assert self.reducer is not None
        num_keep = self.plan.keep[image.block]
        patches = image.tokens[:, 1:]
        signals = self._signals(image, text, heads)
        reduced = self.reducer(patches, num_keep, signals)
        self._check(reduced, patches, num_keep)
        went = reduced.assignment.clamp(min=0)
        alive = (reduced.assignment >= 0).to(image.sizes.dtype)
        sizes = torch.zeros_like(image.sizes[:, :num_keep]).scatter_add(
            1, went, image.sizes * alive
        )
        origin = reduced.assignment.gather(1, image.origin.clamp(min=0))
        origin = torch.where(image.origin >= 0, origin, image.origin)
        mask = None
        if reduced.mask is not None:
            mask = F.pad(reduced.mask, (1, 0), value=True)
        losses = [loss for loss in (image.loss, reduced.loss) if loss is not None]
        return replace(
            image,
            tokens=torch.cat([image.tokens[:, :1], reduced.tokens], dim=1),
            sizes=sizes,
            origin=origin,
            mask=mask,
            stages=(*image.stages, Stage(image.block, reduced.assignment, origin)),
            loss=sum(losses[1:], losses[0]) if losses else None,
        )

    def _signals(
        self,
        image: EncodedImage,
        text: Text | None,
        heads: tuple[Tensor, Tensor, Tensor] | None,
    ) -> Signals:
        assert self.reducer is not None
        needs, layer = self.reducer.needs, image.block
        block, bias = self.vit.blocks[layer], self._bias(image)

        def probe(cls: Tensor, patches: Tensor, depth: int) -> Tensor:
            scores: Tensor = self.probe(cls, patches, bias, layer, depth)
            return scores

        cls = image.tokens[:, :1]
        attention = keys = values = None
        if heads is not None:
            query, key, value = heads
            keys, values = key[:, :, 1:], value[:, :, 1:]
            if "cls_attention" in needs:
                attention = _cls_row(query[:, :, :1], key, block.attn.scale, bias)
        elif "cls_attention" in needs:
            attention = probe(cls, image.tokens[:, 1:], 1)
        return Signals(
            cls=cls,
            stage=len(image.stages),
            layer=layer,
            grid=self.grid,
            seeds=image.seeds,
            cls_attention=attention,
            keys=keys if "keys" in needs else None,
            values=values if "values" in needs else None,
            text=text if "text" in needs else None,
            probe=probe if "probe" in needs else None,
            sizes=image.sizes if "sizes" in needs else None,
            positions=self._positions(image) if "positions" in needs else None,
        )

    def _positions(self, image: EncodedImage) -> Tensor:
        """Return the mean row and column [B,N,2] of the patches that each token stands for."""
        device, dtype = image.tokens.device, image.sizes.dtype
        index = torch.arange(self.num_patches, device=device)
        places = torch.stack([index // self.grid[1], index % self.grid[1]], dim=1).to(dtype)
        alive = (image.origin >= 0).to(dtype)
        went = image.origin.clamp(min=0).unsqueeze(-1).expand(-1, -1, 2)
        total = torch.zeros(*image.sizes.shape, 2, device=device, dtype=dtype)
        total = total.scatter_add(1, went, places * alive.unsqueeze(-1))
        return total / image.sizes.clamp(min=1).unsqueeze(-1)

    def _check(self, reduced: Reduced, patches: Tensor, num_keep: int) -> None:
        name = type(self.reducer).__name__
        want = (patches.shape[0], num_keep, patches.shape[2])
        if tuple(reduced.tokens.shape) != want:
            raise ValueError(
                f"Reducer {name} broke its contract: it was to return tokens of shape {want} and "
                f"returned {tuple(reduced.tokens.shape)}."
            )
        if tuple(reduced.assignment.shape) != tuple(patches.shape[:2]):
            raise ValueError(
                f"Reducer {name} broke its contract: its assignment was to have the shape "
                f"{tuple(patches.shape[:2])} and has {tuple(reduced.assignment.shape)}."
            )
