"""Small Arrow files, a tokenizer and sources to read them with."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from elip.data.datasets.base import DatasetSpec, View

WORDS = ("a", "an", "the", "red", "blue", "green", "ball", "car", "tree", "snow", "##man", "is")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
COLORS = ("red", "blue", "green")
CAPTIONS_PER_IMAGE = 3


class Tiny(DatasetSpec):
    """Three phases of captions, and a few questions."""

    name = "tiny"
    views = {
        "caption": View(
            splits={
                "train": {"train": ("tiny_train_*.arrow",)},
                "val": {"val": ("tiny_val.arrow",)},
                "test": {"one": ("tiny_val.arrow",), "two": ("tiny_test.arrow",)},
            },
            distinct=True,
        ),
        "question": View(
            splits={"train": {"train": ("tiny_questions.arrow",)}},
            num_answers=7,
            answer_file="answers.json",
        ),
        "pair": View(splits={"train": {"train": ("tiny_pairs.arrow",)}}, num_answers=2),
    }


class Second(DatasetSpec):
    """A second dataset, for joining."""

    name = "second"
    views = {
        "caption": View(
            splits={
                "train": {"train": ("second.arrow",)},
                "val": {"val": ("second.arrow",)},
            }
        )
    }


class Other(DatasetSpec):
    """A dataset with other answers."""

    name = "other"
    views = {"question": View({}, num_answers=3)}


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """Return a plain image whose red value is ``value``."""
    stream = io.BytesIO()
    Image.new("RGB", size, (value, 10, 20)).save(stream, "PNG")
    return stream.getvalue()


def noise(seed: int, form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """Return an image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def write(path: Path, columns: dict[str, Any], schema: pa.Schema | None = None) -> Path:
    """Write one Arrow file with one record batch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns, schema=schema)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return path


def captions(path: Path, first: int, rows: int) -> Path:
    """Write rows whose image shows the row's number, with captions that name it."""
    numbers = range(first, first + rows)
    return write(
        path,
        {
            "image": [png(number) for number in numbers],
            "caption": [
                [f"{number} {color} ball" for color in COLORS[:CAPTIONS_PER_IMAGE]]
                for number in numbers
            ],
            "image_id": [f"image {number}" for number in numbers],
        },
    )


def write_tiny(root: Path) -> Path:
    """Write the files of `Tiny` and `Second` and a tokenizer; return the root."""
    captions(root / "tiny_train_2.arrow", 2, 2)
    captions(root / "tiny_train_10.arrow", 4, 7)
    captions(root / "tiny_val.arrow", 20, 3)
    captions(root / "tiny_test.arrow", 30, 2)
    captions(root / "second.arrow", 100, 4)
    write(
        root / "tiny_questions.arrow",
        {
            "image": [png(0), png(1)],
            "questions": [["is red ?", "is blue ?"], ["is a car ?"]],
            "answers": [[["yes", "no"], ["no"]], [["maybe"]]],
            "answer_labels": [[[0, 1], [1]], [[2]]],
            "answer_scores": [[[0.3, 0.9], [1.0]], [[0.6]]],
            "question_id": [[70, 71], [80]],
        },
    )
    write(
        root / "tiny_pairs.arrow",
        {
            "image_0": [png(0), png(1)],
            "image_1": [png(100), png(101)],
            "questions": [["a red ball", "a car"], ["a tree"]],
            "answers": [["True", "False"], ["False"]],
            "identifier": ["pair-0", "pair-1"],
        },
    )
    tokenizer().save(str(_folder(root / "tokenizer") / "tokenizer.json"))
    return root


def tokenizer() -> Tokenizer:
    """Return a WordPiece tokenizer with digits and a dozen words."""
    pieces = (*SPECIAL, *map(str, range(10)), *(f"##{digit}" for digit in range(10)), *WORDS, "?")
    made = Tokenizer(
        models.WordPiece({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]")
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path
