"""The data of a run: from names of datasets to loaders of batches, for Lightning."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from transformers import PreTrainedTokenizerFast

from elip.data.batch import Batch, SampleSpec
from elip.data.catalog import Catalog
from elip.data.collate import Collator
from elip.data.dataset import Examples, Reading
from elip.data.datasets.base import DataError, Phase
from elip.data.loader import Loader, PlainLoader, TrainLoader
from elip.data.sampling import DistributedBatchSampler
from elip.data.tokenize import TextTokenizer, load_tokenizer
from elip.data.transforms import find_transform

log = logging.getLogger(__name__)

_PHASES: dict[str, Phase] = {"fit": "val", "validate": "val", "test": "test", "predict": "test"}


class DataModule(LightningDataModule):
    """Datasets in ViLT's and METER's Arrow files.

    What an example is, and what goes with it, is asked of the task (`spec`).

    Args:
        datasets: Name of a dataset, or several that are joined for training (coco, vg, sbu, gcc)
            and evaluated one by one; or import paths of `DatasetSpec` classes.
        root: Folder of the Arrow files, directly in it or in a subfolder named as the dataset.
        batch_size: Examples of a training batch of one process.
        eval_batch_size: Examples of an evaluation batch; None for ``batch_size``.
        image_size: S, pixels of each side of an image.
        max_text_len: L, tokens of a text; longer ones are cut.
        tokenizer: A folder or hub name; None for the folder `tokenizer` beside the Arrow files.
        train_transform: How training images are prepared: clip, clip_randaug, imagenet or
            imagenet_randaug. They resize, crop and augment; `model.meter.pixels` normalises.
        eval_transform: How evaluation images are prepared: clip or imagenet.
        num_workers: Worker processes; 0 loads in the main process, fastest for small images.
        seed: Decides every shuffle, draw, mask and augmentation.
        splits: "default", where model selection sees nothing that is scored in the end, or
            "official", the splits of the reference's readers.
        train_limit: The number of training examples of each dataset that are used; None for all.
        eval_limit: The number of examples of each evaluated split that are used; None for all.
        fast_decode: Resize training images by torch, and decode large JPEGs at a reduced scale:
            about twice as fast, pixels differ by a few of 255 levels. Evaluation stays exact.
        skip_bad: Leave out, and count, evaluation examples whose image is not readable, instead
            of stopping there. (In training another example takes their place.)
        exclude_own: Draw negative images and texts from other images only; the reference's draws
            (False) hit the true one now and then.
    """

    def __init__(
        self,
        datasets: str | list[str] = "shapes",
        root: str = "data",
        batch_size: int = 64,
        eval_batch_size: int | None = None,
        image_size: int = 288,
        max_text_len: int = 50,
        tokenizer: str | None = None,
        train_transform: str = "clip",
        eval_transform: str = "clip",
        num_workers: int = 0,
        seed: int = 0,
        splits: str = "default",
        train_limit: int | None = None,
        eval_limit: int | None = None,
        fast_decode: bool = False,
        skip_bad: bool = False,
        exclude_own: bool = True,
    ) -> None:
        super().__init__()
        for name, number, least in (
            ("train_limit", train_limit, 1), ("eval_limit", eval_limit, 1),
            ("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1),
            ("image_size", image_size, 1), ("num_workers", num_workers, 0), ("seed", seed, 0),
        ):  # fmt: skip
            if number is not None and number < least:
                raise DataError(f"data.{name} is {number}; it must be at least {least}.")
        if find_transform(eval_transform).augments:
            raise DataError(
                f"data.eval_transform is {eval_transform}, which changes images at random; choose "
                f"{eval_transform.removesuffix('_randaug')}."
            )
        names = [datasets] if isinstance(datasets, str) else datasets
        self.catalog = Catalog(names, Path(os.path.expanduser(root)), splits)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.image_size = image_size
        self.max_text_len = max_text_len
        self.num_workers = num_workers
        self.seed = seed
        self.spec: SampleSpec | None = None
        self._tokenizer_name = tokenizer
        self._examples: dict[tuple[Phase, str], Examples] = {}
        self.reading = Reading(
            transform=find_transform(eval_transform),
            image_size=image_size,
            train=False,
            seed=seed,
            limit=eval_limit,
            skip_bad=skip_bad,
            exclude_own=exclude_own,
        )
        self.train_reading = replace(
            self.reading,
            transform=find_transform(train_transform),
            train=True,
            limit=train_limit,
            fast=fast_decode,
        )

    @cached_property
    def encoder(self) -> TextTokenizer:
        """The tokenizer at its fixed length."""
        return TextTokenizer(self.tokenizer, self.max_text_len)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer as transformers has it."""
        self.prepare_data()
        return load_tokenizer(self._tokenizer_name or self.catalog.tokenizer())

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.encoder.vocab_size

    @cached_property
    def num_answers(self) -> int:
        """A, the number of answers of the question-answering data; 0 without such data."""
        self.prepare_data()
        return self.catalog.num_answers()

    @cached_property
    def answers(self) -> tuple[str, ...]:
        """The A answers by number."""
        return self.catalog.answers()

    @property
    def num_skipped(self) -> dict[str, int]:
        """How often a bad image was met, by split; splits without are left out."""
        counts = {
            f"{phase}/{name}" if name else phase: examples.num_skipped
            for (phase, name), examples in self._examples.items()
        }
        return {name: count for name, count in counts.items() if count}

    def prepare_data(self) -> None:
        """Make the files of built-in datasets, once per machine."""
        self.catalog.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Ask the task what it needs, and open the files of the stage."""
        if self.trainer is not None:
            task: Any = self.trainer.lightning_module.task
            self.spec = task.spec
        if stage == "fit":
            self.train_examples()
        for name in self.split_names(stage or "validate"):
            self.eval_examples(stage or "validate", name)

    def digests(self, stage: str, spec: SampleSpec) -> dict[str, str]:
        """Return digests of what a stage reads.

        They are ``train_data``, ``val_data`` and ``test_data``, each where the stage reads it, the
        ``tokenizer``, and of questions the ``answers`` if they are listed.

        Args:
            stage: "fit", "validate", "test" or "predict".
            spec: What the task asks of the data.
        """
        self.prepare_data()
        phases: list[Phase] = ["train", "val"] if stage == "fit" else [_PHASES[stage]]
        digests = {"tokenizer": _digest(self.tokenizer.backend_tokenizer.to_str())}
        for phase in phases:
            tables = self.catalog.tables(spec.kind, phase).items()
            if tables:
                data = {name: table.digest() for name, table in tables}
                digests[f"{phase}_data"] = _digest(json.dumps(data))
        answers = self.catalog.listed_answers() if spec.kind == "question" else ()
        return {**digests, **({"answers": _digest(json.dumps(answers))} if answers else {})}

    def train_dataloader(self) -> TrainLoader:
        """Return the loader of the training examples of all datasets."""
        examples = self.train_examples()
        batches = self._batches(examples, self.batch_size, train=True)
        if batches.num_dropped:
            log.info("%d examples are left out of each epoch.", batches.num_dropped)
        return TrainLoader(examples, batches, self._collator(), self.num_workers, self._num_done)

    def val_dataloader(self) -> list[Loader]:
        """Return one loader for each of `split_names("validate")`; none in a fit without such."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return self._eval_loaders("fit" if fitting else "validate")

    def test_dataloader(self) -> list[Loader]:
        """Return one loader for each of `split_names("test")`."""
        return self._eval_loaders("test")

    def predict_dataloader(self) -> list[PlainLoader]:
        """Return one loader for each of `split_names("predict")`, the test splits."""
        return [PlainLoader(loader) for loader in self._eval_loaders("predict")]

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch, without waiting where it is pinned."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def split_names(self, stage: str) -> list[str]:
        """Return the names of the splits that a stage evaluates, in the order of the loaders.

        Args:
            stage: "fit" and "validate" mean the splits for model selection, "test" and "predict"
                those for scores.

        Raises:
            DataError: If there is none; only a fit can do without.
        """
        names = list(self.catalog.tables(self._spec().kind, _PHASES[stage]))
        if not names and stage != "fit":
            raise DataError(f"{self.catalog} has no split to {stage} on.")
        return names

    def train_examples(self) -> Examples:
        """Return the training examples of all datasets."""
        if ("train", "") not in self._examples:
            spec = self._spec()
            tables = list(self.catalog.tables(spec.kind, "train").values())
            if not tables:
                raise DataError(f"{self.catalog} has no training split.")
            self._examples["train", ""] = Examples(tables, spec, self.train_reading)
        return self._examples["train", ""]

    def eval_examples(self, stage: str, name: str) -> Examples:
        """Return the examples of one of `split_names(stage)`."""
        phase = _PHASES[stage]
        if (phase, name) not in self._examples:
            spec = self._spec()
            table = self.catalog.tables(spec.kind, phase)[name]
            self._examples[phase, name] = Examples([table], spec, self.reading)
        return self._examples[phase, name]

    def first_batch(self) -> Batch:
        """Return the training examples that stand first in the data, a batch of them."""
        examples = self.train_examples()
        batch = self._collator()([examples[i] for i in range(min(self.batch_size, len(examples)))])
        assert batch is not None  # in training a bad example is replaced
        return batch

    def _eval_loaders(self, stage: str) -> list[Loader]:
        loaders = []
        for name in self.split_names(stage):
            examples = self.eval_examples(stage, name)
            batches = self._batches(examples, self.eval_batch_size, train=False)
            loaders.append(Loader(examples, batches, self._collator(), self.num_workers))
        return loaders

    def _batches(self, examples: Examples, batch_size: int, train: bool) -> DistributedBatchSampler:
        rank = self.trainer.global_rank if self.trainer is not None else 0
        world_size = self.trainer.world_size if self.trainer is not None else 1
        if len(examples) < world_size:
            raise DataError(
                f"{len(examples)} examples cannot be shared out to {world_size} processes: each "
                "needs one at least. Use fewer devices, or more examples."
            )
        return DistributedBatchSampler(
            len(examples), batch_size, train, self.seed, rank, world_size
        )

    def _collator(self) -> Collator:
        return Collator(self.encoder, self._spec().masked, self.seed, self.num_answers)

    def _spec(self) -> SampleSpec:
        if self.spec is None:
            raise DataError("The data does not know its task yet: call setup(), or set `spec`.")
        return self.spec

    def _num_done(self) -> int:
        """Return how many batches of the current epoch Lightning has counted as done."""
        if self.trainer is None:
            return 0
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
