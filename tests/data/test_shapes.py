"""The built-in data: texts are true and balanced, files reproducible."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import multiprocessing
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tokenizers import Tokenizer

from elip.data.datasets.base import LAYOUT
from elip.data.shapes import Options, language, write_shapes
from elip.data.shapes.__main__ import main
from elip.data.shapes.scene import COLORS, draw, random_scene

SPLITS = ("train", "val", "test")
OPTIONS = Options(train=400, val=60, test=60)
Things = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(folder, OPTIONS, progress=False)
    return folder


def rows(folder: Path, kind: str, split: str = "train") -> Iterator[dict[str, Any]]:
    with pa.memory_map(str(folder / f"shapes_{kind}_{split}.arrow")) as file:
        yield from pa.ipc.open_file(file).read_all().to_pylist()


def things(row: dict[str, Any], column: str = "scene") -> Things:
    found: Things = json.loads(row[column])["things"]
    return found


# An independent interpretation of the texts.

RELATIONS = {
    "left of": lambda a, b: a[2] <= b[0],
    "right of": lambda a, b: a[0] >= b[2],
    "above": lambda a, b: a[3] <= b[1],
    "below": lambda a, b: a[1] >= b[3],
}


def fits(phrase: str, thing: dict[str, Any]) -> bool:
    words = phrase.removeprefix("a ").split()
    return all(word in (thing["size"], thing["color"], thing["shape"]) for word in words)


def is_true(sentence: str, scene: Things) -> bool:
    """Whether a caption or statement holds in a scene."""
    sentence = sentence.removesuffix(" .").removeprefix("there is ")
    parts = re.split(r"(?: is)? (left of|right of|above|below|and) ", sentence)
    if len(parts) == 1:
        return any(fits(sentence, thing) for thing in scene)
    first, word, second = parts
    return any(
        fits(first, a)
        and fits(second, b)
        and (word == "and" or RELATIONS[word](a["box"], b["box"]))
        for a in scene
        for b in scene
        if a is not b
    )


def answer(question: str, scene: Things) -> str:
    """The answer to a question."""
    if match := re.fullmatch(r"what (\w+) is the (\w+)( thing)? \?", question):
        asked, word, _ = match.groups()
        (thing,) = (thing for thing in scene if word in (thing["color"], thing["shape"]))
        return str(thing[asked])
    if match := re.fullmatch(r"how many (?:(\w+) )?things are there \?", question):
        return str(sum(match[1] in (None, thing["color"]) for thing in scene))
    match = re.fullmatch(r"is there (.+) \?", question)
    assert match
    return "yes" if is_true(match[1], scene) else "no"


def is_true_of_pair(sentence: str, left: Things, right: Things) -> bool:
    """Whether a statement about two pictures holds."""
    if match := re.fullmatch(r"(there is .+) in the (left|right) image \.", sentence):
        return is_true(match[1], left if match[2] == "left" else right)
    match = re.fullmatch(r"(both images have|only one image has) (\w+) things \.", sentence)
    assert match
    count = sum(any(thing["color"] == match[2] for thing in scene) for scene in (left, right))
    return count == (2 if match[1] == "both images have" else 1)


@pytest.mark.parametrize("split", SPLITS)
def test_every_text_is_true(folder: Path, split: str) -> None:
    words = json.loads((folder / "shapes_answers.json").read_text())
    for row in rows(folder, "caption", split):
        assert len(set(row["caption"])) == 5
        for caption in row["caption"]:
            assert is_true(caption, things(row)), (caption, row["scene"])
    for row in rows(folder, "question", split):
        expected = [[answer(question, things(row))] for question in row["questions"]]
        assert row["answers"] == expected != []
        assert [[words[label] for label in labels] for labels in row["answer_labels"]] == expected
        assert row["answer_scores"] == [[1.0]] * len(expected)
    for row in rows(folder, "statement", split):
        truths = [str(is_true(sentence, things(row))) for sentence in row["questions"]]
        assert row["answers"] == truths
    for row in rows(folder, "pair", split):
        left, right = things(row, "scene_0"), things(row, "scene_1")
        truths = [str(is_true_of_pair(sentence, left, right)) for sentence in row["questions"]]
        assert row["answers"] == truths
    for row in rows(folder, "entailment", split):
        unseen = 1 if json.loads(row["scene"])["card"] else 0
        for (premise, hypothesis), label in zip(row["sentences"], row["labels"], strict=True):
            assert is_true(premise, things(row))
            assert label == (2 if is_true(hypothesis, things(row)) else unseen)


def shares(labels: list[Any]) -> dict[Any, float]:
    return {label: count / len(labels) for label, count in Counter(labels).items()}


def test_labels_are_balanced(folder: Path) -> None:
    answers = [a for row in rows(folder, "question") for given in row["answers"] for a in given]
    assert max(shares(answers).values()) < 0.09
    assert len(shares(answers)) >= 20
    for kind in ("statement", "pair"):
        truths = [answer for row in rows(folder, kind) for answer in row["answers"]]
        assert shares(truths) == {"True": 0.5, "False": 0.5}
    labels = [label for row in rows(folder, "entailment") for label in row["labels"]]
    assert shares(labels) == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})


def test_a_sentence_alone_does_not_reveal_its_label(folder: Path) -> None:
    for kind in ("statement", "pair"):
        counts: dict[str, Counter[str]] = {"True": Counter(), "False": Counter()}
        for row in rows(folder, kind):
            for sentence, label in zip(row["questions"], row["answers"], strict=True):
                counts[label].update(sentence.split())
        for word in counts["True"] | counts["False"]:
            true, false = counts["True"][word], counts["False"][word]
            assert abs(true - false) < 5 * np.sqrt(true + false), (kind, word, true, false)


def test_no_scene_is_in_two_splits(folder: Path) -> None:
    for kind in ("caption", "entailment"):
        scenes = [things(row) for split in SPLITS for row in rows(folder, kind, split)]
        assert len(set(map(json.dumps, scenes))) == 520


def test_scenes_and_their_images() -> None:
    for index in range(100):
        scene = random_scene((1, 2, index), card=index % 2 == 0)
        assert 2 <= len({(thing.shape, thing.color) for thing in scene.things}) <= 3
        covered = np.zeros((64, 64), int)
        for left, top, right, bottom in [*(t.box for t in scene.things), scene.card or (0,) * 4]:
            assert 0 <= min(left, top) <= max(right, bottom) <= 64
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
        pixels = np.asarray(draw(scene), int)
        for color in COLORS:
            near = np.abs(pixels - COLORS[color]).max(axis=-1) <= 12
            for left, top, right, bottom in (t.box for t in scene.things if t.color == color):
                assert near[top:bottom, left:right].mean() > 0.15  # a star fills a quarter
                near[top:bottom, left:right] = False
            assert not near.any(), (index, color)


def test_the_same_options_give_the_same_files_and_a_seed_others(tmp_path: Path) -> None:
    small = Options(train=40, val=2, test=2)
    for name, options in (("a", small), ("b", small), ("c", dataclasses.replace(small, seed=1))):
        write_shapes(tmp_path / name, options, progress=False)
    digest = hashlib.sha256()
    for path in sorted((tmp_path / "a").glob("*.arrow")):
        assert (tmp_path / "b" / path.name).read_bytes() == path.read_bytes(), path
        for row in rows(tmp_path / "a", *path.stem.split("_")[1:]):
            pixels = [
                Image.open(io.BytesIO(row.pop(name))).tobytes()
                for name in list(row)
                if name.startswith("image") and name != "image_id"
            ]
            digest.update(json.dumps(row).encode() + b"".join(pixels))
    assert digest.hexdigest()[:16] == SHIPPED
    ours, others = (list(map(things, rows(tmp_path / name, "caption"))) for name in "ac")
    assert not any(scene in others for scene in ours)


SHIPPED = "306cd262dda25a31"
"""Of all rows and pixels: the shipped models learnt from these."""


def test_the_tokenizer_knows_every_word(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    assert [tokenizer.id_to_token(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert tokenizer.token_to_id("<mask>") == tokenizer.get_vocab_size() - 1 < 64
    for kind, columns in LAYOUT.items():
        for text in {
            str(text) for row in rows(folder, kind) for text in np.ravel(row[columns.texts])
        }:
            ids = tokenizer.encode(text).ids
            assert (ids[0], ids[-1], 3 in ids) == (0, 2, False), text
            assert len(ids) <= 16, text
    assert tokenizer.encode("a <mask> Circle").tokens == ["<s>", "a", "<mask>", "circle", "</s>"]


def test_a_dataset_is_kept_and_an_incomplete_one_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Options(train=4, val=2, test=2)
    with monkeypatch.context() as patch:
        patch.setattr(language, "hypotheses", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_shapes(tmp_path / "shapes", small, progress=False)
    assert not list((tmp_path / "shapes").glob("*.arrow"))
    assert write_shapes(tmp_path / "shapes", progress=False) == small
    path = tmp_path / "shapes" / "shapes_caption_train.arrow"
    before = path.stat().st_mtime_ns
    assert write_shapes(tmp_path / "shapes", progress=False) == small
    for wrong in ("--pixels=0", "--seed=-1"):
        assert main(["--root", str(tmp_path), wrong]) == 2
        assert "it must be" in capsys.readouterr().err
    assert path.stat().st_mtime_ns == before
    path.unlink()
    assert write_shapes(tmp_path / "shapes", progress=False) == small
    assert len(list(rows(tmp_path / "shapes", "caption"))) == 4
    assert main(["--root", str(tmp_path), "--train=6", "--val=2", "--test=2"]) == 0
    assert len(list(rows(tmp_path / "shapes", "caption"))) == 6


def _make(folder: Path) -> None:
    write_shapes(folder, Options(train=30, val=2, test=2), progress=False)


def test_several_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    makers = [context.Process(target=_make, args=(tmp_path,)) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert len(list(rows(tmp_path, "statement"))) == 30
