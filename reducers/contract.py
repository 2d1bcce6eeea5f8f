"""The contract of a vision-token reducer: its inputs, its output and where it acts.

Shape legend: B batch, P original patches, N current patches, K kept, D width, H heads, L text
length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

Placement = Literal["never", "before_block", "after_attention", "fusion"]
"""Where a reducer acts.

``before_block``: on the tokens that enter an image block. ``after_attention``: between the block's
attention and its feed-forward half. ``fusion``: in a text layer of the fusion, between its
cross-attention and its feed-forward half. ``never``: no reduction.
"""

Family = Literal[
    "baseline", "position", "attention", "similarity", "clustering", "diversity", "text", "other"
]
"""The kind of method, for tables and colours."""

Probe = Callable[[Tensor, Tensor, int], Tensor]
"""``probe(cls [B,1,D], patches [B,N,D], depth) -> scores [B,N]``: see `RequestedSignals.probe`."""


@dataclass(frozen=True)
class Host:
    """Sizes of the model part that a reducer runs in: the image encoder or the fusion.

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
        mask: [B,L] bool, True at real tokens.
        padded: False if all tokens are known to be real.
    """

    tokens: Tensor
    mask: Tensor
    padded: bool = True


class RequestedSignals:
    """Signals that the host computes only if the reducer names them in `needs`.

    To add a signal, declare it here and compute it in the host. The image encoder offers all but
    ``cross_attention``; the fusion offers ``keys``, ``text``, ``sizes``, ``positions`` and
    ``cross_attention``.
    """

    cls_attention: Tensor
    """[B,N] float, head-mean attention of CLS to each patch, softmax over CLS and patches.
    ``after_attention``: this block's. ``before_block``: what this block would compute on the
    unreduced tokens."""

    head_attention: Tensor
    """[B,H,N] float, the same for each head."""

    attention_received: Tensor
    """[B,N] float, attention that each patch receives, mean over heads and all queries, including
    CLS. The one signal that needs a full attention map."""

    text_attention: Tensor
    """[B,N] float, head-mean attention of the text CLS to the patches, softmax over the patches.
    The text CLS replaces the image CLS in this block's first norm and query projection, so text
    and image width must be equal."""

    keys: Tensor
    """[B,H,N,D/H] float, this block's keys of the patches. Fusion: the keys of the text side's
    cross-attention."""

    values: Tensor
    """[B,H,N,D/H] float, this block's values of the patches."""

    text: EncodedText
    """The text. Fusion: the text side after its cross-attention."""

    joint_embeddings: tuple[Tensor, Tensor]
    """Patches [B,N,C] and text [B,T,C] in one space: METER's projections to the fusion width, of
    the patches after the final norm and of the text CLS (T = 1)."""

    probe: Probe
    """Runs ``depth`` blocks ahead on a copy, without gradient, with the given CLS, and returns the
    last block's head-mean attention of CLS to each patch. The last block computes only the CLS row,
    so depth 1 is nearly free. The probe counts as cost."""

    sizes: Tensor
    """[B,N] float, number of original patches in each token."""

    positions: Tensor
    """[B,N,2] float, mean row and column (in patches) of the patches in each token."""

    cross_attention: Tensor
    """[B,L,N] float, head-mean attention of each text token to the patches, softmax over CLS and
    patches."""


Signal = str
"""The name of a `RequestedSignals` attribute."""

SIGNALS: tuple[Signal, ...] = tuple(RequestedSignals.__annotations__)
"""All signals that a reducer can request."""


class MissingSignal(AttributeError):
    """A reducer read a signal that its `needs` does not name."""


@dataclass(frozen=True)
class Signals(RequestedSignals):
    """Inputs of a reducer at one reduction layer, besides the patches.

    The attributes below are always available, those of `RequestedSignals` only if `needs` names
    them; reading any other signal raises `MissingSignal`.

    Attributes:
        cls: [B,1,D] float, the image CLS token.
        stage: Index of this reduction, 0-based.
        layer: Index of its block, 0-based.
        grid: Rows and columns of the original patch grid (P = rows * columns).
        seeds: [B] int64, one seed per example. An example has the same seed in every batch, so a
            random choice does not depend on the rest of the batch.
        mask: [B,N] bool, False at padding left by an adaptive method; None if there is no padding.
        requested: The signals that `needs` names, by name.
        reader: The reducer's class name, for the message of `MissingSignal`.
    """

    cls: Tensor
    stage: int
    layer: int
    grid: tuple[int, int]
    seeds: Tensor
    mask: Tensor | None = None
    requested: Mapping[Signal, Any] = field(default_factory=dict)
    reader: str = "The reducer"

    def __getattr__(self, name: str) -> Any:  # called only for names that are not fields
        requested = self.__dict__.get("requested", {})
        if name in requested:
            return requested[name]
        if name in SIGNALS:
            raise MissingSignal(
                f"{self.reader} reads signals.{name}, but its needs does not name it. Add "
                f'"{name}" to needs.'
            )
        raise AttributeError(f"Signals has no {name!r}; reducers can request {', '.join(SIGNALS)}.")


@dataclass(frozen=True)
class Reduced:
    """Output of a reducer.

    Attributes:
        tokens: [B,K,D] float, exactly the requested number of tokens.
        assignment: [B,N] int64, index of the new token that each old token became part of, or -1 if
            it was dropped.
        mask: [B,K] bool, False at padding, if the count depends on the image; None if all tokens
            are real (or the host's own padding is unchanged).
        loss: Scalar float, an auxiliary loss of the method.
    """

    tokens: Tensor
    assignment: Tensor
    mask: Tensor | None = None
    loss: Tensor | None = None


class Reducer(nn.Module, ABC):
    """Base class of all vision-token reducers.

    A reducer sees patch tokens (never CLS) and an integer, and returns exactly that many tokens.
    The host (image encoder or fusion) owns CLS, the schedule, rounding, masks, sizes and the map
    from patches to tokens. It does not call the reducer if all tokens are kept.

    Attributes:
        needs: The signals that the host must compute; `SIGNALS` lists them.
        placement: Where the reducer acts.
        proportional_attention: Whether the encoder adds log(token size) to the attention logits
            (Bolya et al., 2023, arXiv:2210.09461, section 3).
        family: The kind of method, for tables and colours.
        trained: Whether the method has parameters to train.
        equivariant: Whether the choice is independent of the order of the patches.
        fixed_count: Whether every returned token is real. If False, the count depends on the image
            and a mask marks the real tokens.
        includes_cls: Fusion only: pass CLS as patch 0 (one more token in and out) and use the first
            returned token as CLS. Some official code does this; it is never a default.
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
            signals: The other inputs.
        """

    def reduce_text(self, tokens: Tensor, keys: Tensor, mask: Tensor | None) -> Reduced | None:
        """Fusion only: also reduce the text tokens; return None, the default, to keep them.

        The host does not call it if a head reads every text token.

        Args:
            tokens: [B,L,W] float, the text side after its cross-attention, CLS first.
            keys: [B,H,L,W/H] float, keys of the text side's self-attention.
            mask: [B,L] bool, True at real tokens; None if all are real.
        """
        return None
