"""Names, splits, answers, batches of a run; the same examples in any number of processes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from elip.data.batch import Batch, SampleSpec
from elip.data.datamodule import DataModule
from elip.data.datasets.base import DataError, MissingFilesError
from elip.data.sampling import DistributedBatchSampler, SampleIndex
from tests.data.tiny import captions, noise, png, write, write_tiny

SPEC = SampleSpec("caption", masked=True, negative_images=1)
TINY, SECOND = "tests.data.tiny.Tiny", "tests.data.tiny.Second"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
]


def module(root: Path, spec: SampleSpec = SPEC, **options: object) -> DataModule:
    settings = {"datasets": TINY, "batch_size": 4, "image_size": 8, "max_text_len": 8} | options
    data = DataModule(root=str(root), **settings)  # type: ignore[arg-type]
    data.spec = spec
    return data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "data")


# --- what a model must know before it is built


def test_vocabulary_and_answers(root: Path) -> None:
    data = module(root)
    assert data.info.vocab_size == len(data.tokenizer)
    assert data.info.num_answers == 7
    assert data.info.answers == ("yes", "no", "maybe", *["unknown"] * 4)
    (root / "answers.json").write_text('["yes", "no", "maybe"]')
    assert module(root).info.answers == ("yes", "no", "maybe")


def test_a_list_of_answers_must_match_the_files(root: Path) -> None:
    with pytest.raises(DataError, match="different answers cannot be joined"):
        module(root, datasets=[TINY, "tests.data.tiny.Other"])
    for listed, said in (
        (["yes", "maybe", "no"], "answer 1 is 'maybe' in the list and 'no'"),
        ({}, "is not a JSON list of answers"),
    ):
        (root / "answers.json").write_text(json.dumps(listed))
        with pytest.raises(DataError, match=rf"answers\.json.*{said}"):
            module(root)


def test_wrong_options(root: Path) -> None:
    with pytest.raises(DataError, match=r"Did you mean coco"):
        DataModule("cocoa")
    for option, number in (("batch_size", 0), ("max_text_len", 2)):
        with pytest.raises(DataError, match=rf"data\.{option} is {number}; it must be at least"):
            module(root, **{option: number})
    for names in ([], ["coco", "elip.data.datasets.karpathy.Coco"]):
        with pytest.raises(DataError, match="name one or several, each once"):
            module(root, datasets=names)
    with pytest.raises(DataError, match="no examples of kind 'statement'; it has caption"):
        module(root, SampleSpec("statement")).setup("fit")
    with pytest.raises(MissingFilesError, match=r"coco_caption_karpathy_train.arrow"):
        module(root, datasets="coco").setup("fit")
    with pytest.raises(DataError, match=r"no folder `tokenizer`.*elip\.data\.tokenize"):
        module(root / "elsewhere")


def test_fingerprints_of_each_stage(root: Path) -> None:
    found = {stage: module(root).fingerprints(stage) for stage in ("fit", "validate", "test")}
    assert set(found["fit"]) == {"data/train", "data/val", "tokenizer"}
    assert set(found["test"]) == {"data/one", "data/two", "tokenizer"}
    assert found["validate"]["data/val"] == found["fit"]["data/val"]
    assert set(module(root, SampleSpec("question")).fingerprints("fit")) == {
        "data/train", "tokenizer", "answers",
    }  # fmt: skip
    captions(root / "tiny_val.arrow", 20, 4)
    changed = module(root).fingerprints("fit")
    assert {name for name in changed if changed[name] != found["fit"][name]} == {"data/val"}


# --- splits and batches


def test_named_splits_and_limits(root: Path) -> None:
    data = module(root)
    assert data.split_names("validate") == ["val"]
    assert data.split_names("test") == data.split_names("predict") == ["one", "two"]
    assert [len(each) for each in data.examples("test").values()] == [9, 6]
    (shown,) = ([batch.keys for batch in each] for each in data.predict_dataloader()[1:])
    assert shown == [("image 30",) * 3 + ("image 31",), ("image 31",) * 2]
    joined = module(root, datasets=[TINY, SECOND])
    assert joined.split_names("validate") == ["tiny_val", "second_val"]
    assert len(joined.examples("train")["train"]) == 39
    with pytest.raises(DataError, match="second has no split to test on"):
        module(root, datasets=SECOND).split_names("test")
    limited = module(root, train_limit=10, eval_limit=4)
    assert len(limited.examples("train")["train"]) == 10
    assert len(limited.examples("val")["val"]) == 4


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("num_examples", [3, 24, 31])
def test_processes_share_out_the_examples(num_examples: int, world_size: int) -> None:
    def shares(train: bool) -> list[list[list[int]]]:
        samplers = [
            DistributedBatchSampler(num_examples, 4, train, 0, rank, world_size)
            for rank in range(world_size)
        ]
        assert [len(each) for each in samplers] == [len(list(each)) for each in samplers]
        return [[[i.example for i in batch] for batch in each] for each in samplers]

    evaluated = [example for rank in shares(train=False) for batch in rank for example in batch]
    assert evaluated == list(range(num_examples))
    trained = shares(train=True)
    size = min(4, num_examples // world_size)
    assert {len(batch) for rank in trained for batch in rank} == {size}
    assert len({len(rank) for rank in trained}) == 1
    seen = [example for rank in trained for batch in rank for example in batch]
    assert len(set(seen)) == len(seen) == num_examples - num_examples % (size * world_size)


def test_a_step_holds_the_same_examples_whatever_the_number_of_processes() -> None:
    single = list(DistributedBatchSampler(32, 8, train=True, seed=3))
    first, second = (DistributedBatchSampler(32, 4, True, 3, rank, 2) for rank in range(2))
    for batch, one, other in zip(single, first, second, strict=True):
        assert sorted(batch) == sorted(one + other)


def test_the_order_depends_on_seed_and_epoch() -> None:
    sampler = DistributedBatchSampler(20, 4, train=True, seed=1)
    whole = list(sampler)
    assert list(DistributedBatchSampler(20, 4, train=True, seed=2)) != whole
    sampler.start = 3
    assert (list(sampler), len(sampler)) == (whole[3:], 5)
    sampler.set_epoch(1)
    assert [i.example for i in next(iter(sampler))] != [i.example for i in whole[3]]
    evaluation = DistributedBatchSampler(3, 4, train=False)
    evaluation.set_epoch(5)
    assert list(evaluation) == [[SampleIndex(0, 0), SampleIndex(0, 1), SampleIndex(0, 2)]]
    with pytest.raises(DataError, match="1 examples for 2 processes"):
        DistributedBatchSampler(1, 64, train=True, world_size=2)


def content(batch: Batch) -> tuple[object, ...]:
    assert batch.masked is not None
    assert batch.negative_images is not None
    return (
        tuple(batch.example.tolist()),
        tuple(batch.masked.ids.flatten().tolist()),
        tuple(batch.negative_images[:, 0, 0, 0, 0].tolist()),
    )


def test_worker_processes_change_nothing(root: Path) -> None:
    alone, helped = module(root), module(root, num_workers=2, prefetch_factor=1)
    assert module(root).train_dataloader()._batches.num_workers == 0  # tiny images on a CPU
    loaders = [data.train_dataloader() for data in (alone, helped)]
    for epoch in (0, 1):
        for loader in loaders:
            loader.batch_sampler.set_epoch(epoch)
        one, other = (list(map(content, loader)) for loader in loaders)
        assert one == other
    one, other = (list(map(content, data.val_dataloader()[0])) for data in (alone, helped))
    assert one == other


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_images_are_counted_over_workers(root: Path, num_workers: int) -> None:
    images = [png(0), *[noise(0)[:100]] * 4, png(5), png(6)]
    columns = {"image": images, "caption": [["a"]] * 7, "image_id": ["i"] * 7}
    write(root / "tiny_val.arrow", columns)
    data = module(root, SampleSpec("caption"), skip_bad=True, num_workers=num_workers, batch_size=2)
    batches = list(data.val_dataloader()[0])
    assert [batch.example.tolist() for batch in batches] == [[0], [5], [6]]
    assert data.skipped == {"val/val": 4}


# --- resuming


class Interrupt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.global_step == self.step:
            raise InterruptedError


class Toy(pl.LightningModule):
    """Remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.task = SimpleNamespace(spec=SPEC)
        self.seen: list[tuple[object, ...]] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, *content(batch)))
        loss: torch.Tensor = self.layer(torch.ones(1)).sum()
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        assert len(batch)

    def predict_step(self, batch: Batch, _: int, dataloader_idx: int) -> list[int]:
        return batch.example.tolist()


def trainer(*callbacks: Callback) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, num_sanity_val_steps=0,
        callbacks=list(callbacks), enable_checkpointing=bool(callbacks),
    )  # fmt: skip


def fit(
    root: Path, *callbacks: Callback, last: Path | None = None, **options: Any
) -> list[tuple[object, ...]]:
    toy = Toy()
    try:  # 27 examples: 6 batches an epoch
        trainer(*callbacks).fit(toy, module(root, **options), ckpt_path=last)
    except InterruptedError:
        assert callbacks
    return toy.seen


def saver(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder, save_last=True, every_n_train_steps=1, save_top_k=0, save_on_exception=True
    )


@pytest.mark.parametrize(("num_workers", "step"), [(0, 1), (0, 6), (2, 8)])
def test_a_resumed_run_sees_the_same_examples(
    root: Path, tmp_path: Path, num_workers: int, step: int
) -> None:
    whole = fit(root)
    assert len(whole) == 18
    before = fit(root, saver(tmp_path / "saved"), Interrupt(step), num_workers=num_workers)
    last = tmp_path / "saved" / "last.ckpt"
    after = fit(root, saver(tmp_path / "saved"), last=last, num_workers=num_workers)
    assert before + after == whole


def test_resuming_with_another_batch_size_warns(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(root, saver(tmp_path / "saved"), Interrupt(2))
    with caplog.at_level(logging.WARNING):
        last, again = tmp_path / "saved" / "last.ckpt", saver(tmp_path / "saved")
        fit(root, again, last=last, batch_size=3)
    assert "had other batch_size" in caplog.text


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_a_fit_without_a_split_for_selection(root: Path) -> None:
    captions(root / "vg.arrow", 0, 4)
    with pytest.raises(DataError, match="no split to validate on"):
        module(root, datasets="vg").val_dataloader()
    assert len(fit(root, datasets="vg")) == 9
