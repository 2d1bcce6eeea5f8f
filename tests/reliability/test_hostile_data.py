"""Damaged, odd and hostile data: read right, refused by name, or left out and counted."""

from __future__ import annotations

import io
import json
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tokenizers import Tokenizer

from elip.data.batch import SampleSpec
from elip.data.catalog import Catalog
from elip.data.collate import Collator
from elip.data.dataset import Examples, Reading
from elip.data.datasets.base import LAYOUT, Columns, DataError
from elip.data.reader import ArrowTable
from elip.data.tokenize import TextTokenizer, load_tokenizer, wrap
from elip.data.transforms import TRANSFORMS, ImageError, find_transform
from tests.data.tiny import Tiny, noise, png, tokenizer, write, write_tiny

SIDE = 16


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values)


def colour(size: tuple[int, int] = (20, 20)) -> Image.Image:
    return Image.new("RGB", size, (200, 100, 50))


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(colour(), "JPEG", exif=exif)


RED = (200, 100, 50)
# Odd but whole images, and the mean color that they must come out with.
ODD: dict[str, tuple[bytes, tuple[int, int, int]]] = {
    "1x1": (saved(colour((1, 1)), "PNG"), RED),
    "one row": (saved(colour((900, 1)), "PNG"), RED),
    "one column": (saved(colour((1, 900)), "PNG"), RED),
    "a thread": (saved(colour((60_000, 1)), "PNG"), RED),
    "larger than a screen": (saved(colour((3000, 2000)), "JPEG"), RED),
    "CMYK": (saved(colour().convert("CMYK"), "JPEG"), RED),
    "CMYK TIFF": (saved(colour().convert("CMYK"), "TIFF"), RED),
    "progressive": (saved(colour(), "JPEG", progressive=True), RED),
    "rotated by EXIF": (rotated(), RED),
    "grey": (saved(grey(np.full((20, 20), 90, np.uint8)), "PNG"), (90, 90, 90)),
    "grey JPEG": (saved(grey(np.full((20, 20), 90, np.uint8)), "JPEG"), (90, 90, 90)),
    "grey with alpha": (saved(colour().convert("LA"), "PNG"), (124, 124, 124)),
    "16 bits": (saved(grey(np.full((20, 20), 90 * 257, np.uint16)), "PNG"), (90, 90, 90)),
    "16 bits TIFF": (saved(grey(np.full((20, 20), 90 * 257, np.uint16)), "TIFF"), (90, 90, 90)),
    "1 bit": (saved(Image.new("1", (20, 20), 1), "PNG"), (255, 255, 255)),
    "palette": (saved(colour().convert("P"), "PNG"), (204, 102, 51)),
    "palette GIF": (saved(colour(), "GIF"), RED),
    "two frames": (
        saved(colour(), "GIF", save_all=True, append_images=[Image.new("RGB", (20, 20))]), RED,
    ),
    "alpha": (saved(colour().convert("RGBA"), "PNG"), RED),
    "WebP": (saved(colour(), "WEBP", lossless=True), RED),
    "BMP": (saved(colour(), "BMP"), RED),
    "LAB": (saved(Image.new("LAB", (20, 20), (128, 128, 128)), "TIFF"), (119, 119, 119)),
}  # fmt: skip


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


WHOLE = noise(1)
JPEG = noise(2, "JPEG")
# A PNG header that promises 60,000 x 60,000 pixels.
BOMB = changed(WHOLE, 16, (60_000).to_bytes(4, "big") * 2)
BAD: dict[str, bytes] = {
    "empty": b"",
    "a byte": b"\x89",
    "text": b"not an image",
    "HTML": b"<html><body>404</body></html>",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "header only": WHOLE[:8],
    "half a PNG": WHOLE[: len(WHOLE) // 2],
    "PNG cut near its end": WHOLE[:-200],
    "half a JPEG": JPEG[: len(JPEG) // 2],
    "JPEG header only": JPEG[:20],
    "half a GIF": noise(3, "GIF")[:300],
    "half a WebP": noise(4, "WEBP")[:200],
    "half a TIFF": noise(5, "TIFF")[:100],
    "wrong checksum": changed(WHOLE, 29, b"\0\0\0\0"),
    "garbled pixels": changed(WHOLE, 60, bytes(200)),
    "no width": changed(WHOLE, 16, bytes(4)),
    "bomb": BOMB,
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) run\n%%EOF\n",
    "float": saved(grey(np.ones((9, 9), np.float32)), "TIFF"),
    "32 bits": saved(grey(np.full((9, 9), 70_000, np.int32)), "TIFF"),
    "zip": b"PK\x03\x04" + bytes(60),
    "zeros": bytes(1000),
    "noise": random.Random(0).randbytes(1000),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", ODD)
def test_an_odd_image_is_read_right(name: str, transform: str) -> None:
    data, mean = ODD[name]
    pixels = find_transform(transform)(data, SIDE, random.Random(0))
    assert pixels.shape == (3, SIDE, SIDE)
    assert pixels.dtype == np.uint8
    if "randaug" not in transform:
        assert pixels.mean(axis=(1, 2)) == pytest.approx(mean, abs=3)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused(name: str, fast: bool) -> None:
    with pytest.raises(ImageError, match="not a readable image"):
        find_transform("clip")(BAD[name], SIDE, None, fast)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_named_or_left_out_and_counted(tmp_path: Path, name: str) -> None:
    images = [png(1), BAD[name], png(2)]
    table = captions(tmp_path, images, [["a"], ["b"], ["c"]])
    with pytest.raises(ImageError, match=r"a\.arrow, row 1"):
        examples(table)[1]
    skipping = examples(table, skip_bad=True)
    assert [example is not None for example in map(skipping.__getitem__, range(3))] == [1, 0, 1]
    assert skipping.num_skipped == 1
    training = examples(table, train=True)
    replaced = training[1]
    assert replaced is not None
    assert replaced.image_id != 1
    assert training.num_skipped >= 1


def test_nothing_but_bad_images_ends_with_a_message(tmp_path: Path) -> None:
    table = captions(tmp_path, [b""] * 4, [["a"]] * 4)
    with pytest.raises(DataError, match="examples in a row had a bad image"):
        examples(table, train=True)[0]


def captions(folder: Path, images: list[bytes], texts: list[list[str]]) -> ArrowTable:
    path = write(folder / "a.arrow", {"image": images, "caption": texts})
    return ArrowTable([path], Columns(("image",), "caption"))


def examples(table: ArrowTable, train: bool = False, skip_bad: bool = False) -> Examples:
    reading = Reading(find_transform("clip"), SIDE, train, skip_bad=skip_bad)
    return Examples([table], SampleSpec("caption"), reading)


TEXTS = {
    "empty": "",
    "blank": " \t\n ",
    "10,000 words": "red ball " * 5_000,
    "one long word": "x" * 20_000,
    "Chinese": "红色的球在绿色的汽车旁边",
    "Arabic": "كرة حمراء بجانب السيارة",
    "Hindi": "लाल गेंद",
    "Thai": "ลูกบอลสีแดง",
    "emoji": "🧑‍🚀🎈" * 50,
    "combining": "e\u0301" * 400,
    "control": "a\x00b\x07c\u202ed",
    "special tokens": "[CLS] [MASK] [SEP] [PAD] [UNK]",
    "markup": "<script>alert(1)</script> & {{7*7}} %s %n ${x}",
    "path": "../../etc/passwd; rm -rf /",
    "surrogate escaped": "\ufffd\ufffe\U0010ffff",
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_any_text_becomes_tokens(tmp_path: Path, name: str, masked: bool) -> None:
    table = captions(tmp_path, [png(1)] * 2, [[TEXTS[name]], ["a red ball"]])
    encoder = TextTokenizer(wrap(tokenizer()), length=12)
    found = examples(table)
    batch = Collator(encoder, masked)([found[0], found[1]])
    assert batch is not None
    assert batch.strings[0] == TEXTS[name]
    ids = batch.text.ids
    assert ids.shape == (2, 12)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < encoder.vocab_size
    assert batch.text.mask[:, 0].all()
    if batch.masked_labels is not None:
        real = batch.masked_labels != -100
        assert not (real & ~batch.text.mask).any()


def invalid_text() -> pa.Array:
    offsets = pa.py_buffer(np.array([0, 2], np.int32).tobytes())
    return pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff\xfe")])


def falling_offsets(kind: pa.DataType) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, 900, 4], np.int32).tobytes())
    return pa.Array.from_buffers(kind, 2, [None, offsets, pa.py_buffer(b"abcd")])


def lists(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(range(len(values) + 1), pa.int32()), values)


def caption_file(**columns: Any) -> dict[str, Any]:
    return {"image": [png(1)], "caption": [["a"]], "image_id": ["i"]} | columns


QUESTION = {
    "image": [png(1)], "questions": [["q"]], "answers": [[["yes"]]], "question_id": [[1]],
    "answer_labels": [[[0]]], "answer_scores": [[[1.0]]],
}  # fmt: skip
PAIR = {"image_0": [png(1)], "image_1": [png(2)], "questions": [["q"]], "answers": [["True"]],
        "identifier": ["i"]}  # fmt: skip
ENTAILMENT = {"image": [png(1)], "sentences": [[["p", "h"]]], "labels": [[1]]}
DEEP = pa.list_(pa.list_(pa.int64()))

# Kind, columns, and what the message must say. Read wholly: opened, then each cell of row 0.
TABLES: dict[str, tuple[str, dict[str, Any], str]] = {
    "no image column": ("caption", {"caption": [["a"]], "image_id": ["i"]}, "no column image"),
    "no text column": ("caption", {"image": [png(1)], "image_id": ["i"]}, "no column caption"),
    "no key column": ("caption", {"image": [png(1)], "caption": [["a"]]}, "no column image_id"),
    "images as text": ("caption", caption_file(image=["x"]), "image has type string"),
    "images as numbers": ("caption", caption_file(image=[[1, 2]]), "image has type list"),
    "texts bare": ("caption", caption_file(caption=["a"]), "caption has type string"),
    "texts as bytes": ("caption", caption_file(caption=[[b"a"]]), "caption has type"),
    "texts as numbers": ("caption", caption_file(caption=[[1]]), "caption has type"),
    "texts too deep": ("caption", caption_file(caption=[[[["a"]]]]), "caption has type"),
    "null image": ("caption", caption_file(image=pa.array([None], pa.binary())), "image is null"),
    "null texts": (
        "caption", caption_file(caption=pa.array([None], pa.list_(pa.string()))), "caption is null",
    ),
    "null text": (
        "caption", caption_file(caption=pa.array([[None]], pa.list_(pa.string()))), "missing",
    ),
    "null key": ("caption", caption_file(image_id=pa.array([None], pa.string())), "null"),
    "text is no UTF-8": (
        "caption", caption_file(caption=lists(invalid_text())), "caption is damaged",
    ),
    "key is no UTF-8": ("caption", caption_file(image_id=invalid_text()), "image_id is damaged"),
    "label beyond": ("entailment", ENTAILMENT | {"labels": [[3]]}, "label 3.*from 0 to 2"),
    "label below": ("entailment", ENTAILMENT | {"labels": [[-1]]}, "label -1.*from 0 to 2"),
    "label broken": ("entailment", ENTAILMENT | {"labels": [[1.5]]}, "label 1.5"),
    "label missing": (
        "entailment", ENTAILMENT | {"labels": pa.array([[None]], pa.list_(pa.int64()))}, "None",
    ),
    "too many labels": ("entailment", ENTAILMENT | {"labels": [[1, 1]]}, "differ in length"),
    "group without sentence": (
        "entailment", ENTAILMENT | {"sentences": pa.array([[[]]], pa.list_(pa.list_(pa.string())))},
        "missing",
    ),
    "neither true nor false": ("pair", PAIR | {"answers": [["maybe"]]}, "'maybe' is neither"),
    "empty truth": ("pair", PAIR | {"answers": [[""]]}, "'' is neither"),
    "one image of two": ("pair", {k: v for k, v in PAIR.items() if k != "image_1"}, "image_1"),
    "score above 1": ("question", QUESTION | {"answer_scores": [[[1.5]]]}, "scores"),
    "score below 0": ("question", QUESTION | {"answer_scores": [[[-0.5]]]}, "scores"),
    "score nan": ("question", QUESTION | {"answer_scores": [[[float("nan")]]]}, "scores"),
    "score missing": (
        "question", QUESTION | {"answer_scores": [[[]]]}, "scores",
    ),
    "number missing": ("question", QUESTION | {"answer_labels": [[[0, None]]]}, "answer_labels"),
    "no numbers": (
        "question", QUESTION | {"answer_labels": pa.array([[None]], DEEP)}, "answer_labels",
    ),
    "no scores": ("question", QUESTION | {"answer_scores": pa.array([[None]], DEEP)}, "scores"),
    "word missing": ("question", QUESTION | {"answers": [[["yes", None]]]}, "answers"),
    "words of another question": (
        "question", dict({k: v * 2 for k, v in QUESTION.items()}, answers=[[["yes", "no"]], [[]]]),
        r"row 0.*answers \['yes', 'no'\]",
    ),
    "labels bare": ("entailment", ENTAILMENT | {"labels": [1]}, "labels has type int64"),
    "labels deep": ("entailment", ENTAILMENT | {"labels": [[[1]]]}, "labels has type list<item: l"),
    "labels of bool": ("pair", PAIR | {"answers": [[True]]}, "answers has type list<.*bool"),
    "truth bare": ("pair", PAIR | {"answers": ["True"]}, "answers has type string"),
    **{
        f"{name} as {kind}": (
            "question", QUESTION | {name: value}, rf"{name} has type .*; it must be list<list<",
        )
        for name in ("answer_labels", "answer_scores", "answers")
        for kind, value in {
            "text": ["0"], "texts": [["0"]], "bytes": [[[b"0"]]], "bool": [[[True]]],
            "numbers": [[0]], "a number": [0], "pairs": [[[{"a": 0}]]],
            "too deep": [[[["0"]]]],
        }.items()
    },
    "scores of nothing": ("question", QUESTION | {"answer_scores": [[None]]}, "scores has type"),
    "words of nothing": ("question", QUESTION | {"answers": [[None]]}, "answers has type"),
    "numbers as text": ("question", QUESTION | {"answer_labels": [[["0"]]]}, "answer_labels has"),
    "numbers broken": ("question", QUESTION | {"answer_labels": [[[0.0]]]}, "answer_labels has"),
    "scores as text": ("question", QUESTION | {"answer_scores": [[["1"]]]}, "answer_scores has"),
    "words as numbers": ("question", QUESTION | {"answers": [[[1]]]}, "answers has type"),
    "unknown answer": ("question", QUESTION | {"answer_labels": [[[99]]]}, "answers"),
    "negative answer": ("question", QUESTION | {"answer_labels": [[[-1]]]}, "answers"),
}  # fmt: skip

COLLATOR = Collator(TextTokenizer(wrap(tokenizer()), length=12), num_answers=5)


def read_all(paths: list[Path], kind: str) -> int:
    """Read every cell of some files as a run does; return the number of examples."""
    table = ArrowTable(paths, LAYOUT[kind], classes=3)  # type: ignore[index]
    found = Examples([table], SampleSpec(kind), Reading(find_transform("clip"), SIDE, train=False))  # type: ignore[arg-type]
    return sum(len(COLLATOR([found[i]]) or ()) for i in range(len(found)))


@pytest.mark.parametrize("name", TABLES)
def test_a_wrong_table_is_refused_by_name(tmp_path: Path, name: str) -> None:
    kind, columns, message = TABLES[name]
    path = write(tmp_path / "bad.arrow", columns)
    with pytest.raises(DataError, match=message) as refused:
        read_all([path], kind)
    assert "bad.arrow" in str(refused.value) or "Question" in str(refused.value)


def test_class_numbers_may_be_stored_as_floats(tmp_path: Path) -> None:
    path = write(tmp_path / "a.arrow", ENTAILMENT | {"labels": [[2.0]]})
    assert ArrowTable([path], LAYOUT["entailment"], classes=3).target(0, 0) == 2


@pytest.mark.parametrize("column", QUESTION)
def test_a_column_that_a_file_has_twice_is_named(tmp_path: Path, column: str) -> None:
    table = pa.table(QUESTION)
    twice = table.append_column(column, table[column])
    with pa.ipc.new_file(tmp_path / "bad.arrow", twice.schema) as writer:
        writer.write_table(twice)
    with pytest.raises(DataError, match=rf"bad\.arrow has 2 columns {column}; it must have one"):
        read_all([tmp_path / "bad.arrow"], "question")


@pytest.mark.parametrize("column", ["image", "caption"])
def test_offsets_that_fall_are_found_when_a_file_is_opened(tmp_path: Path, column: str) -> None:
    """Reading such a cell would read whatever lies in memory there."""
    wrong = falling_offsets(pa.binary() if column == "image" else pa.string())
    columns = {"image": [png(1)] * 2, "caption": [["a"]] * 2, "image_id": ["i"] * 2}
    columns[column] = wrong if column == "image" else lists(wrong)
    path = write(tmp_path / "bad.arrow", columns)
    with pytest.raises(DataError, match=r"bad\.arrow"):
        ArrowTable([path], LAYOUT["caption"])


def test_files_without_rows_are_no_examples(tmp_path: Path) -> None:
    schema = pa.schema({"image": pa.binary(), "caption": pa.list_(pa.string())})
    path = write(tmp_path / "none.arrow", {"image": [], "caption": []}, schema)
    with pytest.raises(DataError, match=r"no example in none\.arrow"):
        read_all([path], "caption")


OTHER_FILES: dict[str, bytes] = {
    "empty": b"",
    "text": b"image,caption\n",
    "magic only": b"ARROW1\0\0",
    "twice the magic": b"ARROW1\0\0ARROW1",
    "parquet": b"PAR1" + bytes(100) + b"PAR1",
    "zeros": bytes(5000),
    "noise": random.Random(1).randbytes(5000),
    "huge footer": b"ARROW1\0\0" + bytes(64) + b"\xff\xff\xff\x7fARROW1",
    "negative footer": b"ARROW1\0\0" + bytes(64) + b"\xff\xff\xff\xffARROW1",
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_another_kind_of_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.arrow"
    path.write_bytes(OTHER_FILES[name])
    with pytest.raises(DataError, match=r"bad\.arrow"):
        read_all([path], "caption")


def stream_file(path: Path) -> None:
    table = pa.table(caption_file())
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table)


def test_the_streaming_format_is_refused_by_name(tmp_path: Path) -> None:
    stream_file(tmp_path / "bad.arrow")
    with pytest.raises(DataError, match=r"bad\.arrow is not a whole Arrow file"):
        read_all([tmp_path / "bad.arrow"], "caption")


@pytest.mark.parametrize("part", range(10))
def test_a_file_cut_anywhere_is_refused_by_name(tmp_path: Path, part: int) -> None:
    path = write(tmp_path / "cut.arrow", caption_file())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * part // 10])
    with pytest.raises(DataError, match=r"cut\.arrow"):
        read_all([path], "caption")


def ruined(seed: int, data: bytes) -> bytes:
    """Change a few bytes anywhere."""
    chance, out = random.Random(seed), bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        out[chance.randrange(len(out))] = chance.randrange(256)
    return bytes(out)


WHOLE_FILES: dict[str, dict[str, Any]] = {
    "caption": caption_file(caption=[["a red ball", "a car"]]),
    "entailment": ENTAILMENT,
}


# Of entailment, those that spoil the width of numbers and the name of a column.
@pytest.mark.parametrize(
    ("kind", "seed"),
    [*(("caption", seed) for seed in range(40)), *(("entailment", n) for n in (41, 337, 463))],
)
def test_a_file_with_ruined_bytes_is_read_or_refused(
    tmp_path: Path, kind: str, seed: int, in_a_process: Callable[[Callable[[], object]], object]
) -> None:
    path = write(tmp_path / "ruined.arrow", WHOLE_FILES[kind])
    path.write_bytes(ruined(seed, path.read_bytes()))

    def read() -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return f"{read_all([path], kind)} read"
            except DataError as error:
                return str(error)

    said = in_a_process(read)
    assert said == "2 read" or "ruined.arrow" in str(said)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no whole JSON"),
        ('["yes", "n', "no whole JSON"),
        ("{}", "no list of answers"),
        ("[1, 2]", "no list of answers"),
        ('"yes"', "no list of answers"),
        ("null", "no list of answers"),
        ("[]", "no list of answers"),
        ("[" * 100_000, "no whole JSON"),
    ],
)
def test_a_damaged_list_of_answers_is_named(
    tmp_path: Path, content: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny(tmp_path)
    (tmp_path / "answers.json").write_text(content)
    catalog = Catalog([f"{Tiny.__module__}.{Tiny.__name__}"], tmp_path)
    with pytest.raises(DataError, match=rf"answers\.json.*{message}"):
        catalog.num_answers()


@pytest.mark.parametrize(
    "content",
    ["", "{", "{}", "[]", "null", json.dumps({"model": {"type": "None"}}),
     tokenizer().to_str()[:-100]],
)  # fmt: skip
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=str(tmp_path)):
        load_tokenizer(tmp_path)


FAST = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "cls_token": "[CLS]",
        "sep_token": "[SEP]", "mask_token": "[MASK]"}  # fmt: skip


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": None}, {"config.json": []},
        {"tokenizer_config.json": None}, {"tokenizer_config.json": []},
        {"tokenizer_config.json": FAST | {"pad_token": 5}},
        {"tokenizer_config.json": FAST | {"added_tokens_decoder": {"x": 5}}},
        {"tokenizer_config.json": FAST | {"extra_special_tokens": 5}},
        {"tokenizer_config.json": FAST, "special_tokens_map.json": []},
        {"tokenizer.json": "lost", "vocab.json": None, "merges.txt": "a b c"},
    ],
)  # fmt: skip
def test_a_tokenizer_with_a_damaged_side_file_is_named(
    tmp_path: Path, files: dict[str, object]
) -> None:
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
        if content == "lost":
            (tmp_path / name).unlink()
    with pytest.raises(DataError, match=str(tmp_path)):
        TextTokenizer(load_tokenizer(tmp_path), 8)


def test_a_tokenizer_that_no_model_can_read_is_refused() -> None:
    made = json.loads(tokenizer().to_str())
    model = made["model"]
    for changed, message in (
        ({"model": model | {"unk_token": "[NOPE]"}}, "fails at words it does not know"),
        ({"model": model | {"vocab": model["vocab"] | {"x": 500}}}, "numbers them up to 500"),
        ({"post_processor": None}, "post_processor is missing"),
    ):
        with pytest.raises(DataError, match=message):
            TextTokenizer(wrap(Tokenizer.from_str(json.dumps(made | changed))), 8)


@pytest.mark.parametrize("names", [[], ["config.json"], ["vocab.txt"], ["vocab.json"]])
def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(DataError, match=str(tmp_path)):
        load_tokenizer(tmp_path)


def test_a_tokenizer_that_brings_code_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}})
    )
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}})
    )
    with pytest.raises(DataError, match=str(tmp_path)):
        load_tokenizer(tmp_path)
    assert not mark.exists()
