"""Natural-language visual reasoning about two photographs."""

from __future__ import annotations

from elip.data.batch import SampleSpec
from elip.tasks.classification import Classification


class NLVR2(Classification):
    """Say whether a sentence is true of a pair of images.

    The text is fused with each image by itself, the first under token type 1, the second under 2;
    the classifier reads both pooled pairs, 4W in all. dev and test-P are splits of their own.

    Source: Suhr et al., 2019, arXiv:1811.00491; Dou et al., 2022, arXiv:2111.02387, section 4.1.
    """

    spec = SampleSpec(kind="pair")
    images = 2
    classes = 2  # false, true
