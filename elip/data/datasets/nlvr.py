"""NLVR: human sentences about drawn images, true or false (Suhr et al., 2017, ACL)."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Iterator

from PIL import Image

from elip.data.datasets.base import SCHEMAS, DatasetSpec, View
from elip.data.datasets.nlvr2 import statements
from elip.data.download import Download, Row

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
            {
                "train": {"train": ("nlvr_train.arrow",)},
                "val": {"val": ("nlvr_val.arrow",)},
                "test": {"dev": ("nlvr_dev.arrow",)},
            },
            num_answers=2,
        )
    }
    layout = "train/train.json, dev/dev.json and their images in train/images/ and dev/images/"
    files = {f"nlvr_{split}.arrow": SCHEMAS["statement"] for split in ("train", "val", "dev")}

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image, six per sentence; create a tokenizer too."""
        from elip.data.tokenize import word_tokenizer  # late: it imports transformers

        entries = [("train", each) for each in statements(download, "train/train.json", True)]
        entries += [("dev", each) for each in statements(download, "dev/dev.json", True)]
        folders = sorted({str(entry["directory"]) for split, entry in entries if split == "train"})
        held_out = set(random.Random(0).sample(folders, max(1, round(0.1 * len(folders)))))
        words: set[str] = set()
        for part, entry in entries:
            identifier, directory = entry["identifier"], str(entry["directory"])
            split = "val" if part == "train" and directory in held_out else part
            if split == "train":
                words |= set(re.findall(r"\w+|[^\w\s]+", entry["sentence"].lower()))
            for permutation in range(PERMUTATIONS):
                values = {
                    "questions": [entry["sentence"]], "answers": [entry["label"]],
                    "identifier": identifier, "directory": directory, "permutation": permutation,
                }  # fmt: skip
                name = f"{part}-{identifier}-{permutation}.png"
                place = download.root / part / "images" / directory / name
                yield Row(f"nlvr_{split}.arrow", {"image": place}, values, change=tiled)
        tokenizer = word_tokenizer(sorted(words)).to_str(pretty=True)
        download.side_files["tokenizer/tokenizer.json"] = tokenizer


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
