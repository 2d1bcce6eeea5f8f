"""METER: image encoder with reduction, text encoder, co-attention fusion, poolers.

Source: Dou et al., An Empirical Study of Training End-to-End Vision-and-Language Transformers,
CVPR 2022, arXiv:2111.02387. Shape legend: B batch, L text length, N image tokens, D image width,
W fusion width, S image size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elip.data.batch import TextBatch
from elip.model.config import Sizes
from elip.model.fusion import Fusion, Pooler, Read
from elip.model.fusion_reduction import FusionReduction
from elip.model.guard import declared
from elip.model.image_encoder import EncodedImage, ImageEncoder, ReductionStage
from elip.model.signals import JointEmbeddings
from elip.model.text_encoder import TextEncoder, start_size, text_config
from elip.schedule import Plan, Schedule
from reducers.contract import EncodedText, Reducer

# Pixel statistics in [0, 1]: CLIP (Radford et al., 2021, arXiv:2103.00020) and ImageNet.
_PIXELS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class Fused:
    """What the fusion gives to a head.

    Attributes:
        text: [B,L,W] (or [B,1,W] when only CLS was read).
        image: [B,1+N,W] (or [B,1,W]); None when it was not read.
        pooled: [B,2W], pooled text CLS then pooled image CLS; None when only text was read.
        stages: The reductions of the image tokens, in the encoder or in the fusion.
        loss: Auxiliary loss of the reducer, if it has one.
    """

    text: Tensor
    image: Tensor | None
    pooled: Tensor | None
    stages: tuple[ReductionStage, ...] = ()
    loss: Tensor | None = None


class Meter(nn.Module):
    """The one fixed model.

    Args:
        sizes: All sizes.
        reducer: The token reducer, or None for no reduction.
        schedule: When it acts and how many tokens it leaves.
        vocab_size: The tokenizer's number of word pieces; ``sizes.vocab_size`` takes precedence.

    Raises:
        ValueError: Sizes, schedule and reducer do not fit each other; the message says which.
    """

    def __init__(
        self,
        sizes: Sizes,
        reducer: Reducer | None = None,
        schedule: Schedule | None = None,
        vocab_size: int | None = None,
    ) -> None:
        super().__init__()
        if vocab_size is not None and (sizes.vocab_size or vocab_size) < vocab_size:
            raise ValueError(
                f"model.meter.vocab_size is {sizes.vocab_size}, and the tokenizer has {vocab_size} "
                "word pieces; leave it out to take the tokenizer's."
            )
        if reducer is not None:
            declared(reducer)
        self.sizes = sizes
        self.width = width = sizes.fusion_width
        self.text = TextEncoder(text_config(sizes, vocab_size))
        vit = build_vit(sizes)
        schedule, heads = schedule or Schedule(), sizes.fusion_heads
        fused = reducer is not None and reducer.placement == "fusion"
        self.image = ImageEncoder(vit, None if fused else reducer, schedule, self.text.width)
        self.text_projection = nn.Linear(self.text.width, width)
        self.image_projection = nn.Linear(self.image.width, width)
        self.image.joint_embeddings = JointEmbeddings(
            vit.norm, self.image_projection, self.text_projection
        )
        # Row 0 text, row 1 the image, row 2 the second image of a pair.
        self.token_types = nn.Embedding(3, width)
        reduction = None
        if reducer is not None and fused:
            reduction = FusionReduction(
                reducer, schedule, self.image.grid, width, heads, sizes.fusion_layers
            )
        self.fusion = Fusion(width, sizes.fusion_layers, heads, sizes.dropout, reduction)
        self.text_pooler = Pooler(width)
        self.image_pooler = Pooler(width)
        mean, std = _PIXELS[sizes.pixels]
        self.pixel_mean = nn.Buffer(torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.pixel_std = nn.Buffer(torch.tensor(std).view(3, 1, 1), persistent=False)
        for module in (
            self.text_projection, self.image_projection, self.token_types, self.fusion,
            self.text_pooler, self.image_pooler,
        ):  # fmt: skip
            module.apply(initialise)

    @property
    def reducer(self) -> Reducer | None:
        """The token reducer, wherever it acts."""
        reduction = self.fusion.reduction
        return self.image.reducer if reduction is None else reduction.reducer

    @property
    def plan(self) -> Plan:
        """The token counts that the reducer is held to: of the blocks, or of the fusion layers."""
        reduction = self.fusion.reduction
        return self.image.plan if reduction is None else reduction.plan

    def set_schedule(self, schedule: Schedule) -> Plan:
        """Let the reducer keep other token counts from now on, at the same layers.

        Raises:
            ValueError: The schedule does not fit.
        """
        host = self.fusion.reduction or self.image
        blocks = len(host.plan.tokens_per_block) - 1
        placement = "never" if self.reducer is None else self.reducer.placement
        host.plan = schedule.plan(host.plan.num_patches, blocks, placement)
        return host.plan

    def recompute_activations(self) -> None:
        """Keep only what enters each block and layer; the backward pass computes the rest again.

        Less memory for about a third more arithmetic. Blocks that reduce keep everything.
        """
        parts = (self.image.vit.blocks, self.text.transformer.encoder.layer,
                 self.fusion.text_layers, self.fusion.image_layers)  # fmt: skip
        for layer in chain(*parts):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def encode_text(self, text: TextBatch) -> EncodedText:
        """Encode [B,L] token ids to [B,L,Dt] tokens, before the projection."""
        encoded: EncodedText = self.text(text)
        return encoded

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 pixels [B,3,S,S] into normalised floats; floats pass as they are."""
        if images.is_floating_point():
            return images
        dtype = self.pixel_mean.dtype
        return (images.to(dtype) / 255 - self.pixel_mean) / self.pixel_std

    def encode_image(
        self, images: Tensor, text: EncodedText | None = None, seeds: Tensor | None = None
    ) -> EncodedImage:
        """Encode images [B,3,S,S] (uint8, or normalised float), reducing tokens on the way.

        Args:
            images: The images.
            text: Their encoded texts, for reducers that look at them.
            seeds: [B] int64, one seed an example, for reducers that draw at random.
        """
        encoded: EncodedImage = self.image(self.normalise(images), text, seeds)
        return encoded

    def encode_prefix(self, images: Tensor, seeds: Tensor | None = None) -> EncodedImage:
        """Encode images [B,3,S,S] as far as no text can change them, to share that between texts.

        That is all blocks before the first reduction layer where the reducer looks at the text,
        and everything where it does not.

        Args:
            images: The images.
            seeds: [B] int64, one seed an example, for reducers that draw at random.
        """
        return self.image.encode_prefix(self.normalise(images), seeds)

    def encode_suffix(self, image: EncodedImage, text: EncodedText | None = None) -> EncodedImage:
        """Run what `encode_prefix` left.

        Raises:
            ValueError: The reducer looks at the text and none was given.
        """
        return self.image.encode_suffix(image, text)

    def fuse(
        self, text: EncodedText, image: EncodedImage, read: Read, image_type: int = 1
    ) -> Fused:
        """Fuse an encoded text and an encoded image.

        Args:
            text: [B,L,Dt].
            image: [B,1+N,D].
            read: What the head reads.
            image_type: Token type of the image: 1, or 2 for the second image of a pair.
        """
        texts = self.text_projection(text.tokens) + self.token_types.weight[0]
        images = self.image_projection(image.tokens) + self.token_types.weight[image_type]
        image = replace(image, tokens=images)
        texts, fused = self.fusion(EncodedText(texts, text.mask), image, read)
        if read == "text":
            return Fused(texts, None, None, fused.stages, fused.loss)
        pooled = torch.cat([self.text_pooler(texts), self.image_pooler(fused.tokens)], dim=-1)
        return Fused(texts, fused.tokens, pooled, fused.stages, fused.loss)

    @contextmanager
    def reduction_disabled(self) -> Iterator[None]:
        """Leave all reduction out for a while, to measure what the model costs without it."""
        image, fusion = self.image, self.fusion
        kept = (image.reducer, image.plan, image.layers, fusion.reduction)
        plan = Schedule().plan(image.num_patches, image.num_blocks, "never")
        image.reducer, image.plan, image.layers, fusion.reduction = None, plan, (), None
        try:
            yield
        finally:
            image.reducer, image.plan, image.layers, fusion.reduction = kept

    def forward(
        self,
        images: Tensor,
        text: TextBatch,
        read: Read = "pooled",
        seeds: Tensor | None = None,
    ) -> Fused:
        """Encode and fuse a batch of image-text pairs: text first, as it may steer the reducer."""
        encoded = self.encode_text(text)
        return self.fuse(encoded, self.encode_image(images, encoded, seeds), read)


def build_vit(sizes: Sizes) -> VisionTransformer:
    """Build the vision transformer with random weights.

    Raises:
        ValueError: The named timm model is unknown or not a `VisionTransformer` with CLS.
    """
    if sizes.image_encoder == "vit":
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
    name = sizes.image_encoder
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0]}*")[:3]
        hint = f" Near it: {near}." if near else ""
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


def initialise(module: nn.Module) -> None:
    """Start linear and embedding weights at N(0, s) and biases at 0.

    METER and BERT take s = 0.02 at a width of 768. Narrower layers get
    ``s = 0.02 * sqrt(768 / width)``, so that their outputs start at the same size; with 0.02 a
    small model's attention starts all but uniform and takes thousands of steps to leave that.
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=start_size(module.weight.shape[1]))
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
