"""SBU and Conceptual Captions: lists of [image path, caption] from the web."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from elip.data.datasets.base import SCHEMAS, DatasetSpec, View
from elip.data.download import Download, Row

SHARD = 100_000
"""Images per file."""


def _rows(download: Download, annotations: str, file: str, split: str) -> Iterator[Row]:
    """Yield one row per image; pairs of an image follow each other."""
    pairs = download.items(download.find(annotations), (str, str))
    for number, (path, group) in enumerate(groupby(pairs, key=lambda pair: pair[0])):
        if download.is_new(path):
            captions = [pair[1] for pair in group]
            shard, name = file.replace("*", str(number // SHARD)), path.split("/")[-1]
            yield from download.caption_rows(shard, download.root / path, captions, name, split)


class Sbu(DatasetSpec):
    """SBU captions (Ordonez et al., 2011, NeurIPS): one per image, only for training."""

    name = "sbu"
    views = {"caption": View({"train": {"train": ("sbu_*.arrow",)}}, distinct=True)}
    layout = "annot.json and the images it lists"
    files = {"sbu_*.arrow": SCHEMAS["caption"]}

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image."""
        return _rows(download, "annot.json", "sbu_*.arrow", "train")


class ConceptualCaptions(DatasetSpec):
    """Conceptual Captions, 3 million (Sharma et al., 2018, ACL): one web caption per image."""

    name = "gcc"
    files = {
        f"conceptual_caption_{split}_*.arrow": SCHEMAS["caption"] for split in ("val", "train")
    }
    views = {
        "caption": View(
            {
                "train": {"train": ("conceptual_caption_train_*.arrow",)},
                "val": {"val": ("conceptual_caption_val_*.arrow",)},
            },
            official={"train": {"train": ("conceptual_caption_train_*.arrow",)}},
            distinct=True,
        )
    }
    layout = "train_annot.json, val_annot.json and the images they list"

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image."""
        for split, file in zip(("val", "train"), self.files, strict=True):
            yield from _rows(download, f"{split}_annot.json", file, split)
