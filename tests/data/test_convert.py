"""Converters: bad entries are left out, counted and listed; no partial files."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tokenizers import Tokenizer

from elip.data.arrow import ArrowTable
from elip.data.convert import Report, main
from elip.data.convert import convert as converted
from elip.data.datasets import find_dataset, known_datasets
from elip.data.datasets.base import LAYOUT, Columns, DataError, DatasetSpec, View
from elip.data.datasets.nlvr import tiled
from elip.data.datasets.vqav2 import normalise, scored
from elip.data.download import Download, Row, fits
from elip.data.transforms import TRANSFORMS

TRAIN = "f30k_caption_karpathy_train.arrow"
MISSING, MISFIT = "missing image file", "malformed entry"


def picture(form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert("RGB").save(buffer, form)
    return buffer.getvalue()


def put(path: Path, content: bytes | str | Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)


def lines(entries: list[Any]) -> str:
    return "\n".join(json.dumps(entry) for entry in entries)


def rows(path: Path) -> list[dict[str, Any]]:
    with pa.memory_map(str(path)) as file:
        found: list[dict[str, Any]] = pa.ipc.open_file(file).read_all().to_pylist()
    return found


def convert(name: str, raw: Path, out: Path, **options: Any) -> Report:
    return converted(name, raw, out, progress=False, **options)


def fill(raw: Path, images: Iterable[str], files: dict[str, Any]) -> Path:
    for image in images:
        put(raw / image, picture())
    for name, content in files.items():
        put(raw / name, content)
    return raw


def karpathy(split: str, name: str, captions: list[Any]) -> dict[str, Any]:
    return {"split": split, "filename": name, "sentences": [{"raw": text} for text in captions]}


def pairs(raw: Path, entries: Any) -> Path:
    return fill(raw, ["a.jpg", "b.jpg", "c.jpg"], {"annot.json": entries})


def vqa(raw: Path, questions: list[Any], annotations: list[Any], images: int = 2) -> Path:
    years = ("train2014", "val2014", "test2015", "test-dev2015")
    asked = {f"v2_OpenEnded_mscoco_{year}_questions.json": {"questions": questions}
             for year in years}  # fmt: skip
    said = {f"v2_mscoco_{year}_annotations.json": {"annotations": annotations} for year in years}
    names = [f"{y}/COCO_{y}_{n:012d}.jpg" for y in years[:3] for n in range(1, images + 1)]
    return fill(raw, names, asked | said)


def entailment(label: str, hypothesis: str) -> dict[str, str]:
    return {"Flickr30K_ID": "1", "gold_label": label, "sentence1": "p", "sentence2": hypothesis}


def question(number: int, image: int = 1, text: str = "q ?") -> dict[str, Any]:
    return {"image_id": image, "question_id": number, "question": text}


def annotation(number: int, answer: str, *others: str) -> dict[str, Any]:
    said = [{"answer": each} for each in (*[answer] * (10 - len(others)), *others)]
    return {"question_id": number, "multiple_choice_answer": answer, "answers": said}


REGION = {"region_id": 7, "width": 1, "height": 2, "x": 3, "y": 4, "phrase": "a cat"}
TWOS = [annotation(number, "2") for number in range(1, 11)]


def test_shapes_of_entries() -> None:
    shape = {"id": int | str, "parts": list, "pair": (str, float)}
    entry = {"id": 1, "parts": [], "pair": ["a", 1.0, "more"], "more": None}
    assert fits(entry, shape)
    for changed in ({"id": None}, {"id": True}, {"parts": {}}, {"pair": ["a"]}):
        assert not fits(entry | changed, shape)
    assert not fits([], shape)


def test_everything_left_out_is_counted_and_listed(tmp_path: Path) -> None:
    images = tmp_path / "flickr30k-images"
    put(images / "short.jpg", picture()[:-400])
    put(images / "text.jpg", "this is no image")
    (images / "folder.jpg").mkdir()
    names = ("missing", "short", "text", "folder")
    entries = [
        karpathy("train", "a.jpg", ["one", "", None, "two "]),
        karpathy("train", "silent.jpg", ["", " "]),
        *(karpathy("train", f"{name}.jpg", ["x"]) for name in names),
        {"split": "train", "filename": "a.jpg"},
        karpathy("extra", "a.jpg", ["x"]),
        karpathy("val", "b.jpg", ["x", "x"]),
        karpathy("test", "b.jpg", ["y"]),
        karpathy("test", "c.jpg", ["x"]),
    ]
    names_of = [f"flickr30k-images/{name}.jpg" for name in "abc"]
    fill(tmp_path, names_of, {"dataset_flickr30k.json": {"images": entries}})
    out = tmp_path / "out"
    report = convert("f30k", tmp_path, out)
    assert report.skipped == {
        "empty caption": 3, "image without a caption": 1, MISSING: 1, MISFIT: 2,
        "damaged image": 2, "unreadable image file": 1,
        "image of an unknown split": 1,
        "second entry of an image (captions are kept)": 1,
    }  # fmt: skip
    assert rows(out / TRAIN)[0]["caption"] == ["one", "two "]
    assert rows(out / "f30k_caption_karpathy_val.arrow") == []
    found = [row["caption"] for row in rows(out / "f30k_caption_karpathy_test.arrow")]
    assert found == [["x", "x", "y"], ["x"]]
    notes = (out / "f30k.notes.tsv").read_text().splitlines()
    assert len(notes) == sum(report.skipped.values())
    assert all(any(f"{name}.jpg" in note for note in notes) for name in (*names, "silent"))
    assert sum("Error" in note for note in notes) == 2  # what Pillow says of the bad images
    assert convert("f30k", tmp_path, out, check=False).rows[TRAIN] == 3


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"a.jpg": "red"}, r"should have \[str, str\] in a list. Found: nothing"),
        ([{"image": "a.jpg", "caption": "red"}], r'entry 1: {"image".* is not \[str, str\]'),
        ([["moved/a.jpg", "red"]], r"no rows .* 1 x missing image file, such as .*moved"),
        ([["a.jpg", " "]], "no rows for sbu; nothing is written. Left out: 1 x empty cap"),
    ],
)
def test_a_conversion_without_rows_fails_and_leaves_no_files(
    tmp_path: Path, entries: Any, said: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=said):
        convert("sbu", pairs(tmp_path, entries), out)
    assert not list(out.iterdir())
    assert convert("sbu", pairs(tmp_path, [["a.jpg", "red"]]), out).rows == {"sbu_0.arrow": 1}
    assert [path.name for path in out.iterdir()] == ["sbu_0.arrow"]


def test_vqa_without_a_frequent_answer_leaves_no_list_of_answers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="most common one of 9 or more"):
        convert("vqav2", vqa(tmp_path, [question(1)], TWOS[:4]), out)
    assert not list(out.iterdir())
    assert convert("vqav2", vqa(tmp_path, [question(1)], TWOS), out).rows["vqav2_train.arrow"] == 1


def test_a_truncated_file_keeps_what_an_earlier_conversion_wrote(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert("sbu", pairs(tmp_path, [["a.jpg", "x"], ["b.jpg", "y"]]), out)
    before = (out / "sbu_0.arrow").read_bytes()
    put(tmp_path / "annot.json", '[["a.jpg", "x"], ["b.j')
    with pytest.raises(DataError, match=r"annot\.json is truncated"):
        convert("sbu", tmp_path, out)
    assert [path.name for path in out.iterdir()] == ["sbu_0.arrow"]
    assert (out / "sbu_0.arrow").read_bytes() == before


def test_threads_keep_the_order_and_pairs_are_split_over_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elip.data.datasets.pairs.SHARD", 30)
    for number in range(50):
        put(tmp_path / f"{number}", picture())
    entries = [[f"{number}", text] for number in range(50) for text in ("x", f"{number}")]
    pairs(tmp_path, [*entries, ["3", "again"]])
    report = convert("sbu", tmp_path, tmp_path, workers=5)
    assert report.rows == {"sbu_0.arrow": 30, "sbu_1.arrow": 20}
    assert report.skipped == {"repeated image": 1}
    found = [row["caption"] for n in (0, 1) for row in rows(tmp_path / f"sbu_{n}.arrow")]
    assert found == [["x", f"{number}"] for number in range(50)]


def test_converted_images_can_be_read(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 5400).reshape(60, 90).astype(np.uint16)
    grey = Image.fromarray((ramp >> 8).astype(np.uint8)).convert("RGB")
    pairs(tmp_path, [[name, "a grey ramp"] for name in ("plain", "pgm", "float", "avif", "cmyk")])
    put(tmp_path / "pgm", b"P5\n90 60\n65535\n" + ramp.astype(">u2").tobytes())
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float", "TIFF")
    grey.save(tmp_path / "avif", "AVIF")
    grey.save(tmp_path / "plain", "PNG")
    grey.convert("CMYK").save(tmp_path / "cmyk", "JPEG")
    report = convert("sbu", tmp_path, tmp_path)
    assert report.rows["sbu_0.arrow"] + report.skipped.get("damaged image", 0) == 5
    for row in rows(tmp_path / "sbu_0.arrow"):
        assert row["image"] == (tmp_path / row["image_id"]).read_bytes()
        pixels = TRANSFORMS["clip"](row["image"], 30)
        assert abs(float(pixels.mean()) - 127) < 9, row["image_id"]


def test_sentences_of_snli_ve_and_nlvr2(tmp_path: Path) -> None:
    said = [entailment("neutral", " h\n"), entailment("-", "h"), entailment("neutral", " ")]
    splits = {f"snli_ve_{split}.jsonl": lines(said) for split in ("train", "dev", "test")}
    fill(tmp_path, ["Flickr30K/images/1.jpg"], splits)
    report = convert("snli_ve", tmp_path, tmp_path)
    assert rows(tmp_path / "snli_dev.arrow")[0]["sentences"] == [["p", "h"]]
    unsure = "hypothesis without a gold label"
    assert report.skipped == {unsure: 3, "empty hypothesis": 3}
    entries = [
        {"identifier": f"a-0-{number}", "sentence": "s", "label": label, "directory": 1}
        for number, label in enumerate(("True", "false", True, False, "maybe"))
    ]
    images = [f"{f}/a-0-img{n}.png" for f in ("images/train/1", "dev", "test1") for n in (0, 1)]
    for name in (
        name.removeprefix("nlvr2_").removesuffix(".arrow") for name in find_dataset("nlvr2").files
    ):
        put(tmp_path / "nlvr2" / "data" / name.rpartition("_")[0] / f"{name}.json", lines(entries))
    report = convert("nlvr2", fill(tmp_path, images, {}), tmp_path)
    found = rows(tmp_path / "nlvr2_balanced_dev.arrow")
    assert [row["answers"] for row in found] == [["True", "False", "True", "False"]]
    assert report.skipped == {"missing sentence or label": 7}


def test_a_bad_region_does_not_affect_others(tmp_path: Path) -> None:
    entries = [
        {"id": 1, "regions": [REGION, REGION | {"phrase": " "}, REGION | {"x": None}, None]},
        {"id": 2, "regions": []},
        {"id": 1, "regions": [REGION]},
    ]
    files = {"annotations/region_descriptions.json": entries}
    images = [f"images/VG_100K_2/{number}.jpg" for number in (1, 2)]
    report = convert("vg", fill(tmp_path, images, files), tmp_path)
    assert report.rows == {"vg.arrow": 1}
    assert report.skipped == {
        "region without a phrase": 1, MISFIT: 2, "image without regions": 1,
        "repeated image": 1,
    }  # fmt: skip
    row = rows(tmp_path / "vg.arrow")[0]
    assert (row["caption"], row["width"], row["y"], row["image_id"]) == (["a cat"], [1], [4], "1")


def test_vqa_questions_keep_their_own_answers(tmp_path: Path) -> None:
    questions = [
        question(1), question(1, 2, "again ?"), question(3, text=" "), question(4, text="rare ?"),
        question(20, text="no annotation ?"), question(5, 2),
    ]  # fmt: skip
    others = [annotation(1, "2", "no"), annotation(1, "yes"), annotation(4, "zebra"), {"id": 6}]
    vqa(tmp_path, questions, [*others, *TWOS[2:3], *TWOS[4:], *TWOS[5:]])
    report = convert("vqav2", tmp_path, tmp_path)
    assert report.skipped == {
        MISFIT: 2, "annotation with a repeated question number": 2 * 6,
        "question with a repeated number": 4, "empty question": 4,
        "question without annotation": 2, "question without a frequent answer": 2,
    }  # fmt: skip
    row, other = rows(tmp_path / "vqav2_train.arrow")
    assert (row["question_id"], row["answers"], row["answer_scores"]) == ([1], [["2"]], [[1.0]])
    assert other["question_id"] == [5]
    assert json.loads((tmp_path / "vqav2_answers.json").read_text()) == ["2"]
    asked = json.loads((tmp_path / "vqav2_test_questions.json").read_text())
    assert asked == [1, 3, 4, 5, 20]


def test_rest_val_is_a_part_of_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elip.data.datasets.vqav2._REST", 3)
    vqa(tmp_path, [question(number, number) for number in range(1, 11)], TWOS, images=10)
    convert("vqav2", tmp_path, tmp_path)
    val, trainable, rest = (
        {row["image_id"] for row in rows(tmp_path / f"vqav2_{name}.arrow")}
        for name in ("val", "trainable_val", "rest_val")
    )
    assert (len(trainable), len(rest), trainable | rest) == (7, 3, val)


def test_both_layouts_of_flickr8k(tmp_path: Path) -> None:
    names = [f"{number}_ab.jpg" for number in range(8)]
    captions = ["A dog , and a cat .", 'He says "go" .']
    tokens = [f"{name}#{n}\t{text}\n" for name in names for n, text in enumerate(captions)]
    quoted = ['"A dog , and a cat ."', '"He says ""go"" ."']
    table = ["image,caption", *(f"{name},{text}" for name in names for text in quoted)]
    authors, copied = tmp_path / "authors", tmp_path / "copy"
    images = (f"Flicker8k_Dataset/{name}" for name in names)
    fill(authors, images, {"Flickr8k.token.txt": "".join(tokens)})
    fill(copied, (f"Images/{name}" for name in names), {"captions.txt": "\n".join(table)})
    found = []
    for raw in (authors, copied):
        assert list(convert("flickr8k", raw, raw).rows.values()) == [4, 2, 2]
        found.append([rows(raw / f"flickr8k_{split}.arrow") for split in ("train", "val", "test")])
        assert found[-1][0][0]["caption"] == captions
        for word, part in (("train", names[:5]), ("dev", names[5:6]), ("test", names[6:7])):
            put(raw / f"Flickr_8k.{word}Images.txt", "\n".join(part) + "\n")
        report = convert("flickr8k", raw, raw)
        assert (list(report.rows.values()), report.skipped) == (
            [5, 1, 1], {"image in no split list": 1},
        )  # fmt: skip
    ids = [[[row["image_id"] for row in part] for part in parts] for parts in found]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Two", "2"), ("none", "0"), ("The red Car.", "red car"), ("dont", "don't"),
        ("couldntve", "couldn't've"), ("black/white", "black white"), ("1,000", "1000"),
        ("3.5", "3.5"), ("u.s.a", "usa"),
    ],
)  # fmt: skip
def test_answers_are_normalised_as_the_evaluation_does(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


def test_soft_scores() -> None:
    answers = ["yes"] * 5 + ["no"] * 2 + ["Yes"] + ["maybe"] + ["1"]
    numbers = {"no": 0, "yes": 1, "1": 2}
    assert scored(answers, numbers) == [("yes", 1, 1.0), ("no", 0, 0.6), ("1", 2, 0.3)]


def strip() -> bytes:
    """An image of NLVR: three boxes, each with a coloured square."""
    image = Image.new("RGB", (400, 100), (128, 128, 128))
    for place, color in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255)]):
        image.paste((211, 211, 211), (150 * place, 0, 150 * place + 100, 100))
        image.paste(color, (150 * place + 40, 30, 150 * place + 60, 50))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_nlvr_holds_out_directories_and_tiles_boxes(tmp_path: Path) -> None:
    said = {"sentence": "There is a box, at least.", "label": "true"}
    for split, folders in (("train", 20), ("dev", 1)):
        entries = [{**said, "identifier": f"{n}-0", "directory": n} for n in range(folders)]
        put(tmp_path / split / f"{split}.json", lines(entries))
        for n in range(folders):
            for p in range(6):
                put(tmp_path / split / "images" / str(n) / f"{split}-{n}-0-{p}.png", strip())
    put(tmp_path / "dev" / "images" / "0" / "dev-0-0-5.png", b"not an image")
    report = convert("nlvr", tmp_path, tmp_path, check=False)
    assert report.rows == {"nlvr_train.arrow": 108, "nlvr_val.arrow": 12, "nlvr_dev.arrow": 5}
    assert report.skipped == {"damaged image": 1}  # even without the check
    row = rows(tmp_path / "nlvr_dev.arrow")[4]
    assert (row["questions"], row["answers"]) == ([said["sentence"]], ["True"])
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer" / "tokenizer.json"))
    assert 3 not in tokenizer.encode(said["sentence"]).ids
    assert row["image"] == tiled(strip())
    boxes = np.asarray(Image.open(io.BytesIO(strip())))
    square = np.asarray(Image.open(io.BytesIO(row["image"])))
    assert square.shape == (224, 224, 3)
    for number, (top, left) in enumerate([(8, 8), (8, 116), (116, 62)]):
        box = boxes[:, 150 * number : 150 * number + 100]
        assert (square[top : top + 100, left : left + 100] == box).all()


class Sounds(DatasetSpec):
    """A dataset whose kind of example no other dataset has."""

    name = "sounds"
    views = {
        "sound": View(
            splits={"train": {"train": ("sounds.arrow",)}},
            columns=Columns(("picture",), "says", "loudness"),
            num_answers=5,
        )
    }
    files = {
        "sounds.arrow": pa.schema({
            "picture": pa.binary(), "says": pa.list_(pa.string()), "loudness": pa.list_(pa.int64()),
        })
    }  # fmt: skip

    def rows(self, download: Download) -> Iterator[Row]:
        """Read [image, what it says, loudness]."""
        for name, text, loud in download.items(download.find("sounds.json"), (str, str, int)):
            values = {"says": [text], "loudness": [loud]}
            yield Row("sounds.arrow", {"picture": download.root / name}, values)


def test_a_dataset_with_an_own_kind_of_example_is_one_class(tmp_path: Path) -> None:
    put(tmp_path / "sounds.json", [["a.png", "a dog barks", 3]])
    put(tmp_path / "a.png", picture("PNG"))
    report = convert("tests.data.test_convert.Sounds", tmp_path, tmp_path)
    assert report.rows == {"sounds.arrow": 1}
    paths = Sounds().paths(tmp_path, ("sounds.arrow",))
    table = ArrowTable(paths, Sounds.views["sound"].columns or LAYOUT["caption"])
    assert (table.text(0, 0), table.target(0, 0)) == ("a dog barks", 3)
    with pytest.raises(DataError, match="no converter"):
        convert("tests.data.tiny.Tiny", tmp_path, tmp_path)


def test_names_of_datasets() -> None:
    assert find_dataset("tests.data.tiny.Tiny").name == "tiny"
    for name, said in (
        ("shape", "'shape'. Did you mean shapes"),
        ("tests.data.tiny.Absent", "cannot be imported"),
    ):
        with pytest.raises(DataError, match=said):
            find_dataset(name)


@pytest.mark.parametrize("name", sorted(known_datasets()))
def test_no_file_serves_both_selection_or_training_and_scores(name: str) -> None:
    for kind, view in find_dataset(name).views.items():
        assert kind in LAYOUT
        used = [
            {pattern for patterns in splits.values() for pattern in patterns}
            for splits in view.splits.values()
        ]
        assert sum(map(len, used)) == len(set().union(*used))


def test_the_command_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs(tmp_path, [["a.jpg", "x"], ["gone.jpg", "x"]])
    command = ["sbu", "--root", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(command) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"1 rows in sbu_0.arrow 1 left out: {MISSING}" in out
    for wrong, said in (
        (["sbv", *command[1:]], "Did you mean sbu"),
        ([*command, "--root", "nowhere"], "no folder nowhere"),
        ([*command, "--out", str(tmp_path / "a.jpg")], str(tmp_path / "a.jpg")),
    ):
        assert main(wrong) == 1
        assert said in " ".join(capsys.readouterr().err.split())
