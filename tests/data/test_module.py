from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from elip.data.batch import Batch, SampleSpec
from elip.data.datamodule import DataModule
from elip.data.datasets.base import DataError, MissingFilesError
from tests.data.tiny import Tiny, captions, noise, png, write, write_tiny

SPEC = SampleSpec("caption", masked=True, negative_images=1)
TINY, SECOND = "tests.data.tiny.Tiny", "tests.data.tiny.Second"

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*GPU available but not used"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
]


def module(root: Path, spec: SampleSpec | None = SPEC, **options: object) -> DataModule:
    settings = {"datasets": TINY, "batch_size": 4, "image_size": 8, "max_text_len": 8} | options
    data = DataModule(root=str(root), **settings)  # type: ignore[arg-type]
    data.spec = spec
    return data


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "data")


def test_what_a_model_must_know_before_it_is_built(root: Path) -> None:
    data = module(root, spec=None)
    assert data.vocab_size == len(data.tokenizer)
    assert data.num_answers == 7
    assert data.answers == ("yes", "no", "maybe", *["unknown"] * 4)
    (root / "answers.json").write_text(json.dumps(["yes", "no", "maybe"]))
    with_file = module(root, spec=None)
    assert with_file.num_answers == 3
    assert with_file.answers == ("yes", "no", "maybe")
    with pytest.raises(DataError, match="does not know its task"):
        data.train_dataloader()


def test_what_each_stage_reads_has_digests_by_phase(root: Path) -> None:
    (root / "answers.json").write_text('["yes", "no", "maybe"]')
    spec = SampleSpec("caption")
    fit, validate, test, predict = (
        module(root).digests(stage, spec) for stage in ("fit", "validate", "test", "predict")
    )
    assert set(fit) == {"tokenizer", "train_data", "val_data"}
    assert validate == {name: fit[name] for name in ("tokenizer", "val_data")}
    assert set(test) == {"tokenizer", "test_data"}
    assert test == predict
    questions = module(root).digests("fit", SampleSpec("question"))
    assert set(questions) == {"tokenizer", "train_data", "answers"}  # none to validate on
    captions(root / "tiny_val.arrow", 21, 3)
    changed = module(root).digests("fit", spec)
    assert {name for name in fit if fit[name] != changed[name]} == {"val_data"}


def test_named_splits(root: Path) -> None:
    data = module(root)
    assert data.split_names("validate") == ["val"]
    assert data.split_names("test") == data.split_names("predict") == ["one", "two"]
    assert [len(loader.dataset) for loader in data.test_dataloader()] == [9, 6]
    joined = module(root, datasets=[TINY, SECOND])
    assert joined.split_names("validate") == ["tiny_val", "second_val"]
    assert len(joined.train_examples()) == 39
    with pytest.raises(DataError, match="no split to test on"):
        module(root, datasets=SECOND).split_names("test")


def test_limits(root: Path) -> None:
    data = module(root, train_limit=10, eval_limit=4)
    assert len(data.train_examples()) == 10
    assert len(data.eval_examples("validate", "val")) == 4


def test_mistakes_are_found_before_any_work(root: Path) -> None:
    with pytest.raises(DataError, match=r"Did you mean coco"):
        DataModule("cocoa")
    with pytest.raises(DataError, match="choose default or official"):
        module(root, splits="offical")
    with pytest.raises(DataError, match="Did you mean imagenet"):
        module(root, train_transform="imagnet")
    with pytest.raises(DataError, match="No dataset is named"):
        module(root, datasets=[])
    with pytest.raises(DataError, match="no examples of kind 'statement'; it has caption"):
        module(root, SampleSpec("statement")).setup("fit")
    with pytest.raises(MissingFilesError, match=r"coco_caption_karpathy_train.arrow"):
        module(root, datasets="coco").setup("fit")
    with pytest.raises(DataError, match="no folder `tokenizer`"):
        _ = module(root / "elsewhere").vocab_size


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [
        ("batch_size", 0, 1), ("batch_size", -1, 1), ("eval_batch_size", 0, 1),
        ("image_size", 0, 1), ("image_size", -8, 1), ("num_workers", -1, 0), ("seed", -1, 0),
        ("train_limit", 0, 1), ("eval_limit", -1, 1),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_found_before_any_work(
    root: Path, name: str, value: int, least: int
) -> None:
    with pytest.raises(DataError, match=rf"data\.{name} is {value}; it must be at least {least}"):
        module(root, **{name: value})


def test_a_home_folder_of_nobody_is_a_folder_that_is_missing() -> None:
    with pytest.raises(MissingFilesError, match="~nobody-of-that-name"):
        module(Path("~nobody-of-that-name")).setup("fit")


def test_evaluation_images_are_not_changed_at_random(root: Path) -> None:
    with pytest.raises(DataError, match="at random; choose imagenet"):
        module(root, eval_transform="imagenet_randaug")


class AnswersElsewhere(Tiny):
    name = "elsewhere"
    views = {"question": dataclasses.replace(Tiny.views["question"], answer_file="others.json")}


class Unstated(Tiny):
    name = "unstated"
    views = {"pair": dataclasses.replace(Tiny.views["pair"], num_answers=0)}


def test_a_dataset_that_is_named_twice_by_other_names_is_found(root: Path) -> None:
    with pytest.raises(DataError, match="named twice"):
        module(root, datasets=["coco", "elip.data.datasets.coco.Coco"])


def test_as_many_but_other_answers_cannot_be_joined(root: Path) -> None:
    (root / "answers.json").write_text('["yes", "no"]')
    (root / "others.json").write_text('["no", "yes"]')
    joined = module(root, datasets=[TINY, f"{__name__}.AnswersElsewhere"])
    with pytest.raises(DataError, match="different answers cannot be joined"):
        _ = joined.num_answers
    (root / "others.json").write_text('["yes", "no"]')
    assert module(root, datasets=[TINY, f"{__name__}.AnswersElsewhere"]).num_answers == 2


def test_a_label_that_its_kind_does_not_have_is_found(root: Path) -> None:
    columns = {"image_0": [png(1)], "image_1": [png(2)], "questions": [["a"]], "identifier": ["i"]}
    write(root / "tiny_pairs.arrow", columns | {"answers": [[2]]})
    data = module(root, SampleSpec("pair"), datasets=f"{__name__}.Unstated")
    with pytest.raises(DataError, match=r"label 2; labels go from 0 to 1"):
        data.first_batch()


def all_of(loader: object) -> list[tuple[object, ...]]:
    return [content(batch) for batch in loader]  # type: ignore[attr-defined]


def content(batch: Batch) -> tuple[object, ...]:
    assert batch.masked is not None
    assert batch.negative_images is not None
    return (
        tuple(batch.example.tolist()),
        tuple(batch.masked.ids.flatten().tolist()),
        tuple(batch.negative_images[:, 0, 0, 0, 0].tolist()),
    )


def test_worker_processes_change_nothing(root: Path) -> None:
    alone, helped = module(root), module(root, num_workers=2)
    loaders = [data.train_dataloader() for data in (alone, helped)]
    for epoch in (0, 1):
        for loader in loaders:
            loader.batches.set_epoch(epoch)
        assert all_of(loaders[0]) == all_of(loaders[1])
    assert all_of(alone.val_dataloader()[0]) == all_of(helped.val_dataloader()[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipped_images_are_counted_over_workers(tmp_path: Path, num_workers: int) -> None:
    root = write_tiny(tmp_path)
    images = [png(0), *[noise(0)[:100]] * 4, png(5), png(6)]
    columns = {"image": images, "caption": [["a"]] * 7, "image_id": ["i"] * 7}
    write(root / "tiny_val.arrow", columns)
    data = module(root, SampleSpec("caption"), skip_bad=True, num_workers=num_workers, batch_size=2)
    batches = list(data.val_dataloader()[0])
    assert [batch.example.tolist() for batch in batches] == [[0], [5], [6]]
    assert data.num_skipped == {"val/val": 4}


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
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch: Batch, _: int) -> None:
        assert len(batch)


def saver(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(
        folder, save_last=True, every_n_train_steps=1, save_top_k=0, save_on_exception=True
    )


def fit(
    root: Path,
    num_workers: int = 0,
    ckpt_path: Path | None = None,
    callbacks: list[Callback] | None = None,
    **options: object,
) -> list[tuple[object, ...]]:
    data = module(root, spec=None, num_workers=num_workers, **options)  # 27 examples: 6 batches
    toy = Toy()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=callbacks or [],
        enable_checkpointing=bool(callbacks),
    )
    try:
        trainer.fit(toy, data, ckpt_path=ckpt_path)
    except InterruptedError:
        assert callbacks
    return toy.seen


@pytest.mark.parametrize(
    ("num_workers", "step"), [(0, 1), (0, 6), (0, 8), (0, 12), (2, 8), (2, 12)]
)
def test_a_resumed_run_sees_what_an_undisturbed_one_sees(
    root: Path, tmp_path: Path, num_workers: int, step: int
) -> None:
    whole = fit(root)
    assert len(whole) == 18
    before = fit(root, num_workers, callbacks=[saver(tmp_path / "saved"), Interrupt(step)])
    last = tmp_path / "saved" / "last.ckpt"
    after = fit(root, num_workers, last, callbacks=[saver(tmp_path / "saved")])
    assert before + after == whole


def test_resuming_from_the_end_of_an_epoch(root: Path, tmp_path: Path) -> None:
    def saving(folder: Path) -> Callback:
        return ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)

    whole = fit(root, num_workers=2, callbacks=[saving(tmp_path / "saved")])
    first = tmp_path / "saved" / "epoch=0.ckpt"
    after = fit(root, num_workers=2, ckpt_path=first, callbacks=[saving(tmp_path / "saved")])
    assert after == whole[6:]


def test_resuming_with_another_batch_size_is_said(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(root, callbacks=[saver(tmp_path / "saved"), Interrupt(2)])
    with caplog.at_level(logging.WARNING):
        last, again = tmp_path / "saved" / "last.ckpt", saver(tmp_path / "saved")
        fit(root, ckpt_path=last, callbacks=[again], batch_size=3)
    assert "had other batch_size" in caplog.text


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
def test_a_fit_without_a_split_for_selection(root: Path) -> None:
    captions(root / "vg.arrow", 0, 4)
    with pytest.raises(DataError, match="no split to validate on"):
        module(root, datasets="vg").val_dataloader()
    assert len(fit(root, datasets="vg")) == 9
