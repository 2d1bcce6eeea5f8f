"""Flickr8k captions (Hodosh et al., 2013, JAIR 47:853-899): photographs on a laptop, in 1 GB."""

from __future__ import annotations

import csv
import random
from collections.abc import Iterator
from pathlib import Path

from elip.data.arrow_writer import CAPTION
from elip.data.captions import caption_row
from elip.data.conversion import Conversion
from elip.data.datasets.base import DatasetSpec, View
from elip.data.entries import Note, Parsed

_SPLITS = {"train": "train", "val": "dev", "test": "test"}
_HELD_OUT = 1000


class Flickr8k(DatasetSpec):
    """Flickr8k: five captions per image, 6,000 training images and 1,000 each to select and score.

    Two layouts are read. The authors' has ``Flickr8k.token.txt`` and ``Flicker8k_Dataset/``; the
    widespread copy has ``captions.txt`` and ``Images/``. The splits are those of the authors'
    ``Flickr_8k.{train,dev,test}Images.txt``. The copy often comes without these lists; then 1,000
    images each are drawn for val and test, always the same.
    """

    name = "flickr8k"
    views = {
        "caption": View(
            splits={
                "train": {"train": ("flickr8k_train.arrow",)},
                "val": {"val": ("flickr8k_val.arrow",)},
                "test": {"test": ("flickr8k_test.arrow",)},
            },
            distinct=True,
        )
    }

    def convert(self, job: Conversion) -> None:
        """Convert ``captions.txt`` or ``Flickr8k.token.txt``, and the images they name."""
        captions: dict[str, list[str]] = {}
        for name, caption in _pairs(job.find("captions.txt", "Flickr8k.token.txt")):
            captions.setdefault(name, []).append(caption)
        folder = job.find("Images", "Flicker8k_Dataset", "Flickr8k_Dataset")
        listed = _lists(job.raw) or _drawn(sorted(captions))
        strays = sorted(captions.keys() - {name for names in listed.values() for name in names})
        for split, names in listed.items():
            rows = _rows(folder, split, names, captions, strays if split == "train" else [])
            job.write(f"flickr8k_{split}.arrow", CAPTION, rows)


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    """Yield file name and caption of each line."""
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".txt" and path.stem == "captions":
            for row in csv.DictReader(file):
                yield row["image"], row["caption"].strip()
        else:
            for line in filter(str.strip, file):
                name, _, caption = line.partition("\t")
                yield name.rpartition("#")[0], caption.strip()


def _lists(raw: Path) -> dict[str, list[str]]:
    """Return the image names of each split; nothing where the lists do not come along."""
    paths = {split: raw / f"Flickr_8k.{word}Images.txt" for split, word in _SPLITS.items()}
    if not all(path.exists() for path in paths.values()):
        return {}
    return {split: path.read_text("utf-8").split() for split, path in paths.items()}


def _drawn(names: list[str]) -> dict[str, list[str]]:
    count = min(_HELD_OUT, len(names) // 4)
    held_out = random.Random(0).sample(names, 2 * count)
    val, test = held_out[:count], held_out[count:]
    return {"train": sorted(set(names) - set(held_out)), "val": val, "test": test}


def _rows(
    folder: Path, split: str, names: list[str], captions: dict[str, list[str]], strays: list[str]
) -> Parsed:
    for name in strays:
        yield Note("left out: image in none of the split lists", name)
    for name in names:
        yield from caption_row(folder / name, captions.get(name, []), name, split)
