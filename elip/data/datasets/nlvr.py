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
"""Images per example: the orders of its three boxes, which share a label."""

BOX, GAP = 100, 50
"""Pixels: side of a box, and gap between two boxes, in the original images of 400 x 100."""

TILED = 224
"""Pixels: side of the square image for the three boxes."""


class Nlvr(DatasetSpec):
    """NLVR: is a sentence true of an image?

    A tenth of the training directories selects the model (the authors advise to hold out whole
    directories), and ``dev`` scores it.

    A centre crop of the 400 x 100 images would lose two of the three boxes. So the converter places
    the boxes on a square of 224 x 224 pixels, two above one, unscaled, on the original grey. The
    label does not depend on the order of the boxes.
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

    layout = "train/train.json, dev/dev.json and their images in train/images/ and dev/images/"
    files = {f"nlvr_{split}.arrow": STATEMENT for split in ("train", "val", "dev")}
    subfolder = "nlvr"

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image, six per sentence; create a tokenizer too."""
        train = list(statements(download, "train/train.json", by_folder=True))
        directories = sorted({str(entry["directory"]) for entry in train})
        if len(directories) < 2:
            raise DataError("train.json has only one directory; none can be held out.")
        count = max(1, round(0.1 * len(directories)))
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
    """Place the three boxes of a 400 x 100 image on a square; return it as a PNG.

    Images of another size stay as they are.
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
