"""Flickr30k captions, Karpathy's splits (Young et al., 2014, TACL 2:67-78)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from elip.data.datasets.base import DatasetSpec, Row, View
from elip.data.datasets.captions import CAPTION, karpathy_rows

if TYPE_CHECKING:
    from elip.data.download import Download

_TRAIN = "f30k_caption_karpathy_train.arrow"
_VAL = "f30k_caption_karpathy_val.arrow"
_TEST = {"test": ("f30k_caption_karpathy_test.arrow",)}


class Flickr30k(DatasetSpec):
    """Flickr30k captions: five per image, 29k training images."""

    name = "f30k"
    views = {
        "caption": View(
            splits={"train": {"train": (_TRAIN,)}, "val": {"val": (_VAL,)}, "test": _TEST},
            official={"train": {"train": (_TRAIN, _VAL)}, "val": _TEST, "test": _TEST},
            distinct=True,
        )
    }

    layout = "karpathy/dataset_flickr30k.json and flickr30k-images/"
    files = dict.fromkeys((_TRAIN, _VAL, *_TEST["test"]), CAPTION)

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image."""
        annotations = download.find("karpathy/dataset_flickr30k.json", "dataset_flickr30k.json")
        files = dict(zip(("train", "val", "test"), self.files, strict=True))
        return karpathy_rows(download, annotations, "flickr30k-images", files)
