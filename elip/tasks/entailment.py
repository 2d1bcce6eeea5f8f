"""Visual entailment."""

from __future__ import annotations

from elip.data.batch import SampleSpec
from elip.tasks.classification import Classification


class SNLIVE(Classification):
    """Decide whether an image contradicts a sentence, leaves it open, or entails it.

    Source: Xie et al., 2019, arXiv:1901.06706; Dou et al., 2022, arXiv:2111.02387, section 4.1.
    """

    spec = SampleSpec(kind="entailment")
    classes = 3  # contradiction, neutral, entailment
