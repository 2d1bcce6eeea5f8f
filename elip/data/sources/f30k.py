"""Flickr30k captions, Karpathy's splits (Young et al., 2014, TACL 2:67-78)."""

from __future__ import annotations

from elip.data.sources.base import Source, View

_TRAIN = "f30k_caption_karpathy_train.arrow"
_VAL = "f30k_caption_karpathy_val.arrow"
_TEST = ("f30k_caption_karpathy_test.arrow",)


class Flickr30k(Source):
    """Flickr30k captions: five per image, 29k training images."""

    name = "f30k"
    views = {
        "caption": View(
            splits={
                "train": {"train": (_TRAIN,)},
                "val": {"val": (_VAL,)},
                "test": {"test": _TEST},
            },
            official={
                "train": {"train": (_TRAIN, _VAL)},
                "val": {"test": _TEST},
                "test": {"test": _TEST},
            },
            distinct=True,
        )
    }
