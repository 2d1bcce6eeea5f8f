"""Natural-language visual reasoning about two photographs."""

from __future__ import annotations

from elip.data.batch import SampleSpec
from elip.tasks.classification import Classification


class NLVR2(Classification):
    """Decide whether a sentence is true of a pair of images.

    The text is fused with each image separately, with token type 1 for the first image and 2 for
    the second. The classifier reads both pooled outputs, 4W in total.

    Source: Suhr et al., 2019, arXiv:1811.00491; Dou et al., 2022, arXiv:2111.02387, section 4.1.
    """

    spec = SampleSpec(kind="pair")
    images = 2
    classes = 2  # false, true
