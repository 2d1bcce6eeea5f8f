"""SBU captions (Ordonez et al., 2011, NeurIPS)."""

from __future__ import annotations

from elip.data.captions import write_pairs
from elip.data.conversion import Conversion
from elip.data.datasets.base import DatasetSpec, View


class Sbu(DatasetSpec):
    """SBU captions: one caption per image, for training only."""

    name = "sbu"
    views = {"caption": View(splits={"train": {"train": ("sbu_*.arrow",)}}, distinct=True)}

    def convert(self, job: Conversion) -> None:
        """Convert ``annot.json`` and the images that it names."""
        write_pairs(job, job.find("annot.json"), "sbu_{}.arrow", "train")
