"""Reading Arrow files of any batching and type width; errors name file and row."""

from __future__ import annotations

import pickle
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from elip.data.arrow import ArrowTable, SoftAnswers
from elip.data.batch import SampleSpec
from elip.data.collate import Collator
from elip.data.dataset import DatasetConfig, Examples
from elip.data.datasets.base import LAYOUT, Columns, DataError
from elip.data.tokenize import TextTokenizer, wrap
from elip.data.transforms import TRANSFORMS
from tests.data.tiny import captions, png, tokenizer, write, write_tiny

BARE = Columns(("image",), "caption")


def test_items_run_through_files_rows_and_texts(tmp_path: Path) -> None:
    paths = [captions(tmp_path / "a.arrow", 0, 2), captions(tmp_path / "b.arrow", 7, 1)]
    table = ArrowTable(paths, LAYOUT["caption"])
    assert (table.num_rows, table.num_items) == (3, 9)
    assert [table.locate(item) for item in (0, 2, 3, 8)] == [(0, 0), (0, 2), (1, 0), (2, 2)]
    assert (table.text(2, 1), table.key(2, 1)) == ("7 blue ball", "image 7")
    assert bytes(table.images(2)[0]) == png(7)
    assert table.where(2).endswith("b.arrow, row 0")
    assert pickle.loads(pickle.dumps(table)).text(2, 1) == "7 blue ball"  # noqa: S301


def test_repeated_texts_count_once(tmp_path: Path) -> None:
    texts = [["b", "a", "b"], ["a"], ["c", "c", "c"], [], ["d", "e"]]
    path = write(tmp_path / "a.arrow", {"image": [png(0)] * 5, "caption": texts})
    table = ArrowTable([path], BARE, distinct=True)
    assert [len(table.items(row)) for row in range(5)] == [2, 1, 1, 0, 2]
    assert [table.text(0, 0), table.text(0, 1)] == ["b", "a"]
    assert ArrowTable([path], BARE).num_items == 9


def test_a_large_set_opens_at_once_and_its_pickle_holds_no_rows(tmp_path: Path) -> None:
    columns = {"image": [b"x" * 100] * 100_000, "caption": [["a", "b", "a"]] * 100_000}
    path = write(tmp_path / "a.arrow", columns)
    start = time.process_time()
    table = ArrowTable([path], BARE, distinct=True)
    assert time.process_time() - start < 0.2
    assert table.num_items == 200_000
    assert len(pickle.dumps(table)) < 5_000


def test_large_types_several_batches_and_empty_files(tmp_path: Path) -> None:
    wide = pa.schema({"image": pa.large_binary(), "caption": pa.large_list(pa.large_string())})
    nothing = pa.schema({"image": pa.null(), "caption": pa.null()})
    with pa.ipc.new_file(tmp_path / "a.arrow", wide) as writer:
        for number in range(3):
            rows = {"image": [png(number)] * 2, "caption": [["a", "b"], ["c"]]}
            writer.write_table(pa.table(rows, schema=wide))
    with pa.ipc.new_file(tmp_path / "empty.arrow", nothing):
        pass
    table = ArrowTable([tmp_path / "empty.arrow", tmp_path / "a.arrow"], BARE)
    assert (table.num_rows, table.num_items) == (6, 9)
    assert bytes(table.images(4)[0]) == png(2)
    assert table.text(5, 0) == "c"


def test_targets(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    questions = ArrowTable([tmp_path / "tiny_questions.arrow"], LAYOUT["question"])
    assert questions.target(0, 0) == SoftAnswers((0, 1), (0.3, 0.9))
    assert questions.key(0, 1) == "71"
    assert questions.answer_words() == {0: "yes", 1: "no", 2: "maybe"}
    pairs = ArrowTable([tmp_path / "tiny_pairs.arrow"], LAYOUT["pair"])
    assert [pairs.target(0, 0), pairs.target(0, 1)] == [1, 0]
    assert [bytes(image) for image in pairs.images(1)] == [png(1), png(101)]
    path = write(tmp_path / "float.arrow", ENTAILMENT | {"labels": [[2.0]]})
    assert ArrowTable([path], LAYOUT["entailment"], num_classes=3).target(0, 0) == 2
    nothing = pa.array([[]], pa.list_(pa.null()))  # a test set without targets
    empty = {"answers": nothing, "answer_labels": nothing, "answer_scores": nothing}
    path = write(tmp_path / "test.arrow", QUESTION | empty)
    assert ArrowTable([path], LAYOUT["question"]).target(0, 0) is None
    mixed = ArrowTable([path, tmp_path / "tiny_questions.arrow"], LAYOUT["question"])
    with pytest.raises(DataError, match=r"test\.arrow, row 0, column answer_labels"):
        mixed.target(0, 0)


QUESTION = {
    "image": [png(1)], "questions": [["q"]], "answers": [[["yes"]]], "question_id": [[1]],
    "answer_labels": [[[0]]], "answer_scores": [[[1.0]]],
}  # fmt: skip
PAIR = {"image_0": [png(1)], "image_1": [png(2)], "questions": [["q"]], "answers": [["True"]],
        "identifier": ["i"]}  # fmt: skip
ENTAILMENT = {"image": [png(1)], "sentences": [[["p", "h"]]], "labels": [[1]]}


def two(**columns: Any) -> dict[str, Any]:
    return {"image": [png(1)] * 2, "caption": [["a"]] * 2, "image_id": ["i"] * 2} | columns


def falling_offsets() -> pa.Array:
    offsets = pa.py_buffer(np.array([0, 900, 4], np.int32).tobytes())
    return pa.Array.from_buffers(pa.binary(), 2, [None, offsets, pa.py_buffer(b"abcd")])


# Kind, columns, and the error message.
TABLES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no image column": ("caption", {"caption": [["a"]], "image_id": ["i"]}, "a column image"),
    "images as text": ("caption", two(image=["x"] * 2), "image has type string"),
    "texts as numbers": ("caption", two(caption=[[1]] * 2), "caption has type"),
    "null image": ("caption", two(image=[png(1), None]), "row 1, column image: .*missing"),
    "null texts": ("caption", two(caption=[["a"], None]), "row 1, column caption: .*missing"),
    "null text": ("caption", two(caption=[["a"], [None]]), "row 1, .*missing"),
    "offsets fall": ("caption", two(image=falling_offsets()), "is damaged"),
    "label beyond": ("entailment", ENTAILMENT | {"labels": [[3]]}, "row 0, column labels: 3 is no"),
    "label broken": ("entailment", ENTAILMENT | {"labels": [[1.5]]}, "1.5 is no label"),
    "too many labels": ("entailment", ENTAILMENT | {"labels": [[1, 1]]}, "as long as sentences"),
    "neither true nor false": ("pair", PAIR | {"answers": [["maybe"]]}, "'maybe' is no label"),
    "score above 1": ("question", QUESTION | {"answer_scores": [[[1.5]]]}, "from 0 to 1"),
    "score missing": ("question", QUESTION | {"answer_scores": [[[]]]}, "from 0 to 1"),
    "number as text": ("question", QUESTION | {"answer_labels": [[["0"]]]}, "is no label"),
    "unknown answer": ("question", QUESTION | {"answer_labels": [[[99]]]}, r"\[99\] is no label"),
}  # fmt: skip


def read_all(path: Path, kind: str) -> int:
    """Read every cell of a file as a run does; return the number of examples."""
    table = ArrowTable([path], LAYOUT[kind], num_classes=3)
    config = DatasetConfig(TRANSFORMS["clip"], 8, train=False)
    found = Examples([table], SampleSpec(kind), config)
    collate = Collator(TextTokenizer(wrap(tokenizer()), length=12), num_answers=5)
    return sum(len(collate([found[i]]) or ()) for i in range(len(found)))


@pytest.mark.parametrize("name", TABLES)
def test_a_wrong_table_is_refused(tmp_path: Path, name: str) -> None:
    kind, columns, message = TABLES[name]
    path = write(tmp_path / "bad.arrow", columns)
    with pytest.raises(DataError, match=message) as refused:
        read_all(path, kind)
    assert "bad.arrow" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"image,caption\n", b"ARROW1\0\0ARROW1", 1, 5, 9])
def test_other_formats_and_truncated_files_are_refused(
    tmp_path: Path, content: bytes | int
) -> None:
    path = write(tmp_path / "bad.arrow", two())
    data = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else data[: len(data) * content // 10])
    with pytest.raises(DataError, match=r"bad\.arrow is damaged or not an Arrow file"):
        read_all(path, "caption")


def test_a_file_with_changed_bytes_is_read_whole_or_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.arrow", ENTAILMENT)
    data, whole, refused = path.read_bytes(), 0, 0
    for seed in range(100):
        rng, changed = random.Random(seed), bytearray(data)
        for _ in range(3):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            assert read_all(path, "entailment") == 1
        except DataError as error:
            refused += "bad.arrow" in str(error)
        else:
            whole += 1
    assert whole + refused == 100
    assert refused > 20
