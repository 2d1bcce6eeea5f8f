"""ELIP: text-guided pruning and fusion of image tokens."""

from __future__ import annotations

from torch import Tensor

from reducers.contract import Host, Reduced, Reducer, Signal, Signals
from reducers.tokens import keep_and_fuse, top_indices


class ELIP(Reducer):
    """Keep the patches that a text-blended CLS attends to, fuse the rest into one token.

    The blended CLS is ``(1 - mix) * text_cls + mix * cls``; the scores are the head-mean
    attention of that CLS in the last of ``probe_depth`` blocks, which run ahead without gradient.
    The ``num_keep - 1`` best patches stay in their original order; the others become one last token
    ``sum_j s_j x_j / (sum_j s_j + 1e-6)``. The CLS that the encoder uses is not blended.

    Source: Guo et al., ELIP: Efficient Language-Image Pre-training with Fewer Vision Tokens,
    2023, arXiv:2309.16738, and its METER code.
    Differs: the last probe block computes only the CLS attention row (same scores, less work); the
    number of patches depends on the image size instead of being fixed at 49; ``num_keep`` includes
    the fused token; ties go to the lower index.

    Args:
        mix: Share of the image CLS in the blend, in [0, 1]. 1 ignores the text.
        probe_depth: Number of blocks that the probe runs: one number, or one for each reduction
            layer. None runs up to the next reduction layer or the end, which gives ELIP's 2, 5, 2
            for layers 2, 4, 9 of 11. 1 computes one attention row and is nearly free.
        shuffle_text: A control: each example uses the text of the previous one in the batch, the
            first that of the last. The gain over it is due to the right text.
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
            raise ValueError(f"ELIP: mix is {mix}; it must be in [0, 1].")
        self.mix = mix
        self.probe_depth = probe_depth
        self.shuffle_text = shuffle_text
        self.depths: tuple[int, ...] = ()
        needs: set[Signal] = {"probe"} if mix == 1 else {"probe", "text"}
        self.needs = frozenset(needs)

    def configure(self, host: Host) -> None:
        """Set the probe depths and check the widths.

        Raises:
            ValueError: The widths of text and image differ, or a probe would leave the encoder.
        """
        if self.mix < 1 and host.text_width != host.width:
            raise ValueError(
                f"ELIP blends the text CLS (width {host.text_width}) into the image CLS (width "
                f"{host.width}); the widths must be equal. Choose encoders of one width, or set "
                "mix: 1 to ignore the text."
            )
        if self.probe_depth is None:
            ends = (*host.layers[1:], host.num_blocks)
            self.depths = tuple(end - layer for layer, end in zip(host.layers, ends, strict=True))
        elif isinstance(self.probe_depth, int):
            self.depths = (self.probe_depth,) * len(host.layers)
        else:
            self.depths = tuple(self.probe_depth)
        fits = len(self.depths) == len(host.layers) and all(
            1 <= depth <= host.num_blocks - layer
            for depth, layer in zip(self.depths, host.layers, strict=True)
        )
        if not fits:
            raise ValueError(
                f"ELIP: probe_depth {self.probe_depth} does not fit reduction layers "
                f"{list(host.layers)} of {host.num_blocks} blocks. Give one depth for each layer, "
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
