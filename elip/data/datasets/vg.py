"""Visual Genome region descriptions (Krishna et al., 2016, arXiv:1602.07332)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa

from elip.data.datasets.base import DatasetSpec, Row, View

if TYPE_CHECKING:
    from elip.data.download import Download

_BOX = ("width", "height", "x", "y")
_REGION = {"phrase": str, **dict.fromkeys(_BOX, int)}


class VisualGenome(DatasetSpec):
    """Visual Genome: region descriptions as captions of the whole image, only for training."""

    name = "vg"
    views = {"caption": View(splits={"train": {"train": ("vg.arrow",)}}, distinct=True)}
    layout = "annotations/region_descriptions.json, images/VG_100K/ and images/VG_100K_2/"
    files = {
        "vg.arrow": pa.schema(
            {
                "image": pa.binary(),
                "caption": pa.list_(pa.string()),
                **dict.fromkeys(_BOX, pa.list_(pa.int64())),  # of each region, in pixels
                "image_id": pa.string(),
            }
        )
    }

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image."""
        annotations = download.find("annotations/region_descriptions.json")
        for entry in download.items(annotations, {"id": int | str, "regions": list}):
            number, regions = str(entry["id"]), []
            for region in download.fitting(entry["regions"], _REGION, f"image {number}"):
                if region["phrase"].strip():
                    regions.append(region)
                else:
                    download.skip("region without a phrase", f"image {number}")
            if not regions:
                download.skip("image without regions", number)
            elif download.is_new(number):
                values = {key: [region[key] for region in regions] for key in _BOX}
                values |= {"caption": [region["phrase"] for region in regions]}
                images = download.root / "images"
                place = images / "VG_100K" / f"{number}.jpg"
                if not place.exists():
                    place = images / "VG_100K_2" / f"{number}.jpg"
                yield Row("vg.arrow", {"image": place}, values | {"image_id": number})
