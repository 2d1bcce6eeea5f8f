"""All code that depends on the internals of timm's vision transformer.

Reducers act inside a block and read its attention, which timm does not return. Queries, keys and
values cost nothing extra here; an attention map does. Shape legend: B batch, M queries, N tokens
(including CLS), D width, H heads.
"""

from __future__ import annotations

from functools import partial

import timm
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from elip.model.config import Sizes
from elip.model.initialise import initialise

Heads = tuple[Tensor, Tensor, Tensor]
"""Queries, keys and values [B,H,N,D/H] of a block."""

QUERY, KEY, VALUE = 0, 1, 2


def build_vit(sizes: Sizes) -> VisionTransformer:
    """Build the vision transformer with random weights.

    Raises:
        ValueError: The timm model is unknown or not a `VisionTransformer` with one CLS token.
    """
    name = sizes.image_encoder
    if name == "vit":
        vit = VisionTransformer(
            img_size=sizes.image_size,
            patch_size=sizes.patch_size,
            embed_dim=sizes.image_width,
            depth=sizes.image_blocks or 0,
            num_heads=sizes.image_heads,
            num_classes=0,
            global_pool="",
            pre_norm=True,
            act_layer="quick_gelu",
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
        )
        vit.blocks.apply(initialise)
        return vit
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0]}*")[:3]
        hint = f" Similar names: {near}." if near else ""
        raise ValueError(f"image_encoder {name!r} is neither 'vit' nor a timm model.{hint}")
    with torch.device("meta"):
        whole = timm.create_model(name, pretrained=False)
    if not isinstance(whole, VisionTransformer) or whole.num_prefix_tokens != 1:
        raise ValueError(
            f"image_encoder {name!r} is a {type(whole).__name__}; METER needs a timm "
            "VisionTransformer with one CLS token and no register tokens."
        )
    named: VisionTransformer = timm.create_model(
        name,
        pretrained=False,
        img_size=sizes.image_size,
        num_classes=0,
        depth=sizes.image_blocks or len(whole.blocks) - 1,
        global_pool="",
    )
    return named


def embed(vit: VisionTransformer, pixels: Tensor) -> Tensor:
    """Embed pixels [B,3,S,S] as the tokens [B,N,D] of the first block."""
    tokens: Tensor = vit.norm_pre(vit._pos_embed(vit.patch_embed(pixels)))
    return tokens


def attend(block: Block, tokens: Tensor, bias: Tensor | None) -> tuple[Tensor, Heads]:
    """Run the attention half of a block; also return its queries, keys and values."""
    attention: Attention = block.attn
    batch, count, _ = tokens.shape
    qkv = attention.qkv(block.norm1(tokens))
    qkv = qkv.view(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    query, key = attention.q_norm(query), attention.k_norm(key)
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    context = attention.norm(context.transpose(1, 2).reshape(batch, count, -1))
    attended = tokens + block.drop_path1(block.ls1(attention.proj(context)))
    return attended, (query, key, value)


def feed_forward(block: Block, tokens: Tensor) -> Tensor:
    """Run the feed-forward half of a block."""
    output: Tensor = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
    return output


def project(block: Block, hidden: Tensor, which: int) -> Tensor:
    """Project normalised tokens [B,M,D] to a block's queries, keys or values [B,H,M,D/H]."""
    attention: Attention = block.attn
    width = attention.attn_dim
    rows = slice(which * width, (which + 1) * width)
    bias = None if attention.qkv.bias is None else attention.qkv.bias[rows]
    part: Tensor = F.linear(hidden, attention.qkv.weight[rows], bias)
    part = part.view(*hidden.shape[:2], attention.num_heads, -1).transpose(1, 2)
    norm = {QUERY: attention.q_norm, KEY: attention.k_norm}.get(which)
    normed: Tensor = part if norm is None else norm(part)
    return normed


def attention_map(block: Block, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``softmax(q k^T * scale + bias)``: [B,H,M,N]."""
    logits = (query * block.attn.scale) @ key.transpose(-2, -1)
    attention: Tensor = (logits if bias is None else logits + bias).softmax(dim=-1)
    return attention


def cls_attention(block: Block, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """Return only the mean attention [B,N-1] over heads from CLS to the patches."""
    hidden = block.norm1(tokens)
    query, key = project(block, hidden[:, :1], QUERY), project(block, hidden, KEY)
    return attention_map(block, query, key, bias)[:, :, 0, 1:].mean(dim=1)


def attention_received(block: Block, query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Return the attention [B,N] that each token receives, averaged over heads and queries."""
    heads = query.shape[1]
    # On a CPU, one head at a time stays in the cache and is twice as fast.
    step = 1 if query.device.type == "cpu" else heads
    parts = zip(query.split(step, dim=1), key.split(step, dim=1), strict=True)
    maps = (attention_map(block, some, its_keys, bias) for some, its_keys in parts)
    total: Tensor = sum(each.mean(dim=2).sum(dim=1) for each in maps)  # type: ignore[assignment]
    return total / heads
