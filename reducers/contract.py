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
    "keys",
    "values",
    "text",
    "probe",
    "sizes",
    "positions",
]
"""A quantity that the image encoder computes for a reducer, and only on request."""

Acts = Literal["never", "before_block", "after_attention"]
"""Where in a block the reducer acts: on the tokens that enter it, or between its attention and
its feed-forward half. ``never`` is no reduction."""

Probe = Callable[[Tensor, Tensor, int], Tensor]
"""``probe(cls [B,1,D], patches [B,N,D], depth) -> scores [B,N]``: see `Signals.probe`."""


@dataclass(frozen=True)
class Host:
    """The image encoder that a reducer is going to live in, as far as it may know it.

    Attributes:
        width: D, the width of the image tokens.
        heads: H, attention heads of the image encoder.
        num_blocks: Number of transformer blocks that run.
        layers: The reduction layers, ascending, 0-based.
        text_width: Width of the text encoder's output.
    """

    width: int
    heads: int
    num_blocks: int
    layers: tuple[int, ...]
    text_width: int


@dataclass(frozen=True)
class Text:
    """The text encoder's output, before the projection to the fusion width.

    Attributes:
        tokens: [B,L,Dt] float; position 0 is the text CLS.
        mask: [B,L] bool; True where there is a real token.
    """

    tokens: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Signals:
    """What the image encoder tells a reducer at one reduction layer.

    The first five are always there. Each of the others is None unless the reducer's `needs`
    names it.

    Attributes:
        cls: [B,1,D] float, the image CLS token.
        stage: Which reduction this is, from 0.
        layer: The block at which it happens, 0-based.
        grid: Rows and columns of the original patch grid (P = rows * columns).
        seeds: [B] int64, one seed an example: the same example gets the same seed in whatever
            batch it comes, so that a random choice does not depend on batch mates.
        cls_attention: [B,N] float, head-mean attention of CLS to each patch, softmax taken over
            CLS and patches. ``after_attention``: this block's. ``before_block``: that which this
            block would compute on the tokens as they are.
        keys: [B,H,N,D/H] float, this block's keys of the patches.
        values: [B,H,N,D/H] float, this block's values of the patches.
        text: The text, when there is one.
        probe: Runs ``depth`` blocks ahead from this one on a copy, without gradient, with the
            CLS that it is given, and returns the last of these blocks' head-mean attention of CLS
            to each patch. Of that last block only the CLS row is computed, so depth 1 is nearly
            free. Whatever it runs counts as cost.
        sizes: [B,N] float, how many original patches each token stands for.
        positions: [B,N,2] float, mean row and column (in patches) of what each token stands for.
    """

    cls: Tensor
    stage: int
    layer: int
    grid: tuple[int, int]
    seeds: Tensor
    cls_attention: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None
    text: Text | None = None
    probe: Probe | None = None
    sizes: Tensor | None = None
    positions: Tensor | None = None


@dataclass(frozen=True)
class Reduced:
    """What a reducer returns.

    Attributes:
        tokens: [B,K,D] float, exactly the number of tokens that was asked for.
        assignment: [B,N] int64, for each old token the index of the new token that it went
            into, or -1 where it was dropped.
        mask: [B,K] bool, False where a token is padding because the count depends on content.
        loss: Scalar float, an auxiliary loss of the method.
    """

    tokens: Tensor
    assignment: Tensor
    mask: Tensor | None = None
    loss: Tensor | None = None


class Reducer(nn.Module, ABC):
    """Base class of all vision-token reducers.

    A reducer sees patch tokens (never CLS) and an integer, and returns exactly that many tokens.
    The image encoder owns CLS, the schedule, rounding, masks, sizes and origins; it does not call
    the reducer where all tokens are to be kept.

    Attributes:
        needs: The signals that the image encoder must compute.
        acts: Where in the block the reducer acts.
        proportional_attention: Whether the encoder adds log(token size) to the attention logits
            (Bolya et al., 2023, arXiv:2210.09461, section 3).
        family: One word for the idea, for tables and colours.
        trained: Whether the method has parameters of its own that must be learnt.
        equivariant: Whether the choice ignores the order of the patches.
    """

    needs: frozenset[Signal] = frozenset()
    acts: Acts = "before_block"
    proportional_attention: bool = False
    family: str = "other"
    trained: bool = False
    equivariant: bool = True

    def bind(self, host: Host) -> None:  # noqa: B027  (most methods fit every host)
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
