"""Flickr30k captions, Karpathy's splits (Young et al., 2014, TACL 2:67-78)."""

from __future__ import annotations

from elip.data.captions import write_karpathy
from elip.data.conversion import Conversion
from elip.data.datasets.base import DatasetSpec, View

_TRAIN = "f30k_caption_karpathy_train.arrow"
_VAL = "f30k_caption_karpathy_val.arrow"
_TEST = ("f30k_caption_karpathy_test.arrow",)


class Flickr30k(DatasetSpec):
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

    def convert(self, job: Conversion) -> None:
        """Convert ``karpathy/dataset_flickr30k.json`` and ``flickr30k-images/``."""
        annotations = job.find("karpathy/dataset_flickr30k.json", "dataset_flickr30k.json")
        names = {s: f"f30k_caption_karpathy_{s}.arrow" for s in ("train", "val", "test")}
        write_karpathy(job, annotations, "flickr30k-images", names)
