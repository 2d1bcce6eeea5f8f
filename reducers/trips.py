"""TRIPS: the text chooses the patches, in passing."""

from __future__ import annotations

from torch import Tensor

from reducers.contract import Host, Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import keep_and_fuse, top_indices


class TRIPS(Reducer):
    """Keep the patches that the text CLS attends to most, fuse the rest into one token.

    The text CLS passes through the block's own visual query projection and meets the patches'
    keys: ``softmax_j(q_text k_j / sqrt(d))``, head mean. No further parameters.

    Source: Jiang et al., TRIPS: Efficient Vision-and-Language Pre-training with Text-Relevant
    Image Patch Selection, EMNLP 2022. There is no public code, hence these choices: the text CLS
    is the text encoder's output before its projection; it passes the block's first layer norm as
    the image tokens do; the softmax is over the patches; heads are averaged; it acts between
    attention and feed-forward; the weights of the fused token are normalised; it comes last and
    is an ordinary patch at the next reduction.
    Differs: the fused token counts inside ``num_keep``; the paper keeps 70% at layers 5 and 10 of
    12, here the schedule says where and how many.

    Args:
        normalise: Whether the weights of the fused token add up to 1.
    """

    needs: frozenset[Signal] = frozenset({"text_attention", "text"})
    placement: Placement = "after_attention"
    family = "text"

    def __init__(self, normalise: bool = True) -> None:
        super().__init__()
        self.normalise = normalise

    def configure(self, host: Host) -> None:
        """Check the widths.

        Raises:
            ValueError: Text and image tokens differ in width.
        """
        if host.text_width != host.width:
            raise ValueError(
                f"TRIPS sends the text CLS (width {host.text_width}) through the image encoder's "
                f"query projection (width {host.width}); the widths must be equal. Choose encoders "
                "of one width."
            )

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep ``num_keep - 1`` patches and fuse the others."""
        kept = top_indices(signals.text_attention, num_keep - 1)
        return keep_and_fuse(patches, kept, signals.text_attention, self.normalise)
