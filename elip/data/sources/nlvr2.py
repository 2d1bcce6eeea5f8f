"""NLVR2 (Suhr et al., 2018, arXiv:1811.00491)."""

from __future__ import annotations

from elip.data.sources.base import Source, View

_TRAIN = {"train": ("nlvr2_train.arrow",)}
_DEV = {"dev": ("nlvr2_dev.arrow",)}
_TEST = {"test-P": ("nlvr2_test1.arrow",)}


class Nlvr2(Source):
    """NLVR2: is a sentence true of two photographs?

    By default dev selects the model and test-P scores it. The reference reports both.
    """

    name = "nlvr2"
    views = {
        "pair": View(
            splits={"train": _TRAIN, "val": _DEV, "test": _TEST},
            official={"train": _TRAIN, "val": _DEV | _TEST, "test": _DEV | _TEST},
            num_answers=2,
        )
    }
