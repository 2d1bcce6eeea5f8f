"""Visual Genome region descriptions (Krishna et al., 2016, arXiv:1602.07332)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elip.data.arrow_writer import REGION
from elip.data.conversion import Conversion
from elip.data.datasets.base import DatasetSpec, View
from elip.data.entries import Note, Parsed, Row, parsed


class VisualGenome(DatasetSpec):
    """Visual Genome: descriptions of regions as captions of the whole image, for training only."""

    name = "vg"
    views = {"caption": View(splits={"train": {"train": ("vg.arrow",)}}, distinct=True)}

    def convert(self, job: Conversion) -> None:
        """Convert ``annotations/region_descriptions.json`` and ``images/VG_100K{,_2}/``."""
        annotations = job.find("annotations/region_descriptions.json")
        rows = parsed(job.items(annotations, "item"), lambda entry: _row(job.raw / "images", entry))
        job.write("vg.arrow", REGION, rows)


def _row(images: Path, entry: Mapping[str, Any]) -> Parsed:
    number, regions = str(entry["id"]), []
    for region in entry["regions"]:
        if region["phrase"].strip():
            regions.append(region)
        else:
            yield Note("left out: region without a phrase", f"{number} {region['region_id']}")
    if not regions:
        yield Note("left out: image without regions", number)
        return
    places = [images / folder / f"{number}.jpg" for folder in ("VG_100K", "VG_100K_2")]
    values: dict[str, Any] = {
        key: [region[key] for region in regions] for key in ("width", "height", "x", "y")
    }
    values |= {"caption": [region["phrase"] for region in regions], "image_id": number}
    yield Row((next((place for place in places if place.exists()), places[0]),), values)
