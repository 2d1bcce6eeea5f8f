"""SBU captions (Ordonez et al., 2011, NeurIPS)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from elip.data.datasets.base import DatasetSpec, Row, View
from elip.data.datasets.captions import CAPTION, pair_rows

if TYPE_CHECKING:
    from elip.data.download import Download


class Sbu(DatasetSpec):
    """SBU captions: one caption per image, only for training."""

    name = "sbu"
    views = {"caption": View(splits={"train": {"train": ("sbu_*.arrow",)}}, distinct=True)}

    layout = "annot.json and the images it lists"
    files = {"sbu_*.arrow": CAPTION}

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image."""
        return pair_rows(download, download.find("annot.json"), "sbu_{}.arrow", "train")
