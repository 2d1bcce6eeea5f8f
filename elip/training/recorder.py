"""The callback that identifies a run, keeps its best scores, and writes ``run.json``."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from elip import identity
from elip.cost.cached import COSTS_NAME, cached_cost
from elip.data.batch import Batch
from elip.record import (
    RECORD_NAME,
    CheckpointInfo,
    Record,
    RunHeader,
    Status,
    environment,
    peak_memory_bytes,
    write_record,
    write_scores,
)
from elip.summary import print_summary
from elip.training.module import MeterModule
from elip.training.watch import ReducerWatch

if TYPE_CHECKING:
    from elip.training.parse import ParsedRun

log = logging.getLogger(__name__)


@dataclass
class _State:
    """What a resumed run needs; ``kept`` and ``scores`` are those of the best validation."""

    best: float = -math.inf
    best_step: int | None = None
    kept: dict[str, Any] = field(default_factory=dict)  # fields of the record
    scores: dict[str, Tensor] = field(default_factory=dict)  # of examples, by split
    seconds: float = 0.0
    validation_seconds: float = 0.0
    images: int = 0


class Recorder(Callback):
    """Identifies the run, keeps the scores of its best validation, and writes its record.

    Args:
        parsed: The run.
        labels: ``grid``, ``stage`` and ``axes`` of a grid cell.
    """

    def __init__(self, parsed: ParsedRun, labels: dict[str, Any]) -> None:
        self.parsed = parsed
        self.labels = labels
        self._state = _State()
        self._started = _now()
        self._written = False
        self._skipped: Counter[str] = Counter()

    @property
    def best_step(self) -> int | None:
        """The step of the best validation."""
        return self._state.best_step

    # ------------------------------------------------------------------ identity

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compute the protocol, and start listening to the reducer.

        Raises:
            CheckpointError: A resumed run has other data or another number of processes, or the
                weights were trained as a different model.
        """
        assert isinstance(pl_module, MeterModule)
        self._trainer, self._module, parsed = trainer, pl_module, self.parsed
        self._watch = ReducerWatch(pl_module.meter.reducer, pl_module.meter.plan)
        self._train_start = time.perf_counter()
        self._identify()
        self._check_weights()
        if parsed.command != "fit" and parsed.checkpoint is None and pl_module.weights is None:
            pl_module.notes.append("Untrained: no weights of a run were given.")
            log.warning("%s Give --ckpt_path or --model.weights.", pl_module.notes[-1])
        if trainer.strategy.root_device.type == "cuda" and trainer.precision == "32-true":
            torch.set_float32_matmul_precision("high")
            pl_module.notes.append("Precision: float32 with TF32 products.")

    def _identify(self) -> None:
        """Fingerprint data, weights and foreign code, and collect the options of the protocol."""
        parsed, module, model = self.parsed, self._module, self.parsed.config["model"]
        source: Any = self._trainer.datamodule  # type: ignore[attr-defined]
        source.spec = module.task.spec
        data = source.fingerprints(parsed.command)
        files = {
            f"model.{name}": identity.content_fingerprint(path)
            for name in ("image_weights", "text_weights")
            if model[name] is not None and (path := Path(model[name]).expanduser()).exists()
        }
        if parsed.parent_id and not parsed.lineage and not files:
            files["weights"] = parsed.parent_id
        kinds = (type(module.task), type(module.meter.reducer))
        code = {f"code/{kind.__name__}": identity.source_fingerprint(kind) for kind in kinds}
        self._fingerprints = {**data, **files, **{k: v for k, v in code.items() if v}}
        processes = self._trainer.accumulate_grad_batches * self._trainer.world_size
        self._options = identity.protocol_options(
            parsed.command, parsed.stated, {**data, **files}, next(iter(parsed.lineage), None),
            processes * parsed.config["data"]["batch_size"],
        )  # fmt: skip

    def _check_weights(self) -> None:
        """Compare the run with what the checkpoint of its weights says."""
        path = self.parsed.checkpoint or self._module.weights
        info = path and identity.read_checkpoint_info(identity.find_checkpoint(path))
        if not info:
            return
        if self.parsed.resumes:
            differ = identity.differences(info.protocol_options, self._options, ())
            if info.processes != self._trainer.world_size:
                differ["processes"] = (info.processes, self._trainer.world_size)
            what = "A run can resume only with the data and number of processes it began with"
        else:
            differ = identity.differences(info.model, self._model_facts(), ())
            differ = {name: pair for name, pair in differ.items() if None not in pair}
            what = f"{path} fits, but was trained as a different model"
        if differ:
            raise identity.CheckpointError(f"{what}: {identity.describe(differ)}.")

    def _model_facts(self) -> dict[str, Any]:
        """Return facts about the model and its data that tensor shapes do not show."""
        sizes = self._module.meter.sizes
        facts = {
            # timm puts the name of the weights after a dot; the architecture is before it.
            "image_encoder": sizes.image_encoder.partition(".")[0],
            "image_heads": sizes.image_heads if sizes.image_encoder == "vit" else None,
            "text_heads": sizes.text_heads if sizes.text_encoder in ("roberta", "bert") else None,
            "fusion_heads": sizes.fusion_heads,
            "pixels": sizes.pixels,
            "tokenizer": self._fingerprints.get("tokenizer"),
            "answers": self._fingerprints.get("answers"),
        }
        return {name: value for name, value in facts.items() if value is not None}

    def info(self, checkpoint: Literal["best", "last"]) -> str:
        """Return the `CheckpointInfo` of this run, as JSON."""
        parsed = self.parsed
        header = RunHeader(
            run_id=parsed.run_id, command=parsed.command, reducer=parsed.reducer,
            method=parsed.method, protocol=identity.digest(self._options, 16),
            seed=parsed.config["seed_everything"], steps=self._trainer.global_step,
            checkpoint=checkpoint,
        )  # fmt: skip
        return CheckpointInfo(
            lineage=(header, *parsed.lineage),
            stated_config=parsed.stated,
            protocol_options=self._options,
            model=self._model_facts(),
            processes=self._trainer.world_size,
        ).model_dump_json()

    # ------------------------------------------------------------------ scores and counts

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, idx: int
    ) -> None:
        """Count images."""
        self._state.images += len(batch) * batch.images.shape[1] * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the scores of the best validation."""
        state, step = self._state, trainer.global_step
        state.validation_seconds += time.perf_counter() - self._validation_start
        if self.parsed.command != "fit":
            self._keep()
        elif not trainer.sanity_checking:
            main = float(trainer.callback_metrics["val/main"])
            if main > state.best or state.best_step is None:
                state.best = main if math.isfinite(main) else -math.inf
                state.best_step = step
                self._keep()
            best = " (best so far)" if state.best_step == step else ""
            name = self._module.task.main_metric
            log.info("Step %d: validation %s %.4f%s", step, name, main, best)
        self._watch.clear()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the scores."""
        self._keep()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count skipped images while all processes are still alive."""
        self._skipped = _skipped(trainer)

    on_predict_end = on_train_end

    def _keep(self) -> None:
        trainer, datasets, evaluations = self._trainer, self._datasets(), []
        for split, found in self._module.results.items():
            own = (name for name in datasets if split.startswith(f"{name}_"))
            evaluation = {
                "split": split,
                "dataset": next(own, "+".join(datasets)),
                "examples": int(_sum(trainer, torch.tensor(found.examples))),
                "metrics": found.metrics,
                "chance": found.chance,
            }
            evaluations.append(evaluation)
        results = self._module.results.items()
        self._state.scores = {split: found.per_example.cpu() for split, found in results}
        self._watch.add_up(lambda sums: _sum(trainer, sums))
        self._state.kept = {**self._count_tokens(), "evaluations": evaluations}
        self._skipped = _skipped(trainer)

    def _count_tokens(self) -> dict[str, Any]:
        """Return the record's token counts; they are measured if they depend on content."""
        plan, schedule = self._module.meter.plan, self._module.schedule
        counts, spread = self._watch.tokens_per_block()
        share = sum(counts[:-1]) / ((len(counts) - 1) * plan.num_patches)
        placement = self._module.meter.reducer.placement
        fused = placement == "fusion"
        return {
            "placement": placement,
            "patches": plan.num_patches,
            "tokens_per_block": counts,
            "tokens_per_block_sd": spread,
            "keep_ratio_asked": schedule.keep_ratio if plan.keep and not schedule.counts else None,
            "keep_ratio": 1.0 if fused else share,
            "fusion_keep_ratio": share if fused else None,
        }

    def _datasets(self) -> list[str]:
        names = self.parsed.config["data"]["datasets"]
        return [names] if isinstance(names, str) else list(names)

    # ------------------------------------------------------------------ resuming

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs; Lightning saves it."""
        return {**vars(self._state), "seconds": time.perf_counter() - self._train_start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of an interrupted training run."""
        if self.parsed.command == "fit":
            self._state = _State(**state_dict)
            self._train_start -= self._state.seconds

    def forget_best(self) -> None:
        """Make the next validation the best one."""
        state = self._state
        state.best, state.best_step, state.kept, state.scores = -math.inf, None, {}, {}

    # ------------------------------------------------------------------ the record

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the record of a completed run, and print its summary."""
        self._watch.stop()
        self._write("completed")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Write the record of a run that was stopped or failed.

        Of several processes, the one that raised the error writes it; the others end because of it.
        """
        lost = lost_process(exception)
        if isinstance(exception, KeyboardInterrupt | SIGTERMException):
            self._write("interrupted")
        elif lost is None or not (self.parsed.run_dir / RECORD_NAME).exists():
            self._write("failed", lost or f"{type(exception).__name__}: {exception}")

    def _write(self, status: Status, error: str | None = None) -> None:
        if self._written or not (self._trainer.is_global_zero or status == "failed"):
            return
        self._written = True
        folder = self.parsed.run_dir
        write_scores({name: rows.numpy() for name, rows in self._state.scores.items()}, folder)
        record = self._record(status, error)
        if status == "completed":
            record = record.model_copy(update=self._costs(record.notes))
        path = write_record(record, folder)
        if status == "completed":
            print_summary(record, path, self._next_command())

    def _record(self, status: Status, error: str | None) -> Record:
        parsed, config, module = self.parsed, self.parsed.config, self._module
        trainer, reducer, state = self._trainer, module.meter.reducer, self._state
        # If the run ended before its processes shared their counts, use those of this process.
        skipped = self._skipped | _own_skipped(trainer)
        notes = [*module.notes, *(f"{name}: {count} skipped" for name, count in skipped.items())]
        if parsed.command != "fit" and parsed.checkpoint is None and module.missing:
            notes.append(f"Untrained, not in the weights: {', '.join(module.missing[:3])}, ...")
        training: dict[str, Any] = {}
        if parsed.command == "fit":
            seconds = time.perf_counter() - self._train_start
            batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
            training = {
                "train_steps": trainer.global_step,
                "train_epochs": batches / (trainer.num_training_batches or 1),
                "train_seconds": seconds,
                "train_images_per_second": state.images / (seconds - state.validation_seconds),
            }
        cuda = trainer.strategy.root_device.type == "cuda"
        return Record(
            name=parsed.run_dir.name, run_id=parsed.run_id, command=parsed.command, status=status,
            started=self._started, ended=_now(), error=error, notes=tuple(notes),
            protocol=identity.digest(self._options, 16), protocol_options=self._options,
            stated_config=parsed.stated, config=config, seed=config["seed_everything"],
            lineage=parsed.lineage, weights=self._weights(), fingerprints=self._fingerprints,
            task=type(module.task).__name__, main_metric=module.task.main_metric,
            datasets=tuple(self._datasets()), reducer=parsed.reducer, reducer_family=reducer.family,
            reducer_options=(config["model"]["reducer"] or {}).get("init_args") or {},
            precision=str(trainer.precision), processes=trainer.world_size,
            peak_memory_bytes=peak_memory_bytes(),
            peak_gpu_memory_bytes=torch.cuda.max_memory_allocated() if cuda else None,
            **training, **self.labels, **(state.kept or self._count_tokens()), **environment(),
        )  # fmt: skip

    def _costs(self, notes: tuple[str, ...]) -> dict[str, Any]:
        """Return GFLOPs and times, which all runs of one model share."""
        given_root = self.parsed.config["trainer"]["default_root_dir"]
        home = Path("runs") if given_root is None else self.parsed.run_dir.parent
        self._module.to(self._trainer.strategy.root_device)  # Lightning has moved it to the CPU
        found = cached_cost(
            self._module.meter, self._module.task, home / COSTS_NAME,
            training=self.parsed.command == "fit", precision=str(self._trainer.precision),
            facts={"compile": self._module.compiled},
        )  # fmt: skip
        return {**vars(found), "notes": (*notes, *found.notes)}

    def _weights(self) -> str:
        """Describe where the weights came from."""
        parsed, model = self.parsed, self.parsed.config["model"]
        if parsed.lineage:
            before = parsed.lineage[0].method
            if parsed.command == "fit":
                return f"started from weights trained with {before}"
            done = {"test": "tested", "validate": "validated", "predict": "run"}[parsed.command]
            shelf = f"; {done} with {parsed.method} (off the shelf)"
            return f"trained with {before}" + (shelf if before != parsed.method else "")
        given = (parsed.command != "fit" and parsed.checkpoint) or self._module.weights
        if given:
            return f"{given}, of unknown training"
        encoders = {"image": model["image_weights"], "text": model["text_weights"]}
        known = [f"{name} encoder from {path}" for name, path in encoders.items() if path]
        return ", ".join(["random", *known])

    def _next_command(self) -> str | None:
        """Return the command to type next."""
        if self.labels["grid"] is not None:
            return None
        if self.parsed.command == "fit":
            return self.parsed.again("test", identity.BEST)
        folder = self.parsed.run_dir
        found_by_name = folder.name == self.parsed.command  # it is inside the directory of its fit
        return f"python -m analysis {(folder.parents if found_by_name else [0, folder])[1]}"


def lost_process(error: BaseException) -> str | None:
    """Return a message if this error means that another process of the run died; else None."""
    text = next(iter(str(error).splitlines()), "")
    if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in text):
        return f"another process of this run has died; see what it printed last ({text})"
    return None


def _own_skipped(trainer: Trainer) -> Counter[str]:
    return Counter(trainer.datamodule.skipped)  # type: ignore[attr-defined]


def _skipped(trainer: Trainer) -> Counter[str]:
    """Count skipped images by split, over all processes."""
    every = [_own_skipped(trainer)] * trainer.world_size
    if trainer.world_size > 1:
        dist.all_gather_object(every, every[0])
    return sum(every, Counter())


def _sum(trainer: Trainer, count: Tensor) -> Tensor:
    """Add up a tensor over all processes."""
    if trainer.world_size > 1:
        count = count.to(trainer.strategy.root_device)
        dist.all_reduce(count)
    return count


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
