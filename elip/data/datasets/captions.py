"""Annotation formats shared by several caption datasets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from elip.data.datasets.base import Row

if TYPE_CHECKING:
    from elip.data.download import Download

CAPTION = pa.schema(
    {
        "image": pa.binary(),
        "caption": pa.list_(pa.string()),
        "image_id": pa.string(),
        "split": pa.string(),
    }
)
"""An image with its captions."""

SHARD = 100_000
"""Images per file, if a dataset has several files."""


def karpathy_rows(
    download: Download, annotations: Path, folder: str | None, files: Mapping[str, str]
) -> Iterator[Row]:
    """Read Karpathy's annotations of COCO and Flickr30k.

    An image with several entries gets all captions, and the split of the last entry, as in the
    reference.

    Source: Karpathy and Fei-Fei, 2015, arXiv:1412.2306.

    Args:
        download: The download.
        annotations: The JSON file.
        folder: Folder of the images; None takes each entry's ``filepath``.
        files: The Arrow file of each split.
    """
    shape = {"split": str, "filename": str, "sentences": list}
    shape |= {} if folder else {"filepath": str}
    images: dict[str, tuple[str, Path, list[str]]] = {}
    for entry in download.items(annotations, shape, "images"):
        name, split = entry["filename"], entry["split"]
        said = download.fitting(entry["sentences"], {"raw": str}, name)
        captions = [sentence["raw"] for sentence in said]
        if split not in files:
            download.skip("image of an unknown split", f"{name}, split {split}")
            continue
        if name in images:
            download.skip("second entry of an image (captions are kept)", name)
            captions = images[name][2] + captions
        images[name] = split, download.root / (folder or entry["filepath"]) / name, captions
    for name, (split, path, captions) in images.items():
        yield from caption_rows(download, files[split], path, captions, name, split)


def pair_rows(download: Download, annotations: Path, file: str, split: str) -> Iterator[Row]:
    """Read a list of [image path, caption]; consecutive pairs of an image become one row.

    Args:
        download: The download.
        annotations: The JSON file.
        file: Name of the Arrow files of `SHARD` images, with ``{}`` for their number.
        split: Value of the split column.
    """
    pairs = download.items(annotations, (str, str))
    for number, (path, group) in enumerate(groupby(pairs, key=lambda pair: pair[0])):
        if download.is_new(path):
            captions = [pair[1] for pair in group]
            name = path.split("/")[-1]
            place = download.root / path
            shard = file.format(number // SHARD)
            yield from caption_rows(download, shard, place, captions, name, split)


def caption_rows(
    download: Download, file: str, path: Path, captions: Iterable[str], image_id: str, split: str
) -> Iterator[Row]:
    """Yield the row of one image; skip empty captions, and images without captions."""
    kept = []
    for caption in captions:
        if caption.strip():
            kept.append(caption)
        else:
            download.skip("empty caption", image_id)
    if kept:
        values = {"caption": kept, "image_id": image_id, "split": split}
        yield Row(file, {"image": path}, values)
    else:
        download.skip("image without a caption", image_id)
