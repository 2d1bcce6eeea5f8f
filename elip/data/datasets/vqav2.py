"""VQA v2 (Goyal et al., 2016, arXiv:1612.00837): questions, frequent answers, soft scores.

Answers are normalised by the rules of the evaluation (Antol et al., 2015, arXiv:1505.00468), and
counted and scored with the thresholds of ViLT and METER.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from itertools import product
from typing import Any

import pyarrow as pa

from elip.data.datasets.base import SCHEMAS, DataError, DatasetSpec, View
from elip.data.download import Download, Row, fits, json_entries

MIN_COUNT = 9
"""An answer is kept if it is the most common one of at least this many questions."""

_YEARS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
_TEST = {"test-dev": ("vqav2_test-dev.arrow",), "test-std": ("vqav2_test.arrow",)}
_REST = 1000
_ANSWERED = ("train", "val", "rest_val", "trainable_val")
_UNANSWERED = pa.schema([  # as in the reference: the columns of answers have no type
    field.with_type(pa.list_(pa.null())) if field.name.startswith("answer") else field
    for field in SCHEMAS["question"]
])  # fmt: skip


class VqaV2(DatasetSpec):
    """VQA v2: questions with ten human answers each, as soft scores over the frequent answers.

    By default the images of `rest_val` select the model and all others train it. The reference
    trains on train and val and selects on val. `rest_val` is a fixed random draw of 1,000
    validation images (in the reference the draw has no seed).

    The answers by number go to ``vqav2_answers.json``. The numbers of all test questions go to
    ``vqav2_test_questions.json``, because the evaluation server requires an answer to each.
    """

    name = "vqav2"
    views = {
        "question": View(
            {
                "train": {"train": ("vqav2_train.arrow", "vqav2_trainable_val.arrow")},
                "val": {"val": ("vqav2_rest_val.arrow",)},
                "test": _TEST,
            },
            official={
                "train": {"train": ("vqav2_train.arrow", "vqav2_val.arrow")},
                "val": {"val": ("vqav2_val.arrow",)},
                "test": {"test-std": ("vqav2_test.arrow",)},
            },
            num_answers=3129,
            answer_file="vqav2_answers.json",
            asked_file="vqav2_test_questions.json",
        )
    }
    layout = "the v2_*.json files, train2014/, val2014/ and test2015/"
    files = {
        **dict.fromkeys((f"vqav2_{split}.arrow" for split in _ANSWERED), SCHEMAS["question"]),
        **dict.fromkeys(("vqav2_test.arrow", "vqav2_test-dev.arrow"), _UNANSWERED),
    }

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image, in order of first appearance."""
        common = (
            normalise(entry["multiple_choice_answer"])
            for split in ("train", "val")
            for entry in _annotations(download, split)
        )
        kept = [answer for answer, count in Counter(common).items() if count >= MIN_COUNT]
        if not kept:
            raise DataError(
                f"No answer in {download.root} is the most common one of {MIN_COUNT} or more "
                "questions, so none would be kept. Use the complete annotation files."
            )
        numbers = {answer: number for number, answer in enumerate(kept)}
        download.side_files["vqav2_answers.json"] = json.dumps(kept, indent=1) + "\n"
        yield from _rows(download, "train", numbers)
        val = list(_rows(download, "val", numbers))
        images = sorted(row.values["image_id"] for row in val)
        rest = set(random.Random(0).sample(images, min(_REST, len(images))))
        for row in val:
            part = "rest_val" if row.values["image_id"] in rest else "trainable_val"
            yield from (row, Row(f"vqav2_{part}.arrow", row.images, row.values))
        for split in ("test", "test-dev"):
            yield from _rows(download, split, None)


def _annotations(download: Download, split: str, again: bool = False) -> Iterator[dict[str, Any]]:
    path, place = download.find(f"v2_mscoco_{_YEARS[split]}_annotations.json"), "annotations.item"
    shape = {"question_id": int, "multiple_choice_answer": str, "answers": list}
    if again:  # the first reading has counted the malformed entries
        return (entry for entry in json_entries(path, place) if fits(entry, shape))
    return download.items(path, shape, place)


def _rows(download: Download, split: str, numbers: dict[str, int] | None) -> Iterator[Row]:
    """Yield the rows of a split; without answers if there are no ``numbers`` of the kept ones."""
    answers: dict[int, list[tuple[str, int, float]]] = {}  # by question; the first ones count
    for entry in _annotations(download, split, again=True) if numbers is not None else ():
        number, where = entry["question_id"], f"question {entry['question_id']}"
        if number in answers:
            download.skip("annotation with a repeated question number", where)
        else:
            given = download.fitting(entry["answers"], {"answer": str}, where)
            answers[number] = scored([one["answer"] for one in given], numbers or {})
    path = download.find(f"v2_OpenEnded_mscoco_{_YEARS[split]}_questions.json")
    shape = {"question_id": int, "image_id": int, "question": str}
    images: dict[int, dict[int, str]] = {}
    seen: set[int] = set()
    for entry in download.items(path, shape, "questions.item"):
        number, asked = entry["question_id"], images.setdefault(entry["image_id"], {})
        if number in seen:
            download.skip("question with a repeated number", f"question {number}")
        elif not entry["question"].strip():
            download.skip("empty question", f"question {number}")
        elif numbers is not None and number not in answers:
            download.skip("question without annotation", f"question {number}")
        elif numbers is not None and not answers[number]:
            download.skip("question without a frequent answer", f"question {number}")
        else:
            asked[number] = entry["question"]
        seen.add(number)
    if split == "test":
        download.side_files["vqav2_test_questions.json"] = json.dumps(sorted(seen)) + "\n"
    folder = "test2015" if numbers is None else _YEARS[split]
    for image, asked in images.items():
        if not asked:
            download.skip("image without a usable question", f"image {image}")
            continue
        found = [answers[number] for number in asked] if numbers is not None else []
        values = {
            "questions": list(asked.values()), "question_id": list(asked), "image_id": image,
            "answers": [[word for word, _, _ in each] for each in found],
            "answer_labels": [[number for _, number, _ in each] for each in found],
            "answer_scores": [[score for _, _, score in each] for each in found],
            "split": split,
        }  # fmt: skip
        place = download.root / folder / f"COCO_{folder}_{image:012d}.jpg"
        yield Row(f"vqav2_{split}.arrow", {"image": place}, values)


def scored(answers: list[str], numbers: dict[str, int]) -> list[tuple[str, int, float]]:
    """Return the kept answers of (ten) people with numbers and soft scores, by first appearance.

    They are not normalised: the reference normalises only to build the list of answers.
    """
    scores = (0.0, 0.3, 0.6, 0.9, 1.0)
    counts = Counter(answers).items()
    return [(word, numbers[word], scores[min(n, 4)]) for word, n in counts if word in numbers]


_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {"none": "0"} | {word: str(i) for i, word in enumerate(_NUMBERS.split())}
_MARKS = r""";/[]"{}()=+\_-><@`,?!"""
_CONTRACTIONS = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've "
    "hasn't haven't he'd he'd've he's how'd how'll how's I'd've I'm I've isn't it'd it'd've "
    "it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't "
    "shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's "
    "someone'd someone'd've someone'll someone's something'd something'd've something'll that's "
    "there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't "
    "we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd "
    "who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've "
    "y'all y'all'll y'all'd've you'd you'd've you'll you're you've"
)
_RESTORED = {}  # contractions with any of their apostrophes missing, and the correct form
for _full in _CONTRACTIONS.split():
    for _marks in product(("'", ""), repeat=_full.count("'")):
        _pieces = zip(_full.split("'"), (*_marks, ""), strict=True)
        _RESTORED["".join(piece + mark for piece, mark in _pieces)] = _full


def normalise(answer: str) -> str:
    """Normalise an answer as the VQA evaluation does.

    Lower case, no punctuation or articles, digits for number words, restored apostrophes.
    """
    text = answer
    # In answers with a thousands comma, marks vanish instead of becoming spaces.
    thousands = re.search(r"\d,\d", answer) is not None
    for mark in _MARKS:
        touches_space = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if thousands or touches_space else " ")
    text = re.sub(r"\.(?!\d)", "", text)
    words = (_DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in ("a", "an", "the"))
