"""COCO and Flickr30k captions in the splits of Karpathy and Fei-Fei (2015, arXiv:1412.2306)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from elip.data.datasets.base import SCHEMAS, DatasetSpec, View
from elip.data.download import Download, Row

_COCO = {split: f"coco_caption_karpathy_{split}.arrow" for split in ("train", "restval", "val")}
_COCO_TRAIN = (_COCO["train"], _COCO["restval"])
_COCO_TEST = {"test": ("coco_caption_karpathy_test.arrow",)}
_F30K = {split: f"f30k_caption_karpathy_{split}.arrow" for split in ("train", "val")}
_F30K_TEST = {"test": ("f30k_caption_karpathy_test.arrow",)}


class _Karpathy(DatasetSpec):
    annotations: ClassVar[str]
    folder: ClassVar[str]  # of the images; "" takes each entry's "filepath"

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image.

        An image with several entries gets all captions, and the split of the last entry, as in the
        reference.
        """
        path = download.find(f"karpathy/{self.annotations}", self.annotations)
        shape = {"split": str, "filename": str, "sentences": list}
        shape |= {} if self.folder else {"filepath": str}
        files = {Path(file).stem.rpartition("_")[2]: file for file in self.files}
        images: dict[str, tuple[str, Path, list[str]]] = {}
        for entry in download.items(path, shape, "images.item"):
            name, split = entry["filename"], entry["split"]
            said = download.fitting(entry["sentences"], {"raw": str}, name)
            captions = [sentence["raw"] for sentence in said]
            if split not in files:
                download.skip("image of an unknown split", f"{name}, split {split}")
                continue
            if name in images:
                download.skip("second entry of an image (captions are kept)", name)
                captions = images[name][2] + captions
            folder = self.folder or entry["filepath"]
            images[name] = split, download.root / folder / name, captions
        for name, (split, place, captions) in images.items():
            yield from download.caption_rows(files[split], place, captions, name, split)


class Coco(_Karpathy):
    """COCO captions (Lin et al., 2014, arXiv:1405.0312): five per image, 113k training images."""

    name = "coco"
    views = {
        "caption": View(
            {"train": {"train": _COCO_TRAIN}, "val": {"val": (_COCO["val"],)}, "test": _COCO_TEST},
            official={"train": {"train": _COCO_TRAIN}, "val": _COCO_TEST, "test": _COCO_TEST},
            distinct=True,
        )
    }
    layout = "karpathy/dataset_coco.json, train2014/ and val2014/"
    files = dict.fromkeys((*_COCO.values(), *_COCO_TEST["test"]), SCHEMAS["caption"])
    annotations = "dataset_coco.json"
    folder = ""


class Flickr30k(_Karpathy):
    """Flickr30k captions (Young et al., 2014, TACL 2:67-78): five per image, 29k to train."""

    name = "f30k"
    views = {
        "caption": View(
            {
                "train": {"train": (_F30K["train"],)},
                "val": {"val": (_F30K["val"],)},
                "test": _F30K_TEST,
            },
            official={
                "train": {"train": (_F30K["train"], _F30K["val"])},
                "val": _F30K_TEST,
                "test": _F30K_TEST,
            },
            distinct=True,
        )
    }
    layout = "karpathy/dataset_flickr30k.json and flickr30k-images/"
    files = dict.fromkeys((*_F30K.values(), *_F30K_TEST["test"]), SCHEMAS["caption"])
    annotations = "dataset_flickr30k.json"
    folder = "flickr30k-images"
