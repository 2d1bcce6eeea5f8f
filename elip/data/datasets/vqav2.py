"""VQA v2 (Goyal et al., 2016, arXiv:1612.00837)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from elip.data.answers import Scored, read_answers, scored, vocabulary
from elip.data.arrow_writer import QUESTION, QUESTION_WITHOUT_ANSWERS, write_json
from elip.data.conversion import Conversion
from elip.data.datasets.base import DatasetSpec, View
from elip.data.entries import Note, Parsed, Row, having

_TEST = {"test-dev": ("vqav2_test-dev.arrow",), "test-std": ("vqav2_test.arrow",)}


class VqaV2(DatasetSpec):
    """VQA v2: questions with ten human answers each, as soft scores over the frequent answers.

    By default the images of `rest_val` select the model and all others train it. The reference
    trains on train and val and selects on val.
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
        )
    }

    def convert(self, job: Conversion) -> None:
        """Convert the ``v2_*.json`` files, ``train2014/``, ``val2014/`` and ``test2015/``.

        The kept answers by number go to ``vqav2_answers.json``. `rest_val` is a fixed draw of
        1,000 validation images (the reference takes the last 1,000 of an unseeded shuffle).
        """
        numbers = {answer: i for i, answer in enumerate(_kept_answers(job))}
        job.write("vqav2_train.arrow", QUESTION, _rows(job, "train", numbers))
        val = cache(lambda: tuple(_rows(job, "val", numbers)))
        job.write("vqav2_val.arrow", QUESTION, _all(val))
        job.write("vqav2_rest_val.arrow", QUESTION, _part(val, rest=True))
        job.write("vqav2_trainable_val.arrow", QUESTION, _part(val, rest=False))
        for split in ("test", "test-dev"):
            rows = _rows(job, split, None)
            job.write(f"vqav2_{split}.arrow", QUESTION_WITHOUT_ANSWERS, rows)


_REST = 1000
_FOLDERS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test2015"}
_YEARS = {"train": "train2014", "val": "val2014", "test": "test2015", "test-dev": "test-dev2015"}
_Answers = dict[int, list[Scored]]


def _kept_answers(job: Conversion) -> list[str]:
    """Read the vocabulary that an earlier, interrupted conversion wrote, or make it."""
    path = job.out / "vqav2_answers.json"
    if not path.exists():
        common = (
            entry["multiple_choice_answer"]
            for split in ("train", "val")
            for entry in having(
                job.items(_annotations(job, split), "annotations.item"), multiple_choice_answer=str
            )
            if not isinstance(entry, Note)  # seen again, and counted, where its question is
        )
        write_json(path, vocabulary(common))
    return read_answers(path)


def _annotations(job: Conversion, split: str) -> Path:
    return job.find(f"v2_mscoco_{_YEARS[split]}_annotations.json")


def _rows(job: Conversion, split: str, numbers: Mapping[str, int] | None) -> Parsed:
    """Return one row an image, in order of first appearance; without ``numbers`` no answers."""
    answers: _Answers | None = None
    if numbers is not None:
        answers = _answers(job, split, numbers)
    images: dict[int, dict[int, str]] = {}
    questions = job.find(f"v2_OpenEnded_mscoco_{_YEARS[split]}_questions.json")
    entries = having(
        job.items(questions, "questions.item"), question_id=int, image_id=int, question=str
    )
    for entry in entries:
        if isinstance(entry, Note):
            yield entry
            continue
        number, image, text = entry["question_id"], entry["image_id"], entry["question"]
        asked = images.setdefault(image, {})
        reason = _reason_against(number, text, asked, answers)
        if reason:
            yield Note(f"left out: {reason}", f"question {number}")
            continue
        if text in asked.values():
            yield Note("kept: question asked twice of an image", f"question {number}")
        asked[number] = text
    job.expect(len(images))
    for image, asked in images.items():
        if asked:
            yield _row(job.raw / _FOLDERS[split], split, image, asked, answers)
        else:
            yield Note("left out: image without a usable question", f"image {image}")


def _answers(job: Conversion, split: str, numbers: Mapping[str, int]) -> _Answers:
    """Return the answers by question; one without all of them counts as without annotation."""
    annotations = job.items(_annotations(job, split), "annotations.item")
    answers: _Answers = {}
    for entry in having(annotations, question_id=int, answers=list):
        if not isinstance(entry, Note):
            given = list(having(entry["answers"], answer=str))
            said = [one["answer"] for one in given if not isinstance(one, Note)]
            if len(said) == len(given):
                answers[entry["question_id"]] = scored(said, numbers)
    return answers


def _all(entries: Callable[[], tuple[Row | Note, ...]]) -> Parsed:
    """Put off reading the entries until a file really needs them."""
    yield from entries()


def _part(entries: Callable[[], tuple[Row | Note, ...]], rest: bool) -> Parsed:
    """Return the rows of the images that are, or are not, among the fixed draw."""
    rows = [entry for entry in entries() if isinstance(entry, Row)]
    images = [row.values["image_id"] for row in rows]
    drawn = set(random.Random(0).sample(sorted(images), min(_REST, len(images))))
    yield from (row for row in rows if (row.values["image_id"] in drawn) == rest)


def _reason_against(
    number: int, text: str, asked: Mapping[int, str], answers: _Answers | None
) -> str:
    if number in asked:
        return "question number occurs twice"
    if not text.strip():
        return "empty question"
    if answers is not None and number not in answers:
        return "question without annotation"
    if answers is not None and not answers[number]:
        return "question without a frequent answer"
    return ""


def _row(
    folder: Path, split: str, image: int, asked: Mapping[int, str], answers: _Answers | None
) -> Row:
    found = [answers[number] for number in asked] if answers is not None else []
    return Row(
        (folder / f"COCO_{folder.name}_{image:012d}.jpg",),
        {
            "questions": list(asked.values()),
            "answers": [[one.answer for one in one_question] for one_question in found],
            "answer_labels": [[one.number for one in one_question] for one_question in found],
            "answer_scores": [[one.score for one in one_question] for one_question in found],
            "image_id": image,
            "question_id": list(asked),
            "split": split,
        },
    )
