"""The data of a run, for Lightning: from dataset names to loaders of batches."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
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
from elip.data.datasets.base import LAYOUT, DataError, DatasetSpec, MissingFilesError, Phase
from elip.data.sampling import DistributedBatchSampler
from elip.data.tokenize import TextTokenizer, load_tokenizer
from elip.data.transforms import TRANSFORMS
from elip.identity import arrow_fingerprint

log = logging.getLogger(__name__)

_PHASES: dict[str, Phase] = {"fit": "val", "validate": "val", "test": "test", "predict": "test"}
_NUM_CLASSES = {"pair": 2, "entailment": 3, "statement": 2}
_TINY = 128  # pixels a side; such images decode faster than a worker process can deliver them


class DataModule(LightningDataModule):
    """Datasets in the Arrow files of ViLT and METER.

    The task decides what an example contains: `setup` takes its `spec`. Building the module draws
    the built-in shapes if they are missing; of other data it reads only the tokenizer and the
    answers, for `info`.

    Args:
        datasets: Name of a dataset, or several to join for training and evaluate one by one; or
            import paths of `DatasetSpec` classes.
        root: Folder of the Arrow files; they may be in a subfolder named after the dataset.
        batch_size: Examples per training batch of one process.
        eval_batch_size: Examples per evaluation batch; None for ``batch_size``.
        image_size: S, pixels of each side of an image.
        max_text_len: L, tokens per text; longer texts are cut.
        tokenizer: A folder or hub name; None for the folder `tokenizer` beside the Arrow files.
        train_transform: How to prepare training images: resize, crop and (randaug) augment.
            `model.meter.pixels` normalises.
        eval_transform: How to prepare evaluation images.
        num_workers: Worker processes; 0 loads in the main process. None uses the cores per device
            (at most 16), and 0 for images of up to 128 pixels on a CPU.
        prefetch_factor: Batches each worker loads ahead; None for PyTorch's default, 2.
        seed: Decides every shuffle, draw, mask and augmentation.
        splits: "default" keeps model selection apart from the reported scores. "official" uses the
            splits of the reference.
        train_limit: Number of training examples to use from each dataset; None for all.
        eval_limit: Number of examples to use from each evaluation split; None for all.
        fast_decode: Resize training images with torch and decode large JPEGs at a reduced scale:
            about twice as fast; pixels differ by a few of 255 levels. Evaluation stays exact.
        skip_bad: Leave out and count evaluation examples with an unreadable image, instead of
            stopping. (In training another example replaces them.)
        exclude_own: Draw negatives only from other images. The reference (False) draws the true
            image or text now and then.
    """

    spec: SampleSpec  # of the task; `setup` sets it

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
        for option, number, least in (
            ("train_limit", train_limit, 1), ("eval_limit", eval_limit, 1),
            ("batch_size", batch_size, 1), ("eval_batch_size", eval_batch_size, 1),
            ("max_text_len", max_text_len, 3),
        ):  # fmt: skip
            if number is not None and number < least:
                raise DataError(f"data.{option} is {number}; it must be at least {least}.")
        names = [datasets] if isinstance(datasets, str) else datasets
        self.datasets = [find_dataset(name) for name in names]
        self.name = ", ".join(dataset.name for dataset in self.datasets)
        if not names or len({dataset.name for dataset in self.datasets}) < len(names):
            raise DataError(f"data.datasets is {names}; name one or several, each once.")
        self.root = Path(os.path.expanduser(root))
        self.splits = splits
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.num_workers = num_workers
        self.prefetch_factor = prefetch_factor
        self.eval_config = DatasetConfig(
            TRANSFORMS[eval_transform], image_size, train=False, seed=seed, limit=eval_limit,
            skip_bad=skip_bad, exclude_own=exclude_own,
        )  # fmt: skip
        self.train_config = DatasetConfig(
            TRANSFORMS[train_transform], image_size, train=True, seed=seed, limit=train_limit,
            fast=fast_decode, exclude_own=exclude_own,
        )  # fmt: skip
        self._tables: dict[tuple[str, ...], ArrowTable] = {}
        self._examples: dict[Phase, dict[str, Examples]] = {}
        for dataset in self.datasets:
            dataset.prepare(self.root)
        if tokenizer is None:
            folders = [path for each in self.datasets for path in each.find(self.root, "tokenizer")]
            if not folders:
                raise MissingFilesError(
                    f"There is no folder `tokenizer` beside the Arrow files in {self.root}. Create "
                    f"it with `python -m elip.data.tokenize --data {self.root}`, or set "
                    "--data.tokenizer to bert-base-uncased, roberta-base or a local folder."
                )
            tokenizer = str(folders[0])
        self.tokenizer = load_tokenizer(tokenizer)
        self.encoder = TextTokenizer(self.tokenizer, max_text_len)
        found = [self._answers(each) for each in self.datasets if "question" in each.views]
        if len(set(found)) > 1:
            raise DataError("Datasets with different answers cannot be joined.")
        self.info = DataInfo(self.encoder.vocab_size, *(found[0] if found else ()))

    def _answers(self, dataset: DatasetSpec) -> tuple[int, tuple[str, ...]]:
        """Return the number of answers, and the answers if a list or the Arrow files have them."""
        view = dataset.views["question"]
        words: dict[int, str] = {}
        for splits in view.chosen(self.splits).values():
            for patterns in splits.values():
                with suppress(MissingFilesError):
                    words |= self._table(dataset, "question", patterns).answer_words()
        paths = dataset.find(self.root, view.answer_file) if view.answer_file else []
        if not paths:
            size = max([view.num_answers, *(number + 1 for number in words)])
            unlisted = (words.get(number, "unknown") for number in range(size))
            return size, tuple(unlisted) if words else ()
        try:
            listed = json.loads(paths[0].read_text("utf-8"))
        except ValueError:
            listed = None
        if not isinstance(listed, list) or not listed:
            raise DataError(f"{paths[0]} is not a JSON list of answers.")
        for number, word in sorted(words.items()):
            if [word] != listed[number : number + 1]:
                other = listed[number] if number < len(listed) else None
                raise DataError(
                    f"{paths[0]} does not belong to these Arrow files: answer {number} is "
                    f"{other!r} in the list and {word!r} in the files. Convert them together."
                )
        return len(listed), tuple(listed)

    def setup(self, stage: str | None = None) -> None:
        """Take the task's `spec` and open the files of the stage."""
        if self.trainer is not None:
            task: Any = self.trainer.lightning_module.task
            self.spec = task.spec
        if stage == "fit":
            self.examples("train")
        self.split_names(stage or "validate")

    def asked(self, kind: str) -> frozenset[int]:
        """Return the keys of all examples in a server's test set; empty if unknown."""
        named = ((each, each.views[kind].asked_file) for each in self.datasets)
        paths = [path for each, name in named if name for path in each.find(self.root, name)]
        return frozenset(key for path in paths for key in json.loads(path.read_text("utf-8")))

    def split_names(self, stage: str) -> list[str]:
        """Return the names of the splits that a stage evaluates, in the order of the loaders.

        "fit" and "validate" use the splits for model selection, "test" and "predict" those for the
        reported scores. Only "fit" may have none.
        """
        names = list(self.examples(_PHASES[stage]))
        if not names and stage != "fit":
            raise DataError(f"{self.name} has no split to {stage} on.")
        return names

    def examples(self, phase: Phase) -> dict[str, Examples]:
        """Return the examples of a phase by split; "train" is the only split for training."""
        if phase not in self._examples:
            tables = self._phase_tables(phase)
            if phase != "train":
                self._examples[phase] = {
                    name: Examples([table], self.spec, self.eval_config)
                    for name, table in tables.items()
                }
            elif tables:
                joined = Examples(list(tables.values()), self.spec, self.train_config)
                self._examples[phase] = {"train": joined}
            else:
                raise DataError(f"{self.name} has no training split.")
        return self._examples[phase]

    def _phase_tables(self, phase: Phase) -> dict[str, ArrowTable]:
        """Return the table of each split; of joined datasets, with the dataset in its name."""
        kind, tables = self.spec.kind, {}
        for dataset in self.datasets:
            if kind not in dataset.views:
                kinds = ", ".join(dataset.views)
                raise DataError(f"{dataset.name} has no examples of kind {kind!r}; it has {kinds}.")
            for name, patterns in dataset.views[kind].chosen(self.splits).get(phase, {}).items():
                whole = name if len(self.datasets) == 1 else f"{dataset.name}_{name}"
                tables[whole] = self._table(dataset, kind, patterns)
        return tables

    def _table(self, dataset: DatasetSpec, kind: str, patterns: tuple[str, ...]) -> ArrowTable:
        key, view = (dataset.name, kind, *patterns), dataset.views[kind]
        if key not in self._tables:
            self._tables[key] = ArrowTable(
                dataset.paths(self.root, patterns),
                view.columns or LAYOUT[kind],
                view.distinct,
                None if view.answer_file else view.num_answers or _NUM_CLASSES.get(kind),
            )
        return self._tables[key]

    def fingerprints(self, stage: str) -> dict[str, str]:
        """Return the fingerprints of a stage's splits, of the tokenizer and of the answers."""
        phases: list[Phase] = ["train", "val"] if stage == "fit" else [_PHASES[stage]]
        found = {
            f"data/{name}": arrow_fingerprint(table.paths)
            for phase in phases
            for name, table in self._phase_tables(phase).items()
        }
        texts = {"tokenizer": self.tokenizer.backend_tokenizer.to_str()}
        if self.spec.kind == "question":
            texts["answers"] = json.dumps(self.info.answers)
        return found | {
            name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items()
        }

    @property
    def skipped(self) -> dict[str, int]:
        """Number of bad images left out, for each split that has any."""
        return {
            "train" if phase == "train" else f"{phase}/{name}": each.num_skipped
            for phase, splits in self._examples.items()
            for name, each in splits.items()
            if each.num_skipped
        }

    def train_dataloader(self) -> Loader:
        """Return the loader of the training examples of all datasets."""
        loader = self._loader(self.examples("train")["train"], self.batch_size, train=True)
        if loader.batch_sampler.num_dropped:
            log.info("Each epoch leaves out %d examples.", loader.batch_sampler.num_dropped)
        return loader

    def val_dataloader(self) -> list[Loader]:
        """Return one loader for each of `split_names("validate")`; a fit may have none."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        return self._eval_loaders("fit" if fitting else "validate")

    def test_dataloader(self) -> list[Loader]:
        """Return one loader for each of `split_names("test")`."""
        return self._eval_loaders("test")

    predict_dataloader = test_dataloader

    def _eval_loaders(self, stage: str) -> list[Loader]:
        examples = self.examples(_PHASES[stage])
        names = self.split_names(stage)
        return [self._loader(examples[name], self.eval_batch_size, train=False) for name in names]

    def _loader(self, examples: Examples, batch_size: int, train: bool) -> Loader:
        trainer, seed, workers = self.trainer, self.eval_config.seed, self.num_workers
        rank, world_size = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        sampler = DistributedBatchSampler(len(examples), batch_size, train, seed, rank, world_size)
        if workers is None:
            affinity = getattr(os, "sched_getaffinity", None)  # Linux: the cores of this process
            cores = len(affinity(0)) if affinity else os.cpu_count() or 1
            workers = min(16, cores // (trainer.num_devices if trainer else 1))
            if not torch.cuda.is_available() and self.eval_config.image_size <= _TINY:
                workers = 0
        batches: DataLoader[Any] = DataLoader(
            examples,
            batch_sampler=sampler,
            collate_fn=Collator(self.encoder, self.spec.masked, seed, self.info.num_answers),
            num_workers=workers,
            prefetch_factor=self.prefetch_factor if workers else None,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_quiet_tokenizers,
        )
        progress = trainer.fit_loop.epoch_loop.batch_progress if trainer and train else None
        return Loader(batches, sampler, lambda: progress.current.ready if progress else 0)

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch; on a GPU without waiting."""
        return batch.to(device, non_blocking=device.type == "cuda")


class Loader:
    """The batches of one split, without batches that `skip_bad` left empty.

    It wraps a `DataLoader`, because Lightning (2.6) would replace the sampler of a `DataLoader` in
    prediction. When Lightning resumes within an epoch, it expects the loader to skip the batches
    that are done.
    """

    def __init__(
        self,
        batches: DataLoader[Any],
        sampler: DistributedBatchSampler,
        num_done: Callable[[], int],
    ) -> None:
        self.batch_sampler = sampler  # Lightning looks for this name to set the epoch
        self._batches = batches
        self._num_done = num_done

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the remaining batches of the current epoch.

        As a generator, it starts the workers at the first batch: Lightning requests the iterator
        before it sets the epoch.
        """
        self.batch_sampler.start = self._num_done()
        yield from (batch for batch in self._batches if batch is not None)

    def state_dict(self) -> dict[str, int]:
        """Return what determines the order of the batches, for Lightning's checkpoint."""
        kept = ("num_examples", "batch_size", "seed", "world_size")
        return {name: getattr(self.batch_sampler, name) for name in kept}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Warn if the interrupted epoch had another order of batches."""
        if changed := [name for name, now in self.state_dict().items() if state.get(name) != now]:
            log.warning(
                "The interrupted epoch had other %s: the rest of this epoch repeats or leaves out "
                "examples. Later epochs are not affected.",
                ", ".join(changed),
            )


def _quiet_tokenizers(_: int) -> None:
    # Avoids a warning: a forked process cannot use the threads of its parent's tokenizer.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
