"""SBU captions (Ordonez et al., 2011, NeurIPS)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from elip.data.captions import write_pairs
from elip.data.conversion import Conversion
from elip.data.sources.base import Source, View


class Sbu(Source):
    """SBU captions: one caption per image, for training only."""

    name = "sbu"
    views = {"caption": View(splits={"train": {"train": ("sbu_*.arrow",)}}, distinct=True)}

    def convert(
        self,
        raw: Path,
        out: Path,
        workers: int = 1,
        show_progress: bool = True,
        check: bool = True,
    ) -> Mapping[str, int]:
        """Convert ``annot.json`` and the images that it names."""
        with Conversion(raw, out, workers, check, show_progress) as job:
            write_pairs(job, job.find("annot.json"), "sbu_{}.arrow", "train")
            return job.counts
