from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from elip.data.datasets.base import LAYOUT, Columns, DataError, MissingFilesError
from elip.data.digests import ValueDigest
from elip.data.reader import ArrowTable, SoftAnswers
from tests.data.tiny import Tiny, captions, png, write, write_tiny

CAPTION = LAYOUT["caption"]
DIFFERENT: list[list[Any]] = [
    ["ab", "c"], ["a", "bc"], ["abc"], ["abc", None], ["abc", ""], [None, "abc"], [b"ab", b"c"],
    [["ab", "c"]], [["ab"], ["c"]], [["ab"], ["c"], []], [["ab"], None, ["c"]], [["ab", None, "c"]],
    [[["ab"], ["c"]]], [[["ab", "c"]]], [[["ab"]], [["c"]]], [[], []], [[[]], []], [[None], []],
    [1, 0], [1, None], [None, 1], [1.0, 0.0], [True, False], [["1"], ["0"]], [None, None],
]  # fmt: skip


def test_items_run_through_files_rows_and_texts(tmp_path: Path) -> None:
    table = ArrowTable(
        [captions(tmp_path / "a.arrow", 0, 2), captions(tmp_path / "b.arrow", 7, 1)], CAPTION
    )
    assert (table.num_rows, table.num_items) == (3, 9)
    assert [table.locate(item) for item in (0, 2, 3, 8)] == [(0, 0), (0, 2), (1, 0), (2, 2)]
    assert table.text(2, 1) == "7 blue ball"
    assert table.items(2) == range(6, 9)
    assert table.file(2).name == "b.arrow"
    assert bytes(table.images(2)[0]) == png(7)
    assert table.key(2, 1) == "image 7"
    assert table.where(2).endswith("b.arrow, row 0")
    with pytest.raises(IndexError):
        table.locate(9)
    with pytest.raises(IndexError):
        table.images(3)


def test_repeated_texts_count_once_where_they_stand_first(tmp_path: Path) -> None:
    texts = [["b", "a", "b"], ["a"], ["c", "c", "c"], []]
    path = write(tmp_path / "a.arrow", {"image": [png(0)] * 4, "caption": texts})
    columns = Columns(("image",), "caption")
    table = ArrowTable([path], columns, distinct=True)
    assert [len(table.items(row)) for row in range(4)] == [2, 1, 1, 0]
    assert [table.text(0, 0), table.text(0, 1)] == ["b", "a"]
    assert ArrowTable([path], columns).num_items == 7


def test_pickle_holds_no_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.arrow",
        {"image": [b"x" * 100_000] * 20, "caption": [["a"]] * 20, "image_id": ["i"] * 20},
    )
    packed = pickle.dumps(ArrowTable([path], CAPTION))
    assert len(packed) < 5_000
    assert pickle.loads(packed).text(19, 0) == "a"  # noqa: S301  (made above)


def test_large_strings_several_batches_and_empty_files(tmp_path: Path) -> None:
    wide = pa.schema({"image": pa.large_binary(), "caption": pa.large_list(pa.large_string())})
    nothing = pa.schema({"image": pa.null(), "caption": pa.null()})
    with pa.ipc.new_file(tmp_path / "a.arrow", wide) as writer:
        for number in range(3):
            rows = {"image": [png(number)] * 2, "caption": [["a", "b"], ["c"]]}
            writer.write_table(pa.table(rows, schema=wide))
    with pa.ipc.new_file(tmp_path / "empty.arrow", nothing):
        pass
    table = ArrowTable(
        [tmp_path / "empty.arrow", tmp_path / "a.arrow"], Columns(("image",), "caption")
    )
    assert (table.num_rows, table.num_items) == (6, 9)
    assert bytes(table.images(4)[0]) == png(2)
    assert table.text(5, 0) == "c"
    assert ArrowTable([tmp_path / "empty.arrow"], CAPTION).num_rows == 0


def test_questions_and_pairs(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    questions = ArrowTable([tmp_path / "tiny_questions.arrow"], LAYOUT["question"])
    assert questions.target(0, 0) == SoftAnswers((0, 1), (0.3, 0.9))
    assert questions.key(0, 1) == "71"
    assert questions.answer_words() == {0: "yes", 1: "no", 2: "maybe"}
    pairs = ArrowTable([tmp_path / "tiny_pairs.arrow"], LAYOUT["pair"])
    assert [pairs.target(0, 0), pairs.target(0, 1)] == [1, 0]
    assert [bytes(image) for image in pairs.images(1)] == [png(1), png(101)]


def test_a_test_set_without_truth(tmp_path: Path) -> None:
    nothing = pa.array([[], []], pa.list_(pa.null()))
    path = write(
        tmp_path / "test.arrow",
        {
            "image": [png(0), png(1)],
            "questions": [["a ?", "b ?"], ["c ?"]],
            "answers": nothing,
            "answer_labels": nothing,
            "answer_scores": nothing,
            "question_id": [[1, 2], [3]],
        },
    )
    table = ArrowTable([path], LAYOUT["question"])
    assert not table.has_truth
    assert table.target(0, 1) is None
    assert table.answer_words() == {}
    write_tiny(tmp_path)
    with pytest.raises(DataError, match="some files hold the truth"):
        ArrowTable([path, tmp_path / "tiny_questions.arrow"], LAYOUT["question"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image": [b"x"] * 3, "caption": [["a"], None, ["b"]]},
            "bad.arrow, row 1: caption is null",
        ),
        ({"image": [b"x", b"x", None], "caption": [["a"]] * 3}, "bad.arrow, row 2: image is null"),
        (
            {"image": [b"x"] * 3, "caption": [["a", "b"], ["c"], ["d", None]]},
            "bad.arrow, row 2: a text is missing",
        ),
        (
            {"image": [b"x"] * 2, "caption": [[["a"], ["b"]], [["c"], []]]},
            "bad.arrow, row 1: a text is missing",
        ),
        ({"picture": [b"x"], "caption": [["a"]]}, "no column image; it has picture, caption"),
        ({"image": ["x"], "caption": [["a"]]}, "column image has type string"),
        ({"image": [b"x"], "caption": ["a"]}, "column caption has type string"),
    ],
)
def test_bad_columns_name_file_and_row(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    path = write(tmp_path / "bad.arrow", columns)
    with pytest.raises(DataError, match=message):
        ArrowTable([path], Columns(("image",), "caption"))


def test_lists_that_should_run_side_by_side(tmp_path: Path) -> None:
    path = write(
        tmp_path / "bad.arrow",
        {"image": [b"x"] * 2, "sentences": [["a"], ["b", "c"]], "labels": [[1], [1]]},
    )
    with pytest.raises(DataError, match=r"bad.arrow, row 1: sentences and labels differ"):
        ArrowTable([path], LAYOUT["entailment"])


def test_a_word_that_is_neither_true_nor_false(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.arrow",
        {"image": [b"x"], "questions": [["q"]], "answers": [["perhaps"]], "identifier": ["i"]},
    )
    with pytest.raises(DataError, match=r"a.arrow, row 0: 'perhaps'"):
        ArrowTable([path], LAYOUT["statement"]).target(0, 0)


def test_truncated_and_missing_files(tmp_path: Path) -> None:
    path = captions(tmp_path / "a.arrow", 0, 3)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a.arrow is not a whole Arrow file"):
        ArrowTable([path], CAPTION)
    with pytest.raises(MissingFilesError, match="no file"):
        ArrowTable([tmp_path / "b.arrow"], CAPTION)


def test_shards_in_numeric_order_and_missing_ones(tmp_path: Path) -> None:
    root = write_tiny(tmp_path / "tiny")
    source = Tiny()
    expected = ["tiny_train_2.arrow", "tiny_train_10.arrow"]
    for place in (root, tmp_path):  # directly in the root, or in a subfolder with its name
        found = source.paths(place, ("tiny_train_*.arrow",))
        assert [path.name for path in found] == expected
    with pytest.raises(MissingFilesError, match=r"no c\*.arrow in .*elip.data.convert tiny"):
        source.paths(root, ("tiny_val.arrow", "c*.arrow"))


def test_a_digest_stands_for_what_is_read(tmp_path: Path) -> None:
    rows = 100
    base = {
        "image": [png(row) for row in range(rows)],
        "caption": [[f"text {row:3}"] for row in range(rows)],
        "image_id": [str(row) for row in range(rows)],
        "split": ["train"] * rows,
    }

    def digest(name: str, **changed: Any) -> str:
        path = tmp_path / name
        write(path, {**base, **changed})
        return ArrowTable([path], LAYOUT["caption"]).digest()

    same = digest("one.arrow")
    assert digest("two.arrow") == same
    assert digest("other column.arrow", split=["val"] * rows) == same
    one_text = [*base["caption"][:50], ["text  5O"], *base["caption"][51:]]
    one_image = [png(1), *base["image"][1:]]
    one_length = [*base["image"][:50], base["image"][50] + b"0", *base["image"][51:]]
    others = [
        digest("text.arrow", caption=one_text),
        digest("first image.arrow", image=one_image),
        digest("length of an image.arrow", image=one_length),
        digest("key.arrow", image_id=["x", *base["image_id"][1:]]),
        digest("fewer.arrow", **{name: values[:-1] for name, values in base.items()}),
    ]
    assert len({same, *others}) == 6


def test_a_digest_does_not_tell_how_rows_are_cut(tmp_path: Path) -> None:
    rows = 7
    table = pa.table({
        "image": [png(row) for row in range(rows)],
        "questions": [[f"is {row} ?"] * (row % 3) for row in range(rows)],
        "answers": [[[f"{row}", ""]] * (row % 3) for row in range(rows)],
        "answer_labels": [[[row, 0]] * (row % 3) for row in range(rows)],
        "answer_scores": [[[0.5, 1.0]] * (row % 3) for row in range(rows)],
        "question_id": [[row] * (row % 3) for row in range(rows)],
    })  # fmt: skip
    wide = pa.schema({
        "image": pa.large_binary(),
        "questions": pa.large_list(pa.large_string()),
        "answers": pa.large_list(pa.list_(pa.large_string())),
        "answer_labels": pa.list_(pa.large_list(pa.int32())),
        "answer_scores": pa.list_(pa.list_(pa.float32())),
        "question_id": pa.list_(pa.uint16()),
    })  # fmt: skip
    cuts = {"whole": [table], "cast": [table.cast(wide)], "files": [table[:2], table[2:]]}
    found = {}
    for size in (1, 3, rows):
        for name, parts in cuts.items():
            paths = [tmp_path / f"{name} {size} {number}.arrow" for number in range(len(parts))]
            for path, part in zip(paths, parts, strict=True):
                with pa.ipc.new_file(path, part.schema) as writer:
                    writer.write_table(part, max_chunksize=size)
            found[name, size] = ArrowTable(paths, LAYOUT["question"]).digest()
    assert len(set(found.values())) == 1


# What differs in where values end, in what is missing, or in what it is.
@pytest.mark.parametrize("one", range(len(DIFFERENT)))
def test_values_have_digests_of_their_own(one: int) -> None:
    def digest(*parts: pa.Array) -> str:
        made = ValueDigest()
        for part in parts:
            made.add("a", part)
        return made.hexdigest()

    column = pa.array(DIFFERENT[one])
    whole = digest(column)
    assert [digest(pa.array(each)) for each in DIFFERENT].count(whole) == 1
    around = pa.concat_arrays([column, column, column])  # cut out of others
    length = len(column)
    for cut in range(length + 1):
        assert digest(around[length : length + cut], around[length + cut : 2 * length]) == whole


def test_a_digest_of_no_rows(tmp_path: Path) -> None:
    write(tmp_path / "none.arrow", {"image": [], "caption": [], "image_id": []})
    assert len(ArrowTable([tmp_path / "none.arrow"], LAYOUT["caption"]).digest()) == 64
