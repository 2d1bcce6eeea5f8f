"""SNLI-VE, visual entailment (Xie et al., 2019, arXiv:1901.06706)."""

from __future__ import annotations

from elip.data.sources.base import Source, View

_TRAIN = {"train": ("snli_train.arrow",)}
_DEV = {"dev": ("snli_dev.arrow",)}
_TEST = {"test": ("snli_test.arrow",)}


class SnliVe(Source):
    """SNLI-VE: does an image contradict (0), leave open (1) or entail (2) a sentence?

    By default dev selects the model and test scores it. The reference reports both.
    """

    name = "snli_ve"
    views = {
        "entailment": View(
            splits={"train": _TRAIN, "val": _DEV, "test": _TEST},
            official={"train": _TRAIN, "val": _DEV | _TEST, "test": _DEV | _TEST},
            num_answers=3,
        )
    }
