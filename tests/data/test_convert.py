"""Converters: what goes wrong in a download is handled, counted and named; nothing half-written."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from elip.data import arrow_writer as arrow
from elip.data.answers import normalise, scored, vocabulary
from elip.data.arrow_writer import ArrowWriter
from elip.data.convert import convert as converted
from elip.data.convert import main
from elip.data.datasets import DataError


def picture(mode: str = "RGB", form: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((40, 30), 80).convert(mode).save(buffer, form)
    return buffer.getvalue()


def put(path: Path, content: bytes | str | Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content)).encode()
    path.write_bytes(content)


def rows(path: Path) -> list[dict[str, Any]]:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all().to_pylist()


def karpathy(split: str, name: str, captions: list[str]) -> dict[str, Any]:
    return {"split": split, "filename": name, "sentences": [{"raw": text} for text in captions]}


@pytest.fixture
def flickr(tmp_path: Path) -> Path:
    """Flickr30k with one thing of each kind wrong."""
    raw = tmp_path / "raw"
    images = raw / "flickr30k-images"
    put(images / "good.jpg", picture())
    put(images / "cmyk.jpg", picture("CMYK"))
    put(images / "grey.jpg", picture("L"))
    put(images / "short.jpg", picture()[:-400])
    put(images / "text.jpg", "this is no image")
    put(images / "empty.jpg", b"")
    (images / "folder.jpg").mkdir()
    entries = [
        karpathy("train", "good.jpg", ["one", "", "  ", "two "]),
        karpathy("train", "silent.jpg", ["", " "]),
        karpathy("train", "missing.jpg", ["x"]),
        karpathy("train", "short.jpg", ["x"]),
        karpathy("train", "text.jpg", ["x"]),
        karpathy("train", "empty.jpg", ["x"]),
        karpathy("train", "folder.jpg", ["x"]),
        {"split": "train", "filename": "good.jpg"},
        karpathy("extra", "good.jpg", ["x"]),
        karpathy("val", "cmyk.jpg", ["x", "x"]),
        karpathy("test", "grey.jpg", ["x"]),
    ]
    put(raw / "karpathy" / "dataset_flickr30k.json", {"images": entries})
    return raw


def convert(name: str, raw: Path, out: Path, **options: Any) -> dict[str, int]:
    return dict(converted(name, raw, out, progress=False, **options))


def test_all_that_is_wrong_is_counted(flickr: Path, tmp_path: Path) -> None:
    counts = convert("f30k", flickr, tmp_path / "out")
    train = "f30k_caption_karpathy_train.arrow"
    assert {key: n for key, n in counts.items() if key.startswith(train)} == {
        f"{train}: rows": 1,
        f"{train}: left out: empty caption": 4,
        f"{train}: left out: image without a caption": 1,
        f"{train}: left out: image file missing": 1,
        f"{train}: left out: image does not decode": 3,
        f"{train}: left out: image file unreadable": 1,
        f"{train}: left out: entry is not as expected": 1,
        f"{train}: left out: entry of an unknown split": 1,
    }
    assert rows(tmp_path / "out" / train)[0]["caption"] == ["one", "two "]


def test_notes_name_each_case(flickr: Path, tmp_path: Path) -> None:
    convert("f30k", flickr, tmp_path / "out")
    notes = (tmp_path / "out" / "f30k_caption_karpathy_train.notes.tsv").read_text()
    for name in ("missing.jpg", "short.jpg", "text.jpg", "empty.jpg", "silent.jpg", "folder.jpg"):
        assert name in notes


def test_cmyk_images_are_kept_as_they_are(flickr: Path, tmp_path: Path) -> None:
    counts = convert("f30k", flickr, tmp_path / "out")
    name = "f30k_caption_karpathy_val.arrow"
    assert counts[f"{name}: kept: image in CMYK colors"] == 1
    row = rows(tmp_path / "out" / name)[0]
    assert row["image"] == (flickr / "flickr30k-images" / "cmyk.jpg").read_bytes()
    assert row["caption"] == ["x", "x"]  # the readers drop repetitions, not the files


def test_without_the_check_only_what_cannot_be_read_is_left_out(
    flickr: Path, tmp_path: Path
) -> None:
    counts = convert("f30k", flickr, tmp_path / "out", check=False)
    train = "f30k_caption_karpathy_train.arrow"
    assert counts[f"{train}: rows"] == 4
    assert f"{train}: left out: image does not decode" not in counts


@pytest.mark.parametrize("workers", [1, 5])
def test_threads_keep_the_order(tmp_path: Path, workers: int) -> None:
    raw = tmp_path / "raw"
    pairs = []
    for number in range(50):
        put(raw / f"images/{number}", picture())
        pairs.append([f"images/{number}", f"caption {number}"])
    put(raw / "annot.json", pairs)
    convert("sbu", raw, tmp_path / "out", workers=workers)
    found = rows(tmp_path / "out" / "sbu_0.arrow")
    assert [row["caption"] for row in found] == [[f"caption {number}"] for number in range(50)]


def test_pairs_are_split_over_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elip.data.captions.SHARD", 3)
    raw = tmp_path / "raw"
    for number in range(6):
        put(raw / f"{number}", picture())
    pairs = [[f"{number}", "x"] for number in range(6)]
    put(raw / "annot.json", [pairs[0], ["0", "y"], *pairs[1:]])
    convert("sbu", raw, tmp_path / "out")
    files = sorted(path.name for path in (tmp_path / "out").glob("*.arrow"))
    assert files == ["sbu_0.arrow", "sbu_1.arrow"]
    assert rows(tmp_path / "out" / "sbu_0.arrow")[0]["caption"] == ["x", "y"]


def test_finished_files_are_kept(flickr: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = convert("f30k", flickr, out)
    (out / "f30k_caption_karpathy_val.arrow").unlink()
    kept = (out / "f30k_caption_karpathy_train.arrow").stat().st_mtime_ns
    assert convert("f30k", flickr, out) == first
    assert (out / "f30k_caption_karpathy_train.arrow").stat().st_mtime_ns == kept


def test_a_cut_annotation_file_leaves_no_half_file(flickr: Path, tmp_path: Path) -> None:
    path = flickr / "karpathy" / "dataset_flickr30k.json"
    path.write_text(path.read_text()[:-30])
    with pytest.raises(DataError, match=r"dataset_flickr30k\.json is cut short"):
        convert("f30k", flickr, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    put(tmp_path / "snli_ve_train.jsonl", '{"Flickr30K_ID": "1"\n')
    with pytest.raises(DataError, match=r"snli_ve_train\.jsonl, line 1"):
        convert("snli_ve", tmp_path, tmp_path / "out")


def test_a_missing_annotation_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"karpathy/dataset_coco\.json"):
        convert("coco", tmp_path, tmp_path / "out")
    with pytest.raises(DataError, match="no folder"):
        convert("coco", tmp_path / "nowhere", tmp_path / "out")


def entailment(image: str, label: str, hypothesis: str, pair: str) -> str:
    return json.dumps(
        {
            "Flickr30K_ID": image,
            "gold_label": label,
            "sentence1": "p",
            "sentence2": hypothesis,
            "pairID": pair,
        }
    )


def test_sentences_without_a_class_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "Flickr30K" / "images" / "1.jpg", picture())
    lines = [
        entailment("1", "neutral", "h", "a"),
        entailment("1", "-", "h", "b"),
        entailment("1", "entailment", "", "c"),
        '{"Flickr30K_ID": "1"}',
    ]
    for split in ("train", "dev", "test"):
        put(tmp_path / f"snli_ve_{split}.jsonl", "\n".join(lines))
    counts = convert("snli_ve", tmp_path, tmp_path / "out")
    assert rows(tmp_path / "out" / "snli_dev.arrow")[0]["labels"] == [1]
    assert counts["snli_dev.arrow: left out: annotators do not agree on a class"] == 1
    assert counts["snli_dev.arrow: left out: empty hypothesis"] == 1
    assert counts["snli_dev.arrow: left out: entry is not as expected"] == 1


def test_regions_without_a_phrase_are_counted(tmp_path: Path) -> None:
    region = {"region_id": 7, "width": 1, "height": 2, "x": 3, "y": 4, "phrase": "a cat"}
    entries = [
        {"id": 1, "regions": [region, region | {"phrase": " "}]},
        {"id": 2, "regions": []},
    ]
    put(tmp_path / "annotations" / "region_descriptions.json", entries)
    put(tmp_path / "images" / "VG_100K_2" / "1.jpg", picture())
    counts = convert("vg", tmp_path, tmp_path / "out")
    assert counts["vg.arrow: left out: region without a phrase"] == 1
    assert counts["vg.arrow: left out: image without regions"] == 1
    row = rows(tmp_path / "out" / "vg.arrow")[0]
    assert (row["caption"], row["width"], row["y"], row["image_id"]) == (["a cat"], [1], [4], "1")


def vqa(raw: Path, split: str, questions: list[tuple[int, int, str, str]]) -> None:
    """Write questions (image, number, question, the answer of all ten people) and annotations."""
    put(
        raw / f"v2_OpenEnded_mscoco_{split}_questions.json",
        {
            "questions": [
                {"image_id": i, "question_id": n, "question": q} for i, n, q, _ in questions
            ]
        },
    )
    annotations = [
        {
            "image_id": image,
            "question_id": number,
            "multiple_choice_answer": answer,
            "answers": [{"answer": answer}] * 3 + [{"answer": "the dog"}] * 7,
        }
        for image, number, _, answer in questions
        if answer
    ]
    put(raw / f"v2_mscoco_{split}_annotations.json", {"annotations": annotations})


def test_vqa_questions_are_kept_or_counted(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    train = [(1, number, f"q{number} ?", "Two") for number in range(9)]
    train += [(1, 20, "q ?", "2"), (1, 24, "q ?", "2"), (1, 20, "again ?", "2"), (1, 21, " ", "2")]
    train += [(1, 22, "unanswered ?", ""), (1, 23, "rare ?", "zebra"), (2, 30, "rare ?", "zebra")]
    vqa(raw, "train2014", train)
    vqa(raw, "val2014", [(3, 40, "v ?", "2"), (4, 41, "v ?", "2")])
    for split in ("test2015", "test-dev2015"):
        vqa(raw, split, [(5, 50, "t ?", "")])
    for folder, image in (("train2014", 1), ("val2014", 3), ("val2014", 4), ("test2015", 5)):
        put(raw / folder / f"COCO_{folder}_{image:012d}.jpg", picture())
    counts = convert("vqav2", raw, out)
    assert {key: n for key, n in counts.items() if key.startswith("vqav2_train.arrow")} == {
        "vqav2_train.arrow: rows": 1,
        "vqav2_train.arrow: kept: question asked twice of an image": 1,
        "vqav2_train.arrow: left out: question number occurs twice": 1,
        "vqav2_train.arrow: left out: empty question": 1,
        "vqav2_train.arrow: left out: question without annotation": 1,
        "vqav2_train.arrow: left out: question without a frequent answer": 11,
        "vqav2_train.arrow: left out: image without a usable question": 1,
    }
    row = rows(out / "vqav2_train.arrow")[0]
    assert row["question_id"] == [20, 24]
    assert (row["answers"], row["answer_scores"]) == ([["2"]] * 2, [[0.9]] * 2)
    assert json.loads((out / "vqav2_answers.json").read_text()) == ["2"]
    assert counts["vqav2_rest_val.arrow: rows"] == 2


def test_rest_val_is_a_fixed_part_of_val(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("elip.data.datasets.vqav2._REST", 3)
    raw = tmp_path / "raw"
    vqa(raw, "train2014", [(1, number, f"q{number} ?", "2") for number in range(9)])
    vqa(raw, "val2014", [(image, image, "v ?", "2") for image in range(10, 20)])
    for split in ("test2015", "test-dev2015"):
        vqa(raw, split, [])
    for image in range(10, 20):
        put(raw / "val2014" / f"COCO_val2014_{image:012d}.jpg", picture())
    parts = []
    for out in (tmp_path / "a", tmp_path / "b"):
        convert("vqav2", raw, out)
        parts.append(
            [
                {row["image_id"] for row in rows(out / f"vqav2_{part}.arrow")}
                for part in ("val", "trainable_val", "rest_val")
            ]
        )
    (val, trainable, rest), again = parts
    assert [val, trainable, rest] == again
    assert (len(val), len(trainable), len(rest)) == (10, 7, 3)
    assert trainable | rest == val


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Two", "2"),
        ("none", "0"),
        ("The red Car.", "red car"),
        ("dont", "don't"),
        ("couldntve", "couldn't've"),
        ("yes!", "yes"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("u.s.a", "usa"),
        ("an apple", "apple"),
    ],
)
def test_answers_are_normalised_as_the_evaluation_does(answer: str, expected: str) -> None:
    assert normalise(answer) == expected


def test_the_vocabulary_keeps_what_occurs_nine_times() -> None:
    assert vocabulary(["no"] * 8 + ["b"] * 8 + ["c"] * 9 + ["The B"]) == ["b", "c"]


def test_scores_of_answers() -> None:
    answers = ["yes"] * 5 + ["no"] * 2 + ["Yes"] + ["maybe"] + ["1"]
    assert scored(answers, {"no": 0, "yes": 1, "1": 2}) == [
        ("yes", 1, 1.0),
        ("no", 0, 0.6),
        ("1", 2, 0.3),
    ]


def test_the_writer_closes_batches_by_size_and_number(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    schema = pa.schema({"image": pa.binary(), "n": pa.int64()})
    with ArrowWriter(path, schema, batch_bytes=100, batch_rows=7) as writer:
        for number in range(20):
            writer.write({"image": bytes(60 if number < 4 else 1), "n": number})
    reader = pa.ipc.open_file(path)
    sizes = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
    assert sizes == [2, 2, 7, 7, 2]
    assert reader.read_all()["n"].to_pylist() == list(range(20))


def test_the_writer_leaves_the_older_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    path.write_text("older")
    with pytest.raises(ZeroDivisionError), ArrowWriter(path, arrow.CAPTION):
        raise ZeroDivisionError
    assert path.read_text() == "older"
    assert [file.name for file in tmp_path.iterdir()] == ["x.arrow"]


def test_the_writer_names_a_wrong_column(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="split"),
        ArrowWriter(tmp_path / "x.arrow", arrow.CAPTION) as writer,
    ):
        writer.write({"image": b"", "caption": []})


@pytest.mark.parametrize("workers", [0, -3])
def test_no_workers_are_refused(tmp_path: Path, workers: int) -> None:
    with pytest.raises(DataError, match=f"workers is {workers}; it must be at least 1"):
        convert("sbu", tmp_path, tmp_path / "out", workers=workers)


def test_a_file_that_is_there_and_damaged_is_named(tmp_path: Path) -> None:
    put(tmp_path / "out" / "vg.arrow", "not Arrow")
    put(tmp_path / "annotations" / "region_descriptions.json", [])
    with pytest.raises(DataError, match=r"vg\.arrow is not a whole Arrow file"):
        convert("vg", tmp_path, tmp_path / "out")


def test_a_damaged_list_of_kept_answers_is_named(tmp_path: Path) -> None:
    put(tmp_path / "out" / "vqav2_answers.json", '["yes", "n')
    with pytest.raises(DataError, match=r"vqav2_answers\.json is no whole JSON"):
        convert("vqav2", tmp_path, tmp_path / "out")


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str | Path) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, " ".join(out.split()), " ".join(err.split())

    return run


def test_the_command_reports(
    command: Callable[..., tuple[int, str, str]], flickr: Path, tmp_path: Path
) -> None:
    status, out, _ = command("f30k", "--root", flickr, "--out", tmp_path / "out")
    assert status == 0
    assert "1 f30k_caption_karpathy_train.arrow: rows" in out
    assert "3 f30k_caption_karpathy_train.arrow: left out: image does not decode" in out


def test_the_command_names_what_is_near(
    command: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    status, _, err = command("nlvr3", "--root", tmp_path, "--out", tmp_path)
    assert status == 2
    assert "Did you mean nlvr or nlvr2" in err


def test_a_folder_that_cannot_be_made_is_a_message(
    command: Callable[..., tuple[int, str, str]], flickr: Path, tmp_path: Path
) -> None:
    put(tmp_path / "file", "")
    status, _, err = command("f30k", "--root", flickr, "--out", tmp_path / "file")
    assert status == 2
    assert "error:" in err
    assert str(tmp_path / "file") in err


def test_the_command_runs_as_a_module(flickr: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "elip.data.convert", "f30k", "--no-check"]
    command += ["--root", str(flickr), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "f30k_caption_karpathy_test.arrow").exists()
