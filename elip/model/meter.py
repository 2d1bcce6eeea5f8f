"""METER: image encoder with reduction, text encoder, co-attention fusion, poolers.

`elip.model.interface` describes the flow of a batch and the shapes.

Source: Dou et al., An Empirical Study of Training End-to-End Vision-and-Language Transformers,
CVPR 2022, arXiv:2111.02387.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from elip.data.batch import TextBatch
from elip.model.config import Sizes
from elip.model.fusion import Fusion, Pooler
from elip.model.fusion_reduction import FusionReduction
from elip.model.guard import declared
from elip.model.image_encoder import ImageEncoder
from elip.model.initialise import initialise
from elip.model.interface import (
    EncodedImage,
    Fused,
    Group,
    PreparedImage,
    PreparedText,
    Read,
    Reading,
)
from elip.model.reuse import Encodings
from elip.model.signals import BlockSignals
from elip.model.text_encoder import TextEncoder, text_config
from elip.model.timm_shim import build_vit
from elip.schedule import Plan, Schedule
from reducers import Identity
from reducers.contract import EncodedText, Host, Reducer

# Pixel statistics in [0, 1]: CLIP (Radford et al., 2021, arXiv:2103.00020) and ImageNet.
_PIXELS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}

Reduction = tuple[Reducer, Plan, FusionReduction | None]
"""Reducer and plan of the image encoder, and the reduction in the fusion."""


class Meter(nn.Module):
    """METER with token reduction.

    Args:
        sizes: All sizes.
        reducer: The token reducer; None means `Identity`, no reduction.
        schedule: Where the reducer acts and how many tokens it keeps.
        vocab_size: The tokenizer's number of word pieces; ``sizes.vocab_size`` takes precedence.

    Raises:
        ValueError: Sizes, schedule and reducer do not fit together.
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
                "word pieces. Leave it out to use the tokenizer's."
            )
        self.sizes = sizes
        self.width = width = sizes.fusion_width
        self.text = TextEncoder(text_config(sizes, vocab_size))
        self.text_width, self.vocab_size = self.text.width, self.text.vocab_size
        vit = build_vit(sizes)
        self.text_projection = nn.Linear(self.text_width, width)
        self.image_projection = nn.Linear(vit.embed_dim, width)
        signals = BlockSignals(vit, self.image_projection, self.text_projection)
        self.image = ImageEncoder(vit, signals, self.text_width)
        # Row 0 text, row 1 the image, row 2 the second image of a pair.
        self.token_types = nn.Embedding(3, width)
        hidden = round(sizes.mlp_ratio * width)
        self.fusion = Fusion(width, sizes.fusion_layers, sizes.fusion_heads, hidden, sizes.dropout)
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
        self._reuse: Encodings | None = None
        self._listeners = OrderedDict[int, Callable[[Fused], None]]()
        self.set_reduction(reducer or Identity(), schedule or Schedule())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""
        return self.image.grid

    @property
    def reducer(self) -> Reducer:
        """The token reducer."""
        reduction = self.fusion.reduction
        return self.image.reducer if reduction is None else reduction.reducer

    @property
    def plan(self) -> Plan:
        """The token counts, per block or per fusion layer."""
        reduction = self.fusion.reduction
        return self.image.plan if reduction is None else reduction.plan

    @property
    def shares_prefix(self) -> bool:
        """Whether encoded images do not depend on the text."""
        return not self.image.reads_text

    def set_reduction(self, reducer: Reducer, schedule: Schedule) -> Plan:
        """Change the reducer and the schedule; the weights stay as they are.

        Raises:
            ValueError: The reducer or the schedule does not fit the model.
        """
        known = reducer is self.reducer
        if not known:
            declared(reducer)
            reducer.to(self.device).train(self.training)
        if reducer.placement != "fusion":
            self.image.set_reduction(reducer, schedule)
            self.fusion.reduction = None
            return self.plan
        heads, layers = self.sizes.fusion_heads, len(self.fusion.text_layers)
        plan = schedule.plan(self.image.num_patches, layers, "fusion")
        if not known or tuple(plan.keep) != tuple(self.plan.keep):
            reducer.configure(Host(self.width, heads, layers, tuple(plan.keep), self.width))
        reduction = FusionReduction(reducer, plan, self.grid)
        self.image.set_reduction(Identity(), schedule)
        self.fusion.reduction = reduction
        return plan

    @property
    def reduction(self) -> Reduction:
        """What `set_reduction` has set; assign it to return there at no cost."""
        return self.image.reducer, self.image.plan, self.fusion.reduction

    @reduction.setter
    def reduction(self, kept: Reduction) -> None:
        self.image.reducer, self.image.plan, self.fusion.reduction = kept

    @contextmanager
    def reduction_disabled(self) -> Iterator[None]:
        """Switch reduction off inside a ``with`` block."""
        kept, image = self.reduction, self.image
        plan = Schedule().plan(image.num_patches, image.num_blocks, "never")
        self.reduction = Identity(), plan, None
        try:
            yield
        finally:
            self.reduction = kept

    @contextmanager
    def reuse_encodings(self) -> Iterator[None]:
        """Cache what all reductions share: encoded texts, and images before the first reduction.

        `set_reduction` may be called inside. Results are bit-identical to those without the cache.
        Use it only without gradient, and do not change the weights.
        """
        self._reuse = Encodings()
        try:
            yield
        finally:
            self._reuse = None

    def encode_text(self, text: TextBatch) -> EncodedText:
        """Encode [B,L] token ids to [B,L,Dt] tokens."""
        if self._reuse is not None:
            return self._reuse.text(text, self.text)
        encoded: EncodedText = self.text(text)
        return encoded

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 pixels [B,3,S,S]; return floats unchanged."""
        if images.is_floating_point():
            return images
        dtype = self.pixel_mean.dtype
        return (images.to(dtype) / 255 - self.pixel_mean) / self.pixel_std

    def encode_image(
        self, images: Tensor, text: EncodedText | None = None, seeds: Tensor | None = None
    ) -> EncodedImage:
        """Encode images [B,3,S,S], uint8 or normalised float, to [B,1+N,D] tokens.

        A reducer that reads the text needs ``text``; a random one uses one seed per image.
        """
        return self._encode(images, text, seeds, None)

    def encode_prefix(self, images: Tensor, seeds: Tensor | None = None) -> EncodedImage:
        """Encode images up to the first block that depends on the text."""
        return self._encode(images, None, seeds, self.image.prefix_end)

    def encode_suffix(self, image: EncodedImage, text: EncodedText | None = None) -> EncodedImage:
        """Run the remaining blocks after `encode_prefix`."""
        if image.block == self.image.num_blocks:
            return image
        encoded: EncodedImage = self.image(image, text)
        return encoded

    def _encode(
        self, images: Tensor, text: EncodedText | None, seeds: Tensor | None, end: int | None
    ) -> EncodedImage:
        image: EncodedImage
        record = None
        if self._reuse is None:
            image = self.image.embed(self.normalise(images), seeds)
        else:
            image, record = self._reuse.image(self.image, images, self.normalise, seeds)
        if image.block == end:
            # After a call that computes nothing, torch.compile would skip all later calls.
            return image
        encoded: EncodedImage = self.image(image, text, end, record)
        return encoded

    def prepare_text(self, text: EncodedText) -> PreparedText:
        """Project an encoded text [B,L,Dt] and run the text-only part of the first layer."""
        tokens = self.text_projection(text.tokens) + self.token_types.weight[0]
        mask = text.mask if text.padded else None
        shared = self.fusion.first_is_shared
        return PreparedText(tokens, mask, self.fusion.first_text(tokens, mask) if shared else None)

    def prepare_image(self, image: EncodedImage, image_type: int = 1) -> PreparedImage:
        """Project an encoded image [B,1+N,D] and run the image-only part of the first layer.

        ``image_type`` is the token type: 1, or 2 for the second image of a pair.
        """
        tokens = self.image_projection(image.tokens) + self.token_types.weight[image_type]
        shared = self.fusion.first_is_shared
        first = self.fusion.first_image(tokens, image.mask) if shared else None
        return PreparedImage(replace(image, tokens=tokens), first)

    def fuse_prepared(
        self, text: PreparedText, image: PreparedImage, readings: Sequence[Reading]
    ) -> list[Fused]:
        """Fuse B texts and B images row by row; return one result per reading."""
        # A reducer merges text tokens only if no head reads every word: one pass per reading.
        merging = type(self.reducer).reduce_text is not Reducer.reduce_text
        if merging and len(readings) > 1:
            results, start = [], 0
            for reading in readings:
                part = slice(start, start + reading.rows)
                results += self.fuse_prepared(text.rows(part), image.rows(part), [reading])
                start += reading.rows
            return results
        fused = []
        for reading, (words, seen) in zip(
            readings, self.fusion(text, image, readings), strict=True
        ):
            tokens = pooled = None
            if reading.read != "text":
                tokens = seen.tokens
                pooled = torch.cat([self.text_pooler(words), self.image_pooler(tokens)], dim=-1)
            fused.append(Fused(words, tokens, pooled, seen.stages, seen.loss))
        for listener in self._listeners.values():
            for each in fused:
                listener(each)
        return fused

    def fuse(
        self, text: EncodedText, image: EncodedImage, read: Read, image_type: int = 1
    ) -> Fused:
        """Fuse encoded texts [B,L,Dt] and images [B,1+N,D]."""
        prepared = self.prepare_text(text), self.prepare_image(image, image_type)
        return self.fuse_prepared(*prepared, [Reading(len(text.tokens), read)])[0]

    def forward(
        self, images: Tensor, text: TextBatch, read: Read = "pooled", seeds: Tensor | None = None
    ) -> Fused:
        """Encode and fuse image-text pairs; the text comes first because reducers may use it."""
        encoded = self.encode_text(text)
        return self.fuse(encoded, self.encode_image(images, encoded, seeds), read)

    def parameter_groups(self) -> dict[Group, dict[str, nn.Parameter]]:
        """Return all parameters by part and name."""
        owners: dict[str, Group] = {"image": "image", "text": "text", "token_types": "token_types"}
        groups: dict[Group, dict[str, nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            owner = owners.get(name.split(".")[0], "cross_modal")
            groups.setdefault(owner, {})[name] = parameter
        return groups

    def cost_parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """Return the modules of each cost part; for nested modules the first part counts."""
        reduction = self.fusion.reduction
        own = {"image", "text"}
        return {
            "probe": (self.image.probe,),
            "reducer": (self.image.signals, self.reducer, *([reduction] if reduction else [])),
            "vision": (self.image,),
            "text": (self.text,),
            "fusion": tuple(part for name, part in self.named_children() if name not in own),
        }

    def published_parts(self) -> dict[Literal["image", "text"], nn.Module]:
        """Return the timm model and the transformers model, for loading published weights."""
        return {"image": self.image.vit, "text": self.text.transformer}

    def compile_parts(self, **options: Any) -> None:
        """Compile image encoder, text encoder and fusion; ``options`` are torch.compile's."""
        for part in (self.image, self.text, self.fusion):
            part.compile(**options)

    def recompute_activations(self) -> None:
        """Checkpoint activations: less memory, about a third more arithmetic.

        Blocks that reduce tokens keep their activations.
        """
        parts = (self.image.vit.blocks, self.text.transformer.encoder.layer,
                 self.fusion.text_layers, self.fusion.image_layers)  # fmt: skip
        for layer in chain(*parts):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)

    def freeze_unread(self, read: Read) -> None:
        """Freeze parameters that get no gradient, for which DDP would wait."""
        if read == "text":
            last = self.fusion.image_layers[-1]
            for unread in (last, self.text_pooler, self.image_pooler):
                unread.requires_grad_(False)

    def on_fused(self, listener: Callable[[Fused], None]) -> RemovableHandle:
        """Call ``listener`` with every fusion result until the handle is removed."""
        handle = RemovableHandle(self._listeners)
        self._listeners[handle.id] = listener
        return handle
