"""COCO captions (Lin et al., 2014, arXiv:1405.0312) in Karpathy and Fei-Fei's splits (2015)."""

from __future__ import annotations

from elip.data.captions import write_karpathy
from elip.data.conversion import Conversion
from elip.data.datasets.base import DatasetSpec, View

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

    def convert(self, job: Conversion) -> None:
        """Convert ``karpathy/dataset_coco.json``, ``train2014/`` and ``val2014/``."""
        annotations = job.find("karpathy/dataset_coco.json", "dataset_coco.json")
        splits = ("train", "val", "restval", "test")
        names = {split: f"coco_caption_karpathy_{split}.arrow" for split in splits}
        write_karpathy(job, annotations, None, names)
