"""What a vision-language backbone offers to the rest of the project. Read this file first.

`Backbone` is the whole face: tasks, optimiser, cost, weights and experiments use nothing else of a
model. `elip.model.meter.Meter` is the one backbone that there is. A second one would have to offer
the same.

A batch flows through it one way::

    TextBatch --encode_text--> EncodedText --prepare_text---.
                                    |                        >--fuse_prepared--> Fused --> head
    pixels --encode_prefix--> EncodedImage --encode_suffix--> EncodedImage --prepare_image--'

``encode_image`` is prefix and suffix, ``fuse`` is both preparations and `fuse_prepared`. The parts
exist for tasks that meet one image with many texts: prefix and preparation see one side alone.

Shape legend: B batch, L text length, P original patches, N current patches, D image width, Dt text
width, W fusion width, H heads, S image size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from elip.data.batch import TextBatch
from elip.schedule import Plan, Schedule
from reducers.contract import EncodedText, Reduced, Reducer

Read = Literal["all", "pooled", "text"]
"""What a head reads of the fusion's output: all tokens of both streams; the two CLS tokens; the
tokens of the text stream. What is not read is not computed in the last layer."""


@dataclass(frozen=True)
class ReductionStage:
    """What happened at one reduction layer.

    Attributes:
        layer: The block (or fusion layer), 0-based.
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
                ReductionStage(each.layer, each.assignment[index], each.patch_to_token[index])
                for each in self.stages
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
        """Return the image behind a reduction: tokens, sizes, patches, mask and stage.

        Args:
            layer: The block (or fusion layer) at which it happened.
            cls: [B,1,D], the CLS token.
            reduced: What the reducer returned.
        """
        went = reduced.assignment.clamp(min=0)
        alive = (reduced.assignment >= 0).to(self.sizes.dtype)
        sizes = torch.zeros_like(self.sizes[:, : reduced.tokens.shape[1]])
        sizes = sizes.scatter_add(1, went, self.sizes * alive)
        moved = reduced.assignment.gather(1, self.patch_to_token.clamp(min=0))
        moved = torch.where(self.patch_to_token >= 0, moved, self.patch_to_token)
        real = reduced.mask
        if real is None and self.mask is not None:
            real = sizes > 0
        losses = [loss for loss in (self.loss, reduced.loss) if loss is not None]
        return replace(
            self,
            tokens=torch.cat([cls, reduced.tokens], dim=1),
            sizes=sizes,
            patch_to_token=moved,
            mask=None if real is None else F.pad(real, (1, 0), value=True),
            stages=(*self.stages, ReductionStage(layer, reduced.assignment, moved)),
            loss=sum(losses[1:], losses[0]) if losses else None,
        )


@dataclass(frozen=True)
class OneSided:
    """What the first layer of the fusion computes from one side alone.

    Attributes:
        hidden: [B,N,W], behind the side's self-attention.
        query: [B,H,N,W/H], with which ``hidden`` attends to the other side.
        key_value: [B,N,2W], which the other side attends to.
    """

    hidden: Tensor
    query: Tensor
    key_value: Tensor

    def rows(self, index: Tensor | slice) -> OneSided:
        """Return the rows at ``index``, which may repeat."""
        return OneSided(self.hidden[index], self.query[index], self.key_value[index])


@dataclass(frozen=True)
class PreparedText:
    """A text, ready to be fused.

    Attributes:
        tokens: [B,L,W], what enters the first layer.
        mask: [B,L] bool, True at tokens; None where all are.
        first: What the first layer computes from the text alone; None where it cannot be shared.
    """

    tokens: Tensor
    mask: Tensor | None
    first: OneSided | None

    def rows(self, index: Tensor | slice) -> PreparedText:
        """Return the texts at ``index``, which may repeat."""
        return PreparedText(
            self.tokens[index],
            None if self.mask is None else self.mask[index],
            None if self.first is None else self.first.rows(index),
        )


@dataclass(frozen=True)
class PreparedImage:
    """An image, ready to be fused.

    Attributes:
        image: The image, its tokens [B,1+N,W] those that enter the first layer.
        first: What the first layer computes from the image alone; None where it cannot be shared.
    """

    image: EncodedImage
    first: OneSided | None

    def rows(self, index: Tensor | slice) -> PreparedImage:
        """Return the images at ``index``, which may repeat."""
        first = None if self.first is None else self.first.rows(index)
        return PreparedImage(self.image.rows(index), first)


@dataclass(frozen=True)
class Reading:
    """What is read of the next ``rows`` rows of a batch that is fused.

    Attributes:
        rows: Number of rows.
        read: What is read.
        places: [rows,M] int64, with ``read`` "text": which text tokens; None reads all.
    """

    rows: int
    read: Read
    places: Tensor | None = None


@dataclass(frozen=True)
class Fused:
    """What the fusion gives to a head.

    Attributes:
        text: [B,L,W]; [B,1,W] when only CLS was read, [B,M,W] when M places were.
        image: [B,1+N,W]; [B,1,W] when only CLS was read; None when it was not read.
        pooled: [B,2W], pooled text CLS then pooled image CLS; None when only text was read.
        stages: The reductions of the image tokens, in the encoder or in the fusion.
        loss: Auxiliary loss of the reducer, if it has one.
    """

    text: Tensor
    image: Tensor | None
    pooled: Tensor | None
    stages: tuple[ReductionStage, ...] = ()
    loss: Tensor | None = None


Group = Literal["image", "text", "cross_modal", "token_types"]
"""Which part of the model owns a parameter."""


class Backbone(Protocol):
    """The face of a vision-language model; see the module's docstring for the order of calls."""

    width: int
    """W, what heads read."""
    text_width: int
    """Dt."""
    vocab_size: int
    """Number of word pieces."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""

    @property
    def reducer(self) -> Reducer:
        """The token reducer; `reducers.identity.Identity` where there is no reduction."""

    @property
    def plan(self) -> Plan:
        """The token counts that the reducer is held to."""

    @property
    def shares_prefix(self) -> bool:
        """Whether no text changes an encoded image: the prefix is then everything."""

    def encode_text(self, text: TextBatch) -> EncodedText:
        """[B,L] ids -> [B,L,Dt]."""

    def encode_image(
        self, images: Tensor, text: EncodedText | None = None, seeds: Tensor | None = None
    ) -> EncodedImage:
        """[B,3,S,S] pixels -> [B,1+N,D], reducing tokens on the way."""

    def encode_prefix(self, images: Tensor, seeds: Tensor | None = None) -> EncodedImage:
        """Encode as far as no text can change the image."""

    def encode_suffix(self, image: EncodedImage, text: EncodedText | None = None) -> EncodedImage:
        """Run what `encode_prefix` left."""

    def prepare_text(self, text: EncodedText) -> PreparedText:
        """Run what the fusion computes from the text alone."""

    def prepare_image(self, image: EncodedImage, image_type: int = 1) -> PreparedImage:
        """Run what the fusion computes from the image alone."""

    def fuse_prepared(
        self, text: PreparedText, image: PreparedImage, readings: Sequence[Reading]
    ) -> list[Fused]:
        """Fuse texts and images row by row; one result for each reading."""

    def fuse(
        self, text: EncodedText, image: EncodedImage, read: Read, image_type: int = 1
    ) -> Fused:
        """Prepare both sides and fuse them, reading all rows alike."""

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 pixels -> normalised floats; floats pass as they are."""

    def set_reduction(self, reducer: Reducer, schedule: Schedule) -> Plan:
        """Reduce in another way from now on."""

    def reduction_disabled(self) -> AbstractContextManager[None]:
        """Leave all reduction out for a while."""

    def reuse_encodings(self) -> AbstractContextManager[None]:
        """Compute what reductions share once for the same texts and images, for a while."""

    def parameter_groups(self) -> dict[Group, dict[str, nn.Parameter]]:
        """Parameters by the part that owns them, then by name."""

    def cost_parts(self) -> Mapping[str, Sequence[nn.Module]]:
        """Modules by the part that their cost is booked to; the first part that holds counts."""

    def published_parts(self) -> Mapping[Literal["image", "text"], nn.Module]:
        """The timm and the transformers model inside, which published weights are loaded into."""

    def compile_parts(self, **options: Any) -> None:
        """Compile the encoders and the fusion."""

    def recompute_activations(self) -> None:
        """Trade memory for time in training."""

    def freeze_unread(self, read: Read) -> None:
        """Freeze what gets no gradient when heads read only this."""

    def on_fused(self, listener: Callable[[Fused], None]) -> RemovableHandle:
        """Call ``listener`` with every result of the fusion."""
