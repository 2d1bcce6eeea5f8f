"""NLVR: human sentences about drawn images, true or false (Suhr et al., 2017, ACL)."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from PIL import Image

from elip.data.datasets.base import DataError, DatasetSpec, Row, View
from elip.data.datasets.nlvr2 import statements

if TYPE_CHECKING:
    from elip.data.download import Download

STATEMENT = pa.schema(
    {
        "image": pa.binary(),
        "questions": pa.list_(pa.string()),
        "answers": pa.list_(pa.string()),
        "identifier": pa.string(),
        "directory": pa.string(),
        "permutation": pa.int64(),
    }
)
"""Sentences about one image, "True" or "False"."""

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

    download = "https://lil.nlp.cornell.edu/nlvr"
    layout = "train/train.json, dev/dev.json and their images in train/images/ and dev/images/"
    files = {f"nlvr_{split}.arrow": STATEMENT for split in ("train", "val", "dev")}
    subfolder = "nlvr"

    def rows(self, download: Download) -> Iterator[Row]:
        """Read a row for each of the six images of a sentence; make a tokenizer beside them."""
        train = list(statements(download, "train/train.json", by_folder=True))
        directories = sorted({str(entry["directory"]) for entry in train})
        if len(directories) < 2:
            raise DataError("train.json has one directory only; none can be held out.")
        count = max(1, round(VALIDATION_SHARE * len(directories)))
        held_out = set(random.Random(0).sample(directories, count))
        words: set[str] = set()
        for entry in train:
            split = "val" if str(entry["directory"]) in held_out else "train"
            if split == "train":
                words |= set(re.findall(r"\w+|[^\w\s]+", entry["sentence"].lower()))
            yield from _rows(download.root / "train", split, entry)
        for entry in statements(download, "dev/dev.json", by_folder=True):
            yield from _rows(download.root / "dev", "dev", entry)
        from elip.data.tokenize import word_tokenizer  # late: it imports transformers

        tokenizer = word_tokenizer(sorted(words))
        download.side_files["tokenizer/tokenizer.json"] = tokenizer.to_str(pretty=True)


def _rows(folder: Path, split: str, entry: Mapping[str, Any]) -> Iterator[Row]:
    identifier, directory = entry["identifier"], str(entry["directory"])
    for permutation in range(PERMUTATIONS):
        name = f"{folder.name}-{identifier}-{permutation}.png"
        values = {
            "questions": [entry["sentence"]],
            "answers": [entry["label"]],
            "identifier": identifier,
            "directory": directory,
            "permutation": permutation,
        }
        place = folder / "images" / directory / name
        yield Row(f"nlvr_{split}.arrow", {"image": place}, values, change=tiled)


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
