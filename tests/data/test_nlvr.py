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

from elip.data.convert import convert
from elip.data.datasets import DataError
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
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty training directories of three sentences, two dev directories."""
    root = tmp_path_factory.mktemp("nlvr")
    for split, directories in (("train", 20), ("dev", 2)):
        lines = []
        for directory in range(directories):
            folder = root / split / "images" / str(directory)
            folder.mkdir(parents=True)
            for number, sentence in enumerate(SENTENCES):
                identifier = f"{directory}-{number}"
                label = "true" if number else "false"
                entry = {"sentence": sentence, "label": label, "identifier": identifier}
                lines.append(json.dumps({**entry, "directory": str(directory)}))
                for permutation, order in enumerate(ORDERS):
                    path = folder / f"{split}-{identifier}-{permutation}.png"
                    path.write_bytes(strip(order))
        (root / split / f"{split}.json").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def converted(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, int]]:
    out = tmp_path_factory.mktemp("arrows")
    counts = convert("nlvr", corpus, out, progress=False)
    return out, dict(counts)


def rows(out: Path, split: str) -> list[dict[str, Any]]:
    with pa.memory_map(str(out / "nlvr" / f"nlvr_{split}.arrow")) as file:
        return pa.ipc.open_file(file).read_all().to_pylist()


def test_a_row_for_every_image(converted: tuple[Path, dict[str, int]]) -> None:
    out, counts = converted
    assert len(rows(out, "train")) == 18 * 3 * PERMUTATIONS
    assert len(rows(out, "val")) == 2 * 3 * PERMUTATIONS
    assert len(rows(out, "dev")) == 2 * 3 * PERMUTATIONS
    assert counts["nlvr_train.arrow: rows"] == 18 * 3 * PERMUTATIONS


def test_rows_say_what_the_corpus_says(converted: tuple[Path, dict[str, int]]) -> None:
    row = rows(converted[0], "dev")[PERMUTATIONS + 4]
    assert row.pop("image") == tiled(strip(ORDERS[4]))
    assert row == {
        "questions": [SENTENCES[1]],
        "answers": ["True"],
        "identifier": "0-1",
        "directory": "0",
        "permutation": 4,
    }


def test_validation_is_held_out_by_whole_directories(
    corpus: Path, converted: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    train, val = ({row["directory"] for row in rows(converted[0], s)} for s in ("train", "val"))
    assert not train & val
    assert len(train | val) == 20
    convert("nlvr", corpus, tmp_path, progress=False)
    assert {row["directory"] for row in rows(tmp_path, "val")} == val


def test_counts_tell_majority_and_shared_images(converted: tuple[Path, dict[str, int]]) -> None:
    counts = converted[1]
    assert counts["nlvr_dev.arrow: commoner answer, percent"] == 67
    assert counts["nlvr_train.arrow: images that dev has too"] == PERMUTATIONS


def test_the_tokenizer_knows_the_training_sentences(
    converted: tuple[Path, dict[str, int]],
) -> None:
    path = converted[0] / "nlvr" / "tokenizer" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    for sentence in SENTENCES:
        ids = tokenizer.encode(sentence).ids
        assert (ids[0], ids[-1]) == (0, 2)
        assert 3 not in ids
    assert tokenizer.encode("there is a zebra").ids[-2] == 3


def test_tiling_keeps_every_pixel_of_every_box() -> None:
    strip_pixels = np.asarray(Image.open(io.BytesIO(strip((2, 0, 1)))).convert("RGB"))
    square = np.asarray(Image.open(io.BytesIO(tiled(strip((2, 0, 1))))))
    assert square.shape == (224, 224, 3)
    places = [(8, 8), (8, 116), (116, 62)]
    for number, (top, left) in enumerate(places):
        box = strip_pixels[:, 150 * number : 150 * number + 100]
        assert (square[top : top + 100, left : left + 100] == box).all()
    assert (square != GREY[:3]).any(axis=-1).sum() == 3 * 100 * 100


def test_an_image_of_another_size_stays_as_it_is() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (50, 40)).save(buffer, "PNG")
    assert tiled(buffer.getvalue()) == buffer.getvalue()


def test_bad_entries_are_counted(corpus: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for split in ("train", "dev"):
        (raw / split).mkdir(parents=True)
        (raw / split / "images").symlink_to(corpus / split / "images")
        lines = (corpus / split / f"{split}.json").read_text().splitlines()
        if split == "dev":
            lines += ['{"sentence": " ", "label": "true", "identifier": "x", "directory": "0"}']
            lines += ['{"sentence": "a", "label": "maybe", "identifier": "y", "directory": "0"}']
            lines += ['{"sentence": "a", "label": "true", "identifier": "z", "directory": "0"}']
        (raw / split / f"{split}.json").write_text("\n".join(lines))
    counts = convert("nlvr", raw, tmp_path / "out", progress=False)
    assert counts["nlvr_dev.arrow: rows"] == 36
    assert counts["nlvr_dev.arrow: left out: no sentence or no label"] == 2
    assert counts["nlvr_dev.arrow: left out: image file missing"] == PERMUTATIONS


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train/train\.json"):
        convert("nlvr", tmp_path, tmp_path / "out", progress=False)


def test_a_bad_image_is_left_out_also_without_the_check(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        entries = [
            {"identifier": f"{d}-0", "directory": d, "sentence": "x", "label": "true"} for d in "12"
        ]
        (tmp_path / split / "images" / "1").mkdir(parents=True)
        (tmp_path / split / "images" / "1" / f"{split}-1-0-0.png").write_bytes(b"not an image")
        (tmp_path / split / f"{split}.json").write_text("\n".join(map(json.dumps, entries)))
    counts = convert("nlvr", tmp_path, tmp_path / "out", check=False, progress=False)
    assert counts["nlvr_dev.arrow: left out: image does not decode"] == 1
