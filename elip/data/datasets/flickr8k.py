"""Flickr8k captions (Hodosh et al., 2013, JAIR 47:853-899): photographs on a laptop, in 1 GB."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path

from elip.data.datasets.base import PHASES, SCHEMAS, DatasetSpec, View
from elip.data.download import Download, Row

_HELD_OUT = 1000


class Flickr8k(DatasetSpec):
    """Flickr8k: five captions per image; 6,000 images to train and 1,000 each for val and test.

    The authors' layout has ``Flickr8k.token.txt`` and ``Flicker8k_Dataset/``, the common copy
    ``captions.txt`` and ``Images/``. The splits are in ``Flickr_8k.{train,dev,test}Images.txt``.
    Without these lists, val and test are a fixed random draw of 1,000 images each.
    """

    name = "flickr8k"
    views = {
        "caption": View(
            {split: {split: (f"flickr8k_{split}.arrow",)} for split in PHASES},
            distinct=True,
        )
    }
    layout = (
        "captions.txt and Images/, or Flickr8k.token.txt and Flicker8k_Dataset/; and "
        "Flickr_8k.trainImages.txt, devImages.txt and testImages.txt if you have them"
    )
    files = {f"flickr8k_{split}.arrow": SCHEMAS["caption"] for split in PHASES}

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image."""
        path = download.find("captions.txt", "Flickr8k.token.txt")
        folder = download.find("Images", "Flicker8k_Dataset", "Flickr8k_Dataset")
        captions: dict[str, list[str]] = {}
        shape = {"image": str, "caption": str}
        for entry in download.items(path, shape, "", _entries(path)):
            captions.setdefault(entry["image"], []).append(entry["caption"].strip())
        lists = {
            split: download.root / f"Flickr_8k.{word}Images.txt"
            for split, word in (("train", "train"), ("val", "dev"), ("test", "test"))
        }
        if all(path.exists() for path in lists.values()):
            splits = {n: split for split, path in lists.items() for n in path.read_text().split()}
        else:
            names = sorted(captions)
            count = min(_HELD_OUT, len(names) // 4)
            held_out = random.Random(0).sample(names, 2 * count)
            splits = dict.fromkeys(names, "train") | dict.fromkeys(held_out[:count], "val")
            splits |= dict.fromkeys(held_out[count:], "test")
        for name in sorted(captions.keys() - splits.keys()):
            download.skip("image in no split list", name)
        for name, split in splits.items():
            said, file = captions.get(name, []), f"flickr8k_{split}.arrow"
            yield from download.caption_rows(file, folder / name, said, name, split)


def _entries(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.name == "captions.txt":
            yield from csv.DictReader(file)
        else:
            for line in filter(str.strip, file):
                name, _, caption = line.partition("\t")
                yield {"image": name.rpartition("#")[0], "caption": caption}
