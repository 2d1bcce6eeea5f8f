"""ELIP: text-guided pruning and fusion of image tokens."""

from __future__ import annotations

from torch import Tensor

from reducers.contract import Host, Reduced, Reducer, Signal, Signals
from reducers.tokens import keep_and_fuse, top_indices


class ELIP(Reducer):
    """Keep the patches that a text-blended CLS attends to, fuse the rest into one token.

    The blended CLS is ``(1 - mix) * text_cls + mix * cls``; the scores are the head-mean
    attention of that CLS in the last of ``probe_depth`` blocks run ahead without gradient. The
    ``num_keep - 1`` best patches stay in their original order; the others become one last token
    ``sum_j s_j x_j / (sum_j s_j + 1e-6)``, computed on the unblended tokens. The real CLS is never
    blended.

    Source: Guo et al., ELIP: Efficient Language-Image Pre-training with Fewer Vision Tokens,
    2023, arXiv:2309.16738, and its METER code.
    Differs: of the last probe block only the CLS attention row is computed (same scores, less
    work); the patches are counted from the image instead of fixed at 49; the fused token counts
    inside ``num_keep``; equal scores go to the lower index.

    Args:
        mix: Share of the image CLS in the blend, in [0, 1]. 1 leaves the text out.
        probe_depth: Blocks that the probe runs: one number for every reduction layer, or one for
            each. None reaches to the next reduction layer (the last: to the end), which is ELIP's
            2, 5, 2 for layers 2, 4, 9 of 11. 1 computes one attention row and is nearly free.
        shuffle_text: A control: each example is steered by its neighbour's text, the first of the
            batch by the last one's. What is gained over it is gained by the right text.
    """

    family = "attention"

    def __init__(
        self,
        mix: float = 0.8,
        probe_depth: int | tuple[int, ...] | None = None,
        shuffle_text: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= mix <= 1:
            raise ValueError(f"ELIP: mix is {mix}; it must lie between 0 and 1.")
        self.mix = mix
        self.probe_depth = probe_depth
        self.shuffle_text = shuffle_text
        self.depths: tuple[int, ...] = ()
        needs: set[Signal] = {"probe"} if mix == 1 else {"probe", "text"}
        self.needs = frozenset(needs)

    def configure(self, host: Host) -> None:
        """Settle the probe depths and check the widths.

        Raises:
            ValueError: The widths of text and image differ, or a probe would leave the encoder.
        """
        if self.mix < 1 and host.text_width != host.width:
            raise ValueError(
                f"ELIP blends the text CLS (width {host.text_width}) into the image CLS (width "
                f"{host.width}); the widths must be equal. Choose encoders of one width, or "
                "mix: 1 to leave the text out."
            )
        ends = (*host.layers[1:], host.num_blocks)
        reach = tuple(end - layer for layer, end in zip(host.layers, ends, strict=True))
        given = self.probe_depth
        self.depths = (
            reach
            if given is None
            else (given,) * len(host.layers)
            if isinstance(given, int)
            else tuple(given)
        )
        fits = len(self.depths) == len(host.layers) and all(
            1 <= depth <= host.num_blocks - layer
            for depth, layer in zip(self.depths, host.layers, strict=True)
        )
        if not fits:
            raise ValueError(
                f"ELIP: probe_depth {self.probe_depth} does not fit reduction layers "
                f"{list(host.layers)} of {host.num_blocks} blocks: give one depth for each layer, "
                "at least 1 and not past the last block."
            )

    def forward(self, patches: Tensor, num_keep: int, signals: Signals) -> Reduced:
        """Keep ``num_keep - 1`` patches and fuse the others."""
        cls = signals.cls
        if self.mix < 1:
            text = signals.text.tokens[:, :1]
            if self.shuffle_text:
                text = text.roll(1, dims=0)
            cls = (1 - self.mix) * text + self.mix * cls
        scores = signals.probe(cls, patches, self.depths[signals.stage])
        kept = top_indices(scores, num_keep - 1).sort(dim=1).values
        return keep_and_fuse(patches, kept, scores, normalise=True)
