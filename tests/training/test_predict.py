"""What ``predict`` leaves: all rows once and in order, the server's file, and token maps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from elip.data.batch import Batch
from elip.model.config import MeterConfig
from elip.tasks.base import Task
from elip.tasks.nlvr2 import NLVR2
from elip.tasks.statement import Statement
from elip.tasks.vqa import VQA
from elip.training.module import MeterModule, SplitResult
from elip.training.predict import PREDICTIONS_NAME, TOKENS_NAME, Predictions
from reducers.contract import Reducer
from reducers.elip import ELIP
from reducers.pumer import PuMer
from reducers.topk import TopK
from tests.tasks.tiny import (
    ANSWERS,
    IN_THE_ENCODER,
    IN_THE_FUSION,
    LENGTH,
    PIXELS,
    VOCAB,
    batch_for,
    take,
)

PATCHES = (PIXELS // 4) ** 2


def experiment(task: Task, reducer: Reducer | None) -> MeterModule:
    torch.manual_seed(0)
    config = MeterConfig(
        image_size=PIXELS, patch_size=4, image_width=32, image_blocks=5, image_heads=2,
        text_width=32, text_layers=1, text_heads=2, fusion_width=24, fusion_layers=2,
        fusion_heads=2, max_text_len=LENGTH,
    )  # fmt: skip
    fused = reducer is not None and reducer.placement == "fusion"
    schedule = IN_THE_FUSION if fused else IN_THE_ENCODER
    module = MeterModule(task, reducer, schedule, config, vocab_size=VOCAB, num_answers=ANSWERS)
    return module.eval()


def trainer(root: Path, rank: int = 0, world: int = 1) -> Any:
    answers = tuple(f"answer {number}" for number in range(ANSWERS))
    return SimpleNamespace(
        default_root_dir=str(root),
        global_rank=rank,
        world_size=world,
        is_global_zero=rank == 0,
        datamodule=SimpleNamespace(
            split_names=lambda stage: ["test"],
            info=SimpleNamespace(answers=answers),
            eval_config=SimpleNamespace(limit=None),
            asked=lambda kind: frozenset(),
        ),
    )


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Gathers the rows of processes that run one after the other; the last one sees all."""
    given: list[Any] = []

    def gather(into: list[Any], own: Any) -> None:
        given.append(own)
        into[: len(given)] = given

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    return given


def predict(module: MeterModule, batches: list[Batch], watched: Predictions, at: Any) -> None:
    watched.on_predict_start(at, module)
    with torch.no_grad():
        for number, batch in enumerate(batches):
            rows = module.predict_step(batch, number)
            watched.on_predict_batch_end(at, module, rows, batch, number)
    watched.on_predict_end(at, module)


def finish(module: MeterModule, rows: list[dict[str, Any]], at: Any) -> None:
    module.results = {"test": SplitResult(len(rows), {}, {}, torch.zeros(0, 3), rows)}
    Predictions().on_test_end(at, module)


def read(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / PREDICTIONS_NAME).read_text().splitlines()]


def test_rows_of_all_processes_are_written_once_in_order(tmp_path: Path, shares: list[Any]) -> None:
    module = experiment(VQA(), TopK())
    batch = batch_for(module.task.spec, 6)
    watched = Predictions(images=0)
    predict(module, [take(batch, [5, 1, 2])], watched, trainer(tmp_path, rank=1, world=2))
    assert not (tmp_path / PREDICTIONS_NAME).exists()
    predict(module, [take(batch, [0, 4]), take(batch, [3, 2])], watched, trainer(tmp_path, 0, 2))
    rows = read(tmp_path)
    assert [row["example"] for row in rows] == [0, 1, 2, 3, 4, 5]
    for row, known in zip(rows, module.predict_step(batch, 0), strict=True):
        # Another batch size may change the last bit.
        assert row.pop("probability") == pytest.approx(known.pop("probability"))
        assert row == {"split": "test", **known}
    sent = json.loads((tmp_path / "submission.json").read_text())
    answers = [f"answer {row['label']}" for row in rows]
    assert sent == [
        {"question_id": 1000 + number, "answer": answer} for number, answer in enumerate(answers)
    ]


def test_a_test_run_writes_its_rows_and_the_servers_file(tmp_path: Path) -> None:
    module = experiment(VQA(), TopK())
    batch = batch_for(module.task.spec, 6)
    at = trainer(tmp_path)
    for answered in (batch, replace(batch, target=None)):
        evaluator = module.task.evaluator()
        evaluator.keeps_predictions = True
        with torch.no_grad():
            evaluator.update(module.meter, take(answered, [4, 1, 0]))
            evaluator.update(module.meter, take(answered, [2, 5, 3]))
        finish(module, evaluator.predictions, at)
        rows = read(tmp_path)
        assert [row["example"] for row in rows] == [0, 1, 2, 3, 4, 5]
        for row, known in zip(rows, module.predict_step(batch, 0), strict=True):
            assert row["label"] == known["label"]
        sent = json.loads((tmp_path / "submission.json").read_text())
        assert [entry["question_id"] for entry in sent] == [1000 + row for row in range(6)]


def test_a_process_without_examples_joins_the_gathering(tmp_path: Path, shares: list[Any]) -> None:
    module = experiment(VQA(), None)
    batch = batch_for(module.task.spec, 6)
    for rank, rows in ((1, []), (0, module.task.predict(module.meter, batch))):
        finish(module, rows, trainer(tmp_path, rank, world=2))
    assert [len(rows) for rows in shares] == [0, 6]
    assert [row["example"] for row in read(tmp_path)] == [0, 1, 2, 3, 4, 5]


def test_a_task_without_rows_writes_no_file(tmp_path: Path) -> None:
    module = experiment(Statement(), None)
    finish(module, [], trainer(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_task_without_a_server_writes_no_submission(tmp_path: Path) -> None:
    module = experiment(Statement(), None)
    predict(module, [batch_for(module.task.spec)], Predictions(images=0), trainer(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS_NAME]


def test_a_failed_submission_keeps_the_rows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = experiment(VQA(), None)
    at = trainer(tmp_path)
    at.datamodule.info.answers = ("one",)
    predict(module, [batch_for(module.task.spec)], Predictions(images=0), at)
    assert len(read(tmp_path)) == 6
    assert "No submission for test" in caplog.text


def test_a_submission_holds_every_question_or_is_not_written(tmp_path: Path) -> None:
    module, at = experiment(VQA(), None), trainer(tmp_path)
    batch = batch_for(module.task.spec)
    at.datamodule.split_names = lambda stage: ["test", "test-std"]
    at.datamodule.asked = lambda kind: frozenset(range(1000, 1010))
    predict(module, [batch], Predictions(images=0), at)
    for split in ("test", "test-std"):
        sent = json.loads((tmp_path / f"submission-{split}.json").read_text())
        assert [entry["question_id"] for entry in sent] == list(range(1000, 1010))
    assert [note[:42] for note in module.notes] == [
        "Submission for test: 4 of 10 questions hav", "Submission for test-std: 4 of 10 questions",
    ]  # fmt: skip
    at.default_root_dir = str(tmp_path / "limited")
    (tmp_path / "limited").mkdir()
    at.datamodule.eval_config.limit = 3
    predict(module, [batch], Predictions(images=0), at)
    assert not list((tmp_path / "limited").glob("submission*"))
    assert "eval_limit" in module.notes[-1]


@pytest.mark.parametrize(
    ("reducer", "where", "layers"),
    [(ELIP(), "block", [1, 3]), (TopK(), "block", [1, 3]), (PuMer(), "fusion layer", [0])],
)
def test_token_maps_are_those_of_the_model(
    reducer: Reducer, where: str, layers: list[int], tmp_path: Path
) -> None:
    module = experiment(Statement(), reducer)
    batch = batch_for(module.task.spec, 6)
    predict(module, [batch], Predictions(images=3, texts=1), trainer(tmp_path))
    content = json.loads((tmp_path / TOKENS_NAME).read_text())
    assert content["reducer"] == type(reducer).__name__
    assert content["family"] == reducer.family
    assert content["grid"] == [PIXELS // 4] * 2
    # Two examples share an image; of each image only the first text is shown.
    assert [image["example"] for image in content["images"]] == [0, 2, 4]
    with torch.no_grad():
        fused = module.task.logits(module.meter, batch)[1][0]  # type: ignore[operator]
    for image in content["images"]:
        assert [stage["where"] for stage in image["stages"]] == [where] * len(layers)
        assert [stage["layer"] for stage in image["stages"]] == layers
        for stage, known in zip(image["stages"], fused.stages, strict=True):
            assert len(stage["origin"]) == PATCHES
            assert stage["origin"] == known.patch_to_token[image["example"]].tolist()
        with Image.open(tmp_path / "tokens" / image["file"]) as saved:
            pixels = torch.from_numpy(np.array(saved)).permute(2, 0, 1)
        assert torch.equal(pixels, batch.images[image["example"], 0])


def test_both_images_of_a_pair_are_shown(tmp_path: Path) -> None:
    module = experiment(NLVR2(), TopK())
    batch = batch_for(module.task.spec, 2)
    predict(module, [batch], Predictions(images=2), trainer(tmp_path))
    images = json.loads((tmp_path / TOKENS_NAME).read_text())["images"]
    assert [(image["example"], image["image"]) for image in images] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]
    assert len({image["file"] for image in images}) == 4


def test_without_reduction_there_are_images_and_no_stages(tmp_path: Path) -> None:
    module = experiment(Statement(), None)
    predict(module, [batch_for(module.task.spec)], Predictions(images=1), trainer(tmp_path))
    content = json.loads((tmp_path / TOKENS_NAME).read_text())
    assert content["reducer"] == "Identity"
    assert [image["stages"] for image in content["images"]] == [[]]
