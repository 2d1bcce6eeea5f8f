"""The built-in data: is everything that is said true, balanced, and the same every time?"""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import random
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

from elip.data.datasets import DataError, find_dataset
from elip.data.shapes import Options, Scene, random_scene, write_shapes
from elip.data.shapes.__main__ import main
from elip.data.shapes.draw import draw
from elip.data.shapes.scene import COLORS

KINDS = ("caption", "question", "pair", "entailment", "statement")
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
    return json.loads(row[column])["things"]


# An own reading of the sentences, which shares no code with the one that makes them.

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
def test_every_caption_is_true(folder: Path, split: str) -> None:
    for row in rows(folder, "caption", split):
        assert len(row["caption"]) == len(set(row["caption"])) == 5
        for caption in row["caption"]:
            assert is_true(caption, things(row)), (caption, row["scene"])


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_is_right(folder: Path, split: str) -> None:
    words = json.loads((folder / "shapes_answers.json").read_text())
    for row in rows(folder, "question", split):
        assert row["questions"]
        for question, given, labels, scores in zip(
            row["questions"],
            row["answers"],
            row["answer_labels"],
            row["answer_scores"],
            strict=True,
        ):
            assert given == [answer(question, things(row))], (question, row["scene"])
            assert [words[label] for label in labels] == given
            assert scores == [1.0]


@pytest.mark.parametrize("split", SPLITS)
def test_every_statement_is_labelled_right(folder: Path, split: str) -> None:
    for row in rows(folder, "statement", split):
        for sentence, label in zip(row["questions"], row["answers"], strict=True):
            assert label == str(is_true(sentence, things(row))), (sentence, row["scene"])


@pytest.mark.parametrize("split", SPLITS)
def test_every_statement_about_two_pictures_is_labelled_right(folder: Path, split: str) -> None:
    for row in rows(folder, "pair", split):
        left, right = things(row, "scene_0"), things(row, "scene_1")
        for sentence, label in zip(row["questions"], row["answers"], strict=True):
            assert label == str(is_true_of_pair(sentence, left, right)), (sentence, row["scene_0"])


@pytest.mark.parametrize("split", SPLITS)
def test_every_hypothesis_is_classed_right(folder: Path, split: str) -> None:
    for row in rows(folder, "entailment", split):
        unseen = 1 if json.loads(row["scene"])["card"] else 0
        for (premise, hypothesis), label in zip(row["sentences"], row["labels"], strict=True):
            assert is_true(premise, things(row))
            assert label == (2 if is_true(hypothesis, things(row)) else unseen)


def test_a_random_other_picture_rarely_satisfies_a_caption(folder: Path) -> None:
    captions = list(rows(folder, "caption"))
    scenes = [things(row) for row in captions]
    rng = random.Random(0)
    satisfied = [
        is_true(caption, scenes[rng.randrange(len(scenes))])
        for row in captions
        for caption in row["caption"]
    ]
    assert np.mean(satisfied) < 0.05


def shares(labels: list[Any]) -> dict[Any, float]:
    return {label: count / len(labels) for label, count in Counter(labels).items()}


def test_no_answer_is_much_more_frequent_than_the_others(folder: Path) -> None:
    answers = [a for row in rows(folder, "question") for given in row["answers"] for a in given]
    assert max(shares(answers).values()) < 0.09
    assert len(shares(answers)) >= 20


@pytest.mark.parametrize("kind", ["statement", "pair"])
def test_half_of_the_statements_are_true(folder: Path, kind: str) -> None:
    answers = [answer for row in rows(folder, kind) for answer in row["answers"]]
    assert shares(answers) == {"True": 0.5, "False": 0.5}


def test_classes_of_entailment_are_equally_frequent(folder: Path) -> None:
    labels = [label for row in rows(folder, "entailment") for label in row["labels"]]
    assert shares(labels) == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})


def test_a_sentence_alone_does_not_tell_whether_it_is_true(folder: Path) -> None:
    """The words of true and false sentences are equally frequent, to sampling error."""
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
        scenes = [row["scene"] for split in SPLITS for row in rows(folder, kind, split)]
        pictures = {json.dumps(json.loads(scene)["things"]) for scene in scenes}
        assert len(set(scenes)) == len(pictures) == 520


def test_things_lie_inside_and_apart() -> None:
    for index in range(300):
        scene = random_scene((1, 2, index), card=index % 2 == 0)
        assert 2 <= len(scene.things) <= 3
        assert len({(thing.shape, thing.color) for thing in scene.things}) == len(scene.things)
        boxes = [thing.box for thing in scene.things] + ([scene.card] if scene.card else [])
        covered = np.zeros((64, 64), int)
        for left, top, right, bottom in boxes:
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
            covered[top:bottom, left:right] += 1
        assert covered.max() == 1
        assert covered.mean() < 0.35


def test_the_picture_shows_things_where_the_description_says_and_nowhere_else() -> None:
    for index in range(50):
        scene = random_scene((0, 0, index))
        pixels = np.asarray(draw(scene), int)
        for color in COLORS:
            near = np.abs(pixels - COLORS[color]).max(axis=-1) <= 12
            for left, top, right, bottom in (t.box for t in scene.things if t.color == color):
                assert near[top:bottom, left:right].mean() > 0.15  # a star fills a quarter
                near[top:bottom, left:right] = False
            assert not near.any(), (index, color)


def test_a_scene_survives_its_description() -> None:
    for card in (False, True):
        scene = random_scene((0, 1, 2), card=card)
        assert Scene.from_json(scene.to_json()) == scene


def test_same_files_to_the_bit(folder: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path, OPTIONS, progress=False)
    for path in sorted(folder.rglob("*.*")):
        if path.is_file() and path.name != ".lock":
            assert (tmp_path / path.relative_to(folder)).read_bytes() == path.read_bytes(), path


def test_another_seed_gives_other_scenes(folder: Path, tmp_path: Path) -> None:
    write_shapes(tmp_path, Options(train=400, val=2, test=2, seed=1), progress=False)
    ours = {json.dumps(things(row)) for row in rows(folder, "caption")}
    assert not ours & {json.dumps(things(row)) for row in rows(tmp_path, "caption")}


def test_image_size_is_an_option(tmp_path: Path) -> None:
    write_shapes(tmp_path, Options(pixels=96, train=2, val=2, test=2), progress=False)
    row = next(rows(tmp_path, "caption"))
    assert Image.open(io.BytesIO(row["image"])).size == (96, 96)
    with pytest.raises(ValueError, match="48 or more"):
        random_scene((0,), pixels=20)


def test_more_things_make_it_harder(tmp_path: Path) -> None:
    write_shapes(tmp_path, Options(things=4, train=60, val=2, test=2), progress=False)
    assert {len(things(row)) for row in rows(tmp_path, "caption")} == {2, 3, 4}
    for row in rows(tmp_path, "question"):
        for question, given in zip(row["questions"], row["answers"], strict=True):
            assert given == [answer(question, things(row))]
    with pytest.raises(ValueError, match="2 to 4"):
        random_scene((0,), most=9)


def test_the_tokenizer_knows_every_word(folder: Path) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    assert [tokenizer.id_to_token(i) for i in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert tokenizer.token_to_id("<mask>") == tokenizer.get_vocab_size() - 1 < 64
    texts = [text for row in rows(folder, "caption") for text in row["caption"]]
    texts += [text for kind in KINDS[1:] for row in rows(folder, kind) for text in said(row)]
    for text in texts:
        encoded = tokenizer.encode(text)
        assert encoded.ids[0] == 0
        assert encoded.ids[-1] == 2
        assert 3 not in encoded.ids, text
        assert len(encoded.ids) <= 16, text
    assert tokenizer.encode("a <mask> Circle").tokens == ["<s>", "a", "<mask>", "circle", "</s>"]


def said(row: dict[str, Any]) -> list[str]:
    return (
        row["questions"]
        if "questions" in row
        else [text for two in row["sentences"] for text in two]
    )


def test_made_once(tmp_path: Path) -> None:
    write_shapes(tmp_path, Options(train=2, val=2, test=2), progress=False)
    path = tmp_path / "shapes_caption_train.arrow"
    before = path.stat().st_mtime_ns
    write_shapes(tmp_path, progress=False)  # no options: what is there will do
    assert path.stat().st_mtime_ns == before
    write_shapes(tmp_path, Options(train=4, val=2, test=2), progress=False)
    assert len(list(rows(tmp_path, "caption"))) == 4


def test_what_was_interrupted_is_made_as_it_was_meant(tmp_path: Path, monkeypatch: Any) -> None:
    from elip.data.shapes import write

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    options = Options(train=4, val=2, test=2)
    with monkeypatch.context() as patch:
        patch.setattr(write.language, "hypotheses", fail)
        with pytest.raises(KeyboardInterrupt):
            write_shapes(tmp_path, options, progress=False)
    assert not list(tmp_path.glob("*.arrow"))
    assert not list(tmp_path.glob("*.part"))
    (tmp_path / ".shapes_caption_train.arrow.7.part").touch()  # of a process that was killed
    assert write_shapes(tmp_path, progress=False) == options
    assert not list(tmp_path.glob(".*.part"))
    assert len(list(rows(tmp_path, "caption"))) == 4


def test_a_lost_file_is_made_again_and_nothing_else_takes_its_place(tmp_path: Path) -> None:
    options = Options(train=4, val=2, test=2)
    write_shapes(tmp_path / "shapes", options, progress=False)
    (tmp_path / "shapes" / "shapes_pair_val.arrow").unlink()
    find_dataset("shapes").prepare(tmp_path)
    assert len(list(rows(tmp_path / "shapes", "pair", "val"))) == 1


@pytest.mark.parametrize(
    "wrong",
    ["--pixels=0", "--pixels=5000", "--things=1", "--things=5", "--train=-1", "--train=0",
     "--val=1", "--test=20000000", "--seed=-1", "--seed=4294967296"],
)  # fmt: skip
def test_wrong_options_leave_everything_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    marker = tmp_path / "shapes" / "shapes.json"
    marker.parent.mkdir()
    marker.write_text("{}")
    assert main(["--root", str(tmp_path), wrong]) == 2
    name, number = wrong.removeprefix("--").split("=")
    said = capsys.readouterr().err
    assert said.startswith(f"error: {name} of the shapes data is {number}; it must be ")
    assert len(said.splitlines()) == 1
    assert [path.name for path in marker.parent.iterdir()] == [marker.name]


@pytest.mark.parametrize(
    "content",
    ["", '{"version": 3, "pix', "[]", '["pixels"]', '"pixels"', "null", "3", "{}",
     '{"version": 3}', b"\xff", "[" * 100_000,
     json.dumps({"version": 3, **dataclasses.asdict(OPTIONS), "train": "400"}),
     json.dumps({"version": 3, **dataclasses.asdict(OPTIONS), "pixels": 1})],
)  # fmt: skip
def test_a_damaged_statement_of_what_is_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | bytes
) -> None:
    marker = tmp_path / "shapes" / "shapes.json"
    marker.parent.mkdir()
    marker.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=r"shapes\.json does not say .* Delete it"):
        find_dataset("shapes").prepare(tmp_path)
    assert main(["--root", str(tmp_path)]) == 2
    assert "shapes.json does not say" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.arrow"))


def _make(folder: Path) -> None:
    write_shapes(folder, Options(train=30, val=2, test=2), progress=False)


def test_several_processes_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    makers = [context.Process(target=_make, args=(tmp_path,)) for _ in range(3)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0, 0, 0]
    assert len(list(rows(tmp_path, "statement"))) == 30
    assert not list(tmp_path.glob("*.part"))


def test_the_source_names_files_that_are_made(folder: Path) -> None:
    source = find_dataset("shapes")
    for kind, view in source.views.items():
        for splits in view.splits.values():
            for patterns in splits.values():
                assert source.paths(folder.parent, patterns), kind
    assert source.beside(folder.parent, "tokenizer") == folder / "tokenizer"
