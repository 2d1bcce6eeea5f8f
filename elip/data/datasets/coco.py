"""COCO captions (Lin et al., 2014, arXiv:1405.0312) in Karpathy and Fei-Fei's splits (2015)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from elip.data.datasets.base import DatasetSpec, Row, View
from elip.data.datasets.captions import CAPTION, karpathy_rows

if TYPE_CHECKING:
    from elip.data.download import Download

_TRAIN = ("coco_caption_karpathy_train.arrow", "coco_caption_karpathy_restval.arrow")
_VAL = ("coco_caption_karpathy_val.arrow",)
_TEST = ("coco_caption_karpathy_test.arrow",)


class Coco(DatasetSpec):
    """COCO captions: five per image, 113k training images."""

    name = "coco"
    views = {
        "caption": View(
            splits={"train": {"train": _TRAIN}, "val": {"val": _VAL}, "test": {"test": _TEST}},
            official={"train": {"train": _TRAIN}, "val": {"test": _TEST}, "test": {"test": _TEST}},
            distinct=True,
        )
    }

    layout = "karpathy/dataset_coco.json, train2014/ and val2014/"
    files = dict.fromkeys((*_TRAIN, *_VAL, *_TEST), CAPTION)

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image."""
        annotations = download.find("karpathy/dataset_coco.json", "dataset_coco.json")
        files = dict(zip(("train", "restval", "val", "test"), self.files, strict=True))
        return karpathy_rows(download, annotations, None, files)
