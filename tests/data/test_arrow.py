"""Reading Arrow files of any batching and type width; errors name file and row."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from elip.data.arrow import ArrowTable, SoftAnswers
from elip.data.batch import SampleSpec
from elip.data.collate import Collator
from elip.data.dataset import DatasetConfig, Examples
from elip.data.datasets.base import LAYOUT, Columns, DataError, MissingFilesError
from elip.data.tokenize import TextTokenizer, wrap
from elip.data.transforms import TRANSFORMS
from tests.data.tiny import captions, png, tokenizer, write, write_tiny

CAPTION = LAYOUT["caption"]
BARE = Columns(("image",), "caption")


def test_items_run_through_files_rows_and_texts(tmp_path: Path) -> None:
    table = ArrowTable(
        [captions(tmp_path / "a.arrow", 0, 2), captions(tmp_path / "b.arrow", 7, 1)], CAPTION
    )
    assert (table.num_rows, table.num_items) == (3, 9)
    assert [table.locate(item) for item in (0, 2, 3, 8)] == [(0, 0), (0, 2), (1, 0), (2, 2)]
    assert table.text(2, 1) == "7 blue ball"
    assert table.items(2) == range(6, 9)
    assert bytes(table.images(2)[0]) == png(7)
    assert table.key(2, 1) == "image 7"
    assert table.where(2).endswith("b.arrow, row 0")


def test_repeated_texts_count_once(tmp_path: Path) -> None:
    texts = [["b", "a", "b"], ["a"], ["c", "c", "c"], [], ["d", "e"]]
    path = write(tmp_path / "a.arrow", {"image": [png(0)] * 5, "caption": texts})
    table = ArrowTable([path], BARE, distinct=True)
    assert [len(table.items(row)) for row in range(5)] == [2, 1, 1, 0, 2]
    assert [table.text(0, 0), table.text(0, 1)] == ["b", "a"]
    assert ArrowTable([path], BARE).num_items == 9


def test_a_pickle_holds_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", {"image": [b"x" * 100_000] * 20, "caption": [["a"]] * 20})
    packed = pickle.dumps(ArrowTable([path], BARE))
    assert len(packed) < 5_000
    assert pickle.loads(packed).text(19, 0) == "a"  # noqa: S301  (made above)


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
    assert ArrowTable([tmp_path / "empty.arrow"], BARE).num_rows == 0


def test_targets_of_questions_and_pairs(tmp_path: Path) -> None:
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


def test_a_test_set_without_targets(tmp_path: Path) -> None:
    nothing = pa.array([[]], pa.list_(pa.null()))
    empty = {"answers": nothing, "answer_labels": nothing, "answer_scores": nothing}
    path = write(tmp_path / "test.arrow", QUESTION | empty)
    table = ArrowTable([path], LAYOUT["question"])
    assert table.target(0, 0) is None
    assert table.answer_words() == {}
    write_tiny(tmp_path)
    with pytest.raises(DataError, match="some of these files have targets"):
        ArrowTable([path, tmp_path / "tiny_questions.arrow"], LAYOUT["question"])


QUESTION = {
    "image": [png(1)], "questions": [["q"]], "answers": [[["yes"]]], "question_id": [[1]],
    "answer_labels": [[[0]]], "answer_scores": [[[1.0]]],
}  # fmt: skip
PAIR = {"image_0": [png(1)], "image_1": [png(2)], "questions": [["q"]], "answers": [["True"]],
        "identifier": ["i"]}  # fmt: skip
ENTAILMENT = {"image": [png(1)], "sentences": [[["p", "h"]]], "labels": [[1]]}


def two(**columns: Any) -> dict[str, Any]:
    return {"image": [png(1)] * 2, "caption": [["a"]] * 2, "image_id": ["i"] * 2} | columns


def no_utf8() -> pa.Array:
    offsets = pa.py_buffer(np.array([0, 2, 2], np.int32).tobytes())
    return pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xff\xfe")])


def falling_offsets(kind: pa.DataType) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, 900, 4], np.int32).tobytes())
    return pa.Array.from_buffers(kind, 2, [None, offsets, pa.py_buffer(b"abcd")])


def lists(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), values)


TEXTS = pa.list_(pa.string())
# Kind, columns, and the error message.
TABLES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no image column": ("caption", {"caption": [["a"]], "image_id": ["i"]}, "one column image"),
    "images as text": ("caption", two(image=["x"] * 2), "image has type string"),
    "texts as numbers": ("caption", two(caption=[[1]] * 2), "caption has type"),
    "null image": ("caption", two(image=[png(1), None]), "row 1, column image: .*missing"),
    "null texts": ("caption", two(caption=[["a"], None]), "row 1, column caption: .*missing"),
    "null text": ("caption", two(caption=pa.array([["a"], [None]], TEXTS)), "row 1, .*missing"),
    "text is no UTF-8": ("caption", two(caption=lists(no_utf8())), "is damaged"),
    "offsets of images fall": ("caption", two(image=falling_offsets(pa.binary())), "is "),
    "offsets of texts fall": ("caption", two(caption=lists(falling_offsets(pa.string()))), "is "),
    "label beyond": ("entailment", ENTAILMENT | {"labels": [[3]]}, "row 0.*label 3.*0 to 2"),
    "label broken": ("entailment", ENTAILMENT | {"labels": [[1.5]]}, "label 1.5"),
    "too many labels": ("entailment", ENTAILMENT | {"labels": [[1, 1]]}, "as long as sentences"),
    "no hypothesis": (
        "entailment", ENTAILMENT | {"sentences": pa.array([[[]]], pa.list_(TEXTS))}, "missing",
    ),
    "neither true nor false": ("pair", PAIR | {"answers": [["maybe"]]}, "'maybe' is not True"),
    "score above 1": ("question", QUESTION | {"answer_scores": [[[1.5]]]}, "from 0 to 1"),
    "score missing": ("question", QUESTION | {"answer_scores": [[[]]]}, "from 0 to 1"),
    "number as text": ("question", QUESTION | {"answer_labels": [[["0"]]]}, "from 0 to 1"),
    "unknown answer": ("question", QUESTION | {"answer_labels": [[[99]]]}, r"answers \(99,\)"),
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
    assert "bad.arrow" in str(refused.value) or "Question" in str(refused.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"image,caption\n", b"ARROW1\0\0ARROW1", "stream", 1, 5, 9],
)  # fmt: skip
def test_other_formats_and_truncated_files_are_refused(
    tmp_path: Path, content: bytes | str | int
) -> None:
    path = write(tmp_path / "bad.arrow", two())
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, int):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * content // 10])
    else:
        table = pa.table(two())
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=r"bad\.arrow is not a complete Arrow file"):
        read_all(path, "caption")


def test_a_missing_file_and_a_column_that_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(MissingFilesError, match="no file"):
        ArrowTable([tmp_path / "b.arrow"], CAPTION)
    table = pa.table(two())
    twice = table.append_column("caption", table["caption"])
    with pa.ipc.new_file(tmp_path / "bad.arrow", twice.schema) as writer:
        writer.write_table(twice)
    with pytest.raises(DataError, match=r"bad\.arrow must have one column caption"):
        read_all(tmp_path / "bad.arrow", "caption")
