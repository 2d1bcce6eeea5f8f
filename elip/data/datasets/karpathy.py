"""COCO and Flickr30k captions in the splits of Karpathy and Fei-Fei (2015, arXiv:1412.2306)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from elip.data.datasets.base import SCHEMAS, DatasetSpec, View
from elip.data.download import Download, Row


def _view(prefix: str, train: tuple[str, ...], official: tuple[str, ...]) -> View:
    """Return the splits; the reference also selects the model on test."""
    files = {part: f"{prefix}_{part}.arrow" for part in ("train", "restval", "val", "test")}
    ours, theirs = ({"train": tuple(files[part] for part in parts)} for parts in (train, official))
    val, test = {"val": (files["val"],)}, {"test": (files["test"],)}
    return View(
        {"train": ours, "val": val, "test": test},
        official={"train": theirs, "val": test, "test": test},
        distinct=True,
    )


class _Karpathy(DatasetSpec):
    annotations: ClassVar[str]
    folder: ClassVar[str] = ""  # of the images; "" takes each entry's "filepath"

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
    views = {"caption": _view("coco_caption_karpathy", ("train", "restval"), ("train", "restval"))}
    layout = "karpathy/dataset_coco.json, train2014/ and val2014/"
    files = {
        f"coco_caption_karpathy_{split}.arrow": SCHEMAS["caption"]
        for split in ("train", "restval", "val", "test")
    }
    annotations = "dataset_coco.json"


class Flickr30k(_Karpathy):
    """Flickr30k captions (Young et al., 2014, TACL 2:67-78): five per image, 29k to train."""

    name = "f30k"
    views = {"caption": _view("f30k_caption_karpathy", ("train",), ("train", "val"))}
    layout = "karpathy/dataset_flickr30k.json and flickr30k-images/"
    files = {
        f"f30k_caption_karpathy_{split}.arrow": SCHEMAS["caption"]
        for split in ("train", "val", "test")
    }
    annotations = "dataset_flickr30k.json"
    folder = "flickr30k-images"
