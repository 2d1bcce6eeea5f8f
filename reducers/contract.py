"""What a vision-token reducer is: what it is handed, what it must return, when it acts.

Shape legend: B batch, P original patches, N current patches, K kept, D width, H heads, L text
length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Signal = Literal[
    "cls_attention",
    "head_attention",
    "attention_received",
    "text_attention",
    "keys",
    "values",
    "text",
    "joint_embeddings",
    "probe",
    "sizes",
    "positions",
    "cross_attention",
]
"""A quantity that the host computes for a reducer, and only on request."""

Placement = Literal["never", "before_block", "after_attention", "fusion"]
"""Where the reducer acts: in an image block on the tokens that enter it, or between its attention
and its feed-forward half; or in a fusion layer of the text side, between its cross-attention and
its feed-forward half. ``never`` is no reduction."""

Family = Literal[
    "baseline", "position", "attention", "similarity", "clustering", "diversity", "text", "other"
]
"""The idea of a method, for tables and colours."""

Probe = Callable[[Tensor, Tensor, int], Tensor]
"""``probe(cls [B,1,D], patches [B,N,D], depth) -> scores [B,N]``: see `Signals.probe`."""


@dataclass(frozen=True)
class Host:
    """What a reducer is going to live in, as far as it may know it.

    That is the image encoder, or the fusion for a method that acts there.

    Attributes:
        width: D, the width of the image tokens.
        heads: H, attention heads.
        num_blocks: Number of transformer blocks (fusion: layers) that run.
        layers: The reduction layers, ascending, 0-based.
        text_width: Width of the text encoder's output.
    """

    width: int
    heads: int
    num_blocks: int
    layers: tuple[int, ...]
    text_width: int


@dataclass(frozen=True)
class EncodedText:
    """The text encoder's output, before the projection to the fusion width.

    Attributes:
        tokens: [B,L,Dt] float; position 0 is the text CLS.
        mask: [B,L] bool; True where there is a real token.
    """

    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Signals:
    """What the host tells a reducer at one reduction layer.

    The first six are always there. Each of the others is None unless the reducer's `needs`
    names it. In the fusion there are ``keys``, ``text``, ``sizes``, ``positions`` and
    ``cross_attention``; in the image encoder all but the last.

    Attributes:
        cls: [B,1,D] float, the image CLS token.
        stage: Which reduction this is, from 0.
        layer: The block at which it happens, 0-based.
        grid: Rows and columns of the original patch grid (P = rows * columns).
        seeds: [B] int64, one seed an example: the same example gets the same seed in whatever
            batch it comes, so that a random choice does not depend on batch mates.
        mask: [B,N] bool, False at padding, which an adaptive method left behind; None when all
            are tokens.
        cls_attention: [B,N] float, head-mean attention of CLS to each patch, softmax taken over
            CLS and patches. ``after_attention``: this block's. ``before_block``: that which this
            block would compute on the tokens as they are.
        head_attention: [B,H,N] float, the same by head.
        attention_received: [B,N] float, attention that each patch receives, mean over heads and
            over all queries, CLS among them. The one signal that takes a full attention map.
        text_attention: [B,N] float, head-mean attention of the text CLS to the patches, softmax
            over the patches: the text CLS takes the image CLS's place in this block's first norm
            and query projection, so text and image width must be equal.
        keys: [B,H,N,D/H] float, this block's keys of the patches. Fusion: the keys that the
            cross-attention of the text side sees.
        values: [B,H,N,D/H] float, this block's values of the patches.
        text: The text, when there is one. Fusion: the text side after its cross-attention.
        joint_embeddings: Patches [B,N,C] and text [B,T,C] in one space: METER's projections to the
            fusion width, of the patches behind the final norm and of the text CLS (T = 1).
        probe: Runs ``depth`` blocks ahead from this one on a copy, without gradient, with the
            CLS that it is given, and returns the last of these blocks' head-mean attention of CLS
            to each patch. Of that last block only the CLS row is computed, so depth 1 is nearly
            free. Whatever it runs counts as cost.
        sizes: [B,N] float, how many original patches each token stands for.
        positions: [B,N,2] float, mean row and column (in patches) of what each token stands for.
        cross_attention: [B,L,N] float, head-mean attention of each text token to the patches,
            softmax over CLS and patches.
    """

    cls: Tensor
    stage: int
    layer: int
    grid: tuple[int, int]
    seeds: Tensor
    mask: Tensor | None = None
    cls_attention: Tensor | None = None
    head_attention: Tensor | None = None
    attention_received: Tensor | None = None
    text_attention: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    text: EncodedText | None = None
    joint_embeddings: tuple[Tensor, Tensor] | None = None
    probe: Probe | None = None
    sizes: Tensor | None = None
    positions: Tensor | None = None
    cross_attention: Tensor | None = None


@dataclass(frozen=True)
class Reduced:
    """What a reducer returns.

    Attributes:
        tokens: [B,K,D] float, exactly the number of tokens that was asked for.
        assignment: [B,N] int64, for each old token the index of the new token that it went
            into, or -1 where it was dropped.
        mask: [B,K] bool, False where a token is padding because the count depends on content;
            None when all are tokens (or as before, where the host knows of padding).
        loss: Scalar float, an auxiliary loss of the method.
    """

    tokens: Tensor
    assignment: Tensor
    mask: Tensor | None = None
    loss: Tensor | None = None


class Reducer(nn.Module, ABC):
    """Base class of all vision-token reducers.

    A reducer sees patch tokens (never CLS) and an integer, and returns exactly that many tokens.
    The host (image encoder or fusion) owns CLS, the schedule, rounding, masks, sizes and origins;
    it does not call the reducer where all tokens are to be kept.

    Attributes:
        needs: The signals that the host must compute.
        placement: Where the reducer acts.
        proportional_attention: Whether the encoder adds log(token size) to the attention logits
            (Bolya et al., 2023, arXiv:2210.09461, section 3).
        family: One word for the idea, for tables and colours.
        trained: Whether the method has parameters of its own that must be learnt.
        equivariant: Whether the choice ignores the order of the patches.
        fixed_count: Whether every token of the result is real; otherwise the count depends on
            content and a mask says which are.
        includes_cls: Fusion only: hand over CLS as patch 0 (one more in and out) and take whatever
            comes back first as CLS. Official code of some methods does so; it is never a default.
    """

    needs: frozenset[Signal] = frozenset()
    placement: Placement = "before_block"
    proportional_attention: bool = False
    family: Family = "other"
    trained: bool = False
    equivariant: bool = True
    fixed_count: bool = True
    includes_cls: bool = False

    def configure(self, host: Host) -> None:
        """Learn the host's sizes; called once, before the first forward pass.

        Raises:
            ValueError: The method cannot work in this host; the message says what would.
        """

    @abstractmethod
    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Reduce the patch tokens to ``num_keep``.

        Args:
            patches: [B,N,D] float.
            num_keep: K, with 1 <= K < N.
            signals: What `needs` asked for.
        """

    def reduce_text(self, tokens: Tensor, keys: Tensor, mask: Tensor | None) -> Reduced | None:
        """Fusion only: reduce the text tokens too; None, the default, leaves them.

        Not asked for where a head reads every text token.

        Args:
            tokens: [B,L,W] float, the text side after its cross-attention, CLS first.
            keys: [B,H,L,W/H] float, keys of the text side's self-attention.
            mask: [B,L] bool, True at tokens; None when all are.
        """
        return None
