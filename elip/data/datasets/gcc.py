"""Conceptual Captions, 3 million (Sharma et al., 2018, ACL)."""

from __future__ import annotations

from elip.data.captions import write_pairs
from elip.data.conversion import Conversion
from elip.data.datasets.base import DatasetSpec, View

_TRAIN = ("conceptual_caption_train_*.arrow",)


class ConceptualCaptions(DatasetSpec):
    """Conceptual Captions: one web caption per image."""

    name = "gcc"
    views = {
        "caption": View(
            splits={
                "train": {"train": _TRAIN},
                "val": {"val": ("conceptual_caption_val_*.arrow",)},
            },
            official={"train": {"train": _TRAIN}},
            distinct=True,
        )
    }

    def convert(self, job: Conversion) -> None:
        """Convert ``{train,val}_annot.json`` and the images that they name."""
        for split in ("val", "train"):
            name = f"conceptual_caption_{split}_{{}}.arrow"
            write_pairs(job, job.find(f"{split}_annot.json"), name, split)
