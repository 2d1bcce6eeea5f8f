"""The NLVR corpus in its official layout, from a miniature of it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tokenizers import Tokenizer

from elip.data.convert import Report, convert
from elip.data.datasets.nlvr import PERMUTATIONS, tiled

GREY, LIGHT = (128, 128, 128, 255), (211, 211, 211, 255)
BOX_COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def strip(order: tuple[int, ...]) -> bytes:
    """An image of three boxes, each with a coloured square, in the given order."""
    image = Image.new("RGBA", (400, 100), GREY)
    for place, number in enumerate(order):
        image.paste(LIGHT, (150 * place, 0, 150 * place + 100, 100))
        image.paste((*BOX_COLORS[number], 255), (150 * place + 40, 30, 150 * place + 60, 50))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


ORDERS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
SENTENCES = ("There is a box, at least.", "There are 2 black items", "No box touches the base")


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    """Twenty training directories of three sentences, two dev directories with bad entries."""
    root = tmp_path_factory.mktemp("nlvr")
    for split, directories in (("train", 20), ("dev", 2)):
        entries: list[dict[str, Any]] = []
        for directory in range(directories):
            folder = root / split / "images" / str(directory)
            folder.mkdir(parents=True)
            for number, sentence in enumerate(SENTENCES):
                name = {"identifier": f"{directory}-{number}", "directory": str(directory)}
                entries.append({"sentence": sentence, "label": bool(number), **name})
                for permutation, order in enumerate(ORDERS):
                    path = folder / f"{split}-{directory}-{number}-{permutation}.png"
                    path.write_bytes(strip(order))
        if split == "dev":
            entries += [
                {"sentence": " ", "label": "true", "identifier": "x", "directory": "0"},
                {"sentence": "a", "label": "maybe", "identifier": "y", "directory": "0"},
                {"sentence": "a", "label": "true", "identifier": "z", "directory": "0"},
            ]
        (root / split / f"{split}.json").write_text("\n".join(map(json.dumps, entries)))
    (root / "dev" / "images" / "1" / "dev-1-2-5.png").write_bytes(b"not an image")
    return root, convert("nlvr", root, root, check=False, progress=False)


def rows(out: Path, split: str) -> list[dict[str, Any]]:
    with pa.memory_map(str(out / "nlvr" / f"nlvr_{split}.arrow")) as file:
        found: list[dict[str, Any]] = pa.ipc.open_file(file).read_all().to_pylist()
    return found


def test_a_row_for_every_image(converted: tuple[Path, Report]) -> None:
    out, report = converted
    files = {f"nlvr_{split}.arrow": n for split, n in (("train", 18), ("val", 2), ("dev", 2))}
    expected = {file: directories * 3 * PERMUTATIONS for file, directories in files.items()}
    assert report.rows == expected | {"nlvr_dev.arrow": 2 * 3 * PERMUTATIONS - 1}
    assert report.skipped == {
        "missing sentence or label": 2,
        "missing image file": PERMUTATIONS,
        "damaged image": 1,  # even without the check: the converter must decode it
    }
    row = rows(out, "dev")[PERMUTATIONS + 4]
    assert row.pop("image") == tiled(strip(ORDERS[4]))
    assert row == {
        "questions": [SENTENCES[1]],
        "answers": ["True"],
        "identifier": "0-1",
        "directory": "0",
        "permutation": 4,
    }


def test_the_tokenizer_knows_the_training_sentences(converted: tuple[Path, Report]) -> None:
    path = converted[0] / "nlvr" / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    for sentence in SENTENCES:
        ids = tokenizer.encode(sentence).ids
        assert (ids[0], ids[-1]) == (0, 2)
        assert 3 not in ids
    assert tokenizer.encode("there is a zebra").ids[-2] == 3


def test_tiling_keeps_every_pixel_of_the_boxes() -> None:
    strip_pixels = np.asarray(Image.open(io.BytesIO(strip((2, 0, 1)))).convert("RGB"))
    square = np.asarray(Image.open(io.BytesIO(tiled(strip((2, 0, 1))))))
    assert square.shape == (224, 224, 3)
    places = [(8, 8), (8, 116), (116, 62)]
    for number, (top, left) in enumerate(places):
        box = strip_pixels[:, 150 * number : 150 * number + 100]
        assert (square[top : top + 100, left : left + 100] == box).all()
    assert (square != GREY[:3]).any(axis=-1).sum() == 3 * 100 * 100
