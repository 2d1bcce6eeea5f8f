"""Our readers, transforms and tokens against what the official readers yield from the same files.

Two departures: where texts of an image are de-duplicated the reference's order is that of a hash
set, so sets are compared there; and masks and draws follow our own random numbers, so their rules
are compared, not their results.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from elip.data.arrow import ArrowTable, SoftAnswers
from elip.data.batch import SampleSpec
from elip.data.collate import IGNORED, Collator
from elip.data.dataset import DatasetConfig, Examples
from elip.data.datasets import find_dataset
from elip.data.datasets.base import LAYOUT
from elip.data.sampling import SampleIndex
from elip.data.tokenize import TextTokenizer, load_tokenizer
from elip.data.transforms import OPERATIONS, TRANSFORMS, Pixels, Transform, rand_augment
from elip.model.meter import _PIXELS

SOURCES = {"vqa": "vqav2", "snli": "snli_ve"}
FOLDERS = {"gcc": "conceptual_caption"}
CLASSES = {"NLVR2Dataset": "nlvr2", "SNLIDataset": "snli_ve", "VQAv2Dataset": "vqav2"}
EXACT = 1e-6  # float32 rounding of the normalisation; the uint8 pixels are the same


def load(golden: Path, name: str) -> Any:
    return json.loads((golden / "reader" / name).read_text())


def table_of(golden: Path, dataset: str, names: list[str]) -> ArrowTable:
    source = find_dataset(SOURCES.get(dataset, dataset))
    ((kind, view),) = source.views.items()
    folder = golden / "convert" / FOLDERS.get(source.name, source.name) / "expected"
    return ArrowTable([folder / f"{name}.arrow" for name in names], LAYOUT[kind], view.distinct)


def splits(golden: Path) -> Iterator[tuple[str, dict[str, Any], ArrowTable]]:
    for index in sorted((golden / "reader").glob("index_*.json")):
        for name, case in json.loads(index.read_text()).items():
            if case["existing"]:
                dataset = name.partition("/")[0]
                yield name, case, table_of(golden, dataset, case["existing"])


def stem(table: ArrowTable, row: int) -> str:
    return Path(table.where(row).partition(", row")[0]).stem


def test_items_rows_and_tables(golden: Path) -> None:
    seen = 0
    for name, case, table in splits(golden):
        assert table.num_items == case["length"], name
        assert table.num_rows == case["rows"], name
        where = [list(table.locate(item)) for item in range(table.num_items)]
        assert where == case["index_mapper"], name
        assert [stem(table, row) for row in range(table.num_rows)] == case["table_names"], name
        seen += 1
    assert seen >= 17


def test_texts(golden: Path) -> None:
    for name, case, table in splits(golden):
        texts = [
            [table.text(row, index) for index in range(len(table.items(row)))]
            for row in range(table.num_rows)
        ]
        if table.distinct:
            assert [sorted(row) for row in texts] == case["texts_per_image"], name
            for found, raw in zip(texts, case["texts_in_arrow"], strict=True):
                assert found == list(dict.fromkeys(raw)), name
        else:
            assert texts == case["texts_per_image"], name


def test_targets_and_keys(golden: Path) -> None:
    compared = 0
    for name, case, table in splits(golden):
        for item in case["items"]:
            row, index = item["img_index"], item["cap_index"]
            target = table.target(row, index)
            if "vqa_labels" in item:
                labels, scores = tuple(item["vqa_labels"]), tuple(item["vqa_scores"])
                assert target == (SoftAnswers(labels, scores) if table.has_target else None), name
                assert table.key(row, index) == str(item["qid"]), name
            elif "answers" in item or "labels" in item:
                assert target == item.get("answers", item.get("labels")), name
            else:
                assert target is None, name
            compared += 1
    assert compared >= 150


def test_official_files_of_each_phase(golden: Path) -> None:
    index = load(golden, "index_meter.json")
    for name, case in index.items():
        dataset, phase = name.split("/")
        source = find_dataset(SOURCES.get(dataset, dataset))
        ((_, view),) = source.views.items()
        folder = golden / "convert" / FOLDERS.get(source.name, source.name) / "expected"
        chosen = view.chosen("official").get(phase, {})
        found = [
            path.stem for patterns in chosen.values() for path in source.paths(folder, patterns)
        ]
        assert found == case["existing"], name


def test_vqa_answers(golden: Path) -> None:
    labels = load(golden, "vqa_labels.json")
    table = table_of(golden, "vqa", ["vqav2_train", "vqav2_val"])
    assert table.answer_words() == {int(key): word for key, word in labels["id2answer"].items()}
    assert len(labels["answer2id"]) == labels["num_class"] == len(table.answer_words())


def test_joined_datasets(golden: Path) -> None:
    index, joined = load(golden, "index_meter.json"), load(golden, "multitask.json")
    tables = [
        table_of(golden, name, index[f"{name}/train"]["existing"]) for name in joined["datasets"]
    ]
    examples = Examples(
        tables, SampleSpec("caption"), DatasetConfig(TRANSFORMS["clip"], 8, train=True)
    )
    assert len(examples) == joined["cumulative_train"][-1]
    for end, size, table in zip(joined["cumulative_train"], joined["train"], tables, strict=True):
        last, first = examples[end - 1], examples[end - size]
        assert last is not None
        assert first is not None
        assert last.text == table.text(*table.locate(size - 1))
        assert first.text == table.text(*table.locate(0))


def test_false_draws_are_over_all_items(golden: Path) -> None:
    rule = load(golden, "false_sampling.json")
    draws = [draw for case in rule["cases"] for draw in case["randint_draws"]]
    assert all(0 <= draw < rule["length"] for draw in draws)
    names = load(golden, "index_meter.json")["f30k/train"]["existing"]
    table = table_of(golden, "f30k", names)
    assert table.num_items == rule["length"]
    reading = DatasetConfig(TRANSFORMS["clip"], 8, train=True, exclude_own=False)
    examples = Examples(
        [table], SampleSpec("caption", negative_images=1, negative_texts=3), reading
    )
    texts = {table.text(*table.locate(item)) for item in range(table.num_items)}
    found = set()
    for epoch in range(100):
        example = examples[SampleIndex(epoch, 0)]
        assert example is not None
        assert example.negative_images is not None
        assert example.negative_images.shape == (1, 3, 8, 8)
        assert len(example.negative_texts) == 3
        found |= set(example.negative_texts)
    assert found == texts


def normalised(pixels: Pixels, transform: Transform) -> torch.Tensor:
    """Normalise as the model of that name does."""
    pair = _PIXELS[transform.name.removesuffix("_randaug")]
    mean, std = (torch.tensor(part)[:, None, None] for part in pair)
    return (torch.from_numpy(pixels).float() / 255 - mean) / std


def tolerance(golden: Path, image: str) -> float:
    """JPEGs decode differently from one libjpeg to another."""
    lossy = image.endswith((".jpg", ".webp"))
    return (
        0.33
        if lossy and load(golden, "transforms/val.json")["pillow"] != PIL.__version__
        else EXACT
    )


def test_transforms(golden: Path) -> None:
    folder = golden / "reader" / "transforms"
    compared = 0
    for key, expected in load_file(folder / "val.safetensors").items():
        name, size, image = key.split("/")
        transform = TRANSFORMS.get(name.removesuffix("_sampled"))
        if transform is None:  # transforms of ViLT that METER does not use
            continue
        if "gray16" in image:  # the reference clips 16 bits to white; here they are scaled to 8
            continue
        data = (folder / "images" / image).read_bytes()
        found = normalised(transform(data, int(size)), transform)
        if name.endswith("_sampled"):
            stats = load(golden, "transforms/val.json")["stats"][f"clip/{size}/{image}"]
            assert found.mean((1, 2)).tolist() == pytest.approx(stats["mean"], abs=1e-5), key
            assert found.std((1, 2)).tolist() == pytest.approx(stats["std"], abs=1e-5), key
            found = found[:, :: int(size) // 8, :: int(size) // 8]
        assert (found - expected).abs().max() <= tolerance(golden, image), key
        compared += 1
    assert compared >= 60


class Always(random.Random):
    """Chance that always falls on one side."""

    def __init__(self, value: float) -> None:
        super().__init__(0)
        self.value = value

    def random(self) -> float:
        return self.value


def augmented(golden: Path) -> dict[str, NDArray[Any]]:
    file = golden / "reader" / "transforms" / "randaug.safetensors"
    return {key: tensor.numpy() for key, tensor in load_file(file).items()}


def test_each_operation_in_both_directions(golden: Path) -> None:
    recorded = augmented(golden)
    image = Image.fromarray(recorded["input"])
    compared = set()
    for key, expected in recorded.items():
        name, _, side = key.partition("/")
        if name in OPERATIONS:
            found = OPERATIONS[name](image, Always(0.9 if side == "neg" else 0.1))
            assert np.array_equal(np.asarray(found), expected), key
            compared.add(name)
    assert compared == set(OPERATIONS)
    assert list(OPERATIONS) == [
        op["op"] for op in load(golden, "transforms/randaug.json")["ops"] if "op" in op
    ]


def test_random_augmentation_by_seed(golden: Path) -> None:
    recorded = augmented(golden)
    image = Image.fromarray(recorded["input"])
    stream = io.BytesIO()
    image.save(stream, "PNG")
    transform = TRANSFORMS["clip_randaug"]
    compared = 0
    for key, expected in recorded.items():
        *_, seed = key.split("/")
        if key.startswith("seed/"):
            found = np.asarray(rand_augment(image, random.Random(int(seed))))
            assert np.array_equal(found, expected), key
        elif key.startswith("clip_randaug/"):
            pixels = transform(stream.getvalue(), 32, random.Random(int(seed)))
            assert abs(normalised(pixels, transform).numpy() - expected).max() <= EXACT, key
        else:
            continue
        compared += 1
    assert compared >= 16


def test_batches(golden: Path) -> None:
    recorded = load_file(golden / "reader" / "collate.safetensors")
    compared = 0
    for name, case in load(golden, "collate.json").items():
        if case["cls"] not in CLASSES or case["transform"] != ["clip"]:
            continue
        source = CLASSES[case["cls"]]
        ((kind, _),) = find_dataset(source).views.items()
        index = load(golden, "index_meter.json")[f"{name.partition('_')[0]}/{case['split']}"]
        tokenizer = load_tokenizer(golden / "reader" / "tokenizers" / case["tokenizer"])
        encoder = TextTokenizer(tokenizer, case["max_text_len"])
        table = table_of(golden, source, index["existing"])
        reading = DatasetConfig(TRANSFORMS["clip"], 32, train=False)
        examples = Examples([table], SampleSpec(kind), reading)
        batch = Collator(encoder, num_answers=4)([examples[i] for i in case["indices"]])
        assert batch is not None
        assert list(batch.strings) == case["text"]
        ids, mask = recorded[f"{name}/text_ids"], recorded[f"{name}/text_masks"].bool()
        length = batch.text.ids.shape[1]  # ours are cut to the longest text of the batch
        assert torch.equal(batch.text.ids, ids[:, :length])
        assert torch.equal(batch.text.mask, mask[:, :length])
        assert length % 8 == 0 or length == case["max_text_len"]
        assert not mask[:, length:].any()
        assert batch.target is not None
        if kind == "question":
            assert list(batch.keys) == [str(key) for key in case["qid"]]
            for row, labels, scores in zip(
                batch.target, case["vqa_labels"], case["vqa_scores"], strict=True
            ):
                assert row[labels].tolist() == pytest.approx(scores)
                assert row.sum() == pytest.approx(sum(scores))
        else:
            assert batch.target.tolist() == case.get("labels", case.get("answers"))
        for number, column in enumerate(table.columns.images):
            for row, expected in zip(batch.images, recorded[f"{name}/{column}"], strict=True):
                found = normalised(row[number].numpy(), TRANSFORMS["clip"])
                assert (found - expected).abs().max() <= tolerance(golden, ".jpg"), name
        compared += 1
    assert compared >= 4


@pytest.mark.parametrize("case", ["bert_lm", "roberta_lm"])
def test_masking_rates(golden: Path, case: str) -> None:
    """The reference's plain masking: 15% of the real tokens, of these 80/10/10."""
    recorded = [
        stats
        for name, stats in load(golden, "collator_stats.json").items()
        if name.startswith(f"{case}/")
    ]
    assert recorded
    for stats in recorded:
        assert stats["per_token_mask_rate"] == pytest.approx([0.15] * 3, abs=0.015)
        assert stats["frac_mask_token"] == pytest.approx(0.8, abs=0.015)
        assert stats["masked_special_or_pad"] == 0
    folder = "bert-tiny-uncased" if case.startswith("bert") else "roberta-tiny"
    encoder = TextTokenizer(load_tokenizer(golden / "reader" / "tokenizers" / folder), 40)
    names = load(golden, "index_meter.json")["coco/train"]["existing"]
    examples = Examples(
        [table_of(golden, "coco", names)],
        SampleSpec("caption", masked=True),
        DatasetConfig(TRANSFORMS["clip"], 8, train=True),
    )
    collate = Collator(encoder, masked=True)
    tokens = chosen = hidden = 0
    for epoch in range(100):
        batch = collate([examples[SampleIndex(epoch, number)] for number in range(len(examples))])
        assert batch is not None
        assert batch.masked is not None
        assert batch.masked_labels is not None
        places = batch.masked_labels != IGNORED
        special = sum((batch.text.ids == i) for i in (encoder.cls_id, encoder.sep_id)) > 0
        assert not (places & (special | ~batch.text.mask)).any()
        tokens += int((batch.text.mask & ~special).sum())
        chosen += int(places.sum())
        hidden += int((batch.masked.ids[places] == encoder.mask_id).sum())
    assert chosen / tokens == pytest.approx(0.15, abs=0.01)
    assert hidden / chosen == pytest.approx(0.8, abs=0.02)
