"""The callback that watches a run and leaves its record."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.distributed import DistError

from elip.checkpoints import BEST, is_whole
from elip.data.batch import Batch
from elip.examples import write_examples
from elip.inputs import input_files, read_origin
from elip.old_record import (
    Earlier,
    Evaluation,
    Origin,
    Record,
    RecordError,
    Status,
    Tokens,
    Training,
    origin_as_json,
    origin_from_json,
    read_record,
    write_record,
)
from elip.provenance import (
    VOLATILE,
    code_version,
    config_hash,
    hardware,
    package_versions,
    peak_memory_bytes,
)
from elip.summary import print_summary
from elip.training.checkpoints import changed, earlier_parts, refuse_changed
from elip.training.costs import with_costs
from elip.training.directory import not_ended
from elip.training.module import MeterModule
from elip.training.watch import KeptTokens

log = logging.getLogger(__name__)

_UNTRAINED = "Fusion and head are untrained: no weights of a run were given."
_LOG_LINES = 40


class Recorder(Callback):
    """Write ``run.json`` when a run ends, however it ends.

    Args:
        run_dir: Where it goes.
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        own: Resolved configuration, inputs, and how the weights were made that it begins from.
        ckpt_path: The checkpoint that is resumed or scored.
    """

    def __init__(self, run_dir: Path, command: str, own: Origin, ckpt_path: str | None) -> None:
        self.run_dir = run_dir
        self.command = command
        self.own = own
        self.config = own.config
        self.ckpt_path = ckpt_path
        self.started = _now()
        self.written = False
        self.evaluations: tuple[Evaluation, ...] = ()
        self.outcomes: dict[str, Any] = {}
        self._best = float("-inf")
        self._best_step: int | None = None
        self._stale: Path | None = None
        self._made_by: str | None = None
        self._planned: int | None = None
        self._earlier: tuple[Earlier, ...] = ()
        self._counts: dict[str, int] = {}
        self._skipped: dict[str, int] = {}
        self._kept: KeptTokens | None = None
        self._tokens: Tokens | None = None
        self._sample: Batch | None = None
        self._train_start = time.perf_counter()
        self._images = 0
        self._step_seconds = 0.0
        self._step_start: float | None = None
        self._log = _Tail()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start listening to the log and to the reducer."""
        assert isinstance(pl_module, MeterModule)
        self.own = replace(self.own, processes=trainer.world_size)
        if self._is_untrained(pl_module):
            log.warning("%s Give --ckpt_path or --model.weights.", _UNTRAINED)
        if self.command != "fit":
            files = input_files(self.command, self.config)
            weights = files.get("ckpt_path") or files.get("model.weights")
            self._made_by = not_ended(weights) if weights else None
        self._kept = KeptTokens(pl_module.meter.reducer, pl_module.meter.plan)
        logging.getLogger("elip").addHandler(self._log)
        self._train_start = time.perf_counter()

    def _is_untrained(self, module: MeterModule) -> bool:
        return self.command != "fit" and self.ckpt_path is None and module.weights is None

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run must not forget; Lightning saves it."""
        return {
            "origin": origin_as_json(self.own),
            "best": self._best,
            "best_step": self._best_step,
            "planned": self._planned,
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "outcomes": {name: torch.from_numpy(rows) for name, rows in self.outcomes.items()},
            "tokens": self._tokens and asdict(self._tokens),
            "seconds": time.perf_counter() - self._train_start,
            "images": self._images,
            "step_seconds": self._step_seconds,
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let the best checkpoint and the scores that go with it live on together, or neither.

        A run that is killed behind a validation leaves a best checkpoint that its last one does not
        know of, and Lightning forgets which was the best where the run's folder has moved. A job
        that its cluster requeued, which goes on by itself, is held against its beginning here.
        """
        if self.command != "fit":
            return
        states = checkpoint.get("callbacks") or {}
        own = states.get(self.state_key, {})
        if "origin" in own:
            began = origin_from_json(own["origin"])
            if self.ckpt_path is None:
                refuse_changed(began, self.own)
            self._earlier = began.earlier
            parts = earlier_parts(began, checkpoint["global_step"], self.own)
            self.own = replace(self.own, earlier=parts)
        callbacks = trainer.checkpoint_callbacks
        keepers = [each for each in callbacks if isinstance(each, ModelCheckpoint)]
        keeper = next((each for each in keepers if each.filename == BEST), None)
        kept = states.get(keeper.state_key) if keeper else None
        if keeper is None or kept is None:
            return
        assert keeper.dirpath is not None
        best, score = Path(keeper.dirpath, f"{BEST}.ckpt"), kept["best_model_score"]
        if score is None and not best.exists():  # not validated yet
            return
        if score is not None and _is_of_step(best, own.get("best_step")):
            place = {"best_model_path": str(best), "kth_best_model_path": str(best)}
            kept |= {"dirpath": keeper.dirpath, "best_k_models": {str(best): score}, **place}
            return
        log.warning(
            "%s is not there, or of steps that were lost; the best of the validations to come "
            "takes its place.",
            best,
        )
        self._stale = best
        kept |= keeper.state_dict()
        own |= {"best": float("-inf"), "best_step": None, "evaluations": [], "outcomes": {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what an interrupted training run had seen."""
        if self.command != "fit":
            return
        self._best = state_dict["best"]
        self._best_step = state_dict.get("best_step")
        self._planned = state_dict.get("planned")
        self.evaluations = tuple(Evaluation(**each) for each in state_dict["evaluations"])
        self.outcomes = {name: rows.numpy() for name, rows in state_dict["outcomes"].items()}
        self._tokens = state_dict["tokens"] and Tokens(**state_dict["tokens"])
        self._train_start -= state_dict["seconds"]
        self._images = state_dict["images"]
        self._step_seconds = state_dict["step_seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle what a run that goes on has changed of its length, and of its best checkpoint."""
        planned = int(trainer.estimated_stepping_batches)
        if planned == self._planned:  # by other options
            self.own = replace(self.own, earlier=self._earlier)
        self._planned = planned
        if self._stale is not None and trainer.is_global_zero:  # all have seen it
            self._stale.unlink(missing_ok=True)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Start the clock of a step."""
        if self._sample is None:
            self._sample = batch
        self._step_start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, idx: int
    ) -> None:
        """Count images, and the time of the step without validation and loading."""
        assert self._step_start is not None
        self._step_seconds += time.perf_counter() - self._step_start
        self._images += len(batch) * batch.images.shape[1] * trainer.world_size

    def on_validation_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Batch, idx: int, loader: int = 0
    ) -> None:
        """Count examples by split."""
        self._see(trainer, batch, "validate", loader)

    def on_test_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Batch, idx: int, loader: int = 0
    ) -> None:
        """Count examples by split."""
        self._see(trainer, batch, "test", loader)

    def _see(self, trainer: Trainer, batch: Batch, stage: str, loader: int) -> None:
        if not trainer.sanity_checking:
            self._sample = self._sample or batch
            name = trainer.datamodule.split_names(stage)[loader]  # type: ignore[attr-defined]
            self._counts[name] = self._counts.get(name, 0) + len(batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the scores of the best validation, the one whose checkpoint is kept."""
        assert self._kept is not None
        if not trainer.sanity_checking:
            main = float(trainer.callback_metrics.get("val/main", float("nan")))
            main = -math.inf if math.isnan(main) else main
            # As the checkpoint does it: of equal scores the first one stays.
            if self.command != "fit" or main > self._best or not self.evaluations:
                self._best, self._best_step = main, trainer.global_step
                self._keep(trainer, pl_module)
        self._counts = {}
        self._kept.clear()
        self._skipped = _skipped(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the scores."""
        self._keep(trainer, pl_module)
        self._skipped = _skipped(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep how many images were skipped, while all processes are there to tell."""
        self._skipped = _skipped(trainer)

    on_predict_end = on_train_end

    def _keep(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, MeterModule)
        datasets = _datasets(self.config)
        self.outcomes = {name: rows.cpu().numpy() for name, rows in module.outcomes.items()}
        self.evaluations = tuple(
            Evaluation(
                split=name,
                dataset=_dataset_of(name, datasets),
                examples=int(_over_processes(trainer, torch.tensor(self._counts.get(name, 0)))),
                metrics=dict(scores),
                chance=dict(module.chances[name]),
            )
            for name, scores in module.scores.items()
        )
        self._tokens = self._count_tokens(module, lambda sums: _over_processes(trainer, sums))

    def _count_tokens(self, module: MeterModule, join: Callable[[Tensor], Tensor]) -> Tokens:
        """Return the token counts, measured on this evaluation where they depend on content."""
        assert self._kept is not None
        plan, blocks = module.meter.plan, len(module.meter.plan.tokens_per_block) - 1
        entering, spread = self._kept.entering(join)
        reduces = bool(plan.keep) and not module.schedule.counts
        return Tokens(
            patches=plan.num_patches,
            entering=entering,
            keep_ratio_asked=module.schedule.keep_ratio if reduces else None,
            keep_ratio=sum(entering[:blocks]) / (blocks * plan.num_patches),
            entering_sd=spread,
        )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the record of a training run that came to its end, behind its last checkpoint."""
        if self._sample is None:  # resumed when all was done but the record
            self._sample = trainer.datamodule.first_batch().to(pl_module.device)  # type: ignore[attr-defined]
        self._write(trainer, pl_module, "completed")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write the record of a run that was stopped or failed.

        Where several processes run, the one with the error of its own writes it: the others are
        killed, or end because it is gone.
        """
        stopped = isinstance(exception, KeyboardInterrupt | SIGTERMException)
        said = lost_process(exception) or f"{type(exception).__name__}: {exception}"
        error = None if stopped else said
        self._write(trainer, pl_module, "interrupted" if stopped else "failed", error)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the record of a run without training, and stop listening."""
        if self.command == "predict" or (self.command != "fit" and self.evaluations):
            self._write(trainer, pl_module, "completed")
        logging.getLogger("elip").removeHandler(self._log)

    def _write(
        self, trainer: Trainer, module: LightningModule, status: Status, error: str | None = None
    ) -> None:
        assert isinstance(module, MeterModule)
        lost = error is not None and error.startswith(LOST_PROCESS)
        alone = trainer.is_global_zero or (status == "failed" and not lost)
        if self.written or not alone or (lost and self._is_explained()):
            return
        self.written = True
        record = self._record(trainer, module, status, error)
        write_examples(self.run_dir, self.outcomes)
        if status == "completed":
            # The scores are safe from here on, and a grid goes on with a run that is killed now.
            unpriced = "Ended while GFLOPs and times were taken."
            write_record(
                replace(record, status="interrupted", notes=(*record.notes, unpriced)), self.run_dir
            )
            if isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
                with trainer.precision_plugin.forward_context():
                    record = with_costs(record, module, self._sample)
            else:
                split = "No GFLOPs, no times: the model may be split over processes."
                record = replace(record, notes=(*record.notes, split))
        path = write_record(record, self.run_dir)
        if status != "failed":
            print_summary(record, path)

    def _record(
        self, trainer: Trainer, module: MeterModule, status: Status, error: str | None
    ) -> Record:
        reducer = module.meter.reducer
        model = self.config.get("model", {})
        # Of a run that ends before its processes could tell each other, its own count is known.
        skipped = Counter(self._skipped) | Counter(_own_skipped(trainer))
        notes = [f"{name}: {count} skipped" for name, count in skipped.items()]
        if self._is_untrained(module):
            notes.append(_UNTRAINED)
        elif self.command != "fit" and self.ckpt_path is None:
            for said, names in (
                ("Untrained, not in the weights", module.missing),
                ("Left out of the weights", module.left_out),
            ):
                if names:
                    notes.append(f"{said}: {len(names)} tensors, {names[0]} first.")
        if self._made_by is not None:
            notes.append(f"The run that made the weights had not ended ({self._made_by}).")
        if self.command != "fit" and self.own.origin is not None:
            for name in changed(self.own.origin.inputs, self.own.inputs):
                if name.startswith("code of"):
                    notes.append(f"The {name} has changed since the weights were trained.")
        for part in self.own.earlier:
            was = ", ".join(f"{name} {value}" for name, value in part.options.items())
            notes.append(f"Its first {part.steps} steps were taken under {was}.")
        return Record(
            name=self.run_dir.name,
            subcommand=self.command,
            status=status,
            started=self.started,
            ended=_now(),
            config=self.config,
            config_hash=config_hash(self._identity(), self._volatile()),
            code=code_version(),
            packages=package_versions(),
            hardware=hardware(),
            seed=self.config.get("seed_everything"),
            task=type(module.task).__name__,
            datasets=tuple(_datasets(self.config)),
            reducer="Identity" if reducer is None else type(reducer).__name__,
            reducer_family="baseline" if reducer is None else reducer.family,
            reducer_options=(model.get("reducer") or {}).get("init_args", {}),
            main_metric=module.task.main_metric,
            evaluations=self.evaluations,
            tokens=self._tokens
            or (self._count_tokens(module, join=lambda sums: sums) if self._kept else None),
            peak_memory_bytes=peak_memory_bytes(),
            peak_gpu_memory_bytes=(
                torch.cuda.max_memory_allocated() if module.device.type == "cuda" else None
            ),
            training=self._training(trainer) if self.command == "fit" else None,
            parent=module.weights if self.command == "fit" else self.ckpt_path or module.weights,
            inputs=self.own.inputs,
            origin=self.own.origin,
            processes=self.own.processes,
            earlier=self.own.earlier,
            error=error,
            log_tail=tuple(self._log.lines),
            notes=tuple(notes),
        )

    def _is_explained(self) -> bool:
        """Whether the process that died has written why."""
        try:
            found = read_record(self.run_dir)
        except RecordError:
            return False
        return found.status == "failed" and found.ended >= self.started

    def _identity(self) -> dict[str, Any]:
        earlier = {"earlier": [asdict(part) for part in self.own.earlier]}
        return {**self.config, **(earlier if self.own.earlier else {})}

    def _volatile(self) -> tuple[str, ...]:
        """Return what is no part of the run's identity: also where a training run was resumed."""
        return (*VOLATILE, "ckpt_path") if self.command == "fit" else VOLATILE

    def _training(self, trainer: Trainer) -> Training:
        return Training(
            steps=trainer.global_step,
            epochs=_epochs(trainer),
            seconds=time.perf_counter() - self._train_start,
            images_per_second=self._images / self._step_seconds if self._step_seconds else None,
        )


LOST_PROCESS = "another process of this run has died"


def lost_process(error: BaseException) -> str | None:
    """Return what to say where a run ends because another of its processes died; else None."""
    text = str(error).splitlines()[0] if str(error) else ""
    lost = isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in text)
    return f"{LOST_PROCESS}; see what it printed last ({text})" if lost else None


def _is_of_step(best: Path, step: int | None) -> bool:
    """Whether the best checkpoint is whole, and of that step where it is known."""
    if step is None or not is_whole(best):
        return is_whole(best)
    origin = read_origin(best)
    return origin is not None and origin.steps == step


def _epochs(trainer: Trainer) -> float:
    """Return how often the training data was gone through, parts of a pass included."""
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
    return float(batches / trainer.num_training_batches) if trainer.num_training_batches else 0.0


def _dataset_of(split: str, datasets: list[str]) -> str:
    """Return whose split it is: joined datasets put their name in front (``coco_val``)."""
    own = [name for name in datasets if split.startswith(f"{name}_")]
    return own[0] if own else "+".join(datasets)


def _datasets(config: dict[str, Any]) -> list[str]:
    names = config.get("data", {}).get("datasets", [])
    return [names] if isinstance(names, str) else list(names)


def _own_skipped(trainer: Trainer) -> dict[str, int]:
    counts: dict[str, int] = getattr(trainer.datamodule, "num_skipped", {})  # type: ignore[attr-defined]
    return counts


def _skipped(trainer: Trainer) -> dict[str, int]:
    """Return how many images of each split all processes together have skipped."""
    every = [_own_skipped(trainer)]
    if trainer.world_size > 1:
        every *= trainer.world_size
        torch.distributed.all_gather_object(every, every[0])
    return dict(sum(map(Counter, every), Counter()))


def _over_processes(trainer: Trainer, count: Tensor) -> Tensor:
    """Add up what each process counted."""
    if trainer.world_size == 1:
        return count
    total: Tensor = trainer.strategy.reduce(count.to(trainer.strategy.root_device), reduce_op="sum")
    return total


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class _Tail(logging.Handler):
    """Keeps the last lines of the log."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: deque[str] = deque(maxlen=_LOG_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self.lines.append(f"{record.levelname} {record.getMessage()}")
