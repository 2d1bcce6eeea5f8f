"""True or false sentences about one image."""

from __future__ import annotations

from elip.data.batch import SampleSpec
from elip.tasks.classification import Classification


class Statement(Classification):
    """Decide whether a sentence is true of an image (NLVR corpus and the built-in shapes).

    Source: Suhr et al., A Corpus of Natural Language for Visual Reasoning, ACL 2017.
    """

    spec = SampleSpec(kind="statement")
    classes = 2  # false, true
