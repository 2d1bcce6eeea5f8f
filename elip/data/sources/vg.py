"""Visual Genome region descriptions (Krishna et al., 2016, arXiv:1602.07332)."""

from __future__ import annotations

from elip.data.sources.base import Source, View


class VisualGenome(Source):
    """Visual Genome: descriptions of regions as captions of the whole image, for training only."""

    name = "vg"
    views = {"caption": View(splits={"train": {"train": ("vg.arrow",)}}, distinct=True)}
