"""The data that flows through the model. Read this file first.

The rest of the project uses only the methods of `Backbone`, which `elip.model.meter.Meter`
implements. A batch flows through them like this::

    TextBatch --encode_text--> EncodedText --prepare_text---.
                                    |                        >--fuse_prepared--> Fused --> head
    pixels --encode_prefix--> EncodedImage --encode_suffix--> EncodedImage --prepare_image--'

``encode_image`` runs prefix and suffix. ``fuse`` runs both preparations and `fuse_prepared`. The
single steps let a task share the work on one image between many texts.

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
"""What a head reads: all tokens of both streams, the two CLS tokens, or the text tokens. The last
layer computes only these."""


@dataclass(frozen=True)
class ReductionStage:
    """The result of one reduction layer."""

    layer: int  # the block or fusion layer, 0-based
    assignment: Tensor  # [B,N] int64, old token -> new token, or -1 if dropped
    patch_to_token: Tensor  # [B,P] int64, original patch -> current token, or -1


@dataclass(frozen=True)
class EncodedImage:
    """Image tokens in the encoder or after it."""

    tokens: Tensor  # [B,1+N,D] float, CLS first
    block: int  # the next block
    sizes: Tensor  # [B,N] float, number of original patches per token
    patch_to_token: Tensor  # [B,P] int64, the token of each original patch, or -1
    seeds: Tensor  # [B] int64, one seed per example, for random reducers
    mask: Tensor | None = None  # [B,1+N] bool, True at real tokens; None if all are real
    stages: tuple[ReductionStage, ...] = ()  # the reductions so far
    tokens_per_block: tuple[int, ...] = ()  # patch tokens that entered each block so far
    loss: Tensor | None = None  # auxiliary loss of the reducer, if any

    def rows(self, index: Tensor | slice) -> EncodedImage:
        """Return the images at ``index``; an index may repeat."""
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
        """Return the mean row and column [B,N,2] of each token's patches."""
        dtype = self.sizes.dtype
        index = torch.arange(grid[0] * grid[1], device=self.tokens.device)
        places = torch.stack([index // grid[1], index % grid[1]], dim=1).to(dtype)
        alive = (self.patch_to_token >= 0).to(dtype).unsqueeze(-1)
        went = self.patch_to_token.clamp(min=0).unsqueeze(-1).expand(-1, -1, 2)
        total = torch.zeros(*self.sizes.shape, 2, device=index.device, dtype=dtype)
        return total.scatter_add(1, went, places * alive) / self.sizes.clamp(min=1).unsqueeze(-1)

    def reduce(self, layer: int, cls: Tensor, reduced: Reduced) -> EncodedImage:
        """Apply a reducer's result at ``layer``; ``cls`` [B,1,D] is the CLS token."""
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
    """The part of the first fusion layer that depends on one side alone."""

    hidden: Tensor  # [B,N,W], after this side's self-attention
    query: Tensor  # [B,H,N,W/H], to attend to the other side
    key_value: Tensor  # [B,N,2W], for the other side to attend to

    def rows(self, index: Tensor | slice) -> OneSided:
        """Return the rows at ``index``; an index may repeat."""
        return OneSided(self.hidden[index], self.query[index], self.key_value[index])


@dataclass(frozen=True)
class PreparedText:
    """A text, ready to be fused."""

    tokens: Tensor  # [B,L,W], the input of the first layer
    mask: Tensor | None  # [B,L] bool, True at real tokens; None if all are real
    first: OneSided | None  # its part of the first layer; None if that cannot be shared

    def rows(self, index: Tensor | slice) -> PreparedText:
        """Return the texts at ``index``; an index may repeat."""
        return PreparedText(
            self.tokens[index],
            None if self.mask is None else self.mask[index],
            None if self.first is None else self.first.rows(index),
        )


@dataclass(frozen=True)
class PreparedImage:
    """An image, ready to be fused."""

    image: EncodedImage  # with the tokens [B,1+N,W] that enter the first layer
    first: OneSided | None  # its part of the first layer; None if that cannot be shared

    def rows(self, index: Tensor | slice) -> PreparedImage:
        """Return the images at ``index``; an index may repeat."""
        first = None if self.first is None else self.first.rows(index)
        return PreparedImage(self.image.rows(index), first)


@dataclass(frozen=True)
class Reading:
    """What a head reads from the next ``rows`` rows of a fused batch."""

    rows: int
    read: Read
    places: Tensor | None = None  # [rows,M] int64, the text tokens to read; None reads all


@dataclass(frozen=True)
class Fused:
    """The output of the fusion."""

    text: Tensor  # [B,L,W]; [B,1,W] if only CLS is read, [B,M,W] if M places are read
    image: Tensor | None  # [B,1+N,W]; [B,1,W] if only CLS is read; None if only text is read
    pooled: Tensor | None  # [B,2W], text CLS, then image CLS; None if only text is read
    stages: tuple[ReductionStage, ...] = ()  # of the image, in the encoder or in the fusion
    loss: Tensor | None = None  # auxiliary loss of the reducer, if any


Group = Literal["image", "text", "cross_modal", "token_types"]
"""The parts of the model that own parameters."""


class Backbone(Protocol):
    """What a vision-language model must offer to tasks, training, cost and grids.

    `Meter` is the only one. A second model needs these attributes and methods and nothing else.
    """

    width: int
    """W, the width that heads read."""
    text_width: int
    """Dt."""
    vocab_size: int
    """Number of word pieces."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the patch grid."""

    @property
    def reducer(self) -> Reducer:
        """The reducer; `Identity` for no reduction."""

    @property
    def plan(self) -> Plan:
        """The token counts of the current reducer."""

    @property
    def shares_prefix(self) -> bool:
        """Whether an encoded image never depends on the text."""

    reduction: Any
    """What `set_reduction` has set; assign it to return there at no cost."""

    def set_reduction(self, reducer: Reducer, schedule: Schedule) -> Plan:
        """Change the reducer and the schedule."""

    def reduction_disabled(self) -> AbstractContextManager[None]:
        """Run without reduction inside the context."""

    def reuse_encodings(self) -> AbstractContextManager[None]:
        """Share encodings between reductions inside the context."""

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 pixels; return floats unchanged."""

    def encode_text(self, text: TextBatch) -> EncodedText:
        """Encode [B,L] ids to [B,L,Dt]."""

    def encode_image(
        self, images: Tensor, text: EncodedText | None = None, seeds: Tensor | None = None
    ) -> EncodedImage:
        """Encode pixels [B,3,S,S] to [B,1+N,D] and reduce tokens on the way."""

    def encode_prefix(self, images: Tensor, seeds: Tensor | None = None) -> EncodedImage:
        """Encode up to the first block that depends on the text."""

    def encode_suffix(self, image: EncodedImage, text: EncodedText | None = None) -> EncodedImage:
        """Run the blocks after the prefix."""

    def prepare_text(self, text: EncodedText) -> PreparedText:
        """Run the part of the fusion that depends on the text alone."""

    def prepare_image(self, image: EncodedImage, image_type: int = 1) -> PreparedImage:
        """Run the part of the fusion that depends on the image alone."""

    def fuse_prepared(
        self, text: PreparedText, image: PreparedImage, readings: Sequence[Reading]
    ) -> list[Fused]:
        """Fuse prepared texts and images row by row; return one result per reading."""

    def fuse(
        self, text: EncodedText, image: EncodedImage, read: Read, image_type: int = 1
    ) -> Fused:
        """Prepare both sides and fuse them."""

    def parameter_groups(self) -> dict[Group, dict[str, nn.Parameter]]:
        """Return parameters by owner, then by name."""

    def cost_parts(self) -> Mapping[str, Sequence[nn.Module]]:
        """Return the modules of each part of the cost."""

    def published_parts(self) -> Mapping[Literal["image", "text"], nn.Module]:
        """Return the modules that published weights are loaded into."""

    def compile_parts(self, **options: Any) -> None:
        """Compile the encoders and the fusion."""

    def recompute_activations(self) -> None:
        """Recompute activations in the backward pass to save memory."""

    def freeze_unread(self, read: Read) -> None:
        """Freeze parameters that get no gradient when heads read only ``read``."""

    def on_fused(self, listener: Callable[[Fused], None]) -> RemovableHandle:
        """Call ``listener`` with every result of the fusion."""
