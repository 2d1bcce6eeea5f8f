"""NLVR: human sentences about drawn images, true or false (Suhr et al., 2017, ACL)."""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from elip.data.arrow_writer import STATEMENT
from elip.data.conversion import Conversion
from elip.data.datasets.base import DataError, DatasetSpec, View
from elip.data.entries import Note, Parsed, Row, having, parsed
from elip.data.words import save_tokenizer, word_tokenizer

PERMUTATIONS = 6
"""Images of an example: the orders of its three boxes. The label holds for all of them."""

VALIDATION_SHARE = 0.1
"""Share of the training directories that is held out to select models."""

BOX, GAP = 100, 50
"""Pixels: edge of a box, and distance between two boxes, in the corpus' images of 400 x 100."""

TILED = 224
"""Pixels: edge of the square picture that the three boxes are laid out on."""


class Nlvr(DatasetSpec):
    """The NLVR corpus: is a sentence true of an image?

    ``train`` without some whole directories, as its authors advise; the directories held out
    select the model; ``dev`` scores it (the labels of the official test are not needed).

    The images are 400 x 100: a centre crop would cut two of the three boxes off, and squeezing
    them into a square would leave objects of 10 pixels about 2 wide at usual sizes. Their boxes
    are therefore laid out on a square of 224 x 224 pixels, two above one, unscaled and with a
    margin of the corpus' own grey; that loses nothing, since a label holds for any order of the
    boxes. 224 pixels scale to all usual sizes.
    """

    name = "nlvr"
    views = {
        "statement": View(
            splits={
                "train": {"train": ("nlvr_train.arrow",)},
                "val": {"val": ("nlvr_val.arrow",)},
                "test": {"dev": ("nlvr_dev.arrow",)},
            },
            num_answers=2,
        )
    }

    def convert(self, job: Conversion) -> None:
        """Convert ``train/`` and ``dev/`` of the official layout to ``out / "nlvr"``.

        Besides rows and notes, the counts tell the score of always giving the commoner answer,
        in percent (rounded), and how many images the corpus has in its training and in its dev
        split; they are kept, as in the official splits.
        """
        folder = job.into(self.name)
        train, dev = job.find("train/train.json"), job.find("dev/dev.json")
        held_out = _held_out(job, train)
        files = {
            "train": (train, lambda directory: directory not in held_out),
            "val": (train, lambda directory: directory in held_out),
            "dev": (dev, lambda directory: True),
        }
        for split, (source, chosen) in files.items():
            rows = _split(job, source, chosen)
            job.write(f"nlvr_{split}.arrow", STATEMENT, rows, change=tiled)
        save_tokenizer(word_tokenizer(_words(folder / "nlvr_train.arrow")), folder)
        for split in files:
            share = majority(folder / f"nlvr_{split}.arrow")
            job.counts[f"nlvr_{split}.arrow: commoner answer, percent"] = round(100 * share)
        dev_images = _digests(folder / "nlvr_dev.arrow")
        for split in ("train", "val"):
            shared = len(_digests(folder / f"nlvr_{split}.arrow") & dev_images)
            job.counts[f"nlvr_{split}.arrow: images that dev has too"] = shared


def tiled(data: bytes) -> bytes:
    """Lay the three boxes of an image out on a square, two above one.

    Args:
        data: An image file of 400 x 100 pixels.

    Returns:
        A PNG of `TILED` x `TILED` pixels, RGB; the image as it is if it has another size.
    """
    with Image.open(io.BytesIO(data)) as file:
        image = file.convert("RGB")
    if image.size != (3 * BOX + 2 * GAP, BOX):
        return data
    margin = (TILED - 2 * BOX) // 3
    far = TILED - margin - BOX
    square = Image.new("RGB", (TILED, TILED), image.getpixel((BOX + GAP // 2, BOX // 2)))
    for number, place in enumerate([(margin, margin), (far, margin), (TILED // 2 - BOX // 2, far)]):
        left = number * (BOX + GAP)
        square.paste(image.crop((left, 0, left + BOX, BOX)), place)
    buffer = io.BytesIO()
    square.save(buffer, "PNG")
    return buffer.getvalue()


def majority(path: Path) -> float:
    """Return the share of the commoner answer in a file of statements."""
    counts = Counter(answer for _, answer in _texts(path))
    return max(counts.values(), default=0) / max(1, counts.total())


def _digests(path: Path) -> set[bytes]:
    images = (row["image"] for row in _columns(path, ["image"]))
    return {hashlib.sha256(image).digest() for image in images}


def _held_out(job: Conversion, train: Path) -> frozenset[str]:
    """Return the training directories that validate: a fixed draw."""
    entries = [entry for entry in _entries(job, train) if not isinstance(entry, Note)]
    directories = sorted({str(entry["directory"]) for entry in entries})
    count = max(1, round(VALIDATION_SHARE * len(directories)))
    if len(directories) < 2:
        raise DataError(f"{train} has one directory only; none can be held out for validation.")
    return frozenset(random.Random(0).sample(directories, count))


def _entries(job: Conversion, source: Path) -> Iterator[Mapping[str, Any] | Note]:
    return having(job.lines(source), directory=str | int, identifier=str, sentence=str)


def _split(job: Conversion, source: Path, chosen: Callable[[str], bool]) -> Parsed:
    entries = [
        entry
        for entry in _entries(job, source)
        if chosen("" if isinstance(entry, Note) else str(entry["directory"]))
    ]
    job.expect(PERMUTATIONS * len(entries))
    yield from parsed(entries, partial(_rows, source.parent))


def _rows(folder: Path, entry: Mapping[str, Any] | Note) -> Parsed:
    if isinstance(entry, Note):
        yield entry
        return
    identifier, directory = entry["identifier"], str(entry["directory"])
    label = str(entry["label"]).capitalize()
    if label not in ("True", "False") or not entry["sentence"].strip():
        yield Note("left out: no sentence or no label", identifier)
        return
    for permutation in range(PERMUTATIONS):
        name = f"{folder.name}-{identifier}-{permutation}.png"
        yield Row(
            (folder / "images" / directory / name,),
            {
                "questions": [entry["sentence"]],
                "answers": [label],
                "identifier": identifier,
                "directory": directory,
                "permutation": permutation,
            },
        )


def _words(path: Path) -> list[str]:
    """Return the words and marks of all sentences, in alphabetical order."""
    return sorted(
        {w for text, _ in _texts(path) for w in re.findall(r"\w+|[^\w\s]+", text.lower())}
    )


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    for row in _columns(path, ["questions", "answers"]):
        yield from zip(row["questions"], row["answers"], strict=True)


def _columns(path: Path, names: list[str]) -> Iterator[dict[str, Any]]:
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        for number in range(reader.num_record_batches):
            yield from reader.get_batch(number).select(names).to_pylist()
