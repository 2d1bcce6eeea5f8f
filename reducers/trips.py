"""TRIPS: keep the patches that the text attends to."""

from __future__ import annotations

from torch import Tensor

from reducers.contract import Host, Placement, Reduced, Reducer, Signal, Signals
from reducers.tokens import keep_and_fuse, top_indices


class TRIPS(Reducer):
    """Keep the patches that the text CLS attends to most, fuse the rest into one token.

    The block's query projection turns the text CLS into a query for the patches' keys:
    ``softmax_j(q_text k_j / sqrt(d))``, head mean. There are no additional parameters.

    Source: Jiang et al., TRIPS: Efficient Vision-and-Language Pre-training with Text-Relevant
    Image Patch Selection, EMNLP 2022. There is no public code. Our choices: the text CLS is
    the text encoder's output before its projection; the block's first layer norm is applied to it;
    the softmax is over the patches; heads are averaged; it acts between attention and feed-forward;
    the weights of the fused token are normalised; the fused token comes last, and the next
    reduction treats it like any patch.
    Differs: ``num_keep`` includes the fused token; the schedule sets layers and counts (the paper
    keeps 70% at layers 5 and 10 of 12).

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
                f"TRIPS applies the image encoder's query projection (width {host.width}) to the "
                f"text CLS (width {host.text_width}). Choose encoders of one width."
            )

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep ``num_keep - 1`` patches and fuse the others."""
        kept = top_indices(signals.text_attention, num_keep - 1)
        return keep_and_fuse(patches, kept, signals.text_attention, self.normalise)
