"""Visual Genome region descriptions (Krishna et al., 2016, arXiv:1602.07332)."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from elip.data.datasets.base import DatasetSpec, View
from elip.data.download import Download, Row

_BOX = ("width", "height", "x", "y")  # of each region, in pixels


class VisualGenome(DatasetSpec):
    """Visual Genome: region descriptions as captions of the whole image, only for training."""

    name = "vg"
    views = {"caption": View({"train": {"train": ("vg.arrow",)}}, distinct=True)}
    layout = "annotations/region_descriptions.json, images/VG_100K/ and images/VG_100K_2/"
    files = {
        "vg.arrow": pa.schema({
            "image": pa.binary(), "caption": pa.list_(pa.string()),
            **dict.fromkeys(_BOX, pa.list_(pa.int64())), "image_id": pa.string(),
        })
    }  # fmt: skip

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image."""
        path = download.find("annotations/region_descriptions.json")
        shape = {"phrase": str, **dict.fromkeys(_BOX, int)}
        for entry in download.items(path, {"id": int | str, "regions": list}):
            number, regions = str(entry["id"]), []
            for region in download.fitting(entry["regions"], shape, f"image {number}"):
                if region["phrase"].strip():
                    regions.append(region)
                else:
                    download.skip("region without a phrase", f"image {number}")
            if not regions:
                download.skip("image without regions", number)
            elif download.is_new(number):
                values = {key: [region[key] for region in regions] for key in _BOX}
                values |= {"caption": [region["phrase"] for region in regions]}
                place = download.root / "images" / "VG_100K" / f"{number}.jpg"
                if not place.exists():
                    place = download.root / "images" / "VG_100K_2" / f"{number}.jpg"
                yield Row("vg.arrow", {"image": place}, values | {"image_id": number})
