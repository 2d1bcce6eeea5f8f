"""VQA v2 (Goyal et al., 2016, arXiv:1612.00837)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from elip.data.answers import MIN_COUNT, Scored, scored, vocabulary
from elip.data.datasets.base import DataError, DatasetSpec, Row, View

if TYPE_CHECKING:
    from elip.data.download import Download


def _columns(texts: pa.DataType, numbers: pa.DataType, scores: pa.DataType) -> pa.Schema:
    return pa.schema(
        {
            "image": pa.binary(),
            "questions": pa.list_(pa.string()),
            "answers": pa.list_(texts),
            "answer_labels": pa.list_(numbers),
            "answer_scores": pa.list_(scores),
            "image_id": pa.int64(),
            "question_id": pa.list_(pa.int64()),
            "split": pa.string(),
        }
    )


QUESTION = _columns(*(pa.list_(each) for each in (pa.string(), pa.int64(), pa.float64())))
"""For each question its frequent answers, their numbers and their soft scores."""

_UNANSWERED = _columns(pa.null(), pa.null(), pa.null())  # the test splits
_TEST = {"test-dev": ("vqav2_test-dev.arrow",), "test-std": ("vqav2_test.arrow",)}
_ANSWERED = ("train", "val", "rest_val", "trainable_val")
_YEARS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
_REST = 1000
_QUESTION = {"question_id": int, "image_id": int, "question": str}


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
            splits={
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
        **{f"vqav2_{split}.arrow": QUESTION for split in _ANSWERED},
        **{f"vqav2_{split}.arrow": _UNANSWERED for split in ("test", "test-dev")},
    }

    def rows(self, download: Download) -> Iterator[Row]:
        """Yield one row per image, in order of first appearance."""
        common = (
            entry["multiple_choice_answer"]
            for split in ("train", "val")
            for entry in _annotations(download, split)
        )
        answers = vocabulary(common)
        if not answers:
            raise DataError(
                f"No answer in {download.root} is the most common one of {MIN_COUNT} or more "
                "questions, so none would be kept. Use the complete annotation files."
            )
        numbers = {answer: number for number, answer in enumerate(answers)}
        download.side_files["vqav2_answers.json"] = json.dumps(answers, indent=1) + "\n"
        yield from _rows(download, "train", _answers(download, "train", numbers))
        val = list(_rows(download, "val", _answers(download, "val", numbers)))
        images = sorted(row.values["image_id"] for row in val)
        rest = set(random.Random(0).sample(images, min(_REST, len(images))))
        for row in val:
            part = "rest_val" if row.values["image_id"] in rest else "trainable_val"
            yield from (row, Row(f"vqav2_{part}.arrow", row.images, row.values))
        for split in ("test", "test-dev"):
            yield from _rows(download, split, None)


def _annotations(download: Download, split: str) -> Iterator[dict[str, Any]]:
    path = download.find(f"v2_mscoco_{_YEARS[split]}_annotations.json")
    shape = {"question_id": int, "multiple_choice_answer": str, "answers": list}
    return download.items(path, shape, "annotations")


def _answers(download: Download, split: str, numbers: Mapping[str, int]) -> dict[int, list[Scored]]:
    """Return the scored answers of each question; the first of repeated annotations counts."""
    answers: dict[int, list[Scored]] = {}
    for entry in _annotations(download, split):
        number = entry["question_id"]
        if number in answers:
            download.skip("annotation with a repeated question number", f"question {number}")
            continue
        given = download.fitting(entry["answers"], {"answer": str}, f"question {number}")
        answers[number] = scored([one["answer"] for one in given], numbers)
    return answers


def _rows(
    download: Download, split: str, answers: Mapping[int, list[Scored]] | None
) -> Iterator[Row]:
    path = download.find(f"v2_OpenEnded_mscoco_{_YEARS[split]}_questions.json")
    images: dict[int, dict[int, str]] = {}
    seen: set[int] = set()
    for entry in download.items(path, _QUESTION, "questions"):
        number, asked = entry["question_id"], images.setdefault(entry["image_id"], {})
        repeated = number in seen
        seen.add(number)
        if repeated:
            download.skip("question with a repeated number", f"question {number}")
        elif not entry["question"].strip():
            download.skip("empty question", f"question {number}")
        elif answers is not None and number not in answers:
            download.skip("question without annotation", f"question {number}")
        elif answers is not None and not answers[number]:
            download.skip("question without a frequent answer", f"question {number}")
        else:
            asked[number] = entry["question"]
    if split == "test":
        download.side_files["vqav2_test_questions.json"] = json.dumps(sorted(seen)) + "\n"
    folder = "test2015" if answers is None else _YEARS[split]
    for image, asked in images.items():
        if not asked:
            download.skip("image without a usable question", f"image {image}")
            continue
        found = [answers[number] for number in asked] if answers is not None else []
        yield Row(
            f"vqav2_{split}.arrow",
            {"image": download.root / folder / f"COCO_{folder}_{image:012d}.jpg"},
            {
                "questions": list(asked.values()),
                "answers": [[one.answer for one in question] for question in found],
                "answer_labels": [[one.number for one in question] for question in found],
                "answer_scores": [[one.score for one in question] for question in found],
                "image_id": image,
                "question_id": list(asked),
                "split": split,
            },
        )
