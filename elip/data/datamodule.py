"""The data of a run: from names of datasets to loaders of batches, for Lightning."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from elip.data.arrow import ArrowTable
from elip.data.batch import Batch, DataInfo, SampleSpec
from elip.data.collate import Collator
from elip.data.dataset import DatasetConfig, Examples
from elip.data.datasets import find_dataset
from elip.data.datasets.base import (
    LAYOUT,
    DataError,
    DatasetSpec,
    MissingFilesError,
    Phase,
    View,
)  # fmt: skip
from elip.data.sampling import DistributedBatchSampler
from elip.data.tokenize import TextTokenizer, load_tokenizer
from elip.data.transforms import TRANSFORMS
from elip.identity import arrow_fingerprint

log = logging.getLogger(__name__)

_PHASES: dict[str, Phase] = {"fit": "val", "validate": "val", "test": "test", "predict": "test"}
_NUM_CLASSES = {"pair": 2, "entailment": 3, "statement": 2}
_TINY = 128  # pixels a side; such images decode faster than a worker process hands them over


class DataModule(LightningDataModule):
    """Datasets in ViLT's and METER's Arrow files.

    What an example is, and what goes with it, the task says (`spec`). Building the module draws the
    built-in shapes if they are missing; of other data it reads the tokenizer and the answers.

    Args:
        datasets: Name of a dataset, or several that are joined for training (coco, vg, sbu, gcc)
            and evaluated one by one; or import paths of `DatasetSpec` classes.
        root: Folder of the Arrow files, directly in it or in a subfolder named as the dataset.
        batch_size: Examples of a training batch of one process.
        eval_batch_size: Examples of an evaluation batch; None for ``batch_size``.
        image_size: S, pixels of each side of an image.
        max_text_len: L, tokens of a text; longer ones are cut.
        tokenizer: A folder or hub name; None for the folder `tokenizer` beside the Arrow files.
        train_transform: How training images are prepared: resized, cropped and (randaug) augmented.
            `model.meter.pixels` normalises.
        eval_transform: How evaluation images are prepared.
        num_workers: Worker processes; 0 loads in the main process. None takes the cores a device
            (at most 16), and 0 for images of up to 128 pixels on a CPU.
        prefetch_factor: Batches that each worker loads ahead; None for PyTorch's default, 2.
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

    Attributes:
        info: What the model must know of the data: vocabulary and answers.
        spec: What the task asks of the data; `setup` takes it from the trainer's task.
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
        train_transform: Literal["clip", "clip_randaug", "imagenet", "imagenet_randaug"] = "clip",
        eval_transform: Literal["clip", "imagenet"] = "clip",
        num_workers: int | None = None,
        prefetch_factor: int | None = None,
        seed: int = 0,
        splits: Literal["default", "official"] = "default",
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
            ("image_size", image_size, 1), ("num_workers", num_workers, 0),
            ("prefetch_factor", prefetch_factor, 1), ("seed", seed, 0),
        ):  # fmt: skip
            if number is not None and number < least:
                raise DataError(f"data.{name} is {number}; it must be at least {least}.")
        names = [datasets] if isinstance(datasets, str) else datasets
        self.datasets = [find_dataset(name) for name in names]
        if not names or len({dataset.name for dataset in self.datasets}) < len(names):
            raise DataError(f"data.datasets is {names}; name one or several, each once.")
        self.root = Path(os.path.expanduser(root))
        self.splits = splits
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.eval_config = DatasetConfig(
            transform=TRANSFORMS[eval_transform],
            image_size=image_size,
            train=False,
            seed=seed,
            limit=eval_limit,
            skip_bad=skip_bad,
            exclude_own=exclude_own,
        )
        self.train_config = replace(
            self.eval_config,
            transform=TRANSFORMS[train_transform],
            train=True,
            limit=train_limit,
            fast=fast_decode,
        )
        self.spec: SampleSpec | None = None
        self._tables: dict[tuple[str, ...], ArrowTable] = {}
        self._examples: dict[str, Examples] = {}
        self.prepare()
        self.tokenizer = load_tokenizer(tokenizer or self._own_tokenizer())
        self.encoder = TextTokenizer(self.tokenizer, max_text_len)
        self.info = self._info()

    def prepare(self) -> None:
        """Draw the built-in data if it is missing; of several processes one draws."""
        for dataset in self.datasets:
            dataset.prepare(self.root)

    def _own_tokenizer(self) -> Path:
        for dataset in self.datasets:
            folder = dataset.beside(self.root, "tokenizer")
            if folder is not None:
                return folder
        raise MissingFilesError(
            f"There is no folder `tokenizer` beside the Arrow files in {self.root}. Make one: "
            f"python -m elip.data.tokenize --data {self.root}; or name one: --data.tokenizer "
            "bert-base-uncased, roberta-base, or a local folder."
        )

    def _info(self) -> DataInfo:
        """Read the answers of question data, and compare the list with the words in the files."""
        found: set[tuple[int, tuple[str, ...]]] = set()
        for dataset in self.datasets:
            view = dataset.views.get("question")
            if view is None:
                continue
            path = view.answer_file and dataset.beside(self.root, view.answer_file)
            listed = _read_answers(path) if path else []
            size, words = len(listed) or view.num_answers, self._answer_words(dataset, view)
            for number, word in sorted(words.items()):
                if listed and [word] != listed[number : number + 1]:
                    other = listed[number] if number < len(listed) else None
                    raise DataError(
                        f"{path} does not belong to the Arrow files beside it: answer {number} is "
                        f"{other!r} in the list and {word!r} in the files. Convert them together."
                    )
            unlisted = [words.get(number, "unknown") for number in range(size)] if words else []
            found.add((size, tuple(listed or unlisted)))
        if len(found) > 1:
            raise DataError("Datasets with different answers cannot be joined.")
        return DataInfo(self.encoder.vocab_size, *next(iter(found), ()))

    def _answer_words(self, dataset: DatasetSpec, view: View) -> dict[int, str]:
        """Return the words that stand beside the answer numbers in the files that are there."""
        words: dict[int, str] = {}
        for phase in view.chosen(self.splits).values():
            for patterns in phase.values():
                try:
                    words |= self._table(dataset, "question", patterns).answer_words()
                except MissingFilesError:
                    continue
        return words

    def setup(self, stage: str | None = None) -> None:
        """Ask the task what it reads, and open the files of the stage."""
        if self.trainer is not None:
            task: Any = self.trainer.lightning_module.task
            self.spec = task.spec
        if stage == "fit":
            self.train_examples()
        for name in self.split_names(stage or "validate"):
            self.eval_examples(stage or "validate", name)

    def asked(self, kind: str) -> frozenset[int]:
        """Return the keys of all examples that an evaluation server asks for, if they are known."""
        known = (dataset.asked(self.root, kind) for dataset in self.datasets)
        return frozenset().union(*known)

    def split_names(self, stage: str) -> list[str]:
        """Return the names of the splits that a stage evaluates, in the order of the loaders.

        Args:
            stage: "fit" and "validate" mean the splits for model selection, "test" and "predict"
                those for scores.

        Raises:
            DataError: If there is none; only a fit can do without.
        """
        names = list(self._splits(_PHASES[stage]))
        if not names and stage != "fit":
            raise DataError(f"{', '.join(d.name for d in self.datasets)}: no split to {stage} on.")
        return names

    def fingerprints(self, stage: str) -> dict[str, str]:
        """Return the fingerprints of what a stage reads.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Returns:
            ``data/<split>`` for each split, ``tokenizer``, and for questions ``answers``.
        """
        phases: list[Phase] = ["train", "val"] if stage == "fit" else [_PHASES[stage]]
        found = {
            f"data/{name}": arrow_fingerprint(table.paths)
            for phase in phases
            for name, table in self._phase_tables(phase).items()
        }
        found["tokenizer"] = _digest(self.tokenizer.backend_tokenizer.to_str())
        if self._needed_spec().kind == "question":
            found["answers"] = _digest(json.dumps(self.info.answers))
        return found

    def train_examples(self) -> Examples:
        """Return the training examples of all datasets."""
        if "train" not in self._examples:
            tables = self._phase_tables("train")
            if not tables:
                names = ", ".join(dataset.name for dataset in self.datasets)
                raise DataError(f"{names}: there is no training split.")
            spec = self._needed_spec()
            self._examples["train"] = Examples(list(tables.values()), spec, self.train_config)
        return self._examples["train"]

    def eval_examples(self, stage: str, name: str) -> Examples:
        """Return the examples of one of `split_names(stage)`."""
        key = f"{_PHASES[stage]}/{name}"
        if key not in self._examples:
            table = self._phase_tables(_PHASES[stage])[name]
            self._examples[key] = Examples([table], self._needed_spec(), self.eval_config)
        return self._examples[key]

    def first_batch(self) -> Batch:
        """Return the training examples that stand first in the data, a batch of them."""
        examples = self.train_examples()
        batch = self._collator()([examples[i] for i in range(min(self.batch_size, len(examples)))])
        assert batch is not None  # in training a bad example is replaced
        return batch

    @property
    def skipped(self) -> dict[str, int]:
        """How often a bad image was met, by split; splits without are left out."""
        return {name: each.num_skipped for name, each in self._examples.items() if each.num_skipped}

    def train_dataloader(self) -> Loader:
        """Return the loader of the training examples of all datasets."""
        loader = self._loader(self.train_examples(), self.batch_size, train=True)
        if loader.batch_sampler.num_dropped:
            log.info("%d examples are left out of each epoch.", loader.batch_sampler.num_dropped)
        return loader

    def val_dataloader(self) -> list[Loader]:
        """Return one loader for each of `split_names("validate")`; none in a fit without such."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return self._eval_loaders("fit" if fitting else "validate")

    def test_dataloader(self) -> list[Loader]:
        """Return one loader for each of `split_names("test")`."""
        return self._eval_loaders("test")

    def predict_dataloader(self) -> list[Loader]:
        """Return one loader for each of `split_names("predict")`, the test splits."""
        return self._eval_loaders("predict")

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch, without waiting where it is pinned."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def _splits(self, phase: Phase) -> dict[str, tuple[DatasetSpec, tuple[str, ...]]]:
        """Return dataset and file patterns of each split by its name.

        The name has the dataset's before it where several are joined.
        """
        kind = self._needed_spec().kind
        for dataset in self.datasets:
            if kind not in dataset.views:
                kinds = ", ".join(dataset.views)
                raise DataError(f"{dataset.name} has no examples of kind {kind!r}; it has {kinds}.")
        return {
            name if len(self.datasets) == 1 else f"{dataset.name}_{name}": (dataset, patterns)
            for dataset in self.datasets
            for name, patterns in dataset.views[kind].chosen(self.splits).get(phase, {}).items()
        }

    def _phase_tables(self, phase: Phase) -> dict[str, ArrowTable]:
        kind = self._needed_spec().kind
        return {name: self._table(d, kind, p) for name, (d, p) in self._splits(phase).items()}

    def _table(self, dataset: DatasetSpec, kind: Any, patterns: tuple[str, ...]) -> ArrowTable:
        key = (dataset.name, kind, *patterns)
        if key not in self._tables:
            view = dataset.views[kind]
            self._tables[key] = ArrowTable(
                dataset.paths(self.root, patterns),
                view.columns or LAYOUT[kind],
                view.distinct,
                view.num_answers or _NUM_CLASSES.get(kind),
            )
        return self._tables[key]

    def _eval_loaders(self, stage: str) -> list[Loader]:
        every = [self.eval_examples(stage, name) for name in self.split_names(stage)]
        return [self._loader(each, self.eval_batch_size, train=False) for each in every]

    def _loader(self, examples: Examples, batch_size: int, train: bool) -> Loader:
        rank = self.trainer.global_rank if self.trainer is not None else 0
        world_size = self.trainer.world_size if self.trainer is not None else 1
        seed, size = self.eval_config.seed, len(examples)
        sampler = DistributedBatchSampler(size, batch_size, train, seed, rank, world_size)
        num_done = self._num_done if train else _none_done
        workers = self._resolved_workers()
        return Loader(examples, sampler, self._collator(), workers, self.prefetch_factor, num_done)

    def _collator(self) -> Collator:
        seed, masked = self.eval_config.seed, self._needed_spec().masked
        return Collator(self.encoder, masked, seed, self.info.num_answers)

    def _resolved_workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        on_cpu = not torch.cuda.is_available()
        if on_cpu and self.eval_config.image_size <= _TINY:
            return 0
        affinity = getattr(os, "sched_getaffinity", None)  # Linux: the cores of this process
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        devices = self.trainer.num_devices if self.trainer is not None else 1
        return min(16, cores // devices)

    def _needed_spec(self) -> SampleSpec:
        if self.spec is None:
            raise DataError("The data does not know its task yet: call setup(), or set `spec`.")
        return self.spec

    def _num_done(self) -> int:
        """Return how many batches of the current epoch Lightning has counted as done."""
        if self.trainer is None:
            return 0
        return int(self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)


class Loader:
    """Batches of one split, without those of which `skip_bad` left nothing.

    It holds a `DataLoader` and is none itself: Lightning (2.6) gives those a sampler of its own for
    prediction. On resuming within an epoch Lightning counts the batches that are done and expects
    the loader to pass over them.

    Args:
        examples: The split.
        sampler: Which examples make up which batch.
        collate: What joins examples.
        num_workers: Number of worker processes; 0 loads in this one.
        prefetch_factor: Batches that each worker loads ahead.
        num_done: Returns how many batches of the current epoch are done already.
    """

    def __init__(
        self,
        examples: Examples,
        sampler: DistributedBatchSampler,
        collate: Collator,
        num_workers: int,
        prefetch_factor: int | None,
        num_done: Callable[[], int],
    ) -> None:
        self.examples = examples
        self.batch_sampler = sampler  # under this name, Lightning tells it the epoch
        self._num_done = num_done
        self._batches: DataLoader[Any] = DataLoader(
            examples,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            prefetch_factor=prefetch_factor if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_quiet_tokenizers,
        )

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch, empty ones included."""
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the current epoch that are not done yet.

        Workers start at the first batch: Lightning asks for the iterator before it sets the epoch.
        """
        self.batch_sampler.start = self._num_done()
        yield from (batch for batch in self._batches if batch is not None)

    def state_dict(self) -> dict[str, int]:
        """Return what the order of the batches depends on; Lightning saves it."""
        kept = ("num_examples", "batch_size", "seed", "world_size")
        return {name: getattr(self.batch_sampler, name) for name in kept}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Compare the state of an interrupted epoch with this one; warn if they differ."""
        changed = [name for name, value in self.state_dict().items() if state.get(name) != value]
        if changed:
            log.warning(
                "The interrupted epoch had other %s: the rest of it repeats or leaves out "
                "examples. Epochs after it are not affected.",
                ", ".join(changed),
            )


def _none_done() -> int:
    return 0


def _quiet_tokenizers(_: int) -> None:
    # A forked process must not use the threads of its parent's tokenizer, and says so otherwise.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _read_answers(path: Path) -> list[str]:
    try:
        answers = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}.") from error
    if not isinstance(answers, list) or not answers or not isinstance(answers[0], str):
        raise DataError(f"{path} is no list of answers; it is {str(answers)[:80]}.")
    return answers


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
