"""The annotation formats that several caption datasets share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from elip.data.arrow_writer import CAPTION
from elip.data.conversion import Conversion
from elip.data.entries import Note, Parsed, Row, having, parsed, unexpected

SHARD = 100_000
"""Annotations per file where a dataset is split over several files."""


def write_karpathy(
    job: Conversion, annotations: Path, folder: str | None, names: Mapping[str, str]
) -> None:
    """Write the splits of Karpathy's COCO and Flickr30k annotations.

    Source: Karpathy and Fei-Fei, 2015, arXiv:1412.2306.

    Args:
        job: The conversion.
        annotations: The JSON file.
        folder: Folder of the images; None takes each entry's ``filepath``.
        names: The file to write for each split.
    """

    def rows(split: str) -> Parsed:
        strays = split == next(iter(names))  # noted with the first file
        for entry in having(job.items(annotations, "images.item"), split=str):
            if isinstance(entry, Note):
                yield from [entry] if strays else []
            elif entry["split"] == split:
                yield from parsed([entry], row)
            elif strays and entry["split"] not in names:
                yield Note("left out: entry of an unknown split", str(entry.get("filename")))

    def row(entry: Mapping[str, Any]) -> Parsed:
        name = entry["filename"]
        path = job.raw / (folder or entry["filepath"]) / name
        captions = [sentence["raw"] for sentence in entry["sentences"]]
        return caption_row(path, captions, name, entry["split"])

    for split, name in names.items():
        job.write(name, CAPTION, rows(split))


def write_pairs(job: Conversion, annotations: Path, name: str, split: str) -> None:
    """Write a list of [image path, caption] in files of `SHARD` entries each.

    Neighbouring entries of the same image become one row.

    Args:
        job: The conversion.
        annotations: The JSON file.
        name: Name of the files, with ``{}`` for their number.
        split: What goes into the split column.
    """

    def row(group: tuple[str | None, list[Any]]) -> Parsed:
        path, captions = group
        if path is None:
            return [unexpected("no [image path, caption] in", entry) for entry in captions]
        return caption_row(job.raw / path, captions, path.split("/")[-1], split)

    groups = _by_image(job.items(annotations, "item"))
    for number, shard in enumerate(_shards(groups)):
        job.write(name.format(number), CAPTION, parsed(shard, row))


def caption_row(path: Path, captions: Iterable[str], image_id: str, split: str) -> Parsed:
    """Return the row of one image; empty captions are left out, and images without any."""
    kept = []
    for caption in captions:
        if caption.strip():
            kept.append(caption)
        else:
            yield Note("left out: empty caption", image_id)
    if kept:
        yield Row((path,), {"caption": kept, "image_id": image_id, "split": split})
    else:
        yield Note("left out: image without a caption", image_id)


def _by_image(pairs: Iterable[Any]) -> Iterator[tuple[str | None, list[Any]]]:
    """Yield each image path with its captions; None with the entries that are no pairs."""
    for path, group in groupby(pairs, key=_path):
        entries = list(group)
        yield path, entries if path is None else [pair[1] for pair in entries]


def _path(pair: Any) -> str | None:
    is_pair = isinstance(pair, list) and len(pair) > 1 and isinstance(pair[0], str)
    return pair[0] if is_pair else None


def _shards(groups: Iterator[tuple[Any, list[Any]]]) -> Iterator[list[tuple[Any, list[Any]]]]:
    shard = list(islice(groups, SHARD))
    while shard:
        yield shard
        shard = list(islice(groups, SHARD))
