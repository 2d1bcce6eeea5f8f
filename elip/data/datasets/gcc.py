"""Conceptual Captions, 3 million (Sharma et al., 2018, ACL)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from elip.data.datasets.base import DatasetSpec, Row, View
from elip.data.datasets.captions import CAPTION, pair_rows

if TYPE_CHECKING:
    from elip.data.download import Download

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

    layout = "train_annot.json, val_annot.json and the images they list"
    files = {f"conceptual_caption_{split}_*.arrow": CAPTION for split in ("val", "train")}

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image."""
        for split in ("val", "train"):
            file = f"conceptual_caption_{split}_{{}}.arrow"
            yield from pair_rows(download, download.find(f"{split}_annot.json"), file, split)
