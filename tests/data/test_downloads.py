"""Entries of official downloads that are not as they should be: each is counted, none ends it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from elip.data.convert import convert
from tests.data.test_convert import entailment, karpathy, put
from tests.data.tiny import png

Entries = list[Any]


def picture(path: Path) -> None:
    if not path.exists():
        put(path, png(1))


def lines(entries: Entries) -> str:
    return "\n".join(json.dumps(entry) for entry in entries)


def flickr(raw: Path, entries: Entries) -> None:
    for name in "ab":
        picture(raw / "flickr30k-images" / f"{name}.jpg")
    put(raw / "dataset_flickr30k.json", {"images": entries})


def sbu(raw: Path, entries: Entries) -> None:
    for name in "ab":
        picture(raw / f"{name}.jpg")
    put(raw / "annot.json", entries)


def genome(raw: Path, entries: Entries) -> None:
    for name in "12":
        picture(raw / "images" / "VG_100K" / f"{name}.jpg")
    put(raw / "annotations" / "region_descriptions.json", entries)


def snli(raw: Path, entries: Entries) -> None:
    for name in "12":
        picture(raw / "Flickr30K" / "images" / f"{name}.jpg")
    for split in ("train", "dev", "test"):
        put(raw / f"snli_ve_{split}.jsonl", lines(entries))


def nlvr2(raw: Path, entries: Entries) -> None:
    for folder in ("train/1", "dev", "test1"):
        for pair in "ab":
            for side in (0, 1):
                picture(raw / "images" / folder / f"{pair}-0-img{side}.png")
    for split in ("dev", "test1"):
        for kind in ("balanced", "unbalanced"):
            put(raw / "nlvr2" / "data" / kind / f"{kind}_{split}.json", lines(entries))
        put(raw / "nlvr2" / "data" / f"{split}.json", lines(entries))
    put(raw / "nlvr2" / "data" / "train.json", lines(entries))


def nlvr(raw: Path, entries: Entries) -> None:
    more = [{"identifier": "3-0", "directory": "3", "sentence": "x", "label": "true"}]
    for split in ("train", "dev"):
        put(raw / split / f"{split}.json", lines(entries + more))
        for directory in "123":
            for order in range(6):
                path = raw / split / "images" / directory / f"{split}-{directory}-0-{order}.png"
                picture(path)


def vqa(raw: Path, questions: Entries, annotations: Entries) -> None:
    for year in ("train2014", "val2014", "test2015"):
        for image in (1, 2):
            picture(raw / year / f"COCO_{year}_{image:012d}.jpg")
    for year in ("train2014", "val2014", "test2015", "test-dev2015"):
        put(raw / f"v2_OpenEnded_mscoco_{year}_questions.json", {"questions": questions})
        put(raw / f"v2_mscoco_{year}_annotations.json", {"annotations": annotations})


REGION = {"region_id": 7, "width": 1, "height": 2, "x": 3, "y": 4, "phrase": "a cat"}
QUESTIONS = [{"image_id": image, "question_id": image, "question": "q"} for image in (1, 2)]
ANNOTATIONS = [
    {"question_id": number, "multiple_choice_answer": "2", "answers": [{"answer": "2"}] * 10}
    for number in range(1, 11)
]
Case = tuple[str, Callable[[Path, Entries], None], Entries]
CASES: dict[str, Case] = {
    "f30k": ("f30k", flickr, [karpathy("train", f"{name}.jpg", ["x"]) for name in "ab"]),
    "sbu": ("sbu", sbu, [["a.jpg", "x"], ["b.jpg", "y"]]),
    "vg": ("vg", genome, [{"id": number, "regions": [REGION]} for number in (1, 2)]),
    "snli": ("snli_ve", snli, [json.loads(entailment(i, "neutral", "h", i)) for i in "12"]),
    "nlvr2": ("nlvr2", nlvr2, [
        {"identifier": f"{pair}-0-0", "sentence": "s", "label": "True", "directory": "1"}
        for pair in "ab"
    ]),
    "nlvr": ("nlvr", nlvr, [
        {"identifier": f"{name}-0", "sentence": "s", "label": "true", "directory": name}
        for name in "12"
    ]),
    "questions": ("vqav2", lambda raw, entries: vqa(raw, entries, ANNOTATIONS), QUESTIONS),
    "annotations": ("vqav2", lambda raw, entries: vqa(raw, QUESTIONS, entries), ANNOTATIONS),
}  # fmt: skip
WRONG: Entries = [
    None, True, [], {}, "\ud800", "a\0b", "x" * 5000,
    [{"raw": None, "phrase": "x", "width": "a", "answer": 5}],
]  # fmt: skip


def spoilt(entry: Any) -> Iterator[Any]:
    """Return the entry with each of its parts wrong, or missing, and things that are no entry."""
    yield from WRONG
    for key in range(len(entry)) if isinstance(entry, list) else entry:
        for wrong in WRONG:
            changed = copy.deepcopy(entry)
            changed[key] = wrong
            yield changed
        changed = copy.deepcopy(entry)
        del changed[key]
        yield changed


@pytest.mark.parametrize("name", CASES)
def test_an_entry_that_is_wrong_is_counted_and_the_others_are_kept(
    tmp_path: Path, name: str
) -> None:
    source, lay_out, entries = CASES[name]
    lay_out(tmp_path / "raw", entries)
    whole = convert(source, tmp_path / "raw", tmp_path / "whole", check=False, progress=False)
    for number, entry in enumerate(spoilt(entries[0])):
        lay_out(tmp_path / "raw", [entry, *entries[1:]])
        out = tmp_path / str(number)
        counts = convert(source, tmp_path / "raw", out, check=False, progress=False)
        rows = {what: count for what, count in counts.items() if what.endswith("rows")}
        assert sum(rows.values()) > 0, entry
        lost = any(count < whole[what] for what, count in rows.items())
        assert not lost or any("left out" in what for what in counts), entry
